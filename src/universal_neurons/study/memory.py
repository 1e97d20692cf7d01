"""How much memory a study needs besides its models, and in how many passes it therefore makes the co-moments."""

import os
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from universal_neurons.config import Settings
from universal_neurons.errors import MemoryNeededError
from universal_neurons.features import BUFFERS, Studied
from universal_neurons.interventions import COPIES, positions_cached, positions_together
from universal_neurons.labels import PANEL_NEURONS, SUMS_BYTES
from universal_neurons.matching import (
    CLASSES,
    MOST_TOKENS,
    PANEL_ELEMENTS,
    ROTATED_DRAWS,
    ROTATIONS_BYTES,
    rotation_bytes,
)
from universal_neurons.models import Described, Model
from universal_neurons.passes import Layout, Panel, cut, model_pairs
from universal_neurons.roles import models_at_once
from universal_neurons.statistics import (
    BANDS,
    CODES_BYTES,
    FLOAT_BINS,
    PACKED_BYTES,
    PRODUCT_BYTES,
    SPARSE_PRODUCT_BYTES,
    TILE_ROWS,
    WINDOW,
)
from universal_neurons.storage import PART_BYTES
from universal_neurons.study.resolve import settings_of_null
from universal_neurons.study.similarity_rows import similarity_bytes
from universal_neurons.text import SHARD_POSITIONS, STRETCHES

STATE_BYTES = 8 + 4  # a float64 sum and a float32 pending product
MATCH_ROW_BYTES = 160  # a row of the matches table while it is sorted and written
PAGES_BYTES = 250 << 20  # matplotlib and the report
EXAMPLE_BYTES = 700  # an example while its table is made
SYNTAX_BYTES = 24  # of a token position
PROPOSAL_BYTES = 129 * 32 * 2  # of a neuron's candidates, in a checkpoint too
MOST_PASSES = 4096
WORDS_PER_TOKEN = 2  # places in a word in which a token is seen
COLUMN_LABELS = 300  # syntax of this and the previous token, subsets
DENSE_LABELS = 3000  # with the labels of words and previous tokens
RANKS_BYTES = 2 * CLASSES * 4  # of a neuron's classes of ranks
LIBRARIES, THREAD = 3 << 29, 72 << 20  # bytes of address space: of libraries still to be loaded, of one more thread
HELDOUT_SHARE = 5  # a fifth of the text, at most, is held out
LOGITS_COPIES = 5  # of a clean run's logits, while they are made


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes a study adds to a process that has loaded its models."""

    statistics: int
    blocks: int
    workspace: int
    tables: int
    weights: int = 0
    roles: int = 0
    detail: int = 0
    null: int = 0
    similarity: int = 0

    @property
    def total(self) -> int:
        """At the peak: the weights, the pass with a comparison on top, or what comes once that is gone: the untrained
        networks with a pass of theirs, the tables, the roles or the layers compared."""
        after = max(self.null, self.blocks + max(self.tables, self.roles, self.detail, self.similarity))
        return max(self.weights, self.statistics + self.blocks + self.workspace, after)


def memory_plan(
    config: Settings, models: Sequence[Described], layout: Layout | None = None, *, groups: int = 1
) -> MemoryPlan:
    """The memory that a study needs besides the models."""
    with_weights = [model for model in models if model.has_weights]
    weights = max(map(weight_bytes, with_weights)) if "weights" in config.stages else 0
    if not config.reads_tokens:
        return MemoryPlan(0, 0, 0, PAGES_BYTES, weights)
    layout = layout or Layout()
    passes, compensated = passes_of(config, models, layout), layout.compensated
    labels = label_bytes(config, models)[0] if "labels" in config.stages else 0
    lanes = 2 if config.lanes > 1 else 1  # the lane that is added up, and the sum of those that are done
    askers = models if config.pairs == "all" else models[:1]
    rows = sum(m.n_neurons for m in askers) * (len(models) - 1) * (config.top_k + 1)
    tables = max(rows * MATCH_ROW_BYTES, 2 * labels) + PAGES_BYTES  # the labels' sums, and their float64 means
    roles = 0
    if "roles" in config.stages:
        at_once = models_at_once(models, config.device)
        roles = sum(sorted(role_bytes(config, model) for model in models)[-at_once:])
    return MemoryPlan(
        lanes * (_statistics(config, models, passes, compensated, groups) + labels),
        _blocks(config, models, passes),
        _workspace(config, models, passes, compensated, groups),
        tables,
        weights,
        roles + weights,
        _detail(config, models),
        null_bytes(config, models, layout) if config.null else 0,
        similarity_bytes(config, models) if "similarity" in config.stages else 0,
    )


def passes_of(config: Settings, models: Sequence[Described], layout: Layout) -> list[list[Panel]]:
    """The panels of every pass."""
    pairs = pairs_of(config, models)
    return cut(pairs, layout.passes, by_layer=config.pairs == "all") if pairs else [[]]


def _entry_bytes(config: Settings, compensated: bool) -> int:
    """Bytes an entry of the co-moments: its sum, and on a CPU a pending float32 product."""
    return (6 if compensated else 8) + 4 * (not _on_gpu(config))


def _on_gpu(config: Settings) -> bool:
    return config.device.startswith("cuda")


def _value_bytes(config: Settings) -> int:
    """Bytes of an activation in a block."""
    return 2 if _on_gpu(config) and config.gemm_dtype == "bfloat16" else 4


def n_examples(config: Settings, model: Described) -> int:
    """How many examples of each of a model's neurons a study keeps: of every band, and of gated ones the lowest."""
    return (len(BANDS) + model.gated) * config.examples


