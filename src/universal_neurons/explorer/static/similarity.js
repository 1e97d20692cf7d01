// Two models beyond the best match: their layers as wholes, and their units one to one.
(function () {
  "use strict";
  const MEASURES = [["cka", "CKA"], ["cca", "CCA"], ["r2_to_match", "R² to the other layer"], ["r2_from_match", "R² from the other layer"]];

  // Neither above chance by its interval, nor without one.
  const byChance = (row) => !row || un.isNone(row.calibrated) || !(row.calibrated_low > 0);

  function told(row, measure, names) {
    if (!row || un.isNone(row.calibrated)) return `${measure} is not defined of these two layers.`;
    const range = un.interval(row.calibrated_low, row.calibrated_high);
    const numbers = `${measure} ${un.num(row.value, true)}, by chance ${un.num(row.chance, true)}, calibrated ${un.num(row.calibrated, true)}${range && ` (${range})`}`;
    return `Layer ${row.layer} of ${names.rows} and layer ${row.match_layer} of ${names.columns}: ${numbers}${byChance(row) ? "; not distinguishable from chance" : ""}.`;
  }

  function similarityMap(rows, model, other, measure, title) {
    const cells = new Map(rows.filter((row) => row.asker === model && row.match_model === other && row.measure === measure).map((row) => [`${row.layer}:${row.match_layer}`, row]));
    const at = (layer, match) => cells.get(`${layer}:${match}`);
    const [ours, theirs] = [un.study.models[model], un.study.models[other]];
    const names = { rows: ours.name, columns: theirs.name };
    return un.heat({
      caption: `${title} of ${ours.name}'s layers with ${theirs.name}'s, calibrated, in hundredths; ~ not distinguishable from chance`,
      rows: ours.layers, columns: theirs.layers, names,
      share: (layer, match) => (byChance(at(layer, match)) ? 0 : Math.min(1, at(layer, match).calibrated)),
      text: (layer, match) => (byChance(at(layer, match)) ? "~" : String(Math.round(100 * at(layer, match).calibrated))),
      tell: (layer, match) => told(at(layer, match), title, names),
      href: (layer, match) => un.href("study", {}, { m: model, layer, match: `${other}:${match}` }),
    });
  }

  // Of the layers of one model, a map for every other one, by any measure.
  un.layersAsWholes = function (rows, model) {
    const others = [...new Set(rows.filter((row) => row.asker === model).map((row) => row.match_model))];
    const holder = un.h("div", { class: "grid small" });
    const titles = new Map(MEASURES);
    const draw = (measure) => un.clear(holder, others.map((other) => similarityMap(rows, model, other, measure, titles.get(measure))));
    draw(MEASURES[0][0]);
    return [un.h("p", {}, "How alike two layers are, whatever their single units do: 0 as shifted text gives it by chance, 1 at most."), un.h("div", { class: "controls" }, un.choice("Measure", MEASURES, MEASURES[0][0], draw)), holder];
  };

  const counted = (number, of) => (un.isNone(number) ? "–" : `${un.num(number)} of ${un.num(of)}`);
  const besides = (value, chance) => [un.num(value, true), un.isNone(chance) ? null : un.h("span", { class: "quiet" }, ` by chance ${un.num(chance, true)}`)];

  // From the store's table of consistency: a row for every model asked about and every other one.
  un.oneToOne = function (rows, file) {
    const of = (name) => (at) => rows[at][name];
    const share = (at) => (un.isNone(rows[at].shared) || !rows[at].units ? null : rows[at].shared / rows[at].units);
    const range = (at) => (un.isNone(rows[at].shared_low) ? null : ` ${un.percent(rows[at].shared_low)} to ${un.percent(rows[at].shared_high)}`);
    const number = (name, title, node) => ({ name, title, kind: "number", at: of(name), real: true, ...(node && { node }) });
    const columns = [
      { name: "asker", title: "units of", kind: "text", at: (at) => un.modelName(rows[at].asker) },
      { name: "match_model", title: "in", kind: "text", at: (at) => un.modelName(rows[at].match_model) },
      number("matched", "matched", (at) => counted(rows[at].matched, rows[at].units)),
      { name: "shared", title: "beyond chance (95 %)", kind: "number", at: share, node: (at) => [un.percent(share(at)), un.h("span", { class: "quiet" }, range(at))] },
      number("mean_corr", "mean ρ", (at) => besides(rows[at].mean_corr, rows[at].mean_corr_rotated)),
      number("moved", "not best match"),
      number("cost", "ρ given up"),
      number("mutual", "mutual pairs", (at) => [un.num(rows[at].mutual), un.isNone(rows[at].mutual_rotated) ? null : un.h("span", { class: "quiet" }, ` by chance ${un.num(rows[at].mutual_rotated)}`)]),
    ];
    if (rows.some((row) => !un.isNone(row.pw_mcc))) columns.push(number("pw_mcc", "PW-MCC of decoders", (at) => besides(rows[at].pw_mcc, rows[at].pw_mcc_rotated)));
    return [un.h("p", {}, "Every unit is used once: the pairs of largest total ρ. By chance: the same with the other model's units rotated at random. Beyond chance: pairs of a ρ that at most a twentieth as many reach there."),
      un.table({ caption: "Units one to one", columns, rows: Uint32Array.from(rows.keys()), file }).element];
  };
})();
