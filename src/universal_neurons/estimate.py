"""What a study will take: memory from the shapes of its statistics, time from a measured batch, disk from both."""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import psutil
import torch

from universal_neurons.accumulators import PRE, Accumulator, Batch, add_product
from universal_neurons.config import StudyConfig
from universal_neurons.correlation import PANEL_ELEMENTS
from universal_neurons.errors import MemoryNeededError
from universal_neurons.examples import BANDS, WINDOW, TopExamples
from universal_neurons.families import PANEL_NEURONS
from universal_neurons.labelling import SUMS_BYTES
from universal_neurons.models import DTYPES, Model
from universal_neurons.moments import FLOAT_BINS, GroupMeans, Histogram, Moments, SumSquares
from universal_neurons.store import GENERATIONS, PART_BYTES
from universal_neurons.stream import NeuronSource, model_pairs
from universal_neurons.tokens import HELDOUT_MOST, SHARD_POSITIONS

STATE_BYTES = 8 + 4  # a float64 sum and a float32 pending product
MATCH_ROW_BYTES = 160  # a row of the matches table while it is sorted and written
PAGES_BYTES = 250 << 20  # matplotlib and the report
EXAMPLE_BYTES = 700  # an example while its table is made
EXAMPLE_DISK_BYTES = 80
HISTOGRAM_BYTES = 1_800  # of a neuron: some 450 bins are in use
SYNTAX_BYTES = 24  # of a token position
WORDS_PER_TOKEN = 2  # places in a word in which a token is seen
COLUMN_LABELS = 300  # syntax of this and the previous token, subsets
DENSE_LABELS = 3000  # with the labels of words and previous tokens
SYNTAX_RATE = 8_000  # tokens per second and core that spaCy's small English pipeline reads


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes a study adds to a process that has loaded its models."""

    statistics: int
    blocks: int
    workspace: int
    tables: int
    weights: int = 0

    @property
    def total(self) -> int:
        """At the peak: the weights, the pass with a comparison on top, or the tables once the statistics are gone."""
        return max(self.weights, self.statistics + self.blocks + self.workspace, self.blocks + self.tables)


@dataclass(frozen=True)
class Estimate:
    """Seconds, bytes of memory at the peak, and bytes of disk at the peak and at the end."""

    seconds_pass: float
    seconds_compare: float
    seconds_detail: float
    seconds_labels: float
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
    weights = max(map(weight_bytes, models)) if "weights" in config.stages else 0
    if not config.reads_tokens:
        return MemoryPlan(0, 0, 0, PAGES_BYTES, weights)
    pairs = _pairs(config, models)
    products = [left.n_neurons * right.n_neurons for left, right in pairs]
    shuffles = _shuffles(config)
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
    workspace += STATE_BYTES * max(products, default=0) * (groups > 1)
    total = sum(m.n_neurons for m in models)
    labels = 0
    if "labels" in config.stages or "statistics" in config.stages:
        blocks += config.batch_tokens * 4 * widths
    if "statistics" in config.stages:
        windows = len(BANDS) * config.examples * (WINDOW + 3) * 4
        statistics += total * (4 * FLOAT_BINS + windows)
        workspace += side * (2 * windows + len(BANDS) * config.examples * EXAMPLE_BYTES)
    if "labels" in config.stages:
        labels, columns = label_bytes(config, models)
        statistics += labels
        workspace += 6 * 8 * columns * min(side, PANEL_NEURONS)
        workspace += SYNTAX_BYTES * config.max_tokens * (config.nlp is not None)
    askers = models if config.pairs == "all" else models[:1]
    rows = sum(m.n_neurons for m in askers) * (len(models) - 1) * (config.top_k + 1)
    return MemoryPlan(statistics, blocks, workspace, max(rows * MATCH_ROW_BYTES, 2 * labels) + PAGES_BYTES, weights)


def weight_bytes(model: Model) -> int:
    """Bytes of a model's processed weights in float64, twice while they are put together."""
    matrices = 3 if model.architecture.gated else 2
    return 2 * 8 * model.d_model * (matrices * model.n_neurons + model.vocab_size)


def label_bytes(config: StudyConfig, models: Sequence[Model]) -> tuple[int, int]:
    """Bytes of the labels' sums, roughly, and how many labels there are."""
    assert config.context is not None
    total = sum(m.n_neurons for m in models)
    tokens = min(m.vocab_size for m in models) * (WORDS_PER_TOKEN + 1)
    dense = tokens * total * STATE_BYTES > SUMS_BYTES
    width = DENSE_LABELS if dense else tokens + COLUMN_LABELS
    return STATE_BYTES * total * (width + 2 * config.context), DENSE_LABELS


def _pairs(config: StudyConfig, models: Sequence[Model]) -> list[tuple[Model, Model]]:
    return model_pairs(models, config.pairs) if "universality" in config.stages else []


