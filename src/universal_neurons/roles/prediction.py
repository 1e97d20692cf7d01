"""Prediction, suppression and partition neurons, and what neurons of one class do together (paper §5.1).

1. A neuron's logit effects are W_U w_out, of processed weights.  The moments of cos(w_out, W_U) over the vocabulary
   give the role: kurtosis above a threshold and skew > 0 prediction, skew < 0 suppression; else a variance above a
   threshold: partition.
2. Its class is the token label with the highest variance reduction of its logit effects, which is ρ² (eq 4).
3. Neurons of one role and class are an ensemble.  A neuron's signal is its activation times its mean logit effect on
   the class less that elsewhere; it should tell whether the true next token is of the class.  Every other row chooses
   the best neuron; the rest judge it, and the sum of all signals.
4. Errors of two neurons share the target and so correlate whatever the neurons do.  The correlation of their signals
   given the class (within it and within the rest, pooled) need not: it is the measure of independence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from torch import Tensor

from universal_neurons import jackknife
from universal_neurons.categories import ROLES_BY_WEIGHTS
from universal_neurons.config import RoleSettings
from universal_neurons.families import TIE
from universal_neurons.labels import Label, token_test_masks, unigram_masks
from universal_neurons.neurons import PANEL_ELEMENTS
from universal_neurons.vocabulary import Vocabulary
from universal_neurons.weights import ProcessedWeights

FEWEST = 2  # tokens of a class
PAPER_WIDTH = 1024  # of GPT2-medium
TOP, BINS, SHOWN = 10, 60, 6
EFFECTS_SCHEMA: dict[str, Any] = {
    "model": pl.String, "layer": pl.Int32, "neuron": pl.Int32, "role": pl.String, "class": pl.String,
    "class_group": pl.String, "class_sign": pl.Int8, "class_variance_reduction": pl.Float64,
    "top_tokens": pl.List(pl.Int32), "top_effects": pl.List(pl.Float32),
    "bottom_tokens": pl.List(pl.Int32), "bottom_effects": pl.List(pl.Float32),
}  # fmt: skip
ENSEMBLES_SCHEMA: dict[str, Any] = {
    "model": pl.String, "role": pl.String, "nearest": pl.Boolean, "class": pl.String, "neurons": pl.Int32,
    "positions": pl.Int64, "base_rate": pl.Float64, "best_layer": pl.Int32, "best_neuron": pl.Int32,
    **dict.fromkeys(("corr_best", "corr_sum", "auc_best", "auc_sum", "error_corr", "activation_corr"), pl.Float64),
    "gain": pl.Float64, "gain_low": pl.Float64, "gain_high": pl.Float64,
}  # fmt: skip
HISTOGRAMS_SCHEMA: dict[str, Any] = {
    "model": pl.String, "layer": pl.Int32, "neuron": pl.Int32, "role": pl.String, "nearest": pl.Boolean,
    "class": pl.String, "class_sign": pl.Int8, "class_variance_reduction": pl.Float64, "kind": pl.String,
    "in_class": pl.Boolean, "low": pl.Float64, "high": pl.Float64, "count": pl.Int64,
}  # fmt: skip
ClassLabels = Sequence[tuple[Label, np.ndarray]]


def class_labels(
    vocabulary: Vocabulary, embedding: Float[Tensor, "tokens width"] | None = None, *,
    counts: Int[np.ndarray, "vocabulary kinds"] | None = None, own: Mapping[str, np.ndarray] | None = None,
) -> list[tuple[Label, np.ndarray]]:  # fmt: skip
    """The labels that speak of tokens alone, as masks over the vocabulary: token tests and the user's own sets.

    `embedding` adds `small_norm`, `counts` (`Vocabulary.counts`) the unigrams; `own` is `OwnLabels.tokens`.
    """
    masks = token_test_masks(vocabulary, None if embedding is None else embedding[: len(vocabulary)])
    if counts is not None:
        masks += unigram_masks(vocabulary, counts)
    return masks + [(Label(name, "own"), mask) for name, mask in (own or {}).items()]


def used_tokens(weights: ProcessedWeights, vocabulary: Vocabulary) -> Int[np.ndarray, " used"]:
    """Tokens that stand for text and have an unembedding; where no token's string is known, all with an unembedding."""
    used = (weights.w_u[: len(vocabulary)].norm(dim=1) > 0).cpu().numpy()
    return np.flatnonzero(used if vocabulary.special.all() else used & ~vocabulary.special)


