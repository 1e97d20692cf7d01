"""What a study will take: memory from the shapes of its statistics, time from a measured batch, disk from both."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import psutil
import torch

from universal_neurons.config import Settings
from universal_neurons.features import NeuronSource, Studied
from universal_neurons.matching import MEAN, ROTATED_DRAWS, Candidates, can_be_rotated, n_products
from universal_neurons.models import tokenizer_digest
from universal_neurons.passes import Layout, model_pairs, signs_of
from universal_neurons.statistics import (
    BY_POSITION,
    BY_ROW,
    Accumulator,
    Batch,
    Block,
    GroupMeans,
    Histogram,
    Key,
    Moments,
    SumSquares,
    TopExamples,
    What,
)
from universal_neurons.storage import KEPT
from universal_neurons.study.measured import ReadingSeconds, fewest_seconds, gemm_rate, measured_ids, seconds_by_model
from universal_neurons.study.memory import (
    COLUMN_LABELS,
    STATE_BYTES,
    available_memory,
    counterparts,
    entries_within,
    memory_plan,
    n_examples,
    pairs_of,
    passes_of,
    plan_layout,
    shuffles,
)
from universal_neurons.study.resolve import settings_of_null
from universal_neurons.study.role_seconds import role_seconds, weight_seconds
from universal_neurons.study.similarity_rows import layer_groups, rows_compared
from universal_neurons.study.sparse_seconds import DENSE, Shares, product_shares, share_of
from universal_neurons.text import HELDOUT_MOST, STRETCHES

EXAMPLE_DISK_BYTES = 80
COUNTERPART_DISK_BYTES = 68  # of a window of one model, in float32: 40 where most are 0, 100 where none is
NULL_ROW_BYTES = 12  # of the untrained null: an excess, and its place
LETTERS = 5  # bytes of text a position
POINTS = 8  # at which the passes are read on the way, at most, with two draws
HISTOGRAM_BYTES = 1_800  # of a neuron: some 450 bins are in use
EIGEN_PRODUCTS = 30  # an eigendecomposition of a layer, in products of its size
FLOAT64_SHARE = 0.5  # of the speed of products in float32
WITHIN_SHARE = 0.625  # of the within-layer products: blocks on and above the diagonal
RANK_RATE, GPU_RANK_RATE = 1.2e7, 2e9  # mid-ranks looked up per second
SYNTAX_RATE = 8_000  # tokens per second and core that spaCy's small English pipeline reads


@dataclass(frozen=True)
class Estimate:
    """Seconds (of sinks: to find those that are masked), bytes of memory at the peak, of disk there and at the end."""

    seconds_weights: float
    seconds_sinks: float
    seconds_pass: float
    seconds_compare: float
    seconds_detail: float
    seconds_similarity: float
    seconds_labels: float
    seconds_roles: float
    seconds_null: float
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


def gemm_flops(models: Sequence[Studied], config: Settings, shares: Mapping[str, Shares] | None = None) -> float:
    """FLOP of the passes' matrix products per token; sparse ones count as many as dense ones of their time have."""
    shares = shares or {model.name: DENSE for model in models}
    pairs = sum(
        share_of(shares, left, right) * left.n_neurons * right.n_neurons for left, right in pairs_of(config, models)
    )
    pairs *= 1 + shuffles(config)
    within = sum(_within_share(shares[m.name]) * n for m, n in zip(models, entries_within(config, models)))
    labels = sum(share_of(shares, m) * m.n_neurons for m in models) * COLUMN_LABELS * ("labels" in config.stages)
    if config.search != "exact":
        pairs /= config.group_size
    return 2 * (pairs + labels + within)


def _within_share(of_source: Shares) -> float:
    """Of the within-layer products those that are made: of dense blocks those on and above the diagonal."""
    return of_source.with_sparse if of_source.is_sparse else WITHIN_SHARE


def _match_seconds(config: Settings, models: Sequence[Studied], rate: float) -> float:
    """What the detail pass asks of the matches, a token: rotated neurons again, ranks."""
    pairs = pairs_of(config, models)
    both_ways = [*pairs, *[(b, a) for a, b in pairs]] if config.pairs == "all" else pairs
    rotations = 0 if config.baseline == "permutation" else 2 * ROTATED_DRAWS
    products = sum(2 * other.n_neurons * min(other.d_mlp, asker.n_neurons) for asker, other in both_ways)
    ranked = sum(2 * asker.n_neurons for asker, _ in both_ways)
    return rotations * products / (0.5 * rate) + ranked / (GPU_RANK_RATE if "cuda" in config.device else RANK_RATE)


