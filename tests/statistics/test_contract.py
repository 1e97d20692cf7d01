"""Each statistic four ways: one batch = many batches = any merge tree = plain float64 NumPy."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from universal_neurons.errors import MergeError
from universal_neurons.matching import PairedMoments
from universal_neurons.statistics import (
    Accumulator,
    Batch,
    Block,
    CoMoments,
    Extremes,
    Key,
    LayerMoments,
    ShuffledCoMoments,
)
from universal_neurons.storage import FileInParts, KeptSums
from universal_neurons.units import Units

TOKENS, LAYERS, WIDTH = 1200, 2, 3
GENERATOR = torch.Generator().manual_seed(0)
LEFT = torch.randn(TOKENS, LAYERS * WIDTH, generator=GENERATOR).exp()
RIGHT = LEFT @ torch.randn(LAYERS * WIDTH, 4, generator=GENERATOR) + torch.randn(TOKENS, 4, generator=GENERATOR)
MATCH = torch.tensor([0, 1, 2, 3, 3, 0])

MAKERS = {
    "CoMoments": lambda: CoMoments("a", "b", LAYERS * WIDTH, 4),
    "LayerMoments": lambda: LayerMoments("a", Units.equal(LAYERS, WIDTH)),
    "Extremes": lambda: Extremes("a", LAYERS * WIDTH),
    "PairedMoments": lambda: PairedMoments("a", "b", MATCH, 2),
}


def feed(accumulator, start, stop, parts=1):
    for rows in np.array_split(np.arange(start, stop), parts):
        batch = Batch({Key("a"): Block(LEFT[rows]), Key("b"): Block(RIGHT[rows])}, shard=int(rows[0] >= TOKENS // 2))
        accumulator.update(batch)
    accumulator.fold()
    return accumulator


def result(name, accumulator):
    found = accumulator.result()
    if name == "CoMoments":
        return found.centred().numpy()
    if name == "LayerMoments":
        return found.centred.numpy()
    if name == "Extremes":
        return torch.stack([accumulator.low, accumulator.high]).numpy()
    return np.concatenate([found.corr.value[None], found.corr.without])


def by_numpy(name):
    a, b = LEFT.double().numpy(), RIGHT.double().numpy()
    centred = a - a.mean(0)
    if name == "CoMoments":
        return centred.T @ (b - b.mean(0))
    if name == "LayerMoments":
        return np.stack([part.T @ part for part in np.split(centred, LAYERS, 1)])
    if name == "Extremes":
        return np.stack([a.min(0), a.max(0)])
    half = TOKENS // 2
    kept = [slice(None), slice(half, None), slice(0, half)]
    return np.array([[np.corrcoef(a[rows, i], b[rows, j])[0, 1] for i, j in enumerate(MATCH)] for rows in kept])


@pytest.mark.parametrize("name", MAKERS)
def test_four_ways(name):
    make = MAKERS[name]
    expected = by_numpy(name)
    scale = np.abs(expected).max()
    one = feed(make(), 0, TOKENS, 2)  # two batches, so that a batch lies in one stretch
    many = feed(make(), 0, TOKENS, 24)
    cuts = [0, 100, 350, 600, 1100, TOKENS]
    parts = [feed(make(), *cut, 1) for cut in pairwise(cuts)]
    parts[0].merge(parts[1])
    parts[3].merge(parts[2])
    parts[4].merge(parts[3])
    parts[4].merge(parts[0])
    tree = parts[4]
    assert one.count == many.count == tree.count == TOKENS
    for accumulator in (one, many, tree):
        np.testing.assert_allclose(result(name, accumulator), expected, rtol=2e-6, atol=2e-6 * scale)


@pytest.mark.parametrize("name", MAKERS)
def test_state_and_restore(name):
    first = feed(MAKERS[name](), 0, TOKENS // 2)
    second = MAKERS[name]()
    second.restore({key: tensor.clone() for key, tensor in first.state().items()})
    feed(first, TOKENS // 2, TOKENS)
    feed(second, TOKENS // 2, TOKENS)
    np.testing.assert_array_equal(result(name, first), result(name, second))


def test_merge_refuses_what_does_not_belong_together():
    with pytest.raises(MergeError):
        MAKERS["CoMoments"]().merge(CoMoments("a", "c", LAYERS * WIDTH, 4))
    with pytest.raises(MergeError):
        MAKERS["CoMoments"]().merge(CoMoments("a", "b", LAYERS * WIDTH, 5))
    with pytest.raises(MergeError):
        MAKERS["Extremes"]().merge(Extremes("b", LAYERS * WIDTH))
    with pytest.raises(MergeError):
        MAKERS["LayerMoments"]().merge(MAKERS["Extremes"]())
    with pytest.raises(MergeError, match="matches"):
        MAKERS["PairedMoments"]().merge(PairedMoments("a", "b", MATCH.flip(0), 2))
    parts = [MAKERS["Extremes"]() for _ in range(2)]
    for part, basis in zip(parts, ("one shift", "another")):
        part.update(Batch({Key("a"): Block(LEFT, basis)}))
    with pytest.raises(MergeError, match="provisional means"):
        parts[0].merge(parts[1])


def test_the_shift_does_not_change_the_answer_and_keeps_it_exact():
    """A large mean destroys unshifted float32 products; shifted ones are exact to rounding."""
    values = LEFT + 10_000
    shift = values.mean(0)
    moments = LayerMoments("a", Units.equal(LAYERS, WIDTH))
    moments.update(Batch({Key("a"): Block(values - shift)}))
    exact = values.double().numpy()
    exact = exact - exact.mean(0)
    expected = np.stack([part.T @ part for part in np.split(exact, LAYERS, 1)])
    np.testing.assert_allclose(moments.result().centred.numpy(), expected, rtol=1e-5, atol=1e-3)


def test_shuffled_positions_do_not_depend_on_batches():
    def shuffled(parts):
        moments = ShuffledCoMoments("a", "b", 0, 7, group=0, n_left=LAYERS * WIDTH, n_right=4)
        for shard, (start, stop) in enumerate([(0, 600), (600, TOKENS)]):
            for rows in np.array_split(np.arange(start, stop), parts):
                moments.update(Batch({Key("a"): Block(LEFT[rows]), Key("b"): Block(RIGHT[rows])}, shard=shard))
            moments.fold()
        return moments.result()

    one, many = shuffled(1), shuffled(5)
    torch.testing.assert_close(one.centred(), many.centred(), rtol=1e-5, atol=1e-2)
    plain = feed(MAKERS["CoMoments"](), 0, TOKENS).result()
    torch.testing.assert_close(one.right_sum, plain.right_sum, rtol=1e-6, atol=1e-3)
    assert one.centred().abs().max() < 0.3 * plain.centred().abs().max()


def test_non_finite_values_are_located():
    values = LEFT.clone()
    values[5, WIDTH + 1] = torch.nan
    moments = LayerMoments("a", Units.equal(LAYERS, WIDTH))
    moments.update(Batch({Key("a"): Block(values)}))
    moments.fold()
    assert moments.non_finite() == ("a", WIDTH + 1)
    assert feed(MAKERS["LayerMoments"](), 0, TOKENS).non_finite() is None


class Kept(Accumulator):
    """A statistic that keeps its data where no merge looks."""

    def update(self, batch):
        self.count += 1


def test_a_statistic_that_declares_no_tensors_does_not_merge():
    one, other = Kept(("a",)), Kept(("a",))
    with pytest.raises(MergeError, match="cannot merge"):
        one.merge(other)


def test_rows_of_two_files_do_not_merge(tmp_path):
    shapes = {"sums": (torch.float32, (2, 3))}
    files = [FileInParts(tmp_path / name, shapes, "{}") for name in "ab"]
    one, other = (KeptSums("m", file, "sums", {0: 0}) for file in files)
    with pytest.raises(MergeError, match="cannot merge"):
        one.merge(other)
