"""How much neurons contribute, and others that contribute as much, to hold them against when they are ablated.

1. A neuron's contribution is the standard deviation of its activation times the norm of its w_out: the size of what a
   mean ablation takes away.
2. Beside each neuron of a list, in its order, stands another of its layer that stands beside no other: the nearest in
   contribution, by ratio.  A neuron that contributes more than all others of its layer has none that is near.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float

from universal_neurons.models import Model
from universal_neurons.units import NONE, Units

OF_ANOTHER_KIND = 1e6  # further away, by ratio's logarithm, than any that is preferred
SILENT = 1e-30  # less than any neuron contributes


def contributions(model: Model, neurons: pl.DataFrame) -> Float[np.ndarray, " neurons"]:
    """Every neuron's contribution, in the residual stream's units; 0 where its deviation is not known.

    `neurons` are the model's rows of the neuron table, in order.
    """
    return np.nan_to_num(neurons["activation_sd"].to_numpy() * written_norms(model))


def written_norms(model: Model) -> Float[np.ndarray, " neurons"]:
    """The norm of every neuron's w_out."""
    norms = [model.written(layer).double().norm(dim=1) for layer in range(model.n_layers)]
    return torch.cat([of_layer.cpu() for of_layer in norms]).numpy()


def nearest_others(
    numbers: Sequence[int],
    units: Units,
    contributed: Float[np.ndarray, " neurons"],
    free: Bool[np.ndarray, " neurons"],
    preferred: Bool[np.ndarray, " neurons"] | None = None,
) -> list[int]:
    """One for each of `numbers`, none of these and each at most once, of those that are `free`; −1 where none is left.

    While a layer has `preferred` ones, it gives these.
    """
    size = np.log(np.maximum(contributed, SILENT))
    free = free.copy()
    free[list(numbers)] = False
    others = []
    for number in numbers:
        layer = units.columns(units.layer_of(number))
        candidates = layer.start + np.flatnonzero(free[layer])
        gaps = np.abs(size[candidates] - size[number])
        if preferred is not None:
            gaps = gaps + OF_ANOTHER_KIND * ~preferred[candidates]
        others.append(int(candidates[gaps.argmin()]) if len(candidates) else NONE)
        free[others[-1:] if others[-1] != NONE else []] = False
    return others


def largest_others(
    numbers: Sequence[int],
    units: Units,
    contributed: Float[np.ndarray, " neurons"],
    free: Bool[np.ndarray, " neurons"],
) -> list[int]:
    """Of every layer of `numbers` as many others, of those that are `free`, that contribute most; fewer where fewer
    are left."""
    free = free.copy()
    free[list(numbers)] = False
    others: list[int] = []
    for layer, in_layer in units.by_layer(numbers).items():
        columns = units.columns(layer)
        candidates = columns.start + np.flatnonzero(free[columns])
        order = np.argsort(-contributed[candidates], kind="stable")
        others += candidates[order[: len(in_layer)]].tolist()
    return others
