// The parts of a unit's page, each made of what its shard holds; null, or why it is empty, where it holds nothing.
(function () {
  "use strict";
  const GROUPS = [
    ["Found again", /^(excess|mean_corr|max_corr|min_corr|baseline|mean_baseline|max_baseline|min_baseline|q_value|p_|fdr_|is_universal|mutual_all|carried_by_few|position_share)/],
    ["Activity", /^(dead|sparsity|mean$|activation_mean|activation_sd|var$|skew$|kurt$|bos_mean|is_bos|position_mi|layer_corr|mean_|sparsity_|skew_|kurt_)/],
    ["Label", /^(variance_reduction|label_sign)/],
    ["Weights", /^(w_|input_bias|l2_|in_|up_|out_)/],
    ["Logits", /^(vocab_|null_fraction)/],
  ];
  const ELSEWHERE = new Set(["model", "layer", "neuron", "family", "label", "roles"]);
  const kept = {};
  un.parts = kept;

  const whole = (low, high, at) => un.h("span", { class: "reach", "aria-hidden": "true", vars: { "--low": Math.max(0, Math.min(1, low)), "--high": Math.max(0, Math.min(1, high)), "--at": Math.max(0, Math.min(1, at)) } }, un.h("i", {}), un.h("b", {}));
  un.reach = (low, high, at) => (un.isNone(at) ? null : whole(un.isNone(low) ? at : low, un.isNone(high) ? at : high, at));

  kept.numbers = function (unit) {
    const groups = [...GROUPS.map(([name]) => [name, []]), ["Other", []]];
    for (const [name, value] of Object.entries(unit.columns)) {
      if (ELSEWHERE.has(name)) continue;
      const at = GROUPS.findIndex(([, pattern]) => pattern.test(name));
      const text = typeof value === "boolean" ? (value ? "yes" : "no") : name === "sparsity" || /_percentile$/.test(name) ? (name === "sparsity" ? un.percent(value) : `${un.num(value)} %`) : un.num(value);
      groups[at < 0 ? groups.length - 1 : at][1].push(un.h("div", {}, un.h("dt", {}, un.term(name, un.title(name, un.study))), un.h("dd", {}, text)));
    }
    return un.h("div", { class: "numbers" }, groups.filter(([, items]) => items.length).map(([name, items]) => un.h("div", {}, un.h("h3", {}, name), un.h("dl", {}, items))));
  };

  kept.histogram = function (unit) {
    if (!unit.histogram || !unit.histogram.counts.length) return un.absent("histogram", "The store has no histogram of this unit.");
    const { low, high, counts } = unit.histogram;
    const [from, to] = [low[0], high[high.length - 1]];
    const bins = 48, width = (to - from) / bins || 1;
    const shared = new Array(bins).fill(0);
    // The store's bins widen with the size of the value; a count is spread evenly over what its bin covers.
    counts.forEach((count, at) => {
      const span = high[at] - low[at] || width;
      for (let bin = Math.max(0, Math.floor((low[at] - from) / width)); bin < bins && from + bin * width < high[at]; bin++) {
        const both = Math.min(high[at], from + (bin + 1) * width) - Math.max(low[at], from + bin * width);
        if (both > 0) shared[bin] += (count * both) / span;
      }
    });
    const total = counts.reduce((sum, count) => sum + count, 0);
    const bars = shared.map((count, bin) => {
      const ends = [from + bin * width, from + (bin + 1) * width];
      return { low: ends[0], high: ends[1], value: (100 * count) / total, text: `${un.percent(count / total)} of positions from ${un.num(ends[0])} to ${un.num(ends[1])}` };
    });
    const value = un.valueName(un.study);
    return un.histogram(`${value[0].toUpperCase()}${value.slice(1)}, % of positions`, bars, value, `${un.count(total, "position")}`);
  };

  kept.labels = function (unit) {
    if (!(unit.labels || []).length) return un.absent("labels", "No label explains this unit.");
    const rows = unit.labels.map((each) => ({
      name: [each.sign < 0 ? "silent on " : "", un.said(each.label), un.h("span", { class: "quiet" }, ` ${each.group}${each.previous ? ", of the previous token" : ""}`)],
      value: each.variance_reduction,
    }));
    const nearest = unit.columns.label ? null : un.h("p", {}, "The nearest labels: none explains enough to say that the unit fires on it.");
    return [nearest, un.bars(rows, "Share of the activation's variance that a label explains")];
  };

  kept.tokens = function (unit) {
    if (!(unit.tokens || []).length) return un.absent("tokens", "The store holds no sums by token for this unit.");
    const rows = unit.tokens.map((each) => ({ name: [un.quoted(each.string), un.h("span", { class: "quiet" }, ` ${un.num(each.count)} ×`)], value: each.mean }));
    return un.bars(rows, "Mean activation on a token, and how often the token came");
  };

  // The rule is `often_used` of roles/prediction.py.
  function leftOut(number) {
    if (un.isNone(number)) return "Of all tokens, also such as hardly occur in the study's text.";
    if (number === 0) return "Of all tokens: too few occur 5 times in the study's text, or all do.";
    return `Left out: ${un.num(number)} tokens that occur fewer than 5 times in the study's text.`;
  }
  kept.effects = function (unit) {
    const effects = unit.effects;
    if (!effects) return un.absent("effects", "The store has no logit effects of this unit.");
    const list = (pairs) => (pairs || []).map(([text, value]) => ({ name: un.quoted(text), value }));
    const said = [effects.role && ["By its weights it is ", un.roleLink(effects.role, 0), "."], effects.role_relative && !effects.role && ["Relative to what this unembedding allows it is a ", un.term("role_relative", effects.role_relative), " unit."], effects.class && [" Its effects follow the token class ", un.said(effects.class), "."]].filter(Boolean);
    return [said.length ? un.h("p", {}, said) : null, un.h("div", { class: "pair-of-bars" }, un.bars(list(effects.top), "Tokens it raises most (logit per unit of activation)"), un.bars(list(effects.bottom), "Tokens it lowers most")), un.h("p", { class: "quiet" }, leftOut(effects.tokens_left_out))];
  };

  const METRICS = { loss: "Loss (nats)", entropy: "Entropy (nats)", rank: "Rank of the true token", reciprocal_rank: "Reciprocal rank of the true token", norm_scale: "Final norm's scale", divergence: "KL from the clean run (nats)" };
  kept.curves = function (rows) {
    const fixed = rows.filter((row) => row.edit === "fix" && !un.isNone(row.value)).sort((a, b) => a.value - b.value);
    const names = Object.keys(METRICS).filter((name) => fixed.some((row) => !un.isNone(row[name])));
    if (fixed.length < 2 || !names.length) return null;
    return un.h("div", { class: "plots" }, names.map((name) => un.lines(METRICS[name], [{ points: fixed.map((row) => [row.value, row[name]]) }], "activation fixed at")));
  };
  kept.interventions = function (unit) {
    if (!(unit.interventions || []).length) return null;
    const kinds = [...new Set(unit.interventions.map((row) => row.kind))];
    const said = kinds.map((kind) => (kind === "control" ? "A random control, to compare with." : `A candidate: ${kind}.`));
    const others = unit.interventions.filter((row) => row.edit !== "fix" || un.isNone(row.value));
    return [un.h("p", { class: "quiet" }, said.join(" ")), kept.curves(unit.interventions), others.length ? kept.records("Other edits", others) : null];
  };

  const SKIP = new Set(["model", "layer", "neuron", "asker"]);
  // Rows of objects as a table with their own names.
  kept.records = function (caption, rows) {
    const names = [...new Set(rows.flatMap((row) => Object.keys(row)))].filter((name) => !SKIP.has(name));
    const reals = new Set(names.filter((name) => un.isReal(rows.map((row) => row[name]))));
    const value = (row, name) => (name === "match_model" ? un.said(un.modelName(row.match_model)) : typeof row[name] === "string" ? un.said(row[name]) : Array.isArray(row[name]) ? row[name].map((each) => un.said(each)) : typeof row[name] === "boolean" ? (row[name] ? "yes" : "no") : un.num(row[name], reals.has(name)));
    const text = (name) => name === "match_model" || rows.some((row) => typeof row[name] === "string");
    return un.h("div", { class: "sheet", tabindex: 0, role: "group", "aria-label": caption }, un.h("table", {}, un.h("caption", {}, caption),
      un.h("thead", {}, un.h("tr", {}, names.map((name) => un.h("th", { scope: "col", class: text(name) ? null : "number" }, un.term(name, un.title(name, un.study)))))),
      un.h("tbody", {}, rows.map((row) => un.h("tr", {}, names.map((name) => un.h("td", { class: text(name) ? null : "number" }, value(row, name))))))));
  };
  kept.ablations = function (unit) {
    const found = unit.ablations && (Array.isArray(unit.ablations) ? unit.ablations : [unit.ablations]);
    return found && found.length ? kept.records("Mean ablation", found) : null;
  };
  kept.attention = (unit) => ((unit.attention || []).length ? kept.records("Its path to later heads taken away", unit.attention) : null);
  kept.functional = (unit) => ((unit.functional || []).length ? kept.records("Do its counterparts do the same", unit.functional) : null);

  // What is tried on some units alone: a section each where it was on this one, and one line for the others.
  kept.tried = function (place, unit) {
    const { absent } = un.study;
    const kind = place.model !== un.study.reference ? "functional:elsewhere" : unit.columns.is_universal ? "functional:universal" : "functional";
    const all = [
      ["interventions", "Roles, by intervention", [kept.interventions(unit), kept.ablations(unit)], absent.roles || "Only candidates for entropy and token-frequency units, and random controls, are intervened on."],
      ["attention", "Attention", [kept.attention(unit)], absent.roles || "Only the units with the largest BOS scores have their paths to later heads ablated."],
      ["functional", "Same function", [kept.functional(unit)], absent[kind] || absent.functional],
    ].map(([id, title, found, why]) => ({ id, title, why, found: found.filter(Boolean) }));
    const without = all.filter((each) => !each.found.length);
    return [
      all.filter((each) => each.found.length).map((each) => un.section(each.id, each.title, each.found)),
      without.length ? un.h("details", { class: "untried" }, un.h("summary", {}, `Not tried for this unit: ${without.map((each) => each.title.toLowerCase()).join("; ")}`),
        un.h("dl", {}, without.map((each) => [un.h("dt", {}, each.title), un.h("dd", {}, each.why)]))) : null,
    ];
  };

  kept.positions = function (unit) {
    if (!unit.positions) return null;
    const { position, mean, firing } = unit.positions;
    return un.h("div", { class: "plots" }, un.lines("Mean activation by position", [{ points: position.map((at, place) => [at, mean[place]]) }], "position in the context (tokens)"),
      un.lines("Share that fires by position", [{ points: position.map((at, place) => [at, firing[place]]) }], "position in the context (tokens)"));
  };
  kept.course = function (unit) {
    if (!(unit.course || []).length) return null;
    const steps = unit.course.map((each) => String(each.checkpoint));
    const names = ["excess", "excess_corr", "self_corr"].filter((name) => unit.course.some((each) => !un.isNone(each[name])));
    return un.lines("Over training", names.map((name) => ({ name: un.title(name, un.study), points: unit.course.map((each, at) => [at, each[name]]) })), "checkpoint (step)", { steps, zero: true });
  };
  kept.neighbours = function (unit, model) {
    if (!(unit.neighbours || []).length) return un.absent("neighbours", "No neighbours of this unit were kept.");
    return un.h("ul", { class: "neighbours" }, unit.neighbours.map((each) =>
      un.h("li", {}, un.h("span", { class: "quiet" }, each.kind), " ", un.unitLink(model, each.layer, each.neuron), ` ${un.num(each.value, true)}`)));
  };
})();
