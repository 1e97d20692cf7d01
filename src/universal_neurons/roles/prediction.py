"""Prediction, suppression and partition neurons: what a neuron does to the next token's logits (paper §5.1).

1. A neuron's logit effects are W_U w_out, of processed weights.  The moments of cos(w_out, W_U) over the vocabulary
   give the role: kurtosis above a threshold and skew > 0 prediction, skew < 0 suppression; else a variance above a
   threshold: partition.  Where an unembedding allows no such kurtosis, another cut tells more (`reach`).
2. Its class is the token label with the highest variance reduction of its logit effects, which is ρ² (eq 4).
3. The tokens that it raises and lowers most are looked for among those that occur often enough in the study's text: the
   unembedding of a token that hardly occurs was hardly trained, and says nothing of the neuron.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.labels import ROLES_BY_WEIGHTS, TIE, Label, token_test_masks
from universal_neurons.models import ProcessedWeights
from universal_neurons.role_settings import OFTEN, RoleSettings
from universal_neurons.roles.nearest import CLASS_SIGNS
from universal_neurons.roles.reach import Reach
from universal_neurons.statistics import PANEL_ELEMENTS
from universal_neurons.text import Vocabulary
from universal_neurons.units import Units

FEWEST = 2  # tokens of a class
PAPER_WIDTH = 1024  # of GPT2-medium
TOP = 10  # tokens that a neuron raises most, and lowers most
BINS = 60
PER_ROLE = 10  # examples of a role
EFFECTS_SCHEMA: dict[str, Any] = {
    "model": pl.String, "layer": pl.Int32, "neuron": pl.Int32, "role": pl.String, "class": pl.String,
    "class_group": pl.String, "class_sign": pl.Int8, "class_variance_reduction": pl.Float64,
    "top_tokens": pl.List(pl.Int32), "top_effects": pl.List(pl.Float32),
    "bottom_tokens": pl.List(pl.Int32), "bottom_effects": pl.List(pl.Float32), "tokens_left_out": pl.Int32,
    "kurtosis_share": pl.Float64, "role_relative": pl.String,
}  # fmt: skip
HISTOGRAMS_SCHEMA: dict[str, Any] = {
    "model": pl.String, "layer": pl.Int32, "neuron": pl.Int32, "role": pl.String, "nearest": pl.Boolean,
    "class": pl.String, "class_sign": pl.Int8, "class_variance_reduction": pl.Float64, "kind": pl.String,
    "in_class": pl.Boolean, "low": pl.Float64, "high": pl.Float64, "count": pl.Int64,
}  # fmt: skip
ClassLabels = Sequence[tuple[Label, np.ndarray]]


@runtime_checkable
class Writing(Protocol):
    """What units write into the residual stream, and the unembedding, both processed: `ProcessedWeights`, say."""

    @property
    def w_out(self) -> Tensor:
        """(*units, d_model)."""
        ...

    @property
    def w_u(self) -> Float[Tensor, "vocabulary d_model"]:
        """The unembedding."""
        ...

    @property
    def units(self) -> Units:
        """The units."""
        ...


def class_labels(
    vocabulary: Vocabulary,
    embedding: Float[Tensor, "tokens width"] | None = None,
    *,
    own: Mapping[str, np.ndarray] | None = None,
) -> list[tuple[Label, np.ndarray]]:
    """The labels that speak of tokens alone, as masks over the vocabulary: token tests and the user's own sets.

    `embedding` adds `small_norm`; `own` is `OwnLabels.tokens`.
    """
    masks = token_test_masks(vocabulary, None if embedding is None else embedding[: len(vocabulary)])
    return masks + [(Label(name, "own"), mask) for name, mask in (own or {}).items()]


def used_tokens(weights: Writing, vocabulary: Vocabulary) -> Int[np.ndarray, " used"]:
    """Tokens that stand for text and have an unembedding; where no token's string is known, all with an unembedding."""
    used = (weights.w_u[: len(vocabulary)].norm(dim=1) > 0).cpu().numpy()
    return np.flatnonzero(used if vocabulary.special.all() else used & ~vocabulary.special)


def often_used(used: Int[np.ndarray, " used"], counts: Int[np.ndarray, " vocabulary"]) -> Int[np.ndarray, " often"]:
    """Those of the used tokens that occur at least `OFTEN` times in the text; all where fewer than twice `TOP` do.

    A text in which so few tokens recur is too short to tell an untrained token from one that is merely rare.
    """
    often = used[counts[used] >= OFTEN]
    return often if len(often) >= 2 * TOP else used


def roles_of(stats: pl.DataFrame, settings: RoleSettings, d_model: int) -> list[str | None]:
    """The role of each neuron, if any, from `vocab_var`, `vocab_skew` and `vocab_kurt` (see the module).

    The cosine with a random direction has variance 1 / d_model, so the paper's cut, made for GPT2-medium's 1024, goes
    with it.
    """
    wide = stats["vocab_var"].to_numpy() * d_model / PAPER_WIDTH > settings.partition_variance
    return _first_of([*_peaked(stats, settings.kurtosis), wide])


