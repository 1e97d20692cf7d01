"""Sketches: signs and groups, exact centring, errors against their bounds, the bias of a maximum."""

import itertools

import numpy as np
import pytest
import torch

from universal_neurons.errors import MergeError
from universal_neurons.statistics import (
    Batch,
    Block,
    Certainty,
    CoMoments,
    Key,
    ShardEnergies,
    SignedSums,
    Signs,
    SumSquares,
    What,
    quantile_of,
    winners_curse,
)
from universal_neurons.statistics.certainty import expected_maximum

CPU = torch.device("cpu")
SIZES = (512, 512, 300)  # positions of the shards
NEURONS = 12


def heavy_tailed(seed, energies=(1.0, 0.2, 3.0)):
    """Two models' activations, some of them shared, shard by shard; shards differ in energy."""
    draw = np.random.default_rng(seed)
    found = []
    for positions, energy in zip(SIZES, energies):
        common, noise = draw.standard_normal((positions, NEURONS)), draw.standard_normal((2, positions, NEURONS))
        share = np.linspace(0, 0.9, NEURONS)
        pair = np.exp(share * common + np.sqrt(1 - share**2) * noise) - np.exp(0.5)
        found.append((energy * pair).astype(np.float32))
    return found


def sums_of(values, signs, shard, basis="", splits=(), rounding="float32"):
    """A shard's sums as the pass makes them."""
    group, sign = signs.of(shard, len(values))
    sums = SignedSums(values.shape[1], CPU, torch.float32)
    sums.start(signs.groups(len(values)))
    for rows in np.split(np.arange(len(values)), splits):
        sums.add(torch.from_numpy(values[rows]), group[rows], sign[rows])
    return sums.finish(basis, np.bincount(group, sign, signs.groups(len(values))), rounding)


def by_loop(values, group, sign):
    total = np.zeros((group.max() + 1, values.shape[1]))
    for row, k, s in zip(values.astype(np.float64), group, sign):
        total[k] += s * row
    return total


@pytest.mark.parametrize(("size", "positions"), [(64, 1024), (64, 1000), (7, 100), (2, 9), (64, 10), (5, 1)])
def test_groups_are_balanced_and_signs_even(size, positions):
    signs = Signs(size, 3)
    group, sign = signs.of(0, positions)
    counts = np.bincount(group, minlength=signs.groups(positions))
    assert len(counts) == signs.groups(positions) == int(np.ceil(positions / size))
    assert counts.max() - counts.min() <= 1
    assert counts.max() <= size
    assert set(sign) <= {1.0, -1.0}
    assert abs(sign.sum()) <= 5 * np.sqrt(positions)


def test_signs_are_the_seeds_and_the_shards():
    group, sign = Signs(8, 1).of(0, 256)
    for same, again in zip((group, sign), Signs(8, 1).of(0, 256)):
        np.testing.assert_array_equal(same, again)
    for other in (Signs(8, 2).of(0, 256), Signs(8, 1).of(1, 256), Signs(16, 1).of(0, 256)):
        assert 0.4 < (other[1] == sign).mean() < 0.6
        assert (other[0] == group).mean() < 0.2


@pytest.mark.parametrize(("size", "positions"), [(4, 20), (4, 21), (4, 23), (8, 8), (8, 3), (3, 1), (2, 2)])
def test_the_chance_to_share_a_group_is_counted(size, positions):
    group, _ = Signs(size, 0).of(5, positions)
    pairs = list(itertools.permutations(range(positions), 2))
    shared = sum(group[i] == group[j] for i, j in pairs) / max(len(pairs), 1)
    assert Signs(size, 0).together(positions) == pytest.approx(shared)


@pytest.mark.parametrize("splits", [(), (100,), (1, 2, 300), tuple(range(50, 512, 50))])
def test_signed_sums_are_a_loops_for_any_batches(splits):
    values = heavy_tailed(0)[0][0]
    signs = Signs(16, 7)
    block = sums_of(values, signs, 0, splits=splits)
    group, sign = signs.of(0, len(values))
    expected = by_loop(values, group, sign)
    np.testing.assert_allclose(block.values.numpy(), expected, rtol=1e-5, atol=1e-5)
    n = by_loop(np.ones((len(values), 1)), group, sign)[:, 0]
    assert block.count == n @ n
    np.testing.assert_allclose(block.sums.numpy(), n @ block.values.double().numpy(), rtol=1e-12, atol=1e-9)


