"""The baseline on held-out rows: every neuron with the rotated neurons that its maxima were with.

A maximum over many rotated neurons was chosen on the rows that choose, as the match was.  So the rotated neuron it was
with (a layer and a row of the draw's matrix) is asked again on held-out rows, where nothing was chosen.  The excess is
then a difference of two correlations on the same text; the jackknife of that difference knows how both depend on it.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.matching.baselines import rotations
from universal_neurons.matching.heldout import rho
from universal_neurons.statistics import Accumulator, Batch, Jackknifed
from universal_neurons.units import Units

ROTATED_DRAWS = 4  # of the baseline's draws, how many are asked again


@dataclass(frozen=True)
class _Part:
    """Of one draw and layer: the neurons whose rotated neuron is there, its place in `rows`, and these rows."""

    draw: int
    columns: slice
    askers: Int[Tensor, " askers"]
    place: Int[Tensor, " askers"]
    rows: Float[Tensor, "rows width"]

    @classmethod
    def of(cls, draw: int, unit: Tensor, columns: slice, rotated: Tensor, device: Any) -> "_Part":
        askers = ((unit >= columns.start) & (unit < columns.stop)).nonzero().flatten()
        rows, place = torch.unique(unit[askers] - columns.start, return_inverse=True)
        return cls(draw, columns, askers.to(device), place.to(device), rotated[rows].to(device))


class RotatedMoments(Accumulator):
    """Σa, Σa² of every neuron a and, in some draws, Σr, Σr², Σar of its rotated neuron r, per held-out stretch.

    `unit` holds each draw's rotated neurons as `Maxima` has them, `scale` what the other model's neurons are multiplied
    by before they are rotated: their inverse deviations where they are standardised.  Of a pair that is matched by size
    `turned` are the signs that the other model's neurons are taken times too, and `sign` those of the maxima's ρ: a
    rotated neuron of negative ρ counts negated.
    """

    TENSORS = ("unit", "counts", "asker", "rotated")
    SAME: ClassVar[dict[str, str]] = {"unit": "rotated neurons"}
    DETAIL = ("standardised",)

    def __init__(
        self,
        asker: str,
        other: str,
        unit: Int[Tensor, "draws neurons"],
        units: Units,
        kind: str,
        seed: int,
        stretches: int,
        *,
        scale: Float[Tensor, " others"] | None = None,
        turned: Float[Tensor, " others"] | None = None,
        sign: Int[np.ndarray, "draws neurons"] | None = None,
        device: Any = "cpu",
    ) -> None:
        super().__init__((asker, other))
        self.standardised = scale is not None
        self.unit, self.units = unit, units
        draws, neurons = unit.shape
        self.scale = torch.ones(len(units), device=device) if scale is None else scale.to(device, torch.float32)
        if turned is not None:
            self.scale = self.scale * turned.to(self.scale)
        self.sign = np.ones((draws, neurons)) if sign is None else sign
        rotated = [rotations(kind, units.widths, seed, draw) for draw in range(draws)]
        self.parts = [
            _Part.of(draw, unit[draw], units.columns(layer), rotated[draw][width].float(), device)
            for draw in range(draws)
            for layer, width in enumerate(units.widths)
        ]
        self.counts = torch.zeros(stretches, dtype=torch.int64)
        self.asker = torch.zeros(stretches, 2, neurons, dtype=torch.float64, device=device)
        self.rotated = torch.zeros(stretches, draws, 3, neurons, dtype=torch.float64, device=device)

    def update(self, batch: Batch) -> None:
        """Add a batch of positions to its stretch."""
        asker, other = self.blocks(batch)
        mine = asker.values.float()
        self.count += len(mine)
        self.counts[batch.shard] += len(mine)
        self.asker[batch.shard] += torch.stack([asker.columns.sums, asker.columns.squares])
        for part in self.parts:
            if not len(part.askers):
                continue
            turned = (other.values[:, part.columns].float() * self.scale[part.columns]) @ part.rows.T
            products = (turned[:, part.place] * mine[:, part.askers]).sum(0)
            sums = torch.stack([turned.sum(0)[part.place], turned.square().sum(0)[part.place], products])
            self.rotated[batch.shard, part.draw, :, part.askers] += sums.double()

    def result(self) -> Jackknifed:
        """The mean over draws of ρ with the rotated neuron, times its `sign`."""
        sums = torch.cat([self.asker.flatten(1), self.rotated.flatten(1)], 1).cpu().numpy()
        return Jackknifed.of(self._mean, self.counts.numpy(), sums)

    def _mean(self, count: float, sums: Float[np.ndarray, " sums"]) -> Float[np.ndarray, " neurons"]:
        draws, neurons = self.unit.shape
        a, aa = sums[: 2 * neurons].reshape(2, neurons)
        rotated = sums[2 * neurons :].reshape(draws, 3, neurons)
        corr = [sign * rho(count, np.stack([a, r, aa, rr, ar])) for sign, (r, rr, ar) in zip(self.sign, rotated)]
        return np.asarray(np.mean(corr, 0))
