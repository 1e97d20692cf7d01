"""What a study will take: memory from the shapes of its statistics, time from a measured batch, disk from both."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import psutil
import torch

from universal_neurons.accumulators import add_product
from universal_neurons.config import StudyConfig
from universal_neurons.correlation import PANEL_ELEMENTS
from universal_neurons.errors import MemoryNeededError
from universal_neurons.models import DTYPES, Model
from universal_neurons.store import GENERATIONS, PART_BYTES
from universal_neurons.stream import NeuronSource, model_pairs
from universal_neurons.tokens import HELDOUT_MOST, SHARD_POSITIONS

STATE_BYTES = 8 + 4  # a float64 sum and a float32 pending product
MATCH_ROW_BYTES = 160  # a row of the matches table while it is sorted and written
PAGES_BYTES = 200 << 20  # matplotlib and the report


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes a study adds to a process that has loaded its models."""

    statistics: int
    blocks: int
    workspace: int
    tables: int

    @property
    def total(self) -> int:
        """At the peak: the pass with a comparison on top, or the tables once the statistics are gone."""
        return max(self.statistics + self.blocks + self.workspace, self.blocks + self.tables)


@dataclass(frozen=True)
class Estimate:
    """Seconds, bytes of memory at the peak, and bytes of disk at the peak and at the end."""

    seconds_pass: float
    seconds_compare: float
    seconds_detail: float
    seconds: float
    memory_peak: int
    memory_available: int
    disk_peak: int
    disk_final: int
    tokens: int
    device: str

    def as_dict(self) -> dict[str, float | int | str]:
        """As plain values."""
        return asdict(self)


def memory_plan(config: StudyConfig, models: Sequence[Model], *, groups: int = 1) -> MemoryPlan:
    """The memory a resolved configuration needs besides the models."""
    pairs = model_pairs(models, config.pairs)
    products = [left.n_neurons * right.n_neurons for left, right in pairs]
    shuffles = config.n_draws if config.baseline == "permutation" else 0
    statistics = groups * STATE_BYTES * (
        sum(products) * (1 + shuffles) + sum(m.n_layers * m.d_mlp**2 for m in models)
    )  # fmt: skip
    assert config.batch_tokens is not None
    widths = sum(m.n_neurons for m in models)
    value = 2 if config.device.startswith("cuda") and config.gemm_dtype == "bfloat16" else 4
    blocks = config.batch_tokens * (value * widths + 4 * 8 * max(m.d_mlp for m in models))
    if shuffles:
        blocks += value * SHARD_POSITIONS * (widths + 3 * max(m.n_neurons for m in models))
    wide, side = max(m.d_mlp for m in models), max(m.n_neurons for m in models)
    workspace = PART_BYTES + 8 * (4 * PANEL_ELEMENTS + 2 * wide * side + 4 * wide**2)
    workspace += STATE_BYTES * max(products) * (groups > 1)
    askers = models if config.pairs == "all" else models[:1]
    rows = sum(m.n_neurons for m in askers) * (len(models) - 1) * (config.top_k + 1)
    return MemoryPlan(statistics, blocks, workspace, rows * MATCH_ROW_BYTES + PAGES_BYTES)


def available_memory(config: StudyConfig) -> int:
    """Free bytes where the statistics live."""
    if config.device.startswith("cuda"):
        return torch.cuda.mem_get_info(torch.device(config.device))[0]
    return psutil.virtual_memory().available


def require_memory(config: StudyConfig, models: Sequence[Model], *, groups: int = 1) -> None:
    """Raise `MemoryNeededError` where a study would not fit."""
    needed, free = memory_plan(config, models, groups=groups).total, available_memory(config)
    if needed > free:
        pairs = len(model_pairs(models, config.pairs))
        raise MemoryNeededError(
            f"the statistics of {pairs} pairs of models do not fit in memory",
            given=f"{free / 2**30:.1f} GiB free on {config.device}",
            wanted=f"{needed / 2**30:.1f} GiB",
            fix="compare fewer models at a time, or use a machine with more memory",
        )


