"""The detail pass: on held-out rows, how sure is each best match?

Rows that did not choose the matches are read once more.  For each asker and its best match only five sums are kept,
for each of at most 20 stretches of rows.  From them:

- `corr_heldout`, the match's ρ on those rows, free of the bias of having been chosen as the maximum;
- its interval (`intervals`): a jackknife that leaves out one stretch at a time;
- how many stretches carry it.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.statistics import Accumulator, Batch, Jackknifed, Named, first_non_finite


class PairedMoments(Accumulator):
    """Σa, Σb, Σa², Σb², Σab of every neuron a and its match b, per held-out stretch (a batch's shard number).

    `match` holds each of the asker's neurons' place in the other model, −1 for none.
    """

    TENSORS = ("match", "counts", "sums")
    SAME: ClassVar[dict[str, str]] = {"match": "matches"}

    def __init__(self, asker: Named, other: Named, match: Tensor, stretches: int, *, device: Any = "cpu") -> None:
        super().__init__((asker, other))
        self.match = match.clamp_min(0).to(device)
        self.counts = torch.zeros(stretches, dtype=torch.int64)
        self.sums = torch.zeros(stretches, 5, len(match), dtype=torch.float64, device=device)

    def update(self, batch: Batch) -> None:
        """Add a batch of positions to its stretch."""
        asker, other = self.blocks(batch)
        mine, theirs = asker.values.float(), other.values.index_select(1, self.match).float()
        self.count += len(mine)
        self.counts[batch.shard] += len(mine)
        terms = (mine, theirs, mine * mine, theirs * theirs, mine * theirs)
        self.sums[batch.shard] += torch.stack([term.sum(0) for term in terms]).double()

    def non_finite(self) -> tuple[str, int] | None:
        """The first asker or match in which a NaN or infinity was seen."""
        ours, theirs = self.sums[:, [0, 2]].sum((0, 1)), self.sums[:, [1, 3]].sum((0, 1))
        bad = first_non_finite(self.reads[1].source, theirs)
        return first_non_finite(self.reads[0].source, ours) or (bad and (bad[0], int(self.match[bad[1]])))

    def result(self) -> "HeldOut":
        """Correlations on all stretches and on all but each one, and how many stretches carry them."""
        counts, sums = self.counts.numpy(), self.sums.cpu().numpy()
        total, (a, b, aa, bb, _) = max(counts.sum(), 1), sums.sum(0)
        variances = np.stack([aa / total - (a / total) ** 2, bb / total - (b / total) ** 2]).clip(0)
        return HeldOut(Jackknifed.of(rho, counts, sums), carrying_stretches(counts, sums), variances)


@dataclass(frozen=True)
class HeldOut:
    """ρ of every neuron with its match on held-out rows, how many stretches of them carry it, the variances of both."""

    corr: Jackknifed
    stretches: Float[np.ndarray, " neurons"]
    variances: Float[np.ndarray, "2 neurons"]

    def times(self, signs: Float[np.ndarray, " neurons"]) -> "HeldOut":
        """ρ times the sign that it had on the rows that chose (`Comparison.signs`): what speaks for the match."""
        return HeldOut(self.corr.map(lambda corr: corr * signs), self.stretches, self.variances)


def rho(count: float, sums: Float[np.ndarray, "5 neurons"]) -> Float[np.ndarray, " neurons"]:
    """ρ from Σa, Σb, Σa², Σb², Σab; NaN where either does not vary."""
    a, b, aa, bb, ab = sums
    spread = np.clip(aa - a * a / count, 0, None) * np.clip(bb - b * b / count, 0, None)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 0, np.clip((ab - a * b / count) / np.sqrt(spread), -1, 1), np.nan)


def carrying_stretches(
    counts: Int[np.ndarray, " stretches"], sums: Float[np.ndarray, "stretches 5 neurons"]
) -> Float[np.ndarray, " neurons"]:
    """How many stretches carry a covariance: (Σ|c|)² / Σc², c a stretch's part of Σ(a−ā)(b−b̄).

    1 where one stretch has all of it, their number where each has as much.
    """
    total = max(counts.sum(), 1)
    a, b = (sums[:, n].sum(0) / total for n in (0, 1))
    parts = np.abs(sums[:, 4] - a * sums[:, 1] - b * sums[:, 0] + counts[:, None] * a * b)
    with np.errstate(invalid="ignore"):
        return np.asarray(parts.sum(0) ** 2 / (parts**2).sum(0))
