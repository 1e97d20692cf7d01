"""Text to rows of token ids: packing, subsets, mask, fingerprint, held-out rows and shards.

1. Documents of one subset are tokenised, joined with EOS, and cut into pieces of `context` − 1 tokens.
2. Each piece becomes a row with BOS in front, so a row belongs to one subset; the last of each subset is padded.
   Sources that are tokenised already keep their rows apart (paper §0).
3. Token positions that no statistic counts are masked: padding always; by default BOS, EOS and the newline; and
   single ones that are left out whatever their token (sinks).
4. Rows are held out in even stretches for the detail pass; the others are cut into shards of at most 16 384
   positions, in order, each within one group of subsets.

Rows may live in a file: memory then does not grow with the corpus.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Int, Int64, UInt8

from universal_neurons.config import StudyConfig
from universal_neurons.errors import TextError, TokenRangeError
from universal_neurons.models import boundary_tokens, encode, masked_ids, tokenizer_digest
from universal_neurons.text.corpora import Corpus
from universal_neurons.text.records import Document
from universal_neurons.text.row_file import KIND, RowFile, resolved, rows_of

__all__ = ["Shard", "TokenDataset", "boundary_tokens", "masked_ids", "pack", "tokenised", "tokenizer_digest"]

SHARD_POSITIONS = 16_384
STRETCHES = 20  # of held-out rows, at most; a jackknife leaves out one at a time
HELDOUT_MOST = 1_000_000
FEWEST_ROWS = 10
TOKENISE_CHARACTERS = 1 << 19
ROWS_FILE = "rows.i32"
SomeRows = TypeVar("SomeRows", bound="Rows")


@dataclass(frozen=True)
class Shard:
    """Rows that are added to the statistics together; `group` says which subset's statistics they enter."""

    index: int
    rows: Int[np.ndarray, " rows"]
    group: int = 0


