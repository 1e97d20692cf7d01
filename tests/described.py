"""What docs/columns.yaml says of a table, held against the table."""

import polars as pl
import yaml
from reference import COLUMNS, columns

WORDS = yaml.safe_load(COLUMNS.read_text(encoding="utf-8"))


def require_described(table: pl.DataFrame, name: str, kind: str = "study") -> None:
    """Every column of a table has its type, unit and meaning there, and no other column has."""
    told = columns(WORDS, kind, name)
    assert {column: words[0] for column, words in told.items()} == {
        column: str(dtype) for column, dtype in table.schema.items()
    }, name
    assert all(unit and meaning for _, unit, meaning in told.values()), name