def test_sums_begin_anew_with_every_shard():
    sums = SignedSums(2, CPU, torch.float32)
    for groups in (4, 4, 2):
        sums.start(groups)
        sums.add(torch.ones(groups, 2), np.arange(groups), np.ones(groups))
        assert torch.equal(sums.finish("", np.ones(groups), "float32").values, torch.ones(groups, 2))


@pytest.mark.parametrize(("rounding", "tolerance"), [("float32", 1e-5), ("tf32", 2e-3), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("off", [0.0, 0.5, -3.0])
def test_centring_is_exact_whatever_the_provisional_mean(off, rounding, tolerance):
    """Off by half a standard deviation, and by more: the same correlations as of exactly centred values."""
    shards, signs = heavy_tailed(1), Signs(16, 2)
    whole = [np.concatenate([shard[side] for shard in shards]).astype(np.float64) for side in (0, 1)]
    wrong = [part.mean(0) + off * part.std(0) for part in whole]
    cross = CoMoments(Key("a", What.SUMS), Key("b", What.SUMS), NEURONS, NEURONS)
    spread = [SumSquares(Key(name, What.SUMS), NEURONS, group=0) for name in "ab"]
    for number, pair in enumerate(shards):
        shifted = [(part - mean).astype(np.float32) for part, mean in zip(pair, wrong)]
        blocks = [sums_of(part, signs, number, rounding=rounding) for part in shifted]
        batch = Batch({Key("a", What.SUMS): blocks[0], Key("b", What.SUMS): blocks[1]}, shard=number)
        for part in (cross, *spread):
            part.update(batch)
            part.fold()
    norms = [part.result().centred.numpy() for part in spread]
    found = cross.result().centred().numpy() / np.sqrt(np.outer(*norms))
    sums, n = [[], []], []
    for number, pair in enumerate(shards):
        group, sign = signs.of(number, len(pair[0]))
        n.append(by_loop(np.ones((len(group), 1)), group, sign)[:, 0])
        for side in (0, 1):
            sums[side].append(by_loop(pair[side] - whole[side].mean(0), group, sign))
    n = np.concatenate(n)
    u, v = (np.concatenate(part) for part in sums)
    u, v = (part - np.outer(n, n @ part / (n @ n)) for part in (u, v))
    expected = u.T @ v / np.sqrt(np.outer((u**2).sum(0), (v**2).sum(0)))
    np.testing.assert_allclose(found, expected, atol=tolerance)


@pytest.fixture(scope="module")
def many():
    """Σuv, Σu² and Σv² of 400 seeds of signs, with what they estimate and their bounds."""
    shards, size = heavy_tailed(2), 16
    exact = sum(a.T.astype(np.float64) @ b for a, b in shards)
    energy = [np.stack([(pair[side].astype(np.float64) ** 2).sum(0) for pair in shards]) for side in (0, 1)]
    cross, squares = [], []
    for seed in range(400):
        signs = Signs(size, seed)
        total, own = np.zeros((NEURONS, NEURONS)), np.zeros((2, NEURONS))
        for number, pair in enumerate(shards):
            u, v = (sums_of(part, signs, number).values.double().numpy() for part in pair)
            total += u.T @ v
            own += np.stack([(u**2).sum(0), (v**2).sum(0)])
        cross.append(total)
        squares.append(own)
    together = np.array([Signs(size, 0).together(positions) for positions in SIZES])
    v = [np.sqrt((together[:, None] * e**2).sum(0)) / e.sum(0) for e in energy]
    w = np.einsum("h,hi,hj->ij", together, *energy) / np.outer(energy[0].sum(0), energy[1].sum(0))
    return np.array(cross), np.array(squares), exact, np.sqrt(np.outer(energy[0].sum(0), energy[1].sum(0))), v, w


def test_sketched_products_are_unbiased(many):
    cross, _, exact, _, _, _ = many
    for half in (cross[:200], cross[200:]):
        error = half.std(0, ddof=1) / np.sqrt(200)
        assert (np.abs(half.mean(0) - exact) <= 4 * error).all()


def test_the_variance_of_sketched_products_is_within_its_bound(many):
    cross, _, _, norms, v, w = many
    found = (cross / norms).var(0)
    assert (w <= np.outer(*v) * (1 + 1e-12)).all()
    assert (found <= 2 * np.outer(*v) * 1.15).all()
    assert np.median(found / w) > 0.5  # a bound, but not a void one


def test_fishers_z_varies_by_about_w(many):
    cross, squares, _, _, v, w = many
    z = np.arctanh(cross / np.sqrt(squares[:, 0, :, None] * squares[:, 1, None, :]))
    ratio = z.var(0) / w
    assert 0.85 < np.median(ratio) < 1.15
    assert ratio.max() < 1.45  # 400 seeds know a variance to 7 %, and these sums are few
    assert np.median(z.var(0) / np.outer(*v)) < 1.15


def energies(parts):
    """`parts`: (shard number, values) of every shard to read, in batches."""
    found = ShardEnergies("a", NEURONS, Signs(16, 0))
    for number, batches in parts:
        for values in batches:
            found.update(Batch({Key("a"): Block(torch.from_numpy(values))}, shard=number))
        found.fold()
    return found


def test_shard_energies_four_ways():
    shards = [pair[0] for pair in heavy_tailed(3)]
    one = energies([(n, [shard]) for n, shard in enumerate(shards)])
    many = energies([(n, np.array_split(shard, 7)) for n, shard in enumerate(shards)])
    parts = [energies([(n, np.array_split(shard, n + 1))]) for n, shard in enumerate(shards)]
    parts[2].merge(parts[0])
    parts[1].merge(parts[2])
    restored = ShardEnergies("a", NEURONS, Signs(16, 0))
    restored.restore(many.state())
    energy = np.stack([(shard.astype(np.float64) ** 2).sum(0) for shard in shards])
    together = np.array([Signs(16, 0).together(len(shard)) for shard in shards])
    expected = np.sqrt((together[:, None] * energy**2).sum(0)) / energy.sum(0)
    largest = (together[:, None] * energy).max(0) / energy.sum(0)
    fourths = np.stack([(shard.astype(np.float64) ** 4).sum(0) for shard in shards])
    fourth = np.sqrt((together[:, None] * fourths**2).sum(0)) / energy.sum(0) ** 2
    even = (together * np.array(SIZES) ** 2).sum() / sum(SIZES) ** 2
    for found in (one, many, parts[1], restored):
        assert found.count == sum(SIZES)
        result = found.result()
        np.testing.assert_allclose(result.v.numpy(), expected, rtol=1e-5)
        np.testing.assert_allclose(result.largest.numpy(), largest, rtol=1e-5)
        np.testing.assert_allclose(result.fourth.numpy(), fourth, rtol=1e-5)
        np.testing.assert_allclose(result.total.numpy(), energy.sum(0), rtol=1e-5)
        assert float(result.even) == pytest.approx(even)
    with pytest.raises(MergeError):
        one.merge(ShardEnergies("b", NEURONS, Signs(16, 0)))


def test_even_energy_has_the_least_possible_error():
    values = np.random.default_rng(0).choice([-1.0, 1.0], (4, 256, NEURONS)).astype(np.float32)
    result = energies([(n, [shard]) for n, shard in enumerate(values)]).result()
    np.testing.assert_allclose(result.v.numpy(), np.sqrt(float(result.even)), rtol=1e-6)
    uneven = values * np.array([1, 1, 1, 5], np.float32)[:, None, None]
    assert (energies([(n, [shard]) for n, shard in enumerate(uneven)]).result().v > result.v).all()


@pytest.mark.parametrize("spread", [0.0, 0.05, 1.0])
def test_the_expected_maximum_is_monte_carlos(spread):
    draw = np.random.default_rng(1)
    means = spread * draw.standard_normal((6, 16))
    errors = 0.02 + 0.1 * draw.random((6, 16))
    samples = (means[:, :, None] + errors[:, :, None] * draw.standard_normal((6, 16, 100_000))).max(1)
    found = expected_maximum(torch.from_numpy(means), torch.from_numpy(errors)).numpy()
    assert (np.abs(found - samples.mean(1)) <= 4 * samples.std(1) / np.sqrt(100_000) + 1e-4).all()


def certain(w, askers, others=400):
    v = [torch.full((count,), np.sqrt(w)).double() for count in (askers, others)]
    return Certainty(*v, torch.tensor(w).double(), *(part.expand(4, -1) for part in v))


def test_a_clear_winner_carries_no_curse_and_ties_do():
    corr = torch.tensor([[0.9, *[0.1] * 15], [0.2] * 16, [0.2, 0.2, *[-0.5] * 14]]).double()
    index = torch.arange(16).expand(3, 16)
    found = winners_curse(corr, index, certain(1e-3, 3)).numpy()
    error = np.sqrt(1e-3) * (1 - 0.2**2)
    assert abs(found[0]) < 1e-4
    assert found[1] == pytest.approx(1.766 * error, rel=0.01)  # the mean of the highest of 16 Gaussians
    assert found[2] == pytest.approx(error / np.sqrt(np.pi), rel=0.01)  # of two


def test_the_curse_of_dead_neurons_is_not_a_number():
    corr = torch.tensor([[torch.nan] * 16, [0.3] * 16]).double()
    index = torch.tensor([[-1] * 16, list(range(16))])
    certainty = certain(1e-3, 2)
    certainty.asker[0] = torch.nan
    found = winners_curse(corr, index, certainty)
    assert torch.isnan(found[0])
    assert found[1] > 0


def test_taking_the_curse_off_lowers_the_bias_and_never_overshoots():
    """The worst case, 16 others of equal ρ: their sketched ρ look spread out, so a part of the bias is seen."""
    draw = torch.Generator().manual_seed(2)
    w = 1e-3
    corr = 0.1 + np.sqrt(w) * (1 - 0.1**2) * torch.randn(4000, 16, generator=draw, dtype=torch.float64)
    corr = corr.sort(1, descending=True).values
    found = corr[:, 0] - winners_curse(corr, torch.arange(16).expand(4000, 16), certain(w, 4000))
    bias, left = float(corr[:, 0].mean()) - 0.1, float(found.mean()) - 0.1
    assert bias > 0.05
    assert 0 < left < 0.65 * bias


@pytest.mark.parametrize(("certificates", "delta"), [(1, 0.05), (300, 0.01), (10**7, 0.01), (0, 0.01)])
def test_all_certificates_are_right_but_for_delta(certificates, delta):
    from math import erfc, sqrt

    z = quantile_of(certificates, delta)
    assert max(certificates, 1) * 0.5 * erfc(z / sqrt(2)) == pytest.approx(delta, rel=1e-9)


def test_the_reach_of_pairs_is_that_of_the_matrix():
    v = torch.tensor([0.1, 0.4]), torch.tensor([0.2, 0.3, 0.5])
    certainty = Certainty(*v, torch.tensor(0.01), *(part.expand(4, -1) for part in v))
    whole = certainty.reach(2.0, slice(None))
    np.testing.assert_allclose(whole.numpy(), 2 * np.sqrt(np.outer([0.1, 0.4], [0.2, 0.3, 0.5])), rtol=1e-6)
    index = torch.tensor([[2, 0], [1, -1]])
    some = certainty.reach(2.0, slice(None), index)
    np.testing.assert_allclose(some[0], whole[0, [2, 0]])
    np.testing.assert_allclose(some[1, 0], whole[1, 1])
    part = certainty.part(slice(1, 2), slice(1, 3))
    np.testing.assert_allclose(part.reach(2.0, slice(None)), whole[1:, 1:])
