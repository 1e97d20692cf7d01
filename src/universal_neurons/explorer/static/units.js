// All units of one model: its columns, with names for whatever pages ask of a unit's number.
(function () {
  "use strict";
  const kept = new Map();

  un.units = function (model) {
    if (!kept.has(model)) {
      kept.set(model, un.load(`${un.study.id}/units/${model}`).then((data) => ({ model, ...un.columns(data) })));
    }
    return kept.get(model);
  };
  un.tables = () => un.load(`${un.study.id}/tables`);
  un.tokens = function (model) {
    return un.load(`${un.study.id}/search/${model}`).then((data) => {
      const starts = un.numbers("u32", data.starts);
      const units = un.numbers("u32", data.units);
      return { tokens: data.tokens, of: (at) => units.subarray(starts[at], starts[at + 1]) };
    });
  };
  // The excess that the study leads with.
  un.excessOf = (units) => ["excess_corr", "excess_standardised"].find((name) => units.has(name));

  let fields = 0;
  un.field = function (label, control) {
    control.id = control.id || `field-${++fields}`;
    return un.h("div", { class: "field" }, un.h("label", { for: control.id }, label), control);
  };
  un.choice = function (label, options, chosen, change) {
    const select = un.h("select", { onchange: () => change(select.value) });
    for (const [value, text] of options) select.append(un.h("option", { value, selected: String(value) === String(chosen) }, text));
    return un.field(label, select);
  };
})();