def estimate(config: Settings, models: Sequence[Studied], *, groups: int = 1) -> Estimate:
    """Time, memory and disk of a resolved configuration; runs a few batches to measure the machine."""
    layout = plan_layout(config, models, groups=groups)
    tokens = config.max_tokens // config.context * config.context
    resident = resident_bytes(config)
    heldout = min(tokens // 5, config.heldout_tokens or HELDOUT_MOST)
    rate, names = gemm_rate(config.device, config.gemm_dtype), [model.name for model in models]
    forward = ReadingSeconds.measured(models, config, _forward_seconds)
    plan = memory_plan(config, models, layout, groups=groups)
    seconds_pass = (tokens - heldout) * _reading_seconds(models, config, layout, forward, rate)
    of_random_bases = 1 if can_be_rotated(config) else 0  # as many products as a draw, both ways
    of_draws = 2 * config.draws + 2 * POINTS + of_random_bases  # of neurons as they are, and standardised
    seconds_compare = _rotated_seconds(models, config, rate) * of_draws
    seconds_detail = heldout * (forward.of(names) * 1.2 + _match_seconds(config, models, rate))
    seconds_similarity = (
        _similarity_seconds(models, config, forward.alone, rate) if "similarity" in config.stages else 0.0
    )
    null = _Null.of(models, config, layout, rate) if config.null else _Null(0.0, 0, 0)
    seconds_labels = tokens / (SYNTAX_RATE * (os.cpu_count() or 1)) if config.nlp else 0.0
    seconds_roles = role_seconds(models, config, heldout) if "roles" in config.stages else 0.0
    seconds_weights = _weight_seconds(models) if "weights" in config.stages else 0.0
    state = plan.statistics * 8 // STATE_BYTES
    neurons = sum(m.n_neurons for m in models)
    sinks = tokens if "sinks" in config.mask else 0  # positions, a byte each while found, and then a bit at most
    final = plan.tables // 8 + (4 << 20) + null.table + sinks // 8
    if "statistics" in config.stages:
        of_examples = sum(m.n_neurons * n_examples(config, m) for m in models)
        final += neurons * HISTOGRAM_BYTES + of_examples * EXAMPLE_DISK_BYTES
        windows = sum(m.n_neurons * many for m, many in counterparts(config, models))
        final += windows * len(models) * COUNTERPART_DISK_BYTES
    alone = settings_of_null(config)
    seconds_sinks = sinks * ReadingSeconds.measured(models, alone, _forward_seconds).of(names) if sinks else 0.0
    parts = [
        seconds_weights,
        seconds_sinks,
        seconds_labels,
        seconds_pass,
        seconds_compare,
        seconds_detail,
        seconds_similarity,
        seconds_roles,
        null.seconds,
    ]
    return Estimate(
        seconds_weights=seconds_weights,
        seconds_sinks=seconds_sinks,
        seconds_pass=seconds_pass,
        seconds_compare=seconds_compare,
        seconds_detail=seconds_detail,
        seconds_similarity=seconds_similarity,
        seconds_labels=seconds_labels,
        seconds_roles=seconds_roles,
        seconds_null=null.seconds,
        seconds=sum(parts),
        memory_peak=resident + max(plan.total + sinks // 8, sinks),
        memory_available=available_memory(config),
        disk_peak=final + KEPT * (state + null.state + sinks) + _position_bytes(config, models) * tokens,
        disk_final=final,
        tokens=tokens,
        passes=layout.passes,
        sums="compensated" if layout.compensated else "float64",
        device=config.device,
    )


def _position_bytes(config: Settings, models: Sequence[Studied]) -> int:
    """Bytes of a position of the rows on disk: a token; of a span what each tokenizer makes of it, and its letters."""
    if config.pooling is None:
        return 4
    return 8 * len({tokenizer_digest(model.tokenizer) for model in models}) + 12 + LETTERS


@dataclass(frozen=True)
class _Null:
    """The untrained null: seconds of all its draws, bytes of a draw's snapshot and of the table."""

    seconds: float
    state: int
    table: int

    @classmethod
    def of(cls, models: Sequence[Studied], config: Settings, layout: Layout, rate: float) -> "_Null":
        """From a few batches, read as a draw's pass reads them."""
        assert config.null_draws is not None
        alone = settings_of_null(config)
        tokens = config.max_tokens // config.context * config.context
        chosen = tokens - min(tokens // 5, config.heldout_tokens or HELDOUT_MOST)
        forward = ReadingSeconds.measured(models, alone, _forward_seconds)
        seconds = chosen * _reading_seconds(models, alone, layout, forward, rate)
        seconds += _rotated_seconds(models, alone, rate) * config.draws
        state = memory_plan(alone, models, layout).statistics * 8 // STATE_BYTES
        asked = models if config.pairs == "all" else models[:1]
        rows = config.null_draws * sum(model.n_neurons for model in asked)
        return cls(config.null_draws * seconds, state, rows * NULL_ROW_BYTES)


def _reading_seconds(
    models: Sequence[Studied], config: Settings, layout: Layout, forward: ReadingSeconds, rate: float
) -> float:
    """Seconds per token position of all passes over the rows that choose."""
    later = passes_of(config, models, layout)[1:]
    again = sum(forward.of({m.name: m for p in panels for m in (p.left, p.right)}) for panels in later)
    per_token = forward.of([model.name for model in models])
    seconds = per_token + again + gemm_flops(models, config, product_shares(models, config)) / rate
    return seconds + (per_token + _candidate_seconds(models, config) if config.search == "screened" else 0.0)


def _weight_seconds(models: Sequence[Studied]) -> float:
    """Seconds of the weight statistics of all models that have weights."""
    return sum(seconds_by_model([model for model in models if model.has_weights], weight_seconds).values())


def _rotated_seconds(models: Sequence[Studied], config: Settings, rate: float) -> float:
    """Seconds of one draw of the rotated baseline."""
    if config.baseline == "permutation":
        return 0.0
    products = sum(a.n_neurons * b.n_neurons * b.d_mlp for a, b in pairs_of(config, models))
    both_ways = 2 if config.pairs == "all" and len(models) > 1 else 1
    return 2 * products * both_ways / (0.5 * rate)


def _similarity_seconds(
    models: Sequence[Studied], config: Settings, forward: Mapping[str, float], rate: float
) -> float:
    """Seconds of the similarity of layers: forward passes, principal axes, products of every two layers."""
    positions, seconds = rows_compared(config) * config.context, 0.0
    for pair in model_pairs(models, config.pairs):
        left, right = (len(layer_groups(model.units, positions)) for model in pair)
        for model, groups, times in zip(pair, (left, right), (1, left if right > 1 else 1)):
            axes = sum((4 * positions + EIGEN_PRODUCTS * width) * width**2 for width in model.units.widths)
            seconds += times * (groups * positions * forward[model.name] + axes / (FLOAT64_SHARE * rate))
        width = max(model.d_mlp for model in pair)
        products = 2 * positions * n_products(width, STRETCHES) + 8 * width
        seconds += products * pair[0].n_neurons * pair[1].n_neurons / rate
    return seconds


def _candidate_seconds(models: Sequence[Studied], config: Settings) -> float:
    """Seconds per token of a screened search's candidates, from a few on random numbers."""
    device, positions, width = config.device, 1024, 1024
    pairs = torch.arange(width * width, device=device)[:: width // MEAN]
    candidates = Candidates("a", "b", pairs, width, width, device=device)
    values = torch.randn(positions, width, device=device)
    batch = Batch({Key("a"): Block(values), Key("b"): Block(values)})
    best = fewest_seconds(lambda: candidates.update(batch), 3, values.device)
    asked = sum((a.n_neurons + b.n_neurons * (config.pairs == "all")) for a, b in pairs_of(config, models))
    return best / positions / len(pairs) * MEAN * asked


def resident_bytes(config: Settings) -> int:
    """What the process holds where the statistics live."""
    if config.device.startswith("cuda"):
        return torch.cuda.memory_allocated(torch.device(config.device))
    return psutil.Process().memory_info().rss


def _forward_seconds(model: Studied, config: Settings) -> float:
    """Seconds per token position of a model's forward pass, its activations taken and its own statistics updated."""
    ids = measured_ids(model, config)
    keep = torch.arange(ids.numel())
    attention = torch.ones_like(ids)
    pre = "statistics" in config.stages or "labels" in config.stages
    source = NeuronSource(model, config.gemm_dtype, pre=pre)
    source.settle(source.provisional_of(ids, attention, keep))
    name, n, device = model.name, model.n_neurons, model.device
    index = {BY_ROW: (keep // ids.shape[1]).to(device), BY_POSITION: (keep % ids.shape[1]).to(device)}
    statistics: list[Accumulator] = [SumSquares(name, n, device=device)]
    if "statistics" in config.stages:
        statistics += [
            Moments(Key(name, What.PRE), n, device=device),
            Histogram(Key(name, What.PRE), n, device=device),
            TopExamples(name, n, k=config.examples, both_tails=model.gated, device=device),
        ]
    if "labels" in config.stages:
        statistics += [GroupMeans(name, BY_POSITION, config.context, n, device=device)] * 4
    signs = signs_of(config)

    def update() -> None:
        batch = Batch(source.blocks(ids, attention, keep), index=index)
        if signs is not None:
            group, sign = signs.of(0, len(keep))
            source.sums.start(signs.groups(len(keep)))
            source.sums.add(batch.blocks[Key(name)].values, group, sign)
        for accumulator in statistics:
            accumulator.update(batch)

    # by then the examples change as rarely as late in a pass
    return fewest_seconds(update, min(config.examples, 5) + 2, device) / ids.numel()
