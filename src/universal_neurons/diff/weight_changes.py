"""What became of a unit's weights: their cosine and norm before and after, and where its effects on the logits went.

Weights are the processed ones (docs/models.md).  A fine-tune keeps its base's residual basis, so that weights of the
two can be held against each other.  Logit effects are W_U w_out over the tokens that both models have.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from universal_neurons.models import Model, ProcessedWeights, processed_weights, projection
from universal_neurons.statistics import PANEL_ELEMENTS, cosine

ROUNDING = 2.0**-8  # two numbers that bfloat16 may have rounded from one differ by no more, relative to the larger
WEIGHTS = ("identical", "rounding", "different")
TOP = 5


def weight_columns(base: Model, other: Model) -> dict[str, Any]:
    """What docs/store.md says of `changes` from `weights` to `lowered_by`, a value per unit."""
    before, after = processed_weights(base), processed_weights(other)
    columns: dict[str, Any] = {"weights": _equality(base, other)} | _own_columns(before, after)
    return columns | (logit_columns(before, after) if len(before.w_u) and len(after.w_u) else {})


def own_weight_columns(base: Model, other: Model) -> dict[str, np.ndarray]:
    """Those of them that are of the unit's own weights: cosines and ratios of norms."""
    return _own_columns(processed_weights(base), processed_weights(other))


def _own_columns(before: ProcessedWeights, after: ProcessedWeights) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {}
    for role in ("w_in", "w_up", "w_out"):
        rows = [getattr(weights, role) for weights in (before, after)]
        if rows[0] is None:
            continue
        left, right = (row.flatten(0, -2) for row in rows)
        columns[f"{role}_cos"] = cosine(left, right).cpu().numpy()
        columns[f"{role}_ratio"] = (right.norm(dim=1) / left.norm(dim=1)).cpu().numpy()
    return columns


def _equality(base: Model, other: Model) -> list[str]:
    """Of every unit, whether its own weights are the same numbers, the same up to rounding to bfloat16, or others."""
    codes = []
    for layer in range(base.n_layers):
        worst = torch.zeros(base.units.widths[layer], dtype=torch.int64, device=base.device)
        for left, right in zip(_own_weights(base, layer), _own_weights(other, layer)):
            gap, size = (left - right).abs(), torch.maximum(left.abs(), right.abs())
            rounded, same = (gap <= ROUNDING * size).all(1), (gap == 0).all(1)
            worst = torch.maximum(worst, 2 - rounded.long() - same.long())
        codes += worst.tolist()
    return [WEIGHTS[code] for code in codes]


def _own_weights(model: Model, layer: int) -> Iterator[Float[Tensor, "units width"]]:
    """The weights and biases of every unit of a layer, as the model has them."""
    for role in ("w_in", "w_up") if model.architecture.w_up else ("w_in",):
        weight, bias = projection(model, layer, role)
        yield weight
        yield bias[:, None]
    yield projection(model, layer, "w_out")[0].T


def logit_columns(before: ProcessedWeights, after: ProcessedWeights) -> dict[str, Any]:
    """The cosine of a unit's logit effects before and after, and the tokens whose effects rose and fell most.

    None for tokens where no effect changed.
    """
    shared = min(len(before.w_u), len(after.w_u))
    unembeddings = [weights.w_u[:shared] - weights.w_u[:shared].mean(0) for weights in (before, after)]
    readers = [rows.float() for rows in unembeddings]
    writers = [weights.w_out.flatten(0, -2).float() for weights in (before, after)]
    height, parts = max(1, PANEL_ELEMENTS // shared), []
    for start in range(0, len(writers[0]), height):
        effects = [rows[start : start + height] @ reader.T for rows, reader in zip(writers, readers)]
        parts.append(changed_most(*effects))
    cos, changed, *tables = (torch.cat(part).cpu().numpy() for part in zip(*parts))
    names = ("raised_tokens", "raised_by", "lowered_tokens", "lowered_by")
    return {"logit_cos": cos.astype(np.float64)} | {
        name: [row if any_change else None for row, any_change in zip(table.tolist(), changed)]
        for name, table in zip(names, tables)
    }


def changed_most(
    before: Float[Tensor, "units tokens"], after: Float[Tensor, "units tokens"]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of every unit the cosine of its effects, whether any changed, and those that rose and fell most: tokens, by how
    much."""
    change = after - before
    raised, lowered = (change.topk(min(TOP, change.shape[1]), 1, largest=largest) for largest in (True, False))
    lists = (raised.indices, raised.values, lowered.indices, lowered.values)
    return cosine(before, after), change.any(1), *lists
