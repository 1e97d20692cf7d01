"""The neuron table: what a neuron's weights and activations look like (paper §4.2).

Weights are the processed ones (`weights`), so that a cosine says what the residual stream sees.  Activation statistics
are of pre-activations, over the counted positions.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from universal_neurons.models import ProcessedWeights
from universal_neurons.statistics.comoments import LayerCovariance
from universal_neurons.statistics.moments import NeuronMoments
from universal_neurons.units import NONE, Units

PANEL_ELEMENTS = 1 << 24
ROUNDING = 1e-6  # position 0 is the same in every row, but for the rounding of batches of different sizes
RANKED = ("sparsity", "mean", "skew", "kurt", "input_bias", "in_out_sim", "l2_penalty", "vocab_kurt")  # Fig 3


def weight_statistics(weights: ProcessedWeights) -> dict[str, np.ndarray]:
    """Norms, input bias, cosines between a neuron's own weights and with other neurons', moments of cos(w_out, W_U).

    Columns as in docs/store.md, a value per neuron; those of w_up are missing where the MLP is not gated,
    those of the vocabulary where there is no unembedding.
    """
    w_in, w_out = weights.w_in.flatten(0, -2), weights.w_out.flatten(0, -2)
    norms = {"w_in_norm": w_in.norm(dim=1), "w_out_norm": w_out.norm(dim=1)}
    columns = norms | {
        "input_bias": weights.b_in.flatten(),
        "in_out_sim": cosine(w_in, w_out),
        "l2_penalty": norms["w_in_norm"] ** 2 + norms["w_out_norm"] ** 2,
    }
    if weights.w_up is not None:
        w_up = weights.w_up.flatten(0, -2)
        columns["w_up_norm"] = w_up.norm(dim=1)
        columns["l2_penalty"] = columns["l2_penalty"] + columns["w_up_norm"] ** 2
        columns["in_up_sim"], columns["up_out_sim"] = cosine(w_in, w_up), cosine(w_up, w_out)
    for side, matrix in (("in", w_in), ("out", w_out)):
        columns[f"{side}_cos_max"], columns[f"{side}_cos_min"] = extreme_cosines(matrix)
    if len(weights.w_u):
        columns |= vocabulary_moments(w_out, weights.w_u)
    return {name: column.cpu().numpy() for name, column in columns.items()}


def decoder_statistics(
    w_out: Float[Tensor, "units width"], w_u: Float[Tensor, "vocabulary width"]
) -> dict[str, np.ndarray]:
    """Of units that only write, the columns of what they write: norms, cosines with others', moments of cos(·, W_U)."""
    columns = {"w_out_norm": w_out.norm(dim=1)}
    columns["out_cos_max"], columns["out_cos_min"] = extreme_cosines(w_out)
    if len(w_u):
        columns |= vocabulary_moments(w_out, w_u)
    return {name: column.cpu().numpy() for name, column in columns.items()}


