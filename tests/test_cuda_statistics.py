"""Every statistic of the pass on a GPU, against float64 NumPy of the very blocks that it was given."""

import contextlib
import importlib
import pkgutil
from functools import partial

import numpy as np
import pytest
import torch
from conftest import model_on
from scipy import stats
from test_correlation import captured, some_tokens

import universal_neurons
from universal_neurons.diff.paired_firing import PairedFiring
from universal_neurons.features import NeuronSource
from universal_neurons.matching import (
    Candidates,
    Counterparts,
    PairedMoments,
    RankMoments,
    RankTable,
    RotatedMoments,
    WithinTokens,
)
from universal_neurons.matching.baselines import rotation
from universal_neurons.passes import Pass
from universal_neurons.passes import prefetch as overlap
from universal_neurons.statistics import (
    BEFORE,
    BY_POSITION,
    BY_ROW,
    BY_TOKEN,
    BY_WORD,
    Accumulator,
    Batch,
    Block,
    CoMoments,
    Extremes,
    GroupMeans,
    Histogram,
    Key,
    LayerMoments,
    Moments,
    ShardEnergies,
    ShuffledCoMoments,
    Signs,
    SinkPositions,
    SumSquares,
    TopExamples,
    What,
    seed_of,
)
from universal_neurons.statistics.keys import key_of
from universal_neurons.storage import FileInParts, KeptSums
from universal_neurons.study.shown import Details
from universal_neurons.text import Shard
from universal_neurons.units import Units

pytestmark = pytest.mark.cuda

ROUNDINGS = {"float32": 0.0, "tf32": 2.0**-11, "bfloat16": 2.0**-8}  # relative, of an input of a product
RHO = {"float32": 2e-6, "tf32": 1e-5, "bfloat16": 1e-5}  # of a sum of products, relative to the norms
A, B = "gpt2-0", "gpt2-1"
N, ROWS, WORDS, SEED, STRETCHES = 48, (5, 29), 11, 3, 4
SIGNS = Signs(8, SEED)
SINK_FACTOR = 1.5
MATCH = torch.arange(N).flip(0).where(torch.arange(N) % 5 > 0, -1)
PAIRS = torch.arange(0, N * N, 7)
TURNED = torch.stack([torch.arange(N).roll(3), torch.arange(N).flip(0)])
TABLE = RankTable.of(torch.linspace(-0.5, 0.5, 65)[:, None].repeat(1, N))


class Spy(Accumulator):
    """What all the statistics of a pass are given, on the CPU in float64."""

    def __init__(self, names):
        super().__init__(names, None)
        self.batches = []

    def update(self, batch):
        blocks = {name: block.values.double().cpu().numpy() for name, block in batch.blocks.items()}
        index = {name: numbers.cpu().numpy() for name, numbers in batch.index.items()}
        self.batches.append((batch.shard, blocks, index))

    def of(self, name, shard=None):
        name = key_of(name)
        parts = [blocks[name] for number, blocks, _ in self.batches if name in blocks and shard in (None, number)]
        return np.concatenate(parts)

    def index(self, name):
        name = key_of(name)
        return np.concatenate([index[name] for _, _, index in self.batches if name in index])


class Words:
    """A number of every token, to sort by."""

    def __init__(self, tokens):
        self.tokens = tokens

    def batch(self, rows, keep):
        number = torch.from_numpy(self.tokens.ids(rows).ravel()[keep].astype(np.int64) % WORDS)
        return {}, {BY_WORD: number, BY_TOKEN: number}


