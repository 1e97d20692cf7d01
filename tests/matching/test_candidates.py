"""Screened search on planted data: candidates, exact correlations, certificates, against float64 NumPy."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from universal_neurons.errors import MergeError
from universal_neurons.matching import Candidates, Evidence, exact_matches, how_many, least_best, pairs_of
from universal_neurons.matching import candidates as screening
from universal_neurons.matching.candidates import propose
from universal_neurons.matching.correlation import find_matches
from universal_neurons.passes import state_of
from universal_neurons.statistics import (
    CANDIDATES_SEEN,
    Batch,
    Block,
    CoMoments,
    CrossMoments,
    Extremes,
    Key,
    ShardEnergies,
    SignedSums,
    Signs,
    Statistics,
    SumSquares,
    What,
    quantile_of,
)

N_LEFT, N_RIGHT, SHARED = 310, 300, 20
SHARDS, POSITIONS, GROUP_SIZE = 8, 2048, 16
DEAD_LEFT, DEAD_RIGHT = 33, 44
VOID = 300.0  # a z whose bounds rule out nothing


def planted(seed=0):
    """Heavy-tailed neurons of two models on a few common directions; the first of both are shared, from ρ ≈ 0.3 up."""
    draw = np.random.default_rng(seed)
    n = SHARDS * POSITIONS
    common = draw.standard_normal((n, 6))
    left, right = (
        np.exp(0.35 * common @ draw.standard_normal((6, width)) / 2 + 0.6 * draw.standard_normal((n, width)))
        for width in (N_LEFT, N_RIGHT)
    )
    share = np.linspace(0.35, 0.98, SHARED)
    mine = left[:, :SHARED]
    noise = np.exp(0.7 * draw.standard_normal((n, SHARED)))
    right[:, :SHARED] = share * mine / mine.std(0) + np.sqrt(1 - share**2) * noise / noise.std(0)
    left[:, DEAD_LEFT], right[:, DEAD_RIGHT] = 0.7, -0.2
    values = [(part - part.mean(0)).astype(np.float32) for part in (left, right)]
    values[0][:, DEAD_LEFT] = values[1][:, DEAD_RIGHT] = 0
    return values


def rho_by_numpy(a, b):
    a, b = (part.astype(np.float64) - part.astype(np.float64).mean(0) for part in (a, b))
    with np.errstate(invalid="ignore"):
        return a.T @ b / np.sqrt(np.outer((a**2).sum(0), (b**2).sum(0)))


@pytest.fixture(scope="module")
def data():
    left, right = planted()
    return left, right, rho_by_numpy(left, right)


def by_shard(left, right, seed):
    """Every shard's batch: two models' values and their signed sums."""
    signs = Signs(GROUP_SIZE, seed)
    for shard, (a, b) in enumerate(zip(np.split(left, SHARDS), np.split(right, SHARDS))):
        group, sign = signs.of(shard, len(a))
        n = np.bincount(group, sign, signs.groups(len(a)))
        blocks = {}
        for name, part in (("a", a), ("b", b)):
            values = torch.from_numpy(part)
            sums = SignedSums(part.shape[1], torch.device("cpu"), torch.float32)
            sums.start(len(n))
            sums.add(values, group, sign)
            blocks |= {Key(name): Block(values), Key(name, What.SUMS): sums.finish("", n, "float32")}
        yield Batch(blocks, shard=shard)


def sketched(left, right, seed=0):
    """The statistics of a first pass."""
    signs = Signs(GROUP_SIZE, seed)
    n_left, n_right = left.shape[1], right.shape[1]
    parts = [CoMoments(Key("a", What.SUMS), Key("b", What.SUMS), n_left, n_right)]
    for name, n in (("a", n_left), ("b", n_right)):
        parts += [Extremes(name, n), SumSquares(name, n, group=0)]
        parts += [SumSquares(Key(name, What.SUMS), n, group=0), ShardEnergies(name, n, signs)]
    return fed(parts, by_shard(left, right, seed))


def fed(parts, batches):
    for batch in batches:
        for part in parts:
            part.update(batch)
            part.fold()
    return Evidence(Statistics(parts), [0], What.SUMS)


def proposed(evidence, z, asker="a", other="b", rows=None, columns=None):
    """A proposal and its inputs; `rows` and `columns` are parts of the two models."""
    ((_, _, cross),) = evidence.panels(CoMoments, asker, other)
    rows, columns = rows or (0, cross.cross.shape[0]), columns or (0, cross.cross.shape[1])
    mine, theirs = slice(*rows), slice(*columns)
    part = CrossMoments(cross.count, cross.left_sum[mine], cross.right_sum[theirs], cross.cross[mine, theirs])
    certainty = evidence.certainty(asker, other).part(mine, theirs)
    norms = evidence.norms(asker)[mine], evidence.norms(other)[theirs]
    found = propose(part, *norms, certainty, z, rows=rows[0], columns=columns[0])
    return found, find_matches(part, *norms, CANDIDATES_SEEN, rows=rows[0], columns=columns[0]), certainty


def every(corr):
    """All pairs, each of which may be the best."""
    return np.ones(len(corr), bool)


def screened(left, right, seed=0, z=None, k=10):
    """A screened search from beginning to end: exact matches, and how many candidates each neuron had."""
    evidence = sketched(left, right, seed)
    z = z or quantile_of(left.shape[1])
    proposal, matches, certainty = proposed(evidence, z)
    floor = least_best(matches.corr[:, 0], certainty)
    wanted = how_many(proposal, floor, max(screening.CANDIDATES_LEAST, k))
    n_left, n_right = left.shape[1], right.shape[1]
    pairs = torch.from_numpy(pairs_of(proposal, wanted, floor, n_right))
    candidates = Candidates("a", "b", pairs, n_left, n_right)
    fed([candidates], by_shard(left, right, seed))
    moments = candidates.result()
    corr = moments.corr(evidence.spread("a"), evidence.spread("b"))
    return (
        exact_matches(matches, proposal, wanted, moments.left, moments.right, corr, k, every(corr)),
        moments,
        corr,
        wanted,
    )


def test_the_correlations_of_candidates_are_numpys(data):
    left, right, rho = data
    _, moments, corr, wanted = screened(left, right)
    assert len(corr) > SHARDS * N_LEFT
    assert len(set(zip(moments.left, moments.right))) == len(corr)
    np.testing.assert_allclose(corr, rho[moments.left, moments.right], atol=1e-6)
    assert (wanted >= screening.CANDIDATES_LEAST).all()
    assert wanted.max() <= screening.MOST
    assert wanted.double().mean() <= screening.MEAN


def test_the_best_match_is_found_and_what_is_certified_is_right(data):
    """Twenty seeds of signs: a match of ρ ≥ 0.3 is always found; a certificate is never wrong."""
    left, right, rho = data
    living = np.arange(N_LEFT) != DEAD_LEFT
    known = np.where(np.isnan(rho), -np.inf, rho)
    best, truth = known.max(1), known.argmax(1)
    high = living & (best >= 0.3)
    assert high.sum() >= SHARED
    assert (high & (np.arange(N_LEFT) < SHARED)).sum() >= SHARED - 1
    share = []
    for seed in range(20):
        found, *_ = screened(left, right, seed)
        index, certified = found.index[:, 0].numpy(), found.certified.numpy()
        np.testing.assert_array_equal(index[high], truth[high])
        np.testing.assert_allclose(found.corr[high, 0], best[high], atol=1e-6)
        np.testing.assert_array_equal(index[certified], truth[certified])
        share.append(certified[:SHARED].mean())
    assert np.mean(share) > 0.5


def test_ranks_and_backs_are_the_highest_of_what_was_computed(data):
    left, right, rho = data
    found, moments, corr, _ = screened(left, right)
    matrix = np.full((N_LEFT, N_RIGHT), -np.inf)
    matrix[moments.left, moments.right] = corr
    for neuron in np.delete(np.arange(N_LEFT), DEAD_LEFT):
        expected = np.argsort(-matrix[neuron], kind="stable")[:10]
        np.testing.assert_array_equal(found.index[neuron].numpy(), expected)
        np.testing.assert_allclose(found.corr[neuron].numpy(), matrix[neuron, expected])
    lowest = np.where(np.isinf(matrix), np.inf, matrix)
    living = np.arange(N_LEFT) != DEAD_LEFT
    np.testing.assert_array_equal(found.lowest_index.numpy()[living], lowest.argmin(1)[living])
    np.testing.assert_allclose(found.lowest_corr.numpy()[living], lowest.min(1)[living])
    backs = np.arange(N_RIGHT) != DEAD_RIGHT
    np.testing.assert_array_equal(found.best_back.numpy()[backs], matrix.argmax(0)[backs])
    assert found.best_back[DEAD_RIGHT] == -1
    mutual = [i for i in range(SHARED) if rho[i].argmax() == i]
    assert found.mutual[mutual[5:]].all()


def test_bounds_cover_the_truth(data, monkeypatch):
    """At z = 3 the bound of a neuron's true best match is below its ρ in at most 0.2 % of cases."""
    monkeypatch.setattr(screening, "MOST", N_RIGHT)
    left, right, rho = data
    known = np.where(np.isnan(rho), -np.inf, rho)
    living = np.flatnonzero(np.arange(N_LEFT) != DEAD_LEFT)
    truth, z_true = known.argmax(1), np.arctanh(known.max(1).clip(0, 1 - 1e-12))
    below = 0
    for seed in range(20):
        proposal, _, _ = proposed(sketched(left, right, 100 + seed), 3.0)
        place = proposal.index[living] == torch.from_numpy(truth[living])[:, None]
        assert (place.sum(1) == 1).all()
        below += int((proposal.bound[living][place].numpy() < z_true[living]).sum())
    assert below / (20 * len(living)) <= 0.002


