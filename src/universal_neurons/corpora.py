"""Read documents: bundled, UTF-8 text, jsonl (also .gz, .xz), parquet, saved `datasets` folders, hub data sets.

Every reader yields `Document`s lazily, so a corpus never has to fit in memory.  A document is text, or, where the
source is already tokenised (a column `tokens` or `input_ids`), a list of token ids.
"""

import gzip
import json
import lzma
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import Any

from universal_neurons.checkpoints import BUNDLED_FOLDER
from universal_neurons.config import BUNDLED, StudyConfig
from universal_neurons.errors import MissingFileError, TextError

TOKEN_COLUMNS = ("tokens", "input_ids")
SUFFIXES = (".txt", ".text", ".md", ".json", ".jsonl", ".parquet", ".gz", ".xz")
SPLITS = ("test", "validation", "train")
PIECE = 1 << 20  # characters of a text file that are tokenised at a time


@dataclass(frozen=True)
class Document:
    """One document: its text or its (unchecked) token ids, and the subset it belongs to ("" where there are none)."""

    content: str | list
    subset: str = ""


def read_documents(config: StudyConfig) -> Iterator[Document]:
    """The documents of `config.data`, in order.

    Raises `MissingFileError` and `TextError` (not UTF-8, not JSON, no such column, empty).
    """
    documents = _open(config)
    try:
        first = next(documents)
    except StopIteration:
        raise TextError(f"{config.data}: empty", wanted="text", fix="give a corpus with some text in it") from None
    return chain([first], documents)


def _open(config: StudyConfig) -> Iterator[Document]:
    if config.data == BUNDLED:
        return _jsonl(BUNDLED_FOLDER / "heldout.jsonl.xz", config)
    path = Path(config.data).expanduser()
    if path.is_dir():
        return _saved(path, config)
    if path.is_file():
        suffixes = [s.lower() for s in path.suffixes]
        if ".jsonl" in suffixes or ".json" in suffixes:
            return _jsonl(path, config)
        if suffixes and suffixes[-1] == ".parquet":
            return _parquet(path, config)
        return _text(path)
    if config.data.startswith((".", "/", "~")) or path.suffix.lower() in SUFFIXES or config.data.count("/") > 1:
        raise MissingFileError(
            f"{config.data}: no such file", wanted="a text, jsonl or parquet file, a `datasets` folder or a hub id"
        )
    return _hub(config)


def _opened(path: Path) -> TextIOWrapper:
    opener: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix.lower(), open)
    return opener(path, "rt", encoding="utf-8")


def _lines(path: Path) -> Iterator[str]:
    try:
        with _opened(path) as stream:
            yield from stream
    except UnicodeDecodeError as error:
        raise TextError(
            f"{path}: not UTF-8",
            given=f"byte {error.object[error.start]:#04x}, {error.reason}",
            wanted="UTF-8 text",
            fix=f"iconv -f latin1 -t utf-8 {path.name} > utf8-{path.name}",
        ) from None
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise TextError(f"{path}: cannot be read", given=error, wanted="a readable file") from None


def _text(path: Path) -> Iterator[Document]:
    """One document, in pieces that end at a line's end."""
    piece: list[str] = []
    length = 0
    for line in _lines(path):
        piece.append(line)
        length += len(line)
        if length >= PIECE:
            yield Document("".join(piece))
            piece, length = [], 0
    if length:
        yield Document("".join(piece))


def _jsonl(path: Path, config: StudyConfig) -> Iterator[Document]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise TextError(f"{path}: line {number} is not JSON", given=error, wanted="one object a line") from None
        yield _document(record, f"{path}: line {number}", config)


def _parquet(path: Path, config: StudyConfig) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
            for record in batch.to_pylist():
                yield _document(record, str(path), config)
    except (pa.ArrowException, OSError) as error:
        raise TextError(f"{path}: not a readable parquet file", given=error, wanted="parquet") from None


def _saved(path: Path, config: StudyConfig) -> Iterator[Document]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise TextError(
            f"{path}: not a saved data set", given=error, wanted="a folder written by Dataset.save_to_disk"
        ) from None
    if isinstance(loaded, datasets.DatasetDict):
        loaded = loaded[_split(list(loaded), config)]
    return _records(loaded.with_format(None), config)


def _hub(config: StudyConfig) -> Iterator[Document]:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    datasets.disable_progress_bars()
    try:
        split = _split(datasets.get_dataset_split_names(config.data, config.data_config), config)
        loaded = datasets.load_dataset(config.data, config.data_config, split=split, streaming=True)
    except (OSError, ValueError, RuntimeError, HfHubHTTPError) as error:
        raise MissingFileError(
            f"{config.data}: neither a local file nor a data set of the hub that can be reached",
            given=str(error).splitlines()[0][:200],
            wanted="a text, jsonl or parquet file, a `datasets` folder or a hub id",
            fix="check the spelling, the network and --data-config",
        ) from None
    return _records(loaded, config)


def _split(names: list[str], config: StudyConfig) -> str:
    if config.data_split is None:
        return next((split for split in SPLITS if split in names), names[0])
    if config.data_split not in names:
        raise TextError(f"{config.data}: no split {config.data_split!r}", wanted="one of " + ", ".join(names))
    return config.data_split


def _records(records: Iterable[Any], config: StudyConfig) -> Iterator[Document]:
    try:
        for record in records:
            yield _document(record, config.data, config)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise TextError(
            f"{config.data}: reading it failed",
            given=f"{type(error).__name__}: {error}".splitlines()[0][:200],
            wanted="a data set that can be read to its end",
            fix="check the network; for zstd-compressed files: pip install 'universal-neurons[pile]'",
        ) from error


def _document(record: Any, where: str, config: StudyConfig) -> Document:
    if not isinstance(record, dict):
        raise TextError(f"{where}: not a record", given=type(record).__name__, wanted="an object with a text column")
    subset = _at(record, config.subset_column)
    for column in (config.text_column, *TOKEN_COLUMNS):
        content = _at(record, column)
        if content is not None:
            wanted = str if column == config.text_column else list
            if not isinstance(content, wanted):
                raise TextError(f"{where}: {column!r} is {type(content).__name__}", wanted=wanted.__name__)
            mask = record.get("attention_mask")
            if wanted is list and isinstance(mask, list) and len(mask) == len(content):
                content = [token for token, real in zip(content, mask) if real]
            return Document(content, "" if subset is None else str(subset))
    raise TextError(
        f"{where}: no text",
        given="columns " + ", ".join(map(str, record)),
        wanted=f"{config.text_column!r}, 'tokens' or 'input_ids'",
        fix="name the column with --text-column",
    )


def _at(record: Any, path: str) -> Any:
    for key in path.split("."):
        record = record.get(key) if isinstance(record, dict) else None
    return record
