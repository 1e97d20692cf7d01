"""Rows of the same spans for models of different tokenizers.

1. Row r of every tokenizer holds the same text (`span_rows.py`), its own BOS in front.
2. A position is a span: number s of row r.
3. Masked tokens (BOS, EOS, the newline of each tokenizer) are pooled into no span.  A span is counted where every
   tokenizer has a token left.

Rows may live in files, as those of `TokenDataset` do.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int64, UInt8

from universal_neurons.config import PoolingKind, StudyConfig
from universal_neurons.errors import ConfigError
from universal_neurons.models import boundary_tokens, masked_ids
from universal_neurons.text.byte_ranges import ByteReader
from universal_neurons.text.corpora import Corpus
from universal_neurons.text.row_file import KIND, RowFile, resolved, rows_of
from universal_neurons.text.span_fit import SpanFit, span_numbers
from universal_neurons.text.span_rows import Stretch, span_rows, stretches_of
from universal_neurons.text.tokens import GrowingRows, Rows, TokenDataset

TEXT_FILE = "text.utf8"
RANGES_FILE = "ranges.i32"
IDS_FILE = "span-ids.i32"


@dataclass
class Reading:
    """What one tokenizer makes of the rows: ids, and which span of its row each token belongs to (−1: none)."""

    digest: str
    tokens: TokenDataset
    numbers: Int[np.ndarray, "rows context"] | Path


@dataclass
class Passages(Rows):
    """Rows of spans, and of each tokenizer's tokens.

    `readings` has one entry per tokenizer, `tokenizers` says which of them each model has.  `context` is the length
    of the rows of tokens, and the most spans that a row may have; `lengths` are the rows' numbers of spans.
    `span_ids` number each row's spans by what they say, which `strings` spells out.
    `ranges` are each span's first byte and the one after its last, within the row's text; `text` holds the rows' texts
    one behind the other, up to `text_ends`.  `pooling` says what the activations of a span's tokens become.
    """

    readings: tuple[Reading, ...]
    tokenizers: dict[str, int]
    lengths: Int[np.ndarray, " rows"]
    context: int
    subsets: Int[np.ndarray, " rows"]
    subset_names: tuple[str, ...]
    counted: int
    span_ids: Int[np.ndarray, "rows context"] | Path
    strings: tuple[str, ...]
    ranges: Int[np.ndarray, "rows ends"] | Path
    text: UInt8[np.ndarray, " bytes"] | Path
    text_ends: Int[np.ndarray, " rows"]
    fit: SpanFit
    fingerprint: str
    pooling: PoolingKind = "mean"
    notes: list[str] = field(default_factory=list)
    left_out: UInt8[np.ndarray, "rows bytes"] | None = None

    @property
    def n_spans(self) -> int:
        """How many spans all rows hold."""
        return int(self.lengths.sum())

    @property
    def n_tokens(self) -> int:
        """Positions: spans."""
        return self.n_spans

    def ids(self, rows: Int[np.ndarray, " rows"]) -> Int64[np.ndarray, "rows context"]:
        """What the spans (rows, context) say, as numbers of `strings`; 0 after a row's last."""
        return rows_of(self.span_ids, rows, len(self), self.context)

    def require_vocabulary(self, size: int, model: str) -> None:
        """Raise `TokenRangeError` where a model reads tokens that it does not know."""
        self.tokens_of(model).require_vocabulary(size, model)

    def resolve_files(self) -> None:
        """Name its files by their whole paths."""
        for reading in self.readings:
            reading.tokens.resolve_files()
            reading.numbers = resolved(reading.numbers)
        self.span_ids, self.ranges, self.text = map(resolved, (self.span_ids, self.ranges, self.text))

    def read_by(self, names: Mapping[str, str]) -> "Passages":
        """The same rows for other models, each (its name) with the tokenizer of one of these."""
        return replace(self, tokenizers={name: self.tokenizers[like] for name, like in names.items()})

    def tokens_of(self, model: str) -> TokenDataset:
        """A model's rows of token ids, with their mask."""
        return self._reading(model).tokens

    def numbers(self, model: str, rows: Int[np.ndarray, " rows"]) -> Int64[np.ndarray, "rows context"]:
        """Which span of its row each token of a model belongs to; −1: none (BOS, padding, EOS, text left out)."""
        return rows_of(self._reading(model).numbers, rows, len(self), self.context)

    def pooled(
        self,
        model: str,
        rows: Int[np.ndarray, " rows"],
        mask: Bool[np.ndarray, "rows context"] | None = None,
    ) -> Int64[np.ndarray, "rows context"]:
        """Which span of its row each token of a model is pooled into: as `numbers`, but −1 for what is not counted.

        `mask` is that of the rows, where it is known already.
        """
        numbers = self.numbers(model, rows)
        counted = np.take_along_axis(self.mask(rows) if mask is None else mask, np.maximum(numbers, 0), 1)
        return np.where((numbers >= 0) & counted & self.tokens_of(model).mask(rows), numbers, -1)

    def mask(self, rows: Int[np.ndarray, " rows"]) -> Bool[np.ndarray, "rows context"]:
        """Which spans of rows are counted: those in which every tokenizer has a token that is not masked."""
        counted = np.arange(self.context)[None] < self.lengths[rows][:, None]
        for reading in self.readings:
            numbers = rows_of(reading.numbers, rows, len(self), self.context)
            row, place = np.nonzero((numbers >= 0) & reading.tokens.mask(rows))
            has_token = np.zeros_like(counted)
            has_token[row, numbers[row, place]] = True
            counted &= has_token
        return counted & self._kept(rows)

    def spans(self, row: int) -> list[bytes]:
        """The spans of a row, as UTF-8; one may end within a character where all tokenizers split that alike."""
        letters, ranges = self.text_of(row)
        return [letters[start:stop] for start, stop in ranges.tolist()]

    def text_of(self, row: int) -> tuple[bytes, Int64[np.ndarray, "spans 2"]]:
        """The text of a row, as UTF-8, and between which of its bytes each span stands."""
        text = np.memmap(self.text, np.uint8, "r") if isinstance(self.text, Path) else self.text
        start = int(self.text_ends[row - 1]) if row else 0
        ranges = rows_of(self.ranges, np.array([row]), len(self), 2 * self.context).reshape(-1, 2)
        return text[start : int(self.text_ends[row])].tobytes(), ranges[: self.lengths[row]]

    def fit_table(self) -> Any:
        """How well the tokenizers fit, a row per model (docs/store.md, spans)."""
        return self.fit.table(self.tokenizers, [reading.digest for reading in self.readings])

    def _reading(self, model: str) -> Reading:
        return self.readings[self.tokenizers[model]]

    @classmethod
    def load(
        cls,
        config: StudyConfig,
        tokenizers: Mapping[str, Any],
        *,
        context: int,
        folder: Path | None = None,
        pooling: PoolingKind = "mean",
    ) -> "Passages":
        """Read `config.data` by the tokenizer of every model into rows of at most `context` tokens of each.

        In `folder`, the rows are kept in files there.  Raises `TokenizerError` (a slow tokenizer, text that is tokens
        already), `ConfigError` (a mask of ids) and `TextError`, as `TokenDataset.load`.
        """
        readers, places = readers_of(tokenizers)
        bounds = [boundary_tokens(reader.tokenizer, reader.name) for reader in readers]
        masks, notes = _masks(config, readers, bounds)
        corpus = Corpus(config)
        stretches = stretches_of(corpus, readers, [eos for _, eos in bounds], config.min_characters)
        growing = _Growing([GrowingRows(context, bos, masked) for (bos, _), masked in zip(bounds, masks)], context)
        fit = SpanFit(len(readers))
        rows = span_rows(stretches, context - 1, len(readers), fit)
        some = islice(rows, config.max_tokens // context)
        made = growing.fill(some, fit, readers, places, folder=folder)
        made.notes += corpus.conclude(rows) + notes
        made.pooling = pooling
        made.require_rows(config, "spans")
        return made

    def __repr__(self) -> str:
        return f"Passages({self.n_spans:,} spans of {len(self.readings)} tokenizers in {len(self):,} rows)"


def readers_of(tokenizers: Mapping[str, Any]) -> tuple[list[ByteReader], dict[str, int]]:
    """A reader for each different tokenizer, and which of them each model has."""
    readers: list[ByteReader] = []
    places = {}
    for model, tokenizer in tokenizers.items():
        reader = ByteReader(tokenizer, model)
        known = [one.digest for one in readers]
        places[model] = known.index(reader.digest) if reader.digest in known else len(readers)
        readers += [reader] if places[model] == len(readers) else []
    return readers, places


def _masks(
    config: StudyConfig, readers: Sequence[ByteReader], bounds: Sequence[tuple[int, int]]
) -> tuple[list[set[int]], list[str]]:
    """The ids that each tokenizer masks, and notes on rules that name no token."""
    numbers = [rule for rule in config.mask if isinstance(rule, int)]
    if numbers:
        raise ConfigError(
            f"mask names token {numbers[0]}, but the models' tokenizers differ",
            wanted="rules that hold for all: bos, eos, newline",
            fix="leave the ids out of --mask",
        )
    masks, notes = [], []
    for reader, (bos, eos) in zip(readers, bounds):
        masked, said = masked_ids(config.mask, reader.tokenizer, bos, eos)
        masks.append(masked)
        notes += [f"{reader.name}: {note}" for note in said]
    return masks, notes


class _Growing:
    """Passages as their rows are made one by one."""

    def __init__(self, tokens: Sequence[GrowingRows], context: int) -> None:
        self.tokens, self.context = tokens, context
        self.lengths: list[int] = []
        self.text_ends: list[int] = []
        self.known: dict[bytes, int] = {}
        self.digest = hashlib.sha256()

    def fill(
        self,
        rows: Iterable[tuple[str, Stretch]],
        fit: SpanFit,
        readers: Sequence[ByteReader],
        tokenizers: dict[str, int],
        *,
        folder: Path | None,
    ) -> Passages:
        """Passages of these rows."""
        places = range(len(readers))
        with ExitStack() as stack:
            id_files = [stack.enter_context(RowFile(folder, f"rows-{n}.i32")) for n in places]
            number_files = [stack.enter_context(RowFile(folder, f"spans-{n}.i32")) for n in places]
            span_ids = stack.enter_context(RowFile(folder, IDS_FILE))
            ranges = stack.enter_context(RowFile(folder, RANGES_FILE))
            text = stack.enter_context(RowFile(folder, TEXT_FILE, np.uint8))
            for subset, row in rows:
                for n in places:
                    id_files[n].add(self.tokens[n].add(subset, row.ids[n]))
                    number_files[n].add(self._numbers(row, n))
                ends = self._spans(row, fit)
                ranges.add(ends)
                span_ids.add(self._ids(row, ends.reshape(-1, 2)[: self.lengths[-1]]))
                text.add(row.text)
        readings = (
            Reading(reader.digest, tokens.finish(ids.rows(self.context)), numbers.rows(self.context))
            for reader, tokens, ids, numbers in zip(readers, self.tokens, id_files, number_files)
        )
        ids_of_spans, ends_of_spans = span_ids.rows(self.context), ranges.rows(2 * self.context)
        return self._finish(tuple(readings), tokenizers, ids_of_spans, ends_of_spans, text.rows(1), fit)

    def _ids(self, row: Stretch, ends: Int[np.ndarray, "spans 2"]) -> Int[np.ndarray, " context"]:
        """What each span of a row says, as a number."""
        ids, letters = np.zeros(self.context, KIND), row.text.tobytes()
        for place, (start, stop) in enumerate(ends.tolist()):
            ids[place] = self.known.setdefault(letters[start:stop], len(self.known))
        return ids

    def _numbers(self, row: Stretch, n: int) -> Int[np.ndarray, " context"]:
        """The span of each token of a row, BOS in front."""
        numbers = np.full(self.context, -1, KIND)
        numbers[1 : len(row.ids[n]) + 1] = span_numbers(row.units, n)
        return numbers

    def _spans(self, row: Stretch, fit: SpanFit) -> Int[np.ndarray, " ends"]:
        """The ranges of a row's spans, which are counted on the way."""
        spans = row.units.are_spans
        length = int(spans.sum())
        counted = []
        for n, tokens in enumerate(self.tokens):
            numbers = span_numbers(row.units, n)
            kept = numbers[(numbers >= 0) & ~np.isin(row.ids[n], np.array(tokens.masked))]
            counted.append(np.bincount(kept, minlength=length) > 0)
        fit.add_row(row.units, counted)
        ends = np.zeros((self.context, 2), KIND)
        ends[:length] = np.stack([row.units.start[spans], row.units.stop[spans]], 1)
        self.lengths.append(length)
        self.text_ends.append(len(row.text) + (self.text_ends[-1] if self.text_ends else 0))
        for part in (ends, row.text, np.logical_and.reduce(counted)):
            self.digest.update(part.tobytes())
        return ends.reshape(-1)

    def _finish(
        self,
        readings: tuple[Reading, ...],
        tokenizers: dict[str, int],
        span_ids: Int[np.ndarray, "rows context"] | Path,
        ranges: Int[np.ndarray, "rows ends"] | Path,
        text: UInt8[np.ndarray, "bytes 1"] | Path,
        fit: SpanFit,
    ) -> Passages:
        first = readings[0].tokens
        names = sorted([one.digest, one.tokens.bos, list(one.tokens.masked)] for one in readings)
        about = [names, self.context, self.lengths, first.subsets.tolist(), first.subset_names]
        self.digest.update(json.dumps(about).encode())
        return Passages(
            readings=readings,
            tokenizers=tokenizers,
            lengths=np.array(self.lengths, np.int32),
            context=self.context,
            subsets=first.subsets,
            subset_names=first.subset_names,
            counted=fit.counted,
            span_ids=span_ids,
            strings=tuple(letters.decode("utf-8", "replace") for letters in self.known),
            ranges=ranges,
            text=text if isinstance(text, Path) else text.reshape(-1),
            text_ends=np.array(self.text_ends, np.int64),
            fit=fit,
            fingerprint=self.digest.hexdigest(),
        )
