"""What docs/columns.yaml says of a table, held against the table."""

import re

import polars as pl
from reference import columns, read_columns

WORDS = read_columns()


def require_described(table: pl.DataFrame, name: str, kind: str = "study") -> None:
    """Every column of a table has its type, unit and meaning there, and no other column has.  `L1.2` stands for any neuron."""
    told = columns(WORDS, kind, name)
    types = {re.sub(r"^L\d+\.\d+", "L1.2", column): str(dtype) for column, dtype in table.schema.items()}
    if name == "details":  # has position neurons, or none
        types.setdefault("L1.2 pre", "Float32")
    assert {column: words[0] for column, words in told.items()} == types, name
    assert all(unit and meaning for _, unit, meaning in told.values()), name
