"""What neurons of one role and class do together: does their sum tell the class better than the best one (paper §5.1)?

1. Neurons of one role and class (`prediction`) are an ensemble.  A neuron's signal is its activation times its mean
   logit effect on the class less that elsewhere; it should tell whether the true next token is of the class.  Every
   other row chooses the best neuron; the rest judge it, and the sum of all signals.
2. Errors of two neurons share the target and so correlate whatever the neurons do.  The correlation of their signals
   given the class (within it and within the rest, pooled) need not: it is the measure of independence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int

from universal_neurons.labels import ROLES_BY_WEIGHTS
from universal_neurons.models import ProcessedWeights
from universal_neurons.roles.prediction import HISTOGRAMS_SCHEMA, ClassLabels, histogram, masks_of, used_tokens
from universal_neurons.statistics import jackknife
from universal_neurons.text import Vocabulary

SHOWN = 6  # neurons of an ensemble whose histograms figures draw
ENSEMBLES_SCHEMA: dict[str, Any] = {
    "model": pl.String, "role": pl.String, "nearest": pl.Boolean, "class": pl.String, "neurons": pl.Int32,
    "positions": pl.Int64, "base_rate": pl.Float64, "best_layer": pl.Int32, "best_neuron": pl.Int32,
    **dict.fromkeys(("corr_best", "corr_sum", "auc_best", "auc_sum", "error_corr", "activation_corr"), pl.Float64),
    "gain": pl.Float64, "gain_low": pl.Float64, "gain_high": pl.Float64,
}  # fmt: skip


def same_class(effects: pl.DataFrame) -> pl.DataFrame:
    """Prediction and suppression neurons by model, role and class, the largest ensemble first.

    `number`, `layers` and `neurons`, the one that the class explains best in front (`best_layer`, `best_neuron`);
    `nearest` if some of them only came nearest to the role (`with_nearest`).
    """
    nearest = pl.col("nearest") if "nearest" in effects.columns else pl.lit(False).alias("nearest")
    chosen = effects.with_columns(nearest).filter(
        pl.col("role").is_in(ROLES_BY_WEIGHTS[:2]) & pl.col("class").is_not_null()
    )
    ranked = chosen.sort("class_variance_reduction", descending=True, maintain_order=True)
    together = ranked.group_by("model", "role", "class", "class_group", maintain_order=True).agg(
        pl.len().cast(pl.Int32).alias("number"),
        pl.col("layer").alias("layers"),
        pl.col("neuron").alias("neurons"),
        pl.col("layer").first().alias("best_layer"),
        pl.col("neuron").first().alias("best_neuron"),
        pl.col("nearest").any(),
    )
    return together.sort(-pl.col("number"), "model", "role", "class", "class_group")


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
    classes: pl.DataFrame, weights: ProcessedWeights, vocabulary: Vocabulary, labels: ClassLabels
) -> tuple[Int[np.ndarray, " columns"], list[Ensemble]]:
    """The rows of one model's `same_class` with two neurons or more, and the flat numbers of all their neurons.

    Activations of these neurons, in this order, are what `ensembles_table` wants.
    """
    tokens = used_tokens(weights, vocabulary)
    masks = masks_of(labels)
    unembedding = weights.w_u.cpu()[tokens]
    w_out = weights.w_out.flatten(0, -2).cpu()
    total = unembedding.sum(0)
    rows = classes.filter(pl.col("number") >= 2).to_dicts()
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
    model_name: str,
    ensembles: Sequence[Ensemble],
    activations: Float[np.ndarray, "positions columns"],
    next_tokens: Int[np.ndarray, " positions"],
    row_of: Int[np.ndarray, " positions"],
) -> pl.DataFrame:
    """Does the sum of an ensemble tell its class better than its best neuron, and how independent are its neurons?

    Each position has a true next token (below 0: none; left out) and a row of text.  `corr_…` and `auc_…` are of
    signals: positive (above ½) where neurons raise the class before it comes or lower it before other tokens.
    The best neuron has the largest |ρ|.  `gain` is how much stronger the sum's ρ is than the best neuron's, each in
    the direction that it has on the rows that choose, with the 95 % interval of a jackknife over at most 20
    stretches of rows.  Null where a half of the rows has no token of the class, or no other.
    """
    has_next = next_tokens >= 0
    activations, next_tokens, row_of = activations[has_next], next_tokens[has_next], row_of[has_next]
    stretch = _judging_stretch(row_of)
    judged = [_judge(one, activations, one.mask[next_tokens], stretch) for one in ensembles]
    return pl.DataFrame([{"model": model_name} | facts for facts in judged], schema=ENSEMBLES_SCHEMA)


def _judging_stretch(row_of: Int[np.ndarray, " positions"]) -> Int[np.ndarray, " positions"]:
    """The stretch of text of each position in every other row, at most 20; −1 in the rows between, which choose."""
    rows, place = np.unique(row_of, return_inverse=True)
    stretches = min(jackknife.STRETCHES, len(rows) // 2)
    return np.where(place % 2, place * stretches // max(len(rows), 1), -1)


def _judge(ensemble: Ensemble, activations: np.ndarray, inside: np.ndarray, stretch: np.ndarray) -> dict[str, Any]:
    """Choose the best neuron on the rows of no stretch, compare it with the sum on the others."""
    signals = activations[:, ensemble.columns].astype(np.float64) * ensemble.effects
    chooses = stretch < 0
    both = np.column_stack([signals, signals.sum(1)])
    chosen = correlations(both[chooses], inside[chooses])
    signals, both, inside, stretch = (part[~chooses] for part in (signals, both, inside, stretch))
    facts: dict[str, Any] = {
        "role": ensemble.role,
        "nearest": ensemble.nearest,
        "class": ensemble.name,
        "neurons": signals.shape[1],
        "positions": len(inside),
        "base_rate": inside.sum() / max(len(inside), 1),
    }
    if not np.isfinite(chosen[:-1]).any() or inside.all() or not inside.any():
        return facts
    best = int(np.nanargmax(np.abs(chosen[:-1])))
    pair = both[:, [best, -1]]
    direction = np.sign(chosen[[best, -1]])

    def gain(positions: np.ndarray) -> float:
        alone, together = direction * correlations(pair[positions], inside[positions])
        return float(together - alone)

    facts["best_layer"] = int(ensemble.layers[best])
    facts["best_neuron"] = int(ensemble.neurons[best])
    facts["corr_best"], facts["corr_sum"] = correlations(pair, inside)
    facts["auc_best"], facts["auc_sum"] = (auc(column, inside) for column in pair.T)
    facts["gain"] = gain(stretch >= 0)
    without = np.array([gain(stretch != left) for left in np.unique(stretch)])
    if len(without) > 1:
        reach = jackknife.reach(without)
        facts["gain_low"] = facts["gain"] - reach
        facts["gain_high"] = facts["gain"] + reach
    return facts | _independence(signals[:, np.ptp(signals, 0) > 0], inside)


def _independence(signals: np.ndarray, inside: np.ndarray) -> dict[str, float | None]:
    """The mean correlation of two neurons' errors in telling the class, and of their signals given the class."""
    centred = signals - signals.mean(0)
    target = inside - inside.mean()
    errors = target[:, None] - centred * (target @ centred / np.square(centred).sum(0))
    of_class = np.where(inside[:, None], signals[inside].mean(0), signals[~inside].mean(0))
    return {"error_corr": _mean_pairwise(errors), "activation_corr": _mean_pairwise(signals - of_class)}


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
    from scipy.stats import rankdata  # late: half a second

    return float((rankdata(values)[inside].sum() - n * (n + 1) / 2) / (n * (len(inside) - n)))


