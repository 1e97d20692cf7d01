"""Attention (de)activation neurons: they switch a later head off by sending its attention to BOS, or on (paper §6).

A head that attends to BOS does nothing, where what it reads there is small (`value_norms`).  A neuron that writes along
what a head's query reads of the key of BOS therefore switches that head:

    h = scaling · (w_out / ‖w_out‖)ᵀ W_Qᵀ k̄_BOS

is what a unit of the neuron's output adds to the head's score for BOS.  h > 0: where the neuron is active, the head
attends more to BOS and writes less: **deactivation**; h < 0: **activation**.  h is compared with the same of random
directions (z).  It is a heuristic: of the best pairs the path from neuron to query is taken away (`paths`), and the
change seen.  Changes are original − ablated, what the path does: under deactivation the attention to BOS grows with
the activation (ρ(activation, Δp_BOS) > 0) and the output shrinks as it grows (ρ(Δp_BOS, Δ‖W_O z‖) < 0).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from universal_neurons.config import RoleSettings
from universal_neurons.interventions import Heads, bos_key, path_effects, projecting
from universal_neurons.models import Model, ProcessedWeights
from universal_neurons.statistics import seed_of, unit
from universal_neurons.units import Units

DIRECTIONS = 4096  # random ones
SAMPLES = 2000  # positions of a pair that the scatter shows
FORWARD_POSITIONS = 4096
BINS = 80
PAIR_KEY = {"model": pl.String, "layer": pl.Int32, "neuron": pl.Int32, "head_layer": pl.Int32, "head": pl.Int32}
PAIRS_SCHEMA: dict[str, Any] = PAIR_KEY | {
    "score": pl.Float64, "z": pl.Float64, "positions": pl.Int64, "delta_bos": pl.Float64, "delta_norm": pl.Float64,
    "pearson_activation_bos": pl.Float64, "spearman_activation_bos": pl.Float64, "pearson_bos_norm": pl.Float64,
    "spearman_bos_norm": pl.Float64, "role": pl.String,
}  # fmt: skip
SAMPLES_SCHEMA: dict[str, Any] = PAIR_KEY | {
    "row": pl.Int32, "position": pl.Int32,
    "activation": pl.Float32, "delta_bos": pl.Float32, "delta_norm": pl.Float32,
}  # fmt: skip
HEADS_SCHEMA: dict[str, Any] = {
    "model": pl.String, "head_layer": pl.Int32, "head": pl.Int32, "random_mean": pl.Float64, "random_sd": pl.Float64,
    "score_low": pl.Float64, "score_high": pl.Float64, "bos_value_norm": pl.Float64, "value_norm": pl.Float64,
    "ratio": pl.Float64,
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


@torch.inference_mode()
def value_norms(
    model: Model, ids: Int[Tensor, "rows context"], counted: Bool[Tensor, "rows context"] | None = None
) -> dict[str, Float[Tensor, "layers heads"]]:
    """How much there is to read at BOS: `bos_value_norm` is ‖W_O v‖ of the first token of the rows, which is BOS;
    `value_norm` the median over all other tokens (other positions with other tokens, `counted` if given); `ratio` the
    second over the first (paper §6: median 19.4 in GPT2-medium).  Values include their bias.
    """
    every = [Heads(model, layer) for layer in range(model.n_layers)]
    grams = [heads.w_o.transpose(1, 2) @ heads.w_o for heads in every]
    norms: list[list[Tensor]] = [[] for _ in every]

    def measure(layer: int, projected: Tensor) -> None:
        values = every[layer].values(projected).double()
        squares = torch.einsum("rphd,hde,rphe->rph", values, grams[layer], values)
        norms[layer].append(squares.clamp_min(0).sqrt().cpu())

    others = (ids != ids[:, :1]).cpu()
    if counted is not None:
        others &= counted.cpu()
    with projecting(model, "value", measure):
        for rows in ids.split(max(1, FORWARD_POSITIONS // ids.shape[1])):
            model.forward(rows)
    by_layer = [torch.cat(layer) for layer in norms]
    bos = torch.stack([layer[0, 0] for layer in by_layer])
    other = torch.stack([torch.from_numpy(np.median(layer[others].numpy(), axis=0)) for layer in by_layer])
    return {"bos_value_norm": bos, "value_norm": other, "ratio": other / bos}


def heads_table(scores: BosScores, norms: dict[str, Float[Tensor, "layers heads"]]) -> pl.DataFrame:
    """A row per head: h of random directions (mean, standard deviation) and the extremes over earlier neurons (null
    in the first layer), with `value_norms`."""
    layers, heads = scores.random.shape[1:]
    flat = scores.flat
    low, high = flat.nan_to_num(nan=torch.inf).amin(0), flat.nan_to_num(nan=-torch.inf).amax(0)
    columns = {"random_mean": scores.random_mean, "random_sd": scores.random_sd, "score_low": low, "score_high": high}
    data: dict[str, Any] = {
        "model": [scores.model] * (layers * heads),
        "head_layer": np.repeat(np.arange(layers), heads),
        "head": np.tile(np.arange(heads), layers),
    }
    data |= {name: column.double().flatten().numpy() for name, column in (columns | norms).items()}
    table = pl.DataFrame(data).cast(pl.Schema(HEADS_SCHEMA)).select(*HEADS_SCHEMA)
    return table.with_columns(
        pl.when(pl.col(name).is_finite()).then(pl.col(name)) for name in ("score_low", "score_high", "ratio")
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


def candidates(scores: BosScores, most: int) -> pl.DataFrame:
    """The pairs of neuron and later head with the highest z > 0 and the lowest z < 0, at most so many of each sign:
    model, layer, neuron, head_layer, head, score, z; positive ones first, the furthest out first."""
    z = scores.z.flatten()
    rows = []
    for sign in (1, -1):
        signed = (sign * z).nan_to_num(nan=-torch.inf, posinf=-torch.inf)
        best = signed.topk(min(most, len(signed)))
        for index in best.indices[best.values > 0].tolist():
            number, head_layer, head = (int(part) for part in np.unravel_index(index, scores.flat.shape))
            layer, neuron = scores.units.place_of(number)
            score = float(scores.flat[number, head_layer, head])
            rows.append((scores.model, layer, neuron, head_layer, head, score, float(z[index])))
    return pl.DataFrame(rows, schema=dict(list(PAIRS_SCHEMA.items())[:7]), orient="row")


def attention_table(
    model: Model,
    ids: Int[Tensor, "rows context"],
    settings: RoleSettings,
    scores: BosScores,
    *,
    counted: Bool[Tensor, "rows context"] | None = None,
    seed: int = 0,
    orientation: Float[np.ndarray, " neurons"] | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The best pairs (`candidates`, `attention_pairs` of each sign) with their path ablated on rows that begin with
    BOS, over all positions of the second half of the context (`counted` ones if given).  Activations are taken times
    the neurons' `orientation`, as `scores` are.

    Pairs: PAIRS_SCHEMA; changes are original − ablated, `delta_bos` of a probability, `delta_norm` of ‖W_O z‖, means;
    correlations over positions, null where a side does not change.  `role` is attention_deactivation where z >
    `attention_deviations` and both ρ(activation, Δp_BOS), Pearson's and Spearman's, > `attention_corr`;
    attention_activation where all three lie as far below 0; both only where ρ(Δp_BOS, Δ‖W_O z‖) < 0, so that more
    attention to BOS is less written; else null: a nearest candidate.
    Samples: SAMPLES_SCHEMA, at most 2000 positions a pair, drawn with `seed`.
    """
    chosen = candidates(scores, settings.attention_pairs).to_dicts()
    context = ids.shape[1]
    keep = torch.zeros(ids.shape, dtype=torch.bool)
    keep[:, context // 2 :] = True
    if counted is not None:
        keep &= counted.cpu()
    rows, positions = (place.numpy() for place in keep.nonzero(as_tuple=True))
    draw = np.random.default_rng(seed_of("paths", seed))
    shown = np.sort(draw.choice(len(rows), min(SAMPLES, len(rows)), replace=False))
    places = {"row": rows[shown], "position": positions[shown]}
    judged, samples = [], []

    def path(pair: dict[str, Any]) -> tuple[int, int, int]:
        return pair["layer"], pair["head_layer"], pair["head"]

    by_pair: dict[tuple[int, ...], dict[str, np.ndarray]] = {}
    for (layer, head_layer, head), pairs_of_path in groupby(sorted(chosen, key=path), key=path):
        neurons = [pair["neuron"] for pair in pairs_of_path]
        within = model.units.within_layers(model.units.number_of(layer, neuron) for neuron in neurons)
        effects = path_effects(model, ids, layer, torch.tensor(within), head_layer, head)
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
    role = None
    if writes_less and z > settings.attention_deviations and min(along) > settings.attention_corr:
        role = "attention_deactivation"
    elif writes_less and z < -settings.attention_deviations and max(along) < -settings.attention_corr:
        role = "attention_activation"
    means = {
        name: float(v.mean(dtype=float)) if len(v) else None for name, v in (("delta_bos", bos), ("delta_norm", norm))
    }
    return {"positions": len(bos)} | means | seen | with_norm | {"role": role}


def _correlations(left: np.ndarray, right: np.ndarray) -> tuple[float | None, float | None]:
    """Pearson's and Spearman's; None where either side does not change."""
    if len(left) < 3 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return None, None
    pairs = ((left, right), (stats.rankdata(left), stats.rankdata(right)))
    pearson, spearman = (float(np.clip(np.corrcoef(x.astype(float), y.astype(float))[0, 1], -1, 1)) for x, y in pairs)
    return pearson, spearman
