// Where matches lie, and how alike layers are: maps for every model that was asked about and every other one.
(function () {
  "use strict";
  un.pages.layers = async function (main) {
    const tables = await un.tables();
    const [rows, wholes, pairs] = ["layers", "similarity", "consistency"].map((name) => un.rows(tables[name]));
    const head = [un.h("h1", {}, "Layers"), un.h("p", { class: "lead" }, un.site.terms.fraction || "Where the best matches of a layer's units lie in another model.")];
    if (!rows.length && !wholes.length) return un.clear(main, head, un.absent("layers", "This study has no layers of another model to match with."));
    const askers = [...new Set([...rows.map((row) => row.model), ...wholes.map((row) => row.asker)])];
    const [matches, alike] = [un.h("div", { class: "grid small" }), un.h("div", {})];
    const draw = (asker) => {
      const others = [...new Set(rows.filter((row) => row.model === Number(asker)).map((row) => row.match_model))];
      un.clear(matches, others.map((other) => un.layerMap(rows, Number(asker), other)));
      un.clear(alike, wholes.length ? un.layersAsWholes(wholes, Number(asker)) : un.absent("similarity", "This study compared no layers as wholes."));
    };
    draw(askers[0]);
    un.clear(main, head, askers.length > 1 && un.choice("Layers of", askers.map((asker) => [asker, un.modelName(asker)]), askers[0], draw), matches,
      un.section("wholes", "Layers as wholes", alike),
      un.section("one-to-one", "Units one to one", pairs.length ? un.oneToOne(pairs, `${un.study.id}-one-to-one.csv`) : un.absent("one_to_one", "This study matched no units one to one.")),
      rows.length ? un.section("table", "As a table", un.storeTable("Layers and where their matches lie", rows, ["model", "layer", "match_model", "match_layer", "fraction"], { file: `${un.study.id}-layers.csv` })) : null);
  };
})();
