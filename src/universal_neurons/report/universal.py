"""The universal neurons of a study in one table: their counterparts, how sure that is, what is to be said of each."""

import polars as pl

from universal_neurons.errors import InputError
from universal_neurons.explanations import sentences_of
from universal_neurons.labels import explaining_label
from universal_neurons.report.verdict import verdict
from universal_neurons.storage import Store
from universal_neurons.units import name_column

EXCESS = {"paper": "excess_corr", "standardised": "excess_standardised"}


def universal_table(
    store: Store, model: str | None = None, threshold: float | None = None, by: str = "paper"
) -> pl.DataFrame:
    """`Store.universal`: a row per universal neuron, the highest excess first.

    Raises `InputError` where the study did not ask about the model's matches, or has no such excess.
    """
    asker = store.models[0] if model is None else model
    if asker not in store.askers:
        raise InputError(
            f"{store.path}: nothing is known of matches of {asker}",
            given=f"a study that asked about {', '.join(store.askers) or 'no matches'}",
            wanted="a model that it asked about"
            if store.askers
            else "a study of two models or more, with universality",
            fix="run it with --pairs all to ask about every model" if asker in store.models[1:] else None,
        )
    excess = EXCESS.get(by)
    if excess not in store.neurons.columns:
        kept = [name for name, column in EXCESS.items() if column in store.neurons.columns]
        raise InputError(f"{store.path}: no excess of this kind", given=by, wanted="one of " + ", ".join(kept))
    least = store.config.threshold if threshold is None else threshold
    above = pl.col(excess).fill_nan(None) > least
    found = store.neurons.filter((pl.col("model") == asker) & above)
    found = found.sort(excess, "layer", "neuron", descending=[True, False, False])
    further = [column for column in EXCESS.values() if column in found.columns and column != "excess_corr"]
    said = zip(found.iter_rows(named=True), sentences_of(store, found))
    sentences = [" ".join(verdict(store, row, threshold, said=explanation)) for row, explanation in said]
    others = [name for name in store.models if name != asker]
    for other in others:
        found = found.join(_matches(store, asker, other), on=["layer", "neuron"], how="left", maintain_order="left")
    name = pl.format("{}/{}", pl.lit(asker), name_column())
    return found.with_columns(neuron=name, sentence=pl.Series(sentences, dtype=pl.String)).select(
        "neuron",
        "excess_corr", "excess_heldout", "excess_low", "excess_high", *further,
        *(f"{kind}_{other}" for other in others for kind in ("match", "corr")),
        "family", explaining_label(), "sentence",
    )  # fmt: skip


def _matches(store: Store, asker: str, other: str) -> pl.DataFrame:
    """The best match of every neuron in another model, by its name there, and their ρ."""
    rows = store.matches.filter((pl.col("asker") == asker) & (pl.col("match_model") == other) & (pl.col("rank") == 1))
    named = pl.format("{}/{}", pl.lit(other), name_column("match_"))
    living = pl.when(pl.col("match_layer") >= 0).then(named)
    return rows.select("layer", "neuron", living.alias(f"match_{other}"), pl.col("corr").alias(f"corr_{other}"))
