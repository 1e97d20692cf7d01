"""Which bytes of the text each token of a tokenizer stands for.

1. The tokenizer says between which characters a token stands; that becomes a range of UTF-8 bytes.
2. A byte-level tokenizer's tokens spell their own bytes.  They are laid one behind the other where the text is so
   spelled, but for a space that the tokenizer put in front.  A token whose bytes are not there (the text was
   normalised) keeps the range of step 1.
3. A range that is empty or trimmed takes the white space before it.
4. Tokens whose ranges overlap share their union: they are parts of one character.  Where they spell it byte by byte
   (byte fallback), each takes its own bytes.
5. A token without text (a space that the tokenizer put in front) shares the range of the next, else of the one before.

What lies between two ranges the tokenizer dropped.  Ranges that go backwards are refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt32

from universal_neurons.errors import TokenizerError
from universal_neurons.models import Placed, encode_with_places, require_places, spelling_of, tokenizer_digest

WHITE = np.array([chr(code).isspace() for code in range(0x3001)] + [False])
SPACE = ord(" ")
SHOWN = 40  # bytes of an example on either side


class JoinedTexts:
    """Some texts as one array of UTF-8 bytes; none of them is empty.

    `first_byte` is where each begins, and at its end where all end.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        assert all(texts)
        self.texts = texts
        joined = "".join(texts)
        codes = np.frombuffer(joined.encode("utf-32-le"), np.uint32)
        widths = byte_widths(codes)
        self.bytes = np.frombuffer(joined.encode(), np.uint8)
        self.byte_of = sums(widths)
        self.first_character = sums([len(text) for text in texts])
        self.first_byte = self.byte_of[self.first_character]
        white = np.repeat(WHITE[np.minimum(codes, len(WHITE) - 1)], widths)
        after = np.where(white, 0, np.arange(1, len(white) + 1))
        self.white_from = np.concatenate([[0], np.maximum.accumulate(after)])  # the white space up to each byte

    def is_white(self, start: Int[np.ndarray, " some"], stop: Int[np.ndarray, " some"]) -> Bool[np.ndarray, " some"]:
        """Which stretches of bytes are white space alone."""
        return self.white_from[stop] <= start


@dataclass(frozen=True)
class Tokens:
    """The tokens of `JoinedTexts` as one tokenizer makes them, each with its range of bytes.

    `special` marks those that stand for no text; `ends` says how many tokens there are up to each text's end.
    """

    ids: Int[np.ndarray, " tokens"]
    start: Int[np.ndarray, " tokens"]
    stop: Int[np.ndarray, " tokens"]
    special: Bool[np.ndarray, " tokens"]
    ends: Int[np.ndarray, " texts"]


