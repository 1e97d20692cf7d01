"""The texts of some rows, and which bytes of them each position stands for.

1. Tokens spell bytes, which are laid one behind the other: a character that several tokens share is whole again.
2. Special tokens stand between texts: what follows EOS is another document.
3. The spans of a row have their places in its text.
4. A byte that is part of no character, where a row begins or ends within one, is read as U+FFFD.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from jaxtyping import Int

from universal_neurons.text.byte_ranges import byte_widths, sums
from universal_neurons.text.passages import Passages
from universal_neurons.text.tokens import Rows
from universal_neurons.text.vocabulary import Vocabulary

BROKEN = re.compile("[\udc80-\udcff]")  # bytes of no character, as `surrogateescape` writes them
REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class RowText:
    """A text in a row (its place among the rows asked for), and where in the row and in the text its positions are.

    `byte_of` says how many bytes stand before each character, and at its end how many there are; `start` and `stop`
    are each position's first byte and the one after its last.
    """

    row: int
    text: str
    byte_of: Int[np.ndarray, " ends"]
    places: Int[np.ndarray, " positions"]
    start: Int[np.ndarray, " positions"]
    stop: Int[np.ndarray, " positions"]


def texts_in(tokens: Rows, vocabulary: Vocabulary, rows: Int[np.ndarray, " rows"]) -> Iterator[RowText]:
    """The texts of rows of tokens or spans, one after the other; rows without text have none."""
    if isinstance(tokens, Passages):
        for number, row in enumerate(rows.tolist()):
            letters, ranges = tokens.text_of(row)
            if len(ranges):
                yield _read(number, letters, np.arange(len(ranges)), *ranges.T)
        return
    for number, (ids, length) in enumerate(zip(tokens.ids(rows), tokens.lengths[rows].tolist())):
        inside = np.flatnonzero(~vocabulary.special[ids[:length]])
        for places in np.split(inside, np.flatnonzero(np.diff(inside) > 1) + 1):
            pieces = [vocabulary.letters[token] for token in ids[places].tolist()]
            ends = np.fromiter(accumulate(map(len, pieces), initial=0), np.int64)
            if ends[-1]:
                yield _read(number, b"".join(pieces), places, ends[:-1], ends[1:])


def _read(row: int, letters: bytes, places: np.ndarray, start: np.ndarray, stop: np.ndarray) -> RowText:
    text = letters.decode("utf-8", "surrogateescape")
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    broken = (codes >= 0xDC80) & (codes <= 0xDCFF)
    byte_of = sums(np.where(broken, 1, byte_widths(codes)))
    return RowText(row, BROKEN.sub(REPLACEMENT, text), byte_of, places, start, stop)
