"""The columns of all units of a model, for the page that draws and lists every one of them: `units/M`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from universal_neurons.explanations import fires_on
from universal_neurons.explorer.data_files import (
    NO_LAYER,
    NO_NEURON,
    Column,
    flag_column,
    float_column,
    integer_column,
    text_column,
)

FLAGS = ("dead", "is_universal", "mutual_all", "carried_by_few")
NUMBERS = (
    "excess_corr", "excess_standardised", "excess_heldout", "excess_low", "excess_high", "mean_corr", "max_corr",
    "q_value", "variance_reduction", "sparsity", "mean", "var", "skew", "kurt", "l2_penalty", "in_out_sim", "vocab_var",
    "vocab_skew", "vocab_kurt", "null_fraction", "position_mi",
)  # fmt: skip
TEXTS = ("family", "label")
OF_CLAUSE = ("family", "label", "label_sign", "variance_reduction", "variance_reduction_heldout")
FIRES = "fires"  # what a unit fires on, in a few words
AMONG_ROLES = ","  # stands between the roles of a unit that has several


def unit_columns(neurons: pl.DataFrame, matches: "BestMatches", told: pl.DataFrame) -> dict[str, Any]:
    """What `units/M` holds, of a model's rows of the neuron table, its best matches and best explanations (`told`)."""
    columns: dict[str, Column] = {
        "layer": integer_column(neurons["layer"].to_numpy(), "u16"),
        "neuron": integer_column(neurons["neuron"].to_numpy(), "u32"),
    }
    for names, made in ((FLAGS, flag_column), (NUMBERS, float_column), (TEXTS, text_column)):
        columns |= {name: made(neurons[name]) for name in names if said(neurons, name)}
    if said(neurons, "family"):
        columns[FIRES] = text_column(words_of(neurons))
    if said(neurons, "roles"):
        columns["roles"] = text_column(neurons["roles"].list.join(AMONG_ROLES))
    if len(told):
        columns |= _explained(neurons, told)
    return {"count": len(neurons), "columns": columns | matches.columns()}


def _explained(neurons: pl.DataFrame, told: pl.DataFrame) -> dict[str, Column]:
    """What others than labels said, or what was scored, and the score where any unit has one."""
    place = ["layer", "neuron"]
    best = neurons.select(place).join(
        told.select(*place, "explanation", "score"), on=place, how="left", maintain_order="left"
    )
    columns = {"explanation": text_column(best["explanation"])}
    return columns | ({"explanation_score": float_column(best["score"])} if said(best, "score") else {})


def words_of(neurons: pl.DataFrame) -> pl.Series:
    """What every unit of a neuron table fires on, in a few words; null where nobody asked, or it is dead."""
    known = neurons.select(name for name in OF_CLAUSE if name in neurons.columns)
    told = [fires_on(row) if row["family"] else None for row in known.rows(named=True)]
    return pl.Series(told, dtype=pl.String)


def said(table: pl.DataFrame, name: str) -> bool:
    """Whether a table has a column, and any value in it."""
    return name in table.columns and not table[name].is_null().all()


class BestMatches:
    """Every unit's best match in each other model, gathered from rows of the table of matches."""

    def __init__(self, count: int, models: Sequence[str]) -> None:
        self.models, self.count = models, count
        self.found: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def add(self, rows: pl.DataFrame) -> None:
        """Take rows with `unit`, `match_model`, `rank`, `match_layer`, `match_neuron`, `corr`."""
        for (model,), best in rows.filter(pl.col("rank") == 1).group_by("match_model"):
            name = str(model)
            if name not in self.found:
                self.found[name] = (
                    np.full(self.count, NO_LAYER, np.uint16),
                    np.full(self.count, NO_NEURON, np.uint32),
                    np.full(self.count, np.nan, np.float32),
                )
            units = best["unit"].to_numpy()
            for values, column in zip(self.found[name], ("match_layer", "match_neuron", "corr")):
                values[units] = best[column].to_numpy()

    def columns(self) -> dict[str, Column]:
        """Three columns for each model in which there is a match."""
        columns = {}
        for name, (layer, neuron, corr) in self.found.items():
            other = self.models.index(name)
            columns[f"match_layer:{other}"] = integer_column(layer, "u16")
            columns[f"match_neuron:{other}"] = integer_column(neuron, "u32")
            columns[f"match_corr:{other}"] = float_column(pl.Series(corr))
        return dict(sorted(columns.items()))