class ByteReader:
    """A fast tokenizer that says which bytes its tokens stand for.  Raises `TokenizerError` for a slow one."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        require_places(tokenizer, name)
        self.tokenizer, self.name = tokenizer, name
        self.spelled, self.byte_level, self.special = spelling_of(tokenizer)
        self._lengths = np.array([-1 if spelled is None else len(spelled) for spelled in self.spelled], np.int64)
        self._letters = np.frombuffer(b"".join(filter(None, self.spelled)), np.uint8)
        self._first = sums(np.maximum(self._lengths, 0))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its vocabulary and merges."""
        return tokenizer_digest(self.tokenizer)

    def read(self, texts: JoinedTexts) -> Tokens:
        """Tokenise texts.  Raises `TokenizerError` where the ranges go backwards, with an example."""
        if not texts.texts:
            none = np.zeros(0, np.int64)
            return Tokens(none, none, none, none.astype(bool), none)
        placed = encode_with_places(self.tokenizer, texts.texts)
        counts = np.diff(placed.ends, prepend=0)
        text_of = np.repeat(np.arange(len(counts)), counts)
        ranges = texts.byte_of[placed.places + texts.first_character[text_of][:, None]]
        if self.byte_level and len(ranges):
            self._lay_out(placed, counts, texts, ranges)
        special = self.special[placed.ids]
        start, stop = _with_white_space(ranges[:, 0], ranges[:, 1], texts, text_of)
        full = np.flatnonzero(stop > start)
        self._require_order(start[full], stop[full], text_of[full], texts)
        self._share(placed.ids, full, start, stop, texts)
        alone = _fill(start, stop, full, text_of)
        start[alone] = stop[alone] = texts.first_byte[text_of[alone]]
        return Tokens(placed.ids, start, stop, special | alone, placed.ends)

    def _lay_out(self, placed: Placed, counts: np.ndarray, texts: JoinedTexts, ranges: np.ndarray) -> None:
        """Replace ranges by those of tokens that spell their bytes, one behind the other."""
        full = counts > 0
        first = (placed.ends - counts)[full]
        begin, wanted = texts.first_byte[:-1][full], np.diff(texts.first_byte)[full]
        lengths = self._lengths[placed.ids]
        skipped = np.zeros(len(lengths), np.int64)
        skipped[first] = (np.add.reduceat(lengths, first) == wanted + 1) & self._begins_with_space(placed.ids[first])
        spelled = self._spells(placed.ids, skipped, first, begin, wanted, texts)
        ends = np.cumsum(lengths - skipped)
        shift = np.repeat(begin - np.concatenate([[0], ends])[first], counts[full])
        laid = np.repeat(spelled, counts[full])
        ranges[laid, 0] = (ends - lengths + skipped + shift)[laid]
        ranges[laid, 1] = (ends + shift)[laid]
        if not spelled.all():
            letters = texts.bytes.tobytes()
            for text in np.flatnonzero(~spelled).tolist():
                mine = slice(first[text], first[text] + counts[full][text])
                own = slice(begin[text], begin[text] + wanted[text])
                ranges[mine] = self._walk(placed.ids[mine], ranges[mine] - own.start, letters[own]) + own.start

    def _begins_with_space(self, ids: np.ndarray) -> np.ndarray:
        lengths = self._lengths[ids]
        begins = np.zeros(len(ids), bool)
        begins[lengths > 0] = self._letters[self._first[ids[lengths > 0]]] == SPACE
        return begins

    def _spells(
        self,
        ids: np.ndarray,
        skipped: np.ndarray,
        first: np.ndarray,
        begin: np.ndarray,
        wanted: np.ndarray,
        texts: JoinedTexts,
    ) -> Bool[np.ndarray, " stretches"]:
        """Whether each stretch of tokens, that begins with token `first`, spells the `wanted` bytes from `begin` on.

        Of every token so many letters are `skipped`.
        """
        known = np.minimum.reduceat(self._lengths[ids], first) >= 0
        lengths = np.maximum(self._lengths[ids], 0) - skipped
        spelled = known & (np.add.reduceat(lengths, first) == wanted)
        stretch = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(ids))))
        mine = spelled[stretch]
        lengths = np.where(mine, lengths, 0)
        within = np.arange(int(lengths.sum())) - np.repeat(sums(lengths)[:-1], lengths)
        letters = self._letters[np.repeat(self._first[ids] + skipped, lengths) + within]
        before = sums(lengths)[:-1] - np.repeat(sums(lengths)[first], np.diff(np.append(first, len(ids))))
        there = texts.bytes[np.repeat(begin[stretch] + before, lengths) + within]
        spelled[np.repeat(stretch, lengths)[letters != there]] = False
        return spelled

    def _walk(self, ids: np.ndarray, ranges: np.ndarray, letters: bytes) -> np.ndarray:
        """The ranges in one text of tokens that do not all spell their bytes: some were normalised."""
        laid, at = [], 0
        following = [*ranges[1:, 0].tolist(), len(letters)]
        for token, (start, stop), after in zip(ids.tolist(), ranges.tolist(), following):
            spelled = self.spelled[token]
            place = None if spelled is None else _place(spelled, letters, at, (start, stop), after)
            laid.append(place or (start, stop))
            at = max(at, laid[-1][1])
        return np.array(laid)

    def _require_order(self, start: np.ndarray, stop: np.ndarray, text_of: np.ndarray, texts: JoinedTexts) -> None:
        back = ((np.diff(start) < 0) | (np.diff(stop) < 0)) & (np.diff(text_of) == 0)
        if back.any():
            number = int(np.flatnonzero(back)[0])
            shown = slice(max(0, int(start[number]) - SHOWN), int(stop[number]) + SHOWN)
            raise TokenizerError(
                f"{self.name}: its tokenizer's tokens go backwards in the text",
                given=f"bytes {start[number]}–{stop[number]}, then {start[number + 1]}–{stop[number + 1]}, "
                f"near {texts.bytes[shown].tobytes().decode(errors='replace')!r}",
                wanted="tokens in the order of the text",
                fix="leave the model out, or mend the pre-tokenizer and post-processor in tokenizer.json",
            )

    def _share(
        self, ids: np.ndarray, full: np.ndarray, start: np.ndarray, stop: np.ndarray, texts: JoinedTexts
    ) -> None:
        """Give tokens that overlap their union, or each its own bytes where they spell it."""
        if not len(full):
            return
        first = np.flatnonzero(np.concatenate([[True], start[full][1:] >= stop[full][:-1]]))
        counts = np.diff(np.append(first, len(full)))
        begin, end = start[full][first], stop[full][np.append(first[1:], len(full)) - 1]
        start[full], stop[full] = np.repeat(begin, counts), np.repeat(end, counts)
        several = np.flatnonzero(counts > 1)
        parts = full[np.repeat(counts > 1, counts)]
        if not len(parts):
            return
        into = sums(counts[several])[:-1]
        none = np.zeros(len(parts), np.int64)
        spelled = self._spells(ids[parts], none, into, begin[several], (end - begin)[several], texts)
        parts = parts[np.repeat(spelled, counts[several])]
        lengths = self._lengths[ids[parts]]
        ends = np.cumsum(lengths)
        into = sums(counts[several][spelled])[:-1]
        shift = np.repeat(begin[several][spelled] - np.concatenate([[0], ends])[into], counts[several][spelled])
        start[parts], stop[parts] = ends - lengths + shift, ends + shift


