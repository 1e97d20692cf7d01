// Which units a study page shows: what its fields ask, and the units that pass.
(function () {
  "use strict";
  const range = (text) => {
    const ends = (text || "").split("~").map((end) => (end === "" ? NaN : Number(end)));
    return ends.length === 2 ? ends : [NaN, NaN];
  };
  un.range = range;

  function wanted(units, name, test) {
    // Codes of a column of words that pass, as a mask.
    const { values, codes } = units.words(name);
    const mask = Uint8Array.from(values, (value) => (test(value) ? 1 : 0));
    return (unit) => mask[codes[unit]];
  }

  function between(units, name, text) {
    const [low, high] = range(text);
    if (!units.has(name) || units.isText(name) || (Number.isNaN(low) && Number.isNaN(high))) return null;
    const values = units.values(name);
    return (unit) => !(values[unit] < low) && !(values[unit] > high) && values[unit] === values[unit];
  }

  const flag = (units, name, asked) => (asked && units.has(name) ? ((values) => (unit) => values[unit] === 1)(units.values(name)) : null);
  const equal = (units, name, asked) => (asked !== undefined && asked !== "" && units.has(name) ? ((values, value) => (unit) => values[unit] === value)(units.values(name), Number(asked)) : null);

  // A label is found by its name and by its words; so is what others than labels said.
  function told(units, text) {
    const found = ["label", "fires", "explanation"].filter((name) => units.has(name)).map((name) => wanted(units, name, (value) => value.toLowerCase().includes(text)));
    return found.length ? (unit) => found.some((test) => test(unit)) : null;
  }

  function tests(units, state, fired) {
    const [matchModel, matchLayer] = (state.match || "").split(":");
    const text = (state.label || "").toLowerCase();
    return [
      state.family && units.has("family") && wanted(units, "family", (value) => value === state.family),
      state.kind && units.has("kind") && wanted(units, "kind", (value) => value === state.kind),
      state.place && units.has("place") && wanted(units, "place", (value) => value === state.place),
      flag(units, "unusual", state.unusual),
      state.role && units.has("roles") && wanted(units, "roles", (value) => un.roleNames(value).includes(state.role)),
      text && told(units, text),
      flag(units, "is_universal", state.universal),
      flag(units, "mutual_all", state.mutual),
      state.explained && units.has("explanation_score") && ((scores) => (unit) => scores[unit] === scores[unit])(units.values("explanation_score")),
      equal(units, "layer", state.layer),
      state.match && equal(units, `match_layer:${matchModel}`, matchLayer),
      between(units, state.x, state.xr),
      between(units, state.y, state.yr),
      state.token && ((unit) => fired.has(unit)),
    ].filter(Boolean);
  }

  un.roleNames = (text) => (text ? text.split(/[,\s]+/).filter(Boolean) : []);

  un.passing = function (units, state, fired) {
    const all = tests(units, state, fired);
    const out = new Uint32Array(units.count);
    let kept = 0;
    next: for (let unit = 0; unit < units.count; unit++) {
      for (const test of all) if (!test(unit)) continue next;
      out[kept++] = unit;
    }
    return out.slice(0, kept);
  };

  const distinct = (units, name) => (units.has(name) ? units.words(name).values.filter((value) => value !== "") : []);

  // The fields; every change goes to `change(key, value)`.
  un.filterFields = function (units, state, change) {
    const layers = un.study.models[units.model].layers;
    const choice = (label, key, options) =>
      options.length ? un.choice(label, [["", "any"], ...options.map((each) => [each, un.token(String(each))])], state[key] ?? "", (value) => change(key, value)) : null;
    const box = (label, key, column) =>
      units.has(column) && un.h("label", { class: "tick" }, un.h("input", { type: "checkbox", checked: Boolean(state[key]), onchange: (event) => change(key, event.target.checked ? "1" : "") }), label);
    const typed = (label, key, note) =>
      un.field(label, un.h("input", { type: "text", value: state[key] || "", placeholder: note, spellcheck: "false", oninput: (event) => change(key, event.target.value) }));
    const roles = [...new Set(distinct(units, "roles").flatMap(un.roleNames))].sort();
    return un.h("form", { class: "filters", onsubmit: (event) => event.preventDefault(), "aria-label": "Filters" },
      choice("Family", "family", distinct(units, "family")),
      choice("Role", "role", roles),
      choice("Layer", "layer", [...Array(layers).keys()]),
      (units.has("label") || units.has("explanation")) && typed(units.has("explanation") ? "Label or explanation has" : "Label has", "label", "comma"),
      typed("Fires on token", "token", " the"),
      box("universal", "universal", "is_universal"),
      box("mutual everywhere", "mutual", "mutual_all"),
      box("explanation scored", "explained", "explanation_score"));
  };
})();
