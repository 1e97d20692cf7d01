// A table of many rows: sorted by its heads, a page at a time, saved as CSV whole.
(function () {
  "use strict";

  // Places of `rows` in the order of one column; rows without a value come last, either way.
  un.ordered = function (rows, column, down) {
    const values = new Map();
    const text = column.kind === "text";
    const keys = text ? [] : new Float64Array(rows.length);
    for (let place = 0; place < rows.length; place++) {
      const value = column.at(rows[place]);
      keys[place] = text ? (value === null || value === undefined ? "" : String(value)) : un.isNone(value) ? NaN : Number(value);
    }
    const places = Uint32Array.from(rows.keys());
    const sign = down ? -1 : 1;
    if (text) {
      const distinct = [...new Set(keys)].sort((a, b) => (a < b ? -1 : a > b ? 1 : 0));
      distinct.forEach((value, rank) => values.set(value, value === "" ? NaN : rank));
    }
    const key = text ? Float64Array.from(keys, (value) => values.get(value)) : keys;
    places.sort((a, b) => {
      const one = key[a], other = key[b];
      if (one !== one || other !== other) return (one !== one) - (other !== other) || a - b;
      return one === other ? a - b : sign * (one - other);
    });
    return Uint32Array.from(places, (place) => rows[place]);
  };

  const cell = (value) => {
    if (un.isNone(value)) return "";
    const text = String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  un.csv = function (rows, columns) {
    const lines = [columns.map((column) => cell(column.name)).join(",")];
    for (const row of rows) lines.push(columns.map((column) => cell((column.raw || column.at)(row))).join(","));
    return `${lines.join("\r\n")}\r\n`;
  };

  const shown = (column, row) => {
    if (column.node) return column.node(row);
    const value = column.at(row);
    return column.kind === "text" ? un.said(un.isNone(value) ? "–" : value) : un.num(value, column.real);
  };

  // columns: [{name, title, term, kind, at(row), node(row)}]; the first names the row.
  un.table = function ({ caption, columns, rows, sort, down = true, page = 25, file, more, change }) {
    const state = { rows, sort, down, first: 0 };
    const head = un.h("tr", {});
    const body = un.h("tbody", {});
    const status = un.h("span", { class: "quiet", role: "status" });
    const earlier = un.h("button", { type: "button", onclick: () => turn(-page) }, "Previous");
    const later = un.h("button", { type: "button", onclick: () => turn(page) }, "Next");
    const save = un.download("Save as CSV", file, () => ({ content: un.csv(sorted(), more ? [...columns, ...more] : columns), type: "text/csv" }));
    let order = null;

    function sorted() {
      const column = columns.find((each) => each.name === state.sort);
      order = order || (column ? un.ordered(state.rows, column, state.down) : state.rows);
      return order;
    }
    function turn(by) {
      state.first = Math.max(0, state.first + by);
      draw();
    }
    function sortBy(column) {
      state.down = state.sort === column.name ? !state.down : column.kind !== "text" && !column.up;
      state.sort = column.name;
      state.first = 0;
      order = null;
      draw();
      if (change) change(state);
    }
    const heads = columns.map((column) => {
      const button = un.h("button", { type: "button", class: "sort", onclick: () => sortBy(column) }, column.title);
      const sentence = column.term && un.site.terms[column.term];
      if (sentence) un.hinted(button, () => sentence);
      const at = un.h("th", { scope: "col", class: column.kind === "text" ? null : "number" }, button);
      head.append(at);
      return at;
    });
    function draw() {
      const all = sorted();
      columns.forEach((column, at) => {
        if (column.name === state.sort) heads[at].setAttribute("aria-sort", state.down ? "descending" : "ascending");
        else heads[at].removeAttribute("aria-sort");
      });
      const here = Array.from(all.slice(state.first, state.first + page));
      body.replaceChildren(
        ...here.map((row) =>
          un.h("tr", {}, columns.map((column, at) => un.h(at ? "td" : "th", { scope: at ? null : "row", class: column.kind === "text" ? null : "number" }, shown(column, row))))));
      const last = Math.min(state.first + page, all.length);
      status.textContent = all.length ? `${un.num(state.first + 1)}–${un.num(last)} of ${un.num(all.length)}` : "Nothing passes these filters.";
      earlier.disabled = state.first === 0;
      later.disabled = last >= all.length;
      earlier.hidden = later.hidden = all.length <= page;
    }
    draw();
    const sheet = un.h("div", { class: "sheet", tabindex: 0, role: "group", "aria-label": caption },
      un.h("table", {}, un.h("caption", { class: "unseen" }, caption), un.h("thead", {}, head), body));
    return {
      element: un.h("div", { class: "table" }, sheet, un.h("div", { class: "foot" }, earlier, later, status, save)),
      setRows(next) {
        state.rows = next;
        state.first = 0;
        order = null;
        draw();
      },
      sorted,
    };
  };

  // A small table of the store as it is, its columns named and its models, units and labels linked.
  un.storeTable = function (caption, rows, names, { sort, down, file } = {}) {
    const has = new Set(rows.length ? Object.keys(rows[0]) : []);
    const models = ["model", "asker", "match_model"];
    const columns = names.filter((name) => has.has(name)).map((name) => {
      const at = (place) => rows[place][name];
      const text = rows.some((row) => typeof row[name] === "string");
      const column = { name, title: un.title(name, un.study), term: name, kind: text ? "text" : "number", at, real: un.isReal(rows.map((row) => row[name])) };
      if (models.includes(name)) Object.assign(column, { kind: "text", at: (place) => un.modelName(rows[place][name]) });
      if (name === "family") column.node = (place) => (rows[place].family ? un.familyLink(rows[place].family, rows[place].model) : "–");
      if (rows.some((row) => typeof row[name] === "boolean")) column.node = (place) => (rows[place][name] ? "yes" : "no");
      return column;
    });
    const unit = has.has("layer") && has.has("neuron") && {
      name: "unit", title: "unit", kind: "text",
      at: (place) => un.placeName(rows[place].layer, rows[place].neuron),
      node: (place) => un.unitLink(rows[place].model, rows[place].layer, rows[place].neuron),
    };
    return un.table({ caption, columns: unit ? [unit, ...columns] : columns, rows: Uint32Array.from(rows.keys()), sort, down, file: file || "table.csv", }).element;
  };
})();
