"""Percentiles within the layer of the metrics of Fig 3."""

from collections.abc import Mapping
from typing import Any

import polars as pl

RANKED = ("sparsity", "mean", "skew", "kurt", "input_bias", "in_out_sim", "l2_penalty", "vocab_kurt")


def percentiles(neurons: pl.DataFrame) -> pl.DataFrame:
    """The neuron table with, for each metric of Fig 3, its percentile (0–100) within the neuron's own layer.

    The percentile is the share of the layer's neurons that are smaller, ties counted half.
    """
    columns: Mapping[str, Any] = {
        f"{metric}_percentile": _percentile(metric).over("model", "layer")
        for metric in RANKED
        if metric in neurons.columns
    }
    return neurons.with_columns(**columns)


def _percentile(metric: str) -> pl.Expr:
    finite = pl.when(pl.col(metric).is_finite()).then(pl.col(metric))
    return (finite.rank("average") - 0.5) / finite.count() * 100
