"""Read documents: bundled, text, JSON lines, parquet, saved `datasets` folders, hub data sets.

What a file is, its content says (`text_files.py`); the suffix decides only where the content leaves it open.  Documents
come lazily and everything is read in bounded pieces, so neither a corpus nor a line, a cell or what a few compressed
bytes unpack to has to fit in memory.  A document is text, or, where the source is already tokenised (a column `tokens`
or `input_ids`), a list of token ids.
"""

import contextlib
import json
import os
import re
import stat
import string
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from universal_neurons.config import BUNDLED, StudyConfig
from universal_neurons.disk import local_path
from universal_neurons.errors import InputError, MissingFileError, TextError
from universal_neurons.models import bundled_text
from universal_neurons.text.records import LONGEST_DOCUMENT, Columns, Document
from universal_neurons.text.text_files import COMPRESSIONS, HEAD, PARQUET, Characters, Opened

JSON_SUFFIXES = {".json", ".jsonl", ".jsonlines", ".ndjson", ".jl"}
TEXT_SUFFIXES = {".txt", ".text", ".md"}
SUFFIXES = {*JSON_SUFFIXES, *TEXT_SUFFIXES, ".parquet"}.union(*(c.suffixes for c in COMPRESSIONS))
LIKE_JSON = re.compile(r"""\s*[\[{]\s*(["'{\[\]}]|$)""")
MARK = "\ufeff"  # a byte order mark, which stands within a text where files with marks were joined
SPACE = MARK + string.whitespace
SPLITS = ("test", "validation", "train")
PIECE = 1 << 20  # characters of a text file that are tokenised at a time
LONGEST_LINE = LONGEST_DOCUMENT + (1 << 20)  # characters of a JSON line
ROWS = 1024  # of a table that are read at a time, at most
TABLE_BYTES = 1 << 26  # of a table that are read at a time
ROW_BYTES = 1 << 20  # that a row of a large row group may have on the average
GROUP_BYTES = 1 << 28
LARGEST_ROW = 1 << 27
LIST_ROWS = 16  # where a row may be a list: equal tokens take no bytes in a file, whatever their number
WANTED = "a text, jsonl or parquet file, a `datasets` folder or a hub id"


