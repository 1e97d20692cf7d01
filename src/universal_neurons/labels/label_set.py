"""Labels: binary vectors over token positions, as sources of the pass.

A label depends on the token and its place in a word (the paper's token tests, unigrams, topics, sets of one's own),
on the token before (all of these again), on the position in the row, or on the text around (syntax, corpus subset,
spans).  The first three are read off sums by word, previous token and position; the others are columns of a block.
Nothing ever looks across a row's start: at position 0 there is no previous token.

Under the null the labels of another row (positions: shifted circularly within the row) stand against a row's
activations.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from universal_neurons.labels.own_labels import OwnLabels
from universal_neurons.labels.syntax import Syntax
from universal_neurons.labels.token_tests import TOKEN_TESTS, WIDER_TESTS, narrower
from universal_neurons.statistics import BY_POSITION, BY_PREVIOUS, BY_WORD, LABELS, Block, Key, seed_of
from universal_neurons.text import KINDS, Rows, Vocabulary, kind_of, token_of

UNIGRAM_COUNT, PAPER_TOKENS = 3000, 10_000_000  # the paper's: more than 3000 occurrences in 10 M tokens …
UNIGRAM_VARIANTS = 4  # … and more than three variants, in a vocabulary of 50 000
PAPER_VOCABULARY = 50_257
SMALL_NORM_DEVIATIONS = 3.0


@dataclass(frozen=True)
class Label:
    """A label's name, its group (`config.LABEL_GROUPS`, or `own`), and whether it speaks of the previous token."""

    name: str
    group: str
    previous: bool = False


@dataclass(frozen=True)
class Column:
    """A label of the text around: for every row and token, whether it holds (codes into the labels; −1: none)."""

    labels: tuple[Label, ...]
    codes: Callable[[np.ndarray], np.ndarray]  # rows -> (rows, context, columns)
    with_previous: bool


@dataclass
class LabelSet:
    """All labels of a study.

    `word_of` maps 4 · token + kind to a word (a token in one place of a word); tables say which labels hold for each
    word, each previous token and each position.  The last word and the last token stand for none: no label holds.
    """

    vocabulary: Vocabulary
    context: int
    word_of: Int[np.ndarray, " codes"]
    word_labels: list[Label]
    word_table: Bool[np.ndarray, "word_labels words"]
    previous_labels: list[Label]
    previous_table: Bool[np.ndarray, "previous_labels tokens"]
    position_labels: list[Label]
    position_table: Bool[np.ndarray, "position_labels context"]
    columns: list[Column] = field(default_factory=list)
    counts: Int[np.ndarray, "vocabulary kinds"] | None = None  # of each token in each place of a word

    @property
    def n_words(self) -> int:
        """Words, the one that stands for none included."""
        return self.word_table.shape[1]

    @property
    def column_labels(self) -> list[Label]:
        """Labels of the columns, those of the previous token after all others."""
        labels = [label for column in self.columns for label in column.labels]
        return labels + _of_previous_token(
            [label for column in self.columns if column.with_previous for label in column.labels]
        )

    @property
    def all(self) -> list[Label]:
        """All labels in the order of the sums."""
        return self.word_labels + self.previous_labels + self.position_labels + self.column_labels

    @property
    def own(self) -> list[int]:
        """Where in `all` the user's own labels are, those of the previous token too."""
        return [place for place, label in enumerate(self.all) if label.group == "own"]

    def digest(self) -> str:
        """SHA-256 of what holds where."""
        digest = hashlib.sha256(repr(self.all).encode())
        for table in (self.word_of, self.word_table, self.previous_table, self.position_table):
            digest.update(np.ascontiguousarray(table).tobytes())
        return digest.hexdigest()