def test_proposals_are_ordered_by_their_bound(data):
    left, right, _ = data
    evidence = sketched(left, right)
    proposal, _, certainty = proposed(evidence, 2.5)
    ((_, _, cross),) = evidence.panels(CoMoments, "a", "b")
    rho = (cross.centred() * evidence.norms("a")[:, None] * evidence.norms("b")).numpy()
    reach = 2.5 * np.sqrt(np.outer(certainty.asker, certainty.other))
    bound = np.where(np.isnan(rho), -np.inf, np.arctanh(rho) + reach)
    most = screening.MOST + 1
    np.testing.assert_allclose(proposal.bound.numpy(), np.sort(bound, 1)[:, ::-1][:, :most], atol=1e-9)
    for neuron in (0, 7, 200):
        np.testing.assert_array_equal(proposal.index[neuron].numpy(), np.argsort(-bound[neuron])[:most])
        np.testing.assert_array_equal(proposal.lowest[neuron].numpy(), np.argsort(rho[neuron])[: screening.FEW])
    askers = np.where(np.isnan(rho), -np.inf, rho)
    for other in (0, 7, 200):
        np.testing.assert_array_equal(proposal.back[other].numpy(), np.argsort(-askers[:, other])[: screening.FEW])


def test_dead_neurons_are_no_ones_candidates_and_have_none(data):
    left, right, _ = data
    proposal, _, _ = proposed(sketched(left, right), 3.0)
    assert (proposal.index[DEAD_LEFT] == -1).all()
    assert (proposal.lowest[DEAD_LEFT] == -1).all()
    assert (proposal.back[DEAD_RIGHT] == -1).all()
    for part in (proposal.index, proposal.lowest):
        assert not (part == DEAD_RIGHT).any()
    assert not (proposal.back == DEAD_LEFT).any()
    found, moments, _, wanted = screened(left, right)
    assert not found.certified[DEAD_LEFT]
    assert not found.mutual[DEAD_LEFT]
    assert torch.isnan(found.corr[DEAD_LEFT]).all()
    assert torch.isnan(found.lowest_corr[DEAD_LEFT])
    assert (found.index[DEAD_LEFT] == -1).all()
    assert found.lowest_index[DEAD_LEFT] == -1
    assert wanted[DEAD_LEFT] == screening.CANDIDATES_LEAST
    assert DEAD_LEFT not in moments.left
    assert DEAD_RIGHT not in moments.right


