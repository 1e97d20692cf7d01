"""What a study will take: memory from the shapes of its statistics, time from a measured batch, disk from both."""

import os
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import psutil
import torch

from universal_neurons.accumulators import Accumulator, Batch, Block
from universal_neurons.comoments import TILE_ROWS, add_product
from universal_neurons.config import Settings
from universal_neurons.correlation import PANEL_ELEMENTS
from universal_neurons.errors import MemoryNeededError
from universal_neurons.examples import BANDS, WINDOW, TopExamples
from universal_neurons.families import PANEL_NEURONS
from universal_neurons.generations import KEPT, PART_BYTES
from universal_neurons.keys import BY_POSITION, BY_ROW, Key, What
from universal_neurons.labelling import SUMS_BYTES
from universal_neurons.models import Model
from universal_neurons.moments import FLOAT_BINS, GroupMeans, Histogram, Moments, SumSquares
from universal_neurons.neuron_source import BUFFERS, NeuronSource
from universal_neurons.panels import Layout, cut, model_pairs, signs_of
from universal_neurons.readout import look_seconds
from universal_neurons.roles.entropy import FREQUENCY_CANDIDATES
from universal_neurons.roles.functional import DRAWS
from universal_neurons.screening import MEAN, Candidates
from universal_neurons.tokens import HELDOUT_MOST, SHARD_POSITIONS
from universal_neurons.trials import COPIES, LOGITS_AT_ONCE, LOGITS_ON_GPU

