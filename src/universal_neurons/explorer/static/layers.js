// Where matches lie: a layer × layer map for every model that was asked about and every other one.
(function () {
  "use strict";
  un.pages.layers = async function (main) {
    const tables = await un.tables();
    const rows = un.rows(tables.layers);
    const head = [un.h("h1", {}, "Layers"), un.h("p", { class: "lead" }, un.site.terms.fraction || "Where the best matches of a layer's units lie in another model.")];
    if (!rows.length) return un.clear(main, head, un.absent("layers", "This study has no layers of another model to match with."));
    const pairs = [...new Set(rows.map((row) => `${row.model}:${row.match_model}`))].map((pair) => pair.split(":").map(Number));
    const askers = [...new Set(pairs.map(([asker]) => asker))];
    const holder = un.h("div", { class: "grid small" });
    const draw = (asker) => un.clear(holder, pairs.filter(([one]) => one === Number(asker)).map(([one, other]) => un.layerMap(rows, one, other)));
    draw(askers[0]);
    un.clear(main, head, askers.length > 1 && un.choice("Layers of", askers.map((asker) => [asker, un.modelName(asker)]), askers[0], draw), holder,
      un.section("table", "As a table", un.storeTable("Layers and where their matches lie", rows, ["model", "layer", "match_model", "match_layer", "fraction"], { file: `${un.study.id}-layers.csv` })));
  };
})();
