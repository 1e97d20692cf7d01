"""The neurons of a label in the terminal: `uneurons show RUN --label NAME`."""

import polars as pl
from rich.console import Group
from rich.table import Column, Table

from universal_neurons.report.numbers import number
from universal_neurons.storage import Store
from universal_neurons.terminal import TextTable, shown
from universal_neurons.units import unit_name

MOST = 20


def label_view(store: Store, label: str, model: str | None = None, most: int = MOST) -> Group:
    """The neurons that a label explains best, of all models or one; raises `InputError` as `Store.best_for`."""
    found = store.best_for(label, model)
    names = found["label"].unique(maintain_order=True).to_list()
    whose = "any model" if model is None else model
    parts: list[Table | str] = []
    if found.is_empty():
        return Group(shown(f"No neuron of {whose} has label {label} among its best; of other models some have."))
    if len(names) > 1:
        parts.append(_names_view(found, label))
    parts.append(_neurons_view(found, names, most))
    notes = ["active: higher where the label holds; silent: lower there. place 1: no other label explains it better."]
    above = int((found["variance_reduction"] > store.config.unexplained).sum())
    cut = number(store.config.unexplained)
    notes.append(f"{above:,} of {len(found):,} above {cut}: less is taken for no explanation.")
    if len(found) > most:
        notes.append(f"{len(found) - most:,} more: store.best_for({label!r}) in Python has all.")
    return Group(*parts, *map(shown, notes))


def _names_view(found: pl.DataFrame, label: str) -> Table:
    """The labels of a name, and how many neurons have each."""
    table = TextTable("label", "group", "neurons", title=f"Labels called {label}")
    for name, group, count in found.group_by("label", "group", maintain_order=True).len().iter_rows():
        table.row(name, group, count)
    return table


def _neurons_view(found: pl.DataFrame, names: list[str], most: int) -> Table:
    title = f"Neurons that {names[0] if len(names) == 1 else 'these labels'} explains best"
    title = title.replace("labels explains", "labels explain") + (f", the first {most}" if len(found) > most else "")
    several = [Column("label", overflow="fold", min_width=12)] if len(names) > 1 else []
    neuron, family = Column("neuron", no_wrap=True), Column("family", overflow="fold", min_width=8)
    table = TextTable(neuron, "variance explained", "", "place", family, "universal", *several, title=title)
    for row in found.head(most).iter_rows(named=True):
        universal = "–" if row["is_universal"] is None else "yes" if row["is_universal"] else "no"
        cells = [
            unit_name(row["layer"], row["neuron"], row["model"]),
            number(row["variance_reduction"]),
            "silent" if row["sign"] < 0 else "active",
            row["rank"],
            (row["family"] or "–").replace("_", " "),
            universal,
        ]
        table.row(*cells, *([row["label"]] if several else []))
    return table