class Corpus:
    """The documents of `config.data`, in order; once they are read, `conclude` says what was left out or mended.

    Raises `MissingFileError` and `TextError` (not UTF-8, not JSON, no such column, empty).
    """

    def __init__(self, config: StudyConfig) -> None:
        self.config = config
        self.columns = Columns(config)
        self.notes: list[str] = []

    def __iter__(self) -> Iterator[Document]:
        documents = self._open()
        first = next(documents, None)
        if first is None:
            raise self.columns.empty()
        only = self.config.only_subset
        return (document for document in chain([first], documents) if not only or document.subset in only)

    def conclude(self, rest: Iterator[object]) -> list[str]:
        """Notes on what was left out or mended; `rest` is what was made of the text beyond `max_tokens`.

        Raises `TextError` where a column, or a subset, that was asked for never came.
        """
        cut = next(rest, None) is not None
        notes = [*self.notes, *self.columns.conclude()]
        if cut:
            notes.append(f"the text has more: {self.config.max_tokens:,} tokens of it are read (--max-tokens)")
        for name in self.config.only_subset:
            self.columns.require_subset(name)
        return notes

    def _open(self) -> Iterator[Document]:
        data = self.config.data
        if data == BUNDLED:
            return self._file(bundled_text(self.config.models))
        path = local_path(data)
        try:
            mode = os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            if path.is_symlink():
                raise MissingFileError(f"{data}: a link that leads nowhere", wanted=WANTED) from None
            if data.startswith((".", "/", "~")) or path.suffix.lower() in SUFFIXES or data.count("/") > 1:
                raise MissingFileError(f"{data}: no such file", wanted=WANTED) from None
            return self._hub()
        except OSError as error:
            raise TextError(f"{data}: cannot be read", given=error.strerror, wanted="a readable file") from None
        return self._saved(path) if stat.S_ISDIR(mode) else self._file(path)

    def _file(self, path: Path) -> Iterator[Document]:
        with Opened(path) as opened:
            if opened.head.startswith(PARQUET) or (opened.head and opened.path.suffix.lower() == ".parquet"):
                yield from self._parquet(opened)
                return
            characters = opened.characters()
            if self._holds_records(opened, characters):
                yield from self._json_lines(opened, characters)
            else:
                self.columns.require_none(str(opened.path))
                for piece, ends in characters.pieces(PIECE):
                    yield Document(piece, ends=ends)

    def _holds_records(self, opened: Opened, characters: Characters) -> bool:
        """Whether a text is JSON lines: named so, or its first line is an object; of a `.txt`, one with a text.

        Raises `TextError` for a file of neither name that looks like JSON lines and does not begin with a record.
        """
        if JSON_SUFFIXES & opened.suffixes:
            return True
        first = characters.first_line(HEAD).lstrip(MARK)
        looks_like_json = LIKE_JSON.match(first)
        if first.startswith("{"):
            first = characters.first_line(LONGEST_LINE).lstrip(MARK)
        record = _object(first)
        named_text = TEXT_SUFFIXES & opened.suffixes
        if record and (not named_text or self.columns.has_text(record)):
            return True
        lines = characters.head(HEAD, LONGEST_LINE).split("\n")
        an_object = next((number for number, line in enumerate(lines, 1) if _object(line)), None)
        if named_text and an_object:
            self.notes.append(
                f"{opened.path}: read as text, though line {an_object} is a JSON object: name it .jsonl if not"
            )
        elif not named_text and (looks_like_json or an_object):
            number = next((number for number, line in enumerate(lines, 1) if line.strip(SPACE)), 1)
            raise _half_json(opened, number, first, an_object)
        return False

    def _json_lines(self, opened: Opened, characters: Characters) -> Iterator[Document]:
        for number, line in enumerate(characters.lines(LONGEST_LINE), 1):
            where = f"{opened.path}: line {number}"
            if len(line) == LONGEST_LINE and line[-1] != "\n":
                raise TextError(
                    f"{where} is too long",
                    given=f"more than {LONGEST_LINE:,} characters",
                    wanted="one document a line",
                    fix=_as_lines(line, opened) or "cut the document into several, or give it as a text file",
                )
            line = line.lstrip(MARK)
            if line.strip():
                record = _parsed(line, where, opened)
                yield from self.columns.documents(record, where)

    def _parquet(self, opened: Opened) -> Iterator[Document]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if opened.compression is not None or not opened.file.seekable():
            raise opened.refused(
                "parquet that is compressed once more, or comes through a pipe",
                wanted="the parquet file itself",
                fix="write it into a file, and give that",
            )
        failed = f"{opened.path}: not a readable parquet file"
        with _naming(failed, wanted="parquet"):
            table = pq.ParquetFile(pa.OSFile(str(opened.path)))
            columns = self.columns.needed(table.schema_arrow.names, str(opened.path))
            strings = [name for name in columns if pa.types.is_string(table.schema_arrow.field(name).type)]
            table = pq.ParquetFile(  # a string that is there a million times is kept once
                pa.OSFile(str(opened.path)), pre_buffer=False, buffer_size=1 << 20, read_dictionary=strings
            )
            groups = range(table.num_row_groups)
        for group in groups:
            with _naming(failed, wanted="parquet"):
                rows = _rows_at_once(table, group, columns, str(opened.path))
                batches = iter(table.iter_batches(rows, row_groups=[group], columns=columns))
            yield from self._batches(batches, failed)

    def _batches(self, batches: Iterator[Any], failed: str) -> Iterator[Document]:
        """The documents of Arrow's batches, which nobody has validated yet."""
        while True:
            with _naming(failed, wanted="a whole table"):
                batch = next(batches, None)
                if batch is None:
                    return
                if batch.nbytes > batch.num_rows * LARGEST_ROW:
                    raise _too_large(failed, batch.nbytes // max(1, batch.num_rows), LARGEST_ROW)
                batch.validate(full=True)
                names, columns = batch.schema.names, batch.columns
            for row in range(batch.num_rows):
                with _naming(failed, wanted="a whole table, its text UTF-8"):
                    record = {name: column[row].as_py() for name, column in zip(names, columns)}
                yield from self.columns.documents(record, self.config.data)

    def _saved(self, path: Path) -> Iterator[Document]:
        import datasets

        with _naming(
            f"{path}: not a saved data set",
            wanted="a folder written by Dataset.save_to_disk",
            fix="give a file; if a hub data set of this name is meant, go to another folder",
        ):
            loaded = datasets.load_from_disk(str(path))
        if isinstance(loaded, datasets.DatasetDict):
            loaded = loaded[self._split(list(loaded))]
        with _naming(f"{path}: not a saved data set", wanted="a folder written by Dataset.save_to_disk"):
            rows = loaded.with_format("arrow")
            names = list(loaded.column_names)
        rows = rows.select_columns(self.columns.needed(names, str(path)))
        yield from self._batches(_record_batches(rows), f"{path}: not a saved data set")

    def _hub(self) -> Iterator[Document]:
        import datasets

        data, part = self.config.data, self.config.data_config
        datasets.disable_progress_bars()
        with _naming(
            f"{data}: neither a local file nor a data set of the hub that can be reached",
            MissingFileError,
            wanted=WANTED,
            fix="check the spelling, the network and --data-config",
        ):
            split = self._split(datasets.get_dataset_split_names(data, part))
            records = iter(datasets.load_dataset(data, part, split=split, streaming=True))
        while True:
            with _naming(
                f"{data}: reading it failed",
                wanted="a data set that can be read to its end",
                fix="check the network; for zstd-compressed files: pip install 'universal-neurons[pile]'",
            ):
                record = next(records, None)
            if record is None:
                return
            yield from self.columns.documents(record, data)

    def _split(self, names: list[str]) -> str:
        split = self.config.data_split
        if split is None and names:
            return next((usual for usual in SPLITS if usual in names), names[0])
        if split not in names:
            what = f"{self.config.data}: no split {split!r}" if names else f"{self.config.data}: it has no splits"
            raise TextError(what, wanted="one of " + ", ".join(names) if names else "a data set with some text")
        return split


@contextlib.contextmanager
def _naming(what: str, kind: type[InputError] = TextError, **advice: str) -> Iterator[None]:
    """Whatever another library's reader raises over a file, as an error of ours."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise kind(what, given=f"{type(error).__name__}: {error}".splitlines()[0], **advice) from error


def _object(line: str) -> dict | None:
    """The object that a line is, if it is one and not empty."""
    if not line.lstrip(SPACE).startswith("{"):
        return None
    try:
        value = json.loads(line.lstrip(MARK))
    except (ValueError, RecursionError):
        return None
    return value or None


def _half_json(opened: Opened, number: int, line: str, an_object: int | None) -> TextError:
    """An error about a file that is neither JSON lines nor clearly text; `an_object` is a line that is a record."""
    try:
        reason = "a list" if isinstance(json.loads(line), list) else "an empty object"
    except RecursionError:
        reason = "too deeply nested"
    except ValueError as error:
        reason = str(error)
    several = an_object is None and (line.startswith("[") or line.strip() == "{")
    return opened.refused(
        f"line {number} is not a record, but the file looks like JSON lines",
        given=reason if an_object is None else f"{reason}; line {an_object} is an object",
        wanted="one object a line, or a name that says that it is text",
        fix=f"{_as_lines(line, opened) if several else 'mend the line'}, or name the file .txt to have it read as text",
    )


def _parsed(line: str, where: str, opened: Opened) -> Any:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TextError(
            f"{where} is not JSON",
            given="too deeply nested" if isinstance(error, RecursionError) else error,
            wanted="one object a line",
            fix=_as_lines(line, opened),
        ) from None
    if isinstance(record, list):
        raise TextError(f"{where}: not a record", given="list", wanted="one object a line", fix=_as_lines(line, opened))
    return record


def _as_lines(line: str, opened: Opened) -> str | None:
    """How a file that is one array, or one object over several lines, becomes JSON lines."""
    filters = {"[": ".[]", "{": "."}
    kind = line.lstrip()[:1]
    return f"jq -c '{filters[kind]}' {opened.quoted} > corpus.jsonl" if kind in filters else None


def _is_within(path: str, columns: Sequence[str]) -> bool:
    """Whether a dotted path is one of some columns, or a part of one."""
    return any(path == name or path.startswith(f"{name}.") for name in columns)


def _rows_at_once(table: Any, number: int, columns: Sequence[str], where: str) -> int:
    """How many rows of a row group of a parquet file are read at a time.  Raises `TextError` for too large ones."""
    group = table.metadata.row_group(number)
    size = group.total_byte_size
    count = max(1, group.num_rows)
    if size > GROUP_BYTES and size > count * ROW_BYTES:  # pyarrow aborts here where the sizes are damaged: not before
        chunks = [group.column(index) for index in range(group.num_columns)]
        paths = [(chunk.path_in_schema, chunk.total_uncompressed_size) for chunk in chunks]
        size = sum(n_bytes for path, n_bytes in paths if _is_within(path, columns))
    if size > GROUP_BYTES and size > count * ROW_BYTES:
        raise _too_large(f"{where}: its rows are too large", size // count, ROW_BYTES)
    lists = any(hasattr(table.schema_arrow.field(name).type, "value_field") for name in columns)
    return LIST_ROWS if lists else max(1, min(ROWS, TABLE_BYTES // (size // count + 1)))


def _too_large(what: str, mean_bytes: int, most: int) -> TextError:
    return TextError(
        what,
        given=f"{mean_bytes:,} bytes in a row on the average",
        wanted=f"at most {most:,}, or row groups of at most {GROUP_BYTES:,}",
        fix="cut the documents into several, or write smaller row groups",
    )


def _record_batches(rows: Any) -> Iterator[Any]:
    """Arrow's batches of a `datasets` data set, of a bounded size."""
    start = 0
    size = ROWS
    while start < len(rows):
        table = rows[start : start + size]
        if table.nbytes > TABLE_BYTES and size > 1:
            size //= 4
        else:
            yield from table.to_batches()
            start += len(table)
