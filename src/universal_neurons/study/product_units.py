"""By which units of a CPU a study's products are made, and how far ρ is then from float64 on its own activations.

1. Asked for `auto`, the exact search of large models' neurons on much text multiplies in int8 halves
   (`statistics.products`), where the processor has units for them and none that multiply float32 as fast
   (`processor.onednn_is_faster`); everything else in float32.  Small studies gain nothing: they stay as they are on any
   processor.
2. A study that was begun goes on as it was begun, on any processor: sums in int8 are the same on all.
3. Before the passes, ρ of some units on some positions is held against float64.  Where one is more than `MOST_ERROR`
   off, `auto` falls back to float32; what was asked for by name stays, and the error is recorded all the same.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from universal_neurons.config import Settings, StudyConfig
from universal_neurons.features import NeuronSource, Provisional
from universal_neurons.models import Described
from universal_neurons.passes import sample
from universal_neurons.processor import onednn_is_faster
from universal_neurons.progress import Reporter
from universal_neurons.statistics import (
    QUANTILES,
    Block,
    Key,
    add_product_of_blocks,
    round_to,
    round_to_scales,
    units_for,
)
from universal_neurons.storage import StoreWriter, products_line
from universal_neurons.study.inputs import Study
from universal_neurons.study.resolve import identity

FEWEST_UNITS, FEWEST_TOKENS = 4096, 16_384  # of the smallest model, and of text, from which auto takes int8
INT8_BATCHES = (8192, 4096)  # token positions: of fewer, putting the halves together takes much of the time
INT8_ENTRIES = 1 << 28  # of a batch of all models, at most, for the longer one
MOST_ERROR = 1e-4  # of ρ
ASKERS, OTHERS = 128, 4096  # units of each model of a pair, evenly spread, whose ρ are held against float64


def with_units(given: StudyConfig, settings: Settings, models: Sequence[Described]) -> Settings:
    """The settings with what `auto` means for the products of these models on this processor."""
    small = min(model.n_neurons for model in models) < FEWEST_UNITS or settings.max_tokens < FEWEST_TOKENS
    exact = "universality" in settings.stages and settings.search == "exact" and settings.baseline != "permutation"
    dense = all(model.of_neurons for model in models)  # few latents are active: their products are sparse, in float32
    faster = bool(units_for("int8")) and not onednn_is_faster()
    by_int8 = exact and dense and not small and settings.device == "cpu" and faster
    if given.gemm_dtype != "auto" or not by_int8:
        return settings
    batch = given.batch_tokens or _int8_batch(sum(model.n_neurons for model in models))
    return settings.model_copy(update={"gemm_dtype": "int8", "batch_tokens": batch})


def _int8_batch(units: int) -> int:
    """Token positions of a batch, by how many units all models have."""
    longer, shorter = INT8_BATCHES
    return longer if longer * units <= INT8_ENTRIES else shorter


def as_begun(given: StudyConfig, settings: Settings, writer: StoreWriter) -> Settings:
    """The settings with the products of this study as it was begun, where `auto` leaves them open."""
    stored = writer.stored("config")
    if stored is None or given.gemm_dtype != "auto" or settings.device != "cpu":
        return settings
    open_ones = ["gemm_dtype", *(["batch_tokens"] if given.batch_tokens is None else [])]
    begun = settings.model_copy(update={name: stored[name] for name in open_ones if name in stored})
    return begun if begun.stored() == stored else settings


def hold_against_float64(given: StudyConfig, study: Study, writer: StoreWriter, reporter: Reporter) -> None:
    """Record by which units products are made, and how exactly; fall back to float32 where `auto` is not exact."""
    earlier, rounding = writer.stored("products"), study.config.gemm_dtype
    if earlier is not None and earlier["gemm_dtype"] == rounding:
        study.products = earlier
        _say(earlier, reporter)
        return
    if study.config.device != "cpu" or rounding == "float32" or not study.asked or study.reader.complete:
        return
    study.products = _measured(study, rounding)
    if given.gemm_dtype == "auto" and study.products["largest_error"] > MOST_ERROR:
        study.products |= {"gemm_dtype": "float32", "units": [], "refused": rounding}
        study.config = study.config.model_copy(update={"gemm_dtype": "float32"})
        writer.claim({**identity(study.config, study.models), "products": study.products})
    _say(study.products, reporter)


def _say(facts: dict[str, Any], reporter: Reporter) -> None:
    lost = sorted(set(facts["units"]) - set(units_for(facts["gemm_dtype"])))
    reporter.note(products_line(facts))
    if lost:
        alike = "the same sums, slower" if facts["gemm_dtype"] == "int8" else "the same within rounding"
        reporter.note(f"this processor has no {', '.join(lost)}, by which the study was begun: {alike}")


def _measured(study: Study, rounding: str) -> dict[str, Any]:
    """The largest error of ρ of some units on the positions that provisional means are settled by."""
    values = {model.name: _sampled(study, model) for model in study.models}
    pairs = {tuple(sorted(pair)) for pair in study.asked}
    errors = [errors_of(_spread(values[a], ASKERS), _spread(values[b], OTHERS), rounding) for a, b in sorted(pairs)]
    finite = torch.cat([each[each.isfinite()] for each in errors])
    return {
        "gemm_dtype": rounding,
        "units": units_for(rounding),
        "largest_error": float(f"{float(finite.max()) if len(finite) else 0.0:.3g}"),
        "positions": max(map(len, values.values())),
        "correlations": len(finite),
    }


def _sampled(study: Study, model: Described) -> Float[Tensor, "positions units"]:
    """A model's activations as they are, at the positions that provisional means are settled by."""
    source = study.reader.source(model, "float32")
    assert isinstance(source, NeuronSource)
    nothing = torch.zeros(model.n_neurons)
    source.settle(Provisional(nothing, nothing, torch.zeros(len(QUANTILES), model.n_neurons)))
    return sample(source, study.tokens, study.shards)[Key(model.name)].values


def _spread(values: Float[Tensor, "positions units"], most: int) -> Float[Tensor, "positions some"]:
    """Units spread evenly over all."""
    units = values.shape[1]
    return values[:, torch.linspace(0, units - 1, min(most, units)).long()]


def errors_of(
    left: Float[Tensor, "positions left"], right: Float[Tensor, "positions right"], rounding: str
) -> Float[Tensor, "left right"]:
    """By how much each |ρ| of rounded values is off float64; NaN of units that do not vary."""
    exact = _normed(left.double()).T @ _normed(right.double())
    a, b = (_block(values - values.mean(0), rounding) for values in (left, right))
    into = torch.empty(exact.shape)
    add_product_of_blocks(into, a, slice(None), b, slice(None), True)
    centred = into - torch.outer(a.sums / len(left), b.sums)
    spreads = [(each.columns.squares - each.sums.square() / len(left)).sqrt() for each in (a, b)]
    return (centred / spreads[0][:, None] / spreads[1] - exact).abs()


def _normed(values: Float[Tensor, "positions units"]) -> Float[Tensor, "positions units"]:
    """Values about their means, of length 1; NaN where they do not vary."""
    constant = values.amin(0) == values.amax(0)
    centred = (values - values.mean(0)).masked_fill_(constant, torch.nan)
    return centred / centred.norm(dim=0)


def _block(shifted: Float[Tensor, "positions units"], rounding: str) -> Block:
    """A block as a source makes it of shifted values."""
    scale = round_to_scales(shifted) if rounding == "int8" else None
    return Block(round_to(shifted, rounding), rounding=rounding, scale=scale)
