"""Text to rows of token ids: packing, subsets, mask, fingerprint, held-out rows and shards.

1. Documents of one subset are tokenised, joined with EOS, and cut into pieces of `context` − 1 tokens.
2. Each piece becomes a row with BOS in front, so a row belongs to one subset; the last of each subset is padded.
   Sources that are tokenised already keep their rows apart (paper §0).
3. Token positions that no statistic counts are masked: padding always; by default BOS, EOS and the newline.
4. Rows are held out in even stretches for the detail pass; the others are cut into shards of at most 16 384
   positions, in order, each within one group of subsets.

Rows may live in a file: memory then does not grow with the corpus.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from universal_neurons.config import MaskRule, StudyConfig
from universal_neurons.corpora import Document, read_documents
from universal_neurons.errors import TextError, TokenizerError, TokenRangeError

SHARD_POSITIONS = 16_384
HELDOUT_STRETCHES = 20
HELDOUT_MOST = 1_000_000
FEWEST_ROWS = 10
TOKENISE_CHARACTERS = 1 << 19


@dataclass(frozen=True)
class Shard:
    """Rows that are added to the statistics together; `group` says which subset's statistics they enter."""

    index: int
    rows: np.ndarray
    group: int = 0


@dataclass
class TokenDataset:
    """Packed rows of token ids.

    `rows` is an array (rows, context) of ids or the file that holds it; `lengths` counts each row's tokens before
    padding; `subsets` numbers each row's subset in `subset_names`; `masked` are ids that are never counted, and
    `counted` is the number of positions that are.
    """

    rows: np.ndarray | Path
    lengths: np.ndarray
    context: int
    subsets: np.ndarray
    subset_names: tuple[str, ...]
    masked: tuple[int, ...]
    bos: int
    dtype: np.dtype
    fingerprint: str
    largest_id: int
    counted: int
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def n_tokens(self) -> int:
        """Positions that are not padding."""
        return int(self.lengths.sum())

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """Token ids (rows, context) as int64; padding repeats BOS."""
        if isinstance(self.rows, Path):
            table = np.memmap(self.rows, self.dtype, "r", shape=(len(self), self.context))
            return table[rows].astype(np.int64)
        return self.rows[rows].astype(np.int64)

    def mask(self, rows: np.ndarray) -> np.ndarray:
        """Which positions (rows, context) are counted."""
        ids = self.ids(rows)
        real = np.arange(self.context)[None] < self.lengths[rows][:, None]
        counted = real & ~np.isin(ids, self.masked)
        if self.bos in self.masked:
            counted[:, 0] = False
        return counted

    def split(self, heldout_tokens: int | None = None) -> tuple[np.ndarray, list[np.ndarray]]:
        """Rows that choose, and stretches of rows (at most 20, evenly spread) held out from choosing."""
        n = len(self)
        if n < FEWEST_ROWS or not self.counted:
            raise TextError(
                "the corpus is too short",
                given=f"{n} rows, {self.counted} counted positions",
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
        stretches = min(HELDOUT_STRETCHES, most)
        ends = [n * (s + 1) // stretches for s in range(stretches)]
        heldout = [np.arange(end - most // stretches, end) for end in ends]
        chosen = np.setdiff1d(np.arange(n), np.concatenate(heldout))
        return chosen, heldout

    def groups(self, subset: Sequence[str]) -> list[str]:
        """The subsets that are studied apart; `all` means every one.  Raises `TextError` for one that is not there."""
        names = list(self.subset_names) if tuple(subset) == ("all",) else list(dict.fromkeys(subset))
        missing = [name for name in names if name not in self.subset_names]
        if missing:
            raise TextError(
                f"no subset {missing[0]!r} in the corpus",
                wanted="one of " + ", ".join(self.subset_names),
                fix="name one of them, or 'all'",
            )
        return names

    def shards(self, rows: np.ndarray, groups: Sequence[str] = ()) -> list[Shard]:
        """The rows cut into shards: group g holds the rows of `groups[g]`, the last group all others."""
        per_shard = max(1, SHARD_POSITIONS // self.context)
        numbers = np.array([groups.index(name) if name in groups else len(groups) for name in self.subset_names])
        group_of = numbers[self.subsets[rows]]
        cuts = []
        for group in range(len(groups) + 1):
            mine = rows[group_of == group]
            cuts += [(mine[start : start + per_shard], group) for start in range(0, len(mine), per_shard)]
        cuts.sort(key=lambda cut: cut[0][0])
        return [Shard(index, part, group) for index, (part, group) in enumerate(cuts)]

    @classmethod
    def load(cls, config: StudyConfig, tokenizer: Any, *, context: int, folder: Path | None = None) -> "TokenDataset":
        """Tokenise `config.data` into rows of `context`; in `folder`, the rows are kept in a file there."""
        bos, eos = boundary_tokens(tokenizer, config.tokenizer or config.models[0])
        pieces = pack(tokenised(read_documents(config), tokenizer, config.min_characters), bos, eos, context)
        masked, notes = masked_ids(config.mask, tokenizer, bos, eos)
        packed = cls.from_pieces(
            pieces, context=context, bos=bos, masked=masked, most=config.max_tokens // context, folder=folder
        )
        packed.notes += notes
        if len(packed) < FEWEST_ROWS:
            raise TextError(
                f"{config.data}: too short",
                given=f"{packed.n_tokens} tokens in {len(packed)} rows",
                wanted=f"at least {FEWEST_ROWS} rows of {context} tokens ({FEWEST_ROWS * context} tokens)",
                fix="give more text, raise --max-tokens, lower --context, or lower --min-characters "
                f"(documents of at most {config.min_characters} characters are dropped)",
            )
        return packed

    @classmethod
    def from_pieces(
        cls,
        pieces: Iterable[tuple[str, np.ndarray]],
        *,
        context: int,
        bos: int,
        masked: Collection[int],
        most: int | None = None,
        folder: Path | None = None,
    ) -> "TokenDataset":
        """Rows from (subset, ids) pieces of at most `context` − 1 tokens; at most `most` rows."""
        names: dict[str, int] = {}
        lengths: list[int] = []
        subsets: list[int] = []
        kept: list[np.ndarray] = []
        dtype = np.dtype(np.int32)
        digest = hashlib.sha256()
        largest = bos
        masks = np.array(sorted(masked))
        counted = 0
        file = None if folder is None else (folder / "rows.partial").open("wb")
        try:
            for subset, ids in pieces:
                if most is not None and len(lengths) >= most:
                    break
                row = np.full(context, bos, dtype)
                row[1 : len(ids) + 1] = ids
                largest = max(largest, int(row.max()))
                if row.min() < 0:
                    raise TokenRangeError(
                        f"row {len(lengths)}: a negative token id", given=int(row.min()), wanted="ids ≥ 0"
                    )
                lengths.append(len(ids) + 1)
                subsets.append(names.setdefault(subset, len(names)))
                counted += len(ids) - int(np.isin(ids, masks).sum()) + (bos not in masked)
                digest.update(row.tobytes())
                if file is None:
                    kept.append(row)
                else:
                    file.write(row.tobytes())
        finally:
            if file is not None:
                file.close()
        digest.update(json.dumps([context, bos, sorted(masked), lengths, subsets, list(names)]).encode())
        rows: np.ndarray | Path
        if folder is None:
            rows = np.array(kept, dtype).reshape(-1, context)
        else:
            rows = (folder / "rows.partial").rename(folder / "rows.i32")
        return cls(
            rows=rows,
            lengths=np.array(lengths, np.int32),
            context=context,
            subsets=np.array(subsets, np.int32),
            subset_names=tuple(names),
            masked=tuple(sorted(masked)),
            bos=bos,
            dtype=dtype,
            fingerprint=digest.hexdigest(),
            largest_id=largest,
            counted=counted,
        )

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


def pack(
    documents: Iterable[tuple[str, np.ndarray, bool]], bos: int, eos: int, context: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Pieces of at most `context` − 1 tokens from (subset, ids, joined); joined documents of a subset run on.

    A row that is kept apart loses its last token where it is one too long for BOS.
    """
    width = context - 1
    waiting: dict[str, np.ndarray] = {}
    for subset, ids, joined in documents:
        if joined:
            ids = np.concatenate([waiting.pop(subset, ids[:0]), ids, [eos]])
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


def tokenised(
    documents: Iterable[Document], tokenizer: Any, min_characters: int
) -> Iterator[tuple[str, np.ndarray, bool]]:
    """(subset, ids, joined) of every document; text is tokenised in batches, tokenised documents pass as they are."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        if isinstance(document.content, list):
            yield document.subset, _without_padding(_as_ids(document.content), tokenizer), False
            continue
        if len(document.content) <= min_characters:
            continue
        batch.append(document)
        characters += len(document.content)
        if characters >= TOKENISE_CHARACTERS:
            yield from _tokenise(batch, tokenizer)
            batch, characters = [], 0
    yield from _tokenise(batch, tokenizer)


def _as_ids(content: list) -> np.ndarray:
    try:
        ids = np.asarray(content)
    except ValueError:
        ids = np.array([["ragged"]])
    limits = np.iinfo(np.int32)
    if ids.size and (ids.ndim != 1 or ids.dtype.kind not in "iu" or ids.max() > limits.max or ids.min() < limits.min):
        raise TokenRangeError("a row of tokens is not a list of token ids", given=f"{content[:5]} …", wanted="integers")
    return ids.astype(np.int64)


def _without_padding(ids: np.ndarray, tokenizer: Any) -> np.ndarray:
    """Ids without the padding at their end, where the tokenizer has a token for it alone."""
    pad = tokenizer.pad_token_id
    if pad is None or pad in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        return ids
    real = np.flatnonzero(ids != pad)
    return ids[: real[-1] + 1] if len(real) else ids[:0]


def _tokenise(batch: list[Document], tokenizer: Any) -> Iterator[tuple[str, np.ndarray, bool]]:
    if batch:
        texts = [document.content for document in batch]
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        for document, ids in zip(batch, encoded):
            yield document.subset, np.asarray(ids, np.int64), True


def boundary_tokens(tokenizer: Any, name: str) -> tuple[int, int]:
    """BOS and EOS of a tokenizer; each stands in for the other, and CLS and SEP for both."""
    bos = [tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id]
    eos = [tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id]
    found = [next((t for t in tokens if t is not None), None) for tokens in (bos, eos)]
    if found[0] is None or found[1] is None:
        raise TokenizerError(f"{name}: its tokenizer names no BOS, EOS, CLS or SEP token", wanted="one of them")
    return int(found[0]), int(found[1])


def masked_ids(rules: Sequence[MaskRule], tokenizer: Any, bos: int, eos: int) -> tuple[set[int], list[str]]:
    """The token ids that the rules leave out, and notes on rules that name no token."""
    ids, notes = set(), []
    for rule in rules:
        if rule == "newline":
            newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
            if len(newline) == 1:
                ids.add(int(newline[0]))
            else:
                notes.append("the tokenizer has no single newline token: newlines are counted")
        else:
            ids.add(rule if isinstance(rule, int) else {"bos": bos, "eos": eos}[rule])
    return {int(token) for token in ids}, notes


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of the vocabulary and, where it has them, the merges: what decides which ids a text becomes."""
    vocabulary = tokenizer.get_vocab()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    merges = json.loads(backend.to_str())["model"].get("merges") if backend is not None else None
    return hashlib.sha256(json.dumps([sorted(vocabulary.items()), merges]).encode()).hexdigest()
