// A text of the reader's own: the units of every model that fire most in it. Only where the site is served.
(function () {
  "use strict";
  const MOST = 20000;

  async function asked(text) {
    const answer = await fetch("api/text", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ study: un.study.id, text }) });
    const found = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
    if (!answer.ok) throw new Error(found.error || `The server answered ${answer.status}.`);
    return found;
  }

  function ofModel(found) {
    const strongest = (values) => values.reduce((best, value, at) => (Math.abs(value || 0) > Math.abs(values[best] || 0) ? at : best), 0);
    const views = found.units.map((unit, at) => ({ band: "", rank: at + 1, at: strongest(unit.activations), tokens: found.tokens, lanes: [unit.activations], unit }));
    const shown = views.map((view) => {
      const place = un.unflat(found.model, view.unit.unit);
      return un.h("li", {}, un.h("p", { class: "lane-head" }, un.unitLink(found.model, place.layer, place.neuron), un.h("span", { class: "quiet" }, ` its highest in the study's text: ${un.num(view.unit.highest)}`)), un.windows({ views: [view], names: [un.modelName(found.model)], heads: [""], most: [Math.abs(view.unit.highest)] }));
    });
    return un.h("section", {}, un.h("h2", {}, un.said(un.modelName(found.model))), shown.length ? un.h("ol", { class: "fired" }, shown) : un.empty("No unit fires in this text."));
  }

  un.pages.text = async function (main) {
    const head = [un.h("h1", {}, "Your text"), un.h("p", { class: "lead" }, "The units of every model that fire most in a text of yours, each measured by its own highest activation in the study's text.")];
    if (!un.site.served) return un.clear(main, head, un.absent("text", "A text is tried where the models are: uneurons serve RUN."));
    const area = un.h("textarea", { id: "own-text", rows: 5, maxlength: MOST, spellcheck: "false" });
    const button = un.h("button", { type: "submit" }, "Read it");
    const out = un.h("div", { "aria-live": "polite" });
    const send = async (event) => {
      event.preventDefault();
      button.disabled = true;
      un.clear(out, un.h("p", { class: "loading" }, "The models read it; the first time they are loaded first…"));
      try {
        const found = await asked(area.value);
        un.clear(out, un.legendOfColours(), un.h("div", { class: "columns" }, found.models.map(ofModel)));
      } catch (error) {
        un.clear(out, un.h("p", { class: "notice" }, error.message));
      }
      button.disabled = false;
    };
    un.clear(main, head, un.h("form", { class: "asking", onsubmit: send }, un.h("label", { for: "own-text" }, `A text, at most ${un.num(MOST)} letters`), area, button), out);
  };
})();
