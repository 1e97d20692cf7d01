"""Which neurons does a label explain best?  From the best labels of every neuron that a study keeps."""

from collections.abc import Sequence

import polars as pl

from universal_neurons.errors import InputError
from universal_neurons.storage.results import Results

PREVIOUS = "previous token: "
MOST_NAMED = 10  # labels that an error lists
OF_NEURON = ("family", "is_universal", "excess_corr")
COLUMNS = ("model", "layer", "neuron", "label", "group", "variance_reduction", "sign", "rank")


def neurons_of_label(store: Results, models: Sequence[str], label: str, model: str | None) -> pl.DataFrame:
    """As `Store.best_for` says."""
    if not store.has("labels"):
        raise InputError(
            f"{store.path}: no labels were looked for", wanted="a study with the stage labels", fix="add it to --stages"
        )
    if model is not None and model not in models:
        raise InputError(f"{model}: no such model here", wanted="one of " + ", ".join(models))
    found = _with_full_names(store.table("labels"))
    names = matching_labels(_known(store), label)
    rows = found.filter(pl.col("label").is_in(names) if names else pl.lit(False))
    if rows.is_empty():
        raise _nothing(store, label, names)
    rows = rows if model is None else rows.filter(pl.col("model") == model)
    of_neuron = store.table("neurons").select("model", "layer", "neuron", *OF_NEURON)
    joined = rows.select(COLUMNS).join(of_neuron, on=["model", "layer", "neuron"], how="left", maintain_order="left")
    order = [-pl.col("variance_reduction"), pl.col("model") != models[0], "model", "layer", "neuron", "label"]
    return joined.sort(order, maintain_order=True)


def matching_labels(known: pl.DataFrame, wanted: str) -> list[str]:
    """The full names of labels that are called so, whatever the case; where none is, of those that contain it.

    A name stands for the label of the token and of the previous token; `previous token: NAME` for the latter alone.
    """
    folded = wanted.strip().casefold()
    names = list(known.select("label", "bare").unique(maintain_order=True).iter_rows())
    exact = [full for full, bare in names if folded in (full.casefold(), bare.casefold().strip())]
    return exact or [full for full, bare in names if folded and folded in full.casefold()]


def _with_full_names(table: pl.DataFrame) -> pl.DataFrame:
    """A table of labels with `label` as it is printed, and `bare` as it is without the previous token."""
    full = pl.when("previous").then(pl.lit(PREVIOUS) + pl.col("label")).otherwise("label")
    return table.with_columns(full.alias("label"), pl.col("label").alias("bare"))


def _known(store: Results) -> pl.DataFrame:
    """All labels of a study; of one that did not keep them, those that are among the best of some neuron."""
    kept = [name for name in ("labels", "label_counts") if store.has(name)]
    tables = [_with_full_names(store.table(name)).select("label", "bare") for name in kept]
    return pl.concat(tables).unique(maintain_order=True)


def _nothing(store: Results, label: str, names: list[str]) -> InputError:
    """Why no neuron has a label: there is none of the name, it hardly holds, or others explain every neuron better."""
    if not names:
        return InputError(
            f"{store.path}: no label {label!r}",
            wanted="a label of this study, or a part of its name",
            fix=f"uneurons labels {store.path} lists them",
        )
    counts = dict.fromkeys(names, "")
    if store.has("label_counts"):
        table = _with_full_names(store.table("label_counts"))
        counts |= {name: f" (at {count:,} positions)" for name, count in table.select("label", "count").iter_rows()}
    listed = ", ".join(f"{name}{counts[name]}" for name in names[:MOST_NAMED])
    return InputError(
        f"{store.path}: no neuron has this label among its best",
        given=listed + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""),
        wanted="a label that explains some neuron better than others do",
        fix="a label is judged where it holds at 20 positions or more, and every neuron keeps its five best: give more "
        "text, or study --labels of your own file alone, so that no other competes",
    )
