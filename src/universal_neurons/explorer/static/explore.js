// All units as points and as rows: fields, a legend and a brush filter both, and the address keeps what they ask.
(function () {
  "use strict";
  const HIDDEN = new Set(["dead"]);

  // What the CSV has beyond the table: every other column of the file.
  un.otherColumns = function (units, shown) {
    const taken = new Set([...shown.map((column) => column.name), "layer", "neuron", ...HIDDEN]);
    return units.names.filter((name) => !taken.has(name)).map((name) => ({ name, at: (unit) => units.at(name, unit) }));
  };

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

  // A key of the colours, whose buttons filter.
  function legend(units, by, state, change) {
    if (!by) return null;
    const items = units.words(by.column).values.filter(Boolean).map((value) =>
      un.h("button", { type: "button", "aria-pressed": String(state[by.column] === value), onclick: () => change(by.column, state[by.column] === value ? "" : value) }, un.swatch(value, by.colour), un.said(value)));
    return un.h("div", { class: "legend", role: "group", "aria-label": `${by.name}: press one to see it alone` }, items);
  }
  un.byFamily = (units) => units.has("family") && { column: "family", colour: un.familyColour, name: "Families", told: ["family", "fires"] };

  // by: {column, colour(value), name, told: columns that the readout names}, or nothing; filters: what `Show all` clears;
  // rows(): units that pass; changed(name): awaited after a field has changed; kept(): what the address holds.
  un.explore = function ({ units, state, axes, by, rows, table: about, fields: made, filters, changed, kept }) {
    const keep = () => un.keep(kept());
    const table = un.table({
      ...about, rows: rows(), sort: state.sort || about.sort || state.y, down: state.sort || !about.sort ? state.up !== "1" : !about.up,
      change: (now) => (Object.assign(state, { sort: now.sort, up: now.down ? "" : "1" }), keep()),
    });
    const scatter = un.scatter({
      units, state, by,
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
      un.redrawn(key, legend(units, by, state, change));
      keep();
    }
    async function change(name, value) {
      state[name] = value;
      if (changed) await changed(name);
      if (name === "x") state.xr = "";
      if (name === "y") state.yr = "";
      if (["x", "y"].includes(name)) redrawRanges();
      wide.disabled = !state.xr && !state.yr;
      if (by && name === by.column && fields.querySelector("select")) redrawFields();
      update();
    }
    function redrawRanges() {
      const options = axes.map((name) => [name, un.title(name, un.study)]);
      const range = rangeFields(state, change);
      wide.disabled = !state.xr && !state.yr;
      un.redrawn(bar,
        un.h("div", {}, un.choice("Across", options, state.x, (value) => change("x", value)), range.x),
        un.h("div", {}, un.choice("Up", options, state.y, (value) => change("y", value)), range.y),
        wide);
    }
    function redrawFields() {
      un.redrawn(fields, made(change));
    }
    async function clearAll() {
      for (const name of [...filters, "xr", "yr"]) state[name] = "";
      if (changed) await Promise.all(filters.map(changed));
      redrawFields();
      redrawRanges();
      update();
    }
    redrawFields();
    redrawRanges();
    return {
      fields, table: table.element, plot: un.h("div", {}, scatter.element, key, bar), update,
      count: un.h("p", { class: "count" }, count, " ", un.h("button", { type: "button", onclick: clearAll }, "Show all")),
    };
  };
  window.addEventListener("hashchange", () => location.reload());
})();