def _mean_pairwise(values: Float[np.ndarray, "n columns"]) -> float | None:
    n = values.shape[1]
    return float(np.corrcoef(values.T)[np.triu_indices(n, 1)].mean()) if n > 1 else None


def ensemble_histograms(
    model_name: str,
    ensembles: Sequence[Ensemble],
    weights: ProcessedWeights,
    vocabulary: Vocabulary,
    activations: Float[np.ndarray, "positions columns"],
    next_tokens: Int[np.ndarray, " positions"],
) -> pl.DataFrame:
    """Of six neurons of each ensemble the logit effects by token, the activations by true next token (Fig 24)."""
    tokens = used_tokens(weights, vocabulary)
    has_next = next_tokens >= 0
    histograms = []
    unembedding = weights.w_u.cpu()[tokens]
    for one in ensembles:
        for place in range(min(SHOWN, len(one.neurons))):
            layer, neuron = int(one.layers[place]), int(one.neurons[place])
            row: dict[str, Any] = {"model": model_name, "layer": layer, "neuron": neuron, "role": one.role}
            row |= {"nearest": one.nearest, "class": one.name, "class_sign": int(np.sign(one.effects[place]))}
            effects = (unembedding @ weights.written_by(layer, neuron).cpu()).numpy()
            histograms.append(histogram(row | {"kind": "effect"}, effects, one.mask[tokens]))
            values = activations[has_next, one.columns[place]]
            histograms.append(histogram(row | {"kind": "activation"}, values, one.mask[next_tokens[has_next]]))
    return pl.concat([pl.DataFrame(schema=HISTOGRAMS_SCHEMA), *histograms])
