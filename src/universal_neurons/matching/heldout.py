"""The detail pass: on held-out rows, how sure is each best match?

Rows that did not choose the matches are read once more.  For each asker and its best match only five sums are kept,
for each of at most 20 stretches of rows.  From them:

- `corr_heldout`, the match's ρ on those rows, free of the bias of having been chosen as the maximum;
- its 95 % interval: a jackknife that leaves out one stretch at a time, on atanh ρ, Student's t with G − 1 degrees;
- the interval of the excess: the jackknife of the mean of ρ over models, minus the baseline of the main pass, widened
  by the standard error of that baseline over its draws.

Where matches are by size (`correlation`), the excess takes a ρ times the sign that it had on the rows that chose.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from universal_neurons.errors import MergeError
from universal_neurons.matching.comparison import Comparison
from universal_neurons.statistics import Accumulator, Batch, first_non_finite, jackknife


class PairedMoments(Accumulator):
    """Σa, Σb, Σa², Σb², Σab of every neuron a and its match b, per held-out stretch (a batch's shard number).

    `match` holds each of the asker's neurons' place in the other model, −1 for none.
    """

    TENSORS = ("match", "counts", "sums")

    def __init__(self, asker: str, other: str, match: Tensor, stretches: int, *, device: Any = "cpu") -> None:
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

    def _merge_tensor(self, name: str, theirs: Tensor) -> None:
        if name != "match":
            super()._merge_tensor(name, theirs)
        elif not torch.equal(self.match, theirs):
            raise MergeError(f"cannot merge {self.key}", given="other matches", wanted="the same matches")

    def non_finite(self) -> tuple[str, int] | None:
        """The first asker or match in which a NaN or infinity was seen."""
        ours, theirs = self.sums[:, [0, 2]].sum((0, 1)), self.sums[:, [1, 3]].sum((0, 1))
        bad = first_non_finite(self.reads[1].source, theirs)
        return first_non_finite(self.reads[0].source, ours) or (bad and (bad[0], int(self.match[bad[1]])))

    def result(self) -> "HeldOut":
        """Correlations on all stretches and on all but each one."""
        counts, sums = self.counts.double().numpy(), self.sums.cpu().numpy()
        used = counts > 0
        if not used.any():
            nothing = np.full(sums.shape[2], np.nan)
            return HeldOut(nothing, nothing[None])
        counts, sums = counts[used], sums[used]
        without = np.stack([_rho(counts.sum() - n, sums.sum(0) - s) for n, s in zip(counts, sums)])
        return HeldOut(_rho(counts.sum(), sums.sum(0)), without)


@dataclass(frozen=True)
class HeldOut:
    """ρ of every neuron with its match on held-out rows, and with each stretch left out."""

    corr: Float[np.ndarray, " neurons"]
    without: Float[np.ndarray, "stretches neurons"]


def _rho(count: float, sums: Float[np.ndarray, "5 neurons"]) -> Float[np.ndarray, " neurons"]:
    a, b, aa, bb, ab = sums
    spread = np.clip(aa - a * a / count, 0, None) * np.clip(bb - b * b / count, 0, None)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 0, np.clip((ab - a * b / count) / np.sqrt(spread), -1, 1), np.nan)


def corr_interval(heldout: HeldOut, level: float = jackknife.LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Interval of ρ (see the module)."""
    limit = 1 - 1e-12
    z = np.arctanh(np.clip(heldout.corr, -limit, limit))
    reach = jackknife.reach(np.arctanh(np.clip(heldout.without, -limit, limit)), level)
    return np.tanh(z - reach), np.tanh(z + reach)


def excess_interval(
    heldout: Sequence[HeldOut], comparison: Comparison, level: float = jackknife.LEVEL
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The excess on held-out rows and its interval (see the module)."""
    centre = np.mean([h.corr * sign for h, sign in zip(heldout, comparison.signs)], 0) - comparison.baseline.mean(0)
    error = jackknife.standard_error(np.mean([h.without * sign for h, sign in zip(heldout, comparison.signs)], 0))
    draws = comparison.maxima.mean(1)
    draw_error = draws.std(0, ddof=1) / np.sqrt(len(draws))
    reach = jackknife.quantile(len(heldout[0].without), level) * np.sqrt(error**2 + draw_error**2)
    return centre, centre - reach, centre + reach
