"""The tables `explanations` and `scores` of a study: what stays when others come, the best, what each is worth.

An explanation is told by its unit and who made it (`source`); in `scores` by the unit's name (`seed-1/L0.32`) and the
source.  A unit's explanations stand one behind the other, the best scored first.

The score that explanations are compared by: AUPRC of detection, else of fuzzing, else ρ of simulation, of the scorer
that was asked about most; by its share of what is possible above chance, (score − chance) / (1 − chance), an
explanation's own unit is held against the unit's counterparts.
"""

from typing import Any

import numpy as np
import polars as pl

from universal_neurons.explanations.questions import Kind
from universal_neurons.explanations.score_rows import ANOTHER, COUNTERPART, EMPTY, OWN, RANDOM, SCHEMA
from universal_neurons.explanations.sentences import BY_LABELS, PLACE, by_labels
from universal_neurons.storage import Results
from universal_neurons.units import name_column

SCORED = (*PLACE, "explanation", "source", "use", "method", "scorer")  # what tells rows of `scores` from each other
NAMES = ["explanation", "source"]
ELSEWHERE = (COUNTERPART, RANDOM)
LEVEL = 0.95
BEST = {"method": pl.String, "scorer": pl.String, **dict.fromkeys(("score", "low", "high", "chance"), pl.Float64)}
MEANS = ("chance", "label", "another", "empty", "counterpart", "random")
OF = ["scorer", "method", "of"]
SOURCES: dict[str, Any] = {
    "source": pl.String, "scorer": pl.String, "method": pl.String, "units": pl.UInt32,
    **dict.fromkeys(
        ("score", "score_low", "score_high", *MEANS, "carried", "carried_low", "carried_high"), pl.Float64),
}  # fmt: skip


def unit_column() -> pl.Expr:
    """`seed-1/L3.17` of a table's columns `model`, `layer`, `neuron`."""
    return pl.concat_str(pl.col("model"), pl.lit("/"), name_column())


