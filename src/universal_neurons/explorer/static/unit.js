// One unit: itself and its counterparts on the same text, then all that the study knows of it.
(function () {
  "use strict";
  const SHARD = 64;

  async function shardOf(place) {
    const number = un.flat(place);
    const shard = await un.load(`${un.study.id}/unit/${place.model}/${Math.floor(number / SHARD)}`);
    const unit = shard.units[number - shard.first];
    return unit && { unit, strings: shard.strings };
  }

  function head(place, unit) {
    const { model, layer, neuron } = place;
    const number = un.flat(place);
    const beside = (step, text) => {
      const other = un.unflat(model, number + step);
      return other ? un.h("a", { class: "button", href: un.unitHref(model, other.layer, other.neuron), rel: step < 0 ? "prev" : "next" }, step < 0 ? `← ${text}` : `${text} →`) : null;
    };
    const { columns } = unit;
    const state = columns.dead ? "dead: its activation never changes" : columns.is_universal ? "universal" : "is_universal" in columns ? "not universal" : null;
    const roles = [].concat(columns.roles || []).map((role) => un.roleLink(role, model));
    return un.h("div", { class: "unit-head" },
      un.h("div", { class: "unit-top" },
        un.h("h1", {}, un.h("span", { class: "unit-name" }, un.placeName(layer, neuron)), " ", un.h("span", { class: "of" }, "of ", un.said(un.modelName(model)))),
        un.h("div", { class: "steps" }, beside(-1, "previous"), beside(1, "next"))),
      un.h("p", { class: "tags" },
        state && un.h("span", { class: columns.is_universal ? "badge yes" : "badge" }, un.term("is_universal", state)),
        columns.family && un.familyLink(columns.family, model),
        columns.label && un.h("a", { class: "label", href: un.href("study", {}, { m: model, label: columns.label.slice(0, 200) }) }, columns.label_sign < 0 ? "silent on " : "", un.said(columns.label)),
        roles),
      (unit.explanations || []).slice(0, 1).map((best) => un.h("p", { class: "explanation" }, un.said(best.text), best.by && un.h("span", { class: "quiet" }, " by ", un.said(best.by)))));
  }

  function hero(unit) {
    const { columns } = unit;
    const name = ["excess_corr", "excess_standardised"].find((each) => !un.isNone(columns[each]));
    if (!name) return null;
    const range = un.interval(columns.excess_low, columns.excess_high);
    const parts = name === "excess_corr" && !un.isNone(columns.mean_corr) && !un.isNone(columns.mean_baseline);
    const heldout = un.isNone(columns.excess_heldout) ? "" : `${un.num(columns.excess_heldout, true)} `;
    return un.h("p", { class: "hero" }, un.h("strong", {}, un.num(columns[name], true)), " ", un.term(name, un.title(name, un.study)),
      parts && un.h("span", { class: "quiet" }, "best ρ ", un.num(columns.mean_corr, true), " less ", un.num(columns.mean_baseline, true), " of the ", un.term("baseline", "baseline")),
      range && un.h("span", { class: "quiet" }, `on text that did not choose its matches ${heldout}(95 %: ${range})`), un.reach(columns.excess_low, columns.excess_high, columns.excess_heldout ?? columns[name]));
  }

  function counterparts(unit) {
    const best = (unit.matches || []).filter((match) => match.rank === 1);
    if (unit.columns.dead) return un.empty("A dead unit has no counterparts: its activation never changes.");
    if (!best.length) return un.absent(un.study.absent.universality ? "universality" : "pairs", "The store holds no matches of this unit.");
    const runners = (model) => unit.matches.filter((match) => match.model === model && match.rank > 1).sort((a, b) => a.rank - b.rank).slice(0, 3);
    const partners = new Map((unit.one_to_one || []).map((partner) => [partner.match_model, partner]));
    const partner = (model) => {
      const found = partners.get(model);
      if (!found) return "–";
      return found.match_layer < 0 ? "none" : [un.unitLink(model, found.match_layer, found.match_neuron), ` ${un.num(found.corr, true)}`];
    };
    const row = (match) => un.h("tr", {},
      un.h("th", { scope: "row" }, un.said(un.modelName(match.model))),
      un.h("td", {}, un.unitLink(match.model, match.layer, match.neuron)),
      un.h("td", { class: "number" }, un.num(match.corr, true)),
      un.h("td", {}, un.reach(match.low, match.high, match.heldout ?? match.corr), un.h("span", { class: "quiet" }, un.interval(match.low, match.high) || "–")),
      un.h("td", {}, un.isNone(match.mutual) ? "–" : match.mutual ? "mutual" : "one way"),
      un.h("td", { class: "number" }, un.num(match.ranks, true)), un.h("td", { class: "number" }, un.num(match.within, true)),
      partners.size ? un.h("td", {}, partner(match.model)) : null,
      un.h("td", { class: "runners" }, runners(match.model).map((other) => [un.h("span", {}, un.unitLink(other.model, other.layer, other.neuron), ` ${un.num(other.corr, true)}`), " "])));
    const heads = [["model", null], ["counterpart", "match"], ["ρ", "corr"], ["ρ on held-out text, 95 %", "corr_low"], ["mutual", "mutual"], ["ρ of ranks", "corr_ranks"], ["ρ within tokens", "corr_within_tokens"], ...(partners.size ? [["one to one", null]] : []), ["runners-up", "rank"]];
    return un.h("div", { class: "sheet", tabindex: 0, role: "group", "aria-label": "Counterparts" }, un.h("table", { class: "matches" }, un.h("caption", { class: "unseen" }, "Its best match in every other model"),
      un.h("thead", {}, un.h("tr", {}, heads.map(([text, term], at) => un.h("th", { scope: "col", class: [2, 5, 6].includes(at) ? "number" : null }, un.term(term, text))))), un.h("tbody", {}, best.map(row))));
  }

  // Of a unit that was not asked about: the reference's units that have it for their best match.
  async function askers(place) {
    const units = await un.units(un.study.reference);
    const [layer, neuron, corr] = ["layer", "neuron", "corr"].map((name) => `match_${name}:${place.model}`);
    if (place.model === units.model || !units.has(layer)) return null;
    const [layers, neurons] = [units.values(layer), units.values(neuron)];
    const found = [...Array(units.count).keys()].filter((unit) => layers[unit] === place.layer && neurons[unit] === place.neuron);
    found.sort((a, b) => units.at(corr, b) - units.at(corr, a));
    const each = (unit) => un.h("li", {}, un.unitLink(units.model, units.at("layer", unit), units.at("neuron", unit)), ` ρ ${un.num(units.at(corr, unit), true)}`, units.has("fires") && units.at("fires", unit) && [" ", un.said(units.at("fires", unit), "quiet")]);
    const name = un.said(un.modelName(units.model));
    if (!found.length) return un.empty([`No unit of the reference has it for its best match.`]);
    return [un.h("p", {}, "It is the best match of ", un.count(found.length, "unit"), " of ", name, ":"), un.h("ul", { class: "neighbours" }, found.slice(0, 12).map(each))];
  }

  // Itself first, then its best match in every other model: [{model, layer, neuron, corr}].
  function company(place, unit) {
    const best = (unit.matches || []).filter((match) => match.rank === 1);
    return [{ ...place }, ...best.map(({ model, layer, neuron, corr }) => ({ model, layer, neuron, corr }))];
  }
  // Of a diff the same unit of the other model too, where its best match there is another.
  function andItself(place, unit) {
    const members = company(place, unit);
    const other = { ...place, model: 1 - place.model };
    const there = (member) => member.model === other.model && member.layer === other.layer && member.neuron === other.neuron;
    return !unit.change || members.some(there) ? members : [members[0], { ...other, corr: unit.change.self_corr ?? null }, ...members.slice(1)];
  }
  const headOf = (member) => [un.h("span", { class: "model-name" }, un.said(un.modelName(member.model))), " ", un.unitLink(member.model, member.layer, member.neuron), member.corr === undefined ? " itself" : ` ρ ${un.num(member.corr, true)}`];

  function together(place, unit, strings) {
    if (!(unit.counterparts || []).length) return un.absent("counterparts", place.model === un.study.reference ? "The store holds no windows with this unit's counterparts." : "Windows side by side are kept with the units that were asked about: open one of those above.");
    const members = company(place, unit);
    const names = members.map((member) => un.modelName(member.model));
    const views = un.inBands(unit.counterparts).map((each) => ({
      ...each, tokens: each.tokens.map((at) => strings[at]),
      lanes: members.map((member, lane) => (lane ? (each.others || {})[member.model] || null : each.activations)),
    }));
    const holder = un.h("div", {});
    const draw = (kind) => un.clear(holder, un.windows({ views, names, heads: members.map(headOf), overlaid: kind === "lanes" }));
    const first = matchMedia("(max-width: 720px)").matches ? "lanes" : "columns";
    draw(first);
    return [pressed([["columns", "Side by side"], ["lanes", "Under one text"]], first, "How to lay the models out", draw), un.legendOfColours(), holder];
  }

  function pressed(options, chosen, label, change) {
    const buttons = options.map(([value, text]) => un.h("button", { type: "button", "aria-pressed": String(value === chosen), onclick: (event) => {
      for (const button of buttons) button.setAttribute("aria-pressed", String(button === event.currentTarget));
      change(value);
    } }, text));
    return un.h("div", { class: "switch", role: "group", "aria-label": label }, buttons);
  }

  // Each one's own examples, a band at a time: a column for the unit, and for each counterpart as its file arrives.
  function ownExamples(place, unit, strings) {
    const bands = [...new Set(un.inBands(unit.examples || []).map((each) => each.band))];
    if (!bands.length) return un.absent("examples", "The store holds no examples of this unit.");
    const holder = un.h("div", { class: "columns" });
    let band = bands[0];
    const columns = andItself(place, unit).map((member, at) => {
      const column = un.h("div", { class: "column" });
      holder.append(column);
      const given = at === 0 ? Promise.resolve({ unit, strings }) : new Promise((resolve) => setTimeout(() => resolve(shardOf(member))));
      const fill = (found) => {
        const all = found ? un.inBands(found.unit.examples || []) : [];
        const views = all.map((each) => ({ ...each, tokens: each.tokens.map((token) => found.strings[token]), lanes: [each.activations] }));
        const most = [Math.max(0, ...views.flatMap((view) => view.activations.map((value) => Math.abs(value || 0))))];
        const shown = views.filter((view) => view.band === band).map((view) => ({ ...view, band: "" }));
        un.clear(column, un.h("p", { class: "lane-head" }, headOf(member)), shown.length ? un.windows({ views: shown, names: [un.modelName(member.model)], heads: [""], most }) : un.empty("It has no examples of this band."));
      };
      return () => given.then(fill, (error) => un.clear(column, un.empty(error.message)));
    });
    const draw = () => columns.forEach((column) => column());
    draw();
    return [pressed(bands.map((each) => [each, un.bandName(each)]), band, "Which examples", (value) => ((band = value), draw())), holder];
  }

  function spelt(unit, strings) {
    const put = (windows) => windows && windows.map((each) => ({ ...each, tokens: each.tokens.map((at) => strings[at]) }));
    return JSON.stringify({ ...unit, examples: put(unit.examples), counterparts: put(unit.counterparts) }, null, 1);
  }
  function json(place, unit, strings) {
    const pre = un.h("pre", { tabindex: 0, role: "group", "aria-label": "This unit as JSON" });
    const details = un.h("details", {}, un.h("summary", {}, "This unit as JSON"), pre);
    details.addEventListener("toggle", () => details.open && !pre.textContent && (pre.textContent = spelt(unit, strings)));
    const name = `${un.study.id}-${place.model}-${un.placeName(place.layer, place.neuron)}.json`;
    return un.h("div", { class: "json" }, un.download("Save as JSON", name, () => ({ content: spelt(unit, strings), type: "application/json" })), un.h("a", { class: "button", href: un.unitHref(place.model, place.layer, place.neuron) }, "Permalink"), details);
  }

  un.pages.unit = async function (main) {
    const place = un.parseUnit(un.asked("u"));
    if (!place) throw new Error(`No unit ${un.asked("u") || "was named"}: this study's units are named MODEL/L2.17, MODEL a number below ${un.study.models.length}.`);
    const found = await shardOf(place);
    if (!found) throw new Error("The site's files hold no such unit.");
    const { unit, strings } = found;
    document.title = `${un.placeName(place.layer, place.neuron)} of ${un.modelName(place.model)} · ${un.study.title}`;
    const part = un.parts;
    un.clear(main, head(place, unit), hero(unit),
      part.change(unit) && un.section("change", "What training changed", part.change(unit)),
      un.section("matches", "Its counterparts", counterparts(unit)),
      un.section("together", "The same text, every model", together(place, unit, strings)),
      un.h("div", { class: "grid small" },
        un.section("labels", "Labels", part.labels(unit)),
        un.section("tokens", "Tokens", part.tokens(unit)),
        un.section("histogram", "Distribution", part.histogram(unit)),
        un.section("neighbours", "Neighbours in its own model", part.neighbours(unit, place.model))),
      un.section("effects", "What it does to the logits", part.effects(unit)),
      part.tried(place, unit),
      part.positions(unit) && un.section("positions", "Positions", part.positions(unit)),
      part.course(unit) && un.section("course", "Over training", part.course(unit)),
      part.explanations(unit) && un.section("explanations", "Explanations", part.explanations(unit)),
      un.section("examples", "Each one's own examples", un.legendOfColours(), ownExamples(place, unit, strings)),
      un.section("numbers", "All numbers", part.numbers(unit)),
      json(place, unit, strings));
    if (unit.change) un.load(`${un.study.id}/diff`).then((diff) => document.getElementById("change").append(un.carriedBy(diff, unit) || ""), () => null);
    if (!(unit.matches || []).length && place.model !== un.study.reference) {
      // From the file of all of the reference's units, which may be large: when the page is there.
      setTimeout(() => askers(place).then((found) => found && document.getElementById("matches").append(...[found].flat()), () => null));
    }
  };
})();
