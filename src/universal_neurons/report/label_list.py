"""All labels in the terminal: the built-in ones with their meaning, and those of a study (`uneurons labels`)."""

import polars as pl
from rich.console import Group
from rich.table import Column, Table

from universal_neurons.config import LABEL_GROUPS
from universal_neurons.errors import InputError
from universal_neurons.labels import built_in_labels, meaning_of
from universal_neurons.storage import Store
from universal_neurons.terminal import TextTable, shown

GROUPS = (*LABEL_GROUPS, "own")
OF_PREVIOUS = "All but subsets and positions exist for the previous token too: `previous token: NAME`."


def built_in_view() -> Group:
    """Every built-in label with its group and when it holds."""
    table = TextTable(_names(), "group", _folding("holds where"), title="Built-in labels")
    for told in built_in_labels():
        table.row(told.label, told.group, told.holds)
    return Group(table, shown(OF_PREVIOUS), shown("Labels of a study, and how often each holds: uneurons labels RUN"))


def study_labels_view(store: Store) -> Group:
    """The labels of a study, the most frequent of each group first: at how many positions each holds, and its meaning.

    Raises `InputError` where no labels were looked for.
    """
    if not store.has("labels"):
        raise InputError(
            f"{store.path}: no labels were looked for", wanted="a study with the stage labels", fix="add it to --stages"
        )
    if not store.has("label_counts"):
        return Group(_older(store), shown("An older study, which kept no counts: labels that are among the five best."))
    counts = store.table("label_counts").with_columns(pl.col("label", "group").cast(pl.String))
    before = counts.filter("previous").select("label", "group", pl.col("count").alias("before"))
    rows = counts.filter(~pl.col("previous")).join(before, on=["label", "group"], how="left", maintain_order="left")
    place = pl.col("group").replace_strict({group: n for n, group in enumerate(GROUPS)}, default=len(GROUPS))
    title = f"Labels of {store.path.resolve().name}"
    table = TextTable(_names(), "group", "positions", "previous token", _folding("holds where"), title=title)
    for row in rows.sort(place, -pl.col("count"), maintain_order=True).iter_rows(named=True):
        previous = "–" if row["before"] is None else f"{row['before']:,}"
        table.row(row["label"], row["group"], f"{row['count']:,}", previous, meaning_of(row["label"], row["group"]))
    total = store.manifest["counted_tokens"]
    never = int((rows["count"] == 0).sum())
    return Group(table, shown(f"Of {total:,} positions that were counted; {never:,} labels hold at none of them."))


def _older(store: Store) -> Table:
    table = TextTable(_names(), "group", _folding("holds where"), title=f"Labels of {store.path.resolve().name}")
    for label, group in store.labels.select("label", "group").unique().sort("group", "label").iter_rows():
        table.row(label, group, meaning_of(label, group))
    return table


def _names() -> Column:
    return Column("label", overflow="fold", min_width=16)


def _folding(heading: str) -> Column:
    return Column(heading, overflow="fold")
