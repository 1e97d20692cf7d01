"""Records to documents: which column is the text, which are token ids, which names the subset, and what is left out.

A column is found by its name as it stands; only then is a dotted name a path into objects.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from universal_neurons.config import StudyConfig
from universal_neurons.errors import TextError, TokenRangeError
from universal_neurons.legible import brief_repr
from universal_neurons.text.text_files import cut_at

TOKEN_COLUMNS = ("tokens", "input_ids")
MASK_COLUMN = "attention_mask"
LEAST_ID, MOST_ID = -(1 << 31), (1 << 31) - 1
DEFAULTS = StudyConfig()
HALVES = re.compile("[\ud800-\udfff]")
LONGEST = 1 << 22  # characters of a document that are tokenised at a time
LONGEST_DOCUMENT = 1 << 25
SUBSET_CHARACTERS = 1000
MOST_SUBSETS = 1 << 16
MOST_NAMES = 50  # columns that an error lists


@dataclass(frozen=True)
class Document:
    """One document, or a part of a long one: its text or its token ids (of no vocabulary yet), and its subset.

    `subset` is "" where there are none; `ends` is False where the next document goes on with this one.
    """

    content: str | list
    subset: str = ""
    ends: bool = True


class Columns:
    """Makes documents of records, as a configuration names their columns, and counts what it leaves out or mends."""

    def __init__(self, config: StudyConfig) -> None:
        self.data = config.data
        self.subset = config.subset_column
        self.subset_asked = config.subset_column != DEFAULTS.subset_column
        asked = config.text_column != DEFAULTS.text_column
        self.texts = (config.text_column,) if asked else (config.text_column, *TOKEN_COLUMNS)
        self.records = self.nulls = self.mended = self.with_subset = 0
        self.subsets: set[str] = set()
        self.names: dict[str, None] = {}

    def has_text(self, record: Any) -> bool:
        """Whether a record is one of those that are looked for."""
        return isinstance(record, dict) and any(_at(record, column)[0] for column in self.texts)

    def needed(self, names: Sequence[str], where: str) -> list[str]:
        """Which columns of a table are read.  Raises `TextError` where none is text, or the subset is not there."""
        texts = set(chain.from_iterable(map(_heads, self.texts)))
        subset = set(_heads(self.subset))
        if texts.isdisjoint(names):
            raise self._no_text(where, names)
        if self.subset_asked and subset.isdisjoint(names):
            raise self._no_subset(names)
        wanted = texts | subset | set(_heads(MASK_COLUMN))
        return [name for name in names if name in wanted]

    def require_none(self, where: str) -> None:
        """Raise `TextError` where columns are asked for of a text that has none."""
        asked = [
            name for name in (self.subset, self.texts[0]) if name not in (DEFAULTS.subset_column, DEFAULTS.text_column)
        ]
        if asked:
            raise TextError(
                f"{where}: no column {asked[0]!r}",
                given="a text, which has no columns",
                wanted="JSON lines, parquet or a data set",
                fix="leave the columns' names out",
            )

    def documents(self, record: Any, where: str) -> Iterator[Document]:
        """The document of a record, in parts if it is long; none where its text is null."""
        if not isinstance(record, dict):
            raise TextError(
                f"{where}: not a record", given=type(record).__name__, wanted="an object with a text column"
            )
        self.records += 1
        columns = {}
        for column in self.texts:
            has, value = _at(record, column)
            if has:
                columns[column] = value
        if not columns:
            raise self._no_text(where, list(map(str, record)))
        subset = self._subset(record, where)
        column, content = next(((c, value) for c, value in columns.items() if value is not None), ("", None))
        if content is None:
            self.nulls += 1
        elif column in TOKEN_COLUMNS:
            yield Document(_tokens(content, record, column, where), subset)
        else:
            yield from self._parts(content, subset, column, where)

    def _parts(self, content: Any, subset: str, column: str, where: str) -> Iterator[Document]:
        if not isinstance(content, str):
            raise TextError(
                f"{where}: {column!r} is {type(content).__name__}",
                wanted="str",
                fix=f"for token ids, name the column {' or '.join(TOKEN_COLUMNS)}"
                if isinstance(content, list)
                else None,
            )
        if len(content) > LONGEST_DOCUMENT:
            raise TextError(
                f"{where}: too long a document",
                given=f"{len(content):,} characters",
                wanted=f"at most {LONGEST_DOCUMENT:,}",
                fix="cut it into several, or give it as a text file",
            )
        text, halves = HALVES.subn("\ufffd", content)
        self.mended += bool(halves)
        while len(text) > LONGEST:
            cut = cut_at(text[:LONGEST], LONGEST)
            yield Document(text[:cut], subset, ends=False)
            text = text[cut:]
        yield Document(text, subset)

    def _subset(self, record: dict, where: str) -> str:
        has, value = _at(record, self.subset)
        self.with_subset += has
        if not self.with_subset and self.subset_asked and len(self.names) < MOST_NAMES:
            self.names |= dict.fromkeys(map(str, islice(record, MOST_NAMES)))
        if value is None:
            return ""
        name = HALVES.sub("\ufffd", str(value))
        if len(name) > SUBSET_CHARACTERS:
            raise TextError(
                f"{where}: {self.subset!r} is no subset's name",
                given=f"{len(name):,} characters, {name}",
                wanted=f"at most {SUBSET_CHARACTERS}",
                fix="name the column of the subsets with --subset-column",
            )
        self.subsets.add(name)
        if len(self.subsets) > MOST_SUBSETS:
            raise TextError(
                f"{self.data}: {self.subset!r} names no subsets",
                given=f"more than {MOST_SUBSETS:,} of them",
                wanted="names that documents share",
                fix="name another column with --subset-column",
            )
        return name

    def require_subset(self, name: str) -> None:
        """Raise `TextError` where no document that was read is of a subset."""
        if name in self.subsets:
            return
        if not self.subsets:
            raise TextError(
                f"{self.data}: no subset {name!r}: the text names no subsets",
                wanted="documents with the name of their subset",
                fix="name its column with --subset-column, or leave --only-subset out",
            )
        known = sorted(self.subsets)
        more = ", …" if len(known) > MOST_NAMES else ""
        raise TextError(
            f"{self.data}: no subset {name!r} in the text that was read",
            given=", ".join(known[:MOST_NAMES]) + more,
            wanted="the name of one of these subsets",
            fix="name another with --only-subset, or raise --max-tokens if it comes later",
        )

    def conclude(self) -> list[str]:
        """What is to be said once all is read.  Raises `TextError` where a column that was asked for never came."""
        if self.subset_asked and self.records and not self.with_subset:
            raise self._no_subset(list(self.names))
        notes = []
        if self.nulls:
            notes.append(f"{_count(self.nulls, 'document')} left out: the text is null")
        if self.mended:
            notes.append(f"{_count(self.mended, 'document')} held half characters (lone surrogates), read as U+FFFD")
        return notes

    def empty(self) -> TextError:
        """A corpus without any document."""
        if self.nulls:
            return TextError(
                f"{self.data}: no text",
                given=f"{', '.join(map(repr, self.texts))}: null in all of {_count(self.nulls, 'record')}",
                wanted="text",
                fix="name the column with --text-column",
            )
        return TextError(f"{self.data}: empty", wanted="text", fix="give a corpus with some text in it")

    def _no_text(self, where: str, names: Sequence[str]) -> TextError:
        return TextError(
            f"{where}: no text",
            given="columns " + ", ".join(names),
            wanted=" or ".join(map(repr, self.texts)),
            fix="name the column with --text-column",
        )

    def _no_subset(self, names: Sequence[str]) -> TextError:
        return TextError(
            f"{self.data}: no column {self.subset!r}",
            given="columns " + ", ".join(names),
            wanted="the column of the subsets' names",
            fix="name one of them with --subset-column, or leave that out",
        )


def _tokens(content: Any, record: dict, column: str, where: str) -> list:
    if not isinstance(content, list):
        raise TextError(f"{where}: {column!r} is {type(content).__name__}", wanted="list")
    mask = record.get(MASK_COLUMN)
    if mask is not None:
        content = _unmasked(content, mask, column, where)
    if not all(type(token) is int and LEAST_ID <= token <= MOST_ID for token in content):
        raise TokenRangeError(
            f"{where}: a row of tokens is not a list of token ids",
            given=brief_repr(content),
            wanted=f"integers from 0 to {MOST_ID}",
        )
    if content and min(content) < 0:
        raise TokenRangeError(f"{where}: a negative token id", given=min(content), wanted="ids ≥ 0")
    return content


def _unmasked(content: list, mask: Any, column: str, where: str) -> list:
    if not isinstance(mask, list) or len(mask) != len(content) or not all(isinstance(m, int) for m in mask):
        counted = f"{len(mask)} entries for {len(content)} tokens: " if isinstance(mask, list) else ""
        raise TextError(
            f"{where}: {MASK_COLUMN!r} does not belong to {column!r}",
            given=counted + brief_repr(mask),
            wanted="a list of 0 and 1 as long as the row",
            fix="mend the rows, or leave the column out",
        )
    return [token for token, real in zip(content, mask) if real]


def _at(record: dict, path: str) -> tuple[bool, Any]:
    """Whether a record has a column, and what is in it; what lies inside a null is null."""
    if path in record:
        return True, record[path]
    for head in _heads(path)[1:]:
        inner = record.get(head)
        if isinstance(inner, dict):
            return _at(inner, path[len(head) + 1 :])
        if head in record and inner is None:
            return True, None
    return False, None


def _heads(path: str) -> list[str]:
    """The names that a dotted path may begin with, the whole first."""
    ends = [n for n, character in enumerate(path) if character == "."]
    return [path, *(path[:end] for end in reversed(ends))]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"
