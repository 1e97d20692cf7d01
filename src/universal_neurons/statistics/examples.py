"""Where a neuron fires: its highest activations with their context, and some from each of a few bands below.

1. Of every row a neuron's highest activation is a candidate for its top examples: one per row, so that repeated text
   does not fill the list.
2. Of every row one position, chosen by a hash of the row's number, is a candidate for the band its value falls into.
   Bands are cut at quantiles of the provisional rows; a band keeps the candidates with the smallest hashes, so that
   any split of the tokens keeps the same ones.
3. Of a gated neuron, whose sign is arbitrary, a row's lowest activation is a candidate too: for its bottom examples.
4. What enters brings the activations around it, so nothing is read twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.statistics.contract import Accumulator, Batch, seed_of
from universal_neurons.statistics.keys import BY_POSITION, BY_ROW

QUANTILES = (0.5, 0.75, 0.9, 0.97, 0.995)
BANDS = ("top", *(f"{low:g}–{high:g}" for low, high in pairwise(QUANTILES)))
BOTTOM = "bottom"  # the lowest, after BANDS, where both tails are kept
BEFORE, AFTER = 16, 7
WINDOW = BEFORE + 1 + AFTER
NOWHERE = -1


@dataclass(frozen=True)
class Examples:
    """The examples of every neuron: by band (BANDS, then `BOTTOM` where both tails are kept), rank and neuron.

    `row` is −1 where there is none; `window` holds the activations from `BEFORE` tokens before the example to `AFTER`
    after, NaN where the row ends or a position is not counted.
    """

    row: Int[Tensor, "bands k neurons"]
    position: Int[Tensor, "bands k neurons"]
    window: Float[Tensor, "window bands k neurons"]


class TopExamples(Accumulator):
    """The k highest activations of every neuron, one per row, and k from each quantile band; `both_tails` adds the k
    lowest."""

    TENSORS = ("score", "row", "position", "window")

    def __init__(
        self, model: str, n_neurons: int, *, k: int = 5, seed: int = 0, both_tails: bool = False, device: Any = "cpu"
    ) -> None:
        super().__init__((model,), None)
        self.k, self.seed, self.both_tails = k, seed, both_tails
        shape = (len(BANDS) + both_tails, k, n_neurons)
        self.score = torch.full(shape, -torch.inf, device=device)
        self.row = torch.full(shape, NOWHERE, dtype=torch.int32, device=device)
        self.position = torch.full(shape, NOWHERE, dtype=torch.int32, device=device)
        self.window = torch.full((WINDOW, *shape), torch.nan, device=device)

    def update(self, batch: Batch) -> None:
        """Add the candidates of a batch; a row must not be split over batches."""
        (block,) = self.blocks(batch)
        assert block.bounds is not None
        assert block.mean is not None
        row, position = batch.index[BY_ROW], batch.index[BY_POSITION]
        self.count += len(row)
        rows, local, lengths = torch.unique_consecutive(row, return_inverse=True, return_counts=True)
        starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)[:-1]])
        segments = block.values.split(lengths.tolist())
        top, top_at = _stacked([segment.max(0) for segment in segments], starts)
        hashes = [seed_of("example", self.seed, int(number)) for number in rows]
        sampled_at = starts + torch.tensor([h % n for h, n in zip(hashes, lengths.tolist())], device=starts.device)
        sampled = block.values[sampled_at].float()
        draw = torch.tensor([(h >> 24) / 2.0**39 for h in hashes], device=starts.device)
        keys, ats = [top], [top_at]
        for low, high in pairwise(block.bounds):
            inside = (sampled >= low) & (sampled < high)
            keys.append(torch.where(inside, -draw[:, None], -torch.inf))
            ats.append(sampled_at[:, None].expand_as(sampled))
        if self.both_tails:
            bottom, bottom_at = _stacked([segment.min(0) for segment in segments], starts)
            keys.append(-bottom)
            ats.append(bottom_at)
        entered = self._merge(torch.stack(keys), rows[:, None].expand_as(top), position, torch.stack(ats))
        self._fill(entered, block.values, local, position, block.mean)

    def _merge(self, key: Tensor, row: Tensor, position: Tensor, at: Tensor) -> Tensor:
        """Keep the k best of what is there and the candidates; returns each kept one's place in the batch, or −1."""
        old = torch.full_like(self.row, NOWHERE, dtype=torch.int64)
        keys = torch.cat([self.score, key], 1)
        rows = torch.cat([self.row, row.int().expand_as(key)], 1)
        order = ordered(keys, rows)[:, : self.k]
        self.score = keys.gather(1, order)
        taken = self.score > -torch.inf
        self.row = rows.gather(1, order).where(taken, NOWHERE)
        positions = torch.cat([self.position, position[at].int()], 1)
        self.position = positions.gather(1, order).where(taken, NOWHERE)
        self.window = self.window.gather(2, order.clamp_max(self.k - 1).expand_as(self.window))
        return torch.cat([old, at], 1).gather(1, order).where(taken, NOWHERE)

    def _fill(self, at: Tensor, values: Tensor, row: Tensor, position: Tensor, mean: Tensor) -> None:
        """The windows of what entered from this batch."""
        band, rank, neuron = torch.nonzero(at >= 0, as_tuple=True)
        centre = at[band, rank, neuron]
        where = torch.full((int(row.max()) + 1, int(position.max()) + 1 + WINDOW), NOWHERE, device=at.device)
        where[row, position] = torch.arange(len(row), device=at.device)
        for step, offset in enumerate(range(-BEFORE, AFTER + 1)):
            place = where[row[centre], position[centre] + offset]  # before the start: the unused tail
            shown = values[place.clamp_min(0), neuron].float() + mean[neuron].float()
            self.window[step, band, rank, neuron] = shown.where(place >= 0, torch.nan)

    def merge(self, other: "Accumulator") -> None:
        """Keep the best of both; the shards of both must differ."""
        assert isinstance(other, TopExamples)
        self._require_kin(other)
        self.basis = self.basis or other.basis
        self.count += other.count
        key = torch.cat([self.score, other.score], 1)
        row = torch.cat([self.row, other.row], 1)
        order = ordered(key, row)[:, : self.k]
        position = torch.cat([self.position, other.position], 1)
        window = torch.cat([self.window, other.window], 2)
        self.score, self.row, self.position = (t.gather(1, order) for t in (key, row, position))
        self.window = window.gather(2, order.expand(WINDOW, *order.shape))

    def result(self) -> Examples:
        """The examples so far."""
        return Examples(self.row, self.position, self.window)


def _stacked(ranked: Sequence[Any], starts: Int[Tensor, " rows"]) -> tuple[Tensor, Tensor]:
    """One value of every row, and its place in the batch."""
    at = torch.stack([one.indices for one in ranked]) + starts[:, None]
    return torch.stack([one.values for one in ranked]).float(), at


def ordered(key: Float[Tensor, "bands many neurons"], row: Int[Tensor, "bands many neurons"]) -> Tensor:
    """The order of candidates: highest key first, the lower row first among equals."""
    by_row = row.argsort(dim=1, stable=True)
    return by_row.gather(1, key.gather(1, by_row).argsort(dim=1, descending=True, stable=True))
