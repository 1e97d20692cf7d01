"""Counts beside what chance gives, as tables: neurons above many thresholds, mutual pairs and anchors, cliques."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from universal_neurons.matching import (
    Cliques,
    Comparison,
    MutualPairs,
    counts_above,
    mutual_pairs,
    null_counts,
    null_excess,
    rotated_mutual_pairs,
    thresholds_with,
)
from universal_neurons.units import Units

LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of an anchor's, or a clique's, least |ρ|
KINDS = {  # how a kind's counts end, and of which excess they are
    "": ("excess_corr", "excess_heldout", "excess_low", "excess_high"),
    "_standardised": (
        "excess_standardised",
        "excess_standardised_heldout",
        "excess_standardised_low",
        "excess_standardised_high",
    ),
}
ROTATED_COUNTS = ("pairs_rotated", "anchors_rotated")
COUNTED = ("universal", "universal_heldout", "surely", "possibly")


def thresholds_table(
    comparisons: Sequence[Comparison],
    columns: Mapping[str, Mapping[str, Any]],
    threshold: float,
    null: pl.DataFrame | None = None,
    null_draws: int = 0,
) -> pl.DataFrame:
    """A row per asker and threshold: how many neurons exceed it, and how many of the nulls' neurons in a draw.

    `columns` are those of the neuron table, `null` the untrained null's excesses and `null_draws` the number of its
    draws, where it was asked for.
    """
    frames = []
    for comparison in comparisons:
        own, at = columns[comparison.asker], thresholds_with(threshold)
        counts: dict[str, Any] = {"asker": [comparison.asker] * len(at), "threshold": at}
        for ending, names in KINDS.items():
            for counted, name in zip(COUNTED, names):
                counts[counted + ending] = counts_above(np.asarray(own[name]), at)
            maxima = comparison.standardised.maxima if ending else comparison.maxima
            counts["rotated" + ending] = null_counts(null_excess(maxima), at)
            counts["untrained" + ending] = _untrained(null, null_draws, comparison.asker, names[0], at)
        frames.append(
            pl.DataFrame(counts, schema_overrides={n: pl.Float64 for n in counts if n.startswith("untrained")})
        )
    return pl.concat(frames)


def _untrained(
    null: pl.DataFrame | None, draws: int, asker: str, excess: str, at: Sequence[float]
) -> np.ndarray | None:
    """How many of an asker's untrained neurons exceed each threshold, averaged over draws; None where nobody asked."""
    if null is None:
        return None
    of_asker = null.filter(pl.col("asker") == asker)
    return null_counts((of_asker.filter(pl.col("draw") == d)[excess].to_numpy() for d in range(draws)), at)


def anchors_table(comparisons: Sequence[Comparison], columns: Mapping[str, Mapping[str, Any]]) -> pl.DataFrame:
    """A row per asker and level of |ρ|: mutual pairs and anchors from there up, and those of rotated models.

    `columns` are those of the neuron table.  The rotated counts are null where the baseline rotates nothing.
    """
    frames = []
    for comparison in comparisons:
        found, rotated = mutual_pairs(comparison), rotated_mutual_pairs(comparison)
        universal = columns[comparison.asker]["is_universal"]
        counts = {
            "asker": [comparison.asker] * len(LEVELS),
            "level": LEVELS,
            "pairs": _pairs(found),
            "pairs_rotated": None if rotated is None else _pairs(rotated),
            "anchors": _anchors(found),
            "anchors_rotated": None if rotated is None else _anchors(rotated),
            "universal": [int((found.anchors_from(level) & universal).sum()) for level in LEVELS],
        }
        frames.append(pl.DataFrame(counts, schema_overrides=dict.fromkeys(ROTATED_COUNTS, pl.Int64)))
    return pl.concat(frames)


def _pairs(found: MutualPairs) -> list[int]:
    return [found.pairs_from(level) for level in LEVELS]


def _anchors(found: MutualPairs) -> list[int]:
    return [int(found.anchors_from(level).sum()) for level in LEVELS]


def cliques_table(cliques: Cliques, units: Mapping[str, Units], universal: Mapping[str, np.ndarray]) -> pl.DataFrame:
    """A row per clique and model, the most correlated clique first; `universal` by model, of every neuron."""
    numbers = np.arange(len(cliques.members), dtype=np.int32)
    frames = []
    for (model, of_model), members in zip(units.items(), cliques.members.T):
        places = {"clique": numbers, "model": [model] * len(numbers)} | of_model.table_columns(members)
        sizes = {"min_corr": cliques.min_corr, "mean_corr": cliques.mean_corr}
        frames.append(
            pl.DataFrame(
                places | sizes | {"universal": universal[model][members]}, schema_overrides={"model": pl.String}
            )
        )
    return pl.concat(frames).sort("clique", maintain_order=True)


def clique_levels_table(cliques: pl.DataFrame, random: Cliques | None) -> pl.DataFrame:
    """A row per level of the least |ρ|: the cliques from there up, those whose neuron of the first model is universal,
    whose every neuron is, and those of random bases (null where the study does not keep what they are made of)."""
    whole = cliques.group_by("clique", maintain_order=True).agg(
        pl.col("min_corr").first(), pl.col("universal").first(), pl.col("universal").all().alias("everywhere")
    )
    smallest = whole["min_corr"].to_numpy()
    columns = {
        "level": LEVELS,
        "cliques": _from(smallest),
        "universal": _from(smallest[whole["universal"].to_numpy()]),
        "universal_everywhere": _from(smallest[whole["everywhere"].to_numpy()]),
        "rotated": None if random is None else _from(random.min_corr),
    }
    return pl.DataFrame(columns, schema_overrides={"rotated": pl.Int64})


def _from(smallest: np.ndarray) -> list[int]:
    return [int((smallest >= level).sum()) for level in LEVELS]
