// What training changed: how many units in which way, every unit as a point and as a row, those that changed most.
(function () {
  "use strict";
  const NO_AXIS = /^(neuron|surely_unchanged|unusual|moved_to_.*|came_from_.*)$/;
  const FILTERS = ["kind", "layer", "place", "unusual"];
  const MOST = "Changed most";

  function opening(diff) {
    const facts = Object.entries(diff.facts).map(([label, text]) => un.h("div", {}, un.h("dt", {}, un.term(label === "smallest p" ? "p_least" : null, label)), un.h("dd", {}, un.said(text))));
    return un.h("div", { class: "opening" },
      un.h("div", {}, un.h("h1", {}, "What training changed"),
        un.h("div", { class: "lead" }, un.h("p", {}, un.said(un.study.title), ": ", un.count(un.study.models[0].units, "unit"), "."), diff.opening.map((sentence) => un.h("p", {}, un.said(sentence))))),
      un.h("dl", { class: "facts" }, facts));
  }

  // By kind, in the order of the rules, and of what no kind is known, how many units: of all, of a layer.
  function counted(units, kinds) {
    const { values, codes } = units.words("kind");
    const all = [...kinds, ...(values.includes("") ? [""] : [])];
    const place = values.map((value) => all.indexOf(value));
    const layers = Array.from({ length: un.study.models[0].layers }, () => new Array(all.length).fill(0));
    const unusual = new Array(all.length).fill(0);
    for (let unit = 0; unit < units.count; unit++) {
      layers[units.values("layer")[unit]][place[codes[unit]]]++;
      if (units.has("unusual") && units.values("unusual")[unit] === 1) unusual[place[codes[unit]]]++;
    }
    return { all, layers, unusual, total: all.map((_, at) => layers.reduce((sum, layer) => sum + layer[at], 0)) };
  }
  function onSecond(units, all) {
    const { values, codes } = units.words("kind_tuned_text");
    const number = new Array(values.length).fill(0);
    for (const code of codes) number[code]++;
    return all.map((kind) => (values.includes(kind) ? number[values.indexOf(kind)] : 0));
  }

  const asked = (layer, kind) => un.href("diff", {}, { ...(layer === null ? {} : { layer }), kind });
  const name = (kind) => kind || "not known";

  function kindsTable(units, diff, { all, total, unusual }) {
    const second = units.has("kind_tuned_text") && onSecond(units, all);
    const number = (title, values, node) => ({ name: title, title, kind: "number", at: (at) => values[at], node });
    const columns = [
      { name: "kind", title: "kind", kind: "text", at: (at) => name(all[at]), node: (at) => un.kind(all[at]) },
      number("units", total, (at) => (total[at] && all[at] ? un.h("a", { href: asked(null, all[at]) }, un.num(total[at])) : un.num(total[at]))),
      number("share", total.map((each) => each / units.count), (at) => un.percent(total[at] / units.count)),
      units.has("unusual") && { ...number(`q ≤ ${diff.unusual}`, unusual, (at) => (all[at] === "unchanged" ? "" : un.num(unusual[at]))), term: "q_change" },
      second && number("on the second text", second),
    ].filter(Boolean);
    return un.table({ caption: "Units of each kind", columns, rows: Uint32Array.from(all.keys()), file: `${un.study.id}-kinds.csv` }).element;
  }

  function map({ all, layers }) {
    const share = (row, column) => layers[row][column] / un.study.models[0].widths[row];
    return un.heat({
      caption: "Units of each layer by kind; darker is a larger share of the layer", rows: layers.length, columns: all.length,
      share: (row, column) => Math.sqrt(share(row, column)), href: (row, column) => asked(row, all[column]),
      heads: all.map(name), up: "↑ layer", across: "kind →",
      text: (row, column) => (layers[row][column] ? un.num(layers[row][column]) : "·"),
      tell: (row, column) => `${un.num(layers[row][column])} of layer ${row} (${un.percent(share(row, column))}): ${name(all[column])}.`,
    });
  }

  // Of gated units ρ has no sign of its own: they are drawn and ordered by the upper end of |ρ|.
  const alike = (diff) => (diff.gated ? "self_most" : "self_corr");

  function rowColumns(units, diff) {
    const of = (unit) => (column) => units.at(column, unit);
    const text = { kind: "text" };
    const fires = (when) => ({
      ...text, title: `fires, ${when}`, raw: (unit) => units.at(`family_${when}`, unit), at: (unit) => units.at(`label_${when}`, unit) || units.at(`family_${when}`, unit),
      node: (unit) => (units.at(`family_${when}`, unit) ? un.h("span", { class: "fires" }, un.swatch(units.at(`family_${when}`, unit)), un.said(units.at(`label_${when}`, unit) || units.at(`family_${when}`, unit))) : "–"),
    });
    const interval = (unit) => un.interval(units.at("self_corr_low", unit), units.at("self_corr_high", unit));
    const own = {
      kind: { ...text, node: (unit) => un.kind(units.at("kind", unit)) },
      self_corr: {}, ...(diff.gated ? { self_most: { title: "upper end of |ρ|" } } : {}), scale: {}, offset: {}, firing_shift: {}, w_out_cos: { title: "cos w_out" },
      place: { ...text, title: "is now", node: (unit) => un.whereabouts(of(unit)) },
      family_before: fires("before"), family_after: fires("after"), q_change: {},
    };
    const made = (column, extra) => ({ name: column, title: un.title(column, un.study), term: /^(place|family)/.test(column) ? null : column, kind: "number", real: true, at: (unit) => units.at(column, unit), ...extra });
    const columns = Object.entries(own).filter(([column]) => units.has(column)).map(([column, extra]) => made(column, extra));
    columns.splice(2, 0, { name: "interval", title: "95 % interval", term: "interval", kind: "number", at: (unit) => units.at("self_corr_low", unit), raw: interval, node: (unit) => interval(unit) || "–" });
    return [{ name: "unit", title: "unit", kind: "text", at: (unit) => un.placeName(units.at("layer", unit), units.at("neuron", unit)), node: (unit) => un.unitLink(0, units.at("layer", unit), units.at("neuron", unit)) }, ...columns];
  }

  function fields(units, diff, state) {
    const used = (column, order) => order.filter((value) => units.words(column).values.includes(value));
    return (change) => {
      const choice = (label, key, options) => un.choice(label, [["", "any"], ...options.map((each) => [each, String(each)])], state[key] ?? "", (value) => change(key, value));
      return un.h("form", { class: "filters", onsubmit: (event) => event.preventDefault(), "aria-label": "Filters" },
        choice("Kind", "kind", used("kind", diff.kinds)),
        choice("Layer", "layer", [...un.study.models[0].widths.keys()]),
        units.has("place") && choice("Is now", "place", units.words("place").values.filter(Boolean)),
        units.has("unusual") && un.h("label", { class: "tick" }, un.h("input", { type: "checkbox", checked: Boolean(state.unusual), onchange: (event) => change("unusual", event.target.checked ? "1" : "") }), `q ≤ ${diff.unusual}`));
    };
  }

  function explored(units, diff, columns) {
    const state = { ...Object.fromEntries(un.state()) };
    const axes = units.names.filter((each) => !units.isText(each) && !NO_AXIS.test(each) && (diff.gated || each !== "self_most"));
    const first = (wanted, names) => (axes.includes(wanted) ? wanted : names.find((each) => axes.includes(each)));
    state.x = first(state.x, [alike(diff), "scale"]);
    state.y = first(state.y, ["scale", "offset"]);
    return un.explore({
      units, state, axes, by: { column: "kind", colour: un.kindColour, name: "Kinds", told: ["kind", "place", "label_before", "label_after"] },
      rows: () => un.passing(units, state), filters: FILTERS, fields: fields(units, diff, state), kept: () => state,
      table: { caption: "Every unit before and after", columns, more: un.otherColumns(units, columns), sort: alike(diff), up: true, file: `${un.study.id}-changes.csv` },
    });
  }

  // The units of some kinds: of those that changed most the least alike first, else in their order.
  function list(units, columns, title, kinds) {
    const rows = un.passing(units, {}).filter((unit) => kinds.includes(units.at("kind", unit)));
    const id = title.toLowerCase().replaceAll(" ", "-");
    if (!rows.length) return un.section(id, title, un.empty(`No unit's kind is ${kinds.join(" or ")}.`));
    const ordered = title === MOST ? un.ordered(rows, { kind: "number", at: (unit) => units.at("self_most", unit) }, false) : rows;
    return un.section(id, title, un.table({ caption: title, columns, rows: ordered, page: 10, file: `${un.study.id}-${id}.csv` }).element);
  }

  un.pages.diff = async function (main) {
    if (!un.site.studies.find((study) => study.id === un.study.id).pages.includes("diff")) {
      return un.clear(main, un.h("h1", {}, "Diff"), un.absent("diff", "This study is no diff: uneurons diff BASE TUNED compares a model and its fine-tune unit by unit; its folder can be shown."));
    }
    const [diff, data] = await Promise.all([un.load(`${un.study.id}/diff`), un.load(`${un.study.id}/changes`)]);
    const units = { model: 0, ...un.columns(data) };
    const counts = counted(units, diff.kinds);
    const columns = rowColumns(units, diff);
    const parts = explored(units, diff, columns);
    un.clear(main, opening(diff),
      un.section("kinds", "Kinds of change", un.h("div", { class: "grid" }, kindsTable(units, diff, counts), map(counts))),
      un.section("units", "Every unit", un.h("div", { class: "controls" }, parts.fields, parts.count), parts.plot, parts.table),
      un.carried(diff, units),
      Object.entries(diff.lists).map(([title, kinds]) => list(units, columns, title, kinds)));
    parts.update();
  };
})();