def relative_roles(stats: pl.DataFrame, reach: Reach, settings: RoleSettings) -> list[str | None]:
    """Prediction or suppression by a kurtosis that is high among those that this unembedding allows (`reach`)."""
    return _first_of(_peaked(stats, reach.cut(settings.kurtosis_share)))


def _peaked(stats: pl.DataFrame, cut: float) -> list[np.ndarray]:
    """Whose kurtosis is above a cut: with skew > 0, with skew < 0."""
    kurt, skew = stats["vocab_kurt"].to_numpy(), stats["vocab_skew"].to_numpy()
    return [(kurt > cut) & (skew > 0), (kurt > cut) & (skew < 0)]


def _first_of(cases: list[np.ndarray]) -> list[str | None]:
    """Of each neuron the first role by weights whose case it is."""
    return [(*ROLES_BY_WEIGHTS, None)[code] for code in np.select(cases, list(range(len(cases))), -1).tolist()]


def effects_table(
    model_name: str,
    weights: Writing,
    stats: pl.DataFrame,
    vocabulary: Vocabulary,
    counts: Int[np.ndarray, " vocabulary"],
    labels: ClassLabels,
    settings: RoleSettings,
    reach: Reach,
) -> pl.DataFrame:
    """A row per neuron: its role, its class, and the tokens whose logits it raises and lowers most (paper §5.1).

    `stats` are the model's rows of the neuron table, in order, `counts` how often each token occurs in the text,
    `reach` what its unembedding allows, by which `kurtosis_share` and `role_relative` are told.  The
    lists leave out tokens that hardly occur (`often_used`; `tokens_left_out` says how many); role and class do not.
    Of two classes that say the same (all tokens but the other's), that one comes first which the neuron raises, or
    lowers if it is a suppression neuron.  Neurons that write nothing have no class, no tokens and a variance reduction
    of NaN.
    """
    tokens = used_tokens(weights, vocabulary)
    listed = often_used(tokens, counts)
    used, often = (weights.w_u[torch.from_numpy(some).to(weights.w_u.device)] for some in (tokens, listed))
    often = often.float()
    w_out = weights.w_out.flatten(0, -2)
    names, table = _unit_labels(labels, tokens)
    reading = _Spread.of(used, torch.from_numpy(table).to(w_out))
    roles = roles_of(stats, settings, weights.w_u.shape[1])
    preferred = torch.tensor([-1 if role == "suppression" else 1 for role in roles], device=w_out.device)
    parts: list[tuple[Tensor, ...]] = []
    height = max(1, PANEL_ELEMENTS // max(len(listed), 1))
    for rows, sign in zip(w_out.split(height), preferred.split(height)):
        effects = rows.float() @ often.T
        highest, lowest = (effects.topk(min(TOP, len(listed)), 1, largest=largest) for largest in (True, False))
        corr = reading.corr(rows)
        likely = 1 + TIE * (corr.sign() == sign[:, None])
        place = (corr.square() * likely).nan_to_num(nan=-1.0).argmax(1)
        of_class = corr.gather(1, place[:, None])[:, 0]
        parts.append((place, of_class, rows.any(1), highest.indices, highest.values, lowest.indices, lowest.values))
    which, best, alive, top, top_effects, bottom, bottom_effects = (
        torch.cat(part).cpu().numpy() for part in zip(*parts)
    )
    known = np.isfinite(best)
    chosen = [names[place] if has_class else None for place, has_class in zip(which.tolist(), known.tolist())]
    columns: dict[str, Any] = {
        "model": [model_name] * len(best),
        **weights.units.table_columns(),
        "role": roles,
        "class": [label.name if label else None for label in chosen],
        "class_group": [label.group if label else None for label in chosen],
        "class_sign": [int(sign) if has_class else None for sign, has_class in zip(np.sign(best), known)],
        "class_variance_reduction": best.astype(np.float64) ** 2,
        "top_tokens": _lists_of(listed[top], alive),
        "top_effects": _lists_of(top_effects, alive),
        "bottom_tokens": _lists_of(listed[bottom], alive),
        "bottom_effects": _lists_of(bottom_effects, alive),
        "tokens_left_out": [len(tokens) - len(listed)] * len(best),
        "kurtosis_share": reach.shares(stats["vocab_kurt"].to_numpy().astype(float)),
        "role_relative": relative_roles(stats, reach, settings),
    }
    return pl.DataFrame(columns, schema_overrides=EFFECTS_SCHEMA)


@dataclass(frozen=True)
class _Spread:
    """What correlates logit effects W_U w_out with labels over the vocabulary, without making them: with U the centred
    unembedding and l a centred label of length 1, ρ is (Uᵀl · w_out) / √(w_outᵀ UᵀU w_out)."""

    labels: Float[Tensor, "width labels"]
    gram: Float[Tensor, "width width"]

    @classmethod
    def of(cls, unembedding: Float[Tensor, "tokens width"], labels: Float[Tensor, "labels tokens"]) -> "_Spread":
        """Of some tokens' unembedding."""
        centred = unembedding - unembedding.mean(0)
        return cls(centred.T @ labels.T, centred.T @ centred)

    def corr(self, w_out: Float[Tensor, "neurons width"]) -> Float[Tensor, "neurons labels"]:
        """ρ of each neuron's logit effects with each label; NaN where they do not differ."""
        squares = (w_out @ self.gram * w_out).sum(1, keepdim=True).clamp_min(0)
        return (w_out @ self.labels / squares.sqrt()).clamp(-1, 1)


def _lists_of(table: np.ndarray, alive: np.ndarray) -> list[list[Any] | None]:
    """The rows of a table as lists; None for neurons that write nothing."""
    return [row if writes else None for row, writes in zip(table.tolist(), alive)]


def masks_of(labels: ClassLabels) -> dict[tuple[str, str], np.ndarray]:
    """The mask over the vocabulary of every label, by its group and name."""
    return {(label.group, label.name): mask for label, mask in labels}


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
    of neurons with a class and no role; before all others those that raise (lower) their class.  `is_universal` comes
    along from `stats` if it is there.
    """
    var, skew, kurt = (stats[f"vocab_{name}"].to_numpy() for name in ("var", "skew", "kurt"))
    roles = np.array(effects["role"].fill_null("").to_list(), object)
    nearest = np.zeros(len(effects), bool)
    classed = effects["class"].is_not_null().to_numpy()
    signs = effects["class_sign"].fill_null(0).to_numpy()
    for role, score in zip(ROLES_BY_WEIGHTS, (np.where(skew > 0, kurt, np.nan), np.where(skew < 0, kurt, np.nan), var)):
        free = np.flatnonzero(np.isfinite(score) & classed & (roles == ""))
        lacking = 0 if (roles == role).any() else fewest
        other_sign = signs[free] != CLASS_SIGNS.get(role, signs[free])
        taken = free[np.lexsort((-score[free], other_sign))][:lacking]
        roles[taken], nearest[taken] = role, True
    universal = stats["is_universal"].fill_null(False) if "is_universal" in stats.columns else pl.lit(False)
    added = {"role": pl.Series([role or None for role in roles], dtype=pl.String), "nearest": pl.Series(nearest)}
    return effects.with_columns(**added, is_universal=universal)


def role_examples(effects: pl.DataFrame) -> pl.DataFrame:
    """Of each role's neurons (of `with_nearest`) the ten to show: universal ones first, by variance reduction."""
    ranked = effects.filter(pl.col("role").is_not_null() & pl.col("class").is_not_null()).sort(
        "nearest", ~pl.col("is_universal"), -pl.col("class_variance_reduction"), maintain_order=True
    )
    return pl.concat([ranked.filter(pl.col("role") == role).head(PER_ROLE) for role in ROLES_BY_WEIGHTS])


def effect_histograms(
    chosen: pl.DataFrame, weights: ProcessedWeights, vocabulary: Vocabulary, labels: ClassLabels
) -> pl.DataFrame:
    """Logit effects of some neurons of one model (rows of `role_examples`), inside and outside their class (Fig 5)."""
    tokens = used_tokens(weights, vocabulary)
    masks = masks_of(labels)
    unembedding = weights.w_u.cpu()[tokens]
    histograms = []
    for row in chosen.to_dicts():
        effects = (unembedding @ weights.written_by(row["layer"], row["neuron"]).cpu()).numpy()
        inside = masks[row["class_group"], row["class"]][tokens]
        histograms.append(histogram(row | {"kind": "effect"}, effects, inside))
    return pl.concat([pl.DataFrame(schema=HISTOGRAMS_SCHEMA), *histograms])


def histogram(row: Mapping[str, Any], values: np.ndarray, inside: np.ndarray) -> pl.DataFrame:
    """How many values lie in each of 60 even bins, those inside the class first; other columns are those of `row`."""
    edges = np.histogram_bin_edges(values.astype(np.float64), BINS)
    columns: dict[str, Any] = {name: [row.get(name)] * (2 * BINS) for name in HISTOGRAMS_SCHEMA}
    columns["count"] = np.concatenate([np.histogram(values[side], edges)[0] for side in (inside, ~inside)])
    columns |= {"in_class": BINS * [True] + BINS * [False], "low": [*edges[:-1]] * 2, "high": [*edges[1:]] * 2}
    return pl.DataFrame(columns, schema_overrides=HISTOGRAMS_SCHEMA)