def build_labels(
    groups: Sequence[str],
    tokens: Rows,
    vocabulary: Vocabulary,
    *,
    embedding: Float[Tensor, "vocabulary width"] | None = None,
    syntax: Syntax | None = None,
    topics: Mapping[str, Sequence[int]] | None = None,
    own: OwnLabels | None = None,
) -> LabelSet:
    """The labels of some groups over a corpus; `embedding` decides which tokens have a small norm."""
    own = own or OwnLabels()
    counts = vocabulary.counts(tokens)
    seen = np.flatnonzero(counts.ravel())
    word_of = np.full(counts.size, len(seen))
    word_of[seen] = np.arange(len(seen))
    token_masks: list[tuple[Label, np.ndarray]] = []
    if "tokens" in groups:
        token_masks += token_test_masks(vocabulary, embedding)
    if "unigrams" in groups:
        token_masks += unigram_masks(vocabulary, counts)
    for name, members in (topics or {}).items():
        token_masks.append((Label(name, "topics"), np.isin(np.arange(len(vocabulary)), members)))
    token_masks += [(Label(name, "own"), mask) for name, mask in own.tokens.items()]
    word_masks = [(label, mask[token_of(seen)]) for label, mask in token_masks]
    if "unigrams" in groups:
        word_masks += variant_masks(word_masks, seen, counts)
    positions = position_masks(tokens.context) if "position" in groups else []
    return LabelSet(
        vocabulary=vocabulary,
        context=tokens.context,
        word_of=word_of,
        word_labels=[label for label, _ in word_masks],
        word_table=_table(word_masks, len(seen)),
        previous_labels=_of_previous_token([label for label, _ in token_masks]),
        previous_table=_table(token_masks, len(vocabulary)),
        position_labels=[label for label, _ in positions],
        position_table=_table(positions, tokens.context)[:, :-1],
        columns=_columns(groups, tokens, syntax, own),
        counts=counts,
    )


def _of_previous_token(labels: Sequence[Label]) -> list[Label]:
    """The same labels of the previous token."""
    return [Label(label.name, label.group, True) for label in labels]


def _table(masks: Sequence[tuple[Label, np.ndarray]], width: int) -> np.ndarray:
    """Masks as rows, with a last column of nothing."""
    table = np.zeros((len(masks), width + 1), bool)
    for row, (_, mask) in enumerate(masks):
        table[row, :width] = mask
    return table


def token_test_masks(vocabulary: Vocabulary, embedding: Tensor | None) -> list[tuple[Label, np.ndarray]]:
    """The paper's token tests, the wider ones that hold at more tokens of this vocabulary than those of the paper and,
    where an embedding is given, `small_norm`: three deviations below the median."""
    real = ~vocabulary.special
    held = {
        name: real & np.array([holds(s) for s in vocabulary.strings])
        for name, holds in (TOKEN_TESTS | WIDER_TESTS).items()
    }
    same = {name for name in WIDER_TESTS if np.array_equal(held[name], held[narrower(name)])}
    masks = [(Label(name, "tokens"), mask) for name, mask in held.items() if name not in same]
    if embedding is not None:
        norms = embedding.float().norm(dim=1).cpu().numpy()
        middle = np.median(norms)
        spread = 1.4826 * np.median(np.abs(norms - middle))
        masks.append((Label("small_norm", "tokens"), real & (norms < middle - SMALL_NORM_DEVIATIONS * spread)))
    return masks


