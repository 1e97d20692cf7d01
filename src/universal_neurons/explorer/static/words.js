// Numbers and names as pages write them: 0.69, 0.56 to 0.71, "–" where there is no answer; terms with their sentence.
(function () {
  "use strict";
  const none = (value) => value === null || value === undefined || Number.isNaN(value);

  // Thousands set apart, by hand: the browser's own formatter is slow for the thousands of numbers of a page.
  function grouped(text) {
    const [whole, rest] = text.split(".");
    const apart = whole.replace(/\B(?=(\d{3})+$)/g, ",");
    return rest === undefined ? apart : `${apart}.${rest}`;
  }

  function digits(value, real) {
    const size = Math.abs(value);
    if (Number.isInteger(value) && !(real && size < 100)) return grouped(String(value));
    if (value === 0) return "0.00";
    if (size >= 1000) return grouped(String(Math.round(value)));
    if (size >= 100) return value.toFixed(1);
    if (size >= 0.01) return value.toFixed(2);
    if (size >= 0.0001) return value.toFixed(4);
    return value.toExponential(1);
  }

  // `real`: one of numbers that need not be whole, so that 2 stands as 2.00 beside 2.25.
  un.num = (value, real) => (none(value) ? "–" : typeof value !== "number" ? String(value) : digits(value, real).replace("-", "−"));
  un.interval = (low, high) => (none(low) || none(high) ? "" : `${un.num(low, true)} to ${un.num(high, true)}`);
  un.isReal = (values) => values.some((value) => typeof value === "number" && !Number.isInteger(value));
  un.fixed = (value, step) => grouped(value.toFixed(Math.min(6, Math.max(0, -Math.floor(Math.log10(step) + 1e-9))))).replace("-", "−");
  un.percent = (share) => (none(share) ? "–" : `${String(Number((100 * share).toFixed(Math.abs(share) < 0.001 ? 3 : 1))).replace("-", "−")} %`);
  un.count = (number, one, many) => `${un.num(number)} ${number === 1 ? one : many || `${one}s`}`;
  un.isNone = none;

  // A column's name for people: `excess_corr` is "excess", `match_corr:1` is "ρ in MODEL".
  const TITLES = {
    excess_corr: "excess", excess_standardised: "excess, standardised", excess_heldout: "excess, held out",
    excess_low: "excess, low end", excess_high: "excess, high end", mean_corr: "mean best ρ", max_corr: "highest best ρ",
    min_corr: "lowest best ρ", q_value: "q", is_universal: "universal", mutual_all: "mutual everywhere",
    variance_reduction: "variance explained", sparsity: "share active", l2_penalty: "L2 penalty", in_out_sim: "cos(w_in, w_out)",
    vocab_var: "vocabulary variance", vocab_skew: "vocabulary skew", vocab_kurt: "vocabulary kurtosis",
    null_fraction: "null fraction", position_mi: "position information", mean: "mean pre-activation",
    var: "variance", skew: "skew", kurt: "kurtosis", corr: "ρ", corr_heldout: "ρ, held out", match_layer: "match's layer",
    match_neuron: "match's neuron", match_model: "match's model", neurons: "units", asker: "reference", universal_surely: "95 % interval above", universal_possibly: "95 % interval reaches above",
    self_corr: "ρ with itself", self_corr_low: "ρ with itself, low end", self_corr_high: "ρ with itself, high end", self_most: "ρ with itself, upper end",
    scale: "scale, times", firing_before: "fires at, before", firing_after: "fires at, after", firing_overlap: "fires in both, of either",
    q50_shift: "median shift", q99_shift: ".99 quantile shift", w_in_cos: "cosine of w_in", w_in_ratio: "norm of w_in, times", w_up_cos: "cosine of w_up",
    w_up_ratio: "norm of w_up, times", w_out_cos: "cosine of w_out", w_out_ratio: "norm of w_out, times", contribution: "contribution, times",
    logit_cos: "cosine of logit effects", tuned_match_corr: "ρ of best match after", tuned_other_corr: "ρ of best other after", q_change: "q",
    explanation_score: "explanation's score", explanation_low: "low end", explanation_high: "high end", explanation_chance: "chance",
    mean_score_low: "low end", mean_score_high: "high end", another_sentence: "another's", empty_sentence: "empty", carried_low: "low end", carried_high: "high end",
    surely: "95 % interval above", possibly: "95 % interval reaches above",
    class: "token class", class_group: "token class's group", class_sign: "raises or lowers it", class_variance_reduction: "explained by token class", head_layer: "head's layer", loss_change: "loss change (nats)",
  };
  // What the study calls a unit's pre-activation: only neurons have one.
  un.valueName = (study) => ((study && study.noun) || "neuron") === "neuron" ? "pre-activation" : "value";
  un.title = function (name, study) {
    const [column, model] = name.split(":");
    if (model !== undefined && study && column === "match_corr") return `ρ in ${study.models[model].name}`;
    const title = TITLES[name] || column.replaceAll("_", " ");
    return title.replace("pre-activation", un.valueName(study)).replace(/\bneuron\b/, (study && study.noun) || "neuron");
  };

  un.term = function (key, text) {
    const sentence = un.site && key && Object.hasOwn(un.site.terms, key) && un.site.terms[key];
    if (!sentence) return un.h("span", {}, text);
    const button = un.h("button", { type: "button", class: "term", "aria-description": sentence }, text);
    return un.hinted(button, () => sentence);
  };

  // Tokens as people can see them: line ends, tabs and lone spaces have signs.
  const SIGNS = { "\n": "⏎", "\t": "⇥", "\r": "␍", " ": "␣", "": "∅" };
  un.token = (text) => SIGNS[text] ?? text.replaceAll("\n", "⏎").replaceAll("\t", "⇥");
  un.quoted = (text) => un.said(un.token(text).replace(/^ /, "␣"), "token");
})();
