"""Whom tables, figures and pages name for a role: its best neuron, or the nearest candidate where no neuron has it.

One rule for all of them.  A role's candidates are
- by weights (prediction, suppression, partition) the neurons whose logit effects the study kept as those of the role:
  its own, else those that came nearest to it;
- entropy and token frequency: the neurons that were tried out for the role, or that have it;
- attention: the pairs whose path was taken away, of the role's sign.
Those that have the role come first.  Where none has it, the nearest is the one with the highest measure of the role; to
prediction (suppression) among those that raise (lower) their class, if any does.
"""

import polars as pl

from universal_neurons.labels import ROLES_BY_WEIGHTS
from universal_neurons.storage import Store

MEASURES = {
    "prediction": "vocab_kurt",
    "suppression": "vocab_kurt",
    "partition": "vocab_var",
    "entropy": "mediated",
    "token_frequency": "frequency_share",
}
CLASS_SIGNS = {"prediction": 1, "suppression": -1}  # whether the role raises or lowers its class
TRIED_AS = {"entropy": "entropy", "token_frequency": "frequency"}  # kinds of the table `ablations`
PLACE = ["layer", "neuron"]


def role_candidates(store: Store, model: str, role: str) -> pl.DataFrame:
    """A model's candidates for a role, the one to name first, with what their table says; no rows where there is none.

    Rows of `effects` (with `vocab_kurt`, `vocab_var`), `ablations` or `attention`.
    """
    if role in ROLES_BY_WEIGHTS:
        return _by_weights(store, model, role)
    if role in TRIED_AS:
        return tried_first(store.table("ablations").filter(pl.col(MEASURES[role]).is_finite(), model=model), role)
    if not store.has("attention"):
        return pl.DataFrame()
    sign = 1 if role == "attention_deactivation" else -1
    return best_pairs(store.table("attention").filter((pl.col("model") == model) & (pl.col("z") * sign > 0)))


def effects_shown(store: Store, model: str) -> pl.DataFrame:
    """A model's rows of `effect_histograms`, of each role by weights the neuron to name before the others."""
    histograms = store.table("effect_histograms").filter(model=model)
    named = pl.concat([role_candidates(store, model, role).select(PLACE).head(1) for role in ROLES_BY_WEIGHTS])
    return pl.concat([histograms.join(named, on=PLACE, how=how, maintain_order="left") for how in ("semi", "anti")])


def tried_first(ablations: pl.DataFrame, role: str) -> pl.DataFrame:
    """One model's candidates for `entropy` or `token_frequency`: those with the role, else those tried out for it."""
    measure = pl.col(MEASURES[role]).fill_nan(None)
    has_role = (pl.col("role") == role).fill_null(False)
    kept = ablations.filter(has_role | (pl.col("kind") == TRIED_AS[role]))
    return kept.sort(has_role, measure, descending=True, nulls_last=True, maintain_order=True)


def best_pairs(pairs: pl.DataFrame) -> pl.DataFrame:
    """Pairs of a neuron and a later head in the order in which they are shown: of each sign the best, deactivation
    first; then those with a role, and of these the highest |z| of each sign in turn."""
    sign, confirmed = pl.col("z").sign(), pl.col("role").is_not_null()
    ranked = pairs.sort(confirmed, pl.col("z").abs(), descending=True, maintain_order=True)
    ranked = ranked.with_columns(
        of_sign=pl.int_range(pl.len()).over(sign), of_kind=pl.int_range(pl.len()).over(sign, confirmed)
    )
    first = pl.col("of_sign") == 0
    return ranked.sort(~first, ~confirmed, "of_kind", -sign, maintain_order=True).drop("of_sign", "of_kind")


def _by_weights(store: Store, model: str, role: str) -> pl.DataFrame:
    places = ["model", *PLACE]
    moments = with_oriented_skew(store).select(*places, "vocab_kurt", "vocab_skew", "vocab_var")
    effects = store.table("effects").filter(model=model).join(moments, on=places, how="left", maintain_order="left")
    best = pl.col(MEASURES[role])
    have = effects.filter(role=role).sort(best, descending=True, nulls_last=True, maintain_order=True)
    kept = _drawn(store, model, role)
    shown = kept.join(effects, on=PLACE, how="inner", maintain_order="left")
    if len(have):
        return pl.concat([shown.select(effects.columns), have.join(kept, on=PLACE, how="anti", maintain_order="left")])
    right_sign = pl.col("class_sign") == CLASS_SIGNS.get(role, pl.col("class_sign"))
    ranked = shown.select(effects.columns).sort(best, descending=True, nulls_last=True, maintain_order=True)
    return ranked.sort(right_sign.fill_null(False), descending=True, maintain_order=True)


def _drawn(store: Store, model: str, role: str) -> pl.DataFrame:
    """The neurons whose logit effects the study kept as those of a role, in their order."""
    if not store.has("effect_histograms"):
        return pl.DataFrame(schema={"layer": pl.Int32, "neuron": pl.Int32})
    rows = store.table("effect_histograms").filter(model=model, role=role)
    return rows.select(PLACE).unique(maintain_order=True)


def with_oriented_skew(store: Store) -> pl.DataFrame:
    """The neuron table, `vocab_skew` times the neuron's orientation: the skew of what it adds on average.

    As it is where the study is without roles, or of a version that knew no orientation.
    """
    neurons = store.neurons
    if not store.has("effects") or "orientation" not in store.table("effects").columns:
        return neurons
    places = ["model", "layer", "neuron"]
    signs = store.table("effects").select(*places, "orientation")
    joined = neurons.join(signs, on=places, how="left", maintain_order="left")
    skew = pl.col("vocab_skew") * pl.col("orientation").fill_null(1)
    return joined.with_columns(vocab_skew=skew).drop("orientation")