class Rows:
    """Rows of positions in a text: which are held out, which subsets they are of, how they are cut into shards.

    What the positions are (tokens, or the spans of several tokenizers) is not its business.
    """

    context: int
    lengths: Int[np.ndarray, " rows"]
    subsets: Int[np.ndarray, " rows"]
    subset_names: tuple[str, ...]
    counted: int
    fingerprint: str
    notes: list[str]
    left_out: UInt8[np.ndarray, "rows bytes"] | None  # bits: positions that are not counted, whatever they say (sinks)

    def without(self: SomeRows, positions: Bool[np.ndarray, "rows context"]) -> SomeRows:
        """The same rows with some counted positions counted no more."""
        made = copy(self)
        made.left_out, made.counted = np.packbits(positions, axis=1), self.counted - int(positions.sum())
        return made

    def _kept(self, rows: Int[np.ndarray, " rows"]) -> Bool[np.ndarray, "rows context"] | np.bool_:
        """Which positions of some rows are not `left_out`."""
        if self.left_out is None:
            return np.True_
        return np.unpackbits(self.left_out[rows], axis=1, count=self.context) == 0

    def mask(self, rows: Int[np.ndarray, " rows"]) -> Bool[np.ndarray, "rows context"]:
        """Which positions (rows, context) are counted."""
        raise NotImplementedError

    def ids(self, rows: Int[np.ndarray, " rows"]) -> Int64[np.ndarray, "rows context"]:
        """What the positions (rows, context) say, as numbers."""
        raise NotImplementedError

    def resolve_files(self) -> None:
        """Name its files by their whole paths, for processes that run elsewhere."""
        raise NotImplementedError

    def require_vocabulary(self, size: int, model: str) -> None:
        """Raise `TokenRangeError` where a model reads tokens that it does not know."""
        raise NotImplementedError

    @property
    def n_tokens(self) -> int:
        """Positions that are not padding."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.lengths)

    def require_rows(self, config: StudyConfig, positions: str) -> None:
        """Raise `TextError` where a text (of tokens, or spans) has too few rows, or none of a subset asked for."""
        if len(self) < FEWEST_ROWS:
            raise TextError(
                f"{config.data}: too short",
                given=f"{self.n_tokens} {positions} in {len(self)} row{'s' * (len(self) != 1)}",
                wanted=f"at least {FEWEST_ROWS} rows of {self.context} tokens ({FEWEST_ROWS * self.context} tokens)",
                fix="give more text, raise --max-tokens, lower --context, or lower --min-characters "
                f"(documents of at most {config.min_characters} characters are dropped)",
            )
        without = [name for name in config.only_subset if name not in self.subset_names]
        if without:
            raise TextError(
                f"{config.data}: no row of subset {without[0]!r}",
                given=f"{self.n_tokens} {positions} of the others",
                wanted="a row of every subset that --only-subset names",
                fix="raise --max-tokens, lower --min-characters, or leave this subset out",
            )

    def split(
        self, heldout_tokens: int | None = None
    ) -> tuple[Int[np.ndarray, " rows"], list[Int[np.ndarray, " stretch"]]]:
        """Rows that choose, and stretches of rows (at most 20, evenly spread) held out from choosing."""
        n = len(self)
        if n < FEWEST_ROWS or not self.counted:
            raise TextError(
                "the corpus is too short",
                given=f"{n} row{'s' * (n != 1)}, {self.counted} counted positions",
                wanted=f"at least {FEWEST_ROWS} rows of {self.context} tokens, not all of them masked",
                fix="give more text, lower --context, or mask less",
            )
        most = min(n // 5, max(2, (heldout_tokens or HELDOUT_MOST) // self.context))
        if heldout_tokens is not None and heldout_tokens > n // 2 * self.context:
            raise TextError(
                "too much is held out",
                given=f"{heldout_tokens} of {n * self.context} token positions",
                wanted="at most half",
                fix="lower --heldout-tokens or give more text",
            )
        if heldout_tokens is not None:
            most = max(2, heldout_tokens // self.context)
        stretches = min(STRETCHES, most)
        ends = [n * (s + 1) // stretches for s in range(stretches)]
        heldout = [np.arange(end - most // stretches, end) for end in ends]
        chosen = np.setdiff1d(np.arange(n), np.concatenate(heldout))
        return chosen, heldout

    def groups(self, subset: Sequence[str]) -> list[str]:
        """The subsets that are studied apart; `all` means every one.  Raises `TextError` for one that is not there."""
        names = list(self.subset_names) if tuple(subset) == ("all",) else list(dict.fromkeys(subset))
        missing = [name for name in names if name not in self.subset_names]
        if missing and not any(name.strip() for name in self.subset_names):
            raise TextError(
                f"no subset {missing[0]!r}: the corpus names no subsets",
                wanted="documents with the name of their subset",
                fix="name its column with --subset-column, or leave --subset out",
            )
        if missing:
            raise TextError(
                f"no subset {missing[0]!r} in the corpus",
                wanted="one of " + ", ".join(filter(str.strip, self.subset_names)),
                fix="name one of them, or 'all'",
            )
        return names

    def shards(self, rows: Int[np.ndarray, " rows"], groups: Sequence[str] = ()) -> list[Shard]:
        """The rows cut into shards: group g holds the rows of `groups[g]`, the last group all others."""
        per_shard = max(1, SHARD_POSITIONS // self.context)
        numbers = np.array([groups.index(name) if name in groups else len(groups) for name in self.subset_names])
        group_of = numbers[self.subsets[rows]]
        cuts = []
        for group in range(len(groups) + 1):
            members = rows[group_of == group]
            for start in range(0, len(members), per_shard):
                part = members[start : start + per_shard]
                cuts.append((part[0], part, group))
        cuts.sort(key=lambda cut: cut[0])
        return [Shard(index, part, group) for index, (_, part, group) in enumerate(cuts)]


@dataclass
class TokenDataset(Rows):
    """Packed rows of token ids.

    `rows` is an array (rows, context) of ids or the file that holds it (no row of it, where a sketch keeps the lengths
    alone); `lengths` counts each row's tokens before padding; `subsets` numbers each row's subset in `subset_names`;
    `masked` are ids that are never counted, and `counted` is the number of positions that are.
    """

    rows: Int[np.ndarray, "stored context"] | Path
    lengths: Int[np.ndarray, " rows"]
    context: int
    subsets: Int[np.ndarray, " rows"]
    subset_names: tuple[str, ...]
    masked: tuple[int, ...]
    bos: int
    dtype: np.dtype
    fingerprint: str
    largest_id: int
    counted: int
    notes: list[str] = field(default_factory=list)
    left_out: UInt8[np.ndarray, "rows bytes"] | None = None

    @property
    def n_tokens(self) -> int:
        """Positions that are not padding."""
        return int(self.lengths.sum())

    def resolve_files(self) -> None:
        """Name its file by its whole path."""
        self.rows = resolved(self.rows)

    def ids(self, rows: Int[np.ndarray, " rows"]) -> Int64[np.ndarray, "rows context"]:
        """Token ids (rows, context) as int64; padding repeats BOS."""
        return rows_of(self.rows, rows, len(self), self.context)

    def mask(self, rows: Int[np.ndarray, " rows"]) -> Bool[np.ndarray, "rows context"]:
        """Which positions (rows, context) are counted."""
        ids = self.ids(rows)
        real = np.arange(self.context)[None] < self.lengths[rows][:, None]
        counted = real & ~np.isin(ids, self.masked)
        if self.bos in self.masked:
            counted[:, 0] = False
        return counted & self._kept(rows)

    @classmethod
    def load(cls, config: StudyConfig, tokenizer: Any, *, context: int, folder: Path | None = None) -> "TokenDataset":
        """Tokenise `config.data` into rows of `context`; in `folder`, the rows are kept in a file there."""
        bos, eos = boundary_tokens(tokenizer, config.tokenizer or config.models[0])
        corpus = Corpus(config)
        pieces = pack(tokenised(corpus, tokenizer, config.min_characters), bos, eos, context)
        masked, notes = masked_ids(config.mask, tokenizer, bos, eos)
        most = config.max_tokens // context
        packed = cls.from_pieces(islice(pieces, most), context=context, bos=bos, masked=masked, folder=folder)
        packed.notes += corpus.conclude(pieces) + notes
        packed.require_rows(config, "tokens")
        return packed

    @classmethod
    def from_pieces(
        cls,
        pieces: Iterable[tuple[str, np.ndarray]],
        *,
        context: int,
        bos: int,
        masked: Collection[int],
        folder: Path | None = None,
    ) -> "TokenDataset":
        """Rows from (subset, ids) pieces of at most `context` − 1 tokens."""
        growing = GrowingRows(context, bos, masked)
        with RowFile(folder, ROWS_FILE) as file:
            for subset, ids in pieces:
                file.add(growing.add(subset, ids))
        return growing.finish(file.rows(context))

    def require_vocabulary(self, size: int, name: str) -> None:
        """Raise `TokenRangeError` where an id is not in a vocabulary of `size`."""
        if self.largest_id >= size:
            raise TokenRangeError(
                f"{name}: a row holds a token id outside the vocabulary",
                given=self.largest_id,
                wanted=f"ids < {size}",
                fix="use the tokenizer that the models were trained with",
            )

    def __repr__(self) -> str:
        named = f", {len(self.subset_names)} subsets" if len(self.subset_names) > 1 else ""
        return f"TokenDataset({self.n_tokens:,} tokens in {len(self):,} rows of {self.context}{named})"


class GrowingRows:
    """The rows of a `TokenDataset` as they are made one by one, with all that is known of them in the end."""

    def __init__(self, context: int, bos: int, masked: Collection[int]) -> None:
        self.context, self.bos, self.masked = context, bos, tuple(sorted(masked))
        self.lengths: list[int] = []
        self.subsets: list[int] = []
        self._masks = np.array(self.masked)
        self._names: dict[str, int] = {}
        self._digest = hashlib.sha256()
        self._largest = bos
        self._counted = 0

    def add(self, subset: str, ids: Int[np.ndarray, " tokens"]) -> Int[np.ndarray, " context"]:
        """The row of at most `context` − 1 ids, BOS in front."""
        row = np.full(self.context, self.bos, KIND)
        row[1 : len(ids) + 1] = ids
        self._largest = max(self._largest, int(row.max()))
        if row.min() < 0:
            raise TokenRangeError(
                f"row {len(self.lengths)}: a negative token id", given=int(row.min()), wanted="ids ≥ 0"
            )
        self.lengths.append(len(ids) + 1)
        self.subsets.append(self._names.setdefault(subset, len(self._names)))
        self._counted += len(ids) - int(np.isin(ids, self._masks).sum())
        self._counted += 0 if self.bos in self.masked else 1
        self._digest.update(row.tobytes())
        return row

    def finish(self, rows: Int[np.ndarray, "rows context"] | Path) -> "TokenDataset":
        """The data set of these rows, as they were kept."""
        about = [self.context, self.bos, list(self.masked), self.lengths, self.subsets, list(self._names)]
        self._digest.update(json.dumps(about).encode())
        return TokenDataset(
            rows=rows,
            lengths=np.array(self.lengths, np.int32),
            context=self.context,
            subsets=np.array(self.subsets, np.int32),
            subset_names=tuple(self._names),
            masked=self.masked,
            bos=self.bos,
            dtype=KIND,
            fingerprint=self._digest.hexdigest(),
            largest_id=self._largest,
            counted=self._counted,
        )


class Tokenised(NamedTuple):
    """A document's ids.  Joined ones run on in their subset; one that does not end goes on in the next of it."""

    subset: str
    ids: np.ndarray
    joined: bool = True
    ends: bool = True


