// What others than labels said of units, and what all sentences are worth: by who wrote them, and one by one.
(function () {
  "use strict";
  function numbers(rows, names) {
    return names.map(([name, title]) => ({ name, title, term: name, kind: "number", real: true, at: (at) => rows[at][name] }));
  }
  // A value and its 95 % interval, sorted by the value.
  function estimate(rows, name, low, high, title) {
    const interval = (at) => un.interval(rows[at][low], rows[at][high]);
    return [
      ...numbers(rows, [[name, title]]),
      { name: `${name}_interval`, title: "95 % interval", kind: "number", at: (at) => rows[at][low], raw: interval, node: (at) => interval(at) || "–" },
    ];
  }
  const asked = (row) => (row.method ? `${row.method} by ${row.scorer}` : "");
  const text = (rows, name, title = name) => ({ name, title, term: name, kind: "text", at: (at) => rows[at][name] });
  const ofAsked = (rows) => ({ name: "asked", title: "asked", kind: "text", at: (at) => asked(rows[at]) });
  const sheet = (caption, columns, rows, file, rest) => un.table({ caption, columns, rows: Uint32Array.from(rows.keys()), file: `${un.study.id}-${file}.csv`, ...rest }).element;

  const ELSEWHERE = [["on_counterparts", "counterparts"], ["on_random", "random"]];
  function sources(rows) {
    const columns = [
      text(rows, "source"), ofAsked(rows), { name: "units", title: "units", kind: "number", at: (at) => rows[at].units },
      ...estimate(rows, "mean_score", "mean_score_low", "mean_score_high", "mean score"),
      ...numbers(rows, [["explanation_chance", "chance"], ["label_sentence", "label sentence"], ["another_sentence", "another's"], ["empty_sentence", "empty"], ...ELSEWHERE]),
      ...estimate(rows, "carried", "carried_low", "carried_high", "carried"),
    ];
    return sheet("Sources of explanations", columns, rows, "sources");
  }

  function units(rows) {
    const place = (at) => un.placeName(rows[at].layer, rows[at].neuron);
    const columns = [
      { name: "unit", title: "unit", kind: "text", at: place, node: (at) => un.unitLink(rows[at].model, rows[at].layer, rows[at].neuron) },
      { name: "model", title: "model", kind: "text", at: (at) => un.modelName(rows[at].model) },
      { ...text(rows, "explanation"), node: (at) => un.said(rows[at].explanation, "sentence") },
      text(rows, "source"),
      ...estimate(rows, "explanation_score", "explanation_low", "explanation_high", "score"),
      ...numbers(rows, [["explanation_chance", "chance"], ...ELSEWHERE]),
    ];
    return sheet("Explanations", columns, rows, "explanations", { sort: "explanation_score", more: [ofAsked(rows)] });
  }

  un.pages.explanations = async function (main) {
    const tables = await un.tables();
    const rows = un.rows(tables.explanations);
    const head = un.h("h1", {}, "Explanations");
    if (!rows.length) return un.clear(main, head, un.absent("explanations", "Nobody has explained the units in words."));
    un.clear(main, head,
      un.h("p", { class: "lead" }, un.site.terms.explanation || null),
      un.section("sources", "What they are worth, by who wrote them", sources(un.rows(tables.explanation_sources))),
      un.section("units", "One by one", units(rows)));
  };
})();
