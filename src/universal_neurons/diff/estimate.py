"""What a diff will take: the study of both models, and what the diff reads and multiplies beside it.

1. The study: `study.estimate`, of the models as they are loaded.
2. Held-out rows, read once by both models, once more on the second text and by every null: a measured batch.
3. Weights: the logit effects of both, W_U w_out, and the tokens whose effects changed most: a measured piece.

The study loads its models when those of the diff are gone, so that memory is the larger of the two.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.table import Table

from universal_neurons.config import Settings
from universal_neurons.diff.effects import effects_seconds
from universal_neurons.diff.inputs import Inputs
from universal_neurons.diff.paired_firing import PairedFiring
from universal_neurons.diff.settings import DiffConfig
from universal_neurons.diff.weight_changes import changed_most
from universal_neurons.features import NeuronSource
from universal_neurons.matching import PairedMoments
from universal_neurons.models import Model
from universal_neurons.statistics import PANEL_ELEMENTS, Batch, Key, What
from universal_neurons.study import (
    Estimate,
    estimate_loaded,
    estimate_view,
    fewest_seconds,
    measured_ids,
    resident_bytes,
    weight_bytes,
)
from universal_neurons.text import HELDOUT_MOST, STRETCHES
from universal_neurons.torch_state import settled_torch

COLUMN_BYTES = 8 * 120  # of a unit's row of `changes`, in memory
ROW_BYTES = 600  # and on disk, tokens of logit effects included
MEASURED_TOKENS = 16_384  # of a vocabulary, on which the logit effects of some units are timed
ROUNDS = 3


@dataclass(frozen=True)
class DiffEstimate:
    """What the study of both models takes; seconds of what comes beside it; bytes of memory and disk of all.

    `seconds_effects` is apart: `seconds` is of all else.
    """

    study: Estimate
    seconds_selves: float
    seconds_second_text: float
    seconds_nulls: float
    seconds_weights: float
    seconds_effects: float
    seconds: float
    memory_peak: int
    memory_available: int
    disk_peak: int
    disk_final: int

    def as_dict(self) -> dict[str, Any]:
        """As plain values; those of the study by themselves."""
        return asdict(self)


def estimate_diff(config: DiffConfig) -> DiffEstimate:
    """Load a base and its fine-tune and estimate their diff; nulls count as another model of the same size each."""
    with settled_torch(config.threads):
        inputs = Inputs(config, None, (), None)
        base, tuned, settings, nulls = inputs.base, inputs.tuned, inputs.settings, len(inputs.nulls)
        study = estimate_loaded(settings, [base, tuned])
        heldout = min(study.tokens // 5, settings.heldout_tokens or HELDOUT_MOST)
        reading = heldout * _seconds_a_token(base, tuned, settings)
        beside = {
            "seconds_selves": reading,
            "seconds_second_text": reading if config.data_tuned else 0.0,
            "seconds_nulls": reading * nulls,
            "seconds_weights": _weight_seconds(base),
        }
        final = study.disk_final + len(base.units) * ROW_BYTES * (1 + nulls)
        return DiffEstimate(
            study=study,
            **beside,
            seconds_effects=_effect_seconds(inputs, heldout),
            seconds=study.seconds + sum(beside.values()),
            memory_peak=max(study.memory_peak, resident_bytes(settings) + _bytes_beside(base, settings, nulls)),
            memory_available=study.memory_available,
            disk_peak=final + study.disk_peak - study.disk_final,
            disk_final=final,
        )


def _effect_seconds(inputs: Inputs, heldout: int) -> float:
    """Seconds of the effects of the units that changed most, on all their texts."""
    config, settings = inputs.config, inputs.settings
    assert config.effects is not None
    positions = min(config.effect_tokens, heldout) * (2 if config.data_tuned else 1)
    return effects_seconds(
        inputs.base,
        inputs.tuned,
        units=config.effects,
        positions=positions,
        context=settings.context,
        batch_tokens=settings.batch_tokens,
    )


def _seconds_a_token(base: Model, tuned: Model, config: Settings) -> float:
    """Seconds per held-out position of both models' forward passes and of what is kept of each unit and itself."""
    ids = measured_ids(base, config) % tuned.vocab_size
    keep, attention = torch.arange(ids.numel()), torch.ones_like(ids)
    sources = [NeuronSource(model, config.gemm_dtype, pre=True) for model in (base, tuned)]
    for source in sources:
        source.settle(source.provisional_of(ids, attention, keep))
    n = len(base.units)
    before, after = (Key(model.name, What.PRE) for model in (base, tuned))
    kept = [
        PairedMoments(base.name, tuned.name, torch.arange(n), STRETCHES, device=base.device),
        PairedFiring(before, after, n, STRETCHES, device=base.device),
    ]

    def read() -> None:
        blocks: dict[Key, Any] = {}
        for source in sources:
            blocks |= source.blocks(ids, attention, keep)
        for statistic in kept:
            statistic.update(Batch(blocks))

    return fewest_seconds(read, ROUNDS, base.device) / ids.numel()


def _weight_seconds(model: Model) -> float:
    """Seconds of the logit effects of all units, of those of a few on random numbers."""
    tokens = min(model.vocab_size, MEASURED_TOKENS)
    units = max(1, min(len(model.units), PANEL_ELEMENTS // model.vocab_size))
    writers, readers = (
        [torch.randn(rows, model.d_model, device=model.device) for _ in range(2)] for rows in (units, tokens)
    )

    def work() -> None:
        changed_most(*(w @ r.T for w, r in zip(writers, readers)))

    seconds = fewest_seconds(work, ROUNDS, model.device)
    return seconds * (model.vocab_size / tokens) * (len(model.units) / units)


def _bytes_beside(base: Model, config: Settings, nulls: int) -> int:
    """Bytes beside base and fine-tune, before the study: a null, and the larger of held-out rows and weights."""
    n = len(base.units)
    of_null = sum(p.numel() * p.element_size() for p in base.hf.parameters()) if nulls else 0
    sums = (5 + 3) * 8 * 2 * STRETCHES * n  # and with a stretch left out
    blocks = 2 * 2 * 4 * n * config.batch_tokens
    sampled = 4096 * n * (2 * 4 + 12)  # two models' values, one of them sorted
    weights = 2 * weight_bytes(base) + 5 * 4 * PANEL_ELEMENTS
    columns = n * COLUMN_BYTES * (1 + nulls)
    return of_null + columns + max(sums + max(blocks, sampled), weights)


def diff_estimate_view(needs: DiffEstimate) -> Table:
    """An estimate as a table."""
    names = {
        "units and themselves": "selves",
        "on the second text": "second_text",
        "nulls": "nulls",
        "weights": "weights",
        "effects (apart)": "effects",
    }
    whole = {name: getattr(needs, name) for name in ("seconds", "memory_peak", "disk_peak", "disk_final")}
    beside = {title: getattr(needs, f"seconds_{name}") for title, name in names.items()}
    return estimate_view(replace(needs.study, **whole), beside)
