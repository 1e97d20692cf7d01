"""Products of sparse blocks against float64 NumPy: panels, layers, shuffled, badly conditioned columns."""

import numpy as np
import pytest
import torch

from universal_neurons.statistics import (
    Batch,
    Block,
    CoMoments,
    Key,
    LayerMoments,
    ShuffledCoMoments,
    round_to,
    seed_of,
)
from universal_neurons.statistics import sparse_products as sparse
from universal_neurons.units import Units

TOKENS, WIDTHS = 1200, (70, 110)
LATENTS, DENSE, SEED = sum(WIDTHS), 37, 5
EXACT = 1e-6  # of √(Σ(x−x̄)² Σ(y−ȳ)²): an error of a correlation


def latents_of(seed, every=64):
    """Latents of which one in `every` is active; the first is always, and stands far from 0; the last are never."""
    draw = np.random.default_rng(seed)
    values = draw.lognormal(0, 1, (TOKENS, LATENTS)) * (draw.random((TOKENS, LATENTS)) < 1 / every)
    values[:, 0] = 1000 + draw.standard_normal(TOKENS)
    values[:, 1] *= 1e4
    values[:, 2] = np.maximum(draw.standard_normal(TOKENS), 0) * 5
    values[:, -3:] = 0
    return torch.from_numpy(values).float()


def neurons_of(latents):
    """Columns that follow some latents: about 0, and far from it."""
    draw = np.random.default_rng(9)
    values = latents[:, 1 : 1 + DENSE].numpy() + draw.standard_normal((TOKENS, DENSE))
    values[:, ::2] += 3000
    return torch.from_numpy(values).float()


A, B = latents_of(1), latents_of(2)
B[:, 5:40] = A[:, 20:55] * 0.5
NEURONS = neurons_of(A)


def block_of(values, rows, rounding="float32"):
    mean = values[:200].mean(0)
    return Block(
        round_to(values[rows] - mean, rounding), "basis", mean, rounding=rounding, inactive=round_to(0 - mean, rounding)
    )


def feed(moments, left, right, shards=3, batches=2, rounding="float32"):
    for rows in np.array_split(np.arange(TOKENS), shards):
        for shard, some in enumerate(np.array_split(rows, batches)):
            sources = {"a": left, "b": right}
            blocks = {Key(name): block_of(values, some, rounding) for name, values in sources.items()}
            moments.update(Batch(blocks, shard=shard))
        moments.fold()
    return moments


