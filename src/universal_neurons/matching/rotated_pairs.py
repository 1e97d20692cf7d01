"""Who is whose best match where one model's basis is random: of the rotated baseline's first draw.

A neuron and its match may be each other's best by chance.  How often, the other model's rotated layers say: the best
rotated neuron of every asker, and the best asker of every rotated neuron, among the ρ that the draw's maxima are of.
The few best of every asker say what a one-to-one matching is worth by chance (`one_to_one`).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NOBODY = -1


@dataclass(frozen=True)
class RotatedPairs:
    """Every asker's best rotated neuron, every rotated neuron's best asker; by number, −1 where there is none.

    `strength` and `back_strength` are what they were chosen by: ρ, or |ρ| by size.  `corr` is the asker's once more,
    of a sketch without its noise (`baselines.rotated_best`); NaN where there is none.  Rotated neurons have the numbers
    of `baselines.Maxima`.  `few_corr` and `few_units` are an asker's best few, the best first, without the noise too;
    −∞ and −1 where there are fewer.
    """

    strength: Float[Tensor, " neurons"]
    corr: Float[Tensor, " neurons"]
    unit: Int[Tensor, " neurons"]
    back_strength: Float[Tensor, " units"]
    back: Int[Tensor, " units"]
    few_corr: Float[Tensor, "neurons few"]
    few_units: Int[Tensor, "neurons few"]

    @classmethod
    def nothing(cls, neurons: int, units: int, device: torch.device, few: int = 1) -> "RotatedPairs":
        """Of no comparison."""
        strengths = [torch.full((n,), -torch.inf, device=device) for n in (neurons, units)]
        places = [torch.full((n,), NOBODY, device=device) for n in (neurons, units)]
        missing = torch.full_like(strengths[0], torch.nan)
        few_corr = torch.full((neurons, few), -torch.inf, device=device)
        few_units = torch.full((neurons, few), NOBODY, device=device)
        return cls(strengths[0], missing, places[0], strengths[1], places[1], few_corr, few_units)

    def see(
        self, rows: slice, columns: slice, strength: Float[Tensor, "rows columns"], kept: Float[Tensor, " rows"] | float
    ) -> None:
        """Take over, in place, whatever is better among some askers' strengths with some rotated neurons.

        `strength` is −∞ where either is dead; `kept` is the share of an asker's that is no noise.
        """
        highest, unit = strength.max(1)
        better = highest > self.strength[rows]
        self.strength[rows] = torch.where(better, highest, self.strength[rows])
        self.corr[rows] = torch.where(better, highest * kept, self.corr[rows])
        self.unit[rows] = torch.where(better, unit + columns.start, self.unit[rows])
        highest, asker = strength.max(0)
        better = highest > self.back_strength[columns]
        self.back_strength[columns] = torch.where(better, highest, self.back_strength[columns])
        self.back[columns] = torch.where(better, asker + rows.start, self.back[columns])
        self._see_few(rows, columns, strength, kept)

    def _see_few(
        self, rows: slice, columns: slice, strength: Float[Tensor, "rows columns"], kept: Float[Tensor, " rows"] | float
    ) -> None:
        corr, units = strength.topk(min(self.few_corr.shape[1], strength.shape[1]), 1)
        share = kept[:, None] if isinstance(kept, Tensor) else kept
        corr = torch.where(torch.isfinite(corr), corr * share, corr)
        known = self.few_corr[rows], self.few_units[rows]
        self.few_corr[rows], self.few_units[rows] = _best_few(known, (corr, units + columns.start))

    def numbered(self, neurons: int, units: int) -> "RotatedPairs":
        """On the CPU, with the numbers of their models, where these are of the first asker and rotated neuron here."""
        unit, back = (torch.where(at >= 0, at + first, at) for at, first in ((self.unit, units), (self.back, neurons)))
        corr = self.corr.double().clamp(-1, 1)
        few_corr = self.few_corr.double().clamp_max(1)
        few_units = torch.where(torch.isfinite(few_corr), self.few_units + units, NOBODY)
        parts = (self.strength, corr, unit, self.back_strength, back, few_corr, few_units)
        return RotatedPairs(*(part.cpu() for part in parts))

    def beside(self, other: "RotatedPairs") -> "RotatedPairs":
        """Of the same askers with two parts of the other model: with both."""
        better = other.strength > self.strength
        return RotatedPairs(
            torch.where(better, other.strength, self.strength),
            torch.where(better, other.corr, self.corr),
            torch.where(better, other.unit, self.unit),
            torch.cat([self.back_strength, other.back_strength]),
            torch.cat([self.back, other.back]),
            *_best_few((self.few_corr, self.few_units), (other.few_corr, other.few_units)),
        )

    def below(self, other: "RotatedPairs") -> "RotatedPairs":
        """Of two parts of the askers: of both."""
        better = other.back_strength > self.back_strength
        return RotatedPairs(
            torch.cat([self.strength, other.strength]),
            torch.cat([self.corr, other.corr]),
            torch.cat([self.unit, other.unit]),
            torch.where(better, other.back_strength, self.back_strength),
            torch.where(better, other.back, self.back),
            torch.cat([self.few_corr, other.few_corr]),
            torch.cat([self.few_units, other.few_units]),
        )

    @property
    def mutual(self) -> Bool[Tensor, " neurons"]:
        """Whether each asker and its best rotated neuron are each other's best."""
        return (self.back[self.unit.clamp_min(0)] == torch.arange(len(self.unit))) & (self.unit >= 0)


def _best_few(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The best of two lists of ρ and units, as many as the first has; of equals those of the first."""
    corr, units = (torch.cat(both, 1) for both in zip(first, second))
    order = corr.argsort(dim=1, descending=True, stable=True)[:, : first[0].shape[1]]
    return corr.gather(1, order), units.gather(1, order)
