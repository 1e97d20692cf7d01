// Kinds of change, and where units went, in words.
(function () {
  "use strict";
  const NOWHERE = 65535; // the layer of no unit, in columns

  un.kind = (kind) => (kind ? un.h("span", { class: "family" }, un.swatch(kind, un.kindColour), un.term(kind, kind)) : un.h("span", { class: "quiet" }, "not known"));
  un.kindLink = (kind) => un.h("a", { class: "family", href: un.href("diff", {}, { kind }) }, un.swatch(kind, un.kindColour), un.said(kind));

  // Where the base's unit is now, and where the fine-tune's was. at(name): a column of the table of changes.
  un.whereabouts = function (at) {
    const unit = (model, where) => {
      const layer = at(`${where}_layer`);
      return un.isNone(layer) || layer === NOWHERE ? null : un.unitLink(model, layer, at(`${where}_neuron`));
    };
    const [to, from] = [unit(1, "moved_to"), unit(0, "came_from")];
    return un.h("span", { class: "where" }, at("place") ? un.term(at("place") === "moved" ? "moved_to" : at("place"), at("place")) : "–", to && [" to ", to], from && [" (now what ", from, " was)"]);
  };
})();
