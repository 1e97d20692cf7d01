"""How data stand in a site: a file is one classic script, `un.add("PATH",DATA);`, its data JSON in ASCII.

A page opened from disk may load scripts and nothing else, so data are scripts.  No text can end a script or begin
markup: every character beyond ASCII, and every `<`, is written as an escape.  NaN and infinity are null.  Numbers have
five significant digits, columns of many numbers are little-endian bytes in Base64.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

DIGITS = 5
NO_FLAG = 255  # of a flag that has no answer
NO_LAYER, NO_NEURON = 0xFFFF, 0xFFFFFFFF  # of a match that there is none of
INTEGERS = {"u8": "<u1", "u16": "<u2", "u32": "<u4"}

Column = dict[str, Any]


def statement(path: str, data: object) -> bytes:
    """The content of a data file."""
    text = f"un.add({json.dumps(path)},{json.dumps(data, allow_nan=False, separators=(',', ':'))});\n"
    return text.replace("<", "\\u003c").encode("ascii")


def read_statement(content: bytes) -> tuple[str, Any]:
    """The path and the data of a data file.  Raises `ValueError` for what is none."""
    text = content.decode("ascii").strip()
    if not (text.startswith("un.add(") and text.endswith(");")):
        raise ValueError("no data file of a site")
    path, data = json.loads(f"[{text[len('un.add(') : -len(');')]}]")
    return path, data


def write_data(folder: Path, path: str, data: object) -> None:
    """Write one data file of the site in `folder`."""
    target = folder / "data" / f"{path}.js"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(statement(path, data))


def rounded(column: pl.Expr, digits: int = DIGITS) -> pl.Expr:
    """A column of numbers to some significant digits, null where a number is none."""
    number = column.cast(pl.Float64)
    return pl.when(number.is_finite()).then(number.round_sig_figs(digits))


def rounded_lists(column: str, digits: int = DIGITS) -> pl.Expr:
    """A column of lists of numbers, in the same way."""
    return pl.col(column).list.eval(rounded(pl.element(), digits))


def table_columns(table: pl.DataFrame) -> dict[str, dict[str, list[Any]]]:
    """A small table as its columns, numbers rounded."""
    floats = [name for name, kind in table.schema.items() if kind.is_float()]
    return {"columns": table.with_columns(rounded(pl.col(name)) for name in floats).to_dict(as_series=False)}


def packed(values: np.ndarray, kind: str) -> str:
    """The bytes of numbers, little-endian, as Base64; `kind` is NumPy's name of the type."""
    return base64.b64encode(np.ascontiguousarray(values, dtype=kind).tobytes()).decode("ascii")


def float_column(values: pl.Series) -> Column:
    """Numbers as float32, NaN where there is none."""
    return {"type": "f32", "data": packed(values.cast(pl.Float32).fill_null(float("nan")).to_numpy(), "<f4")}


def integer_column(values: np.ndarray, kind: str) -> Column:
    """Whole numbers of one of the kinds of `INTEGERS`."""
    return {"type": kind, "data": packed(values, INTEGERS[kind])}


def flag_column(values: pl.Series) -> Column:
    """0, 1, or `NO_FLAG` where there is no answer."""
    return integer_column(values.cast(pl.UInt8).fill_null(NO_FLAG).to_numpy(), "u8")


def text_column(values: Sequence[str | None] | pl.Series) -> Column:
    """Every distinct text once, and which each one is; an empty text stands for none."""
    texts = pl.Series(values, dtype=pl.String).fill_null("")
    distinct = texts.unique().sort()
    index = distinct.search_sorted(texts).to_numpy()
    kind = "u8" if len(distinct) <= 1 << 8 else "u16" if len(distinct) <= 1 << 16 else "u32"
    return {
        "type": "dict",
        "values": distinct.to_list(),
        "index": kind,
        "data": packed(index, INTEGERS[kind]),
    }


def without_nothing(values: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping without its keys that have no content."""
    return {key: value for key, value in values.items() if value is not None and value != [] and value != {}}
