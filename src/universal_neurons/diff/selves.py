"""Each unit of a base and the same unit of another model, on held-out rows: how alike, shifted, re-scaled are they?

The rows are read once, by both models.  Of each unit and itself five sums (`PairedMoments`) and three counts
(`PairedFiring`) are kept for each stretch of rows; intervals are the jackknife's (docs/method.md).  Nothing was chosen
on any row, so values and intervals are of the same rows.  Quantiles are of 4 096 positions spread over them.

The sign of a gated unit is nobody's choice: there the other model's activation is taken times the sign of ρ.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.config import Settings
from universal_neurons.diff.paired_firing import PairedFiring
from universal_neurons.features import NeuronSource
from universal_neurons.matching import PairedMoments, corr_interval
from universal_neurons.models import Model
from universal_neurons.passes import Pass, sample
from universal_neurons.statistics import Jackknifed, Key, Recipe, Statistics, What
from universal_neurons.text import Rows, Shard

Columns = dict[str, np.ndarray]
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def self_columns(
    base: Model,
    other: Model,
    text: Rows,
    config: Settings,
    after_batch: Callable[[int], None] = lambda positions: None,
) -> Columns:
    """What docs/store.md says of `changes` from `self_corr` to `q99_shift`, a value per unit."""
    _, stretches = text.split(config.heldout_tokens)
    sources = [NeuronSource(model, config.gemm_dtype, pre=True) for model in (base, other)]
    n, same = len(base.units), torch.arange(len(base.units))
    before, after = (Key(model.name, What.PRE) for model in (base, other))
    recipes: list[Recipe] = [
        partial(PairedMoments, base.name, other.name, same, len(stretches)),
        partial(PairedFiring, before, after, n, len(stretches)),
    ]
    run = Pass(sources, recipes)
    shards = [Shard(index, np.asarray(rows)) for index, rows in enumerate(stretches)]
    run.run(text, shards, batch_tokens=config.batch_tokens, after_batch=after_batch)
    statistics = Statistics(run.accumulators)
    moments = statistics.get(PairedMoments, base.name, other.name)
    heldout = moments.result()
    sign = np.where(base.gated & (heldout.corr.value < 0), -1.0, 1.0)
    low, high = corr_interval(heldout)
    columns = {"self_corr": heldout.corr.value, "self_corr_low": low, "self_corr_high": high}
    columns |= shift_columns(moments.counts.numpy(), moments.sums.cpu().numpy(), _means(sources), sign)
    counts, firing = statistics.get(PairedFiring, before, after).result()
    columns |= firing_columns(counts.numpy(), firing.cpu().numpy())
    spread = np.sqrt(heldout.variances[0])
    values, values_after = (_sampled(source, text, shards) for source in sources)
    return columns | quantile_columns(values, values_after, torch.from_numpy(sign), spread)


def _means(sources: list[NeuronSource]) -> Float[np.ndarray, "2 units"]:
    """The provisional means, which activations are shifted by."""
    return np.stack([source.provisional.mean.double().cpu().numpy() for source in sources if source.provisional])


def _sampled(source: NeuronSource, text: Rows, shards: list[Shard]) -> Float[Tensor, "positions units"]:
    """Activations at positions spread over the rows; the same ones whatever the model."""
    assert source.provisional is not None
    values = sample(source, text, shards)[Key(source.name)].values
    return (values.float() + source.provisional.mean).cpu()


def shift_columns(
    counts: Int[np.ndarray, " stretches"],
    sums: Float[np.ndarray, "stretches 5 units"],
    means: Float[np.ndarray, "2 units"],
    sign: Float[np.ndarray, " units"],
) -> Columns:
    """Mean shift (in standard deviations before), scale (of standard deviations) and offset, with their intervals.

    The offset is what the scale does not account for: (mean after − scale · mean before) / standard deviation after.
    """

    def shifts(count: float, total: Float[np.ndarray, "5 units"]) -> Float[np.ndarray, "3 units"]:
        a, b, aa, bb, _ = total / count
        before, after = np.sqrt((aa - a * a).clip(0)), np.sqrt((bb - b * b).clip(0))
        mean, mean_after = means[0] + a, sign * (means[1] + b)
        varies = (before > 0) & (after > 0)
        scale = after / before
        shift = np.where(varies, (mean_after - mean) / before, np.nan)
        return np.stack([shift, np.log(scale), np.where(varies, (mean_after - scale * mean) / after, np.nan)])

    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = Jackknifed.of(shifts, counts, sums)
        low, high = estimate.interval()
    columns: Columns = {}
    for place, name in enumerate(("mean_shift", "scale", "offset")):
        ends = (estimate.value[place], low[place], high[place])
        columns |= _with_ends(name, *map(np.exp, ends) if name == "scale" else ends)
    return columns


def firing_columns(counts: Int[np.ndarray, " stretches"], firing: Int[np.ndarray, "stretches 3 units"]) -> Columns:
    """How often a unit fires before and after, by how much that differs (in standard deviations before), and overlap.

    The overlap is the share of positions with both among those with either.
    """

    def shift(count: float, total: Float[np.ndarray, "3 units"]) -> Float[np.ndarray, " units"]:
        before, after, _ = total / count
        return np.where(before == after, 0.0, (after - before) / np.sqrt(before * (1 - before)))

    sums = firing.astype(np.float64)
    before, after, both = sums.sum(0)
    total = max(counts.sum(), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = Jackknifed.of(shift, counts, sums)
        value = np.where(np.isfinite(estimate.value), estimate.value, np.nan)
        columns = {"firing_before": before / total, "firing_after": after / total}
        columns |= _with_ends("firing_shift", value, *estimate.interval())
        return columns | {"firing_overlap": both / (before + after - both)}


def quantile_columns(
    before: Float[Tensor, "positions units"],
    after: Float[Tensor, "positions units"],
    sign: Float[Tensor, " units"],
    spread: Float[np.ndarray, " units"],
) -> Columns:
    """By how much quantiles of the activation differ, in standard deviations before."""
    ranks = [min(int(q * len(before)), len(before) - 1) for q in QUANTILES.values()]
    ordered = [values.sort(0).values[ranks].double().numpy() for values in (before, after * sign)]
    with np.errstate(divide="ignore", invalid="ignore"):
        shifts = np.where(spread > 0, (ordered[1] - ordered[0]) / spread, np.nan)
    return {f"{name}_shift": shift for name, shift in zip(QUANTILES, shifts)}


def _with_ends(name: str, value: np.ndarray, low: np.ndarray, high: np.ndarray) -> Columns:
    return {name: value, f"{name}_low": low, f"{name}_high": high}
