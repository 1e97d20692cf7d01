"""A vocabulary as strings: what each token looks like in text, its normalised form, and where in a word it stands.

A token's string is what it adds to the text when it follows another token, so it keeps its leading space whatever the
tokenizer.  Where in a word a token stands depends on its neighbours in the row (never on another row): a whole word,
the start of a word, inside a word, or no word at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int

from universal_neurons.models import all_special_ids, spelling_of, strings_of, vocabulary_ids
from universal_neurons.text.tokens import Rows
from universal_neurons.text.word_places import INSIDE_WORD, N_KINDS, NO_WORD, WORD, WORD_START

ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Vocabulary:
    """Strings of all token ids; `special` marks those that stand for no text (BOS, padding, unused).

    `fragments` are the bytes of tokens whose strings are no whole characters, where the tokenizer tells them.
    """

    strings: tuple[str, ...]
    special: np.ndarray
    fragments: Mapping[int, bytes] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.strings)

    @cached_property
    def letters(self) -> tuple[bytes, ...]:
        """The bytes of text (UTF-8) that each token spells."""
        return tuple(self.fragments.get(token, s.encode()) for token, s in enumerate(self.strings))

    @cached_property
    def normalised(self) -> tuple[str, ...]:
        """Lower-cased strings without the space around them; empty for special tokens."""
        return tuple("" if dull else s.strip().lower() for s, dull in zip(self.strings, self.special))

    @cached_property
    def _spaced(self) -> np.ndarray:
        return np.array([s[:1].isspace() for s in self.strings])

    @cached_property
    def _edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Whether each string begins, and ends, with a letter."""
        letters = [(s[:1].isalpha(), s[-1:].isalpha()) for s in self.strings]
        begins, ends = np.array(letters).T
        return begins & ~self.special, ends & ~self.special

    @cached_property
    def _wordly(self) -> np.ndarray:
        return np.array([s.isalpha() for s in self.normalised])

    def kinds(self, ids: Int[np.ndarray, "rows context"]) -> Int[np.ndarray, "rows context"]:
        """Where in a word each token of some rows stands: `NO_WORD`, `WORD`, `WORD_START`, `INSIDE_WORD`."""
        begins, ends = self._edges
        starts = np.ones(ids.shape, bool)
        starts[:, 1:] = self._spaced[ids[:, 1:]] | ~ends[ids[:, :-1]]
        goes_on = np.zeros(ids.shape, bool)
        goes_on[:, :-1] = begins[ids[:, 1:]]
        kinds = np.where(~starts, INSIDE_WORD, np.where(goes_on, WORD_START, WORD))
        return np.where(self._wordly[ids], kinds, NO_WORD)

    def words(self, ids: Int[np.ndarray, "rows context"]) -> Int[np.ndarray, "rows context"]:
        """Each token together with where in a word it stands, as one number (see `token_of`, `kind_of`)."""
        return N_KINDS * ids + self.kinds(ids)

    def counts(self, tokens: Rows) -> Int[np.ndarray, "vocabulary kinds"]:
        """How often each token is counted in each place of a word."""
        counts = np.zeros(N_KINDS * len(self), np.int64)
        for start in range(0, len(tokens), ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, len(tokens)))
            ids = tokens.ids(rows)
            counts += np.bincount(self.words(ids)[tokens.mask(rows)], minlength=len(counts))
        return counts.reshape(-1, N_KINDS)

    def table(self, counts: Int[np.ndarray, "vocabulary kinds"]) -> pl.DataFrame:
        """A row per token: its string and how often it is counted."""
        tokens = np.arange(len(self), dtype=np.int32)
        return pl.DataFrame({"token": tokens, "string": list(self.strings), "count": counts.sum(1)})


def read_vocabulary(tokenizer: Any, size: int) -> Vocabulary:
    """The vocabulary of a tokenizer, as far as a model's `size`; ids of no token are special and have no string."""
    known = sorted({token for token in vocabulary_ids(tokenizer).values() if token < size})
    strings = [""] * size
    special = np.ones(size, bool)
    for token, text in zip(known, strings_of(tokenizer, known)):
        strings[token], special[token] = text, False
    special[[token for token in all_special_ids(tokenizer) if token < size]] = True
    return Vocabulary(tuple(strings), special, _fragments(tokenizer, strings))


def _fragments(tokenizer: Any, strings: Sequence[str]) -> dict[int, bytes]:
    """The bytes of the tokens of a fast tokenizer that spell parts of characters."""
    broken = [token for token, text in enumerate(strings) if "\ufffd" in text]
    if not broken or not getattr(tokenizer, "is_fast", False):
        return {}
    spelled = spelling_of(tokenizer).spelled
    return {token: letters for token in broken if (letters := spelled[token]) is not None}