def unit(rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    """Rows of length 1; a zero row becomes NaN."""
    return rows / rows.norm(dim=1, keepdim=True)


def cosine(left: Float[Tensor, "rows width"], right: Float[Tensor, "rows width"]) -> Float[Tensor, " rows"]:
    """Cosine of each row with its counterpart."""
    return (unit(left) * unit(right)).sum(1).clamp(-1, 1)


def extreme_cosines(rows: Float[Tensor, "rows width"]) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Highest and lowest cosine of each row with any other row; NaN for zero rows and where there is no other."""
    single = unit(rows).float()
    highest, lowest = (torch.full((len(rows),), -torch.inf, device=rows.device) for _ in range(2))
    height = max(1, PANEL_ELEMENTS // len(rows))
    for start in range(0, len(rows), height):
        panel = single[start : start + height] @ single.T
        diagonal = torch.arange(len(panel), device=rows.device)
        panel[diagonal, start + diagonal] = torch.nan
        highest[start : start + height] = panel.nan_to_num(nan=-torch.inf).amax(1)
        lowest[start : start + height] = (-panel).nan_to_num(nan=-torch.inf).amax(1)
    alone = ~torch.isfinite(highest)
    highest = highest.double().clamp(-1, 1).masked_fill(alone, torch.nan)
    lowest = (-lowest.double()).clamp(-1, 1).masked_fill(alone, torch.nan)
    return highest, lowest


def vocabulary_moments(
    w_out: Float[Tensor, "neurons width"], w_u: Float[Tensor, "vocabulary width"]
) -> dict[str, Float[Tensor, " neurons"]]:
    """Mean, variance, skew and kurtosis over the vocabulary of cos(w_out, W_U)."""
    directions = unit(w_u[w_u.norm(dim=1) > 0]).float()
    neurons = unit(w_out).float()
    parts: list[Tensor] = []
    height = max(1, PANEL_ELEMENTS // max(len(directions), 1))
    for start in range(0, len(neurons), height):
        cosines = (neurons[start : start + height] @ directions.T).double()
        mean = cosines.mean(1, keepdim=True)
        centred = cosines - mean
        var = centred.square().mean(1)
        m3, m4 = centred.pow(3).mean(1), centred.pow(4).mean(1)
        parts.append(torch.stack([mean[:, 0], var, m3 / var**1.5, m4 / var**2]))
    return dict(zip(("vocab_mean", "vocab_var", "vocab_skew", "vocab_kurt"), torch.cat(parts, 1)))


def activation_statistics(moments: NeuronMoments, bos: NeuronMoments) -> dict[str, np.ndarray]:
    """Moments of the pre-activations, the share of positions where they are positive, and their mean at position 0."""
    columns = {
        "mean": moments.mean,
        "var": moments.var,
        "skew": moments.skew,
        "kurt": moments.kurt,
        "sparsity": moments.positive,
        "bos_mean": bos.mean,
        "is_bos": (bos.mean >= moments.high - ROUNDING * moments.high.abs()) & (moments.low < moments.high),
    }
    return {name: column.cpu().numpy() for name, column in columns.items()}


def orientation_of(activation_mean: Float[np.ndarray, " neurons"]) -> Float[np.ndarray, " neurons"]:
    """1, or −1 where a neuron's mean activation is negative: times it, w_out is what the neuron adds on average.

    Negating w_up and w_out of a gated neuron leaves the model the same; its orientation then changes sign with its
    activation and its w_out, so that either times it stays what it was.
    """
    return np.where(activation_mean < 0, -1.0, 1.0)


def duplicates(
    layers: LayerCovariance, alive: Tensor, units: Units | None = None, *, by_size: bool = False
) -> dict[str, np.ndarray]:
    """The highest ρ (`by_size`: |ρ|) of each neuron with another of its own layer, and which one (−1: none).

    `units` are the model's, where it has experts.
    """
    units = layers.units if units is None else units
    corr: list[Tensor] = []
    neuron: list[Tensor] = []
    for centred, living in zip(layers.centred, alive.split(layers.units.widths)):
        if not len(living):
            corr.append(centred.new_empty(0))
            neuron.append(torch.empty(0, dtype=torch.int64, device=centred.device))
            continue
        scale = torch.where(living, centred.diagonal().rsqrt(), torch.nan)
        rho = (centred * scale[:, None] * scale).clamp(-1, 1)
        rho = rho.abs() if by_size else rho
        rho.fill_diagonal_(torch.nan)
        best = rho.nan_to_num(nan=-torch.inf).max(1)
        none = ~torch.isfinite(best.values)
        corr.append(best.values.masked_fill(none, torch.nan))
        neuron.append((best.indices + units.starts[len(neuron)]).masked_fill(none, NONE))
    return {
        "layer_corr_max": torch.cat(corr).cpu().numpy(),
        "layer_corr_neuron": units.place_of(torch.cat(neuron))[1].int().cpu().numpy(),
    }


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
