"""One-to-one: against SciPy's dense assignment, permuted copies, planted dictionaries."""

import numpy as np
import pytest
import torch
from conftest import settled, tiny_model
from scipy.optimize import linear_sum_assignment
from test_cliques import permuted
from test_correlation import run_pass, some_tokens

from universal_neurons.matching import WHOLE, Findings, assign, assignments, pw_mcc, rotated_assignments, shared
from universal_neurons.matching.comparison import compare
from universal_neurons.matching.one_to_one import nearest


def candidates_of(rho, few, by_size=False):
    """The few best of every row, as a comparison has them."""
    strength = np.abs(rho) if by_size else rho
    index = np.argsort(-np.where(np.isnan(strength), -np.inf, strength), axis=1, kind="stable")[:, :few]
    corr = np.take_along_axis(rho, index, 1)
    return corr, np.where(np.isnan(corr), -1, index)


def dense(corr, index, others, by_size):
    """The largest total worth, by a dense assignment in which every row may take a column of its own, worth 0."""
    n = len(corr)
    worth = np.full((n, others + n), -1e6)
    worth[:, others:][np.diag_indices(n)] = 0
    for row in range(n):
        for value, at in zip(corr[row], index[row]):
            if at >= 0:
                worth[row, at] = abs(value) if by_size else value
    rows, columns = linear_sum_assignment(worth, maximize=True)
    return worth[rows, columns].sum(), np.where(columns < others, columns, -1)


@pytest.mark.parametrize("by_size", [False, True])
@pytest.mark.parametrize(("n", "others", "few"), [(1, 1, 1), (7, 3, 3), (9, 30, 4), (40, 25, 5), (30, 30, 30)])
def test_the_total_is_that_of_scipys_dense_assignment_with_the_choice_of_none(n, others, few, by_size):
    for seed in range(8):
        chooser = np.random.default_rng(seed)
        rho = chooser.uniform(-1, 1, (n, others))
        rho[chooser.random(n) < 0.1] = np.nan
        rho[:, chooser.random(others) < 0.1] = np.nan
        corr, index = candidates_of(rho, few, by_size)
        found = assign(corr, index, by_size=by_size)
        total, partner = dense(corr, index, others, by_size)
        assert np.nansum(found.strength) == pytest.approx(total, abs=1e-9)
        np.testing.assert_array_equal(found.partner, np.where(found.strength > 0, partner, -1))
        taken = found.partner[found.matched]
        assert len(set(taken.tolist())) == len(taken)
        for row in range(n):
            if found.matched[row]:
                assert found.corr[row] == rho[row, found.partner[row]] == corr[row, found.rank[row] - 1]
        np.testing.assert_array_equal(found.living, np.isfinite(corr).any(1))
        best = np.nanmax(np.where(found.living[:, None], np.abs(corr) if by_size else corr, 0), 1)
        lost = found.cost[found.living]
        np.testing.assert_allclose(lost, (best.clip(0) - found.strength)[found.living])
        assert (lost[~found.moved[found.living]] == 0).all()
        assert (lost >= 0).all()


def test_units_that_want_the_same_one_move_where_it_costs_least():
    corr = np.array([[0.9, 0.8], [0.9, 0.2], [-0.1, -0.2]])
    found = assign(corr, np.array([[0, 1], [0, 1], [0, 1]]))
    assert found.partner.tolist() == [1, 0, -1]
    assert found.moved.tolist() == [True, False, True]
    assert found.cost == pytest.approx([0.1, 0, 0])
    assert found.mean == pytest.approx(0.85)
    assert found.pairs_from(0.9) == 1


def turned_over(name):
    """A gated model, its neurons in the opposite order, every other one negated: the same model."""
    model, signs = tiny_model("llama", 0, name), torch.tensor([1.0, -1.0]).repeat(12)
    with torch.no_grad():
        for block in model.blocks:
            for rows in (block.mlp.gate_proj.weight, block.mlp.up_proj.weight):
                rows.copy_(rows.flip(0))
            block.mlp.up_proj.weight.mul_(signs[:, None])
            block.mlp.down_proj.weight.copy_(block.mlp.down_proj.weight.flip(1) * signs)
    return model


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_permuted_copy_is_matched_wholly_and_a_random_basis_is_not(family):
    first = tiny_model(family, 0, "b")
    evidence = run_pass([first, permuted(first, "a", 1) if family == "gpt2" else turned_over("a")], some_tokens(200))
    if family == "llama":
        evidence.signs = {name: torch.ones(48, dtype=torch.float64) for name in "ab"}
    config = settled(seed=5, top_k=3)
    found = Findings(config)
    found.take_in(WHOLE, evidence, [("b", "a")])
    again = Findings(config)
    again.restore(found.state())  # as after a crash
    comparison = again.comparison(WHOLE, "b", ["a"])
    (pairs,), (rotated,) = assignments(comparison), rotated_assignments(comparison)
    assert sorted(pairs.partner) == list(range(48))
    assert pairs.mean == pytest.approx(1, abs=1e-5)
    assert (np.nanmin(pairs.corr) < -0.999) == (family == "llama")
    assert not pairs.moved.any()
    assert rotated.mean < 0.9
    assert shared(pairs.worth, rotated.worth, 48).share == 1
    best = np.abs(comparison.maxima[0, 0])
    np.testing.assert_array_equal(rotated.best, best)  # of the draw that the baseline is of


