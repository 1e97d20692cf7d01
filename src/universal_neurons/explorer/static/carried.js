// What the units that changed most carry of what a fine-tune gained: how the loss rises where they are ablated or patched.
(function () {
  "use strict";
  const JOINT = [["gain", "gain_of_loss"], ["patched", "patched"], ["share", "gain_share"], ["given", "given"], ["given_share", "given_share"]];
  const SINGLE = [["ablated_before", "ablated_before"], ["ablated_after", "ablated_after"], ["patched", "patched"], ["share", "gain_share"]];
  const NAMES = { changed: "changed most", others: "others of their layers", share: "share of the gain", given_share: "given, share of the gain" };
  const named = (name) => NAMES[name] || name.replaceAll("_", " ");

  const withEnds = (row, name) => (un.isNone(row[name]) ? "–" : [un.num(row[name], true), " ", un.h("span", { class: "quiet" }, un.interval(row[`${name}_low`], row[`${name}_high`]))]);
  const measured = (rows, names) => names.flatMap(([name, term]) => [
    { name, title: named(name), term, kind: "number", at: (at) => rows[at][name], node: (at) => withEnds(rows[at], name) },
  ]);
  const ends = (rows, names) => names.flatMap(([name]) => ["low", "high"].map((end) => ({ name: `${name}_${end}`, at: (at) => rows[at][`${name}_${end}`] })));

  function table(caption, rows, first, names, file) {
    const text = { name: "text", title: "text", kind: "text", at: (at) => rows[at].text };
    return un.table({ caption, columns: [...first, text, ...measured(rows, names)], more: ends(rows, names), rows: Uint32Array.from(rows.keys()), file }).element;
  }

  un.carried = function (diff, units) {
    if (!diff.joint_effects) return null;
    const joint = un.rows(diff.joint_effects), single = un.rows(diff.unit_effects);
    const place = ({ layer, neuron }) => un.flat({ model: 0, layer, neuron });
    const sets = [
      { name: "units", title: "units", kind: "text", at: (at) => named(joint[at].units) },
      { name: "count", title: "how many", kind: "number", at: (at) => joint[at].count },
    ];
    const unit = [
      { name: "unit", title: "unit", kind: "text", at: (at) => un.placeName(single[at].layer, single[at].neuron), node: (at) => un.unitLink(0, single[at].layer, single[at].neuron) },
      { name: "kind", title: "kind", kind: "text", at: (at) => units.at("kind", place(single[at])), node: (at) => un.kind(units.at("kind", place(single[at]))) },
    ];
    return un.section("carried", "What the units that changed most carry",
      un.h("p", { class: "quiet" }, "The loss in nats a token, with 95 % intervals."),
      table("All of them together, and as many others", joint, sets, JOINT, `${un.study.id}-joint-effects.csv`),
      single.length ? table("One at a time", single, unit, SINGLE, `${un.study.id}-unit-effects.csv`) : null);
  };

  // Of one unit, a line for each text; null where nothing was measured of it.
  un.carriedBy = function (diff, unit) {
    const rows = un.rows(diff.unit_effects).filter((row) => row.layer === unit.layer && row.neuron === unit.neuron);
    if (!rows.length) return null;
    const lines = rows.map((row) => un.h("tr", {}, un.h("th", { scope: "row" }, rows.length > 1 ? `${row.text} text` : "held-out text"), SINGLE.map(([name]) => un.h("td", { class: "number" }, withEnds(row, name)))));
    return un.h("div", { class: "sheet", tabindex: 0, role: "group", "aria-label": "Effect on the loss" }, un.h("table", {}, un.h("caption", {}, "By how much the loss rises, nats a token"),
      un.h("thead", {}, un.h("tr", {}, un.h("th", { scope: "col" }, ""), SINGLE.map(([name, term]) => un.h("th", { scope: "col", class: "number" }, un.term(term, named(name)))))), un.h("tbody", {}, lines)));
  };
})();