RECIPES = {
    "whole": partial(CoMoments, A, B, N, N),
    "panel": partial(CoMoments, A, B, N, N, rows=ROWS),
    "compensated": partial(CoMoments, A, B, N, N, group=None, compensated=True),
    "shuffled": partial(ShuffledCoMoments, A, B, 1, SEED, n_left=N, n_right=N),
    "sketched": partial(CoMoments, Key(A, What.SUMS), Key(B, What.SUMS), N, N),
    "dead": partial(Extremes, A, N),
    "spread": partial(SumSquares, A, N),
    "pre": partial(Moments, Key(A, What.PRE), N),
    "first": partial(Moments, Key(A, What.FIRST), N),
    "histogram": partial(Histogram, Key(A, What.PRE), N),
    "examples": partial(TopExamples, A, N, k=3, seed=SEED),
    "counterparts": partial(Counterparts, Key(A), [Key(B)], MATCH[None], k=3, seed=SEED, both_tails=True),
    "words": partial(GroupMeans, A, BY_WORD, WORDS, N),
    "firing": partial(GroupMeans, Key(A, What.PRE), BY_POSITION, 40, N, of="firing"),
    "paired firing": partial(PairedFiring, Key(A, What.PRE), Key(B, What.PRE), N, STRETCHES),
    "energies": partial(ShardEnergies, A, N, SIGNS),
    "paired": partial(PairedMoments, A, B, MATCH, STRETCHES),
    "without sinks": partial(PairedMoments, A, B, MATCH, STRETCHES, streams=[A, B], factor=SINK_FACTOR),
    "sinks": partial(SinkPositions, [A], np.arange(120), 40, SINK_FACTOR),
    "candidates": partial(Candidates, A, B, PAIRS, N, N),
    "rotated": partial(RotatedMoments, A, B, TURNED, Units.equal(2, N // 2), "rotation", SEED, STRETCHES),
    "ranks": partial(RankMoments, A, [B], MATCH[None], [TABLE, TABLE]),
    "within": partial(WithinTokens, A, B, MATCH, WORDS - 1),
    "tokens": partial(GroupMeans, A, BY_TOKEN, WORDS, N),
    "their tokens": partial(GroupMeans, B, BY_TOKEN, WORDS, N),
}


@pytest.fixture(scope="module", autouse=True)
def _exact_products():
    """Where a CPU stands in: its own bfloat16 rounds products too, a GPU's does not."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("universal_neurons.statistics.products.processor_flags", frozenset)
        yield


@pytest.fixture(scope="module", params=ROUNDINGS)
def seen(request, device, tmp_path_factory):
    """A pass over four shards: what its statistics were given, and what they are now."""
    models = [model_on(device, seed=seed) for seed in (0, 1)]
    tokens = some_tokens(120)
    shards = [Shard(number, rows) for number, rows in enumerate(np.array_split(np.arange(len(tokens)), STRETCHES))]
    spy = Spy(tuple(Key(name, what) for name in (A, B) for what in What))
    starts = {shard.index: shard.index * SIGNS.groups(30 * tokens.context) for shard in shards}
    shape = (STRETCHES * SIGNS.groups(30 * tokens.context), N)
    path = tmp_path_factory.mktemp("sums") / "sums.safetensors"
    file = FileInParts(path, {"sums": (torch.bfloat16, shape)}, "{}")
    kept = KeptSums(A, file, "sums", starts)
    sources = [NeuronSource(model, request.param, pre=True) for model in models]
    for source in sources:
        source.streams = True
    recipes = [*RECIPES.values(), lambda device: spy, lambda device: kept]
    run = Pass(sources, recipes, [Words(tokens)], signs=SIGNS)
    run.run(tokens, shards, batch_tokens=400)
    found = dict(zip(RECIPES, run.accumulators)) | {"kept": kept}
    return request.param, spy, found, models, sources, tokens


def require_products(found, left, right, rounding, expected=None):
    """A matrix of sums of products, in units of the norms of both sides."""
    left, right = left - left.mean(0), right - right.mean(0)
    scale = np.outer(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=0))
    expected = left.T @ right if expected is None else expected
    assert np.abs(found - expected).max(initial=0, where=scale > 0) / scale.max() <= RHO[rounding]
    assert (np.abs(found - expected) / scale).max() <= RHO[rounding]


def test_the_blocks_are_what_the_model_computes_on_a_cpu(seen):
    rounding, spy, _, _, sources, tokens = seen
    for seed, source in enumerate(sources):
        expected = captured(model_on("cpu", seed=seed), tokens)
        values = spy.of(source.model.name) + source.provisional.mean.double().cpu().numpy()
        slack = 2e-5 * np.abs(expected).max() + ROUNDINGS[rounding] * np.abs(spy.of(source.model.name))
        assert (np.abs(values - expected) <= slack).all()
        assert len(values) == tokens.mask(np.arange(len(tokens))).sum()


@pytest.mark.parametrize("kind", ["whole", "panel", "compensated"])
def test_co_moments(seen, kind):
    rounding, spy, found, *_ = seen
    rows = slice(*ROWS) if kind == "panel" else slice(None)
    result = found[kind].result()
    assert result.count == len(spy.of(A))
    assert result.cross.dtype == (torch.float32 if kind == "compensated" else torch.float64)
    require_products(result.centred().cpu().numpy(), spy.of(A)[:, rows], spy.of(B), rounding)


def test_shuffled_co_moments(seen):
    rounding, spy, found, *_ = seen
    shuffled = []
    for shard in range(STRETCHES):
        right = spy.of(B, shard)
        generator = torch.Generator().manual_seed(seed_of("shuffle", SEED, shard, 1))
        shuffled.append(right[torch.randperm(len(right), generator=generator).numpy()])
    require_products(found["shuffled"].result().centred().cpu().numpy(), spy.of(A), np.concatenate(shuffled), rounding)


def test_sums_of_a_sketch(seen):
    """The sums are those of the shard's positions, each with its sign, and are read from the file as they were put."""
    rounding, spy, found, _, _, tokens = seen
    written = []
    for shard in range(STRETCHES):
        rows = np.arange(shard * 30, (shard + 1) * 30)
        group, sign = SIGNS.of(shard, len(rows) * tokens.context)
        counted = tokens.mask(rows).ravel()
        expected = np.zeros((SIGNS.groups(len(group)), N))
        np.add.at(expected, group[counted], spy.of(A, shard) * sign[counted, None])
        sums = spy.of(Key(A, What.SUMS), shard)
        assert (np.abs(sums - expected) <= 1e-5 + ROUNDINGS[rounding] * np.abs(expected)).all()
        written.append(sums)
    kept = found["kept"]
    content = kept.file.partial.read_bytes()[kept.file.start :]
    there = torch.frombuffer(bytearray(content), dtype=torch.bfloat16).view(-1, N)
    assert torch.equal(there, torch.from_numpy(np.concatenate(written)).bfloat16())
    assert all(kept.is_kept(shard, len(part)) for shard, part in enumerate(written))


def test_co_moments_of_a_sketch(seen):
    rounding, spy, found, _, _, tokens = seen
    left, right = spy.of(Key(A, What.SUMS)), spy.of(Key(B, What.SUMS))
    n = []
    for shard in range(STRETCHES):
        group, sign = SIGNS.of(shard, 30 * tokens.context)
        counted = tokens.mask(np.arange(shard * 30, (shard + 1) * 30)).ravel()
        n.append(np.bincount(group[counted], sign[counted], SIGNS.groups(len(group))))
    n = np.concatenate(n)
    centred = left.T @ right - np.outer(n @ left, n @ right) / (n @ n)
    require_products(found["sketched"].result().centred().cpu().numpy(), left, right, rounding, centred)


@pytest.fixture(scope="module")
def layered(seen):
    """Within-layer products, of another pass: its blocks are read by nobody else."""
    rounding, _, _, models, _, tokens = seen
    source = NeuronSource(models[0], rounding)
    run = Pass([source], [partial(LayerMoments, A, models[0].units)])
    shards = [Shard(number, rows) for number, rows in enumerate(np.array_split(np.arange(len(tokens)), STRETCHES))]
    run.run(tokens, shards, batch_tokens=400)
    return run.accumulators[0].result()


def test_layer_moments(seen, layered):
    rounding, spy, *_ = seen
    for layer, found in zip(np.split(spy.of(A), 2, 1), layered.centred.cpu().numpy()):
        require_products(found, layer, layer, rounding)
        np.testing.assert_array_equal(found, found.T)


def test_extremes_and_spread(seen):
    _, spy, found, *_ = seen
    values = spy.of(A)
    np.testing.assert_array_equal(found["dead"].low.cpu().numpy(), values.min(0))
    np.testing.assert_array_equal(found["dead"].high.cpu().numpy(), values.max(0))
    spread = found["spread"].result()
    np.testing.assert_allclose(spread.centred.cpu().numpy(), values.var(0) * len(values), rtol=2e-6)
    scale = np.abs(values).sum(0).max()
    np.testing.assert_allclose(spread.sum.cpu().numpy(), values.sum(0), atol=1e-6 * scale)


@pytest.mark.parametrize(("kind", "block"), [("pre", Key(A, What.PRE)), ("first", Key(A, What.FIRST))])
def test_moments(seen, kind, block):
    _, spy, found, *_ = seen
    values, result = spy.of(block), found[kind].result()
    assert result.count == len(values)
    low, high = values.min(0), values.max(0)
    np.testing.assert_array_equal(result.low.cpu().numpy(), low)
    np.testing.assert_array_equal(result.high.cpu().numpy(), high)
    np.testing.assert_allclose(result.positive.cpu().numpy(), (values > 0).mean(0), rtol=1e-15)  # × 1/n there
    np.testing.assert_allclose(result.mean.cpu().numpy(), values.mean(0), rtol=1e-5, atol=1e-6)
    if kind == "first":  # the same in every row, but for the rounding of batches of other sizes
        return
    np.testing.assert_allclose(result.var.cpu().numpy(), values.var(0), rtol=1e-5)
    np.testing.assert_allclose(result.skew.cpu().numpy(), stats.skew(values), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.kurt.cpu().numpy(), stats.kurtosis(values, fisher=False), rtol=1e-4)


def test_histogram(seen):
    _, spy, found, *_ = seen
    values, result = spy.of(Key(A, What.PRE)), found["histogram"].result()
    for low, high, counts in zip(result.low.tolist(), result.high.tolist(), result.counts.cpu().numpy()):
        inside = (values >= low) & (values < high) if low >= 0 else (values > low) & (values <= high)
        np.testing.assert_array_equal(counts, inside.sum(0))
    np.testing.assert_array_equal(result.counts.sum(0).cpu().numpy(), len(values))


def test_examples(seen):
    _, spy, found, _, sources, _ = seen
    values, row = spy.of(A), spy.index(BY_ROW)
    of_rows = np.stack([values[row == number].max(0) for number in np.unique(row)])
    result = found["examples"].result()
    for rank, best in enumerate(-np.sort(-of_rows, 0)[:3]):
        np.testing.assert_array_equal(found["examples"].score[0, rank].cpu().numpy(), best)
        shown = result.window[BEFORE, 0, rank].double().cpu().numpy()
        np.testing.assert_allclose(shown, best + sources[0].provisional.mean.double().cpu().numpy(), atol=1e-5)
    twins = {name: RECIPES[name](device="cpu") for name in ("examples", "counterparts")}
    known = {Key(source.name): source.provisional.to(torch.device("cpu")) for source in sources}
    for shard, blocks, index in spy.batches:
        if not index:
            continue
        given = {
            key: Block(torch.from_numpy(blocks[key]).float(), mean=of_model.mean, bounds=of_model.bounds)
            for key, of_model in known.items()
        }
        batch = Batch(given, shard=shard, index={k: torch.from_numpy(v) for k, v in index.items()})
        for twin in twins.values():
            twin.update(batch)
    for kind, twin in twins.items():
        for name in twin.TENSORS:
            there, expected = getattr(found[kind], name).cpu().numpy(), getattr(twin, name).numpy()
            np.testing.assert_allclose(there, expected, atol=1e-6, err_msg=f"{kind}: {name}")


@pytest.mark.parametrize(
    ("kind", "block", "by"), [("words", Key(A), BY_WORD), ("firing", Key(A, What.PRE), BY_POSITION)]
)
def test_sums_by_group(seen, kind, block, by):
    _, spy, found, *_ = seen
    values, where, result = spy.of(block), spy.index(by), found[kind].result()
    values = values > 0 if kind == "firing" else values
    expected = np.zeros(tuple(result.sums.shape))
    np.add.at(expected, where, values)
    np.testing.assert_array_equal(result.counts.cpu().numpy(), np.bincount(where, minlength=len(expected)))
    np.testing.assert_allclose(result.sums.cpu().numpy(), expected, atol=2e-6 * np.abs(values).sum(0).max())


def test_firing_in_pairs(seen):
    _, spy, found, *_ = seen
    counts, firing = found["paired firing"].result()
    for shard in range(STRETCHES):
        before, after = (spy.of(Key(name, What.PRE), shard) > 0 for name in (A, B))
        expected = [before.sum(0), after.sum(0), (before & after).sum(0)]
        assert counts[shard] == len(before)
        np.testing.assert_array_equal(firing[shard].cpu().numpy(), expected)


def test_energies(seen):
    _, spy, found, *_ = seen
    energies, fourths, chances, sizes = [], [], [], []
    for shard in range(STRETCHES):
        values = spy.of(A, shard)
        size = np.bincount(np.arange(len(values)) % SIGNS.groups(len(values)))
        energies.append((values**2).sum(0))
        fourths.append((values**4).sum(0))
        chances.append((size * (size - 1)).sum() / (len(values) * (len(values) - 1)))
        sizes.append(len(values))
    result = found["energies"].result()
    squares = (np.array(chances)[:, None] * np.square(energies)).sum(0)
    np.testing.assert_allclose(result.v.cpu().numpy(), np.sqrt(squares) / np.sum(energies, 0), rtol=2e-6)
    largest = (np.array(chances)[:, None] * energies).max(0) / np.sum(energies, 0)
    np.testing.assert_allclose(result.largest.cpu().numpy(), largest, rtol=2e-6)
    squared_fourths = np.array(chances)[:, None] * np.square(fourths)
    fourth = np.sqrt(squared_fourths.sum(0)) / np.sum(energies, 0) ** 2
    np.testing.assert_allclose(result.fourth.cpu().numpy(), fourth, rtol=2e-6)
    assert float(result.even) == pytest.approx((np.array(chances) * np.square(sizes)).sum() / sum(sizes) ** 2)


def test_pairs(seen):
    _, spy, found, *_ = seen
    left, right = spy.of(A), spy.of(B)
    heldout = found["paired"].result()
    match = np.maximum(MATCH.numpy(), 0)
    expected = np.array([np.corrcoef(left[:, n], right[:, match[n]])[0, 1] for n in range(N)])
    np.testing.assert_allclose(heldout.corr.value, expected, atol=2e-6)
    rest = np.concatenate([np.full(len(spy.of(A, shard)), shard) for shard in range(STRETCHES)]) != 1
    expected = np.array([np.corrcoef(left[rest, n], right[rest, match[n]])[0, 1] for n in range(N)])
    np.testing.assert_allclose(heldout.corr.without[1], expected, atol=2e-6)
    some = found["candidates"].result()
    cross = (left[:, some.left] * right[:, some.right]).sum(0)
    scale = np.linalg.norm(left[:, some.left], axis=0) * np.linalg.norm(right[:, some.right], axis=0)
    assert (np.abs(some.cross - cross) / scale).max() < 1e-6


def test_sinks_and_pairs_without_them(seen):
    _, spy, found, *_ = seen
    sinks = [spy.of(Key(name, What.STREAM))[:, 0] > SINK_FACTOR for name in (A, B)]
    expected = np.zeros((120, 40), bool)
    expected[spy.index(BY_ROW), spy.index(BY_POSITION)] = sinks[0]
    np.testing.assert_array_equal(found["sinks"].result(), expected)
    kept, match = ~(sinks[0] | sinks[1]), np.maximum(MATCH.numpy(), 0)
    assert 0.1 < kept.mean() < 0.99
    left, right = spy.of(A)[kept], spy.of(B)[kept]
    rho = np.array([np.corrcoef(left[:, n], right[:, match[n]])[0, 1] for n in range(N)])
    np.testing.assert_allclose(found["without sinks"].result().without_sinks, rho, atol=2e-6)


def test_what_is_asked_of_matches_on_held_out_rows(seen):
    _, spy, found, *_ = seen
    left, right, number = spy.of(A), spy.of(B), spy.index(BY_TOKEN)
    match = np.maximum(MATCH.numpy(), 0)
    turned = []
    for draw in range(len(TURNED)):
        turn = rotation("rotation", N // 2, SEED, draw).numpy()
        turned.append(np.concatenate([layer @ turn.T for layer in np.split(right, 2, 1)], 1)[:, TURNED[draw]])
    expected = [[np.corrcoef(left[:, n], values[:, n])[0, 1] for n in range(N)] for values in turned]
    np.testing.assert_allclose(found["rotated"].result().value, np.mean(expected, 0), atol=5e-6)
    places = [np.searchsorted(TABLE.ends[0].double().numpy(), values, side="right") for values in (left, right)]
    a, b = (TABLE.ranks[0].double().numpy()[place] for place in places)
    expected = [np.corrcoef(a[:, n], b[:, match[n]])[0, 1] if MATCH[n] >= 0 else np.nan for n in range(N)]
    np.testing.assert_allclose(found["ranks"].result()[0], expected, atol=1e-5)
    da, db = left.copy(), right[:, match].copy()
    for word in range(WORDS - 1):
        here = number == word
        da[here], db[here] = da[here] - da[here].mean(0), db[here] - db[here].mean(0)
    da, db = da[number < WORDS - 1], db[number < WORDS - 1]
    within = found["within"].corr(found["tokens"].result(), found["their tokens"].result())
    expected = (da * db).sum(0) / np.sqrt((da**2).sum(0) * (db**2).sum(0))
    np.testing.assert_allclose(within, expected, atol=2e-5)


def test_states_come_back_to_the_device(seen, device):
    """Through the CPU, as a checkpoint brings them."""
    _, _, found, *_ = seen
    for name, recipe in RECIPES.items():
        before = {part: tensor.cpu() for part, tensor in found[name].state().items()}
        again = recipe(device=device)
        again.restore({part: tensor.clone() for part, tensor in before.items()})
        for part, tensor in again.state().items():
            np.testing.assert_array_equal(tensor.cpu().float(), before[part].float(), err_msg=f"{name}: {part}")
            assert tensor.dtype == before[part].dtype


TESTED = {type(recipe(device="cpu")) for recipe in RECIPES.values()} | {LayerMoments, KeptSums}
TESTED_IN_STUDIES = {Details}  # test_cuda_studies.py: the table `details`


@contextlib.contextmanager
def suppress_missing_packages():
    """A machine that lacks an extra (a server, say) has none of the statistics of what needs it."""
    try:
        yield
    except ModuleNotFoundError as missing:
        if str(missing.name).startswith("universal_neurons"):
            raise


def test_every_statistic_of_the_package_has_a_test_here():
    for module in pkgutil.walk_packages(universal_neurons.__path__, "universal_neurons."):
        if not module.name.endswith("__main__"):
            with suppress_missing_packages():
                importlib.import_module(module.name)
    there, kinds = set(), [Accumulator]
    while kinds:
        below = [kind for kind in kinds.pop().__subclasses__() if kind.__module__.startswith("universal_neurons.")]
        there.update(below)
        kinds += below
    assert there == TESTED | TESTED_IN_STUDIES


@pytest.mark.parametrize("anew", [False, True], ids=["buffers", "new tensors"])
def test_what_is_handed_over_is_the_right_batch_where_the_reader_is_slow(device, anew):
    steps, size = 40, 1 << 20
    place = torch.device(device)
    buffers = [torch.zeros(size // 64, 64, device=device) for _ in range(overlap.BUFFERS)]

    def made():
        for number in range(steps):
            values = torch.zeros_like(buffers[0]) if anew else buffers[number % overlap.BUFFERS]
            values.fill_(number)
            sums = torch.full((64,), float(number), dtype=torch.float64, device=device)
            index = {BY_ROW: torch.full((len(values),), number, device=device)}
            yield number, Batch({Key("a"): Block(values, weight=1, _sums=sums)}, index=index)
            del values, sums, index

    read = []
    for _, batch in overlap.ahead(made(), place):
        if place.type == "cuda":
            torch.cuda._sleep(5_000_000)  # some milliseconds
        block = batch.blocks[Key("a")]
        read.append(torch.stack([block.values.double().mean(), block.sums.mean(), batch.index[BY_ROW].double().mean()]))
        del batch, block
    assert torch.stack(read).cpu().tolist() == [[number] * 3 for number in range(steps)]
