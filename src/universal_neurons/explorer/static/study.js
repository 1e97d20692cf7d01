// The study: what was asked and found, every unit as a point and as a row, where matches lie.
(function () {
  "use strict";
  const FIRST = ["excess_corr", "excess_standardised"];
  const NOT_AXES = new Set(["dead", "is_universal", "mutual_all"]);

  function opening() {
    const study = un.study;
    const facts = study.facts.map((fact) => un.h("div", {}, un.h("dt", {}, un.term(fact.term, fact.label)), un.h("dd", {}, un.said(fact.text))));
    return un.h("div", { class: "opening" },
      un.h("div", {}, un.h("h1", {}, un.said(study.title)), un.h("div", { class: "lead" }, study.opening.map((sentence) => un.h("p", {}, un.said(sentence))))),
      facts.length ? un.h("dl", { class: "facts" }, facts) : un.absent("universality", "This study counts nothing."));
  }

  function axes(units) {
    return units.names.filter((name) => !units.isText(name) && !NOT_AXES.has(name) && !/^match_(layer|neuron)/.test(name));
  }

  // The rule is `unsure_marks` of report/summary.py, of a unit that is universal.
  function unsure(units, unit) {
    const low = units.has("excess_low") ? units.at("excess_low", unit) : null;
    return (!un.isNone(low) && low <= un.study.threshold) || (units.has("carried_by_few") && Boolean(units.at("carried_by_few", unit)));
  }

  function rowColumns(units) {
    const node = (unit) => un.unitLink(units.model, units.at("layer", unit), units.at("neuron", unit));
    const columns = [{ name: "unit", title: "unit", kind: "text", at: (unit) => un.placeName(units.at("layer", unit), units.at("neuron", unit)), node }];
    const add = (name, extra) => units.has(name) && columns.push({ name, title: un.title(name, un.study), term: name, kind: units.isText(name) ? "text" : "number", real: true, at: (unit) => units.at(name, unit), ...extra });
    const excess = FIRST.find((name) => units.has(name));
    if (excess) add(excess, {});
    if (units.has("excess_low")) {
      columns.push({ name: "interval", title: "95 % interval", term: "excess_low", kind: "number", at: (unit) => units.at("excess_low", unit), raw: (unit) => un.interval(units.at("excess_low", unit), units.at("excess_high", unit)), node: (unit) => un.interval(units.at("excess_low", unit), units.at("excess_high", unit)) || "–" });
    }
    add("is_universal", { node: (unit) => (units.at("dead", unit) ? "dead" : !units.at("is_universal", unit) ? "no" : unsure(units, unit) ? ["yes ", un.term("unsure", "!")] : "yes") });
    add("family", { node: (unit) => (units.at("family", unit) ? un.h("span", { class: "family" }, un.swatch(units.at("family", unit)), un.said(units.at("family", unit))) : "–") });
    add("fires", { node: (unit) => un.said(units.at("fires", unit) || "–", "clause") });
    add("variance_reduction", {});
    add("explanation_score", {});
    add("roles", { node: (unit) => un.roleNames(units.at("roles", unit)).map((role) => un.h("span", { class: "chip" }, un.said(role.replaceAll("_", " ")))) });
    add("sparsity", {});
    for (const model of un.study.models.keys()) {
      const [layer, neuron] = [`match_layer:${model}`, `match_neuron:${model}`];
      add(`match_corr:${model}`, { node: (unit) => (units.at(`match_corr:${model}`, unit) === null ? "–" : [un.num(units.at(`match_corr:${model}`, unit), true), " ", un.unitLink(model, units.at(layer, unit), units.at(neuron, unit))]) });
    }
    return columns;
  }

  async function fires(model, token) {
    if (!token) return null;
    const index = await un.tokens(model);
    const exact = index.tokens.indexOf(token);
    const hits = exact >= 0 ? [exact] : [...index.tokens.keys()].filter((at) => index.tokens[at].toLowerCase().includes(token.toLowerCase()));
    return new Set(hits.flatMap((at) => Array.from(index.of(at))));
  }

  async function explore(state) {
    const units = await un.units(state.m);
    const names = axes(units);
    const least = (wanted, otherwise) => (names.includes(wanted) ? wanted : otherwise);
    state.y = least(state.y, FIRST.find((name) => names.includes(name)) || names[0]);
    state.x = least(state.x, ["sparsity", "variance_reduction", "kurt", "layer"].find((name) => names.includes(name) && name !== state.y) || names[0]);
    const columns = rowColumns(units);
    let fired = await fires(state.m, state.token).catch(() => new Set());
    const parts = un.explore({
      units, state, axes: names, by: un.byFamily(units), rows: () => un.passing(units, state, fired),
      table: { caption: `Units of ${un.modelName(state.m)}`, columns, more: un.otherColumns(units, columns), file: `${un.study.id}-units.csv` },
      fields: (change) => un.filterFields(units, state, change),
      filters: ["family", "role", "layer", "label", "token", "universal", "mutual", "explained", "match"],
      changed: async (name) => name === "token" && (fired = await fires(state.m, state.token).catch(() => new Set())),
      kept: () => ({ ...state, m: state.m === un.study.reference ? "" : state.m }),
    });
    const matched = state.match && un.h("p", { class: "quiet" }, `Only units whose best match in ${un.modelName(state.match.split(":")[0])} lies in layer ${state.match.split(":")[1]}. `);
    return { ...parts, matched };
  }

  async function maps(holder) {
    const tables = await un.tables();
    const rows = un.rows(tables.layers);
    const asker = un.study.reference;
    const others = [...un.study.models.keys()].filter((model) => rows.some((row) => row.model === asker && row.match_model === model));
    if (!others.length) {
      un.clear(holder, un.absent("layers", "One model alone has no layers of another to be matched with."));
      return tables;
    }
    const place = un.h("div", {});
    const show = (model) => un.clear(place, un.layerMap(rows, asker, Number(model)));
    show(others[0]);
    const choice = others.length > 1 && un.choice("In", others.map((model) => [model, un.modelName(model)]), others[0], show);
    un.clear(holder, choice, place, un.h("p", {}, un.h("a", { href: un.href("layers") }, "All pairs of layers")));
    return tables;
  }

  un.pages.study = async function (main) {
    const state = { ...Object.fromEntries(un.state()) };
    state.m = state.m in un.study.models ? Number(state.m) : un.study.reference;
    const parts = await explore(state);
    const map = un.h("div", {});
    const models = un.study.models.map((model, number) => [number, model.name]);
    const pick = un.study.models.length > 1 && un.choice("Units of", models, state.m, (value) => {
      un.keep({ m: value });
      location.reload();
    });
    un.clear(main, opening(),
      un.section("units", "Every unit",
        un.h("div", { class: "controls" }, pick, parts.fields, parts.count),
        parts.matched,
        un.h("div", { class: "split" }, parts.plot, un.h("div", { class: "aside" }, un.h("h3", {}, "Where matches lie"), map)),
        parts.table));
    parts.update();
    const certainty = un.certainty(await maps(map));
    if (certainty) main.append(certainty);
  };
})();