def unigram_masks(
    vocabulary: Vocabulary, counts: Int[np.ndarray, "vocabulary kinds"]
) -> list[tuple[Label, np.ndarray]]:
    """A label for every normalised string that is frequent and has enough variants in the vocabulary.

    The paper's count is scaled to the corpus, its number of variants to the vocabulary: one of 1000 tokens spells a
    word in one way, not in four.
    """
    variants = min(UNIGRAM_VARIANTS, 1 + (UNIGRAM_VARIANTS - 1) * len(vocabulary) // PAPER_VOCABULARY)
    members: dict[str, list[int]] = {}
    for token, name in enumerate(vocabulary.normalised):
        if name and "\ufffd" not in name:
            members.setdefault(name, []).append(token)
    fewest = UNIGRAM_COUNT * counts.sum() / PAPER_TOKENS
    by_token = counts.sum(1)
    return [
        (Label(name, "unigrams"), np.isin(np.arange(len(vocabulary)), ids))
        for name, ids in members.items()
        if len(ids) >= variants and by_token[ids].sum() > fewest
    ]


def variant_masks(
    word_masks: Sequence[tuple[Label, np.ndarray]], seen: np.ndarray, counts: np.ndarray
) -> list[tuple[Label, np.ndarray]]:
    """Each unigram as a whole word, as the start of a word and inside a word, where it is frequent in two of these."""
    frequent = UNIGRAM_COUNT * counts.sum() / PAPER_TOKENS
    often = counts.ravel()[seen]
    masks = []
    for label, mask in word_masks:
        if label.group != "unigrams":
            continue
        parts = {name: mask & (kind_of(seen) == kind) for kind, name in KINDS.items()}
        parts = {name: part for name, part in parts.items() if often[part].sum() > frequent}
        if len(parts) > 1:
            masks += [(Label(f"{label.name} ({name})", "unigrams"), part) for name, part in parts.items()]
    return masks


def position_masks(context: int) -> list[tuple[Label, np.ndarray]]:
    """Ranges of positions: each octave (1, 2–3, 4–7, …) and everything below its end."""
    places = np.arange(context)
    masks = []
    low = 1
    while low < context:
        high = min(2 * low, context)
        name = f"position {low}" if high == low + 1 else f"position {low}–{high - 1}"
        masks.append((Label(name, "position"), (places >= low) & (places < high)))
        if low > 1 and high < context:
            masks.append((Label(f"position < {high}", "position"), (places >= 1) & (places < high)))
        low = high
    return masks


def _columns(groups: Sequence[str], tokens: Rows, syntax: Syntax | None, own_labels: OwnLabels) -> list[Column]:
    columns = []
    if syntax is not None:
        table = syntax.codes
        columns.append(Column(tuple(Label(n, "syntax") for n in syntax.names), lambda rows: table[rows], True))
    if "subsets" in groups and len(tokens.subset_names) > 1:

        def subset_codes(rows: np.ndarray) -> np.ndarray:
            return np.broadcast_to(tokens.subsets[rows][:, None, None], (len(rows), tokens.context, 1))

        columns.append(Column(tuple(Label(n, "subsets") for n in tokens.subset_names), subset_codes, False))
    if own_labels.spans:
        columns.append(
            Column(tuple(Label(n, "own") for n in own_labels.spans), _span_codes(own_labels, tokens.context), True)
        )
    return columns


def _span_codes(own_labels: OwnLabels, context: int) -> Callable[[np.ndarray], np.ndarray]:
    def codes(rows: np.ndarray) -> np.ndarray:
        table = np.full((len(rows), context, len(own_labels.spans)), -1)
        for number, spans in enumerate(own_labels.spans.values()):
            for place, row in enumerate(rows.tolist()):
                first, last = np.searchsorted(spans[:, 0], [row, row + 1])
                for _, start, end in spans[first:last].tolist():
                    table[place, start:end, number] = number
        return table

    return codes


class LabelSource:
    """The labels of a batch: words, previous tokens and positions to sort by, and the columns as a block.

    With `partner` (a row for every row of the corpus) it is the null: the labels of the partner row at the same
    positions (none where the partner does not count that position), positions shifted circularly within the row.
    The keys of its blocks and indices are `Key.null`.  `dense` puts words and previous tokens into the block too, for
    vocabularies whose sums do not fit in memory.
    """

    def __init__(
        self,
        labels: LabelSet,
        tokens: Rows,
        *,
        dense: bool,
        partner: np.ndarray | None = None,
        seed: int = 0,
        device: Any = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.labels = labels
        self.tokens = tokens
        self.dense = dense
        self.partner = partner
        self.seed = seed
        self.device = device
        self.dtype = dtype
        tables = (labels.word_table, labels.previous_table) if dense else ()
        self.tables = [torch.from_numpy(table.T.copy()).to(device) for table in tables]

    @property
    def width(self) -> int:
        """Columns of the block."""
        return sum(table.shape[1] for table in self.tables) + len(self.labels.column_labels)

    def batch(self, rows: np.ndarray, keep: np.ndarray) -> tuple[dict[Key, Block], dict[Key, Tensor]]:
        """Blocks and indices of the positions `keep` of the flattened rows."""
        read = rows if self.partner is None else self.partner[rows]
        ids = self.tokens.ids(read)
        words = self.labels.word_of[self.labels.vocabulary.words(ids)]
        previous = np.full(ids.shape, len(self.labels.vocabulary))
        previous[:, 1:] = ids[:, :-1]
        if self.partner is not None:
            counted = self.tokens.mask(read)
            words = np.where(counted, words, self.labels.n_words - 1)
            previous = np.where(counted, previous, len(self.labels.vocabulary))
        index = {BY_WORD: torch.from_numpy(words.ravel()[keep]), BY_PREVIOUS: torch.from_numpy(previous.ravel()[keep])}
        if self.partner is not None:
            index[BY_POSITION] = torch.from_numpy(self._shifted(rows, keep))
        blocks = {}
        if self.width:
            blocks[LABELS] = Block(self._block(read, keep, index))
        if self.partner is None:
            return blocks, index
        return {key.null: block for key, block in blocks.items()}, {key.null: numbers for key, numbers in index.items()}

    def _block(self, rows: np.ndarray, keep: np.ndarray, index: dict[Key, Tensor]) -> Float[Tensor, "tokens labels"]:
        n_labels = len(self.labels.column_labels)
        columns = torch.zeros(len(keep), n_labels + 1, dtype=self.dtype, device=self.device)
        codes = torch.from_numpy(self._codes(rows, n_labels)[keep]).to(self.device)
        columns.scatter_(1, codes, 1.0)
        columns = columns[:, :-1]
        if not self.dense:
            return columns
        rows_of = zip(self.tables, (index[BY_WORD], index[BY_PREVIOUS]))
        parts = [table[numbers.to(self.device)].to(self.dtype) for table, numbers in rows_of]
        return torch.cat([*parts, columns], 1)

    def _codes(self, rows: np.ndarray, nothing: int) -> Int[np.ndarray, "positions columns"]:
        """For every position of some rows the labels that hold; `nothing` stands for none."""
        positions = len(rows) * self.tokens.context
        counted = self.tokens.mask(rows) if self.partner is not None else None
        parts = [np.full((positions, 1), nothing)]
        start = 0
        later = sum(len(column.labels) for column in self.labels.columns)
        for column in self.labels.columns:
            codes = column.codes(rows).astype(np.int64)
            before = np.full_like(codes, -1)
            before[:, 1:] = codes[:, :-1]
            if counted is not None:
                codes, before = (np.where(counted[:, :, None], part, -1) for part in (codes, before))
            parts.append(np.where(codes >= 0, codes + start, nothing).reshape(positions, -1))
            if column.with_previous:
                parts.append(np.where(before >= 0, before + later, nothing).reshape(positions, -1))
                later += len(column.labels)
            start += len(column.labels)
        return np.concatenate(parts, 1)

    def _shifted(self, rows: np.ndarray, keep: np.ndarray) -> Int[np.ndarray, " tokens"]:
        """Positions, each row's shifted circularly among its counted ones."""
        positions = keep % self.tokens.context
        row_of = keep // self.tokens.context
        cuts = np.flatnonzero(np.diff(row_of)) + 1
        shifted = []
        for part, row in zip(np.split(positions, cuts), rows[row_of[np.r_[0, cuts]]].tolist()):
            shifted.append(np.roll(part, 1 + seed_of("shift", self.seed, row) % max(len(part) - 1, 1)))
        return np.concatenate(shifted)


def partner_rows(rows: np.ndarray, n_rows: int, seed: int) -> Int[np.ndarray, " all_rows"]:
    """For each of `rows` another one of them at random, each taken once; −1 for all other rows."""
    order = np.random.default_rng(seed_of("partners", seed)).permutation(rows)
    partner = np.full(n_rows, -1)
    partner[order] = np.roll(order, 1)
    return partner
