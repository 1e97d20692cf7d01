// Addresses: which study, unit and filter a page is about, and how to link there.
(function () {
  "use strict";
  const asked = new URLSearchParams(location.search);
  un.asked = (name) => asked.get(name);

  un.href = function (page, query, hash) {
    const parts = new URLSearchParams({ s: un.study ? un.study.id : "", ...query });
    const tail = hash ? `#${new URLSearchParams(hash)}` : "";
    return `${page}.html?${parts}${tail}`;
  };
  un.state = () => new URLSearchParams(location.hash.slice(1));
  un.keep = function (state) {
    // From disk only the part behind # may change.
    const kept = Object.entries(state).filter(([, value]) => value !== "" && value !== null && value !== undefined);
    history.replaceState(null, "", `#${new URLSearchParams(Object.fromEntries(kept))}`);
  };

  un.modelName = (number) => un.study.models[number].name;
  un.unitHref = (model, layer, neuron) => un.href("unit", { u: `${model}/${un.placeName(layer, neuron)}` });
  un.unitLink = (model, layer, neuron, text) =>
    un.h("a", { class: "unit-name", href: un.unitHref(model, layer, neuron) }, text || un.placeName(layer, neuron));
  un.familyLink = (family, model) =>
    un.h("a", { class: "family", href: un.href("study", {}, { m: model || 0, family }) }, un.swatch(family), un.said(family));
  un.roleLink = (role, model) => un.h("a", { class: "chip", href: un.href("study", {}, { m: model || 0, role }) }, un.said(role.replaceAll("_", " ")));

  // In a place an expert's unit is (expert + 1) · EXPERT + its number within the expert, as in the store.
  const EXPERT = 1000000;
  un.placeName = (layer, neuron) =>
    neuron < EXPERT ? `L${layer}.${neuron}` : `L${layer}.E${Math.floor(neuron / EXPERT) - 1}.${neuron % EXPERT}`;

  // Of a layer, how many units are no expert's, how many experts there are, and how many units each has.
  function shapeOf(model, layer) {
    const { widths, experts } = un.study.models[model];
    const [count, each] = experts ? experts[layer] : [0, 0];
    return { plain: widths[layer] - count * each, count, each };
  }
  function offset({ model, layer, neuron }) {
    if (neuron < EXPERT) return neuron;
    const { plain, each } = shapeOf(model, layer);
    return plain + (Math.floor(neuron / EXPERT) - 1) * each + (neuron % EXPERT);
  }
  function unitAt(model, layer, left) {
    const { plain, each } = shapeOf(model, layer);
    return left < plain ? left : (Math.floor((left - plain) / each) + 1) * EXPERT + ((left - plain) % each);
  }
  function has(model, layer, neuron) {
    const { plain, count, each } = shapeOf(model, layer);
    const expert = Math.floor(neuron / EXPERT);
    return expert ? expert <= count && neuron % EXPERT < each : neuron < plain;
  }

  // `0/L2.17`, `seed-1/L2.17` or `L2.E5.17` to numbers; null where it names no unit of the study.
  un.parseUnit = function (text) {
    const found = /^(?:(.*)\/)?L?(\d{1,6})\.(?:E(\d{1,4})\.(\d{1,6})|(\d{1,9}))$/is.exec((text || "").trim());
    if (!found) return null;
    const [, said, layer, expert, within, plain] = found;
    const neuron = expert === undefined ? Number(plain) : (Number(expert) + 1) * EXPERT + Number(within);
    const names = un.study.models.map((model) => model.name);
    let model = said === undefined || said === "" ? un.study.reference : names.indexOf(said);
    if (model < 0 && /^\d+$/.test(said)) model = Number(said);
    const widths = un.study.models[model] && un.study.models[model].widths;
    if (!widths || Number(layer) >= widths.length || !has(model, Number(layer), neuron)) return null;
    return { model, layer: Number(layer), neuron };
  };
  un.flat = ({ model, layer, neuron }) =>
    un.study.models[model].widths.slice(0, layer).reduce((sum, width) => sum + width, 0) + offset({ model, layer, neuron });
  un.unflat = function (model, number) {
    let left = number;
    const widths = un.study.models[model].widths;
    for (let layer = 0; layer < widths.length; layer++) {
      if (left >= 0 && left < widths[layer]) return { model, layer, neuron: unitAt(model, layer, left) };
      left -= widths[layer];
    }
    return null;
  };

  // A family's colour has a place of its own in the palette, the same on every page.
  const FAMILIES = ["unigram", "alphabet", "previous_token", "position", "syntax", "context", "token_class", "bos"];
  un.familyColour = function (family) {
    const at = FAMILIES.indexOf(family);
    return at < 0 ? "--family-none" : `--family-${at}`;
  };
  un.swatch = (value, colour = un.familyColour) => un.h("span", { class: "swatch", vars: { "--swatch": `var(${colour(value)})` } });

  // So has a kind of change.
  const KINDS = ["died", "re-tuned", "re-scaled", "shifted", "born", "moved", "copied", "redirected"];
  un.kindColour = (kind) => (KINDS.includes(kind) ? `--family-${KINDS.indexOf(kind)}` : "--family-none");
})();
