"""Comparisons to tables: neurons, matches, layers, subsets (columns as in docs/design.md, "The store")."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from universal_neurons.compare import Comparison
from universal_neurons.correlation import layer_profile
from universal_neurons.detail import HeldOut, corr_interval, excess_interval


@dataclass(frozen=True)
class Shape:
    """Layers and neurons per layer of a model."""

    layers: int
    d_mlp: int


def _places(model: str, shape: Shape) -> dict[str, Any]:
    return {
        "model": [model] * (shape.layers * shape.d_mlp),
        "layer": np.repeat(np.arange(shape.layers, dtype=np.int32), shape.d_mlp),
        "neuron": np.tile(np.arange(shape.d_mlp, dtype=np.int32), shape.layers),
    }


def neurons_table(
    shapes: Mapping[str, Shape],
    dead: Mapping[str, np.ndarray],
    comparisons: Sequence[Comparison],
    heldout: Mapping[str, Sequence[HeldOut]],
    threshold: float,
) -> pl.DataFrame:
    """A row per neuron of every model; what was not asked is null, what has no answer (dead) NaN."""
    found = {c.asker: c for c in comparisons}
    frames = []
    for model, shape in shapes.items():
        columns = _places(model, shape) | {"dead": dead[model]}
        if model in found:
            columns |= _universality(found[model], threshold)
            centre, low, high = excess_interval(heldout[model], found[model])
            columns |= {"excess_heldout": centre, "excess_low": low, "excess_high": high}
        frames.append(pl.DataFrame(columns))
    return pl.concat(frames, how="diagonal")


def _universality(found: Comparison, threshold: float) -> dict[str, Any]:
    return {
        "max_corr": found.best.max(0),
        "mean_corr": found.best.mean(0),
        "min_corr": found.best.min(0),
        "max_baseline": found.baseline.max(0),
        "mean_baseline": found.baseline.mean(0),
        "min_baseline": found.baseline.min(0),
        "excess_corr": found.excess,
        "q_value": found.q_value,
        "is_universal": found.excess > threshold,
    }


def subsets_table(shapes: Mapping[str, Shape], by_subset: Mapping[str, Comparison], threshold: float) -> pl.DataFrame:
    """A row per asked neuron and subset."""
    frames = []
    for subset, found in by_subset.items():
        places = _places(found.asker, shapes[found.asker])
        frames.append(
            pl.DataFrame({"subset": [subset] * len(places["model"])} | places | _universality(found, threshold))
        )
    return pl.concat(frames)


def matches_table(
    shapes: Mapping[str, Shape], comparisons: Sequence[Comparison], heldout: Mapping[str, Sequence[HeldOut]]
) -> pl.DataFrame:
    """A row per living asker, other model and rank (1 = best, −1 = most negative); intervals for rank 1."""
    frames = []
    for found in comparisons:
        shape = shapes[found.asker]
        for other, matches, held in zip(found.others, found.matches, heldout[found.asker]):
            for rank in range(1, matches.index.shape[1] + 1):
                columns = _match(found.asker, shape, other, rank)
                columns |= _where(matches.index[:, rank - 1].numpy(), shapes[other])
                columns |= {"corr": matches.corr[:, rank - 1].numpy()}
                if rank == 1:
                    low, high = corr_interval(held)
                    columns |= {
                        "corr_heldout": held.corr,
                        "corr_low": low,
                        "corr_high": high,
                        "mutual": matches.mutual.numpy(),
                    }
                frames.append(pl.DataFrame(columns))
            columns = _match(found.asker, shape, other, -1)
            columns |= _where(matches.lowest_index.numpy(), shapes[other])
            frames.append(pl.DataFrame(columns | {"corr": matches.lowest_corr.numpy()}))
    table = pl.concat(frames, how="diagonal").filter(pl.col("corr").is_finite())
    order = ["asker", "layer", "neuron", "model", pl.col("rank") < 0, "rank"]
    return table.sort(order).select(
        "asker", "layer", "neuron", "model", "rank", "match_layer", "match_neuron",
        "corr", "corr_heldout", "corr_low", "corr_high", "mutual",
    )  # fmt: skip


def _match(asker: str, shape: Shape, other: str, rank: int) -> dict[str, Any]:
    places = _places(asker, shape)
    n = len(places["model"])
    return {
        "asker": places["model"],
        "layer": places["layer"],
        "neuron": places["neuron"],
        "model": [other] * n,
        "rank": np.full(n, rank, np.int32),
    }


def _where(index: np.ndarray, shape: Shape) -> dict[str, Any]:
    return {
        "match_layer": (index // shape.d_mlp).astype(np.int32),
        "match_neuron": (index % shape.d_mlp).astype(np.int32),
    }


def layers_table(shapes: Mapping[str, Shape], comparisons: Sequence[Comparison]) -> pl.DataFrame:
    """The layer profile: per asker layer and other model, the fraction of best matches in each layer (Fig 2c)."""
    rows = []
    for found in comparisons:
        for other, matches in zip(found.others, found.matches):
            theirs = shapes[other]
            profile = layer_profile(matches.index[:, 0], shapes[found.asker].layers, theirs.layers, theirs.d_mlp)
            for layer, fractions in enumerate(profile.tolist()):
                for match_layer, fraction in enumerate(fractions):
                    rows.append((found.asker, layer, other, match_layer, fraction))
    schema = {
        "asker": pl.String,
        "layer": pl.Int32,
        "model": pl.String,
        "match_layer": pl.Int32,
        "fraction": pl.Float64,
    }
    return pl.DataFrame(rows, schema=schema, orient="row")