def _example_bytes(config: Settings, model: Described) -> int:
    """Bytes of a neuron's examples in the pass: of each a window, row, position and score, four bytes a number."""
    return n_examples(config, model) * (WINDOW + 3) * 4


def counterparts(config: Settings, models: Sequence[Described]) -> list[tuple[Described, int]]:
    """The models whose neurons' windows are kept with those of their matches, and how many of each neuron."""
    if "statistics" not in config.stages or not pairs_of(config, models):
        return []
    askers = models if config.pairs == "all" else models[:1]
    return [(model, n_examples(config, model)) for model in askers]


def _counterpart_bytes(config: Settings, models: Sequence[Described]) -> int:
    """Bytes of counterparts: what the detail pass keeps (windows of every model, row, position, score), their table,
    and the candidates of a few rows; where products read rounded activations, these as they are."""
    kept = counterparts(config, models)
    if not kept:
        return 0
    size = 2 * sum(m.n_neurons * many * (WINDOW * len(models) + 3) * 4 for m, many in kept)
    size += 2 * max(m.n_neurons * _example_bytes(config, m) for m, _ in kept)
    if config.gemm_dtype != "float32":
        turns = BUFFERS if _on_gpu(config) else 1
        value = 4 if config.dtype in ("float32", "file") else 2
        size += value * config.batch_tokens * turns * sum(m.n_neurons for m in models)
    return size


def _statistics(
    config: Settings, models: Sequence[Described], passes: Sequence[Sequence[Panel]], compensated: bool, groups: int
) -> int:
    """Bytes of the pass's statistics but for the labels': the largest pass's panels, and what each model keeps."""
    largest = max(sum(panel.entries for panel in panels) for panels in passes)
    size = groups * largest * _entry_bytes(config, compensated) * (1 + shuffles(config))  # each draw has its own
    size += groups * STATE_BYTES * within_layers(config, models)
    if "statistics" in config.stages:
        size += sum(m.n_neurons * (4 * FLOAT_BINS + _example_bytes(config, m)) for m in models)
    return size


