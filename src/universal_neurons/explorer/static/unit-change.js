// What training changed of one unit: its kind, the evidence, before and after.
(function () {
  "use strict";
  const MEASURED = ["self_corr", "mean_shift", "scale", "offset", "firing_shift", "contribution"];
  const EXACT = ["firing_overlap", "q50_shift", "q99_shift", "w_in_cos", "w_in_ratio", "w_up_cos", "w_up_ratio", "w_out_cos", "w_out_ratio", "logit_cos"];
  const sheet = (caption, head, rows) => un.h("div", { class: "sheet", tabindex: 0, role: "group", "aria-label": caption },
    un.h("table", {}, un.h("caption", {}, caption), un.h("thead", {}, un.h("tr", {}, head.map(([text, kind]) => un.h("th", { scope: "col", class: kind }, text)))), un.h("tbody", {}, rows)));

  function verdict(row, { layer, neuron }) {
    const at = (name) => row[name];
    const match = (side, model, before) => un.isNone(row[`${side}_match_layer`]) ? null : un.h("p", {}, before, un.unitLink(model, row[`${side}_match_layer`], row[`${side}_match_neuron`]), `, ρ ${un.num(row[`${side}_match_corr`], true)} on held-out rows.`);
    return [
      un.h("p", { class: "hero" }, row.kind ? un.kindLink(row.kind) : "not known", row.kind && un.h("span", { class: "quiet" }, row.surely_unchanged ? "surely" : un.site.terms[row.kind])),
      un.h("p", {}, "Where it is now: ", un.whereabouts(at), ". ", un.unitLink(0, layer, neuron, "Before"), " · ", un.unitLink(1, layer, neuron, "after"), " · ", un.h("a", { href: un.href("diff") }, "all units")),
      match("tuned", 1, "Its best match after is "), match("base", 0, "What it is now was best matched, before, by "),
    ];
  }

  function evidence(row) {
    const unusual = [...MEASURED, ...EXACT].some((name) => !un.isNone(row[`p_${name}`]));
    const shown = [...MEASURED, ...EXACT].filter((name) => !un.isNone(row[name]));
    const line = (name) => un.h("tr", {}, un.h("th", { scope: "row" }, un.term(name, un.title(name))), un.h("td", { class: "number" }, un.num(row[name], true)),
      un.h("td", { class: "number" }, un.interval(row[`${name}_low`], row[`${name}_high`])),
      unusual && ["p", "q"].map((letter) => un.h("td", { class: "number" }, un.isNone(row[`${letter}_${name}`]) ? "" : un.num(row[`${letter}_${name}`], true))));
    const head = [["", null], ["value", "number"], ["95 % interval", "number"], ...(unusual ? [["p", "number"], ["q", "number"]] : [])];
    return [sheet("The unit and itself on held-out rows, and its weights", head, shown.map(line)),
      unusual && un.h("p", { class: "quiet" }, un.term("p_least", "The smallest p"), ` that can come out here is ${un.num(row.p_least, true)}.`)];
  }

  function sides(row) {
    const cell = (when, made) => un.h("td", {}, made(when) ?? "–");
    const line = (title, made) => un.h("tr", {}, un.h("th", { scope: "row" }, title), cell("before", made), cell("after", made));
    const label = (when) => row[`label_${when}`] && [row[`label_sign_${when}`] < 0 ? "silent on " : "", un.said(row[`label_${when}`])];
    const family = (when) => row[`family_${when}`] && un.familyLink(row[`family_${when}`], when === "before" ? 0 : 1);
    const roles = (when) => ((row[`roles_${when}`] || []).length ? row[`roles_${when}`].map((role) => un.roleLink(role, when === "before" ? 0 : 1)) : null);
    const known = (name) => ["before", "after"].some((when) => !un.isNone(row[`${name}_${when}`]));
    const weights = row.weights === "rounding" ? "equal up to rounding" : row.weights;
    return [sheet("Before and after", [["", null], ...un.study.models.map((model) => [un.said(model.name), null])], [
      known("family") && line("family", family), known("label") && line("label", label), known("roles") && line("roles", roles),
      line("fires at", (when) => un.percent(row[`firing_${when}`])),
      ["before", "after"].some((when) => row[`dead_${when}`]) && line("dead", (when) => (row[`dead_${when}`] ? "yes" : "no")),
    ]), un.h("p", { class: "quiet" }, `Its own weights before and after: ${weights}.`)];
  }

  un.parts.change = function (unit) {
    const row = unit.change;
    if (!row) return null;
    const list = (pairs) => (pairs || []).map(([text, value]) => ({ name: un.quoted(text), value }));
    return [verdict(row, unit),
      un.h("div", { class: "grid" }, un.h("div", { class: "change" }, evidence(row)), un.h("div", { class: "change" }, sides(row))),
      row.raised ? un.h("div", { class: "pair-of-bars" }, un.bars(list(row.raised), "Tokens whose logit effects rose most"), un.bars(list(row.lowered), "Tokens whose logit effects fell most"))
        : un.empty("Its effects on the logits are the same before and after."),
      un.h("p", {}, un.h("a", { href: "#examples" }, "Its highest examples before and after, side by side"))];
  };
})();
