"""How often every label holds on the rows that choose, and what is said of those that hold nowhere or hardly."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Float

from universal_neurons.labels import FEWEST, Label

MOST_NAMED = 5  # of the labels that a note names


def label_counts_table(labels: Sequence[Label], counts: Float[np.ndarray, " labels"]) -> pl.DataFrame:
    """A row per label, in the order of the study: at how many positions it holds."""
    columns = {
        "label": [label.name for label in labels],
        "group": [label.group for label in labels],
        "previous": [label.previous for label in labels],
        "count": np.rint(counts).astype(np.int64),
    }
    return pl.DataFrame(columns, schema_overrides={"previous": pl.Boolean})


def rare_label_notes(table: pl.DataFrame) -> list[str]:
    """Warnings of labels of the user's own that hold at no position, or at too few to be judged.

    Those of the previous token are left to the label itself.
    """
    own = table.filter((pl.col("group") == "own") & ~pl.col("previous"))
    never = own.filter(pl.col("count") == 0)["label"].to_list()
    hardly = own.filter((pl.col("count") > 0) & (pl.col("count") < FEWEST))
    few = [f"{name} ({count})" for name, count in hardly.select("label", "count").iter_rows()]
    notes = []
    if never:
        notes.append(f"warning: {_named(never)}: at no position of this text; no neuron can be explained by it")
    if few:
        notes.append(f"warning: {_named(few)}: at fewer than {FEWEST} positions of this text, too few to be judged")
    return notes


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"label{'s' if len(names) > 1 else ''} {', '.join(names[:MOST_NAMED])}{more}"
