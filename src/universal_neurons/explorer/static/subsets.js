// The same question within each part of the text.
(function () {
  "use strict";
  un.pages.subsets = async function (main) {
    const rows = un.rows((await un.tables()).subsets);
    const head = [un.h("h1", {}, "Subsets"), un.h("p", { class: "lead" }, un.site.terms.subset || "A subset is a part of the text with a name of its own.")];
    if (!rows.length) return un.clear(main, head, un.absent("subsets", "This study has no subsets."));
    const models = [...new Set(rows.map((row) => row.model))];
    const charts = models.map((model) => un.bars(rows.filter((row) => row.model === model).map((row) => ({ name: un.said(row.subset), value: row.universal || 0, text: `${un.num(row.universal)} of ${un.num(row.neurons)}` })), `Universal units of ${un.modelName(model)} within each subset`));
    un.clear(main, head, un.h("div", { class: "grid" }, charts),
      un.section("table", "As a table", un.storeTable("Subsets", rows, ["subset", "model", "neurons", "universal", "excess_mean", "excess_median"], { file: `${un.study.id}-subsets.csv` })));
  };
})();