def _shuffles(config: StudyConfig) -> int:
    return config.n_draws if config.baseline == "permutation" else 0


def available_memory(config: StudyConfig) -> int:
    """Free bytes where the statistics live."""
    if config.device.startswith("cuda"):
        return torch.cuda.mem_get_info(torch.device(config.device))[0]
    return psutil.virtual_memory().available


def require_memory(config: StudyConfig, models: Sequence[Model], *, groups: int = 1) -> None:
    """Raise `MemoryNeededError` where a study would not fit."""
    needed, free = memory_plan(config, models, groups=groups).total, available_memory(config)
    if needed > free:
        pairs = len(_pairs(config, models))
        raise MemoryNeededError(
            f"{', '.join(config.stages)} of {len(models)} models and {pairs} pairs: not enough memory",
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
    pairs = sum(left.n_neurons * right.n_neurons for left, right in _pairs(config, models))
    labels = sum(m.n_neurons for m in models) * COLUMN_LABELS * ("labels" in config.stages)
    return 2 * (pairs * (1 + _shuffles(config)) + labels + sum(m.n_layers * m.d_mlp**2 for m in models))


def estimate(config: StudyConfig, models: Sequence[Model], *, groups: int = 1) -> Estimate:
    """Time, memory and disk of a resolved configuration; runs a few batches to measure the machine."""
    assert config.context is not None
    assert config.batch_tokens is not None
    tokens = config.max_tokens // config.context * config.context
    resident = _resident(config)
    heldout = min(tokens // 5, config.heldout_tokens or HELDOUT_MOST)
    rate = gemm_rate(config.device, DTYPES[config.gemm_dtype])
    alike = {(m.architecture.name, m.n_layers, m.d_mlp, m.d_model): m for m in models}
    measured = {kind: _forward_seconds(model, config) for kind, model in alike.items()}
    per_token = sum(measured[m.architecture.name, m.n_layers, m.d_mlp, m.d_model] for m in models)
    plan = memory_plan(config, models, groups=groups)
    askers = len(models) if config.pairs == "all" else 1
    pair_products = [a.n_neurons * b.n_neurons * b.d_mlp for a, b in _pairs(config, models)]
    rotated = (
        0 if config.baseline == "permutation" else 2 * config.n_draws * sum(pair_products) * (2 if askers > 1 else 1)
    )
    seconds_pass = (tokens - heldout) * (per_token + gemm_flops(models, config) / rate)
    seconds_compare = (rotated * (1 + 16 / config.n_draws)) / (0.5 * rate)
    seconds_detail = heldout * per_token * 1.2
    seconds_labels = tokens / (SYNTAX_RATE * (os.cpu_count() or 1)) if config.nlp else 0.0
    state = plan.statistics * 8 // STATE_BYTES
    neurons = sum(m.n_neurons for m in models)
    final = plan.tables // 8 + (4 << 20)
    if "statistics" in config.stages:
        final += neurons * (HISTOGRAM_BYTES + len(BANDS) * config.examples * EXAMPLE_DISK_BYTES)
    return Estimate(
        seconds_pass=seconds_pass,
        seconds_compare=seconds_compare,
        seconds_detail=seconds_detail,
        seconds_labels=seconds_labels,
        seconds=seconds_pass + seconds_compare + seconds_detail + seconds_labels,
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
    """Seconds per token position of a model's forward pass, its activations taken and its own statistics updated."""
    assert config.context is not None
    assert config.batch_tokens is not None
    rows = max(1, config.batch_tokens // config.context)
    ids = torch.arange(rows * config.context, device=model.device).view(rows, -1) % model.vocab_size
    keep = torch.arange(rows * config.context, device=model.device)
    attention = None if model.architecture.causal else torch.ones_like(ids)
    pre = "statistics" in config.stages or "labels" in config.stages
    source = NeuronSource(model, DTYPES[config.gemm_dtype], pre=pre)
    source.settle(source.look(ids, attention, keep))
    name, n, device = model.name, model.n_neurons, model.device
    index = {"row": keep // config.context, "position": keep % config.context}
    statistics: list[Accumulator] = [SumSquares.empty(name, n, device=device)]
    if "statistics" in config.stages:
        statistics += [
            Moments.empty(name + PRE, n, device=device),
            Histogram.empty(name + PRE, n, device=device),
            TopExamples.empty(name, n, k=config.examples, device=device),
        ]
    if "labels" in config.stages:
        statistics += [GroupMeans.empty(name, "position", config.context, n, device=device) for _ in range(4)]
    best = float("inf")
    for _ in range(min(config.examples, 5) + 2):  # by then the examples change as rarely as late in a pass
        started = time.perf_counter()
        batch = Batch(source.blocks(ids, attention, keep), index=index)
        for accumulator in statistics:
            accumulator.update(batch)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        best = min(best, time.perf_counter() - started)
    return best / ids.numel()
