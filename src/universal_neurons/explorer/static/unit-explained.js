// The explanations of a unit: each with who wrote it, and what it is worth on the unit, beside controls, and elsewhere.
(function () {
  "use strict";
  const METHODS = ["detection", "fuzzing", "simulation"];
  const USES = ["own", "counterpart", "random", "another unit's", "empty"];
  const OF_UNIT = { own: "this unit", "another unit's": "this unit, by another unit's sentence", empty: "this unit, by an empty sentence" };
  const asked = (row) => `${METHODS.indexOf(row.method)} ${row.scorer}`;
  const inOrder = (one, other) => (asked(one) < asked(other) ? -1 : asked(one) > asked(other) ? 1 : USES.indexOf(one.use) - USES.indexOf(other.use) || (one.model ?? 0) - (other.model ?? 0));

  function tried(row) {
    if (row.use in OF_UNIT) return OF_UNIT[row.use];
    return [un.term(row.use === "random" ? "on_random" : row.use, row.use), " ", un.unitLink(row.model, row.layer, row.neuron), " of ", un.said(un.modelName(row.model))];
  }

  function scores(rows, caption) {
    const row = (each) => un.h("tr", { class: each.use === "own" ? "own" : null },
      un.h("th", { scope: "row" }, tried(each)),
      un.h("td", { class: "number" }, un.isNone(each.score) ? un.h("span", { class: "quiet" }, "too few answers") : un.num(each.score, true)),
      un.h("td", {}, un.reach(each.low, each.high, each.score), un.h("span", { class: "quiet" }, un.interval(each.low, each.high) || "–")),
      un.h("td", { class: "number" }, un.num(each.chance, true)),
      un.h("td", { class: "number" }, un.num(each.n_windows - each.missing)));
    const heads = [["tried on", null], ["score", "explanation_score"], ["95 % interval", null], ["chance", "explanation_chance"], ["answers", null]];
    const group = (of) => un.h("tbody", {},
      un.h("tr", {}, un.h("th", { scope: "rowgroup", colspan: heads.length, class: "asked" }, un.term(of[0].method, of[0].method), " by ", un.said(of[0].scorer))),
      of.map(row));
    const groups = [...new Set(rows.map(asked))].map((each) => rows.filter((other) => asked(other) === each));
    return un.h("div", { class: "sheet", tabindex: 0, role: "group", "aria-label": caption }, un.h("table", { class: "scores" }, un.h("caption", { class: "unseen" }, caption),
      un.h("thead", {}, un.h("tr", {}, heads.map(([text, term], at) => un.h("th", { scope: "col", class: [1, 3, 4].includes(at) ? "number" : null }, un.term(term, text))))),
      groups.map(group)));
  }

  // Nothing where labels alone said something, and nobody scored it: the sentence stands at the head of the page.
  un.parts.explanations = function (unit) {
    const all = unit.explanations || [];
    const rows = unit.scores || [];
    if (!all.length) return un.absent("explanations", "Nobody has explained this unit.");
    if (!rows.length && !all.some((each) => each.by)) return null;
    return all.map((each) => {
      const who = each.by || "labels";
      const tries = rows.filter((row) => row.use !== "empty" && (row.by || "labels") === who);
      const empty = rows.filter((row) => row.use === "empty" && tries.some((other) => asked(other) === asked(row)));
      return un.h("div", { class: "explained" },
        un.h("h3", {}, "By ", un.said(who)),
        un.h("p", { class: "explanation" }, un.said(each.text)),
        tries.length ? scores([...tries, ...empty].sort(inOrder), `Scores of the sentence by ${who}`) : un.empty("Nobody has scored this sentence."));
    });
  };
})();