def with_explanations(old: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    """The table `explanations` with others, which take the place of those of the same unit and source."""
    return pl.concat([old.join(new, on=[*PLACE, "source"], how="anti"), new.select(old.columns)])


def with_scores(old: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    """The table `scores` with others, which take the place of those that say the same of the same."""
    return pl.concat([old.join(new, on=SCORED, how="anti"), new.select(old.columns)])


def still_true(scores: pl.DataFrame, old: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    """The scores that are not of an explanation that is another now, or is none any more."""
    after = new.select(*PLACE, "source", now="explanation")
    changed = old.join(after, on=[*PLACE, "source"], how="left").filter(pl.col("explanation").ne_missing(pl.col("now")))
    return scores.join(changed.select("source", explanation=unit_column()), on=NAMES, how="anti")


def in_order(explanations: pl.DataFrame, scores: pl.DataFrame, neurons: pl.DataFrame) -> pl.DataFrame:
    """The table `explanations` in the order of the neurons; of each the best scored first, then the label sentence."""
    place = neurons.select(PLACE).with_row_index("place")
    ranked = with_own_scores(explanations, scores).join(place, on=PLACE, how="inner", maintain_order="left")
    of_labels = pl.col("source") != BY_LABELS
    order = ["place", "score", of_labels]
    ranked = ranked.sort(order, descending=[False, True, False], nulls_last=True, maintain_order=True)
    return ranked.select(explanations.columns)


def renewed(store: Results, neurons: pl.DataFrame, effects: pl.DataFrame | None) -> dict[str, pl.DataFrame]:
    """The tables `explanations` and `scores`, by name, of a study whose neurons or effects have changed.

    Label sentences are made anew; what others say stays, and scores of what is still said.
    """
    made = by_labels(store, neurons, effects)
    if made is None or not store.has("explanations"):
        return {} if made is None else {"explanations": made}
    return beside(made, store.table("explanations"), store.table("scores") if store.has("scores") else None, neurons)


def beside(
    made: pl.DataFrame, old: pl.DataFrame, scores: pl.DataFrame | None, neurons: pl.DataFrame
) -> dict[str, pl.DataFrame]:
    """`explanations` and `scores`, by name, with label sentences that were made anew and what others say in `old`."""
    others = old.filter(pl.col("source") != BY_LABELS)
    if others.is_empty() and scores is None:
        return {"explanations": made}
    every = pl.concat([made, others])
    kept = pl.DataFrame(schema=SCHEMA) if scores is None else still_true(scores, old, every)
    tables = {"explanations": in_order(every, kept, neurons)}
    return tables if scores is None else tables | {"scores": kept}


def scores_of(store: Results) -> pl.DataFrame:
    """The table `scores` of a study; without a row where nobody scored its explanations."""
    return store.table("scores") if store.has("scores") else pl.DataFrame(schema=SCHEMA)


def best_of(explanations: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    """A row per unit: the best scored of its explanations, else the first; and its score, null where it has none.

    Columns: those of `explanations`, then `method`, `scorer`, `score`, its 95 % interval `low`, `high`, `chance`.
    The best of several was chosen by the score that it is shown with.
    """
    ranked = with_own_scores(explanations, scores).with_row_index("place")
    ranked = ranked.sort(["score", "place"], descending=[True, False], nulls_last=True)
    return ranked.unique(PLACE, keep="first", maintain_order=True).sort("place").drop("place")


def with_own_scores(explanations: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    """Explanations with the columns `BEST` of their own score, null where there is none."""
    own = measured(scores.filter(pl.col("use") == OWN)).drop_nulls("score")
    if own.is_empty():
        return explanations.with_columns(pl.lit(None, kind).alias(name) for name, kind in BEST.items())
    own = leading(own).select(*PLACE, "source", *BEST)
    return explanations.join(own, on=[*PLACE, "source"], how="left", maintain_order="left")


def leading(own: pl.DataFrame) -> pl.DataFrame:
    """Of rows of explanations' own scores those that they are compared by: of one scorer, by one method."""
    scorer = own.group_by("scorer").len().sort(["len", "scorer"], descending=[True, False])["scorer"][0]
    own = own.filter(pl.col("scorer") == scorer)
    method = next(kind for kind in Kind if (own["method"] == kind).any())
    return own.filter(pl.col("method") == method)


def measured(scores: pl.DataFrame) -> pl.DataFrame:
    """Rows of `scores` with `score`, `low`, `high`: AUPRC, or ρ of simulation; `chance` is what knowing nothing has."""
    simulated = pl.col("method") == Kind.SIMULATION
    ends = {"score": "", "low": "_low", "high": "_high"}
    columns = {
        name: pl.when(simulated).then(pl.col(f"rho{end}")).otherwise(pl.col(f"auprc{end}"))
        for name, end in ends.items()
    }
    return scores.with_columns(**columns, chance=pl.when(simulated).then(0.0).otherwise(pl.col("base_rate")))


def sources_table(explanations: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    """A row per source, scorer and method: what its explanations are worth, on average over units.

    Columns: `source`, `scorer`, `method`, `units` (that are scored; of a source that nobody scored, that it explains),
    `score` with its 95 % interval over units (`score_low`, `score_high`), `chance`; of the same units the mean scores
    of their `label` sentences, of `another` unit's explanation and of an `empty` one; the explanations' on their own
    units' `counterpart`s and on `random` units of the counterparts' layers; `carried`: which share of the score above
    chance the counterparts have, with its 95 % interval, null where the explanations are not above chance on their own
    units.
    """
    units = units_table(scores).sort("scorer", pl.col("method").cast(pl.Enum([*map(str, Kind)])), maintain_order=True)
    found: list[dict[str, Any]] = []
    for source in explanations["source"].unique(maintain_order=True).to_list():
        groups = units.filter(source=source).group_by("scorer", "method", maintain_order=True)
        worth = [
            {"source": source, "scorer": scorer, "method": method} | _worth(group) for (scorer, method), group in groups
        ]
        found += worth or [{"source": source, "units": explanations["source"].eq(source).sum()}]
    return pl.DataFrame(found, SOURCES)


def units_table(scores: pl.DataFrame) -> pl.DataFrame:
    """A row per source, scorer, method and unit that it explains: its own score, beside controls, and elsewhere.

    Columns: `source`, `scorer`, `method`, `of` (the unit: `seed-1/L0.32`), `score`, `chance`; of the same unit the
    scores of its `label` sentence, of `another` unit's explanation and of an `empty` one; the explanation's mean scores
    on the unit's `counterpart`s and on `random` units of their layers.  `share`, and each of the others with `_share`:
    of what is possible above chance.  Null where nobody asked.
    """
    means = (
        measured(scores)
        .drop_nulls("score")
        .with_columns(
            of=pl.when(pl.col("use").is_in(ELSEWHERE)).then("explanation").otherwise(unit_column()),
            share=(pl.col("score") - pl.col("chance")) / (1 - pl.col("chance")),
        )
        .group_by("use", "source", *OF, maintain_order=True)
        .agg(pl.col("score", "chance", "share").mean())
    )
    units = means.filter(use=OWN).drop("use")
    beside = {"label": (OWN, BY_LABELS), "another": (ANOTHER, None), "empty": (EMPTY, EMPTY)}
    beside |= {"counterpart": (COUNTERPART, None), "random": (RANDOM, None)}
    for name, (use, source) in beside.items():
        rows = means.filter(use=use) if source is None else means.filter(use=use, source=source)
        keys = ["source", *OF] if source is None else OF
        units = units.join(
            rows.select(*keys, **{name: "score", f"{name}_share": "share"}), on=keys, how="left", maintain_order="left"
        )
    return units


def _worth(units: pl.DataFrame) -> dict[str, Any]:
    """The means over the units of one source, scorer and method."""
    low, high = _interval(units["score"].to_numpy())
    worth = {"units": len(units), "score": units["score"].mean(), "score_low": low, "score_high": high}
    worth |= {name: units[name].mean() for name in MEANS}
    return worth | _carried(units.drop_nulls("counterpart_share"))


def _carried(units: pl.DataFrame) -> dict[str, float]:
    """The counterparts' share of the score above chance over the units' own; its interval by leaving out a unit."""
    own, there = units["share"].to_numpy(), units["counterpart_share"].to_numpy()
    lowest, _ = _interval(own)
    if lowest is None or lowest <= 0:
        return {}
    carried = there.sum() / own.sum()
    left_out = (there.sum() - there) / (own.sum() - own)
    error = np.sqrt((len(own) - 1) / len(own) * ((left_out - left_out.mean()) ** 2).sum())
    reach = _reach(len(own), error)
    return {"carried": carried, "carried_low": carried - reach, "carried_high": carried + reach}


def _interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """Student's t interval of a mean; none of one value."""
    if len(values) < 2:
        return None, None
    reach = _reach(len(values), values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()) - reach, float(values.mean()) + reach


def _reach(count: int, error: float) -> float:
    """Half the width of an interval of Student's t of a mean of so many values."""
    from scipy.stats import t as student  # late: half a second

    return float(student.ppf((1 + LEVEL) / 2, count - 1) * error)
