"""Attention (de)activation neurons: they switch a later head off by sending its attention to BOS, or on (paper §6).

A head that attends to BOS does nothing, where what it reads there is small (`at_bos`).  A neuron that writes along
what a head's query reads of the key of BOS therefore switches that head:

    h = scaling · (w_out / ‖w_out‖)ᵀ W_Qᵀ k̄_BOS

is what a unit of the neuron's output adds to the head's score for BOS.  h > 0: where the neuron is active, the head
attends more to BOS and writes less: **deactivation**; h < 0: **activation**.  h is compared with the same of random
directions (z).  It is a heuristic: of the best pairs the path from neuron to query is taken away (`paths`), and the
change seen.  Changes are original − ablated, what the path does: under deactivation the attention to BOS grows with
the activation (ρ(activation, Δp_BOS) > 0) and the output shrinks as it grows (ρ(Δp_BOS, Δ‖W_O z‖) < 0).  Correlations
say nothing of sizes, so the change must also amount to something (`bos_effect`); where a head hardly attends to BOS
(`bos_attention`) it cannot, so heads that do come first among the candidates, and every head's best before its others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from universal_neurons.interventions import (
    Heads,
    Paths,
    bos_key,
    eager_attention,
    effects_of_paths,
    hooked,
    projecting,
    rows_at_once,
)
from universal_neurons.models import Model, ProcessedWeights
from universal_neurons.role_settings import RoleSettings
from universal_neurons.statistics import seed_of, unit
from universal_neurons.units import Units

DIRECTIONS = 4096  # random ones
SAMPLES = 2000  # positions of a pair that the scatter shows
BINS = 80
PAIR_KEY = {"model": pl.String, "layer": pl.Int32, "neuron": pl.Int32, "head_layer": pl.Int32, "head": pl.Int32}
PAIRS_SCHEMA: dict[str, Any] = PAIR_KEY | {
    "score": pl.Float64, "z": pl.Float64, "positions": pl.Int64, "delta_bos": pl.Float64, "delta_norm": pl.Float64,
    "pearson_activation_bos": pl.Float64, "spearman_activation_bos": pl.Float64, "pearson_bos_norm": pl.Float64,
    "spearman_bos_norm": pl.Float64, "bos_effect": pl.Float64, "role": pl.String,
}  # fmt: skip
SAMPLES_SCHEMA: dict[str, Any] = PAIR_KEY | {
    "row": pl.Int32, "position": pl.Int32,
    "activation": pl.Float32, "delta_bos": pl.Float32, "delta_norm": pl.Float32,
}  # fmt: skip
HEADS_SCHEMA: dict[str, Any] = {
    "model": pl.String, "head_layer": pl.Int32, "head": pl.Int32, "random_mean": pl.Float64, "random_sd": pl.Float64,
    "score_low": pl.Float64, "score_high": pl.Float64, "bos_value_norm": pl.Float64, "value_norm": pl.Float64,
    "ratio": pl.Float64, "bos_attention": pl.Float64,
}  # fmt: skip
HISTOGRAM_SCHEMA: dict[str, Any] = {
    "model": pl.String, "kind": pl.String, "low": pl.Float64, "high": pl.Float64, "count": pl.Int64,
}  # fmt: skip


@dataclass(frozen=True)
class BosScores:
    """h of one model, on the CPU: of every neuron for every head (NaN where the head is not of a later layer or w_out
    is 0), and of random unit vectors for every head."""

    model: str
    neurons: Float[Tensor, "*neurons layers heads"]  # as in `ProcessedWeights`
    random: Float[Tensor, "directions layers heads"]
    units: Units

    @property
    def random_mean(self) -> Float[Tensor, "layers heads"]:
        """Mean h of a random direction."""
        return self.random.double().mean(0)

    @property
    def random_sd(self) -> Float[Tensor, "layers heads"]:
        """Standard deviation of h over random directions."""
        return self.random.double().std(0)

    @property
    def flat(self) -> Float[Tensor, "neurons layers heads"]:
        """h of the neurons by their numbers."""
        return self.neurons.flatten(0, -3)

    @property
    def z(self) -> Float[Tensor, "*neurons layers heads"]:
        """h in standard deviations of random directions of the same head."""
        return (self.neurons - self.random_mean.float()) / self.random_sd.float()


def bos_scores(
    model: Model,
    weights: ProcessedWeights,
    bos: int,
    distances: Sequence[int],
    *,
    seed: int = 0,
) -> BosScores:
    """h = scaling · unit(w_out)ᵀ W_Qᵀ k̄_BOS (paper §6), and the same of 4096 random unit vectors (mean-free for
    LayerNorm models, whose neurons' processed w_out are).

    `bos` is the token's id; `distances` from it are averaged over in rotary layers (`heads.bos_key`).  Raises
    `ArchitectureError` for a model without known attention.
    """
    key = bos_key(model, bos, distances)
    every = [Heads(model, layer) for layer in range(model.n_layers)]
    reads = torch.stack([h.scaling * torch.einsum("hed,he->hd", h.w_q, key[h.layer]) for h in every]).to(
        weights.w_out.device
    )
    by_layer = weights.w_out.flatten(0, -2).split(weights.units.widths)
    scores = torch.cat([(unit(w_out) @ reads.flatten(0, 1).T).float().cpu() for w_out in by_layer])
    scores = scores.unflatten(1, reads.shape[:2])
    for layer in range(model.n_layers):
        scores[weights.units.columns(layer), : layer + 1] = torch.nan
    draw = torch.randn(
        DIRECTIONS, model.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(seed_of("bos", seed))
    )
    if model.architecture.norm == "layer":
        draw -= draw.mean(1, keepdim=True)
    random = (unit(draw) @ reads.flatten(0, 1).T.cpu()).unflatten(1, reads.shape[:2])
    neurons = scores.view(*weights.w_out.shape[:-1], *reads.shape[:2])
    return BosScores(model.name, neurons, random.float(), weights.units)


def tried_at(
    ids: Int[Tensor, "rows context"], counted: Bool[Tensor, "rows context"] | None
) -> Bool[Tensor, "rows context"]:
    """Where attention to BOS is asked about: the second half of the context, `counted` positions if given; on CPU."""
    keep = torch.zeros(ids.shape, dtype=torch.bool)
    keep[:, ids.shape[1] // 2 :] = True
    return keep if counted is None else keep & counted.cpu()


@torch.inference_mode()
def at_bos(
    model: Model, ids: Int[Tensor, "rows context"], counted: Bool[Tensor, "rows context"] | None = None
) -> dict[str, Float[Tensor, "layers heads"]]:
    """What every head does at BOS, the first token of the rows.

    `bos_value_norm` is ‖W_O v‖ there, `value_norm` the median over all other tokens (other positions with other tokens,
    `counted` if given), `ratio` the second over the first (paper §6: median 19.4 in GPT2-medium); values include their
    bias.  `bos_attention` is the mean attention to BOS of the positions `tried_at`; NaN where there is none.
    """
    every = [Heads(model, layer) for layer in range(model.n_layers)]
    grams = [heads.w_o.transpose(1, 2) @ heads.w_o for heads in every]
    norms: list[list[Tensor]] = [[] for _ in every]
    attention: list[list[Tensor]] = [[] for _ in every]

    def measure(layer: int, projected: Tensor) -> None:
        values = every[layer].values(projected).double()
        squares = torch.einsum("rphd,hde,rphe->rph", values, grams[layer], values)
        norms[layer].append(squares.clamp_min(0).sqrt().cpu())

    others = (ids != ids[:, :1]).cpu()
    if counted is not None:
        others &= counted.cpu()

    def look(layer: int, _m: nn.Module, _args: Any, output: tuple[Tensor, ...]) -> None:
        to_bos = output[1][..., 0].transpose(1, 2).float().cpu()
        attention[layer].append(to_bos.clone())  # a view would keep the whole pattern

    looking = [partial(heads.module.register_forward_hook, partial(look, heads.layer)) for heads in every]
    with eager_attention(model), projecting(model, "value", measure), hooked(*looking):
        for rows in ids.split(rows_at_once(model, ids.shape[1])):
            model.forward(rows)
    by_layer = [torch.cat(layer) for layer in norms]
    bos = torch.stack([layer[0, 0] for layer in by_layer])
    other = torch.stack([torch.from_numpy(np.median(layer[others].numpy(), axis=0)) for layer in by_layer])
    later = tried_at(ids, counted)
    to_bos = torch.stack([torch.cat(layer)[later].double().mean(0) for layer in attention])
    return {"bos_value_norm": bos, "value_norm": other, "ratio": other / bos, "bos_attention": to_bos}


def heads_table(scores: BosScores, seen: dict[str, Float[Tensor, "layers heads"]]) -> pl.DataFrame:
    """A row per head: h of random directions (mean, standard deviation) and the extremes over earlier neurons (null
    in the first layer), with what is seen `at_bos`."""
    layers, heads = scores.random.shape[1:]
    flat = scores.flat
    low, high = flat.nan_to_num(nan=torch.inf).amin(0), flat.nan_to_num(nan=-torch.inf).amax(0)
    columns = {"random_mean": scores.random_mean, "random_sd": scores.random_sd, "score_low": low, "score_high": high}
    data: dict[str, Any] = {
        "model": [scores.model] * (layers * heads),
        "head_layer": np.repeat(np.arange(layers), heads),
        "head": np.tile(np.arange(heads), layers),
    }
    data |= {name: column.double().flatten().numpy() for name, column in (columns | seen).items()}
    table = pl.DataFrame(data).cast(pl.Schema(HEADS_SCHEMA)).select(*HEADS_SCHEMA)
    return table.with_columns(
        pl.when(pl.col(name).is_finite()).then(pl.col(name))
        for name in ("score_low", "score_high", "ratio", "bos_attention")
    )


def scores_histogram(scores: BosScores) -> pl.DataFrame:
    """How many h lie in each bin, of neurons with all later heads and of random directions (Fig 8a).

    A random direction counts for each head as often as there are layers before it, so that both kinds mix the heads
    in the same shares.
    """
    layers = scores.random.shape[1]
    later = [scores.flat[: scores.units.starts[layer], layer].flatten() for layer in range(1, layers)]
    finite = [part[part.isfinite()].numpy() for part in later]
    most = max([float(np.abs(part).max(initial=0)) for part in (*finite, scores.random[:, 1:].numpy())])
    if most == 0:
        return pl.DataFrame(schema=HISTOGRAM_SCHEMA)
    edges = np.linspace(-most, most, BINS + 1)
    counts = {
        "neuron": sum(np.histogram(part, edges)[0] for part in finite),
        "random": sum(n * np.histogram(scores.random[:, n].numpy(), edges)[0] for n in range(1, layers)),
    }
    places = {"low": edges[:-1], "high": edges[1:]}
    return pl.concat(
        pl.DataFrame({"model": [scores.model] * BINS, "kind": [kind] * BINS} | places | {"count": count})
        for kind, count in counts.items()
    ).cast(pl.Schema(HISTOGRAM_SCHEMA))


def candidates(scores: BosScores, most: int, sinks: Bool[Tensor, "layers heads"] | None = None) -> pl.DataFrame:
    """Pairs of neuron and later head with z furthest above and below 0, at most so many of each sign: model, layer,
    neuron, head_layer, head, score, z; positive ones first, the furthest out first.

    Pairs of heads that are `sinks` (attend to BOS) are taken before others, and every head's best before a second one.
    """
    z = scores.z.flatten(0, -3)
    rows = []
    for sign in (1, -1):
        signed = (sign * z).nan_to_num(nan=-torch.inf, posinf=-torch.inf).flatten(1)
        best = signed.topk(min(most, len(signed)), 0)
        values, numbers = best.values.flatten().numpy(), best.indices.flatten().tolist()
        nth, heads = (place.ravel() for place in np.indices(best.values.shape))
        idle = np.zeros(len(heads), bool) if sinks is None else ~sinks.flatten().cpu().numpy()[heads]
        order = np.lexsort([-values, nth, idle])
        taken = order[values[order] > 0][:most]
        for place in taken[np.argsort(-values[taken], kind="stable")].tolist():
            layer, neuron = scores.units.place_of(numbers[place])
            head_layer, head = divmod(int(heads[place]), z.shape[-1])
            score = float(scores.flat[numbers[place], head_layer, head])
            rows.append((scores.model, layer, neuron, head_layer, head, score, sign * float(values[place])))
    return pl.DataFrame(rows, schema=dict(list(PAIRS_SCHEMA.items())[:7]), orient="row")


def attention_table(
    model: Model,
    ids: Int[Tensor, "rows context"],
    settings: RoleSettings,
    scores: BosScores,
    *,
    counted: Bool[Tensor, "rows context"] | None = None,
    bos_attention: Float[Tensor, "layers heads"] | None = None,
    seed: int = 0,
    orientation: Float[np.ndarray, " neurons"] | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The best pairs (`candidates`, `attention_pairs` of each sign) with their path ablated on rows that begin with
    BOS, at the positions `tried_at`.  With `bos_attention` heads above `attention_sink` come first.  Activations are
    taken times the neurons' `orientation`, as `scores` are.

    Pairs: PAIRS_SCHEMA; changes are original − ablated, `delta_bos` of a probability, `delta_norm` of ‖W_O z‖, means;
    correlations over positions, null where a side does not change.  `role` is attention_deactivation where z >
    `attention_deviations` and both ρ(activation, Δp_BOS), Pearson's and Spearman's, > `attention_corr`;
    attention_activation where all three lie as far below 0; both only where ρ(Δp_BOS, Δ‖W_O z‖) < 0, so that more
    attention to BOS is less written, and where `bos_effect` is at least `attention_effect` the same way; else null: a
    nearest candidate.
    Samples: SAMPLES_SCHEMA, at most 2000 positions a pair, drawn with `seed`.
    """
    sinks = None if bos_attention is None else bos_attention >= settings.attention_sink
    chosen = candidates(scores, settings.attention_pairs, sinks).to_dicts()
    keep = tried_at(ids, counted)
    rows, positions = (place.numpy() for place in keep.nonzero(as_tuple=True))
    draw = np.random.default_rng(seed_of("paths", seed))
    shown = np.sort(draw.choice(len(rows), min(SAMPLES, len(rows)), replace=False))
    places = {"row": rows[shown], "position": positions[shown]}
    judged, samples = [], []

    def path(pair: dict[str, Any]) -> tuple[int, int, int]:
        return pair["layer"], pair["head_layer"], pair["head"]

    by_pair: dict[tuple[int, ...], dict[str, np.ndarray]] = {}
    by_head = {key: [pair["neuron"] for pair in pairs] for key, pairs in groupby(sorted(chosen, key=path), key=path)}
    paths = []
    for (layer, head_layer, head), neurons in by_head.items():
        within = model.units.within_layers(model.units.number_of(layer, neuron) for neuron in neurons)
        paths.append(Paths(layer, torch.tensor(within), head_layer, head))
    for ((layer, head_layer, head), neurons), effects in zip(by_head.items(), effects_of_paths(model, ids, paths)):
        for place, neuron in enumerate(neurons):
            columns = {name: effect[place].cpu()[keep].numpy() for name, effect in effects.items()}
            if orientation is not None:
                columns["activation"] *= np.float32(orientation[model.units.number_of(layer, neuron)])
            by_pair[layer, neuron, head_layer, head] = columns
    for pair in chosen:
        key = {name: pair[name] for name in PAIR_KEY}
        effect = by_pair[tuple(list(key.values())[1:])]
        judged.append(pair | judge(effect, pair["z"], settings))
        columns = {name: values[shown] for name, values in effect.items()}
        samples.append(pl.DataFrame({name: [value] * len(shown) for name, value in key.items()} | places | columns))
    pairs = pl.DataFrame(judged, schema=PAIRS_SCHEMA)
    return pairs, pl.concat(samples).cast(pl.Schema(SAMPLES_SCHEMA)) if samples else pl.DataFrame(schema=SAMPLES_SCHEMA)


def judge(effects: dict[str, np.ndarray], z: float, settings: RoleSettings) -> dict[str, Any]:
    """The columns of one pair that its ablation decides, from activations and changes at the kept positions."""
    activation, bos, norm = effects["activation"], effects["delta_bos"], effects["delta_norm"]
    seen = dict(zip(("pearson_activation_bos", "spearman_activation_bos"), _correlations(activation, bos)))
    with_norm = dict(zip(("pearson_bos_norm", "spearman_bos_norm"), _correlations(bos, norm)))
    writes_less = all(value is not None and value < 0 for value in with_norm.values())
    along = [value for value in seen.values() if value is not None] or [0.0]
    effect = bos_effect(activation, bos)
    sign = 1 if z > 0 else -1
    out = z * sign > settings.attention_deviations
    counts = effect is not None and effect * sign >= settings.attention_effect
    role = None
    if writes_less and out and counts and min(value * sign for value in along) > settings.attention_corr:
        role = "attention_deactivation" if sign > 0 else "attention_activation"
    means = {
        name: float(v.mean(dtype=float)) if len(v) else None for name, v in (("delta_bos", bos), ("delta_norm", norm))
    }
    return {"positions": len(bos)} | means | seen | with_norm | {"bos_effect": effect, "role": role}


def bos_effect(activation: Float[np.ndarray, " positions"], bos: Float[np.ndarray, " positions"]) -> float | None:
    """Σ a Δp / Σ |a|: the mean change of attention to BOS where the neuron fires, each position weighing as much as it
    does there; the changes of negative activations count the other way.  None for one that is silent."""
    weight = np.abs(activation).sum(dtype=float)
    return float((activation.astype(float) * bos).sum() / weight) if weight > 0 else None


def _correlations(left: np.ndarray, right: np.ndarray) -> tuple[float | None, float | None]:
    """Pearson's and Spearman's; None where either side does not change."""
    if len(left) < 3 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return None, None
    from scipy import stats  # late: half a second

    pairs = ((left, right), (stats.rankdata(left), stats.rankdata(right)))
    pearson, spearman = (float(np.clip(np.corrcoef(x.astype(float), y.astype(float))[0, 1], -1, 1)) for x, y in pairs)
    return pearson, spearman