@pytest.mark.parametrize("n_others", [1, 3, 12])
def test_a_neuron_whose_others_were_all_computed_is_certified(data, n_others):
    left, right, _ = data
    right = right[:, DEAD_RIGHT - n_others : DEAD_RIGHT + 1]  # one of them dead
    found, _, _, _ = screened(left, right)
    rho = np.nan_to_num(rho_by_numpy(left, right), nan=-np.inf)
    living = np.arange(N_LEFT) != DEAD_LEFT
    np.testing.assert_array_equal(found.certified.numpy(), living)
    np.testing.assert_array_equal(found.index[:, 0].numpy()[living], rho.argmax(1)[living])
    np.testing.assert_array_equal(found.best_back.numpy()[:-1], rho.argmax(0)[:-1])
    assert found.best_back[-1] == -1


def test_bounds_that_rule_out_nothing_certify_nothing(data):
    left, right, _ = data
    found, _, _, wanted = screened(left, right, z=VOID)
    assert (wanted < (N_RIGHT - 1)).all()
    assert not found.certified.any()


def test_a_model_without_a_living_neuron_has_no_candidates(data):
    left, _, _ = data
    evidence = sketched(left, np.zeros((len(left), 20), np.float32))
    proposal, _, _ = proposed(evidence, 3.0)
    for part in (proposal.index, proposal.lowest, proposal.back):
        assert (part == -1).all()
    assert len(pairs_of(proposal, torch.full((N_LEFT,), 16), torch.zeros(N_LEFT), 20)) == 0
    found, *_ = screened(left, np.zeros((len(left), 20), np.float32))
    assert torch.isnan(found.corr).all()
    assert not found.certified.any()


