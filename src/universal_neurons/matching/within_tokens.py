"""How much of a match is the vocabulary: ρ of two neurons within single tokens.

Neurons that fire on the same words correlate whatever else they do.  Within one token only what differs from one of its
occurrences to the next is left.  Of the most frequent tokens, products of deviations from each token's own mean are
added up (pooled; a token that occurs n times has n − 1 degrees of freedom):

    ρ = Σ_t Σ_{i∈t} (a_i − ā_t)(b_i − b̄_t) / √(Σ_t Σ (a_i − ā_t)² · Σ_t Σ (b_i − b̄_t)²)
"""

from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.statistics import BY_TOKEN, Accumulator, Batch, Block, GroupedSums, Key
from universal_neurons.text import Rows

MOST_TOKENS = 1024
SMALLEST = 1e-12  # of what two neurons vary altogether: less within tokens is rounding


class FrequentTokens:
    """The most frequent of the tokens counted in some rows, as what positions are sorted by (`BY_TOKEN`).

    A position's number is that of its token among the frequent ones, or how many these are.  `coverage` is the share of
    the counted positions that a frequent token takes.
    """

    def __init__(self, tokens: Rows, rows: Int[np.ndarray, " rows"], most: int = MOST_TOKENS) -> None:
        self.tokens = tokens
        counted = tokens.ids(rows)[tokens.mask(rows)]
        known, counts = np.unique(counted, return_counts=True)
        order = np.lexsort((known, -counts))[:most]
        self.ids = np.sort(known[order])
        self.coverage = float(counts[order].sum() / max(len(counted), 1))

    def __len__(self) -> int:
        return len(self.ids)

    def describe(self) -> dict[str, float | int]:
        """What the manifest keeps: how many tokens, and which share of the positions they take."""
        return {"tokens": len(self), "coverage": round(self.coverage, 4)}

    def batch(
        self, rows: Int[np.ndarray, " rows"], keep: Int[np.ndarray, " positions"]
    ) -> tuple[dict[Key, Block], dict[Key, Tensor]]:
        """No blocks; of every position the number of its token."""
        ids = self.tokens.ids(rows).ravel()[keep]
        place = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        number = np.where(self.ids[place] == ids, place, len(self.ids))
        return {}, {BY_TOKEN: torch.from_numpy(number)}


class WithinTokens(Accumulator):
    """Σa², Σb², Σab of every neuron a and its match b, over the positions of frequent tokens."""

    TENSORS = ("match", "sums")
    SAME: ClassVar[dict[str, str]] = {"match": "matches"}

    def __init__(self, asker: str, other: str, match: Tensor, tokens: int, *, device: Any = "cpu") -> None:
        super().__init__((asker, other))
        self.match = match.clamp_min(0).to(device)
        self.tokens = tokens
        self.sums = torch.zeros(3, len(match), dtype=torch.float64, device=device)

    def update(self, batch: Batch) -> None:
        """Add a batch of positions."""
        asker, other = self.blocks(batch)
        often = (batch.index[BY_TOKEN] < self.tokens).nonzero().flatten()
        self.count += len(often)
        mine = asker.values.index_select(0, often).float()
        theirs = other.values.index_select(0, often).index_select(1, self.match).float()
        self.sums += torch.stack([t.sum(0) for t in (mine * mine, theirs * theirs, mine * theirs)]).double()

    def corr(self, asker: GroupedSums, other: GroupedSums) -> Float[np.ndarray, " neurons"]:
        """ρ within tokens, from the sums by token of both models; NaN where either does not vary there."""
        counts = asker.counts[: self.tokens].double().clamp_min(1)[:, None]
        a, b = asker.sums[: self.tokens], other.sums[: self.tokens].index_select(1, self.match)
        means = torch.stack([(x * y / counts).sum(0) for x, y in ((a, a), (b, b), (a, b))])
        aa, bb, ab = (self.sums - means).cpu().numpy()
        spread = np.clip(aa, 0, None) * np.clip(bb, 0, None)
        varies = spread > SMALLEST * (self.sums[0] * self.sums[1]).cpu().numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(varies, np.clip(ab / np.sqrt(spread), -1, 1), np.nan)