def pack(documents: Iterable[Tokenised], bos: int, eos: int, context: int) -> Iterator[tuple[str, np.ndarray]]:
    """Pieces of at most `context` − 1 tokens from documents, those that end with EOS behind them.

    A row that is kept apart loses its last token where it is one too long for BOS.
    """
    width = context - 1
    waiting: dict[str, np.ndarray] = {}
    for subset, ids, joined, ends in documents:
        if joined:
            ids = np.concatenate([waiting.pop(subset, ids[:0]), ids, [eos] if ends else []]).astype(np.int64)
            full = len(ids) // width * width
            waiting[subset] = ids[full:]
        else:
            ids = ids[1:] if len(ids) and ids[0] == bos else ids
            ids = ids[:width] if len(ids) == context else ids  # the last token makes room for BOS
            full = len(ids)
        for start in range(0, full, width):
            yield subset, ids[start : min(start + width, full)]
    for subset, ids in waiting.items():
        if len(ids):
            yield subset, ids


def tokenised(documents: Iterable[Document], tokenizer: Any, min_characters: int) -> Iterator[Tokenised]:
    """The ids of every document; text is tokenised in batches, tokenised documents pass as they are."""
    for batch in batches_of(documents, min_characters):
        if isinstance(batch[0].content, list):
            given = np.array(batch[0].content, np.int64)
            yield Tokenised(batch[0].subset, _without_padding(given, tokenizer), joined=False)
        else:
            texts = [str(document.content) for document in batch]
            for document, ids in zip(batch, encode(tokenizer, texts)):
                yield Tokenised(document.subset, np.asarray(ids, np.int64), ends=document.ends)


def batches_of(documents: Iterable[Document], min_characters: int) -> Iterator[list[Document]]:
    """Texts of more than `min_characters` that are tokenised together; a document that is tokens comes alone."""
    batch: list[Document] = []
    characters = 0
    goes_on = False
    for document in documents:
        if isinstance(document.content, list):
            yield [document]
            continue
        whole = document.ends and not goes_on
        goes_on = not document.ends
        if whole and len(document.content) <= min_characters:
            continue
        batch.append(document)
        characters += len(document.content)
        if characters >= TOKENISE_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _without_padding(ids: np.ndarray, tokenizer: Any) -> np.ndarray:
    """Ids without the padding at either end, where the tokenizer has a token for it alone."""
    pad = tokenizer.pad_token_id
    if pad is None or pad in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        return ids
    real = np.flatnonzero(ids != pad)
    return ids[real[0] : real[-1] + 1] if len(real) else ids[:0]
