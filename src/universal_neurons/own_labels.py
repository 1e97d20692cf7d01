"""Labels of the user's own: Python functions on token strings, named sets of tokens, spans of tokens.

- `file.py` or `file.py:name`: every public function of the file (or the one named) that takes a token's string, with
  its leading space, and says whether the label holds.
- `file.yaml`, `file.json`: names and lists of strings; a token belongs where its string, with or without the space
  around it, is in the list.
- `file.parquet`: `row`, `start`, `end`, `label`; positions `start` up to (not including) `end` of a packed row.
"""

import inspect
import runpy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from universal_neurons.errors import LabelError, MissingFileError
from universal_neurons.tokens import TokenDataset
from universal_neurons.vocabulary import Vocabulary

SPAN_COLUMNS = ("row", "start", "end", "label")


@dataclass
class OwnLabels:
    """Token labels as masks over the vocabulary, span labels as (row, start, end) of each name."""

    tokens: dict[str, np.ndarray] = field(default_factory=dict)
    spans: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, name: str, mask: np.ndarray | None = None, spans: np.ndarray | None = None) -> None:
        """One more label; names are taken once."""
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
    tokens: TokenDataset,
) -> OwnLabels:
    """All labels of the files and functions.  Raises `LabelError` and `MissingFileError`."""
    own = OwnLabels()
    for name, function in functions.items():
        own.add(name, mask=_mask(name, function, vocabulary))
    for source in sources:
        place, _, wanted = source.partition(".py:")
        path = Path(place + ".py" if wanted else source)
        if not path.is_file():
            raise MissingFileError(f"--labels {source}: no such file, and no group of labels", wanted="see --help")
        if path.suffix == ".py":
            for name, function in _functions(path, wanted).items():
                own.add(name, mask=_mask(name, function, vocabulary))
        elif path.suffix in (".yaml", ".yml", ".json"):
            for name, members in _sets(path).items():
                own.add(name, mask=_members(path, name, members, vocabulary))
        elif path.suffix == ".parquet":
            for name, spans in _spans(path, tokens).items():
                own.add(name, spans=spans)
        else:
            raise LabelError(f"--labels {source}: not a file of labels", wanted=".py, .yaml, .json or .parquet")
    return own


def _mask(name: str, function: Callable[[str], bool], vocabulary: Vocabulary) -> np.ndarray:
    try:
        holds = [not dull and bool(function(s)) for s, dull in zip(vocabulary.strings, vocabulary.special)]
    except Exception as error:
        raise LabelError(
            f"label {name}: its function failed", given=f"{type(error).__name__}: {error}", wanted="str -> bool"
        ) from error
    return np.array(holds)


def _functions(path: Path, wanted: str) -> dict[str, Callable[[str], bool]]:
    try:
        names = runpy.run_path(str(path))
    except Exception as error:
        raise LabelError(f"{path}: cannot be run", given=f"{type(error).__name__}: {error}") from error
    found: dict[str, Callable[[str], bool]] = {
        name: f
        for name, f in names.items()
        if inspect.isfunction(f) and not name.startswith("_") and f.__globals__.get("__file__") == str(path)
    }
    if wanted:
        found = {name: f for name, f in found.items() if name == wanted}
    if not found:
        raise LabelError(f"{path}: no function {wanted}".rstrip(), wanted="functions of a token's string")
    return found


def _sets(path: Path) -> dict[str, list[str]]:
    try:
        sets: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise LabelError(f"{path}: not readable", given=error, wanted="names and lists of strings") from None
    good = isinstance(sets, dict) and all(isinstance(v, list) and all(isinstance(s, str) for s in v)
                                          for v in sets.values())  # fmt: skip
    if not good or not sets:
        raise LabelError(
            f"{path}: not names and lists of strings", given=repr(sets)[:80], fix="quote numbers and yes/no"
        )
    return {str(name): members for name, members in sets.items()}


def _members(path: Path, name: str, members: list[str], vocabulary: Vocabulary) -> np.ndarray:
    wanted = set(members)
    mask = np.array([s in wanted or s.strip() in wanted for s in vocabulary.strings]) & ~vocabulary.special
    if not mask.any():
        raise LabelError(f"{path}: {name}: none of its strings is a token", given=members[:5], wanted="tokens' strings")
    return mask


def _spans(path: Path, tokens: TokenDataset) -> dict[str, np.ndarray]:
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise LabelError(f"{path}: not readable", given=str(error).splitlines()[0], wanted="parquet") from None
    missing = [name for name in SPAN_COLUMNS if name not in table.columns]
    if missing or not all(table[name].dtype.is_integer() for name in SPAN_COLUMNS[:3]):
        raise LabelError(f"{path}: not spans of tokens", given=table.columns, wanted="integers row, start, end; label")
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
            given=bad.row(0, named=True),
            wanted=f"row < {len(tokens)}, 0 ≤ start < end ≤ {tokens.context}",
        )
    spans = table.select("row", "start", "end", pl.col("label").cast(pl.String)).sort("label", "row", "start")
    return {
        str(name): rows.select("row", "start", "end").to_numpy().astype(np.int64)
        for (name,), rows in spans.group_by(["label"], maintain_order=True)
    }
