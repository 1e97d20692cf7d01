"""The detail pass: on held-out rows, how sure is each best match?

Rows that did not choose the matches are read once more.  For each asker and its best match only five sums are kept,
for each of at most 20 stretches of rows.  From them:

- `corr_heldout`, the match's ρ on those rows, free of the bias of having been chosen as the maximum;
- its interval (`intervals`): a jackknife that leaves out one stretch at a time;
- how many stretches carry it;
- its ρ without the positions that are sinks of any model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.statistics import (
    Accumulator,
    Batch,
    Jackknifed,
    Key,
    Named,
    What,
    at_sinks,
    first_non_finite,
)


class PairedMoments(Accumulator):
    """Σa, Σb, Σa², Σb², Σab of every neuron a and its match b, per held-out stretch (a batch's shard number).

    `match` holds each of the asker's neurons' place in the other model, −1 for none.  Of `streams`, models whose norms
    the batches hold, the same sums are kept once more without the sinks: where a norm exceeds `factor`.
    """

    TENSORS = ("match", "counts", "sums", "count_without", "sums_without")
    SAME: ClassVar[dict[str, str]] = {"match": "matches"}

    def __init__(
        self,
        asker: Named,
        other: Named,
        match: Tensor,
        stretches: int,
        *,
        streams: Sequence[str] = (),
        factor: float = math.inf,
        device: Any = "cpu",
    ) -> None:
        super().__init__((asker, other, *(Key(model, What.STREAM) for model in streams)))
        self.match = match.clamp_min(0).to(device)
        self.factor = factor
        self.counts = torch.zeros(stretches, dtype=torch.int64)
        self.sums = torch.zeros(stretches, 5, len(match), dtype=torch.float64, device=device)
        self.count_without = torch.zeros((), dtype=torch.int64)
        self.sums_without = torch.zeros(5, len(match) if streams else 0, dtype=torch.float64, device=device)

    def update(self, batch: Batch) -> None:
        """Add a batch of positions to its stretch."""
        asker, other, *streams = self.blocks(batch)
        mine, theirs = asker.values.float(), other.values.index_select(1, self.match).float()
        self.count += len(mine)
        self.counts[batch.shard] += len(mine)
        sums = _sums(mine, theirs)
        self.sums[batch.shard] += sums
        if streams:
            kept = (~at_sinks(streams, self.factor)).nonzero().flatten()
            self.count_without += len(kept)
            if len(kept) < len(mine):  # in float64: sinks have moved the provisional means far from what is left
                sums = _sums(mine.index_select(0, kept).double(), theirs.index_select(0, kept).double())
            self.sums_without += sums

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
        without = None
        if len(self.reads) > 2:
            without = rho(float(self.count_without.clamp_min(1)), self.sums_without.cpu().numpy())
        return HeldOut(Jackknifed.of(rho, counts, sums), carrying_stretches(counts, sums), variances, without)


@dataclass(frozen=True)
class HeldOut:
    """ρ of every neuron with its match on held-out rows, how many stretches of them carry it, the variances of both.

    `without_sinks` is ρ without the positions that are sinks, None where the residual stream was not read.
    """

    corr: Jackknifed
    stretches: Float[np.ndarray, " neurons"]
    variances: Float[np.ndarray, "2 neurons"]
    without_sinks: Float[np.ndarray, " neurons"] | None = None

    def times(self, signs: Float[np.ndarray, " neurons"]) -> "HeldOut":
        """ρ times the sign that it had on the rows that chose (`Comparison.signs`): what speaks for the match."""
        without = None if self.without_sinks is None else self.without_sinks * signs
        return replace(self, corr=self.corr.map(lambda corr: corr * signs), without_sinks=without)


def _sums(mine: Float[Tensor, "tokens neurons"], theirs: Float[Tensor, "tokens neurons"]) -> Tensor:
    """Σa, Σb, Σa², Σb², Σab of a batch, in float64."""
    terms = (mine, theirs, mine * mine, theirs * theirs, mine * theirs)
    return torch.stack([term.sum(0) for term in terms]).double()


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