def _place(spelled: bytes, letters: bytes, at: int, given: tuple[int, int], after: int) -> tuple[int, int] | None:
    """Where a token's bytes stand: behind the token before, there without a space in front, or where they should.

    `at` is where the token before ends, `given` the token's place, and `after` where the next one's begins.
    """
    start, stop = given
    if letters.startswith(spelled, at):
        return at, at + len(spelled)
    if spelled == b" ":
        if start == stop > at and letters[start - 1 : start] == spelled:
            return start - 1, start
        if start == stop or after < stop:
            return at, at
    elif spelled.startswith(b" ") and letters.startswith(spelled[1:], at):
        return at, at + len(spelled) - 1
    if start > at and letters.startswith(spelled, start):
        return start, start + len(spelled)
    return None


def _with_white_space(
    start: np.ndarray, stop: np.ndarray, texts: JoinedTexts, text_of: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ranges that begin with the white space before them, as far as no token before has it."""
    before = np.concatenate([[0], np.maximum.accumulate(stop)[:-1]]) if len(stop) else stop
    before = np.maximum(before, texts.first_byte[text_of])
    return np.minimum(start, np.maximum(before, texts.white_from[start])), stop.copy()


def _fill(start: np.ndarray, stop: np.ndarray, full: np.ndarray, text_of: np.ndarray) -> Bool[np.ndarray, " tokens"]:
    """Give tokens without text the range of the next in their text, else of the last; says which find neither."""
    empty = np.setdiff1d(np.arange(len(start)), full, assume_unique=True)
    alone = np.zeros(len(start), bool)
    if not len(empty):
        return alone
    padded = np.concatenate([[-1], full, [len(start)]])
    place = np.searchsorted(full, empty)
    last, following = padded[place], padded[place + 1]
    texts = np.append(text_of, -1)
    from_next = texts[following] == text_of[empty]
    from_last = ~from_next & (texts[last] == text_of[empty])
    source = np.where(from_next, following, last)
    filled = from_next | from_last
    start[empty[filled]], stop[empty[filled]] = start[source[filled]], stop[source[filled]]
    alone[empty[~filled]] = True
    return alone


def byte_widths(codes: UInt32[np.ndarray, " characters"]) -> Int[np.ndarray, " characters"]:
    """How many bytes UTF-8 writes each character with."""
    return 1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF)


def sums(counts: Any) -> Int[np.ndarray, " sums"]:
    """Sums of the first 0, 1, … counts."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
