// The search of every page's head: a unit by its name, labels, families and tokens, each a link.
(function () {
  "use strict";
  const MOST = 6;

  function named(text) {
    const found = un.parseUnit(text);
    if (!found) return [];
    const others = un.study.models.length > 1 && !text.includes("/") ? un.study.models.keys() : [found.model];
    return [...others]
      .filter((model) => un.parseUnit(`${model}/${un.placeName(found.layer, found.neuron)}`))
      .map((model) => ({
        href: un.unitHref(model, found.layer, found.neuron),
        parts: [un.h("span", { class: "unit-name" }, un.placeName(found.layer, found.neuron)), un.said(un.modelName(model), "quiet")],
      }));
  }

  // How many units have each value of a column of words, and which of them is found best again.
  const counted = new WeakMap();
  function counts(units, name) {
    if (!counted.has(units)) counted.set(units, {});
    const kept = counted.get(units);
    if (!kept[name]) {
      const { values, codes } = units.words(name);
      const excess = un.excessOf(units) && units.values(un.excessOf(units));
      const number = new Uint32Array(values.length);
      const best = new Int32Array(values.length).fill(-1);
      for (let unit = 0; unit < codes.length; unit++) {
        const code = codes[unit];
        number[code]++;
        if (best[code] < 0 || (excess && !(excess[unit] <= excess[best[code]]))) best[code] = unit;
      }
      kept[name] = { number, best };
    }
    return kept[name];
  }

  function ofColumn(units, name, text, key) {
    if (!units.has(name)) return [];
    const { values } = units.words(name);
    const { number, best } = counts(units, name);
    const hits = values.map((_, code) => code).filter((code) => number[code] && values[code].toLowerCase().includes(text));
    hits.sort((a, b) => values[a].length - values[b].length || number[b] - number[a]);
    return hits.slice(0, MOST).map((code) => {
      const top = un.unflat(units.model, best[code]);
      return {
        href: un.href("study", {}, { m: units.model, [key]: values[code] }),
        parts: [un.said(values[code]), un.h("span", { class: "quiet" }, `${un.count(number[code], "unit")}, best ${un.placeName(top.layer, top.neuron)}`)],
      };
    });
  }

  function ofTokens(index, model, text) {
    const bare = text.trim();
    const hits = [];
    for (let at = 0; at < index.tokens.length; at++) {
      if (index.tokens[at].toLowerCase().includes(text)) hits.push(at);
    }
    const far = (at) => (index.tokens[at].trim().toLowerCase() === bare ? 0 : 1) + index.tokens[at].length / 1e4;
    hits.sort((a, b) => far(a) - far(b));
    return hits.slice(0, MOST).map((at) => ({
      href: un.href("study", {}, { m: model, token: index.tokens[at] }),
      parts: [un.quoted(index.tokens[at]), un.h("span", { class: "quiet" }, `fires ${un.count(index.of(at).length, "unit")}`)],
    }));
  }

  // What others than labels said of units of any model, or what was scored.
  function ofExplanations(rows, text) {
    const hits = rows.filter((row) => row.explanation.toLowerCase().includes(text));
    return hits.slice(0, MOST).map((row) => ({
      href: un.unitHref(row.model, row.layer, row.neuron),
      parts: [un.said(row.explanation), un.h("span", { class: "quiet" }, un.placeName(row.layer, row.neuron), " of ", un.said(un.modelName(row.model)))],
    }));
  }

  un.found = async function (typed) {
    const text = typed.trim().toLowerCase();
    const model = un.study.reference;
    if (!text) return [];
    const units = await un.units(model);
    const index = await un.tokens(model).catch(() => null);
    return [
      ["Units", named(typed)],
      ["Families", ofColumn(units, "family", text, "family")],
      ["Labels", ofColumn(units, "label", text, "label")],
      ["What units fire on", ofColumn(units, "fires", text, "label")],
      ["Explanations", ofExplanations(un.rows((await un.tables()).explanations), text)],
      ["Tokens that fire units", index ? ofTokens(index, model, typed.toLowerCase().replace(/^\s+/, " ")) : []],
    ].filter(([, hits]) => hits.length);
  };

  function moved(event, panel, input) {
    const links = [...panel.querySelectorAll("a")];
    const at = links.indexOf(document.activeElement);
    if (event.key === "Escape") return close(panel), input.focus();
    if (event.key === "Enter" && at < 0 && links.length) return event.preventDefault(), links[0].click();
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || !links.length) return;
    event.preventDefault();
    (links[at + step] || input).focus();
  }
  function close(panel) {
    panel.hidden = true;
  }

  un.searchBox = function () {
    const panel = un.h("div", { class: "results", id: "results", role: "region", "aria-label": "Search results", hidden: true });
    const input = un.h("input", {
      type: "search", id: "search", placeholder: "Search L2.17, a label, a token…", autocomplete: "off", spellcheck: "false",
      "aria-label": "Search units by name, label, explanation, family or token",
    });
    let latest = 0;
    async function look() {
      const turn = ++latest;
      const groups = await un.found(input.value);
      if (turn !== latest) return;
      const shown = groups.map(([name, hits]) => [
        un.h("h2", {}, name),
        un.h("ul", {}, hits.map((hit) => un.h("li", {}, un.h("a", { href: hit.href }, hit.parts)))),
      ]);
      const typed = input.value.trim();
      un.clear(panel, shown.length ? shown : un.empty("No unit, label, explanation, family or token has this in it."));
      panel.hidden = !typed;
    }
    input.addEventListener("input", look);
    input.addEventListener("focus", () => un.units(un.study.reference).catch(() => null));
    const box = un.h("div", { class: "search", role: "search" }, input, panel);
    box.addEventListener("keydown", (event) => moved(event, panel, input));
    box.addEventListener("focusout", (event) => box.contains(event.relatedTarget) || close(panel));
    return box;
  };
})();
