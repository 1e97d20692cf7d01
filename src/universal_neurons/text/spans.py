"""Spans: the stretches of text between two consecutive boundaries that all tokenizers share.

1. A boundary of a tokenizer is where the bytes of a token begin or end; a text's ends are boundaries of all.
2. The text between two consecutive boundaries of all tokenizers is a *unit*.  It is a **span** where each of them has a
   token; else it is left out, and `Why` says for whose sake.
3. Tokens that share a range (parts of one character) are one unit, unless all tokenizers split it alike: into tokens
   of the same strings.  Then each of them is a unit with the range of all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from jaxtyping import Bool, Int

from universal_neurons.models import named_errors
from universal_neurons.text.byte_ranges import ByteReader, JoinedTexts, Tokens


class Why(IntEnum):
    """What a tokenizer makes of a unit: tokens of text, or why there are none."""

    TEXT = 0
    SPECIAL = 1  # a special token is written there
    WHITE_SPACE = 2  # dropped: white space alone
    DROPPED = 3  # dropped: other text, such as control characters
    JOINT = 4  # no text: EOS between two documents


@dataclass(frozen=True)
class Units:
    """The units of some text, in order: their bytes, how many tokens of each tokenizer they hold, and `Why`s."""

    start: Int[np.ndarray, " units"]
    stop: Int[np.ndarray, " units"]
    sizes: Int[np.ndarray, "units tokenizers"]
    why: Int[np.ndarray, "units tokenizers"]

    def __len__(self) -> int:
        return len(self.start)

    @property
    def are_spans(self) -> Bool[np.ndarray, " units"]:
        """Which units are spans: those in which every tokenizer has tokens of text."""
        return (self.why == Why.TEXT).all(1)

    def part(self, start: int, stop: int) -> "Units":
        """The units from `start` up to `stop`."""
        return Units(*(column[start:stop] for column in (self.start, self.stop, self.sizes, self.why)))


def shared_units(
    texts: JoinedTexts, readers: Sequence[ByteReader], tokens: Sequence[Tokens]
) -> tuple[Units, Int[np.ndarray, " texts"]]:
    """The units of texts that each reader made tokens of, and how many there are up to each text's end."""
    shared = np.ones(len(texts.bytes) + 1, bool)
    for one in tokens:
        boundary = np.zeros(len(shared), bool)
        boundary[one.start] = boundary[one.stop] = boundary[texts.first_byte] = True
        shared &= boundary
    boundaries = np.flatnonzero(shared)
    start, stop = boundaries[:-1], boundaries[1:]
    white = texts.is_white(start, stop)
    places = [np.searchsorted(boundaries, one.start, "right") - 1 for one in tokens]
    sizes, why = [], []
    for one, place in zip(tokens, places):
        size = np.bincount(place, minlength=len(start))
        dropped = np.where(white, Why.WHITE_SPACE, Why.DROPPED)
        special = np.bincount(place[one.special], minlength=len(start)) > 0
        sizes.append(size)
        why.append(np.where(special, Why.SPECIAL, np.where(size > 0, Why.TEXT, dropped)))
    units = Units(start, stop, np.stack(sizes, 1), np.stack(why, 1).astype(np.int8))
    parts = _parts(units, readers, tokens, places)
    ends = np.searchsorted(start, texts.first_byte[1:])
    return _split(units, parts), np.concatenate([[0], np.cumsum(parts)])[ends]


def _parts(
    units: Units, readers: Sequence[ByteReader], tokens: Sequence[Tokens], places: Sequence[np.ndarray]
) -> Int[np.ndarray, " units"]:
    """Into how many each unit is to be split: as many as its tokens, if all tokenizers split its one range alike."""
    parts = np.ones(len(units), np.int64)
    candidates = units.are_spans & (units.sizes[:, 0] > 1) & (units.sizes == units.sizes[:, :1]).all(1)
    if not candidates.any():
        return parts
    firsts = [np.cumsum(units.sizes[:, n]) - units.sizes[:, n] for n in range(len(tokens))]
    whole = (tokens[0].start[firsts[0][candidates]], tokens[0].stop[firsts[0][candidates]])
    alike = np.ones(int(candidates.sum()), bool)
    number = np.cumsum(candidates) - 1
    for one, place in zip(tokens, places):
        mine = candidates[place]
        unit = number[place[mine]]
        same = (one.start[mine] == whole[0][unit]) & (one.stop[mine] == whole[1][unit])
        alike[unit[~same]] = False
    for unit in np.flatnonzero(candidates)[alike]:
        size = int(units.sizes[unit, 0])
        strings = [
            _strings(reader, one.ids[first[unit] : first[unit] + size])
            for reader, one, first in zip(readers, tokens, firsts)
        ]
        if all(string == strings[0] for string in strings):
            parts[unit] = size
    return parts


def _strings(reader: ByteReader, ids: Int[np.ndarray, " tokens"]) -> list[str]:
    """Tokens as they stand in the vocabulary."""
    with named_errors("its tokenizer cannot write its tokens"):
        return list(reader.tokenizer.convert_ids_to_tokens(ids.tolist()))


def _split(units: Units, parts: Int[np.ndarray, " units"]) -> Units:
    """Units, each as so many of one token."""
    start, stop, sizes, why = (
        np.repeat(column, parts, 0) for column in (units.start, units.stop, units.sizes, units.why)
    )
    sizes[np.repeat(parts, parts) > 1] = 1
    return Units(start, stop, sizes, why)
