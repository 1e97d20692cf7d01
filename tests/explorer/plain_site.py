"""A site read the plain way: by a decoder that shares no code with the package; pages for tests; stores with other tables."""

import base64
import hashlib
import json
import math
import re
import shutil
import struct
from pathlib import Path

import polars as pl

PAGES = ("study", "unit", "index")


def write_static(folder: Path) -> Path:
    """Templates, a script and a style, as few as a site needs."""
    folder.mkdir()
    for name in PAGES:
        (folder / f"{name}.html").write_text("{% include '_shell.html' %}")
    (folder / "_shell.html").write_text(
        "<title>{{ page }}: {{ site.studies | length }}</title><p>{{ site.studies[0].title }}"
    )
    (folder / "app.js").write_text('"use strict";')
    (folder / "vendor").mkdir()
    (folder / "vendor" / "plot.js").write_text("// plots")
    return folder


def refuse_constant(name: str):
    raise AssertionError(f"{name} is no JSON")


def data_of(site: Path, path: str):
    """The data of one file of a site: one statement in ASCII that no `<` stands in."""
    text = (site / "data" / f"{path}.js").read_bytes().decode("ascii")
    statement = re.fullmatch(r'un\.add\("([^"\\]*)",(.*)\);\n', text, re.DOTALL)
    assert statement is not None, text[:100]
    assert statement[1] == path
    assert "<" not in text
    return json.loads(statement[2], parse_constant=refuse_constant)


def paths_of(site: Path) -> list[str]:
    """The paths of all data files."""
    return sorted(file.relative_to(site / "data").with_suffix("").as_posix() for file in (site / "data").rglob("*.js"))


FORMATS = {"f32": "f", "u8": "B", "u16": "H", "u32": "I"}


def numbers_of(text: str, kind: str) -> list:
    content = base64.b64decode(text, validate=True)
    return [value for (value,) in struct.iter_unpack("<" + FORMATS[kind], content)]


def column_of(column: dict) -> list:
    """The values of a column of `units/M`."""
    if column["type"] == "dict":
        return [column["values"][place] for place in numbers_of(column["data"], column["index"])]
    return numbers_of(column["data"], column["type"])


def with_tables(source: Path, target: Path, without=(), changed=None, manifest=None) -> Path:
    """A copy of a store without some tables, with others in their place, and with other facts in its manifest."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("figures", "work", ".lock", "report.html"))
    told = json.loads((target / "study.json").read_text())
    for name in without:
        told["tables"].pop(name, None)
        for file in target.glob(f"{name}.*"):
            file.unlink()
    for name, table in (changed or {}).items():
        table.write_parquet(target / f"{name}.parquet")
        told["tables"][name] = hashlib.sha256((target / f"{name}.parquet").read_bytes()).hexdigest()
    (target / "study.json").write_text(json.dumps(told | (manifest or {})))
    return target


def table_of(store: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet((store / f"{name}.parquet").read_bytes())


def by_unit(table: pl.DataFrame, model: str = "model") -> dict:
    """Rows as dictionaries, by model, layer and neuron."""
    rows: dict = {}
    for row in table.iter_rows(named=True):
        rows.setdefault((row[model], row["layer"], row["neuron"]), []).append(row)
    return rows


def same(told, expected) -> bool:
    """Whether a site says what a table says: numbers to five significant digits, no number as None."""
    if isinstance(expected, float):
        if expected != expected or abs(expected) == float("inf"):
            return told is None
        return isinstance(told, float) and math.isclose(told, expected, rel_tol=5.1e-5)
    return type(told) is type(expected) and told == expected


def says(text: str, value: float | None) -> bool:
    """Whether a page's number is the table's, to the digits that it shows."""
    if value is None or math.isnan(value):
        return text.strip() in ("–", "")
    plain = text.strip().replace("−", "-").replace(",", "").removesuffix(" %")
    mantissa, _, power = plain.partition("e")
    decimals = len(mantissa.partition(".")[2])
    step = 10.0 ** (int(power or 0) - decimals)
    return abs(float(plain) - value) <= 0.501 * step + 2e-5 * abs(value)