STATE_BYTES = 8 + 4  # a float64 sum and a float32 pending product
MATCH_ROW_BYTES = 160  # a row of the matches table while it is sorted and written
PAGES_BYTES = 250 << 20  # matplotlib and the report
EXAMPLE_BYTES = 700  # an example while its table is made
EXAMPLE_DISK_BYTES = 80
HISTOGRAM_BYTES = 1_800  # of a neuron: some 450 bins are in use
SYNTAX_BYTES = 24  # of a token position
PROPOSAL_BYTES = 129 * 24 * 2  # of a neuron's candidates, in a checkpoint too
WITHIN_SHARE = 0.625  # of the within-layer products: blocks on and above the diagonal
MOST_PASSES = 4096
WORDS_PER_TOKEN = 2  # places in a word in which a token is seen
COLUMN_LABELS = 300  # syntax of this and the previous token, subsets
DENSE_LABELS = 3000  # with the labels of words and previous tokens
LOGITS_COPIES = 5  # of a clean run's logits, while they are made
SYNTAX_RATE = 8_000  # tokens per second and core that spaCy's small English pipeline reads


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes a study adds to a process that has loaded its models."""

    statistics: int
    blocks: int
    workspace: int
    tables: int
    weights: int = 0
    roles: int = 0

    @property
    def total(self) -> int:
        """At the peak: the weights, the pass with a comparison on top, or the tables or roles once that is gone."""
        after = self.blocks + max(self.tables, self.roles)
        return max(self.weights, self.statistics + self.blocks + self.workspace, after)


@dataclass(frozen=True)
class Estimate:
    """Seconds, bytes of memory at the peak, and bytes of disk at the peak and at the end."""

    seconds_pass: float
    seconds_compare: float
    seconds_detail: float
    seconds_labels: float
    seconds_roles: float
    seconds: float
    memory_peak: int
    memory_available: int
    disk_peak: int
    disk_final: int
    tokens: int
    passes: int
    sums: str
    device: str

    def as_dict(self) -> dict[str, float | int | str]:
        """As plain values."""
        return asdict(self)


def memory_plan(
    config: Settings, models: Sequence[Model], layout: Layout | None = None, *, groups: int = 1
) -> MemoryPlan:
    """The memory a resolved configuration needs besides the models."""
    weights = max(map(weight_bytes, models)) if "weights" in config.stages else 0
    if not config.reads_tokens:
        return MemoryPlan(0, 0, 0, PAGES_BYTES, weights)
    layout = layout or Layout()
    native = config.device.startswith("cuda")
    pairs = _pairs(config, models)
    passes = cut(pairs, layout.passes, by_layer=config.pairs == "all") if pairs else [[]]
    shuffles = _shuffles(config)
    entry = (6 if layout.compensated else 8) + 4 * (not native)
    tallest = max((panel.rows[1] - panel.rows[0] for panels in passes for panel in panels), default=0)
    largest = max(sum(panel.entries for panel in panels) for panels in passes)
    wide, side = max(m.d_mlp for m in models), max(m.n_neurons for m in models)
    statistics = groups * largest * entry * (1 + shuffles)
    statistics += groups * STATE_BYTES * _within_layers(config, models)
    lanes = 2 if config.lanes > 1 else 1
    widths = sum(m.n_neurons for m in models)
    value = 2 if native and config.gemm_dtype == "bfloat16" else 4
    turns = BUFFERS if native else 1
    blocks = config.batch_tokens * (value * widths * turns + 4 * 8 * wide)
    blocks += 4 * min(tallest, TILE_ROWS) * side * native
    if shuffles:
        blocks += value * SHARD_POSITIONS * (widths + 3 * side)
    workspace = PART_BYTES + 8 * (4 * PANEL_ELEMENTS + 2 * wide * side + 4 * wide**2)
    workspace += entry * max((p.entries for panels in passes for p in panels), default=0) * (groups > 1)
    if config.search != "exact":
        blocks += (SHARD_POSITIONS // config.group_size + 1) * 4 * 3 * widths
        workspace += 8 * 4 * PANEL_ELEMENTS
    if config.search == "screened":
        blocks += config.batch_tokens * value * widths
        workspace += sum(a.n_neurons + b.n_neurons for a, b in pairs) * (groups + (groups > 1)) * PROPOSAL_BYTES
    total = sum(m.n_neurons for m in models)
    labels = 0
    if "labels" in config.stages or "statistics" in config.stages:
        blocks += config.batch_tokens * 4 * widths * turns
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
    tables = max(rows * MATCH_ROW_BYTES, 2 * labels) + PAGES_BYTES
    roles = max(role_bytes(config, model) for model in models) if "roles" in config.stages else 0
    return MemoryPlan(lanes * statistics, blocks, workspace, tables, weights, roles + weights)


def role_bytes(config: Settings, model: Model) -> int:
    """What one model's roles take: logits of the clean run and the activations beside them."""
    most = LOGITS_ON_GPU if config.device.startswith("cuda") else LOGITS_AT_ONCE
    positions = min(config.roles.tokens, max(config.context, most // model.vocab_size))
    copies = COPIES * (2 * model.d_mlp + 4 * model.d_model)
    return 4 * positions * (LOGITS_COPIES * model.vocab_size + 2 * model.n_neurons + copies)


def _within_layers(config: Settings, models: Sequence[Model]) -> int:
    """Entries of the within-layer co-moments of all models."""
    rotated = models if config.pairs == "all" else models[1:]
    needed = rotated if "universality" in config.stages and not _shuffles(config) else []
    count = sum(width**2 for m in models for width in m.units.widths) if "statistics" in config.stages else 0
    if "statistics" not in config.stages or config.search != "exact":
        count += sum(width**2 for m in needed for width in m.units.widths)
    return count


def plan_layout(config: Settings, models: Sequence[Model], *, groups: int = 1) -> Layout:
    """As few passes as fit in memory; of as many, with sums in float64 where these fit.

    Raises `MemoryNeededError` where not even single rows of the co-moments fit.
    """
    kinds = {"float64": (False,), "compensated": (True,), "auto": (False, True)}[config.sums]
    if config.panels is not None or not _pairs(config, models):
        return Layout(config.panels or 1, kinds[0])
    free = available_memory(config)
    rows = sum(left.n_layers if config.pairs == "all" else left.n_neurons for left, _ in _pairs(config, models))
    most = min(rows, MOST_PASSES)

    def fewest(compensated: bool) -> int:
        def fits(passes: int) -> bool:
            return memory_plan(config, models, Layout(passes, compensated), groups=groups).total <= free

        return 1 + bisect_left(range(1, most + 1), True, key=fits)

    passes, compensated = min((fewest(kind), kind) for kind in kinds)
    return Layout(passes, compensated) if passes <= most else Layout(most, kinds[-1])


def weight_bytes(model: Model) -> int:
    """Bytes of a model's processed weights in float64, twice while they are put together."""
    matrices = 3 if model.architecture.gated else 2
    return 2 * 8 * model.d_model * (matrices * model.n_neurons + model.vocab_size)


def label_bytes(config: Settings, models: Sequence[Model]) -> tuple[int, int]:
    """Bytes of the labels' sums, roughly, and how many labels there are."""
    total = sum(m.n_neurons for m in models)
    tokens = min(m.vocab_size for m in models) * (WORDS_PER_TOKEN + 1)
    dense = tokens * total * STATE_BYTES > SUMS_BYTES
    width = DENSE_LABELS if dense else tokens + COLUMN_LABELS
    return STATE_BYTES * total * (width + 2 * config.context), DENSE_LABELS


def _pairs(config: Settings, models: Sequence[Model]) -> list[tuple[Model, Model]]:
    return model_pairs(models, config.pairs) if "universality" in config.stages else []


def _shuffles(config: Settings) -> int:
    return config.draws if config.baseline == "permutation" else 0


def available_memory(config: Settings) -> int:
    """Free bytes where the statistics live; on a GPU with those that torch keeps for whoever asks next."""
    if config.device.startswith("cuda"):
        device = torch.device(config.device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return psutil.virtual_memory().available


def require_memory(config: Settings, models: Sequence[Model], layout: Layout, *, groups: int = 1) -> None:
    """Raise `MemoryNeededError` where a study would not fit."""
    needed, free = memory_plan(config, models, layout, groups=groups).total, available_memory(config)
    if needed > free:
        pairs = len(_pairs(config, models))
        raise MemoryNeededError(
            f"{', '.join(config.stages)} of {len(models)} models and {pairs} pairs: not enough memory",
            given=f"{free / 2**30:.1f} GiB free on {config.device}",
            wanted=f"{needed / 2**30:.1f} GiB, in {layout.passes} passes",
            fix="leave --panels to the plan, compare fewer models, or use a machine with more memory",
        )


def gemm_rate(device: str, rounding: str = "float32", size: int = 1536, rounds: int = 3) -> float:
    """Measured FLOP/s of the correlation's matrix product on this machine, inputs rounded so."""
    native = device.startswith("cuda")
    low = native and rounding == "bfloat16"
    left = torch.randn(2048, size, device=device).to(torch.bfloat16 if low else torch.float32)
    into = torch.zeros(size, size, device=device)
    best = 0.0
    for _ in range(rounds + 1):
        started = time.perf_counter()
        add_product(into, left, left, True, rounding)
        if native:
            torch.cuda.synchronize(device)
        best = max(best, 2 * 2048 * size**2 / (time.perf_counter() - started))
    return best


def gemm_flops(models: Sequence[Model], config: Settings) -> float:
    """FLOP of the passes' matrix products per token."""
    pairs = 1.0 * sum(left.n_neurons * right.n_neurons for left, right in _pairs(config, models))
    pairs *= 1 + _shuffles(config)
    within = _within_layers(config, models) * WITHIN_SHARE
    labels = sum(m.n_neurons for m in models) * COLUMN_LABELS * ("labels" in config.stages)
    if config.search != "exact":
        pairs /= config.group_size
    return 2 * (pairs + labels + within)


def estimate(config: Settings, models: Sequence[Model], *, groups: int = 1) -> Estimate:
    """Time, memory and disk of a resolved configuration; runs a few batches to measure the machine."""
    layout = plan_layout(config, models, groups=groups)
    tokens = config.max_tokens // config.context * config.context
    resident = _resident(config)
    heldout = min(tokens // 5, config.heldout_tokens or HELDOUT_MOST)
    rate = gemm_rate(config.device, config.gemm_dtype)
    alike = {(m.architecture.name, m.units, m.d_model): m for m in models}
    measured = {kind: _forward_seconds(model, config) for kind, model in alike.items()}
    forward = {m.name: measured[m.architecture.name, m.units, m.d_model] for m in models}
    per_token = sum(forward.values())
    plan = memory_plan(config, models, layout, groups=groups)
    pairs = _pairs(config, models)
    later = cut(pairs, layout.passes, by_layer=config.pairs == "all")[1:] if pairs else []
    again = sum(forward[name] for panels in later for name in {m.name for p in panels for m in (p.left, p.right)})
    askers = len(models) if config.pairs == "all" else 1
    pair_products = [a.n_neurons * b.n_neurons * b.d_mlp for a, b in pairs]
    rotated = (
        0 if config.baseline == "permutation" else 2 * config.draws * sum(pair_products) * (2 if askers > 1 else 1)
    )
    seconds_pass = (tokens - heldout) * (per_token + again + gemm_flops(models, config) / rate)
    if config.search == "screened":
        seconds_pass += (tokens - heldout) * (per_token + _candidate_seconds(models, config))
    seconds_compare = (rotated * (1 + 16 / config.draws)) / (0.5 * rate)
    seconds_detail = heldout * per_token * 1.2
    seconds_labels = tokens / (SYNTAX_RATE * (os.cpu_count() or 1)) if config.nlp else 0.0
    seconds_roles = _role_seconds(models, config, forward, heldout) if "roles" in config.stages else 0.0
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
        seconds_roles=seconds_roles,
        seconds=seconds_pass + seconds_compare + seconds_detail + seconds_labels + seconds_roles,
        memory_peak=resident + plan.total,
        memory_available=available_memory(config),
        disk_peak=final + (KEPT + 1) * state + 4 * tokens,
        disk_final=final,
        tokens=tokens,
        passes=layout.passes,
        sums="compensated" if layout.compensated else "float64",
        device=config.device,
    )


def _role_seconds(models: Sequence[Model], config: Settings, forward: Mapping[str, float], heldout: int) -> float:
    """Seconds of the roles: looks at changed logits, and forward passes (of half the blocks) with something changed."""
    settings = config.roles
    predictions = min(settings.tokens, heldout)
    swept = len(settings.values) + 2
    looks = (settings.entropy_neurons + FREQUENCY_CANDIDATES) * (swept + 6) + settings.controls * swept / 2
    found = settings.ablated * 1.5 if "universality" in config.stages else 0.0  # matches, and random ones beside them
    runs = settings.controls * swept / 2 + found + DRAWS  # whose logits are multiplied anew
    rate = gemm_rate(config.device, "float32")
    seconds = 0.0
    for m in models:
        product = 2.0 * m.vocab_size * m.d_model / rate
        later = settings.controls * swept / 2 / m.n_layers + found / 2 + DRAWS  # in forward passes
        seconds += (looks + runs) * look_seconds(m.device, m.vocab_size) + runs * product + later * forward[m.name]
    return predictions * seconds


def _candidate_seconds(models: Sequence[Model], config: Settings) -> float:
    """Seconds per token of a screened search's candidates, from a few on random numbers."""
    device, positions, width = config.device, 1024, 1024
    pairs = torch.arange(width * width, device=device)[:: width // MEAN]
    some = Candidates("a", "b", pairs, width, width, device=device)
    values = torch.randn(positions, width, device=device)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        some.update(Batch({Key("a"): Block(values), Key("b"): Block(values)}))
        if config.device.startswith("cuda"):
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    asked = sum((a.n_neurons + b.n_neurons * (config.pairs == "all")) for a, b in _pairs(config, models))
    return best / positions / len(pairs) * MEAN * asked


def _resident(config: Settings) -> int:
    if config.device.startswith("cuda"):
        return torch.cuda.memory_allocated(torch.device(config.device))
    return psutil.Process().memory_info().rss


def _forward_seconds(model: Model, config: Settings) -> float:
    """Seconds per token position of a model's forward pass, its activations taken and its own statistics updated."""
    rows = max(1, config.batch_tokens // config.context)
    ids = torch.arange(rows * config.context, device=model.device).view(rows, -1) % model.vocab_size
    keep = torch.arange(rows * config.context, device=model.device)
    attention = None if model.architecture.causal else torch.ones_like(ids)
    pre = "statistics" in config.stages or "labels" in config.stages
    source = NeuronSource(model, config.gemm_dtype, pre=pre)
    source.settle(source.look(ids, attention, keep))
    name, n, device = model.name, model.n_neurons, model.device
    index = {BY_ROW: keep // config.context, BY_POSITION: keep % config.context}
    statistics: list[Accumulator] = [SumSquares(name, n, device=device)]
    if "statistics" in config.stages:
        statistics += [
            Moments(Key(name, What.PRE), n, device=device),
            Histogram(Key(name, What.PRE), n, device=device),
            TopExamples(name, n, k=config.examples, device=device),
        ]
    if "labels" in config.stages:
        statistics += [GroupMeans(name, BY_POSITION, config.context, n, device=device) for _ in range(4)]
    signs = signs_of(config)
    best = float("inf")
    for _ in range(min(config.examples, 5) + 2):  # by then the examples change as rarely as late in a pass
        started = time.perf_counter()
        batch = Batch(source.blocks(ids, attention, keep), index=index)
        if signs is not None:
            group, sign = signs.of(0, len(keep))
            source.sums.start(signs.groups(len(keep)))
            source.sums.add(batch.blocks[Key(name)].values, group, sign)
        for accumulator in statistics:
            accumulator.update(batch)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        best = min(best, time.perf_counter() - started)
    return best / ids.numel()
