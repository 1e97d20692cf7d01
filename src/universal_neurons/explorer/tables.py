"""Small tables of a study, whole: `ID/tables`.  Models stand in them as numbers."""

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from universal_neurons.explanations import scores_of, sources_table
from universal_neurons.explorer.data_files import table_columns
from universal_neurons.explorer.explained_units import explanations_table
from universal_neurons.explorer.studies import ShownStudy
from universal_neurons.explorer.unit_rows import pieces_of
from universal_neurons.report import families_table
from universal_neurons.storage import Store

MOST_ROWS = 20_000
WHOLE = (
    "thresholds", "layers", "ensembles", "interventions", "ablations", "heads", "attention", "functional", "costs",
    "convergence", "anchors", "clique_levels", "spans", "correlations", "unembeddings",
    "preconditions", "consistency",
)  # fmt: skip
OF_EXPLANATIONS = {name: f"explanation_{name}" for name in ("score", "low", "high", "chance")}
OF_EXPLANATIONS |= {"counterpart": "on_counterparts", "random": "on_random"}
OF_SOURCES = {
    "score": "mean_score", "score_low": "mean_score_low", "score_high": "mean_score_high", "label": "label_sentence",
    "chance": "explanation_chance", "another": "another_sentence", "empty": "empty_sentence",
    "counterpart": "on_counterparts", "random": "on_random",
}  # fmt: skip
COUNTED = {  # of a group of units
    "neurons": pl.len(),
    "universal": pl.when(pl.col("is_universal").is_not_null().any()).then(pl.col("is_universal").sum()),
    "excess_mean": pl.col("excess_corr").fill_nan(None).mean(),
    "excess_median": pl.col("excess_corr").fill_nan(None).median(),
}


def tables_data(study: ShownStudy, store: Store) -> dict[str, Any]:
    """What `ID/tables` holds: every table that the store has, and counts of units by family, class and subset.

    `store` is the study's as summaries read it.
    """
    tables = {name: store.table(name) for name in WHOLE if store.has(name)}
    data = {name: table_columns(_numbered(study, table.head(MOST_ROWS))) for name, table in tables.items()}
    data |= {name: table_columns(_numbered(study, table)) for name, table in _counts(store)}
    if store.has("similarity"):
        data["similarity"] = table_columns(_numbered(study, store.table("similarity")))
    told = explanations_table(store).sort("score", descending=True, nulls_last=True, maintain_order=True)
    if len(told):
        sources = sources_table(told, scores_of(store)).rename(OF_SOURCES)
        data["explanations"] = table_columns(_numbered(study, told.rename(OF_EXPLANATIONS).head(MOST_ROWS)))
        data["explanation_sources"] = table_columns(sources)
    if study.dynamics is not None:
        data["dynamics"] = _of_dynamics(study)
    return data


def _numbered(study: ShownStudy, table: pl.DataFrame, names: Mapping[str, int] | None = None) -> pl.DataFrame:
    """A table with models' numbers in the place of their names."""
    numbers = names or {name: number for number, name in enumerate(study.store.models)}
    columns = [name for name in ("asker", "model", "match_model") if name in table.columns]
    return table.with_columns(pl.col(name).replace_strict(numbers, return_dtype=pl.Int64) for name in columns)


def _counts(store: Store) -> Iterator[tuple[str, pl.DataFrame]]:
    order = {name: number for number, name in enumerate(store.models)}
    place = pl.col("model").replace_strict(order)
    if store.has("labels"):
        counted = {name: made for name, made in COUNTED.items() if name == "neurons" or store.askers}
        families = store.neurons.group_by("model", "family").agg(**counted)
        strength = families_table(store).drop("neurons")
        yield "families", families.join(strength, on=["model", "family"], how="left").sort(place, "family")
    if store.has("effects"):
        effects = store.table("effects")
        kinds = [name for name in ("role", "role_relative", "class", "class_group") if name in effects.columns]
        classes = effects.group_by("model", *kinds).len("neurons")
        yield "effects_counts", classes.sort(place, pl.col("neurons") * -1, *kinds).head(MOST_ROWS)
    if store.has("subsets"):
        yield "subsets", _by_subset(store).sort("subset", place)


def _by_subset(store: Store) -> pl.DataFrame:
    """Counts within each subset, of the models that were asked about there."""
    needed = ["subset", "model", "excess_corr", "is_universal"]
    asked = [
        piece.select(needed)
        .filter(pl.col("is_universal").is_not_null())
        .with_columns(pl.col("excess_corr").cast(pl.Float32))
        for piece in pieces_of(store, "subsets")
    ]
    return pl.concat(asked).group_by("subset", "model").agg(**COUNTED)


def _of_dynamics(study: ShownStudy) -> dict[str, Any]:
    """Tables by checkpoint, and how many units of the reference emerge at each."""
    dynamics = study.dynamics
    assert dynamics is not None
    names = {name: number for number, name in enumerate(dynamics.seeds)}
    tables = {name: dynamics.table(name) for name in ("checkpoints", "families") if dynamics.has(name)}
    order = pl.col("emergence").replace_strict({name: place for place, name in enumerate(dynamics.names)}, default=None)
    emerged = dynamics.emergence.group_by("emergence", "emergence_step").len("neurons").sort(order, nulls_last=True)
    selves = dynamics.neurons.filter(pl.col("self_corr").is_finite())
    median = selves.group_by("checkpoint", "step", "model", maintain_order=True).agg(pl.col("self_corr").median())
    tables |= {"emergence": emerged, "self": median}
    return {name: table_columns(_numbered(study, table, names)) for name, table in tables.items()}
