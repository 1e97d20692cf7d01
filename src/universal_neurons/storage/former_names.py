"""Columns and labels that earlier versions named otherwise: a table that is read has them under the name of now.

In tables of matches `model` was the match's model, and the neuron's own stood as `asker` alone.  It is `match_model`
now, and `model` the neuron's own, as in all other tables.  Tests of a token's string have the authors' names now; those
that held for other tokens before keep their former name.
"""

from collections.abc import Collection

import polars as pl

MATCHED = ("matches", "functional", "layers", "correlations")
OF_ASKERS = (*MATCHED, "counterparts")
FORMER = {"neurons": {"mean_activation": "activation_mean"}} | {table: {"model": "match_model"} for table in MATCHED}
LABELS = {
    "contains_caret": "contains_carrot",
    "start_w_vowel": "starts_w_vowel",
    "start_w_capital": "starts_w_cap",
    "start_w_no_space_and_capital": "starts_w_no_space_and_cap",
    "start_w_no_space_and_lower": "starts_w_no_space_and_lower",
}
LABELLED = {"labels": "label", "label_counts": "label", "neurons": "label"} | dict.fromkeys(
    ("effects", "ensembles", "effect_histograms", "class_histograms"), "class"
)


def by_present_names(table: str, rows: pl.DataFrame, own: Collection[str] = ()) -> pl.DataFrame:
    """Rows of a table of any version, columns and labels named as this version names them; `own` labels stay."""
    former = FORMER.get(table, {})
    rows = rows.rename({old: new for old, new in former.items() if old in rows.columns and new not in rows.columns})
    rows = _with_labels(rows, LABELLED.get(table), {old: new for old, new in LABELS.items() if old not in own})
    if table in OF_ASKERS and "asker" in rows.columns and "model" not in rows.columns:
        return rows.select("asker", pl.col("asker").alias("model"), pl.exclude("asker"))
    return rows


def _with_labels(rows: pl.DataFrame, column: str | None, former: dict[str, str]) -> pl.DataFrame:
    if rows.schema.get(column or "") != pl.String:
        return rows
    previous = {f"previous token: {old}": f"previous token: {new}" for old, new in former.items()}
    return rows.with_columns(pl.col(str(column)).replace(former | previous))
