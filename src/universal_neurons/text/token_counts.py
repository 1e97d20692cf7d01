"""How often each token occurs in the text that models were trained on: a table, given or of a bundled suite.

The table has a row per token with the columns `token` (its id) and `count`; tokens that it lacks count 0.
"""

import hashlib
import io
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int

from universal_neurons.config import Settings
from universal_neurons.disk import local_path
from universal_neurons.errors import MissingFileError, TokenCountsError, TokenRangeError
from universal_neurons.legible import brief_repr
from universal_neurons.models import bundled_counts

COLUMNS = ("token", "count")
WANTED = "Parquet, CSV or JSON with the columns token (an id) and count"
MOST_BYTES = 1 << 28
MOST_COUNT = 10**15  # whole numbers up to here are exact in float64, sums of them too


@dataclass(frozen=True)
class TokenCounts:
    """How often each token of a vocabulary occurs, whose counts these are, and the SHA-256 of their file."""

    counts: Int[np.ndarray, " vocabulary"]
    of: str
    sha256: str

    def describe(self) -> dict[str, Any]:
        """What a manifest says of them."""
        return {"of": self.of, "sha256": self.sha256, "tokens": int(self.counts.sum())}


def frequencies_of(config: Settings, vocabulary: int) -> TokenCounts | None:
    """The counts that the roles of a study go by: those given (`roles.frequencies`), else those of the suite that all
    of its models are of; None where there are neither, and the study's own text is counted.

    `vocabulary` is the number of token ids.  Raises what `read_token_counts` does.
    """
    if config.roles.frequencies is not None:
        return read_token_counts(config.roles.frequencies, vocabulary)
    bundled = bundled_counts(config.models)
    return None if bundled is None else read_token_counts(bundled[0], vocabulary, bundled[1])


def read_token_counts(named: str | Path, vocabulary: int, of: str | None = None) -> TokenCounts:
    """The counts in a file, of tokens 0 up to `vocabulary`.

    Raises `MissingFileError` for what is no file, `TokenRangeError` for ids outside the vocabulary, and
    `TokenCountsError` for another table or counts that are none.
    """
    path = local_path(named)
    content = _content(path)
    table = _checked(path, _table(path, content))
    outside = table.filter((pl.col("token") < 0) | (pl.col("token") >= vocabulary))
    if len(outside):
        raise TokenRangeError(
            f"{path}: a token that the models do not have",
            given=str(outside["token"][0]),
            wanted=f"ids from 0 to {vocabulary - 1}",
            fix="count the tokens of the models' own tokenizer",
        )
    every = np.zeros(vocabulary, np.int64)
    every[table["token"].to_numpy()] = table["count"].to_numpy()
    return TokenCounts(every, of or str(named), hashlib.sha256(content).hexdigest())


def _content(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe without a writer would hang
            raise MissingFileError(f"{path}: not a regular file", wanted=WANTED)
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise MissingFileError(
            f"{path}: cannot be read",
            given=error.strerror,
            wanted=WANTED,
            fix="mend `frequencies` of the section roles",
        ) from None
    if len(content) > MOST_BYTES:
        raise TokenCountsError(f"{path}: too large", given="more bytes", wanted=f"at most {MOST_BYTES:,} bytes")
    return content


def _table(path: Path, content: bytes) -> pl.DataFrame:
    readers = {
        ".parquet": pl.read_parquet,
        ".csv": lambda file: pl.read_csv(file, infer_schema_length=None),
        ".json": lambda file: pl.read_json(file, infer_schema_length=None),
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise TokenCountsError(f"{path}: not a table", given=suffix or "no suffix", wanted=WANTED)
    try:
        return readers[suffix](io.BytesIO(content))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        raise TokenCountsError(f"{path}: not readable", given=error, wanted=WANTED) from None


def _checked(path: Path, table: pl.DataFrame) -> pl.DataFrame:
    """Its two columns: whole numbers, every token once, no count below 0 and some above."""
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise TokenCountsError(
            f"{path}: no column {missing[0]!r}", given=", ".join(table.columns) or "no columns", wanted=WANTED
        )
    table = table.select(COLUMNS)
    for name, kind in table.schema.items():
        if not kind.is_integer():
            raise TokenCountsError(f"{path}: {name} is {kind}", wanted="whole numbers")
    bad = table.filter(pl.any_horizontal(pl.all().is_null()) | ~pl.col("count").is_between(0, MOST_COUNT))
    if len(bad):
        given = brief_repr(bad.row(0, named=True))
        raise TokenCountsError(f"{path}: not a count", given=given, wanted=f"0 to {MOST_COUNT:,} of each token")
    twice = table.filter(pl.col("token").is_duplicated())
    if len(twice):
        raise TokenCountsError(f"{path}: a token that comes twice", given=str(twice["token"][0]), wanted="each once")
    if not (table["count"] > 0).any():
        raise TokenCountsError(f"{path}: no token is counted", given="no count above 0", wanted="counts of some text")
    return table