def test_the_easiest_neurons_are_served_first(data, monkeypatch):
    left, right, _ = data
    proposal, matches, certainty = proposed(sketched(left, right), 3.0)
    floor = least_best(matches.corr[:, 0], certainty)
    free = how_many(proposal, floor, 16)
    monkeypatch.setattr(screening, "MEAN", 17)
    tight = how_many(proposal, floor, 16)
    assert free.sum() > tight.sum() > 16 * N_LEFT
    assert tight.sum() <= 17 * N_LEFT
    served = tight > 16
    assert (tight[served] == free[served]).all()
    assert free[served].max() <= free[(free > 16) & ~served].min()


def in_the_way(proposal, neuron, wanted, floor):
    """Of the others that are left out the few of highest upper bounds, as far as these exceed the floor."""
    listed = zip(proposal.upper[neuron, wanted:].tolist(), proposal.index[neuron, wanted:].tolist())
    others = [*listed, *zip(proposal.beyond_upper[neuron].tolist(), proposal.beyond[neuron].tolist())]
    return [other for upper, other in sorted(others, reverse=True)[: screening.FEW] if upper > floor]


def test_pairs_are_every_candidate_once_either_way(data):
    left, right, _ = data
    proposal, _, _ = proposed(sketched(left, right), 3.0)
    wanted = torch.arange(N_LEFT) % 20 + 16
    expected = set()
    floor = torch.linspace(0.1, 1, N_LEFT)
    for neuron in range(N_LEFT):
        expected |= {(neuron, int(other)) for other in proposal.index[neuron, : wanted[neuron]]}
        expected |= {
            (neuron, other) for other in in_the_way(proposal, neuron, int(wanted[neuron]), float(floor[neuron]))
        }
        expected |= {(neuron, int(other)) for other in proposal.lowest[neuron]}
    expected |= {(int(asker), other) for other in range(N_RIGHT) for asker in proposal.back[other]}
    expected = {pair for pair in expected if min(pair) >= 0}
    codes = pairs_of(proposal, wanted, floor, N_RIGHT)
    assert (np.diff(codes) > 0).all()
    assert set(zip(codes // N_RIGHT, codes % N_RIGHT)) == expected
    codes = pairs_of(proposal, wanted, floor, N_RIGHT, back=True)
    assert (np.diff(codes) > 0).all()
    assert {(asker, other) for other, asker in zip(codes // N_LEFT, codes % N_LEFT)} == expected


def same(one, other):
    for name in ("bound", "upper", "beyond_upper", "lowest_corr", "back_corr"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=1e-12)
    for name in ("index", "beyond", "lowest", "back"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("cuts", [(0, 150, N_RIGHT), (0, 130, N_RIGHT), (0, 129, 170, N_RIGHT)])
def test_proposals_of_parts_side_by_side_are_those_of_the_whole(data, cuts):
    evidence = sketched(*data[:2])
    whole, _, _ = proposed(evidence, 3.0)
    first, *others = [proposed(evidence, 3.0, columns=cut)[0] for cut in pairwise(cuts)]
    for other in others:
        first = first.beside(other)
    same(first, whole)


@pytest.mark.parametrize("cuts", [(0, 150, N_LEFT), (0, 3, 5, N_LEFT), (0, 1, 2, 3, 4, 5, N_LEFT)])
def test_proposals_of_parts_one_below_the_other_are_those_of_the_whole(data, cuts):
    evidence = sketched(*data[:2])
    whole, _, _ = proposed(evidence, 3.0)
    first, *others = [proposed(evidence, 3.0, rows=cut)[0] for cut in pairwise(cuts)]
    for other in others:
        first = first.below(other)
    same(first, whole)


def test_proposals_of_narrow_parts_side_by_side_are_those_of_the_whole(data):
    """Layers of a tiny model have fewer neurons than a neuron has candidates."""
    left, right, _ = data
    evidence = sketched(left, right[:, :60])
    whole, _, _ = proposed(evidence, 3.0)
    parts = [proposed(evidence, 3.0, columns=cut)[0] for cut in ((0, 20), (20, 40), (40, 60))]
    same(parts[0].beside(parts[1]).beside(parts[2]), whole)


def test_what_narrow_parts_dropped_is_not_certified(data):
    """If candidates are lost where parts are put together, the best computed one must not be called certain."""
    left, right, _ = data
    right = right[:, :60]
    evidence = sketched(left, right)
    _, matches, _ = proposed(evidence, VOID)
    parts = [proposed(evidence, VOID, columns=cut)[0] for cut in ((0, 20), (20, 40), (40, 60))]
    proposal = parts[0].beside(parts[1]).beside(parts[2])
    wanted = torch.full((N_LEFT,), 20)
    pairs = pairs_of(proposal, wanted, torch.ones(N_LEFT), 60)
    rho = rho_by_numpy(left, right)[pairs // 60, pairs % 60]
    found = exact_matches(matches, proposal, wanted, pairs // 60, pairs % 60, rho, 5, every(rho))
    assert not found.certified.any()


RAGGED = torch.tensor(sorted({(i * i * 7 + j) % (N_LEFT * 40) for i in range(200) for j in range(1 + i % 13)}))


def candidates(left, right, parts, start=0, stop=None, way=None):
    found = Candidates("a", "b", RAGGED, N_LEFT, 40)
    for rows in np.array_split(np.arange(start, stop or len(left)), parts):
        batch = Batch({Key("a"): Block(torch.from_numpy(left[rows])), Key("b"): Block(torch.from_numpy(right[rows]))})
        if way is None:
            found.update(batch)
        else:
            found.cross += getattr(found, way)(*found.blocks(batch)).double()
            found.count += len(rows)
    return found


def test_candidates_four_ways(data):
    left, right = data[0], data[1][:, :40]
    rows, columns = RAGGED.numpy() // 40, RAGGED.numpy() % 40
    assert len(set(np.bincount(rows, minlength=N_LEFT))) > 5  # ragged: some neurons have none
    expected = np.einsum("tp,tp->p", left[:, rows].astype(np.float64), right[:, columns].astype(np.float64))
    one, many = candidates(left, right, 1), candidates(left, right, 30)
    ends = [0, 1000, 7000, 7001, len(left)]
    tree = [candidates(left, right, 2, *cut) for cut in pairwise(ends)]
    tree[2].merge(tree[0])
    tree[3].merge(tree[1])
    tree[3].merge(tree[2])
    restored = Candidates("a", "b", RAGGED, N_LEFT, 40)
    restored.restore(many.state())
    scale = np.abs(expected).max()
    for found in (one, many, tree[3], restored):
        moments = found.result()
        assert moments.count == len(left)
        np.testing.assert_array_equal(moments.left, rows)
        np.testing.assert_array_equal(moments.right, columns)
        np.testing.assert_allclose(moments.cross, expected, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("bytes_at_once", [1 << 31, 1 << 20, 1])
def test_the_way_of_a_gpu_gives_the_same_sums(data, monkeypatch, bytes_at_once):
    monkeypatch.setattr(screening, "BYTES_AT_ONCE", bytes_at_once)
    left, right = data[0][:3000], data[1][:3000, :40]
    gathered, sampled = (candidates(left, right, 3, way=way) for way in ("_gathered", "_sampled"))
    scale = sampled.cross.abs().max()
    np.testing.assert_allclose(gathered.cross.numpy(), sampled.cross.numpy(), rtol=1e-5, atol=1e-6 * float(scale))


def test_other_candidates_do_not_merge(data):
    found = candidates(data[0][:50], data[1][:50, :40], 1)
    before = found.cross.clone()
    for pairs in (RAGGED + 1, RAGGED[:-1]):
        with pytest.raises(MergeError):
            found.merge(Candidates("a", "b", pairs, N_LEFT, 40))
    with pytest.raises(MergeError):
        found.merge(Candidates("a", "c", RAGGED, N_LEFT, 40))
    assert torch.equal(found.cross, before)
    assert found.count == 50


def test_candidates_of_several_groups_fit_in_one_checkpoint():
    """A subset's, the rest's and a lane's are made of the same pairs, but their states may not share memory."""
    groups = [Candidates("a", "b", RAGGED, N_LEFT, 40, group=group) for group in (0, 1)]
    assert len({tensor.data_ptr() for tensor in state_of(groups, "").values() if tensor.numel() > 1}) == 4


def test_a_neuron_of_no_pairs_and_no_pairs_at_all(data):
    found = Candidates("a", "b", torch.zeros(0, dtype=torch.int64), N_LEFT, 40)
    found.update(
        Batch({Key("a"): Block(torch.from_numpy(data[0][:9])), Key("b"): Block(torch.from_numpy(data[1][:9, :40]))})
    )
    assert found.result().cross.shape == (0,)
