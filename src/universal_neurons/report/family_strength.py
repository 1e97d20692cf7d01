"""How strong families are: how much their labels explain, and how near the next best label comes (`store.families`)."""

from collections.abc import Sequence

import polars as pl

from universal_neurons.errors import InputError
from universal_neurons.labels import FAMILIES, TIE, explaining_label
from universal_neurons.report.numbers import number
from universal_neurons.storage import Store

HALF = 0.5  # of the variance: what the paper's notebooks ask of a unigram neuron
NEAR = 0.1  # by how much, relatively, the next best label of a near tie explains less
SECOND = "variance_reduction_second"
STRENGTH_FACTS = ("neurons", "median explained", f"above {HALF:g}", "tied", "within 10 %")
STRENGTH_WORDS = (
    "Median explained: the share of a neuron's variance that its best label explains; above 0.5: for how many it is "
    "more than half; tied: for how many another label explains exactly as much; within 10 %: for how many one explains "
    "at most a tenth less, those included. Where labels tie, which of them names the neuron is chance."
)


def families_table(store: Store) -> pl.DataFrame:
    """A row per model and family that it has; columns as `Store.families` says."""
    if not store.has("labels"):
        raise InputError(
            f"{store.path}: no labels were looked for", wanted="a study with the stage labels", fix="add it to --stages"
        )
    return strength_of(store.neurons, store.models)


def strength_of(neurons: pl.DataFrame, models: Sequence[str]) -> pl.DataFrame:
    """The families of a table of neurons, in the order of these models."""
    neurons = neurons.filter(pl.col("family").is_not_null())
    if SECOND not in neurons.columns:  # of an earlier version
        neurons = neurons.with_columns(pl.lit(None, pl.Float64).alias(SECOND))
    best, second = "variance_reduction", pl.col(SECOND).fill_nan(0)
    known, rests = second.is_not_null().any(), pl.col("rests")
    counts = {
        "above_half": pl.when(rests.any()).then((rests & (pl.col(best) > HALF)).sum()),
        "tied": pl.when(rests.any() & known).then((rests & (second >= (1 - TIE) * pl.col(best))).sum()),
        "nearly_tied": pl.when(rests.any() & known).then((rests & (second >= (1 - NEAR) * pl.col(best))).sum()),
    }
    order = [pl.col("model").replace_strict({name: n for n, name in enumerate(models)})]
    order.append(pl.col("family").replace_strict({name: n for n, name in enumerate(FAMILIES)}))
    by_label = neurons.with_columns(explaining_label().is_not_null().alias("rests"))
    families = by_label.group_by("model", "family").agg(
        pl.len().cast(pl.Int64).alias("neurons"),
        pl.col(best).filter(rests).median().alias("variance_reduction_median"),
        *(count.cast(pl.Int64).alias(name) for name, count in counts.items()),
    )
    return families.sort(order)


def strength_rows(store: Store) -> list[tuple[str, ...]]:
    """Of every family of the reference that rests on labels: its name, and `STRENGTH_FACTS`."""
    of_reference = families_table(store).filter(pl.col("model") == store.models[0])
    told = of_reference.filter(pl.col("above_half").is_not_null())
    return [
        (family.replace("_", " "), f"{neurons:,}", number(median), *("–" if n is None else f"{n:,}" for n in counts))
        for family, neurons, median, *counts in told.drop("model").iter_rows()
    ]