def _blocks(config: Settings, models: Sequence[Described], passes: Sequence[Sequence[Panel]]) -> int:
    """Bytes of a batch's blocks and of what is copied of them."""
    gpu, value = _on_gpu(config), _value_bytes(config)
    turns = BUFFERS if gpu else 1
    neurons, wide = sum(m.n_neurons for m in models), max(m.d_mlp for m in models)
    largest_model = max(m.n_neurons for m in models)
    tallest = max((panel.rows[1] - panel.rows[0] for panels in passes for panel in panels), default=0)
    # all blocks, and some eight float32 copies of one layer while the forward pass and the shift are under way
    size = config.batch_tokens * (value * neurons * turns + 4 * 8 * wide)
    size += 4 * min(tallest, TILE_ROWS) * largest_model * gpu  # a tile of the products
    if not gpu and config.gemm_dtype != "float32":  # packed for a CPU's units, and a tile of their products
        size += config.batch_tokens * PACKED_BYTES[config.gemm_dtype] * neurons + PRODUCT_BYTES
    if shuffles(config):  # a shard's blocks are kept until it ends, and three copies of a model's are reordered
        size += value * SHARD_POSITIONS * (neurons + 3 * largest_model)
    codes = [m.n_neurons for m in models if not (m.of_neurons or gpu)]
    if codes:  # of latents, of which few are active; where positions are shuffled, of a shard's too
        size += CODES_BYTES * (
            config.batch_tokens * sum(codes) + 2 * SHARD_POSITIONS * max(codes) * bool(shuffles(config))
        )
        size += SPARSE_PRODUCT_BYTES
    if config.search != "exact":  # signed sums of a shard: being added up, rounded, and as a block
        size += (SHARD_POSITIONS // config.group_size + 1) * 4 * 3 * neurons
    if config.search == "screened":  # the candidates' pass reads blocks neuron by neuron
        size += config.batch_tokens * value * neurons
    if "labels" in config.stages or "statistics" in config.stages:  # raw pre-activations
        size += config.batch_tokens * 4 * neurons * turns
    return size


def _workspace(
    config: Settings, models: Sequence[Described], passes: Sequence[Sequence[Panel]], compensated: bool, groups: int
) -> int:
    """Bytes that reading the statistics takes, at the most."""
    pairs = pairs_of(config, models)
    wide, largest_model = max(m.d_mlp for m in models), max(m.n_neurons for m in models)
    # float64: four panels of ρ; a layer's rows against a model, plain and rotated; a layer's covariance and rotation
    size = PART_BYTES + 8 * (4 * PANEL_ELEMENTS + 2 * wide * largest_model + 4 * wide**2)
    size += min(config.draws * rotation_bytes([wide]), ROTATIONS_BYTES)
    largest_panel = max((panel.entries for panels in passes for panel in panels), default=0)
    size += _entry_bytes(config, compensated) * largest_panel * (groups > 1)  # the groups' sum
    if config.search != "exact":  # how far each ρ of a panel may be off
        size += 8 * 5 * PANEL_ELEMENTS
    if config.search == "screened":  # of every group, and of all
        proposed = sum(a.n_neurons + b.n_neurons for a, b in pairs)
        size += proposed * (groups + (groups > 1)) * PROPOSAL_BYTES
    if "statistics" in config.stages:  # windows before and after they are sorted; the rows of the examples' table
        size += max(
            m.n_neurons * (2 * _example_bytes(config, m) + n_examples(config, m) * EXAMPLE_BYTES) for m in models
        )
    if "labels" in config.stages:  # six float64 matrices of labels × a panel of neurons; the annotation
        columns = label_bytes(config, models)[1]
        size += 6 * 8 * columns * min(largest_model, PANEL_NEURONS)
        size += SYNTAX_BYTES * config.max_tokens * (config.nlp is not None)
    return size


def role_bytes(config: Settings, model: Described) -> int:
    """What one model's roles take: logits of the clean run where they are read, and the activations beside them."""
    device = torch.device(config.device).type
    tokens = min(config.roles.tokens, max(config.context, config.max_tokens // HELDOUT_SHARE))
    positions = min(tokens, positions_together(device, config.context, model.vocab_size))
    read = positions * min(1.0, config.roles.positions_read(model.vocab_size) / tokens)
    changed = max(positions, positions_cached()) if device == "cpu" else COPIES * positions
    activations = 2 * positions * model.n_neurons + changed * (2 * model.d_mlp + 4 * model.d_model)
    return 4 * round(read * LOGITS_COPIES * model.vocab_size + activations)


def _detail(config: Settings, models: Sequence[Described]) -> int:
    """Bytes of the detail pass: sums of every match and of its rotated neurons, sums by token, classes of ranks, and
    where neurons fire beside their matches."""
    rotated = 0 if config.baseline == "permutation" else 2 * (2 + 3 * ROTATED_DRAWS)
    askers = models if config.pairs == "all" else models[:1]
    matches = sum(m.n_neurons for m in askers) * (len(models) - 1) if pairs_of(config, models) else 0
    neurons = sum(m.n_neurons for m in models) if matches else 0
    return (
        8 * (STRETCHES * (5 + rotated) + 5) * matches
        + (STATE_BYTES * MOST_TOKENS + RANKS_BYTES) * neurons
        + RANKS_BYTES * matches
        + _counterpart_bytes(config, models)
    )


def null_bytes(config: Settings, models: Sequence[Described], layout: Layout) -> int:
    """What a draw of the untrained null takes: a network beside every model, and their pass, cut as the study's is."""
    networks = sum(network.n_bytes for network in {model.network for model in models if isinstance(model, Studied)})
    plan = memory_plan(settings_of_null(config), models, layout)
    return networks + plan.statistics + plan.blocks + plan.workspace


def within_layers(config: Settings, models: Sequence[Described]) -> int:
    """Entries of the within-layer co-moments of all models."""
    return sum(entries_within(config, models))


def entries_within(config: Settings, models: Sequence[Described]) -> list[int]:
    """Entries of the within-layer co-moments of each model."""
    rotated = models if config.pairs == "all" else models[1:]
    needed = rotated if "universality" in config.stages and not shuffles(config) else []
    always = "statistics" in config.stages
    apart = not always or config.search != "exact"  # of a sketch's sums too
    times = [always + (apart and model in needed) for model in models]
    return [many * sum(width**2 for width in model.units.widths) for many, model in zip(times, models)]


def plan_layout(config: Settings, models: Sequence[Described], *, groups: int = 1) -> Layout:
    """As few passes as fit in memory; of as many, with sums in float64 where these fit.

    Raises `MemoryNeededError` where not even single rows of the co-moments fit.
    """
    kinds = {"float64": (False,), "compensated": (True,), "auto": (False, True)}[config.sums]
    if config.panels is not None or not pairs_of(config, models):
        return Layout(config.panels or 1, kinds[0])
    free = available_memory(config)
    rows = sum(left.n_layers if config.pairs == "all" else left.n_neurons for left, _ in pairs_of(config, models))
    most = min(rows, MOST_PASSES)

    def fewest(compensated: bool) -> int:
        def fits(passes: int) -> bool:
            return memory_plan(config, models, Layout(passes, compensated), groups=groups).total <= free

        enough = next((2**k for k in range(most.bit_length()) if fits(2**k)), most + 1)  # nearly always 1
        least = enough // 2 + 1  # half as many do not fit
        return least + bisect_left(range(least, enough), True, key=fits)

    passes, compensated = min((fewest(kind), kind) for kind in kinds)
    return Layout(passes, compensated) if passes <= most else Layout(most, kinds[-1])


def weight_bytes(model: Described) -> int:
    """Bytes of a model's processed weights in float64, twice while they are put together."""
    has_up = model.gated or (isinstance(model, Model) and model.architecture.w_up is not None)
    matrices = 3 if has_up else 2
    return 2 * 8 * model.d_model * (matrices * model.n_neurons + model.vocab_size)


def label_bytes(config: Settings, models: Sequence[Described]) -> tuple[int, int]:
    """Bytes of the labels' sums, roughly, and how many labels there are."""
    total = sum(m.n_neurons for m in models)
    sizes = [model.vocab_size for model in models]
    strings = min(sizes) if config.pooling is None else min(max(sizes), config.max_tokens)  # of spans
    tokens = strings * (WORDS_PER_TOKEN + 1)
    dense = tokens * total * STATE_BYTES > SUMS_BYTES
    width = DENSE_LABELS if dense else tokens + COLUMN_LABELS
    return STATE_BYTES * total * (width + 2 * config.context), DENSE_LABELS


def pairs_of(config: Settings, models: Sequence[Described]) -> list[tuple[Described, Described]]:
    return model_pairs(models, config.pairs) if "universality" in config.stages else []


def shuffles(config: Settings) -> int:
    return config.draws if config.baseline == "permutation" else 0


def available_memory(config: Settings) -> int:
    """Free bytes where the statistics live; on a GPU with those that torch keeps for whoever asks next."""
    if config.device.startswith("cuda"):
        device = torch.device(config.device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    free, mappable = psutil.virtual_memory().available, address_space()
    return free if mappable is None else max(0, min(free, mappable))


def address_space() -> int | None:
    """Bytes that a process limited by `ulimit -v` may still map for statistics; None where nothing limits it.

    Libraries that are still to be loaded, and threads, whose stacks and arenas are mapped long before they are filled,
    are left their part: where they find none, they end the process.
    """
    try:
        import resource
    except ImportError:  # systems other than POSIX
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    return limit - psutil.Process().memory_info().vms - LIBRARIES - THREAD * ((os.cpu_count() or 1) - 1)


def require_memory(config: Settings, models: Sequence[Described], layout: Layout, *, groups: int = 1) -> None:
    """Raise `MemoryNeededError` where a study would not fit."""
    needed, free = memory_plan(config, models, layout, groups=groups).total, available_memory(config)
    if needed > free:
        pairs = len(pairs_of(config, models))
        raise MemoryNeededError(
            f"{', '.join(config.stages)} of {len(models)} models and {pairs} pairs: not enough memory",
            given=f"{free / 2**30:.1f} GiB free on {config.device}{_limited(config)}",
            wanted=f"{needed / 2**30:.1f} GiB, in {layout.passes} passes",
            fix="leave --panels to the plan, compare fewer models, or use a machine with more memory",
        )


def _limited(config: Settings) -> str:
    on_cpu = not config.device.startswith("cuda")
    return " (ulimit -v sets the limit)" if on_cpu and address_space() is not None else ""
