// What units fire on: how many of each family in every model, and how many of them are found again.
(function () {
  "use strict";

  function chart(rows, caption) {
    const most = Math.max(...rows.map((row) => row.neurons));
    const body = rows.map((row) =>
      un.h("tr", {},
        un.h("th", { scope: "row" }, row.family ? un.familyLink(row.family, row.model) : un.h("span", { class: "quiet" }, "none: dead units")),
        un.h("td", { class: "bar-cell" }, un.h("span", { class: "bar whole", vars: { "--share": row.neurons / most } }, un.h("span", { class: "bar part", vars: { "--share": row.universal ? row.universal / row.neurons : 0, "--swatch": `var(${un.familyColour(row.family)})` } }))),
        un.h("td", { class: "number" }, un.isNone(row.universal) ? un.count(row.neurons, "unit") : `${un.num(row.universal)} of ${un.num(row.neurons)}`)));
    return un.h("table", { class: "bars" }, un.h("caption", {}, caption), un.h("tbody", {}, body));
  }

  un.pages.families = async function (main) {
    const rows = un.rows((await un.tables()).families);
    if (!rows.length) return un.clear(main, un.h("h1", {}, "Families"), un.absent("families", "This study has no labels."));
    const models = [...new Set(rows.map((row) => row.model))];
    const charts = models.map((model) => {
      const own = rows.filter((row) => row.model === model).sort((a, b) => b.neurons - a.neurons);
      const asked = un.study.models[model].asks;
      return un.h("div", {}, un.h("h3", {}, un.said(un.modelName(model))), chart(own, asked ? "Units, and in full colour the universal ones" : "Units; nobody asked which of them are universal"));
    });
    const families = [...new Set(rows.map((row) => row.family).filter(Boolean))];
    const words = families.filter((family) => un.site.terms[family]).map((family) => un.h("div", {}, un.h("dt", {}, un.swatch(family), " ", un.said(family)), un.h("dd", {}, un.site.terms[family])));
    un.clear(main, un.h("h1", {}, "Families"), un.h("p", { class: "lead" }, un.site.terms.family || "A family is what a unit fires on."),
      words.length ? un.h("dl", { class: "glossary" }, words) : null,
      un.section("charts", "In every model", un.h("div", { class: "grid" }, charts)),
      un.section("table", "As a table", un.storeTable("Families of every model", rows, ["model", "family", "neurons", "universal", "variance_reduction_median", "above_half", "tied", "nearly_tied", "excess_mean", "excess_median"], { file: `${un.study.id}-families.csv` })));
  };
})();
