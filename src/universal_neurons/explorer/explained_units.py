"""What was said of units by others than labels, and what was scored: few of a study's units.

Sentences by labels, of every unit, are streamed with all else that is known of a unit (`unit_files`).
"""

import polars as pl

from universal_neurons.explanations import (
    BY_LABELS,
    COUNTERPART,
    OWN,
    RANDOM,
    best_of,
    measured,
    scores_of,
    unit_column,
    units_table,
    with_own_scores,
)
from universal_neurons.explorer.unit_rows import pieces_of
from universal_neurons.storage import Store

PLACE = ["model", "layer", "neuron"]
TRIED = {name: f"at_{name}" for name in PLACE}  # where an explanation was tried
NOTHING = pl.DataFrame(
    schema={"model": pl.String, "layer": pl.Int32, "neuron": pl.Int32, "source": pl.String, "explanation": pl.String}
)
ELSEWHERE = (COUNTERPART, RANDOM)


def told_units(store: Store) -> pl.DataFrame:
    """The rows of `explanations` that others wrote, or that somebody scored; none of an older study."""
    if not store.has("explanations"):
        return NOTHING
    scored = scores_of(store).filter(pl.col("use") == OWN).select(*PLACE, "source").unique().with_columns(scored=True)
    kept = [NOTHING] + [
        piece.join(scored, on=[*PLACE, "source"], how="left", maintain_order="left")
        .filter((pl.col("source") != BY_LABELS) | pl.col("scored"))
        .drop("scored")
        for piece in pieces_of(store, "explanations")
    ]
    return pl.concat(kept)


def best_told(store: Store) -> pl.DataFrame:
    """A row per unit of which others said something, or that was scored: its best explanation, as `best_of` has it."""
    return best_of(told_units(store), scores_of(store))


def explanations_table(store: Store) -> pl.DataFrame:
    """Every explanation that others wrote or that was scored, with its score, chance, and its mean scores elsewhere."""
    scores = scores_of(store)
    own = with_own_scores(told_units(store), scores)
    elsewhere = units_table(scores).select("source", "scorer", "method", "of", *ELSEWHERE)
    names = own.with_columns(of=unit_column())
    return names.join(elsewhere, on=["source", "scorer", "method", "of"], how="left", maintain_order="left").drop("of")


def of_explained(scores: pl.DataFrame) -> pl.DataFrame:
    """Rows of `scores` by the unit that is explained; where else it was tried stands in `at_model`, `at_layer`, …

    Columns `score`, `low`, `high`, `chance` as `measured` has them.
    """
    rows = measured(scores).with_row_index("order")
    explained = rows.filter(pl.col("use") == OWN).select("explanation", *PLACE).unique("explanation")
    own = rows.filter(~pl.col("use").is_in(ELSEWHERE))
    away = rows.filter(pl.col("use").is_in(ELSEWHERE)).rename(TRIED).join(explained, on="explanation")
    return pl.concat([own, away], how="diagonal").sort("order").drop("order")
