// Over training: when units become universal, and whether they stay.
(function () {
  "use strict";
  const SHOWN = [
    ["Universal units", ["universal", "universal_surely", "universal_possibly"]],
    ["Share of the reference's units", ["fraction", "persistence", "same_match", "final_match"]],
    ["Excess", ["excess_median", "excess_p90", "excess_p99", "excess_max"]],
    ["Units that joined and left the universal set", ["joined", "left"]],
  ];

  function families(rows, steps) {
    const model = rows.length ? rows[0].model : 0;
    const own = rows.filter((row) => row.model === model);
    const names = [...new Set(own.map((row) => row.family))];
    const lines = names.map((family) => ({ name: family, kind: `family ${un.familyColour(family).slice(2)}`, points: own.filter((row) => row.family === family).map((row) => [steps.indexOf(row.checkpoint), row.neurons]) }));
    return un.lines(`Families of ${un.modelName(model)}, units`, lines, "checkpoint", { steps, zero: true });
  }

  un.pages.dynamics = async function (main) {
    const found = (await un.tables()).dynamics;
    const head = [un.h("h1", {}, "Dynamics"), un.h("p", { class: "lead" }, "When units become universal in training, and whether they stay so.")];
    const rows = un.rows(found && found.checkpoints);
    if (!rows.length) return un.clear(main, head, un.absent("dynamics", "This study is of one moment of training."));
    const steps = rows.map((row) => row.checkpoint);
    const plots = SHOWN.map(([title, names]) => {
      const lines = names.filter((name) => rows.some((row) => !un.isNone(row[name]))).map((name) => ({ name: un.title(name), points: rows.map((row, at) => [at, row[name]]) }));
      return lines.length ? un.lines(title, lines, "checkpoint", { steps, zero: true }) : null;
    });
    const selves = un.rows(found.self);
    const seeds = [...new Set(selves.map((row) => row.model))];
    if (selves.length) plots.push(un.lines("Correlation with itself at the last checkpoint, median", seeds.map((model) => ({ name: un.modelName(model), points: selves.filter((row) => row.model === model).map((row) => [steps.indexOf(row.checkpoint), row.self_corr]) })), "checkpoint", { steps, zero: true }));
    if (found.families) plots.push(families(un.rows(found.families), steps));
    const emerged = un.rows(found.emergence).map((row) => ({ name: un.said(un.isNone(row.emergence) ? "never" : row.emergence), value: row.neurons, text: un.num(row.neurons) }));
    un.clear(main, head, un.h("div", { class: "plots wide" }, plots),
      emerged.length ? un.section("emergence", "From which checkpoint on units stay universal", un.bars(emerged, "Units of the reference")) : null,
      un.section("table", "As a table", un.storeTable("Checkpoints", rows, Object.keys(rows[0]), { file: `${un.study.id}-checkpoints.csv` })));
  };
})();