def roles_of(stats: pl.DataFrame, settings: RoleSettings, d_model: int) -> list[str | None]:
    """The role of each neuron, if any, from `vocab_var`, `vocab_skew` and `vocab_kurt` (see the module).

    The cosine with a random direction has variance 1 / d_model, so the paper's cut, made for GPT2-medium's 1024, goes
    with it.
    """
    var, skew, kurt = (stats[f"vocab_{name}"].to_numpy() for name in ("var", "skew", "kurt"))
    peaked = kurt > settings.kurtosis
    cases = [peaked & (skew > 0), peaked & (skew < 0), var * d_model / PAPER_WIDTH > settings.partition_variance]
    return [(*ROLES_BY_WEIGHTS, None)[code] for code in np.select(cases, [0, 1, 2], len(ROLES_BY_WEIGHTS)).tolist()]


def effects_table(
    model_name: str, weights: ProcessedWeights, stats: pl.DataFrame,
    vocabulary: Vocabulary, labels: ClassLabels, settings: RoleSettings,
) -> pl.DataFrame:  # fmt: skip
    """A row per neuron: its role, its class, and the tokens whose logits it raises and lowers most (paper §5.1).

    `stats` are the model's rows of the neuron table, in order.  Of two classes that say the same (all tokens but the
    other's), that one comes first which the neuron raises, or lowers if it is a suppression neuron.  Neurons that
    write nothing have no class, no tokens and a variance reduction of NaN.
    """
    tokens = used_tokens(weights, vocabulary)
    unembedding = weights.w_u[torch.from_numpy(tokens).to(weights.w_u.device)].float()
    w_out = weights.w_out.flatten(0, 1).float()
    names, table = _unit_labels(labels, tokens)
    directions = torch.from_numpy(table).to(w_out.device)
    roles = roles_of(stats, settings, weights.w_u.shape[1])
    preferred = torch.tensor([-1 if role == "suppression" else 1 for role in roles], device=w_out.device)
    parts: list[tuple[Tensor, ...]] = []
    height = max(1, PANEL_ELEMENTS // max(len(tokens), 1))
    for start in range(0, len(w_out), height):
        effects = w_out[start : start + height] @ unembedding.T
        top, bottom = (effects.topk(min(TOP, len(tokens)), 1, largest=largest) for largest in (True, False))
        effects -= effects.mean(1, keepdim=True)
        corr = (effects @ directions.T / effects.norm(dim=1, keepdim=True)).clamp(-1, 1)
        likely = 1 + TIE * (corr.sign() == preferred[start : start + height, None])
        which = (corr.square() * likely).nan_to_num(nan=-1.0).argmax(1)
        best = corr.gather(1, which[:, None])[:, 0]
        parts.append((which, best, effects.any(1), top.indices, top.values, bottom.indices, bottom.values))
    which, best, alive, *extremes = (torch.cat(part).cpu().numpy() for part in zip(*parts))
    extremes[::2] = [tokens[found] for found in extremes[::2]]
    known = np.isfinite(best)
    chosen = [names[place] if is_known else None for place, is_known in zip(which.tolist(), known.tolist())]
    columns: Sequence[Any] = (
        [model_name] * len(best), *weights.units.table_columns().values(), roles,
        [label and label.name for label in chosen], [label and label.group for label in chosen],
        [int(sign) if is_known else None for sign, is_known in zip(np.sign(best), known)], best.astype(np.float64) ** 2,
        *([row if is_known else None for row, is_known in zip(found.tolist(), alive)] for found in extremes),
    )  # fmt: skip
    return pl.DataFrame(dict(zip(EFFECTS_SCHEMA, columns)), schema_overrides=EFFECTS_SCHEMA)


def _unit_labels(labels: ClassLabels, tokens: np.ndarray) -> tuple[list[Label | None], np.ndarray]:
    """Labels that differ and hold for some of the tokens, centred, of length 1; one of NaN where there is none."""
    distinct: dict[bytes, tuple[Label, np.ndarray]] = {}
    for label, mask in labels:
        inside = mask[tokens]
        if FEWEST <= inside.sum() < len(tokens):
            distinct.setdefault(np.packbits(inside).tobytes(), (label, inside))
    if not distinct:
        return [None], np.full((1, len(tokens)), np.nan, np.float32)
    table = np.empty((len(distinct), len(tokens)), np.float32)
    for row, (_, inside) in enumerate(distinct.values()):
        table[row] = (inside - inside.mean()) / (np.sqrt(len(tokens)) * inside.std())
    return [label for label, _ in distinct.values()], table


def with_nearest(effects: pl.DataFrame, stats: pl.DataFrame, fewest: int = 1) -> pl.DataFrame:
    """One model's effects where a role that no neuron has is given to the `fewest` nearest to it, with `nearest` set.

    Nearest to prediction (suppression) is the highest kurtosis among skew > 0 (< 0), to partition the highest variance,
    of neurons with a class and no role.  `is_universal` comes along from `stats` if it is there.
    """
    var, skew, kurt = (stats[f"vocab_{name}"].to_numpy() for name in ("var", "skew", "kurt"))
    roles = np.array(effects["role"].fill_null("").to_list(), object)
    nearest = np.zeros(len(effects), bool)
    classed = effects["class"].is_not_null().to_numpy()
    for role, score in zip(ROLES_BY_WEIGHTS, (np.where(skew > 0, kurt, np.nan), np.where(skew < 0, kurt, np.nan), var)):
        free = np.flatnonzero(np.isfinite(score) & classed & (roles == ""))
        lacking = 0 if (roles == role).any() else fewest
        taken = free[np.argsort(-score[free], kind="stable")][:lacking]
        roles[taken], nearest[taken] = role, True
    universal = stats["is_universal"].fill_null(False) if "is_universal" in stats.columns else pl.lit(False)
    added = {"role": pl.Series([role or None for role in roles], dtype=pl.String), "nearest": pl.Series(nearest)}
    return effects.with_columns(**added, is_universal=universal)


def role_examples(effects: pl.DataFrame, per_role: int = 10) -> pl.DataFrame:
    """Of each role's neurons (of `with_nearest`) the ones to show: universal ones first, by variance reduction."""
    ranked = effects.filter(pl.col("role").is_not_null() & pl.col("class").is_not_null()).sort(
        "nearest", ~pl.col("is_universal"), -pl.col("class_variance_reduction"), maintain_order=True
    )
    return pl.concat([ranked.filter(pl.col("role") == role).head(per_role) for role in ROLES_BY_WEIGHTS])


def same_class(effects: pl.DataFrame) -> pl.DataFrame:
    """Prediction and suppression neurons by model, role and class, the largest group first.

    `number`, `layers` and `neurons`, the one that the class explains best in front (`best_layer`, `best_neuron`);
    `nearest` if some of them only came nearest to the role (`with_nearest`).
    """
    nearest = pl.col("nearest") if "nearest" in effects.columns else pl.lit(False).alias("nearest")
    chosen = effects.with_columns(nearest).filter(
        pl.col("role").is_in(ROLES_BY_WEIGHTS[:2]) & pl.col("class").is_not_null()
    )
    ranked = chosen.sort("class_variance_reduction", descending=True, maintain_order=True)
    groups = ranked.group_by("model", "role", "class", "class_group", maintain_order=True).agg(
        pl.len().cast(pl.Int32).alias("number"), pl.col("layer").alias("layers"), pl.col("neuron").alias("neurons"),
        pl.col("layer").first().alias("best_layer"), pl.col("neuron").first().alias("best_neuron"),
        pl.col("nearest").any(),
    )  # fmt: skip
    return groups.sort(-pl.col("number"), "model", "role", "class", "class_group")


@dataclass(frozen=True)
class Ensemble:
    """Neurons of one role and class: where they are, their columns of a table of activations, and the class's tokens.

    `effects` are their mean logit effects on the class less those on all other tokens.
    """

    role: str
    name: str
    layers: Int[np.ndarray, " neurons"]
    neurons: Int[np.ndarray, " neurons"]
    columns: Int[np.ndarray, " neurons"]
    effects: Float[np.ndarray, " neurons"]
    mask: Bool[np.ndarray, " vocabulary"]
    nearest: bool = False


def ensembles_of(
    groups: pl.DataFrame, weights: ProcessedWeights, vocabulary: Vocabulary, labels: ClassLabels
) -> tuple[Int[np.ndarray, " columns"], list[Ensemble]]:
    """The groups of two neurons and more of one model's `same_class`, and the flat numbers of all their neurons.

    Activations of these neurons, in this order, are what `ensembles_table` wants.
    """
    tokens = used_tokens(weights, vocabulary)
    masks = {(label.group, label.name): mask for label, mask in labels}
    unembedding = weights.w_u.cpu()[tokens]
    w_out = weights.w_out.flatten(0, 1).cpu()
    total = unembedding.sum(0)
    rows = groups.filter(pl.col("number") >= 2).to_dicts()
    flats = [weights.units.number_of(np.array(row["layers"]), np.array(row["neurons"])) for row in rows]
    every = np.unique(np.concatenate([np.zeros(0, np.int64), *flats]))
    ensembles = []
    for row, flat in zip(rows, flats):
        mask = masks[row["class_group"], row["class"]]
        inside = torch.from_numpy(mask[tokens])
        within = unembedding[inside].sum(0)
        elsewhere = (total - within) / (~inside).sum()
        effects = w_out[flat] @ (within / inside.sum() - elsewhere)
        places = (*weights.units.place_of(flat), np.searchsorted(every, flat))
        ensembles.append(Ensemble(row["role"], row["class"], *places, effects.numpy(), mask, row["nearest"]))
    return every, ensembles


def ensembles_table(
    model_name: str, ensembles: Sequence[Ensemble], activations: Float[np.ndarray, "positions columns"],
    next_tokens: Int[np.ndarray, " positions"], row_of: Int[np.ndarray, " positions"],
) -> pl.DataFrame:  # fmt: skip
    """Does the sum of an ensemble tell its class better than its best neuron, and how independent are its neurons?

    Each position has a true next token (below 0: none; left out) and a row of text.  `corr_…` and `auc_…` are of
    signals: positive (above ½) where neurons raise the class before it comes or lower it before other tokens.
    The best neuron has the largest |ρ|.  `gain` is how much stronger the sum's ρ is than the best neuron's, each in
    the direction that it has on the rows that choose, with the 95 % interval of a jackknife over at most 20
    stretches of rows.  Null where a half of the rows has no token of the class, or no other.
    """
    has_next = next_tokens >= 0
    activations, next_tokens, row_of = activations[has_next], next_tokens[has_next], row_of[has_next]
    rows, place = np.unique(row_of, return_inverse=True)
    stretch = np.where(place % 2, place * min(jackknife.STRETCHES, len(rows) // 2) // max(len(rows), 1), -1)
    rows_of_table = [
        {"model": model_name} | _judge(one, activations, one.mask[next_tokens], stretch) for one in ensembles
    ]
    return pl.DataFrame(rows_of_table, schema=ENSEMBLES_SCHEMA)


def _judge(ensemble: Ensemble, activations: np.ndarray, inside: np.ndarray, stretch: np.ndarray) -> dict[str, Any]:
    """Choose the best neuron on the rows of no stretch, compare it with the sum on the others."""
    signals = activations[:, ensemble.columns].astype(np.float64) * ensemble.effects
    chooses = stretch < 0
    both = np.column_stack([signals, signals.sum(1)])
    chosen = correlations(both[chooses], inside[chooses])
    signals, both, inside, stretch = (part[~chooses] for part in (signals, both, inside, stretch))
    facts: dict[str, Any] = {"role": ensemble.role, "nearest": ensemble.nearest, "class": ensemble.name}
    facts |= {"neurons": signals.shape[1], "positions": len(inside), "base_rate": inside.sum() / max(len(inside), 1)}
    if not np.isfinite(chosen[:-1]).any() or inside.all() or not inside.any():
        return facts
    best = int(np.nanargmax(np.abs(chosen[:-1])))
    pair = both[:, [best, -1]]
    way = np.sign(chosen[[best, -1]])

    def gain(where: np.ndarray) -> float:
        alone, together = way * correlations(pair[where], inside[where])
        return float(together - alone)

    facts |= {"best_layer": int(ensemble.layers[best]), "best_neuron": int(ensemble.neurons[best])}
    facts["corr_best"], facts["corr_sum"] = correlations(pair, inside)
    facts["auc_best"], facts["auc_sum"] = (auc(column, inside) for column in pair.T)
    facts["gain"] = gain(stretch >= 0)
    without = np.array([gain(stretch != left) for left in np.unique(stretch)])
    if len(without) > 1:
        reach = jackknife.reach(without)
        facts["gain_low"], facts["gain_high"] = facts["gain"] - reach, facts["gain"] + reach
    alive = signals[:, np.ptp(signals, 0) > 0]
    centred = alive - alive.mean(0)
    target = inside - inside.mean()
    facts["error_corr"] = _mean_pairwise(target[:, None] - centred * (target @ centred / np.square(centred).sum(0)))
    middle = np.where(inside[:, None], alive[inside].mean(0), alive[~inside].mean(0))
    facts["activation_corr"] = _mean_pairwise(alive - middle)
    return facts


def correlations(values: Float[np.ndarray, "n k"], inside: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " k"]:
    """ρ of each column with an indicator; NaN where either never changes."""
    if not inside.any() or inside.all():
        return np.full(values.shape[1], np.nan)
    target = inside - inside.mean()
    centred = values - values.mean(0)
    scale = np.where(np.ptp(values, 0) > 0, np.linalg.norm(centred, axis=0) * np.linalg.norm(target), np.nan)
    return np.clip(target @ centred / scale, -1, 1)


def auc(values: Float[np.ndarray, " n"], inside: Bool[np.ndarray, " n"]) -> float:
    """How often a value inside is above one outside, ties counted half: the area under the ROC curve."""
    n = int(inside.sum())
    return float((rankdata(values)[inside].sum() - n * (n + 1) / 2) / (n * (len(inside) - n)))


def _mean_pairwise(values: Float[np.ndarray, "n columns"]) -> float | None:
    n = values.shape[1]
    return float(np.corrcoef(values.T)[np.triu_indices(n, 1)].mean()) if n > 1 else None


def effect_histograms(
    chosen: pl.DataFrame, weights: ProcessedWeights, vocabulary: Vocabulary, labels: ClassLabels
) -> pl.DataFrame:
    """Logit effects of some neurons of one model (rows of `role_examples`), inside and outside their class (Fig 5)."""
    tokens = used_tokens(weights, vocabulary)
    masks = {(label.group, label.name): mask for label, mask in labels}
    unembedding = weights.w_u.cpu()[tokens]
    histograms = []
    for row in chosen.to_dicts():
        effects = (unembedding @ weights.w_out[row["layer"], row["neuron"]].cpu()).numpy()
        histograms.append(
            _histogram(row | {"kind": "effect"}, effects, masks[row["class_group"], row["class"]][tokens])
        )
    return pl.concat([pl.DataFrame(schema=HISTOGRAMS_SCHEMA), *histograms])


def ensemble_histograms(
    model_name: str, ensembles: Sequence[Ensemble], weights: ProcessedWeights, vocabulary: Vocabulary,
    activations: Float[np.ndarray, "positions columns"], next_tokens: Int[np.ndarray, " positions"],
) -> pl.DataFrame:  # fmt: skip
    """Of six neurons of each ensemble the logit effects by token, the activations by true next token (Fig 24)."""
    tokens = used_tokens(weights, vocabulary)
    has_next = next_tokens >= 0
    histograms = []
    unembedding = weights.w_u.cpu()[tokens]
    for one in ensembles:
        for layer, neuron, column, effect in list(zip(one.layers, one.neurons, one.columns, one.effects))[:SHOWN]:
            row: dict[str, Any] = {"model": model_name, "layer": int(layer), "neuron": int(neuron), "role": one.role}
            row |= {"nearest": one.nearest, "class": one.name, "class_sign": int(np.sign(effect))}
            effects = (unembedding @ weights.w_out[int(layer), int(neuron)].cpu()).numpy()
            parts = ("effect", effects, tokens), ("activation", activations[has_next, column], next_tokens[has_next])
            histograms += [_histogram(row | {"kind": kind}, values, one.mask[ids]) for kind, values, ids in parts]
    return pl.concat([pl.DataFrame(schema=HISTOGRAMS_SCHEMA), *histograms])


def _histogram(row: Mapping[str, Any], values: np.ndarray, inside: np.ndarray) -> pl.DataFrame:
    edges = np.histogram_bin_edges(values.astype(np.float64), BINS)
    columns: dict[str, Any] = {name: [row.get(name)] * (2 * BINS) for name in HISTOGRAMS_SCHEMA}
    columns["count"] = np.concatenate([np.histogram(values[side], edges)[0] for side in (inside, ~inside)])
    columns |= {"in_class": BINS * [True] + BINS * [False], "low": [*edges[:-1]] * 2, "high": [*edges[1:]] * 2}
    return pl.DataFrame(columns, schema_overrides=HISTOGRAMS_SCHEMA)
