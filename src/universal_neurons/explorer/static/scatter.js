// Every unit as a point on a canvas: axes to choose, colours by a column, a brush that filters, arrows that walk.
(function () {
  "use strict";
  const EDGE = { left: 58, right: 14, top: 12, bottom: 40 };
  const CELL = 16;

  // An axis goes by powers of ten where its values are positive and spread over more than two of them.
  function axisOf(values) {
    let low = Infinity, high = -Infinity, least = Infinity, sum = 0, known = 0;
    for (const value of values) {
      if (value !== value) continue;
      if (value < low) low = value;
      if (value > high) high = value;
      if (value > 0 && value < least) least = value;
      sum += value;
      known++;
    }
    if (!known) return { low: 0, high: 1, log: false };
    const log = low > 0 && high / low > 300 && high > 8 * (sum / known);
    if (low === high) [low, high] = [low - 0.5, high + 0.5];
    const ends = log ? [Math.log10(low), Math.log10(high)] : [low, high];
    const room = 0.02 * (ends[1] - ends[0]);
    return { low: ends[0] - room, high: ends[1] + room, log };
  }

  un.scatter = function ({ units, state, by, brushed, opened }) {
    const points = un.h("canvas", { "aria-hidden": "true" });
    const over = un.h("canvas", {
      class: "over", tabindex: 0, role: "application",
      "aria-label": "Scatter of all units. Left and right arrows walk along the first axis, up and down along the second, Enter opens the unit. The fields below take a range.",
    });
    const readout = un.h("p", { class: "readout", "aria-live": "polite" }, "Point at a unit, or drag over some to filter the table.");
    const stage = un.h("div", { class: "stage" }, points, over);
    let size, x, y, xs, ys, colours, buckets, passing, at = -1, walk = {};

    function project() {
      const inner = { width: size.width - EDGE.left - EDGE.right, height: size.height - EDGE.top - EDGE.bottom };
      const place = (axis, value) => ((axis.log ? Math.log10(value) : value) - axis.low) / (axis.high - axis.low);
      const vx = units.values(state.x), vy = units.values(state.y);
      xs = new Float32Array(units.count);
      ys = new Float32Array(units.count);
      for (let unit = 0; unit < units.count; unit++) {
        xs[unit] = EDGE.left + place(x, vx[unit]) * inner.width;
        ys[unit] = EDGE.top + (1 - place(y, vy[unit])) * inner.height;
      }
    }

    function axes(context, style) {
      context.font = "12px system-ui, sans-serif";
      context.lineWidth = 1;
      const right = size.width - EDGE.right, bottom = size.height - EDGE.bottom;
      const name = (axis, value, wanted) => (axis.log ? un.num(10 ** value) : un.fixed(value, un.step(axis.low, axis.high, wanted)));
      const marks = (axis, wanted) => un.ticks(axis.low, axis.high, wanted).filter((tick) => !axis.log || Number.isInteger(tick));
      context.textAlign = "right";
      for (const tick of marks(y, 6)) {
        const py = EDGE.top + (1 - (tick - y.low) / (y.high - y.low)) * (bottom - EDGE.top);
        context.fillStyle = style.line;
        context.fillRect(EDGE.left, Math.round(py), right - EDGE.left, 1);
        context.fillStyle = style.quiet;
        context.fillText(name(y, tick, 6), EDGE.left - 7, py + 4);
      }
      context.textAlign = "center";
      const across = Math.max(3, Math.round(size.width / 110));
      for (const tick of marks(x, across)) {
        const px = EDGE.left + ((tick - x.low) / (x.high - x.low)) * (right - EDGE.left);
        context.fillStyle = style.line;
        context.fillRect(Math.round(px), EDGE.top, 1, bottom - EDGE.top);
        context.fillStyle = style.quiet;
        context.fillText(name(x, tick, across), px, bottom + 16);
      }
      context.fillStyle = style.ink;
      const said = (axis, column) => un.title(column, un.study) + (axis.log ? " (powers of ten)" : "");
      context.fillText(said(x, state.x), (EDGE.left + right) / 2, size.height - 6);
      context.save();
      context.translate(13, (EDGE.top + bottom) / 2);
      context.rotate(-Math.PI / 2);
      context.fillText(said(y, state.y), 0, 0);
      context.restore();
    }

    function styles() {
      const style = getComputedStyle(document.documentElement);
      const read = (name) => style.getPropertyValue(name).trim();
      const { values } = by ? units.words(by.column) : { values: [] };
      return { line: read("--line"), ink: read("--ink"), quiet: read("--quiet"), faint: read("--faint"), accent: read("--accent"), colours: values.map((value) => read(by.colour(value))) };
    }

    // Few points are round; of many, squares, a colour at a time, in rounds so that no colour lies over all others.
    function dots(context, list, colourOf, radius) {
      const all = Array.from(list);
      const rounds = Math.ceil(all.length / 2500);
      for (let round = 0; round < rounds; round++) {
        const part = [];
        for (let at = round; at < all.length; at += rounds) part.push(all[at]);
        dotsOf(context, part, colourOf, radius);
      }
    }
    function dotsOf(context, list, colourOf, radius) {
      const byColour = new Map();
      for (const unit of list) {
        if (!(xs[unit] >= EDGE.left - 1) || !(ys[unit] <= size.height - EDGE.bottom + 1)) continue;
        const colour = colourOf(unit);
        if (!byColour.has(colour)) byColour.set(colour, []);
        byColour.get(colour).push(unit);
      }
      for (const [colour, group] of byColour) {
        context.fillStyle = colour;
        for (const unit of group) {
          if (radius < 2) context.fillRect(xs[unit] - radius, ys[unit] - radius, 2 * radius, 2 * radius);
          else {
            context.beginPath();
            context.arc(xs[unit], ys[unit], radius, 0, 7);
            context.fill();
          }
        }
      }
    }

    function context(canvas) {
      const density = window.devicePixelRatio || 1;
      if (canvas.width !== Math.round(size.width * density) || canvas.height !== Math.round(size.height * density)) {
        canvas.width = Math.round(size.width * density);
        canvas.height = Math.round(size.height * density);
      }
      const out = canvas.getContext("2d");
      out.setTransform(density, 0, 0, density, 0, 0);
      out.clearRect(0, 0, size.width, size.height);
      return out;
    }

    function draw() {
      const box = stage.getBoundingClientRect();
      if (!box.width) return;
      size = { width: box.width, height: box.height };
      x = axisOf(units.values(state.x));
      y = axisOf(units.values(state.y));
      project();
      const style = styles();
      const drawing = context(points);
      axes(drawing, style);
      const radius = units.count > 20000 ? 1 : units.count > 3000 ? 1.6 : 3;
      const codes = by ? units.words(by.column).codes : null;
      colours = (unit) => (codes ? style.colours[codes[unit]] : style.accent);
      if (passing.length < units.count) dots(drawing, units.values("layer").keys(), () => style.faint, radius);
      drawing.globalAlpha = units.count > 20000 ? 0.55 : 0.8;
      dots(drawing, passing, colours, radius);
      drawing.globalAlpha = 1;
      buckets = walk = null;
      overlay();
    }

    function nearest(px, py) {
      if (!buckets) {
        buckets = new Map();
        for (const unit of passing) {
          if (xs[unit] !== xs[unit] || ys[unit] !== ys[unit]) continue;
          const key = (Math.floor(xs[unit] / CELL) << 12) | Math.floor(ys[unit] / CELL);
          if (!buckets.has(key)) buckets.set(key, []);
          buckets.get(key).push(unit);
        }
      }
      let best = -1, least = 12 * 12;
      for (let dx = -1; dx <= 1; dx++) {
        for (let dy = -1; dy <= 1; dy++) {
          const key = ((Math.floor(px / CELL) + dx) << 12) | (Math.floor(py / CELL) + dy);
          for (const unit of buckets.get(key) || []) {
            const far = (xs[unit] - px) ** 2 + (ys[unit] - py) ** 2;
            if (far < least) [best, least] = [unit, far];
          }
        }
      }
      return best;
    }

    function overlay(box) {
      const drawing = context(over);
      const style = styles();
      if (box) {
        drawing.fillStyle = style.accent;
        drawing.globalAlpha = 0.15;
        drawing.fillRect(box.x, box.y, box.width, box.height);
        drawing.globalAlpha = 1;
        drawing.strokeStyle = style.accent;
        drawing.strokeRect(box.x + 0.5, box.y + 0.5, box.width, box.height);
      }
      if (at < 0) return;
      drawing.strokeStyle = style.ink;
      drawing.lineWidth = 2;
      drawing.beginPath();
      drawing.arc(xs[at], ys[at], 7, 0, 7);
      drawing.stroke();
    }

    function tell(unit) {
      at = unit;
      overlay();
      over.classList.toggle("pointing", unit >= 0);
      if (unit < 0) return;
      const known = (by ? by.told : ["label"]).filter((name) => units.has(name)).map((name) => [" · ", un.said(units.at(name, unit))]);
      un.clear(readout, un.unitLink(units.model, units.at("layer", unit), units.at("neuron", unit)), known,
        ` · ${un.title(state.x, un.study)} ${un.num(units.at(state.x, unit))} · ${un.title(state.y, un.study)} ${un.num(units.at(state.y, unit))}`);
    }

    // Brush: pixels to ends of both axes.
    function ends(axis, from, to, low, high) {
      const value = (pixel) => axis.low + ((pixel - low) / (high - low)) * (axis.high - axis.low);
      const pair = [value(from), value(to)].sort((a, b) => a - b).map((each) => (axis.log ? 10 ** each : each));
      return pair.map((each) => Number(each.toPrecision(4))).join("~");
    }
    const spot = (event) => {
      const box = over.getBoundingClientRect();
      return { x: event.clientX - box.left, y: event.clientY - box.top };
    };
    let from = null;
    const boxOf = (to) => ({ x: Math.min(from.x, to.x), y: Math.min(from.y, to.y), width: Math.abs(from.x - to.x), height: Math.abs(from.y - to.y) });
    over.addEventListener("pointerdown", (event) => {
      from = spot(event);
      over.setPointerCapture(event.pointerId);
    });
    over.addEventListener("pointermove", (event) => {
      const here = spot(event);
      if (from) overlay(boxOf(here));
      else tell(nearest(here.x, here.y));
    });
    over.addEventListener("pointercancel", () => (from = null));
    over.addEventListener("pointerup", (event) => {
      if (!from) return;
      const to = spot(event), box = boxOf(to), start = from;
      from = null;
      if (box.width > 5 || box.height > 5) {
        brushed(ends(x, start.x, to.x, EDGE.left, size.width - EDGE.right), ends(y, start.y, to.y, size.height - EDGE.bottom, EDGE.top));
      } else if (nearest(to.x, to.y) >= 0) opened(nearest(to.x, to.y));
    });
    over.addEventListener("keydown", (event) => {
      const along = { ArrowLeft: ["x", -1], ArrowRight: ["x", 1], ArrowDown: ["y", -1], ArrowUp: ["y", 1] }[event.key];
      if (event.key === "Enter" && at >= 0) return opened(at);
      if (!along) return;
      event.preventDefault();
      walk = walk || {};
      const [axis, step] = along;
      if (!walk[axis]) {
        const values = units.values(state[axis]);
        walk[axis] = Array.from(passing).filter((unit) => values[unit] === values[unit]).sort((a, b) => values[a] - values[b] || a - b);
      }
      const line = walk[axis];
      const place = line.indexOf(at);
      if (line.length) tell(line[place < 0 ? (step > 0 ? 0 : line.length - 1) : Math.max(0, Math.min(line.length - 1, place + step * (event.shiftKey ? 20 : 1)))]);
    });
    new ResizeObserver(() => passing && requestAnimationFrame(draw)).observe(stage);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => passing && draw());

    return {
      element: un.h("div", { class: "scatter" }, stage, readout),
      draw(rows) {
        passing = rows;
        draw();
      },
    };
  };
})();
