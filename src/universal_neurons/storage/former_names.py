"""Columns that earlier versions wrote under another name: a table that is read has them under the name of now."""

import polars as pl

FORMER = {"neurons": {"mean_activation": "activation_mean"}}


def by_present_names(table: str, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of a table of any version, its columns named as this version names them."""
    former = FORMER.get(table, {})
    return rows.rename({old: new for old, new in former.items() if old in rows.columns and new not in rows.columns})
