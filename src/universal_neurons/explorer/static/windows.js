// Stretches of text with a unit's activation on every token, of several models side by side or as lanes under one text.
(function () {
  "use strict";
  const greatest = (lists) => lists.reduce((most, list) => (list || []).reduce((best, value) => Math.max(best, Math.abs(value || 0)), most), 0);

  un.bandName = function (band) {
    if (band === "top") return "Highest activations";
    if (band === "bottom") return "Lowest activations";
    const ends = band.split(/[–-]/);
    return ends.length === 2 ? `Between quantiles ${ends[0]} and ${ends[1]}` : band;
  };

  // The highest first, then bands of quantiles downwards, the lowest last.
  const place = (band) => (band === "top" ? 2 : band === "bottom" ? -1 : Number.parseFloat(band.split(/[–-]/).pop()) || 0);
  un.inBands = (views) => [...views].sort((a, b) => place(b.band) - place(a.band) || a.rank - b.rank);

  function paint(element, value, most) {
    if (value === null || value === undefined) return element.classList.add("uncounted");
    element.style.setProperty("--share", most ? (Math.abs(value) / most).toFixed(3) : 0);
    element.classList.add(value < 0 ? "minus" : "plus");
  }

  function tokenSpans(view, lane, most) {
    const values = view.lanes[lane] || [];
    return view.tokens.map((text, at) => {
      const span = un.h("span", { class: at === view.at ? "tok own" : "tok", "data-at": at }, un.token(text));
      paint(span, values[at], most);
      return span;
    });
  }
  function laneSpans(view, most) {
    return view.tokens.map((text, at) => {
      const bars = view.lanes.map((values, lane) => {
        const bar = un.h("i", {});
        paint(bar, values && values[at], most[lane]);
        return bar;
      });
      return un.h("span", { class: at === view.at ? "tok own laned" : "tok laned", "data-at": at }, un.h("span", {}, un.token(text)), un.h("span", { class: "lanes" }, bars));
    });
  }

  function told(view, at, names) {
    const rows = view.lanes.map((values, lane) => {
      const value = values ? values[at] : null;
      return un.h("tr", {}, un.h("th", { scope: "row" }, un.said(names[lane])), un.h("td", { class: "number" }, value === null || value === undefined ? (values ? "not counted" : "no match") : un.num(value, true)));
    });
    return [un.quoted(view.tokens[at]), un.h("table", { class: "values" }, un.h("tbody", {}, rows))];
  }

  // A window's tokens under the pointer, or walked with the arrows: all models' values at once.
  function alive(row, view, names, live) {
    let at = view.at;
    const mark = (place) => {
      for (const each of row.querySelectorAll(".here")) each.classList.remove("here");
      if (place === null) return un.hide();
      at = place;
      const same = [...row.querySelectorAll(`[data-at="${place}"]`)];
      for (const each of same) each.classList.add("here");
      return same;
    };
    row.addEventListener("pointerover", (event) => {
      const target = event.target.closest("[data-at]");
      if (!target) return;
      mark(Number(target.dataset.at));
      un.bubble(target, told(view, at, names));
    });
    row.addEventListener("pointerleave", () => mark(null));
    row.addEventListener("blur", () => mark(null));
    const walk = (place) => {
      const same = mark(Math.max(0, Math.min(view.tokens.length - 1, place)));
      if (!same.length) return;
      un.bubble(same[0], told(view, at, names));
      live.textContent = `${view.tokens[at]}: ${view.lanes.map((values, lane) => `${names[lane]} ${un.num(values ? values[at] : null, true)}`).join(", ")}`;
    };
    row.addEventListener("focus", () => row.matches(":focus-visible") && walk(at));
    row.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: view.tokens.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      walk(to);
    });
    return row;
  }

  // views: [{band, rank, row, at, tokens: [strings], lanes: [values of each model, or null]}]; heads: a node for each lane.
  // most: what full colour stands for in each lane, else the lane's own largest size.
  un.windows = function ({ views, names, heads, overlaid, most: given }) {
    const most = given || names.map((_, lane) => greatest(views.map((view) => view.lanes[lane])));
    const live = un.h("p", { class: "unseen", "aria-live": "polite" });
    const holder = un.h("div", { class: overlaid ? "windows overlaid" : "windows", vars: { "--lanes": overlaid ? 1 : names.length } });
    const about = names.map((name, lane) => un.h("div", { class: "lane-head" }, heads ? heads[lane] : un.said(name), un.h("span", { class: "quiet" }, most[lane] ? `full colour ${un.num(most[lane], true)}` : "no activation here")));
    holder.append(un.h("div", { class: "lane-heads" }, about));
    let band = null;
    for (const view of views) {
      if (view.band !== band && view.band) holder.append(un.h("h3", {}, un.bandName(view.band)));
      band = view.band;
      const where = `Window ${view.rank}${un.isNone(view.row) ? "" : `, text row ${un.num(view.row)}`}: arrows walk its tokens`;
      const row = un.h("div", { class: "window", tabindex: 0, role: "group", "aria-label": where });
      if (overlaid) row.append(un.h("p", { class: "text" }, laneSpans(view, most)));
      else names.forEach((name, lane) => row.append(un.h("p", { class: "text", "data-name": name }, view.lanes[lane] ? tokenSpans(view, lane, most[lane]) : un.h("span", { class: "quiet" }, "no match here"))));
      holder.append(alive(row, view, names, live));
    }
    holder.append(live);
    return holder;
  };

  un.legendOfColours = function () {
    const step = (share, sign) => un.h("i", { class: sign, vars: { "--share": share } });
    return un.h("p", { class: "scale" }, "below 0 ", [1, 0.5].map((share) => step(share, "minus")), step(0, "plus"), [0.5, 1].map((share) => step(share, "plus")),
      " above 0. Each unit's colours reach from 0 to its own largest size in these windows. The underlined token is the one the window was chosen for.");
  };
})();
