// The models of a study, what is known of each, and the settings that the study was made with.
(function () {
  "use strict";
  un.pages.models = async function (main) {
    const { models, settings, reference } = un.study;
    const columns = [
      { name: "model", title: "model", kind: "text", at: (at) => models[at].name, node: (at) => [un.said(models[at].name), at === reference ? un.h("span", { class: "chip" }, "reference") : null] },
      { name: "architecture", title: "architecture", kind: "text", at: (at) => models[at].family },
      ...["layers", "units", "dead", "universal", "d_model", "vocabulary"].map((name) => ({ name, title: un.title(name), term: name, kind: "number", at: (at) => models[at][name] })),
      { name: "units-link", title: "its units", kind: "text", at: (at) => models[at].name, raw: () => "", node: (at) => un.h("a", { href: un.href("study", {}, { m: at }), "aria-label": `all units of ${models[at].name}` }, "all units") },
      { name: "digest", title: "SHA-256 of its weights", kind: "text", at: (at) => models[at].digest, node: (at) => un.h("code", { class: "digest", title: models[at].digest }, (models[at].digest || "–").slice(0, 12)) },
    ];
    const spans = un.rows((await un.tables()).spans);
    const rows = Object.entries(settings).map(([name, value]) => un.h("tr", {}, un.h("th", { scope: "row" }, un.said(name)), un.h("td", {}, un.said(value))));
    un.clear(main, un.h("h1", {}, "Models"),
      un.table({ caption: "Models", columns, rows: Uint32Array.from(models.keys()), file: `${un.study.id}-models.csv` }).element,
      spans.length ? un.section("spans", "How well the tokenizers fit", un.storeTable("Spans", spans, Object.keys(spans[0]), {})) : null,
      Object.keys(un.study.absent).length ? un.section("absent", "What this study does not have, and why", un.h("dl", { class: "facts" }, Object.entries(un.study.absent).map(([name, why]) => un.h("div", {}, un.h("dt", {}, un.said(name.replace(/^role:/, "role: ").replaceAll("_", " "))), un.h("dd", {}, un.said(why)))))) : null,
      un.section("settings", "Settings of the study", un.h("div", { class: "sheet", tabindex: 0, role: "group", "aria-label": "Settings" }, un.h("table", { class: "settings" }, un.h("caption", { class: "unseen" }, "Settings"), un.h("tbody", {}, rows)))));
  };
})();
