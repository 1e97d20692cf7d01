"""The table of all units as CSV, for a spreadsheet: `csv/ID-units.csv`, matches in columns of their own."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from universal_neurons.explorer.explained_units import best_told
from universal_neurons.explorer.studies import ShownStudy
from universal_neurons.explorer.unit_rows import UnitRows
from universal_neurons.units import name_column

FOLDER = "csv"
MATCHED = ("corr", "corr_heldout", "corr_low", "corr_high", "mutual", "certified")
PLACE = ["layer", "neuron"]
BEST = ("method", "scorer", "score", "low", "high", "chance")  # of a unit's best explanation
BLOCK = 8192


def write_csv(study: ShownStudy, folder: Path) -> None:
    """Write a row for every unit of every model of a study: its name, its columns, its best match in each other model.

    Texts stand as they are: a spreadsheet may take one that begins with = for a formula.
    """
    target = folder / FOLDER / f"{study.id}-units.csv"
    target.parent.mkdir(exist_ok=True)
    with target.open("wb") as out:
        for number, table in enumerate(_pieces(study)):
            table.write_csv(out, include_header=number == 0)


def _pieces(study: ShownStudy) -> Iterator[pl.DataFrame]:
    store, units = study.store, study.units
    neurons = UnitRows(store, "neurons", units)
    matches = UnitRows(store, "matches", units, by="asker") if store.has("matches") else None
    told = best_told(store).rename({"source": "explanation_source"} | {name: f"explanation_{name}" for name in BEST})
    for shown, name in zip(study.models, store.models):
        for start in range(0, len(units[name]), BLOCK):
            stop = min(start + BLOCK, len(units[name]))
            rows = neurons.take(name, stop)
            assert rows is not None
            best = None if matches is None else matches.take(name, stop)
            if len(told):
                rows = rows.join(told.filter(model=name).drop("model"), on=PLACE, how="left", maintain_order="left")
            yield _flat(study, rows.with_columns(model=pl.lit(shown)), best)


def _flat(study: ShownStudy, neurons: pl.DataFrame, matches: pl.DataFrame | None) -> pl.DataFrame:
    """Rows of the neuron table with their names in front and their best matches behind."""
    lists = [name for name, kind in neurons.schema.items() if kind == pl.List]
    table = neurons.with_columns(*(pl.col(name).list.join(";") for name in lists), name=name_column())
    if matches is not None:
        columns = [name for name in MATCHED if name in matches.columns]
        place = name_column("match_")
        for shown, other in zip(study.models, study.store.models):
            best = matches.filter((pl.col("rank") == 1) & (pl.col("match_model") == other))
            named = {f"match {shown}": place} | {f"match {shown} {column}": pl.col(column) for column in columns}
            table = table.join(best.select("unit", **named), on="unit", how="left", maintain_order="left")
    first = ["model", "name", "layer", "neuron"]
    return table.drop("unit").select(*first, pl.exclude(first))
