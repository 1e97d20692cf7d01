"""Whose effects on the loss are measured: the units that changed most, and others to hold them against.

1. The size of a unit's change is the root mean square, over positions, of its activation after minus before, times the
   norm of its w_out after: how much of what it writes changed.  It is taken on rows that choose.
2. Units of another kind than unchanged come first, the largest change first; where they are too few, others follow.
3. Beside each stands another of its layer, which stands beside no other: alive before and after, unchanged where there
   is one left, and the nearest in what it contributes (`contributions`, the larger of before and after).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.interventions import contributions, nearest_others, written_norms
from universal_neurons.models import Model
from universal_neurons.text import Rows
from universal_neurons.units import NONE, Units


@dataclass(frozen=True)
class EffectUnits:
    """The numbers of the units that changed most, the largest change first; of the other beside each, −1: none."""

    changed: list[int]
    others: list[int]
    sizes: list[float]

    @property
    def beside(self) -> list[int]:
        """The others that there are."""
        return [number for number in self.others if number != NONE]

    @property
    def all(self) -> list[int]:
        """Both."""
        return [*self.changed, *self.beside]


def effect_units(
    changes: pl.DataFrame,
    units: Units,
    many: int,
    sizes: Float[np.ndarray, " units"],
    contributed: Float[np.ndarray, " units"],
) -> EffectUnits:
    """So many units as the module says, by the kinds of `changes`, and the others."""
    alive = ~(changes["dead_before"] | changes["dead_after"]).to_numpy()
    some = ~(changes["dead_before"] & changes["dead_after"]).to_numpy()
    unchanged = changes["kind"].fill_null("").eq("unchanged").to_numpy()
    of_no_kind = unchanged | changes["kind"].is_null().to_numpy()
    order = np.lexsort((np.arange(len(units)), -sizes, of_no_kind))
    changed = [int(number) for number in order if some[number]][:many]
    others = nearest_others(changed, units, contributed, alive, unchanged)
    return EffectUnits(changed, others, sizes[changed].tolist())


@torch.inference_mode()
def change_sizes(
    base: Model, tuned: Model, text: Rows, batches: Sequence[np.ndarray], sign: Float[np.ndarray, " units"]
) -> Float[np.ndarray, " units"]:
    """The size of every unit's change on some rows; activations before are taken times `sign`."""
    signs = torch.from_numpy(sign).float().to(tuned.device)
    squares, counted = np.zeros(len(base.units)), 0
    for rows in batches:
        ids = torch.from_numpy(text.ids(rows))
        kept = torch.from_numpy(np.flatnonzero(text.mask(rows))).to(tuned.device)
        before: dict[int, Tensor] = {}
        with base.capturing(before.__setitem__):
            base.forward(ids)
        with tuned.capturing(partial(_add_squares, squares, tuned.units, before, signs, kept)):
            tuned.forward(ids)
        counted += len(kept)
    return np.sqrt(squares / max(counted, 1)) * written_norms(tuned)


def _add_squares(
    squares: Float[np.ndarray, " units"],
    units: Units,
    before: dict[int, Tensor],
    signs: Float[Tensor, " units"],
    kept: Int[Tensor, " kept"],
    layer: int,
    after: Tensor,
) -> None:
    columns = units.columns(layer)
    gap = after[kept].float() - before.pop(layer).to(after.device)[kept].float() * signs[columns]
    squares[columns] += gap.double().square().sum(0).cpu().numpy()


def contributions_of_both(base: Model, tuned: Model, neurons: pl.DataFrame) -> Float[np.ndarray, " units"]:
    """What each unit contributes, by both models' rows of the neuron table: the larger of before and after."""
    return np.maximum(*(contributions(model, neurons.filter(pl.col("model") == model.name)) for model in (base, tuned)))


def batches_of(rows: Int[np.ndarray, " rows"], rows_at_once: int) -> Iterator[Int[np.ndarray, " batch"]]:
    """Rows, so many at a time."""
    for start in range(0, len(rows), rows_at_once):
        yield rows[start : start + rows_at_once]


def spread_rows(rows: Int[np.ndarray, " rows"], many: int) -> Int[np.ndarray, " some"]:
    """At most so many of some rows, evenly spread over them."""
    some = min(many, len(rows))
    return rows[np.arange(some) * len(rows) // max(some, 1)]
