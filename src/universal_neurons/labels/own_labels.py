"""Labels of the user's own: Python functions on token strings, named sets of tokens, spans of tokens.

- `file.py` or `file.py:name`: every public function of the file (or the one named) that takes a token's string, with
  its leading space, and says whether the label holds.
- `file.yaml`, `file.json`: names and lists of strings; a token belongs where its string, with or without the space
  around it, is in the list.
- `file.parquet`: `row`, `start`, `end`, `label`; positions `start` up to (not including) `end` of a packed row.
"""

import contextlib
import inspect
import runpy
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from universal_neurons.disk import local_path
from universal_neurons.errors import LabelError, MissingFileError
from universal_neurons.labels.user_code import Contained
from universal_neurons.legible import brief_repr, shortened
from universal_neurons.plain_values import read_values
from universal_neurons.text import Rows, Vocabulary

SETS_BYTES = 1 << 25
MOST_SPANS = 10**7
LONGEST_NAME = 4096
NEVER_FALSE = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
SPAN_COLUMNS = ("row", "start", "end", "label")


@dataclass
class OwnLabels:
    """Token labels as masks over the vocabulary, span labels as (row, start, end) of each name."""

    tokens: dict[str, np.ndarray] = field(default_factory=dict)
    spans: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, name: str, mask: np.ndarray | None = None, spans: np.ndarray | None = None) -> None:
        """One more label; names are taken once."""
        _require_name(name)
        if name in self.tokens or name in self.spans:
            raise LabelError(f"two labels of the name {name!r}", wanted="names that differ", fix="rename one")
        if mask is not None:
            self.tokens[name] = mask
        if spans is not None:
            self.spans[name] = spans


def read_own_labels(
    sources: tuple[str, ...],
    functions: Mapping[str, Callable[[str], bool]],
    vocabulary: Vocabulary,
    tokens: Rows,
) -> OwnLabels:
    """All labels of the files and functions.  Raises `LabelError` and `MissingFileError`."""
    labels = OwnLabels()
    for name, function in functions.items():
        with Contained():
            mask = _mask(name, function, vocabulary)
        labels.add(name, mask=mask)
    for source in sources:
        place, _, wanted = source.partition(".py:")
        path = local_path(place + ".py" if wanted else source)
        suffix = path.suffix.lower()
        if suffix not in (".py", ".yaml", ".yml", ".json", ".parquet"):
            raise LabelError(f"--labels {source}: not a file of labels", wanted=".py, .yaml, .json or .parquet")
        if not _is_file(path):
            raise MissingFileError(f"--labels {source}: no such file, and no group of labels", wanted="see --help")
        if suffix == ".py":
            for name, mask in _python_masks(path, wanted, vocabulary).items():
                labels.add(name, mask=mask)
        elif suffix == ".parquet":
            for name, spans in _spans(path, tokens).items():
                labels.add(name, spans=spans)
        else:
            for name, members in _sets(path).items():
                labels.add(name, mask=_members(path, name, members, vocabulary))
    return labels


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _require_name(name: object) -> None:
    """A name that tables, figures and pages can hold."""
    if not isinstance(name, str) or not name.strip() or len(name) > LONGEST_NAME or not all(map(_shown, name)):
        raise LabelError(
            f"a label cannot be called {brief_repr(name)}",
            wanted=f"a name of 1 to {LONGEST_NAME} characters, without control characters",
            fix="give it another name",
        )


