"""Which neurons does a label explain best?  From the best labels of every neuron that a study keeps."""

from collections.abc import Sequence

import polars as pl

from universal_neurons.errors import InputError
from universal_neurons.storage.results import Results

PREVIOUS = "previous token: "
MOST_NAMED = 10  # labels that an error lists
KEY = ("model", "layer", "neuron", "label", "group", "previous")
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
    found = _with_full_names(_scores(store))
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

    `NAME` is the label of the token, `previous token: NAME` that of the previous token.
    """
    folded = wanted.strip().casefold()
    names = known["label"].unique(maintain_order=True).to_list()
    exact = [name for name in names if folded == name.casefold().strip()]
    return exact or [name for name in names if folded and folded in name.casefold()]


def _scores(store: Results) -> pl.DataFrame:
    """The best labels of every neuron, and those of the user's own that are kept whatever their rank."""
    best = store.table("labels")
    if not store.has("own_labels"):
        return best
    own = store.table("own_labels")
    return pl.concat([own, best.join(own, on=KEY, how="anti", maintain_order="left")])


def _with_full_names(table: pl.DataFrame) -> pl.DataFrame:
    """A table of labels with `label` as it is printed."""
    return table.with_columns(
        pl.when("previous").then(pl.lit(PREVIOUS) + pl.col("label")).otherwise("label").alias("label")
    )


def _known(store: Results) -> pl.DataFrame:
    """All labels of a study; of one that did not keep them, those that are among the best of some neuron."""
    kept = [name for name in ("labels", "label_counts") if store.has(name)]
    tables = [_with_full_names(store.table(name)).select("label") for name in kept]
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
        "text, or study it as a label of your own (--labels FILE), which is kept whatever else explains a neuron",
    )
