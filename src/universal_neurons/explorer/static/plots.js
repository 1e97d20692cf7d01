// Small plots as SVG of our own: bars of a histogram, lines over an axis. Every mark says its value on hover and focus.
(function () {
  "use strict";
  const BOX = { width: 320, height: 150, left: 44, right: 10, top: 10, bottom: 34 };

  function step(low, high, wanted) {
    const rough = (high - low || 1) / wanted;
    const unit = 10 ** Math.floor(Math.log10(rough));
    return [1, 2, 5, 10].map((factor) => factor * unit).find((each) => each >= rough);
  }
  function ticks(low, high, wanted) {
    const by = step(low, high, wanted);
    const out = [];
    for (let at = Math.ceil(low / by) * by; at <= high + by / 1e6; at += by) out.push(Math.abs(at) < by / 1e6 ? 0 : at);
    return out;
  }
  un.ticks = ticks;
  un.step = step;

  function scale(low, high, from, to) {
    const span = high - low || 1;
    return (value) => from + ((value - low) / span) * (to - from);
  }

  function bounds(values) {
    const known = values.filter((value) => !un.isNone(value));
    const low = Math.min(...known);
    const high = Math.max(...known);
    return low === high ? [low - 0.5, high + 0.5] : [low, high];
  }

  function frame(x, y, names, domain) {
    const bottom = BOX.height - BOX.bottom;
    const marks = [un.svg("path", { class: "axis", d: `M${BOX.left} ${BOX.top}V${bottom}H${BOX.width - BOX.right}` })];
    for (const at of ticks(...domain.y, 4)) {
      marks.push(un.svg("path", { class: "grid", d: `M${BOX.left} ${y(at)}H${BOX.width - BOX.right}` }));
      marks.push(un.svg("text", { x: BOX.left - 5, y: y(at) + 3.5, "text-anchor": "end" }, un.fixed(at, step(...domain.y, 4))));
    }
    const shown = domain.ticks || ticks(...domain.x, 5).map((at) => [at, un.fixed(at, step(...domain.x, 5))]);
    for (const [at, text] of shown) marks.push(un.svg("text", { x: x(at), y: bottom + 14, "text-anchor": "middle" }, text));
    marks.push(un.svg("text", { class: "axis-name", x: (BOX.left + BOX.width - BOX.right) / 2, y: BOX.height - 5, "text-anchor": "middle" }, names.x));
    return marks;
  }

  function figure(title, note, marks) {
    const drawn = un.svg("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img", "aria-label": `${title}. ${note || ""}` }, marks);
    return un.h("figure", { class: "plot" }, un.h("figcaption", {}, title), drawn, note && un.h("p", { class: "quiet note" }, note));
  }

  // bars: [{low, high, value, text}]
  un.histogram = function (title, bars, axis, note) {
    const width = [bars[0].low, bars[bars.length - 1].high];
    const height = [0, Math.max(...bars.map((bar) => bar.value)) || 1];
    const x = scale(...width, BOX.left, BOX.width - BOX.right);
    const y = scale(...height, BOX.height - BOX.bottom, BOX.top);
    const marks = frame(x, y, { x: axis }, { x: width, y: height });
    for (const bar of bars) {
      const box = { x: x(bar.low), width: Math.max(0.6, x(bar.high) - x(bar.low) - 0.4), y: y(bar.value), height: Math.max(0, y(0) - y(bar.value)) };
      marks.push(un.svg("rect", { class: "bar-mark", ...box }, un.svg("title", {}, bar.text)));
    }
    return figure(title, note, marks);
  };

  // lines: [{name, points: [[x, y]], kind}]; x in even steps where `steps` names them.
  un.lines = function (title, lines, axis, { note, steps, zero, log } = {}) {
    const at = (value) => (log ? Math.log10(Math.max(value, 1)) : value);
    const points = lines.flatMap((line) => line.points).filter(([, value]) => !un.isNone(value));
    if (!points.length) return un.empty(`${title}: no value to draw.`);
    const width = bounds(points.map(([value]) => at(value)));
    const height = bounds([...points.map(([, value]) => value), ...(zero ? [0] : [])]);
    const x = scale(...width, BOX.left + 6, BOX.width - BOX.right - 6);
    const y = scale(...height, BOX.height - BOX.bottom - 4, BOX.top + 4);
    const named = steps ? steps.map((text, place) => [place, text]) : log ? ticks(...width, 4).filter(Number.isInteger).map((power) => [power, un.num(10 ** power)]) : null;
    const sparse = named && named.filter((_, place) => place % Math.ceil(named.length / 6) === 0);
    const marks = frame(x, y, { x: axis }, { x: width, y: height, ticks: sparse });
    lines.forEach((line, number) => {
      const drawn = line.points.filter(([, value]) => !un.isNone(value));
      const path = drawn.map(([px, py], place) => `${place ? "L" : "M"}${x(at(px)).toFixed(1)} ${y(py).toFixed(1)}`).join("");
      marks.push(un.svg("path", { class: `line line-${line.kind ?? number % 6}`, d: path }));
      if (drawn.length > 80) return;
      for (const [px, py] of drawn) {
        const name = `${line.name ? `${line.name}: ` : ""}${un.num(py)} at ${steps ? steps[px] : un.num(px)}`;
        marks.push(un.svg("circle", { class: `dot line-${line.kind ?? number % 6}`, cx: x(at(px)), cy: y(py), r: 2.6 }, un.svg("title", {}, name)));
      }
    });
    const out = figure(title, note, marks);
    if (lines.length > 1) {
      const keys = lines.map((line, number) => un.h("li", {}, un.h("span", { class: `key line-${line.kind ?? number % 6}` }), un.said(line.name)));
      out.append(un.h("ul", { class: "legend" }, keys));
    }
    return out;
  };

  // rows: [{name: Node, value, text}]: bars beside their names, from a common zero.
  un.bars = function (rows, caption) {
    const most = Math.max(...rows.map((row) => Math.abs(row.value)), 1e-12);
    const real = un.isReal(rows.map((row) => row.value));
    const body = rows.map((row) =>
      un.h("tr", {},
        un.h("th", { scope: "row" }, row.name),
        un.h("td", { class: "bar-cell" }, un.h("span", { class: row.value < 0 ? "bar minus" : "bar", vars: { "--share": Math.abs(row.value) / most } })),
        un.h("td", { class: "number" }, row.text || un.num(row.value, real))));
    return un.h("table", { class: "bars" }, un.h("caption", {}, caption), un.h("tbody", {}, body));
  };
})();
