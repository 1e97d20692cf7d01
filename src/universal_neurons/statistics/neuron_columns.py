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
CACHED_ELEMENTS = 1 << 18  # worked on together, in float64
TILE = 1024  # neurons whose cosines are made together
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
    """Highest and lowest cosine of each row with any other row; NaN for zero rows and where there is no other.

    A square of cosines speaks of its rows and of its columns: half of them are computed.
    """
    directions = unit(rows).float()
    living = directions.isfinite().all(1).nonzero().flatten()
    single = directions[living]
    highest, lowest = (torch.full((len(rows),), torch.nan, dtype=torch.float64, device=rows.device) for _ in range(2))
    if len(living) < 2:
        return highest, lowest
    most, least = (torch.full((len(living),), end, device=rows.device) for end in (-torch.inf, torch.inf))
    tiles = [slice(start, start + TILE) for start in range(0, len(living), TILE)]
    for number, across in enumerate(tiles):
        for down in tiles[number:]:
            square = single[across] @ single[down].T
            if across == down:
                square.fill_diagonal_(-torch.inf)
            for part, dim in ((across, 1), (down, 0)):
                torch.maximum(most[part], square.amax(dim), out=most[part])
            if across == down:
                square.fill_diagonal_(torch.inf)
            for part, dim in ((across, 1), (down, 0)):
                torch.minimum(least[part], square.amin(dim), out=least[part])
    highest[living], lowest[living] = most.double().clamp(-1, 1), least.double().clamp(-1, 1)
    return highest, lowest


def vocabulary_moments(
    w_out: Float[Tensor, "neurons width"], w_u: Float[Tensor, "vocabulary width"]
) -> dict[str, Float[Tensor, " neurons"]]:
    """Mean, variance, skew and kurtosis over the vocabulary of cos(w_out, W_U)."""
    directions = unit(w_u[w_u.norm(dim=1) > 0]).float()
    neurons = unit(w_out).float()
    height = max(1, PANEL_ELEMENTS // max(len(directions), 1))
    few = max(1, CACHED_ELEMENTS // max(len(directions), 1))
    parts = [
        _row_moments(rows.double()) for panel in neurons.split(height) for rows in (panel @ directions.T).split(few)
    ]
    return dict(zip(("vocab_mean", "vocab_var", "vocab_skew", "vocab_kurt"), torch.cat(parts, 1)))


def _row_moments(values: Float[Tensor, "rows n"]) -> Float[Tensor, "4 rows"]:
    """Mean, population variance, skew and kurtosis of every row; the values are written over."""
    mean = values.mean(1)
    centred = values.sub_(mean[:, None])
    squares = centred.square()
    n = values.shape[1]
    var, m3, m4 = squares.mean(1), torch.linalg.vecdot(squares, centred) / n, torch.linalg.vecdot(squares, squares) / n
    return torch.stack([mean, var, m3 / var**1.5, m4 / var**2])


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
        "layer_corr_neuron": units.place_of(torch.cat(neuron).cpu().numpy())[1].astype(np.int32),
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
