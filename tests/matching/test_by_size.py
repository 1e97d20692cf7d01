"""Matches by |ρ|, as those of gated models are: against NumPy's whole matrix, in every search."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import settled, tiny_model
from test_candidates import DEAD_LEFT, N_LEFT, N_RIGHT, SHARED, by_shard, fed, planted, rho_by_numpy, sketched
from test_correlation import captured, run_pass, some_tokens

from universal_neurons.matching import (
    CANDIDATES_LEAST,
    WHOLE,
    Candidates,
    Comparison,
    Findings,
    HeldOut,
    RotatedMoments,
    exact_matches,
    excess_estimate,
    heldout_baseline,
    how_many,
    least_best,
    pairs_of,
)
from universal_neurons.matching.baselines import Baseline, Maxima, rotated_best, rotation
from universal_neurons.matching.candidates import propose
from universal_neurons.matching.comparison import Piece, unbiased
from universal_neurons.matching.correlation import Matches, below, beside, find_matches
from universal_neurons.statistics import (
    CANDIDATES_SEEN,
    Batch,
    Block,
    CoMoments,
    CrossMoments,
    Jackknifed,
    Key,
    quantile_of,
)
from universal_neurons.units import Units

DEAD = 29


@pytest.fixture(scope="module")
def evidence():
    models = [tiny_model("llama", seed) for seed in (0, 1)]
    for model in models:
        with torch.no_grad():
            model.blocks[1].mlp.up_proj.weight[DEAD - 24] = 0
    tokens = some_tokens()
    return run_pass(models, tokens), *(captured(model, tokens) for model in models)


@pytest.fixture(scope="module")
def rho(evidence):
    _, a, b = evidence
    with np.errstate(invalid="ignore"):
        return np.corrcoef(a.T, b.T)[:48, 48:]


def arguments_of(evidence):
    return evidence.cross("llama-0", "llama-1"), evidence.norms("llama-0"), evidence.norms("llama-1")


def test_the_best_are_those_of_highest_size_with_their_sign(evidence, rho):
    found = find_matches(*arguments_of(evidence[0]), 5, by_size=True)
    alive = np.arange(48) != DEAD
    size = np.where(np.isnan(rho), -np.inf, np.abs(rho))
    order = np.argsort(-size, 1)[:, :5]
    np.testing.assert_array_equal(found.index.numpy()[alive], order[alive])
    expected = np.take_along_axis(rho, order, 1)[alive]
    assert 0.2 < (expected < 0).mean() < 0.8
    np.testing.assert_allclose(found.corr.numpy()[alive], expected, atol=1e-6)
    np.testing.assert_allclose(found.strength.numpy()[alive], np.abs(expected), atol=1e-6)
    assert torch.isnan(found.corr[DEAD]).all()
    assert (found.index[DEAD] == -1).all()
    np.testing.assert_array_equal(found.best_back.numpy()[alive], size.argmax(0)[alive])
    assert found.best_back[DEAD] == -1
    mutual = (size.argmax(0)[size.argmax(1)] == np.arange(48)) & alive
    np.testing.assert_array_equal(found.mutual.numpy(), mutual)
    np.testing.assert_array_equal(found.lowest_index.numpy()[alive], np.nanargmin(rho[alive], 1))


def test_parts_and_panels_make_the_same_whole(evidence, monkeypatch):
    cross, left, right = arguments_of(evidence[0])
    whole = find_matches(cross, left, right, 5, by_size=True)
    monkeypatch.setattr("universal_neurons.matching.correlation.PANEL_ELEMENTS", 100)
    halves = slice(0, 20), slice(20, 48)
    rows = [
        (CrossMoments(cross.count, cross.left_sum[r], cross.right_sum, cross.cross[r]), left[r], right, r.start, 0)
        for r in halves
    ]
    columns = [
        (CrossMoments(cross.count, cross.left_sum, cross.right_sum[c], cross.cross[:, c]), left, right[c], 0, c.start)
        for c in halves
    ]
    of_rows, of_columns = (
        [find_matches(*part, 5, rows=row, columns=column, by_size=True) for *part, row, column in parts]
        for parts in (rows, columns)
    )
    for found in (find_matches(cross, left, right, 5, by_size=True), below(*of_rows), beside(*of_columns)):
        assert found.by_size
        for name in ("index", "corr"):
            np.testing.assert_array_equal(getattr(found, name)[:, :5], getattr(whole, name))
        for name in ("mutual", "best_back", "lowest_index", "lowest_corr"):
            np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))


@pytest.mark.parametrize("kind", ["rotation", "gaussian"])
def test_the_baseline_is_that_of_rotated_activations_times_their_signs(evidence, kind):
    evidence, a, b = evidence
    signs = np.where(b.mean(0) < 0, -1.0, 1.0)
    rotated = rotation(kind, 24, 0, 0)
    cross, left, _ = arguments_of(evidence)
    layers = evidence.layers("llama-1")
    found, unit = rotated_best(
        cross, left, layers, {len(rotated): rotated}, by_size=True, signs=torch.from_numpy(signs)
    )
    turned = np.concatenate([layer @ rotated.numpy().T for layer in np.split(b * signs, 2, 1)], 1)
    with np.errstate(invalid="ignore"):
        expected = np.corrcoef(a.T, turned.T)[:48, 48:]
    np.testing.assert_allclose(found.abs(), np.abs(expected).max(1), atol=1e-6)
    alive = np.arange(48) != DEAD
    np.testing.assert_allclose(found[alive], expected[alive, unit[alive]], atol=1e-6)
    assert (np.abs(expected).max(1) > expected.max(1) + 0.01).any()


def test_a_held_out_correlation_counts_by_the_sign_of_the_one_that_chose():
    """A match of ρ < 0 speaks for the neuron; one whose ρ has the other sign on held-out rows speaks against it."""
    corr = torch.tensor([0.8, -0.8, -0.8, torch.nan]).double()[:, None]
    held = np.array([0.7, -0.7, 0.1, np.nan])
    nothing = torch.zeros(4, dtype=torch.int64)
    match = Matches(corr, nothing[:, None], corr[:, 0], nothing, nothing, corr[:, 0].abs(), by_size=True)
    baseline = Baseline(np.full((3, 1, 4), 0.3), np.zeros((3, 1, 4), int))
    comparison = Comparison("a", ("b",), (match,), baseline, baseline)
    np.testing.assert_allclose(comparison.best[0], [0.8, 0.8, 0.8, np.nan])
    np.testing.assert_allclose(comparison.excess, [0.5, 0.5, 0.5, np.nan])
    heldout = HeldOut(Jackknifed(held, held + np.linspace(-0.01, 0.01, 5)[:, None]), np.full(4, 5.0), np.ones((2, 4)))

    def excess_of(comparison):
        matches = [heldout.times(comparison.signs[0])]
        return excess_estimate(matches, comparison.raw, heldout_baseline(comparison.raw, None, matches))

    found = excess_of(comparison)
    np.testing.assert_allclose(found.value, [0.4, 0.4, -0.4, np.nan])
    np.testing.assert_allclose((found.high - found.low)[:3], (found.high - found.low)[0])
    signed = dataclasses.replace(comparison, matches=(dataclasses.replace(match, by_size=False),))
    np.testing.assert_allclose(excess_of(signed).value, held - 0.3)


def test_a_rotated_neuron_is_asked_again_with_its_sign():
    """The mean over draws of sign · ρ of a and R (d ∘ b), by NumPy, on held-out rows; standardised or not."""
    chooser = np.random.default_rng(0)
    a, b = chooser.normal(size=(400, 6)).astype("f4"), chooser.normal(size=(400, 6)).astype("f4")
    units = Units.equal(2, 3)
    unit = torch.from_numpy(chooser.integers(0, 6, (2, 6)))
    sign, turned = (np.where(chooser.random(shape) < 0.5, -1, 1) for shape in ((2, 6), 6))
    scale = torch.from_numpy(1 / b.std(0))
    matrices = [rotation("rotation", 3, 7, draw).numpy() for draw in range(2)]
    for given in (None, scale):
        signs = torch.from_numpy(turned).double()
        moments = RotatedMoments("a", "b", unit, units, "rotation", 7, 1, scale=given, turned=signs, sign=sign)
        assert moments.standardised == (given is not None)
        moments.update(Batch({Key("a"): Block(torch.from_numpy(a)), Key("b"): Block(torch.from_numpy(b))}, shard=0))
        scaled = b * turned * (1 if given is None else given.numpy())
        expected = np.zeros(6)
        for draw, matrix in enumerate(matrices):
            rotated = np.concatenate([layer @ matrix.T for layer in np.split(scaled, 2, 1)], 1)
            corr = np.corrcoef(a.T, rotated.T)[:6, 6:]
            expected += sign[draw] * corr[np.arange(6), unit[draw].numpy()] / 2
        np.testing.assert_allclose(moments.result().value, expected, atol=1e-5)


def test_maxima_by_size_keep_the_sign_of_the_one_that_was_highest():
    first, second = (Maxima.nothing(1, 3, by_size=True) for _ in range(2))
    first.put(0, torch.tensor([-0.5, 0.2, torch.nan]).double(), torch.tensor([4, 5, -1]))
    second.put(0, torch.tensor([0.4, -0.3, torch.nan]).double(), torch.tensor([6, 7, -1]))
    both, wider = first.beside(second), first.below(second)
    np.testing.assert_allclose(both.corr, [[0.5, 0.3, np.nan]], rtol=1e-6)
    np.testing.assert_array_equal(both.unit, [[4, 7, -1]])
    np.testing.assert_array_equal(both.sign[0, :2], [-1, -1])
    np.testing.assert_array_equal(wider.sign[0], [-1, 1, 1, 1, -1, 1])


@pytest.mark.parametrize("baseline", ["rotation", "gaussian"])
def test_findings_are_by_size_where_a_model_is_gated_and_survive_a_snapshot(evidence, rho, baseline):
    """Either side gated; restored from plain tensors the answer is the same, bit for bit."""
    evidence, _, _ = evidence
    config = settled(draws=2, baseline=baseline)
    size = np.where(np.isnan(rho), -np.inf, np.abs(rho))
    alive = np.arange(48) != DEAD
    for gated in ("llama-0", "llama-1"):
        evidence.signs = {gated: torch.ones(48, dtype=torch.float64)}
        findings, restored = Findings(config), Findings(config)
        findings.take_in(WHOLE, evidence, [("llama-0", "llama-1")])
        restored.restore(findings.state())
        found, again = (f.comparison(WHOLE, "llama-0", ["llama-1"]) for f in (findings, restored))
        np.testing.assert_allclose(found.best[0, alive], size.max(1)[alive], atol=1e-6)
        assert again.matches[0].by_size
        np.testing.assert_array_equal(again.raw.signs[0], found.raw.signs[0])
        for name in ("best", "best_index", "signs", "maxima"):
            np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    evidence.signs = {}
    findings = Findings(config)
    findings.take_in(WHOLE, evidence, [("llama-0", "llama-1")])
    best = findings.comparison(WHOLE, "llama-0", ["llama-1"]).best[0, alive]
    np.testing.assert_allclose(best, np.nanmax(rho[alive], 1), atol=1e-6)


@pytest.fixture(scope="module")
def negated():
    """The planted neurons of both models, some negated, and their whole matrix."""
    chooser = np.random.default_rng(3)
    left, right = (part * np.where(chooser.random(part.shape[1]) < 0.5, -1, 1).astype("f4") for part in planted())
    return left, right, rho_by_numpy(left, right)


def proposed(evidence, z):
    ((_, _, cross),) = evidence.panels(CoMoments, "a", "b")
    certainty = evidence.certainty("a", "b")
    norms = evidence.norms("a"), evidence.norms("b")
    proposal = propose(cross, *norms, certainty, z, by_size=True)
    return proposal, find_matches(cross, *norms, CANDIDATES_SEEN, by_size=True), certainty


def test_screened_matches_and_certificates(negated):
    """Five seeds of signs: a match of |ρ| ≥ 0.3 is always found, with its sign; a certificate is never wrong."""
    left, right, rho = negated
    size = np.where(np.isnan(rho), -np.inf, np.abs(rho))
    high = size.max(1) >= 0.3
    truth = size.argmax(1)
    certified = 0.0
    for seed in range(5):
        evidence = sketched(left, right, seed)
        proposal, matches, certainty = proposed(evidence, quantile_of(N_LEFT))
        floor = least_best(matches.strength[:, 0], certainty)
        wanted = how_many(proposal, floor, CANDIDATES_LEAST)
        pairs = torch.from_numpy(pairs_of(proposal, wanted, floor, N_RIGHT))
        candidates = Candidates("a", "b", pairs, N_LEFT, N_RIGHT)
        fed([candidates], by_shard(left, right, seed))
        moments = candidates.result()
        corr = moments.corr(evidence.spread("a"), evidence.spread("b"))
        found = exact_matches(
            matches, proposal, wanted, moments.left, moments.right, corr, 10, np.ones(len(corr), bool)
        )
        index = found.index[:, 0].numpy()
        np.testing.assert_array_equal(index[high], truth[high])
        np.testing.assert_allclose(found.corr[high, 0], rho[high, truth[high]], atol=1e-6)
        sure = found.certified.numpy()
        np.testing.assert_array_equal(index[sure], truth[sure])
        certified += sure[:SHARED].mean() / 5
        assert torch.isnan(found.corr[DEAD_LEFT]).all()
        computed = np.full((N_LEFT, N_RIGHT), -np.inf)
        computed[moments.left, moments.right] = np.abs(corr)
        alive = np.arange(N_LEFT) != DEAD_LEFT
        order = np.argsort(-computed, 1, kind="stable")[alive, :10]
        np.testing.assert_array_equal(found.index.numpy()[alive], order)
        np.testing.assert_allclose(found.corr.numpy()[alive], np.take_along_axis(rho[alive], order, 1), atol=1e-6)
        backs = np.isfinite(computed.max(0))
        np.testing.assert_array_equal(found.best_back.numpy()[backs], computed.argmax(0)[backs])
    assert (rho[high, truth[high]] < 0).any()
    assert certified > 0.5


def test_a_sketch_is_lowered_in_size_and_keeps_its_sign(negated):
    """On average the corrected |ρ| of the best match is that of its neuron's true best, and its rank stays."""
    left, right, rho = negated
    truth = np.nanmax(np.where(np.isnan(rho), -np.inf, np.abs(rho)), 1)
    raw, corrected = [], []
    alive = np.isfinite(truth) & (np.arange(N_LEFT) != DEAD_LEFT)
    for seed in range(5):
        evidence = sketched(left, right, seed)
        _, matches, certainty = proposed(evidence, 3.0)
        piece = Piece((0, N_LEFT), (0, N_RIGHT), matches, Maxima.nothing(1, N_LEFT))
        found = unbiased(piece, certainty, 3).matches
        assert (found.strength[alive, :1] >= found.strength[alive]).all()
        keeps = (found.corr.sign() == matches.corr[:, :3].sign()) | (found.corr == 0)
        assert keeps[alive].all()
        raw.append((matches.strength[:, 0].numpy() - truth)[alive].mean())
        corrected.append((found.strength[:, 0].numpy() - truth)[alive].mean())
    assert np.mean(raw) > 0.01
    assert abs(np.mean(corrected)) < 0.4 * np.mean(raw)
