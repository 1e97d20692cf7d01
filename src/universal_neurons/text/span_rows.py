"""Documents to rows of the same units for several tokenizers: joined, cut where all of them fit.

1. Every document is tokenised whole by every tokenizer and cut into units (`spans.py`).
2. Documents of one subset are joined, each tokenizer's EOS between them, as `tokens.py` joins them.
3. A row takes units as long as each tokenizer's tokens fit in it.  So nothing is tokenised again, and for one tokenizer
   twice the rows are those of `pack`.
4. A unit that fits in no row is left out, and the text goes on in the next row.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from universal_neurons.errors import TokenizerError
from universal_neurons.text.byte_ranges import ByteReader, JoinedTexts
from universal_neurons.text.records import Document
from universal_neurons.text.span_fit import SpanFit
from universal_neurons.text.spans import Units, Why, shared_units
from universal_neurons.text.tokens import batches_of


class Stretch(NamedTuple):
    """Text of one subset: its bytes, its units (whose ranges count within these bytes), each tokenizer's ids."""

    text: UInt8[np.ndarray, " bytes"]
    units: Units
    ids: tuple[Int[np.ndarray, " tokens"], ...]


def stretches_of(
    documents: Iterable[Document], readers: Sequence[ByteReader], ends: Sequence[int], min_characters: int
) -> Iterator[tuple[str, Stretch]]:
    """Subsets, and the documents that follow each other in them, those that end with EOS behind them."""
    for batch in batches_of(documents, min_characters):
        if isinstance(batch[0].content, list):
            raise TokenizerError(
                "the text is tokens already, and the models' tokenizers differ",
                wanted="text, which every tokenizer can read",
                fix="name the column of the text with --text-column",
            )
        for subset, of_subset in groupby(batch, lambda document: document.subset):
            yield subset, _stretch(list(of_subset), readers, ends)


def _stretch(documents: Sequence[Document], readers: Sequence[ByteReader], ends: Sequence[int]) -> Stretch:
    contents = [str(document.content) for document in documents]
    full = np.array([bool(content) for content in contents])
    texts = JoinedTexts([content for content in contents if content])
    tokens = [reader.read(texts) for reader in readers]
    units, unit_ends = shared_units(texts, readers, tokens)
    ending = np.array([document.ends for document in documents])
    after = np.cumsum(full)[ending]  # how many texts stand before each end
    unit_ends = np.concatenate([[0], unit_ends])[after]
    ids = [np.insert(one.ids, np.concatenate([[0], one.ends])[after], eos) for one, eos in zip(tokens, ends)]
    return Stretch(texts.bytes, _with_joints(units, unit_ends, texts.first_byte[after]), tuple(ids))


def _with_joints(units: Units, places: np.ndarray, at: np.ndarray) -> Units:
    """Units with a joint, one token of each tokenizer and no text, before those of some numbers."""
    return Units(
        np.insert(units.start, places, at),
        np.insert(units.stop, places, at),
        np.insert(units.sizes, places, 1, axis=0),
        np.insert(units.why, places, Why.JOINT, axis=0),
    )


def span_rows(
    stretches: Iterable[tuple[str, Stretch]], width: int, n_tokenizers: int, fit: SpanFit
) -> Iterator[tuple[str, Stretch]]:
    """Rows of at most `width` tokens of every tokenizer, each with its subset; `fit` is told what fits in none."""
    waiting: dict[str, _Waiting] = {}
    for subset, stretch in stretches:
        mine = waiting.setdefault(subset, _Waiting(n_tokenizers, width))
        mine.add(stretch)
        yield from ((subset, row) for row in mine.rows(fit))
    for subset, mine in waiting.items():
        yield from ((subset, row) for row in mine.rows(fit, last=True))


class _Waiting:
    """Text of one subset that waits to become rows."""

    def __init__(self, n_tokenizers: int, width: int) -> None:
        self.width = width
        self.stretches: list[Stretch] = []
        self.tokens = np.zeros(n_tokenizers, np.int64)

    def add(self, stretch: Stretch) -> None:
        self.stretches.append(stretch)
        self.tokens += stretch.units.sizes.sum(0)

    def rows(self, fit: SpanFit, *, last: bool = False) -> Iterator[Stretch]:
        """The rows that are full; at the `last`, what remains too."""
        if not self.stretches or (not last and (self.tokens < self.width).all()):
            return
        whole = _joined(self.stretches)
        sizes = whole.units.sizes
        sums = np.concatenate([np.zeros((1, sizes.shape[1]), np.int64), np.cumsum(sizes, 0)])
        too_long = np.flatnonzero((sizes > self.width).any(1))
        start = 0
        while start < len(sizes):
            obstacle = np.searchsorted(too_long, start)
            limit = int(too_long[obstacle]) if obstacle < len(too_long) else len(sizes)
            stop = min(limit, min(_reach(column, start, self.width) for column in sums.T))
            if stop == len(sizes) and not last and (sums[stop] - sums[start] < self.width).all():
                break
            if stop > start:
                yield _part(whole, sums, start, stop)
            start = stop
            if start == limit < len(sizes):
                fit.add_too_long(int(whole.units.stop[start] - whole.units.start[start]))
                start += 1
        rest = _part(whole, sums, start, len(sizes))
        self.stretches, self.tokens = [rest], rest.units.sizes.sum(0)


def _reach(sums: np.ndarray, start: int, width: int) -> int:
    """How far units go from `start` until one tokenizer's tokens fill `width`, or the next unit would not fit."""
    end = int(np.searchsorted(sums, sums[start] + width))
    return end if end < len(sums) and sums[end] == sums[start] + width else end - 1


def _joined(stretches: Sequence[Stretch]) -> Stretch:
    if len(stretches) == 1:
        return stretches[0]
    shifts = np.cumsum([0, *(len(stretch.text) for stretch in stretches[:-1])])
    units = Units(
        np.concatenate([stretch.units.start + shift for stretch, shift in zip(stretches, shifts)]),
        np.concatenate([stretch.units.stop + shift for stretch, shift in zip(stretches, shifts)]),
        np.concatenate([stretch.units.sizes for stretch in stretches]),
        np.concatenate([stretch.units.why for stretch in stretches]),
    )
    ids = tuple(np.concatenate(parts) for parts in zip(*(stretch.ids for stretch in stretches)))
    return Stretch(np.concatenate([stretch.text for stretch in stretches]), units, ids)


def _part(whole: Stretch, sums: np.ndarray, start: int, stop: int) -> Stretch:
    """Some units of a stretch, with their text and ids."""
    units = whole.units.part(start, stop)
    first, last = (int(units.start[0]), int(units.stop[-1])) if len(units) else (0, 0)
    moved = Units(units.start - first, units.stop - first, units.sizes, units.why)
    ids = tuple(of_one[a:b] for of_one, a, b in zip(whole.ids, sums[start], sums[stop]))
    return Stretch(whole.text[first:last], moved, ids)
