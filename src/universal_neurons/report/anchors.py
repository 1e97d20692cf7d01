"""The anchors of a study in the terminal: `uneurons show RUN --anchors`."""

from typing import Any

import polars as pl
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from universal_neurons.errors import InputError
from universal_neurons.explanations import fires_on
from universal_neurons.report.counts import anchor_lines
from universal_neurons.report.numbers import number
from universal_neurons.report.summary import match_cells
from universal_neurons.storage import Store
from universal_neurons.terminal import TextTable, shown
from universal_neurons.units import unit_name


def anchors_view(store: Store) -> Group:
    """Every asker's anchors, the highest least |ρ| first, with their matches; how many, beside a random basis.

    Raises `InputError` where the study asked about no matches, or is of a version that did not keep anchors.
    """
    if not store.askers:
        raise InputError(
            f"{store.path}: no anchors",
            given="a study that asked about no matches: of one model, or without the stage universality",
            wanted="a study of two models or more, with universality",
        )
    if not store.has("anchors"):
        raise InputError(
            f"{store.path}: no anchors",
            given=f"a study of version {store.manifest['environment']['universal_neurons']}, which kept none",
            wanted="a study with the table anchors",
            fix="run it again into another folder: uneurons run -c RUN/study.json --out ANOTHER",
        )
    return Group(*(part for asker in store.askers for part in (_list(store, asker), _levels(store, asker))))


def anchors_of(store: Store, asker: str) -> pl.DataFrame:
    """Rows of the neuron table, with `least`, their least |ρ| over the other models; the highest first."""
    anchors = store.neurons.filter((pl.col("model") == asker) & pl.col("mutual_all"))
    best = store.matches.filter((pl.col("asker") == asker) & (pl.col("rank") == 1))
    least = best.group_by("layer", "neuron").agg(pl.col("corr").abs().min().alias("least"))
    found = anchors.join(least, on=["layer", "neuron"], how="left", maintain_order="left")
    return found.sort("least", descending=True, maintain_order=True)


def _list(store: Store, asker: str) -> Table | Text:
    anchors = anchors_of(store, asker)
    if anchors.is_empty():
        return shown(f"No neuron of {asker} has a mutual match in every other model.")
    others, labelled = [name for name in store.models if name != asker], store.has("labels")
    fires = [Column("fires", overflow="fold", min_width=12)] if labelled else []
    title = f"Anchors of {asker}: each the best match of its match in every other model"
    table = TextTable("neuron", "least ρ", "universal", *others, *fires, title=title)
    cells = match_cells(store, asker, anchors, intervals=False)
    for row in anchors.iter_rows(named=True):
        table.row(*_cells(row, cells[row["layer"], row["neuron"]], others), *([fires_on(row)] if labelled else []))
    return table


def _cells(row: dict[str, Any], matches: dict[str, str], others: list[str]) -> list[str]:
    name = unit_name(row["layer"], row["neuron"])
    return [name, number(row["least"]), "yes" if row["is_universal"] else "", *(matches[other] for other in others)]


def _levels(store: Store, asker: str) -> Table:
    heading, *rows = anchor_lines(store, asker)
    table = TextTable(*heading, title=f"Mutual pairs and anchors of {asker}")
    for row in rows:
        table.row(*row)
    return table