def _shown(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")


@contextlib.contextmanager
def _naming(what: str, passing: type[BaseException] = KeyboardInterrupt, **advice: str) -> Iterator[None]:
    """Whatever a user's code raises, an exit too, as an error about its file; only Ctrl-C passes."""
    try:
        yield
    except (KeyboardInterrupt, passing):
        raise
    except BaseException as error:
        described = traceback.format_exception_only(error)[-1].strip()  # even where the error's own text fails
        raise LabelError(what, given=described, **advice) from error


def _python_masks(path: Path, wanted: str, vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    """The masks of a file's functions; nothing that its code does to the process outlasts this."""
    wanted_code = "Python code that defines functions, and nothing else"
    with _naming(f"{path}: cannot be used", LabelError, wanted=wanted_code), Contained():
        functions = _functions(path, wanted)
        return {name: _mask(name, function, vocabulary, path) for name, function in functions.items()}


def _mask(name: str, function: Callable[[str], bool], vocabulary: Vocabulary, path: Path | None = None) -> np.ndarray:
    label = f"label {shortened(str(name), 200)}" if path is None else f"{path}: label {shortened(name, 200)}"
    if any(never_false(function) for never_false in NEVER_FALSE):
        raise LabelError(f"{label}: its function is asynchronous or a generator", wanted="str -> bool")
    with _naming(f"{label}: its function failed", wanted="str -> bool"):
        return np.array([not dull and bool(function(s)) for s, dull in zip(vocabulary.strings, vocabulary.special)])


def _functions(path: Path, wanted: str) -> dict[str, Callable[[str], bool]]:
    with _naming(f"{path}: cannot be run", wanted="Python code that defines functions, and nothing else"):
        names = runpy.run_path(str(path))
        functions: dict[str, Callable[[str], bool]] = {
            name: value
            for name, value in names.items()
            if inspect.isfunction(value) and not name.startswith("_") and value.__globals__.get("__file__") == str(path)
        }
    if wanted:
        functions = {name: function for name, function in functions.items() if name == wanted}
    if not functions:
        raise LabelError(f"{path}: no function {wanted}".rstrip(), wanted="functions of a token's string")
    return functions


def _are_strings(members: object) -> bool:
    return isinstance(members, list) and all(isinstance(member, str) for member in members)


def _sets(path: Path) -> dict[str, list[str]]:
    wanted = "names and lists of strings"
    sets = read_values(path, most_bytes=SETS_BYTES, refused=LabelError, wanted=wanted)
    good = isinstance(sets, dict) and all(map(_are_strings, sets.values()))
    if not good or not sets or any(isinstance(name, bool) or not isinstance(name, str | int) for name in sets):
        raise LabelError(f"{path}: not {wanted}", given=brief_repr(sets), wanted=wanted, fix="quote numbers and yes/no")
    return {str(name): members for name, members in sets.items()}


def _members(path: Path, name: str, members: list[str], vocabulary: Vocabulary) -> np.ndarray:
    wanted = set(members)
    mask = np.array([s in wanted or s.strip() in wanted for s in vocabulary.strings]) & ~vocabulary.special
    if not mask.any():
        raise LabelError(
            f"{path}: {shortened(name, 200)}: none of its strings is a token",
            given=brief_repr(members),
            wanted="tokens' strings",
        )
    return mask


def _spans(path: Path, tokens: Rows) -> dict[str, np.ndarray]:
    table = _span_table(path)
    if not len(table):
        raise LabelError(f"{path}: no spans", wanted="a row for every span")
    if not all(table[name].dtype.is_integer() for name in SPAN_COLUMNS[:3]):
        raise _not_spans(path, [f"{name}: {kind}" for name, kind in table.schema.items()])
    bad = table.filter(
        pl.any_horizontal(pl.col(*SPAN_COLUMNS).is_null())
        | (pl.col("row") < 0)
        | (pl.col("row") >= len(tokens))
        | (pl.col("start") < 0)
        | (pl.col("end") <= pl.col("start"))
        | (pl.col("end") > tokens.context)
    )
    if len(bad):
        raise LabelError(
            f"{path}: a span outside the text",
            given=brief_repr(bad.row(0, named=True)),
            wanted=f"row < {len(tokens)}, 0 ≤ start < end ≤ {tokens.context}",
        )
    spans = table.select(pl.col("row", "start", "end").cast(pl.Int64), "label").sort("label", "row", "start")
    return {
        str(name): rows.select("row", "start", "end").to_numpy()
        for (name,), rows in spans.group_by(["label"], maintain_order=True)
    }


def _span_table(path: Path) -> pl.DataFrame:
    """The four columns, their values validated; the file is opened here, so that its name stands for itself."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    readable = partial(_naming, f"{path}: not readable", wanted="parquet")
    with contextlib.ExitStack() as files:
        with readable():
            parquet = pq.ParquetFile(files.enter_context(path.open("rb")))
            columns = parquet.schema_arrow.names
            count = parquet.metadata.num_rows
        if not set(SPAN_COLUMNS) <= set(columns):
            raise _not_spans(path, columns)
        if count > MOST_SPANS:
            raise LabelError(f"{path}: too many spans", given=f"{count:,}", wanted=f"at most {MOST_SPANS:,}")
        with readable():
            read = parquet.read(columns=list(SPAN_COLUMNS))
            read.validate(full=True)
            label = read.column("label").cast(pa.large_string())
            table = pl.from_arrow(read.drop_columns(["label"]).append_column("label", label))
    assert isinstance(table, pl.DataFrame)
    return table.select(SPAN_COLUMNS)


def _not_spans(path: Path, columns: list[str]) -> LabelError:
    return LabelError(
        f"{path}: not spans of tokens", given=", ".join(columns), wanted="integers row, start, end; label"
    )
