"""Columns that earlier versions wrote under another name: a table that is read has them under the name of now.

In tables of matches `model` was the match's model, and the neuron's own stood as `asker` alone.  It is `match_model`
now, and `model` the neuron's own, as in all other tables.
"""

import polars as pl

MATCHED = ("matches", "functional", "layers", "correlations")
OF_ASKERS = (*MATCHED, "counterparts")
FORMER = {"neurons": {"mean_activation": "activation_mean"}} | {table: {"model": "match_model"} for table in MATCHED}


def by_present_names(table: str, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of a table of any version, its columns named as this version names them."""
    former = FORMER.get(table, {})
    rows = rows.rename({old: new for old, new in former.items() if old in rows.columns and new not in rows.columns})
    if table in OF_ASKERS and "asker" in rows.columns and "model" not in rows.columns:
        return rows.select("asker", pl.col("asker").alias("model"), pl.exclude("asker"))
    return rows
