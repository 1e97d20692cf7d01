"""Statistics of single neurons four ways: one batch = many batches = any merge tree = plain float64 NumPy."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
import torch

from universal_neurons.errors import MergeError
from universal_neurons.statistics import (
    BY_POSITION,
    BY_WORD,
    FLOAT_BINS,
    Batch,
    Block,
    GroupMeans,
    Histogram,
    Key,
    Moments,
    SumSquares,
)
from universal_neurons.statistics.moments import FINITE_BINS, bin_edges

TOKENS, GROUPS = 6000, 12
CHOOSER = np.random.default_rng(0)
DISTRIBUTIONS = {
    "gaussian": CHOOSER.normal(size=TOKENS),
    "lognormal": CHOOSER.lognormal(sigma=1.5, size=TOKENS),
    "mirrored": -CHOOSER.lognormal(size=TOKENS),
    "offset": CHOOSER.normal(50, 1, TOKENS),
    "spikes": CHOOSER.normal(10, 1, TOKENS) * (CHOOSER.random(TOKENS) < 0.01),
    "small": CHOOSER.normal(1e-4, 1e-4, TOKENS),
}
VALUES = torch.from_numpy(np.stack(list(DISTRIBUTIONS.values()), 1)).float()
WIDTH = VALUES.shape[1]
MEAN = VALUES[::10].mean(0)
GROUP_OF = torch.from_numpy(CHOOSER.integers(0, GROUPS - 1, TOKENS))  # the last group is empty

MAKERS = {
    "Moments": lambda: Moments("a", WIDTH),
    "Histogram": lambda: Histogram("a", WIDTH),
    "SumSquares": lambda: SumSquares("a", WIDTH),
    "GroupMeans": lambda: GroupMeans("a", BY_WORD, GROUPS, WIDTH),
    "firing": lambda: GroupMeans("a", BY_WORD, GROUPS, WIDTH, of="firing"),
}
SHIFTED = ("SumSquares", "GroupMeans")  # these read values that are already shifted


def feed(name, accumulator, start=0, stop=TOKENS, parts=1):
    for rows in np.array_split(np.arange(start, stop), parts):
        values = VALUES[rows] - MEAN if name in SHIFTED else VALUES[rows]
        accumulator.update(Batch({Key("a"): Block(values, "shift", MEAN)}, index={BY_WORD: GROUP_OF[rows]}))
    accumulator.fold()
    return accumulator


def three_ways(name):
    one = feed(name, MAKERS[name]())
    many = feed(name, MAKERS[name](), parts=37)
    parts = [feed(name, MAKERS[name](), *cut) for cut in pairwise([0, 7, 1800, 3100, 5000, TOKENS])]
    tree = MAKERS[name]()
    parts[0].merge(parts[1])
    parts[3].merge(parts[2])
    parts[4].merge(parts[3])
    tree.merge(parts[4])
    tree.merge(parts[0])
    assert one.count == many.count == tree.count == TOKENS
    return [one.result(), many.result(), tree.result()]


def assert_same(first, second):
    assert first.count == second.count
    for one, other in zip(vars(first.result()).values(), vars(second.result()).values(), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def single_moments(values, mean=None):
    moments = Moments("a", values.shape[1])
    moments.update(Batch({Key("a"): Block(values, mean=mean)}))
    return moments.result()


def test_moments_are_scipys():
    exact = VALUES.double().numpy()
    for found in three_ways("Moments"):
        assert (np.abs(found.mean.numpy() - exact.mean(0)) <= 1e-6 * exact.std(0)).all()
        np.testing.assert_allclose(found.var, exact.var(0), rtol=1e-5)
        np.testing.assert_allclose(found.skew, scipy.stats.skew(exact, bias=True), rtol=1e-5)
        np.testing.assert_allclose(found.kurt, scipy.stats.kurtosis(exact, bias=True, fisher=False), rtol=1e-5)
        np.testing.assert_array_equal(found.low, exact.min(0))
        np.testing.assert_array_equal(found.high, exact.max(0))


def test_a_gaussians_kurtosis_is_three():
    values = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))
    assert single_moments(values).kurt.item() == pytest.approx(3, abs=0.05)


def test_the_positive_share_leaves_zeros_out():
    exact = VALUES.numpy()
    assert (exact == 0).mean() > 0.1
    for found in three_ways("Moments"):
        np.testing.assert_array_equal(found.positive, (exact > 0).mean(0))
    signs = torch.tensor([[0.0], [-0.0], [1e-45], [-1.0]])
    assert single_moments(signs).positive.tolist() == [0.25]


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.3, 1e6])
@pytest.mark.parametrize("mean", [None, 0.25])
def test_a_constant_has_no_skew_and_no_kurtosis(constant, mean):
    values = torch.full((1000, 1), constant)
    found = single_moments(values, None if mean is None else torch.tensor([mean]))
    assert found.mean.item() == values[0].item()  # exactly, so that it is not above its own maximum
    assert found.var.item() == 0
    assert np.isnan(found.skew.item())
    assert np.isnan(found.kurt.item())


def test_the_mean_is_never_outside_what_was_seen():
    values = torch.full((999, 2), 0.1)
    values[:, 1] = -0.7
    values[0] = values[0].nextafter(torch.tensor(0.0))
    found = single_moments(values)
    assert (found.mean >= found.low.double()).all()
    assert (found.mean <= found.high.double()).all()


def test_histograms_count_what_numpy_counts():
    finite = bin_edges(torch.arange(FINITE_BINS))
    edges = np.append(finite[0].numpy(), finite[1][-1].item())
    assert (np.diff(edges) > 0).all()
    for found in three_ways("Histogram"):
        assert found.counts.sum(0).tolist() == [TOKENS] * WIDTH
        for neuron, values in enumerate(VALUES.double().numpy().T):
            negative = np.signbit(values)
            expected = dict.fromkeys(zip(found.low.tolist(), found.high.tolist()), 0)
            for sign in (False, True):
                counts, _ = np.histogram(np.abs(values[negative == sign]), edges)
                for at in counts.nonzero()[0]:
                    low, high = edges[at], edges[at + 1]
                    expected[(-high, -low) if sign else (low, high)] = counts[at]
            assert list(expected.values()) == found.counts[:, neuron].tolist()


def extreme_values():
    magnitudes = [0.0, 1e-45, 1e-40, 1e-38, 1.1754944e-38, 1e-30, 1e-10, 0.1, 1.0, 1.125, 1.1249999, 2.0, 3.7, 1e10]
    magnitudes += [1e30, 3.4028235e38]
    chosen = 10.0 ** CHOOSER.uniform(-30, 30, 500)
    positive = torch.tensor(np.concatenate([magnitudes, chosen]), dtype=torch.float32)
    return torch.cat([positive, -positive])


def test_every_float_has_a_bin():
    for value in extreme_values():
        histogram = Histogram("a", 1)
        histogram.update(Batch({Key("a"): Block(value.view(1, 1))}))
        found = histogram.result()
        low, high = found.low.item(), found.high.item()
        assert found.counts.tolist() == [[1]]
        number = value.double().item()
        low, high = (-high, -low) if np.signbit(number) else (low, high)
        assert low <= abs(number) < high


def test_bins_are_in_ascending_order_and_do_not_overlap():
    histogram = Histogram("a", 1)
    histogram.update(Batch({Key("a"): Block(extreme_values()[:, None])}))
    found = histogram.result()
    assert (found.low < found.high).all()
    assert (found.high[:-1] <= found.low[1:]).all()
    assert found.counts.sum() == len(extreme_values())


def test_bins_cover_every_float_and_are_an_eighth_of_a_power_of_two():
    codes = torch.arange(FLOAT_BINS)
    codes = codes[codes % (FLOAT_BINS // 2) < FINITE_BINS]
    low, high = (edges.sort().values for edges in bin_edges(codes))
    assert (low[0], high[-1]) == (-(2.0**128), 2.0**128)
    torch.testing.assert_close(low[1:], high[:-1], rtol=0, atol=0)
    low, high = bin_edges(torch.arange(8, FINITE_BINS))
    assert (high / low <= 1.125).all()


def test_histograms_of_different_widths_are_not_merged():
    with pytest.raises(MergeError):
        Histogram("a", WIDTH).merge(Histogram("a", 1))


def test_sum_squares_are_numpys():
    exact = (VALUES - MEAN).double().numpy()
    for found in three_ways("SumSquares"):
        np.testing.assert_allclose(found.sum, exact.sum(0), atol=1e-6 * np.abs(exact).sum(0).max())
        np.testing.assert_allclose(found.squares, (exact**2).sum(0), rtol=2e-6)
        np.testing.assert_allclose(found.centred, exact.var(0) * TOKENS, rtol=2e-6)


def test_group_means_are_numpys():
    exact, where = VALUES.double().numpy(), GROUP_OF.numpy()
    for found in three_ways("GroupMeans"):
        means = found.means(MEAN.double()).numpy()
        assert found.counts.tolist() == np.bincount(where, minlength=GROUPS).tolist()
        for group in range(GROUPS - 1):
            np.testing.assert_allclose(means[group], exact[where == group].mean(0), rtol=1e-5, atol=1e-6)
        assert np.isnan(means[-1]).all()
        assert not found.sums[-1].any()


def test_firing_counts_values_above_zero():
    values, where = VALUES.numpy(), GROUP_OF.numpy()
    for found in three_ways("firing"):
        for group in range(GROUPS):
            assert found.sums[group].tolist() == (values[where == group] > 0).sum(0).tolist()


@pytest.mark.parametrize("name", MAKERS)
def test_state_and_restore_go_on_to_the_same_bits(name):
    first, second = feed(name, MAKERS[name](), 0, 2500, 3), MAKERS[name]()
    feed(name, second, 3000)  # restoring takes the place of what was there
    second.restore({key: tensor.clone() for key, tensor in first.state().items()})
    assert_same(first, second)
    for accumulator in (first, second):
        feed(name, accumulator, 2500, TOKENS, 5)
    assert_same(first, second)


def test_moments_restore_their_provisional_mean():
    first, second = feed("Moments", MAKERS["Moments"]()), MAKERS["Moments"]()
    second.restore(first.state())
    assert_same(first, second)


@pytest.mark.parametrize("name", MAKERS)
def test_merging_with_nothing_changes_nothing(name):
    merged = MAKERS[name]()
    merged.merge(feed(name, MAKERS[name](), 0, 500))
    merged.merge(MAKERS[name]())
    assert_same(merged, feed(name, MAKERS[name](), 0, 500))


@pytest.mark.parametrize("name", MAKERS)
def test_merge_refuses_different_provisional_means(name):
    parts = [MAKERS[name](), MAKERS[name]()]
    for part, basis in zip(parts, ("one shift", "another")):
        part.update(Batch({Key("a"): Block(VALUES, basis, MEAN)}, index={BY_WORD: GROUP_OF}))
    with pytest.raises(MergeError, match="provisional means"):
        parts[0].merge(parts[1])


def test_moments_restored_or_merged_before_keep_their_provisional_mean():
    another = MAKERS["Moments"]()
    another.update(Batch({Key("a"): Block(VALUES, "another", MEAN + 1)}))
    restored, merged = MAKERS["Moments"](), MAKERS["Moments"]()
    restored.restore(feed("Moments", MAKERS["Moments"]()).state())
    merged.merge(feed("Moments", MAKERS["Moments"]()))
    for moments in (restored, merged):
        with pytest.raises(MergeError, match="provisional means"):
            moments.merge(another)


def test_merge_refuses_another_model_or_grouping():
    with pytest.raises(MergeError):
        MAKERS["Moments"]().merge(Moments("b", WIDTH))
    with pytest.raises(MergeError):
        MAKERS["GroupMeans"]().merge(MAKERS["firing"]())
    with pytest.raises(MergeError):
        MAKERS["GroupMeans"]().merge(GroupMeans("a", BY_POSITION, GROUPS, WIDTH))
    with pytest.raises(MergeError):
        MAKERS["GroupMeans"]().merge(GroupMeans("a", BY_WORD, GROUPS + 1, WIDTH))


@pytest.mark.parametrize("name", ["Moments", "SumSquares"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_non_finite_values_are_located(name, bad):
    accumulator = feed(name, MAKERS[name](), 0, 300)
    assert accumulator.non_finite() is None
    values = VALUES.clone()
    values[5, 3] = bad
    accumulator.update(Batch({Key("a"): Block(values, "shift", MEAN)}))
    assert accumulator.non_finite() == ("a", 3)
