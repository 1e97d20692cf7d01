// What units do: how many have each role, ensembles, and what interventions on single units change.
(function () {
  "use strict";

  function counts(rows) {
    const roles = [...new Set(rows.map((row) => row.role).filter(Boolean))].sort();
    const models = [...new Set(rows.map((row) => row.model))];
    const sum = (role, model) => rows.filter((row) => row.role === role && row.model === model).reduce((total, row) => total + row.neurons, 0);
    const head = un.h("tr", {}, un.h("th", { scope: "col" }, "role, by the weights"), models.map((model) => un.h("th", { scope: "col", class: "number" }, un.said(un.modelName(model)))));
    const body = roles.map((role) => un.h("tr", {}, un.h("th", { scope: "row" }, un.term(role, role.replaceAll("_", " "))), models.map((model) => un.h("td", { class: "number" }, sum(role, model) ? un.h("a", { href: un.href("study", {}, { m: model, role }) }, un.num(sum(role, model))) : "0"))));
    const relative = (role, model) => un.h("td", { class: "number" }, un.num(rows.filter((row) => row.role_relative === role && row.model === model).reduce((total, row) => total + row.neurons, 0)));
    const told = [...new Set(rows.map((row) => row.role_relative).filter(Boolean))].sort();
    body.push(...told.map((role) => un.h("tr", {}, un.h("th", { scope: "row" }, un.term("role_relative", `${role}, relative`)), models.map((model) => relative(role, model)))));
    return body.length ? un.h("div", { class: "sheet", tabindex: 0, role: "group", "aria-label": "Units of each role" }, un.h("table", {}, un.h("caption", { class: "unseen" }, "Units of each role in every model"), un.h("thead", {}, head), un.h("tbody", {}, body))) : un.empty("No unit has a role by its weights.");
  }

  // The nearest unit of every role that nobody has, as the study says it.
  const missing = () => Object.entries(un.study.absent).filter(([key]) => key.startsWith("role:")).map(([, why]) => un.empty(why));

  const isControl = (row) => (row.kind === "control" ? 1 : 0);

  function candidates(rows) {
    const fixed = rows.filter((row) => row.edit === "fix" && !un.isNone(row.neuron)).sort((a, b) => isControl(a) - isControl(b));
    const units = [...new Map(fixed.map((row) => [`${row.model}/${un.placeName(row.layer, row.neuron)}`, row])).entries()];
    if (!units.length) return un.absent("interventions", "No unit was intervened on.");
    const place = un.h("div", {});
    const draw = (name) => {
      const [model, layer, neuron] = [units.find(([each]) => each === name)[1]].flatMap((row) => [row.model, row.layer, row.neuron]);
      const own = fixed.filter((row) => row.model === model && row.layer === layer && row.neuron === neuron);
      un.clear(place, un.h("p", {}, un.unitLink(model, layer, neuron), " of ", un.said(un.modelName(model)), `, ${own[0].kind === "control" ? "a random control" : `a candidate: ${own[0].kind}`}`), un.parts.curves(own));
    };
    const options = units.map(([name, row]) => [name, `${un.modelName(row.model)} ${un.placeName(row.layer, row.neuron)} (${row.kind})`]);
    draw(units[0][0]);
    return [un.choice("Unit", options, units[0][0], draw), place];
  }

  const TABLES = [
    ["ensembles", "Ensembles: units of one role and class together", ["model", "role", "class", "nearest", "neurons", "corr_best", "corr_sum", "auc_best", "auc_sum", "gain", "error_corr", "activation_corr"]],
    ["ablations", "Mean ablations: does an effect go through the final norm", ["model", "kind", "loss_change", "total_effect", "direct_effect", "mediated", "frequency_share", "null_fraction", "role"]],
    ["attention", "Paths to later heads, taken away", ["model", "head_layer", "head", "score", "z", "bos_effect", "delta_bos", "delta_norm", "pearson_activation_bos", "role"]],
    ["functional", "Do matched units do the same", ["match_model", "corr", "effect_corr", "effect_corr_second", "effect_corr_random", "loss_corr", "loss_corr_second", "loss_corr_random", "loss_gain", "loss_gain_low", "loss_gain_high", "same_roles"]],
    ["costs", "What the universal units are worth together", ["model", "set", "draw", "neurons", "contributed", "contributed_ratio", "contributed_ratio_worst", "loss_change", "loss_change_low", "loss_change_high", "loss_ratio", "loss_ratio_low", "loss_ratio_high", "divergence"]],
    ["heads", "Every head's BOS scores", ["model", "head_layer", "head", "score_low", "score_high", "random_mean", "random_sd", "ratio", "bos_attention"]],
  ];

  un.pages.roles = async function (main) {
    const tables = await un.tables();
    const head = [un.h("h1", {}, "Roles"), un.h("p", { class: "lead" }, un.site.terms.role || "A role is what a unit does.")];
    if (un.study.absent.roles) return un.clear(main, head, un.absent("roles"));
    const shown = TABLES.filter(([name]) => tables[name]).map(([name, title, columns]) =>
      un.section(name, title, un.storeTable(title, un.rows(tables[name]).sort((a, b) => isControl(a) - isControl(b)), columns, { file: `${un.study.id}-${name}.csv` })));
    un.clear(main, head,
      un.section("counts", "How many", tables.effects_counts ? counts(un.rows(tables.effects_counts)) : null, missing()),
      (un.study.together || []).length ? un.section("together", "Universal units against others", un.study.together.map((sentence) => un.h("p", {}, un.said(sentence)))) : null,
      un.section("curves", "What fixing a unit's activation changes", candidates(un.rows(tables.interventions))),
      shown);
  };
})();
