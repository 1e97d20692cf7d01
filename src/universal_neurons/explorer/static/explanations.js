// What units are about in words, with scores; until somebody writes explanations, why there are none.
(function () {
  "use strict";
  un.pages.explanations = async function (main) {
    const rows = un.rows((await un.tables()).explanations);
    const head = un.h("h1", {}, "Explanations");
    if (!rows.length) return un.clear(main, head, un.absent("explanations", "Nobody has explained the units in words."));
    un.clear(main, head, un.storeTable("Explanations", rows, Object.keys(rows[0]).filter((name) => !["layer", "neuron"].includes(name)), { file: `${un.study.id}-explanations.csv` }));
  };
})();
