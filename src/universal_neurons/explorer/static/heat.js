// A map of layers by layers, such as where the best matches of a layer's units lie, or by anything else. Cells are links.
(function () {
  "use strict";

  // share(row, column) from 0 to 1; href(row, column); names: {rows, columns} of two models' layers.
  // Where columns are no layers: heads, a node for each; across, up: what the sides are; text(row, column), tell(row, column).
  un.heat = function ({ caption, rows, columns, share, href, names, ...other }) {
    const wide = columns <= 16;
    const { heads, across, up, text, tell } = { text: percents, tell: matched, ...other };
    const cells = [];
    let here = [rows - 1, 0];
    const body = un.h("tbody", {});
    const readout = un.h("p", { class: "readout", "aria-live": "polite" }, "Every cell opens its units.");

    function percents(row, column) {
      return share(row, column) ? String(Math.round(share(row, column) * 100)) : "·";
    }
    function matched(row, column) {
      return `${un.percent(share(row, column))} of ${names.rows}'s layer ${row} has its best match in ${names.columns}'s layer ${column}.`;
    }
    function go(row, column) {
      cells[here[0]][here[1]].tabIndex = -1;
      here = [Math.max(0, Math.min(rows - 1, row)), Math.max(0, Math.min(columns - 1, column))];
      cells[here[0]][here[1]].tabIndex = 0;
      cells[here[0]][here[1]].focus();
    }
    function cell(row, column) {
      const say = () => (readout.textContent = tell(row, column));
      const link = un.h("a", {
        href: href(row, column), tabindex: -1, vars: { "--share": share(row, column) || 0 },
        "aria-label": other.tell ? tell(row, column) : `layer ${row} to layer ${column}: ${un.percent(share(row, column))}`,
      }, wide ? text(row, column) : "");
      link.addEventListener("mouseenter", say);
      link.addEventListener("focus", say);
      return link;
    }
    for (let row = rows - 1; row >= 0; row--) {
      cells[row] = Array.from({ length: columns }, (_, column) => cell(row, column));
      body.append(un.h("tr", {}, un.h("th", { scope: "row" }, row % Math.ceil(rows / 16) === 0 ? String(row) : ""), cells[row].map((each) => un.h("td", {}, each))));
    }
    const foot = un.h("tr", {}, un.h("td", {}), Array.from({ length: columns }, (_, at) => un.h("th", { scope: "col" }, heads ? heads[at] : at % Math.ceil(columns / 16) === 0 ? String(at) : "")));
    body.append(foot);
    cells[here[0]][here[1]].tabIndex = 0;
    const table = un.h("table", { class: !wide ? "heat fine" : rows > 16 ? "heat low" : "heat" }, un.h("caption", {}, caption), body);
    table.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      go(here[0] + step[0], here[1] + step[1]);
    });
    const side = (text) => un.h("p", { class: "heat-name" }, text);
    return un.h("div", { class: "heat-box" }, side(up || `↑ layer of ${names.rows}`), un.h("div", { class: "sheet" }, table), side(across || `layer of ${names.columns} →`), readout);
  };

  // From the store's table of layers: model, layer, match_model, match_layer, fraction.
  un.layerMap = function (rows, model, other) {
    const shares = new Map();
    for (const row of rows) {
      if (row.model === model && row.match_model === other) shares.set(`${row.layer}:${row.match_layer}`, row.fraction);
    }
    if (!shares.size) return un.absent("layers", "The store says nothing of these two models' layers.");
    const [ours, theirs] = [un.study.models[model], un.study.models[other]];
    return un.heat({
      caption: `Best matches of ${ours.name}'s layers in ${theirs.name}, % of a layer's living units`,
      rows: ours.layers, columns: theirs.layers,
      share: (row, column) => shares.get(`${row}:${column}`) || 0,
      href: (row, column) => un.href("study", {}, { m: model, layer: row, match: `${other}:${column}` }),
      names: { rows: ours.name, columns: theirs.name },
    });
  };
})();
