// How far a study's count is to be trusted: at other thresholds, as the text grew, beside random bases.
(function () {
  "use strict";
  const ofReference = (table) => un.rows(table).filter((row) => row.asker === un.study.reference);

  function curves(rows, at, names, says) {
    const known = Object.keys(names).filter((name) => rows.some((row) => !un.isNone(row[name])));
    return known.map((name) => ({ name: names[name], points: rows.map((row) => [row[at], row[name]]) })).concat(says || []);
  }

  un.certainty = function (tables) {
    const thresholds = ofReference(tables.thresholds);
    const convergence = ofReference(tables.convergence);
    const anchors = ofReference(tables.anchors);
    const after = thresholds.some((row) => !un.isNone(row.universal_standardised)) ? "_standardised" : "";
    const counted = { universal: "universal", surely: "95 % interval above", possibly: "95 % interval reaches above", rotated: "in a random basis", untrained: "in untrained networks" };
    const named = Object.fromEntries(Object.entries(counted).map(([name, text]) => [name + after, text]));
    const plots = [
      thresholds.length ? un.lines("Units above a threshold of the excess", curves(thresholds, "threshold", named), after ? "threshold of the standardised excess" : "threshold of the excess", { zero: true }) : null,
      convergence.length ? un.lines("Universal units as the text grew", curves(convergence, "tokens", { universal: "universal" }), "tokens read (powers of ten)", { zero: true, log: true }) : null,
      convergence.length && convergence.some((row) => !un.isNone(row.corr_median)) ? un.lines("Best correlations as the text grew", curves(convergence, "tokens", { corr_median: "median ρ", corr_p99: "99th percentile", same_match: "share of final matches" }), "tokens read (powers of ten)", { zero: true, log: true }) : null,
      anchors.length ? un.lines("Anchors: mutual in every model", curves(anchors, "level", { anchors: "anchors", anchors_rotated: "in a random basis" }), "least |ρ| with each model", { zero: true }) : null,
    ].filter(Boolean);
    return plots.length ? un.section("certainty", "How far to trust the count", un.h("div", { class: "plots" }, plots)) : null;
  };
})();
