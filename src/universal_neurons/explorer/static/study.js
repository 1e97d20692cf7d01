// The study: what was asked and found, every unit as a point and as a row, where matches lie.
(function () {
  "use strict";
  const FIRST = ["excess_corr", "excess_standardised"];
  const NOT_AXES = new Set(["dead", "is_universal", "mutual_all"]);
  const HIDDEN = new Set(["dead"]);

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

  function rowColumns(units) {
    const node = (unit) => un.unitLink(units.model, units.at("layer", unit), units.at("neuron", unit));
    const columns = [{ name: "unit", title: "unit", kind: "text", at: (unit) => un.placeName(units.at("layer", unit), units.at("neuron", unit)), node }];
    const add = (name, extra) => units.has(name) && columns.push({ name, title: un.title(name, un.study), term: name, kind: units.isText(name) ? "text" : "number", real: true, at: (unit) => units.at(name, unit), ...extra });
    const excess = FIRST.find((name) => units.has(name));
    if (excess) add(excess, {});
    if (units.has("excess_low")) {
      columns.push({ name: "interval", title: "95 % interval", term: "excess_low", kind: "number", at: (unit) => units.at("excess_low", unit), raw: (unit) => un.interval(units.at("excess_low", unit), units.at("excess_high", unit)), node: (unit) => un.interval(units.at("excess_low", unit), units.at("excess_high", unit)) || "–" });
    }
    add("is_universal", { node: (unit) => (units.at("dead", unit) ? "dead" : units.at("is_universal", unit) ? "yes" : "no") });
    add("family", { node: (unit) => (units.at("family", unit) ? un.h("span", { class: "family" }, un.swatch(units.at("family", unit)), un.said(units.at("family", unit))) : "–") });
    add("label", {});
    add("variance_reduction", {});
    add("roles", { node: (unit) => un.roleNames(units.at("roles", unit)).map((role) => un.h("span", { class: "chip" }, un.said(role.replaceAll("_", " ")))) });
    add("sparsity", {});
    for (const model of un.study.models.keys()) {
      const [layer, neuron] = [`match_layer:${model}`, `match_neuron:${model}`];
      add(`match_corr:${model}`, { node: (unit) => (units.at(`match_corr:${model}`, unit) === null ? "–" : [un.num(units.at(`match_corr:${model}`, unit), true), " ", un.unitLink(model, units.at(layer, unit), units.at(neuron, unit))]) });
    }
    return columns;
  }

  // What the CSV has beyond the table: every other column of the file.
  function otherColumns(units, shown) {
    const taken = new Set([...shown.map((column) => column.name), "layer", "neuron", ...HIDDEN]);
    return units.names.filter((name) => !taken.has(name)).map((name) => ({ name, at: (unit) => units.at(name, unit) }));
  }

  function rangeFields(state, change) {
    const field = (key, end, label) => {
      const ends = un.range(state[key]);
      const set = (event) => {
        const now = un.range(state[key]);
        now[end] = event.target.value === "" ? NaN : Number(event.target.value);
        change(key, now.every(Number.isNaN) ? "" : now.map((value) => (Number.isNaN(value) ? "" : value)).join("~"));
      };
      return un.h("input", { type: "number", step: "any", class: "range", "aria-label": label, value: Number.isNaN(ends[end]) ? "" : ends[end], onchange: set });
    };
    const pair = (key, axis) => un.h("span", { class: "pair" }, field(key, 0, `${axis} axis from`), " to ", field(key, 1, `${axis} axis to`));
    return { x: pair("xr", "horizontal"), y: pair("yr", "vertical") };
  }

  async function fires(model, token) {
    if (!token) return null;
    const index = await un.tokens(model);
    const exact = index.tokens.indexOf(token);
    const hits = exact >= 0 ? [exact] : [...index.tokens.keys()].filter((at) => index.tokens[at].toLowerCase().includes(token.toLowerCase()));
    return new Set(hits.flatMap((at) => Array.from(index.of(at))));
  }

  function legend(units, state, change) {
    if (!units.has("family")) return null;
    const items = units.words("family").values.filter(Boolean).map((family) =>
      un.h("button", { type: "button", "aria-pressed": String(state.family === family), onclick: () => change("family", state.family === family ? "" : family) }, un.swatch(family), un.said(family)));
    return un.h("div", { class: "legend", role: "group", "aria-label": "Families: press one to see it alone" }, items);
  }

  async function explore(state) {
    const units = await un.units(state.m);
    const names = axes(units);
    const least = (wanted, otherwise) => (names.includes(wanted) ? wanted : otherwise);
    state.y = least(state.y, FIRST.find((name) => names.includes(name)) || names[0]);
    state.x = least(state.x, ["sparsity", "variance_reduction", "kurt", "layer"].find((name) => names.includes(name) && name !== state.y) || names[0]);
    const columns = rowColumns(units);
    const keep = () => un.keep({ ...state, m: state.m === un.study.reference ? "" : state.m });
    let fired = await fires(state.m, state.token).catch(() => new Set());
    const rows = () => un.passing(units, state, fired);
    const table = un.table({
      caption: `Units of ${un.modelName(state.m)}`, columns, more: otherColumns(units, columns), rows: rows(), sort: state.sort || state.y,
      down: state.up !== "1", file: `${un.study.id}-units.csv`,
      change: (now) => (Object.assign(state, { sort: now.sort, up: now.down ? "" : "1" }), keep()),
    });
    const scatter = un.scatter({
      units, state,
      brushed: (xr, yr) => (Object.assign(state, { xr, yr }), redrawRanges(), update()),
      opened: (unit) => (location.href = un.unitHref(units.model, units.at("layer", unit), units.at("neuron", unit))),
    });
    const count = un.h("strong", {});
    const bar = un.h("div", { class: "axes" });
    const wide = un.h("button", { type: "button", onclick: () => (Object.assign(state, { xr: "", yr: "" }), redrawRanges(), update()) }, "Clear the range");
    const key = un.h("div", {});
    const fields = un.h("div", {});

    function update() {
      const passing = rows();
      count.textContent = `${un.num(passing.length)} of ${un.count(units.count, "unit")}`;
      table.setRows(passing);
      scatter.draw(passing);
      un.redrawn(key, legend(units, state, change));
      keep();
    }
    async function change(name, value) {
      state[name] = value;
      if (name === "token") fired = await fires(state.m, value).catch(() => new Set());
      if (name === "x") state.xr = "";
      if (name === "y") state.yr = "";
      if (["x", "y"].includes(name)) redrawRanges();
      wide.disabled = !state.xr && !state.yr;
      if (name === "family" && fields.querySelector("select")) redrawFields();
      update();
    }
    function redrawRanges() {
      const options = names.map((name) => [name, un.title(name, un.study)]);
      const range = rangeFields(state, change);
      wide.disabled = !state.xr && !state.yr;
      un.redrawn(bar,
        un.h("div", {}, un.choice("Across", options, state.x, (value) => change("x", value)), range.x),
        un.h("div", {}, un.choice("Up", options, state.y, (value) => change("y", value)), range.y),
        wide);
    }
    function redrawFields() {
      un.redrawn(fields, un.filterFields(units, state, change));
    }
    function clearAll() {
      for (const name of ["family", "role", "layer", "label", "token", "universal", "mutual", "match", "xr", "yr"]) state[name] = "";
      fired = null;
      redrawFields();
      redrawRanges();
      update();
    }
    redrawFields();
    redrawRanges();
    const matched = state.match && un.h("p", { class: "quiet" }, `Only units whose best match in ${un.modelName(state.match.split(":")[0])} lies in layer ${state.match.split(":")[1]}. `);
    const parts = { fields, count, clearAll, key, bar, scatter, table, matched };
    return { parts, update };
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
    const { parts, update } = await explore(state);
    const map = un.h("div", {});
    const models = un.study.models.map((model, number) => [number, model.name]);
    const pick = un.study.models.length > 1 && un.choice("Units of", models, state.m, (value) => {
      un.keep({ m: value });
      location.reload();
    });
    un.clear(main, opening(),
      un.section("units", "Every unit",
        un.h("div", { class: "controls" }, pick, parts.fields, un.h("p", { class: "count" }, parts.count, " ", un.h("button", { type: "button", onclick: parts.clearAll }, "Show all"))),
        parts.matched,
        un.h("div", { class: "split" }, un.h("div", {}, parts.scatter.element, parts.key, parts.bar), un.h("div", { class: "aside" }, un.h("h3", {}, "Where matches lie"), map)),
        parts.table.element));
    update();
    const certainty = un.certainty(await maps(map));
    if (certainty) main.append(certainty);
  };
  window.addEventListener("hashchange", () => document.body.dataset.page !== "unit" && location.reload());
})();