def test_nobody_rotated_where_the_baseline_is_permutation():
    models = [tiny_model("gpt2", seed, name) for seed, name in enumerate("ab")]
    evidence = run_pass(models, some_tokens(), baseline="permutation")
    assert rotated_assignments(compare(evidence, "a", ["b"], settled(baseline="permutation"), draws=2)) is None


def topk_codes(decoder, stream, active):
    """The latents of a TopK dictionary whose encoder is its decoder."""
    codes = stream @ decoder.T
    lowest = np.sort(codes, 1)[:, -active, None]
    return np.where(codes >= lowest, codes, 0).clip(0)


def dictionaries(share, n=400, width=64, seed=0):
    """Two decoders of which a share of the directions is the same, in another order."""
    chooser = np.random.default_rng(seed)
    ours, theirs = chooser.normal(size=(2, n, width))
    same = int(share * n)
    theirs[:same] = ours[:same]
    order = chooser.permutation(n)
    ours, theirs = (d / np.linalg.norm(d, axis=1, keepdims=True) for d in (ours, theirs))
    return ours, theirs[order], np.argsort(order)[:same]


def latents_assigned(ours, theirs, positions=4000, active=8, few=10):
    """ρ of the latents of two dictionaries on one stream, by NumPy; assigned."""
    stream = np.random.default_rng(1).normal(size=(positions, ours.shape[1]))
    first, second = (topk_codes(decoder, stream, active) for decoder in (ours, theirs))
    return assign(*candidates_of(np.corrcoef(first.T, second.T)[: len(ours), len(ours) :], few))


def within(interval, share):
    low, high = interval
    assert high - low < 0.12
    return low <= share <= high


def test_planted_dictionaries_share_what_was_planted_and_independent_ones_nothing():
    """Beside dictionaries of random directions: what latents, and what decoders, have in common by chance."""
    ours, theirs, places = dictionaries(0.6)
    by_chance = latents_assigned(ours, dictionaries(0, seed=5)[1]).worth
    pairs = latents_assigned(ours, theirs)
    assert within(shared(pairs.worth, by_chance, 400).interval, 0.6)
    np.testing.assert_array_equal(pairs.partner[: len(places)], places)
    decoders = [torch.from_numpy(one) for one in (ours, theirs)]
    by_cosine = pw_mcc(*decoders)
    value, low, high = by_cosine.calibrated
    assert low < value < high
    assert within((low, high), 0.6)
    assert within(by_cosine.shared.interval, 0.6)
    matched = np.flatnonzero(pairs.matched)
    given = np.stack([matched, pairs.partner[matched]], 1)
    by_activation = pw_mcc(*decoders, given)
    np.testing.assert_array_equal(by_activation.pairs, given)
    np.testing.assert_allclose(by_activation.cosines, (ours[given[:, 0]] * theirs[given[:, 1]]).sum(1), atol=1e-6)
    assert abs(by_activation.rotated) < 0.03  # of pairs that no cosine chose

    ours, theirs, _ = dictionaries(0, seed=3)
    assert shared(latents_assigned(ours, theirs).worth, by_chance, 400).count == 0
    independent = pw_mcc(torch.from_numpy(ours), torch.from_numpy(theirs))
    assert (independent.shared.count, independent.shared.share) == (0, 0)
    assert np.isnan(independent.shared.level)
    _, low, high = independent.calibrated
    assert low <= 0 <= high


def test_decoders_cosines_are_numpys_and_dead_rows_are_in_no_pair():
    chooser = np.random.default_rng(0)
    ours, theirs = chooser.normal(size=(30, 8)), chooser.normal(size=(20, 8))
    ours[3], theirs[4] = 0, 0
    both = [torch.from_numpy(one) for one in (ours, theirs)]
    found = pw_mcc(*both, few=20)
    assert 3 not in found.pairs[:, 0]
    assert 4 not in found.pairs[:, 1]
    with np.errstate(invalid="ignore"):
        cosines = (ours @ theirs.T) / np.linalg.norm(ours, axis=1)[:, None] / np.linalg.norm(theirs, axis=1)
    np.testing.assert_allclose(found.cosines, cosines[tuple(found.pairs.T)], atol=1e-6)
    total, _ = dense(*candidates_of(cosines, 20), 20, False)
    assert found.cosines.sum() == pytest.approx(total, abs=1e-5)
    given = pw_mcc(*both, np.array([[3, 0], [1, 4], [2, 2]]))
    assert given.pairs.tolist() == [[2, 2]]
    assert np.isnan(pw_mcc(*both, np.zeros((0, 2), int)).mean)


def test_the_level_is_the_least_at_which_few_are_of_a_random_basis():
    strength, random = np.linspace(0.2, 0.9, 100), np.linspace(0, 0.5, 100)
    found = shared(strength, random, 200)
    rates = [(1 + (random >= level).sum()) / (strength >= level).sum() for level in strength]
    assert found.level == strength[np.flatnonzero(np.array(rates) <= 0.05)[0]]
    assert found.count == (strength >= found.level).sum() == round(200 * found.share)


def test_the_nearest_are_the_highest_cosines():
    chooser = np.random.default_rng(1)
    one, other = (torch.nn.functional.normalize(torch.from_numpy(chooser.normal(size=(n, 5)))) for n in (6, 4))
    corr, index = nearest(one, other, 9)
    assert index.shape == (6, 4)
    np.testing.assert_allclose(corr, -np.sort(-(one @ other.T).numpy(), 1))
