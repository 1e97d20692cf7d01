"""How much of a match is the scale: ρ of two neurons' mid-ranks (Spearman's, by classes).

A few very large activations decide ρ.  Ranks know nothing of size: ρ of ranks asks whether two neurons order the text
alike.  A neuron's ranks are by its own quantiles on a sample of positions.  Its distinct values there are cut into at
most `CLASSES` classes of as many values each; what lies in one class ties, and has its mean rank (mid-rank).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.matching.heldout import rho
from universal_neurons.statistics import Accumulator, Batch

CLASSES = 64
NEURONS_AT_ONCE = 512


@dataclass(frozen=True)
class RankTable:
    """Every neuron's classes by rising lower ends; the mid-rank (0 to 1) of what lies below all, then of each class."""

    ends: Float[Tensor, "neurons classes"]
    ranks: Float[Tensor, "neurons ranks"]

    @classmethod
    def of(cls, values: Float[Tensor, "sample neurons"], classes: int = CLASSES) -> "RankTable":
        """From a sample of positions."""
        parts = [_table(part, classes) for part in values.split(NEURONS_AT_ONCE, 1)]
        return cls(*(torch.cat(columns) for columns in zip(*parts)))

    def part(self, neurons: Int[Tensor, " neurons"]) -> "RankTable":
        """Of some neurons, on their device."""
        ends, ranks = (t.to(neurons.device).index_select(0, neurons) for t in (self.ends, self.ranks))
        return RankTable(ends, ranks)

    def rank(self, values: Float[Tensor, "neurons tokens"], neurons: slice) -> Float[Tensor, "neurons tokens"]:
        """The mid-ranks of some neurons' values."""
        place = torch.searchsorted(self.ends[neurons], values, right=True)
        return self.ranks[neurons].gather(1, place)


def _table(values: Float[Tensor, "sample neurons"], classes: int) -> tuple[Tensor, Tensor]:
    ordered = values.float().T.sort(1).values.contiguous()
    n = ordered.shape[1]
    distinct = ordered.new_zeros(ordered.shape, dtype=torch.int64)
    distinct[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)
    lowest = torch.arange(classes, device=values.device) * (distinct[:, -1:] + 1) // classes
    below = torch.searchsorted(distinct, lowest)  # how many of the sample lie below each class
    edges = torch.cat([below.new_zeros(len(below), 1), below, below.new_full((len(below), 1), n)], 1)
    return ordered.gather(1, below), (edges[:, :-1] + edges[:, 1:]).float() / (2 * n)


class RankMoments(Accumulator):
    """Σa, Σb, Σa², Σb², Σab of the mid-ranks of every neuron of one model and its match in each other model.

    `matches` holds the matches' places in the other models, −1 for none; `tables` of the asker and of the others.
    """

    TENSORS = ("matches", "sums")
    SAME: ClassVar[dict[str, str]] = {"matches": "matches"}

    def __init__(
        self,
        asker: str,
        others: Sequence[str],
        matches: Int[Tensor, "models neurons"],
        tables: Sequence[RankTable],
        *,
        device: Any = "cpu",
    ) -> None:
        super().__init__((asker, *others))
        self.matches = matches.clamp_min(0).to(device)
        self.living = (matches >= 0).any(0).nonzero().flatten().to(device)
        self.mine = tables[0].part(self.living)
        chosen = self.matches[:, self.living]
        self.theirs = [table.part(match) for table, match in zip(tables[1:], chosen)]
        self.sums = torch.zeros(*self.matches.shape, 5, dtype=torch.float64, device=device)

    def update(self, batch: Batch) -> None:
        """Add a batch of positions."""
        asker, *others = self.blocks(batch)
        self.count += len(asker.values)
        for start in range(0, len(self.living), NEURONS_AT_ONCE):
            part = slice(start, start + NEURONS_AT_ONCE)
            living = self.living[part]
            mine = self.mine.rank(_columns(asker.values, living), part) - 0.5
            for model, (block, table) in enumerate(zip(others, self.theirs)):
                values = _columns(block.values, self.matches[model, living])
                theirs = table.rank(values, part) - 0.5
                terms = (mine, theirs, mine * mine, theirs * theirs, mine * theirs)
                self.sums[model, living] += torch.stack([term.sum(1) for term in terms], 1).double()

    def result(self) -> Float[np.ndarray, "models neurons"]:
        """ρ of the ranks; NaN where either does not vary."""
        return np.stack([rho(float(max(self.count, 1)), sums.T) for sums in self.sums.cpu().numpy()])


def _columns(values: Float[Tensor, "tokens neurons"], chosen: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen tokens"]:
    return values.index_select(1, chosen).float().T.contiguous()
