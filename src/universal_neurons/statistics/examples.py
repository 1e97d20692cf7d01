"""Where a neuron fires: its highest activations with their context, and some from each of a few bands below.

1. Of every row a neuron's highest activation is a candidate for its top examples: one per row, so that repeated text
   does not fill the list.
2. Of every row one position, chosen by a hash of the row's number, is a candidate for the band its value falls into.
   Bands are cut at quantiles of the provisional rows; a band keeps the candidates with the smallest hashes, so that
   any split of the tokens keeps the same ones.
3. Of a gated neuron, whose sign is arbitrary, a row's lowest activation is a candidate too: for its bottom examples.
4. Few candidates beat the worst that is kept: only these are sorted, among the kept ones of their neuron and band.
5. What enters brings the activations around it, so nothing is read twice.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.statistics.bands import AFTER, BANDS, BEFORE, WINDOW
from universal_neurons.statistics.contract import Accumulator, Batch, Block, seed_of
from universal_neurons.statistics.keys import BY_POSITION, BY_ROW, Named

NOWHERE = -1
ROWS_AT_ONCE = 32  # whose candidates are sorted together: what the first ones leave worst, few later ones beat


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
    lowest.

    `WINDOWS` names the tensors that hold activations around each example, whose last dimensions are the examples'.
    """

    WINDOWS: ClassVar[tuple[str, ...]] = ("window",)
    TENSORS: ClassVar[tuple[str, ...]] = ("score", "row", "position", "window")

    def __init__(
        self, model: Named, n_neurons: int, *, k: int = 5, seed: int = 0, both_tails: bool = False, device: Any = "cpu"
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
        block, *others = self.blocks(batch)
        rows = RowsOfBatch.of(batch, self.seed)
        self.count += len(rows.position)
        for start in range(0, len(rows.number), ROWS_AT_ONCE):
            found = self._candidates(block, rows, start)
            if len(found.row):
                entered, slots = self._enter(found, rows)
                at = self._places(entered, block.values, rows)
                self.position.view(-1)[slots] = rows.position[at].int()
                self._fill(slots, at, entered.neuron, rows, [block, *others])

    def _candidates(self, block: Block, rows: "RowsOfBatch", start: int) -> "Entries":
        """What is better than the worst that is kept, among some rows."""
        part = slice(start, start + ROWS_AT_ONCE)
        assert block.bounds is not None
        segments = rows.segments(block.values, part)
        sampled = block.values[rows.sampled[part]].float()
        keys = [torch.stack([segment.amax(0) for segment in segments]).float()]
        for low, high in pairwise(block.bounds):
            inside = (sampled >= low) & (sampled < high)
            keys.append(torch.where(inside, -rows.draw[part, None], -torch.inf))
        if self.both_tails:
            keys.append(-torch.stack([segment.amin(0) for segment in segments]).float())
        found = [self._better(band, key, start) for band, key in enumerate(keys)]
        return Entries(*(torch.cat(parts) for parts in zip(*found)))

    def _better(self, band: int, key: Float[Tensor, "rows neurons"], start: int) -> tuple[Tensor, ...]:
        """Candidates of a band one by one: band, neuron, key and row."""
        row, neuron = torch.nonzero((key >= self.score[band, -1]) & (key > -torch.inf), as_tuple=True)
        return torch.full_like(row, band), neuron, key[row, neuron], row + start

    def _enter(self, found: "Entries", rows: "RowsOfBatch") -> tuple["Entries", Int[Tensor, " entered"]]:
        """Keep the k best of what is there and the candidates: those that entered, and their slots.

        A slot is the flat number of an example (band, rank, neuron).
        """
        n = self.score.shape[2]
        groups, member, counts = torch.unique(found.band * n + found.neuron, return_inverse=True, return_counts=True)
        every = torch.arange(len(groups), device=groups.device)
        first = (groups // n) * self.k * n + groups % n
        slots = (first[:, None] + n * torch.arange(self.k, device=first.device)).flatten()
        key = torch.cat([self.score.view(-1)[slots], found.key])
        row = torch.cat([self.row.view(-1)[slots], rows.number[found.row].int()])
        group = torch.cat([every.repeat_interleave(self.k), member])
        order = row.argsort(stable=True)
        order = order[key[order].argsort(descending=True, stable=True)]
        order = order[group[order].argsort(stable=True)]
        ends = (counts + self.k).cumsum(0)
        starts = (ends - counts - self.k).repeat_interleave(counts + self.k)
        kept = order[torch.arange(len(order), device=order.device) - starts < self.k]
        self.score.view(-1)[slots], self.row.view(-1)[slots] = key[kept], row[kept]
        new = kept >= len(slots)
        moved = ~new & (kept != torch.arange(len(kept), device=kept.device))
        self._move(slots[kept[moved]], slots[moved])
        return found.part(kept[new] - len(slots)), slots[new]

    def _move(self, old: Int[Tensor, " moved"], new: Int[Tensor, " moved"]) -> None:
        """Positions and windows go from their slots to others."""
        for name in ("position", *self.WINDOWS):
            of_slots = getattr(self, name).view(-1, self.score.numel())
            of_slots[:, new] = of_slots[:, old]

    def _places(self, entered: "Entries", values: Tensor, rows: "RowsOfBatch") -> Int[Tensor, " entered"]:
        """Each one's place in the batch: the row's sampled one, or that of its highest or lowest value."""
        at = rows.sampled[entered.row]
        tails: list[tuple[int, Callable[..., Tensor]]] = [(0, torch.argmax)]
        if self.both_tails:
            tails.append((len(BANDS), torch.argmin))
        for band, extreme in tails:
            of_band = (entered.band == band).nonzero().flatten()
            of_band = of_band[entered.row[of_band].argsort(stable=True)]
            counts = entered.row[of_band].bincount(minlength=len(rows.number)).tolist()
            for row, which in enumerate(of_band.split(counts)):
                if len(which):
                    (segment,) = rows.segments(values, slice(row, row + 1))
                    at[which] = rows.starts[row] + extreme(segment.index_select(1, entered.neuron[which]), dim=0)
        return at

    def _fill(self, slots: Tensor, at: Tensor, neuron: Tensor, rows: "RowsOfBatch", blocks: list[Block]) -> None:
        """The windows of what entered from this batch."""
        shown = list(self._shown(neuron, blocks))
        row, position = rows.local[at], rows.position[at]
        for step, offset in enumerate(range(-BEFORE, AFTER + 1)):
            place = rows.where[row, position + offset]  # before the start: the unused tail
            for window, block, column in shown:
                assert block.mean is not None
                column_at = column.clamp_min(0)
                values = block.values[place.clamp_min(0), column_at].float() + block.mean[column_at].float()
                window[step].view(-1)[slots] = values.where((place >= 0) & (column >= 0), torch.nan)

    def _shown(self, neuron: Tensor, blocks: list[Block]) -> Iterator[tuple[Tensor, Block, Tensor]]:
        """What is shown of examples of some neurons: where it goes, from which block, and its columns (−1: nothing)."""
        yield self.window, blocks[0], neuron

    def merge(self, other: "Accumulator") -> None:
        """Keep the best of both; the shards of both must differ."""
        assert isinstance(other, TopExamples)
        self._require_kin(other)
        self.basis = self.basis or other.basis
        self.count += other.count
        key = torch.cat([self.score, other.score], 1)
        row = torch.cat([self.row, other.row], 1)
        order = ordered(key, row)[:, : self.k]
        self.score, self.row = key.gather(1, order), row.gather(1, order)
        for name in ("position", *self.WINDOWS):
            both = torch.cat([getattr(self, name), getattr(other, name)], -2)
            setattr(self, name, both.gather(-2, order.expand(*both.shape[:-3], *order.shape)))

    def result(self) -> Examples:
        """The examples so far."""
        return Examples(self.row, self.position, self.window)


@dataclass(frozen=True)
class Entries:
    """Candidates one by one: their band, neuron, key (the highest is the best) and which row of the batch they are."""

    band: Int[Tensor, " candidates"]
    neuron: Int[Tensor, " candidates"]
    key: Float[Tensor, " candidates"]
    row: Int[Tensor, " candidates"]

    def part(self, which: Int[Tensor, " part"]) -> "Entries":
        """Some of them."""
        return Entries(*(values[which] for values in (self.band, self.neuron, self.key, self.row)))


@dataclass(frozen=True)
class RowsOfBatch:
    """The rows of a batch: their numbers, starts and lengths; of every place its row among them and its position.

    `sampled` is the place in the batch that a hash of the row's number chooses, `draw` a number (0 to 1) from the hash.
    """

    number: Int[Tensor, " rows"]
    starts: Int[Tensor, " rows"]
    lengths: list[int]
    local: Int[Tensor, " places"]
    position: Int[Tensor, " places"]
    sampled: Int[Tensor, " rows"]
    draw: Float[Tensor, " rows"]

    @classmethod
    def of(cls, batch: Batch, seed: int) -> "RowsOfBatch":
        """Those of a batch, whose positions are row after row."""
        row, position = batch.index[BY_ROW], batch.index[BY_POSITION]
        number, local, counts = torch.unique_consecutive(row, return_inverse=True, return_counts=True)
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)[:-1]])
        lengths = counts.tolist()
        hashes = [seed_of("example", seed, one) for one in number.tolist()]
        sampled = starts + torch.tensor([h % n for h, n in zip(hashes, lengths)], device=starts.device)
        draw = torch.tensor([(h >> 24) / 2.0**39 for h in hashes], device=starts.device)
        return cls(number, starts, lengths, local, position, sampled, draw)

    def segments(self, values: Float[Tensor, "places neurons"], part: slice) -> tuple[Tensor, ...]:
        """The values of some rows, row by row."""
        lengths = self.lengths[part]
        start = sum(self.lengths[: part.start])
        return values[start : start + sum(lengths)].split(lengths)

    @cached_property
    def where(self) -> Int[Tensor, "rows positions"]:
        """The place of every position, −1 where it is not counted, and in a tail as long as a window."""
        shape = (len(self.number), int(self.position.max()) + 1 + WINDOW)
        where = torch.full(shape, NOWHERE, device=self.position.device)
        where[self.local, self.position] = torch.arange(len(self.local), device=where.device)
        return where


def ordered(key: Float[Tensor, "bands many neurons"], row: Int[Tensor, "bands many neurons"]) -> Tensor:
    """The order of candidates: highest key first, the lower row first among equals."""
    by_row = row.argsort(dim=1, stable=True)
    return by_row.gather(1, key.gather(1, by_row).argsort(dim=1, descending=True, stable=True))