def gemm_rate(device: str, dtype: torch.dtype, size: int = 1536, rounds: int = 3) -> float:
    """Measured FLOP/s of the correlation's matrix product on this machine."""
    native = device.startswith("cuda")
    left = torch.randn(2048, size, device=device).to(dtype if native else torch.float32)
    into = torch.zeros(size, size, device=device)
    best = 0.0
    for _ in range(rounds + 1):
        started = time.perf_counter()
        add_product(into, left, left, fresh=True)
        if native:
            torch.cuda.synchronize(device)
        best = max(best, 2 * 2048 * size**2 / (time.perf_counter() - started))
    return best


def gemm_flops(models: Sequence[Model], config: StudyConfig) -> int:
    """FLOP of the pass's matrix products per token."""
    shuffles = config.n_draws if config.baseline == "permutation" else 0
    pairs = sum(left.n_neurons * right.n_neurons for left, right in model_pairs(models, config.pairs))
    return 2 * (pairs * (1 + shuffles) + sum(m.n_layers * m.d_mlp**2 for m in models))


def estimate(config: StudyConfig, models: Sequence[Model], *, groups: int = 1) -> Estimate:
    """Time, memory and disk of a resolved configuration; runs a few batches to measure the machine."""
    assert config.context is not None
    assert config.batch_tokens is not None
    tokens = config.max_tokens // config.context * config.context
    resident = _resident(config)
    heldout = min(tokens // 5, config.heldout_tokens or HELDOUT_MOST)
    rate = gemm_rate(config.device, DTYPES[config.gemm_dtype])
    per_token = sum(_forward_seconds(model, config) for model in models)
    plan = memory_plan(config, models, groups=groups)
    askers = len(models) if config.pairs == "all" else 1
    pair_products = [a.n_neurons * b.n_neurons * b.d_mlp for a, b in model_pairs(models, config.pairs)]
    rotated = (
        0 if config.baseline == "permutation" else 2 * config.n_draws * sum(pair_products) * (2 if askers > 1 else 1)
    )
    seconds_pass = (tokens - heldout) * (per_token + gemm_flops(models, config) / rate)
    seconds_compare = (rotated * (1 + 16 / config.n_draws)) / (0.5 * rate)
    seconds_detail = heldout * per_token * 1.2
    state = plan.statistics * 8 // STATE_BYTES
    final = plan.tables // 8 + (4 << 20)
    return Estimate(
        seconds_pass=seconds_pass,
        seconds_compare=seconds_compare,
        seconds_detail=seconds_detail,
        seconds=seconds_pass + seconds_compare + seconds_detail,
        memory_peak=resident + plan.total,
        memory_available=available_memory(config),
        disk_peak=final + (GENERATIONS + 1) * state + 4 * tokens,
        disk_final=final,
        tokens=tokens,
        device=config.device,
    )


def _resident(config: StudyConfig) -> int:
    if config.device.startswith("cuda"):
        return torch.cuda.memory_allocated(torch.device(config.device))
    return psutil.Process().memory_info().rss


def _forward_seconds(model: Model, config: StudyConfig) -> float:
    """Seconds per token position of a model's forward pass with its activations taken."""
    assert config.context is not None
    assert config.batch_tokens is not None
    rows = max(1, config.batch_tokens // config.context)
    ids = torch.arange(rows * config.context, device=model.device).view(rows, -1) % model.vocab_size
    keep = torch.arange(rows * config.context, device=model.device)
    attention = None if model.architecture.causal else torch.ones_like(ids)
    source = NeuronSource(model, DTYPES[config.gemm_dtype])
    source.settle(source.look(ids, attention, keep))
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        source.blocks(ids, attention, keep)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        best = min(best, time.perf_counter() - started)
    return best / ids.numel()