def correlations(cross, left, right):
    """Correlations by a cross product and each side's own sums of squares, in float64."""
    sizes = [np.sqrt(((x.double() - x.double().mean(0)) ** 2).sum(0).numpy()) for x in (left, right)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return cross / np.outer(*sizes)


def centred(left, right):
    x, y = (values.double().numpy() for values in (left, right))
    return (x - x.mean(0)).T @ (y - y.mean(0))


def assert_same(found, left, right, tolerance=EXACT):
    expected = correlations(centred(left, right), left, right)
    np.testing.assert_allclose(correlations(found.numpy(), left, right), expected, rtol=0, atol=tolerance)


def test_what_is_sparse():
    rows = slice(0, 600)
    codes = block_of(A, rows).codes
    assert codes is not None
    rebuilt = codes.base.double() + torch.from_numpy(codes.active.T.toarray()).double()
    rebuilt[:, codes.often] += codes.of_often
    np.testing.assert_allclose(rebuilt, A[rows].double() - A[:200].mean(0).double(), atol=1e-4, rtol=1e-6)
    assert codes.often.tolist() == [0, 2]
    assert codes.base[codes.often].tolist() == [0, 0]  # shifted as they are
    assert codes.base[5] == -A[:200, 5].mean()
    assert block_of(NEURONS, rows).codes is None
    assert block_of(latents_of(3, every=16), rows).codes is None
    assert block_of(torch.zeros(TOKENS, 4), rows).codes is None
    assert Block(A).codes is None  # nobody says what inactive units have


PAIRS = {"left": (A, NEURONS), "right": (NEURONS, A), "both": (A, B), "itself": (A, A)}


@pytest.mark.parametrize("sides", PAIRS)
@pytest.mark.parametrize("compensated", [False, True])
@pytest.mark.parametrize("rows", [None, (3, 29)])
def test_co_moments_of_sparse_blocks(sides, compensated, rows, monkeypatch):
    monkeypatch.setattr(sparse, "TILE_COLUMNS", 16)
    monkeypatch.setattr(sparse, "ENTRIES_AT_ONCE", 100)
    left, right = PAIRS[sides]
    made = CoMoments("a", "b", left.shape[1], right.shape[1], rows=rows, compensated=compensated)
    found = feed(made, left, right).result().centred()
    assert_same(found, left[:, slice(*(rows or (None,)))], right)


def test_a_block_that_is_not_shifted_loses_digits_and_sparse_columns_lose_none(monkeypatch):
    """Why dense sides keep their shift, and columns that are always active with it."""
    dense = slice(0, None, 2)  # far from 0
    codes = block_of(A, slice(None)).codes
    raw = torch.zeros(LATENTS, NEURONS.shape[1])
    codes.times(NEURONS, raw)
    raw = raw.double() + torch.outer(codes.base.double(), NEURONS.double().sum(0))
    raw -= torch.outer(block_of(A, slice(None)).sums, NEURONS.double().mean(0))
    expected = correlations(centred(A, NEURONS), A, NEURONS)
    errors = np.abs(correlations(raw.numpy(), A, NEURONS) - expected)
    assert np.nanmax(errors[:, dense]) > 3 * EXACT
    assert_same(feed(CoMoments("a", "b", LATENTS, DENSE), A, NEURONS).result().centred(), A, NEURONS)

    unshifted = torch.from_numpy(A[:, :1].numpy().T @ B.numpy())  # of a latent that is always active
    unshifted = unshifted.double() - torch.outer(A[:, 0].double().sum()[None], B.double().mean(0))
    off = correlations(unshifted.numpy(), A[:, :1], B) - correlations(centred(A[:, :1], B), A[:, :1], B)
    assert np.nanmax(np.abs(off)) > 3 * EXACT


@pytest.mark.parametrize("widths", [WIDTHS, (90, 90), (180, 0)])
def test_products_within_layers(widths):
    found = feed(LayerMoments("a", Units(widths)), A, A).result()
    starts = np.cumsum([0, *widths])
    for layer, start, stop in zip(found.centred, starts, starts[1:]):
        assert_same(layer, A[:, start:stop], A[:, start:stop])


def test_shuffled_positions():
    made = ShuffledCoMoments("a", "b", 0, SEED, n_left=LATENTS, n_right=LATENTS)
    found = feed(made, A, B, shards=1, batches=1).result().centred()
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(seed_of("shuffle", SEED, 0, 0)))
    assert_same(found, A, B[order])


def test_batches_of_which_some_are_sparse_merge_and_restore():
    """The first half is dense: its blocks are multiplied so, and what is left to add is of the others alone."""
    left = A.clone()
    left[: TOKENS // 2] += torch.rand(TOKENS // 2, LATENTS, generator=torch.Generator().manual_seed(3))

    def add(made, start, stop):
        for some in np.arange(start, stop).reshape(-1, 50):
            made.update(Batch({Key("a"): block_of(left, some), Key("b"): block_of(B, some)}))
        made.fold()
        return made

    whole, one, two, again = (CoMoments("a", "b", LATENTS, LATENTS) for _ in range(4))
    add(add(whole, 0, 500), 500, TOKENS)
    add(one, 0, 500)
    again.restore({name: tensor.clone() for name, tensor in one.state().items()})
    add(again, 500, TOKENS)
    assert all(torch.equal(getattr(whole, name), getattr(again, name)) for name in ("left_sum", "right_sum", "cross"))
    one.merge(add(two, 500, TOKENS))
    for made in (whole, one):
        assert_same(made.result().centred(), left, B)


@pytest.mark.parametrize("rounding", ["bfloat16", "tf32"])
def test_rounded_blocks_are_those_numbers(rounding):
    rounded = [round_to(values - values[:200].mean(0), rounding) for values in (A, B, NEURONS)]
    assert block_of(A, slice(None), rounding).codes is not None
    for other, of_other in ((B, rounded[1]), (NEURONS, rounded[2])):
        made = feed(CoMoments("a", "b", LATENTS, other.shape[1]), A, other, rounding=rounding)
        assert_same(made.result().centred(), rounded[0], of_other)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_active(bad):
    values = A.clone()
    values[700, 5] = bad
    found = feed(LayerMoments("a", Units(WIDTHS)), values, values)
    assert found.non_finite() == ("a", 5)
