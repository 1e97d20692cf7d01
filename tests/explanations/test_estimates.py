"""Estimates for all windows: exact where all are drawn, right on average and as sure as they say where some are."""

import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from universal_neurons.explanations import YES, Answered, Design, Simulated

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from score_coverage import Population, simulated, yes_or_no

RNG = np.random.default_rng(0)
SIZES = np.array([500, 200, 60, 40])
STRATUM = np.repeat(range(4), SIZES)
ACTIVE = YES[STRATUM]


def whole(score):
    return Answered(Design(STRATUM, SIZES), score, YES)


@pytest.mark.parametrize("levels", [2, 7, 10**6])
def test_all_windows_drawn_is_scikit_learns_answer_without_doubt(levels):
    score = np.round(np.clip(RNG.normal(0.3 + 0.3 * ACTIVE, 0.3), 0, 1) * levels) / levels
    score[score == 0.5] = 0.51
    assert whole(score).base_rate == 0.125
    for estimate, truth in (
        (whole(score).auprc(), average_precision_score(ACTIVE, score)),
        (whole(score).balanced_accuracy(), balanced_accuracy_score(ACTIVE, score > 0.5)),
    ):
        assert estimate.value == pytest.approx(truth, abs=1e-12)
        assert estimate.low == estimate.value == estimate.high


def test_all_tokens_simulated_is_numpys_answer():
    was = RNG.gamma(0.5, 1, (len(STRATUM), 8)) + 1000  # far from 0
    said = was + RNG.normal(size=was.shape)
    said[RNG.random(was.shape) < 0.1] = np.nan
    was[:, -1] = np.nan
    known = np.isfinite(said) & np.isfinite(was)
    estimate = Simulated.of(Design(STRATUM, SIZES), said, was).rho()
    assert estimate.value == pytest.approx(np.corrcoef(said[known], was[known])[0, 1], abs=1e-9)
    assert estimate.low == estimate.value == estimate.high


def test_a_scorer_that_says_the_same_of_all_knows_nothing():
    estimate = whole(np.full(len(STRATUM), 0.5))
    assert estimate.auprc().value == pytest.approx(0.125)
    assert estimate.balanced_accuracy().value == 0.5
    said, was = np.full((len(STRATUM), 4), 3.0), RNG.normal(size=(len(STRATUM), 4))
    assert np.isnan(Simulated.of(Design(STRATUM, SIZES), said, was).rho().value)


def some(score, drawn=(30, 30, 20, 10)):
    which = np.concatenate([np.flatnonzero(s == STRATUM)[:n] for s, n in enumerate(drawn)])
    return Answered(Design(STRATUM[which], SIZES), score[which], YES)


def test_perfect_answers_of_some_windows_are_not_certain():
    """Of n right answers the exact bound of the share of wrong ones is 1 − 0.025^(1/n)."""
    perfect = some(ACTIVE.astype(float))
    accuracy, precision = perfect.balanced_accuracy(), perfect.auprc()
    assert (accuracy.value, accuracy.high, precision.value, precision.high) == pytest.approx((1, 1, 1, 1))
    wrong = [(1 - 0.025 ** (1 / n)) * (1 - n / size) * size for n, size in zip((30, 30, 20, 10), SIZES)]
    expected = 1 - ((wrong[0] + wrong[1]) / 700 + (wrong[2] + wrong[3]) / 100) / 2
    assert accuracy.low == pytest.approx(expected)
    assert 0.3 < precision.low < 0.7


def test_a_stratum_without_answers_leaves_no_score():
    assert np.isnan(some(ACTIVE * 1.0, (0, 30, 20, 10)).auprc().value)
    assert np.isnan(some(ACTIVE * 1.0, (30, 30, 20, 1)).balanced_accuracy().low)
    assert np.isnan(Simulated(some(ACTIVE * 1.0, (0, 30, 20, 10)).design, RNG.random((60, 6))).rho().value)


def test_bias_and_error_are_the_textbooks_for_a_mean():
    """Of a stratified mean the jackknife is exact: no bias, Σ (N_h / N)² (1 − f_h) s_h² / n_h."""
    design = some(ACTIVE * 1.0).design
    values = RNG.normal(size=len(design.stratum))

    def mean(weights):
        return weights @ values / weights.sum(1)

    bias, error, _ = design.bias_and_error(float(mean(design.weights[None])[0]), mean(design.left_out))
    of = [values[design.stratum == s] for s in range(4)]
    variance = sum((N / 800) ** 2 * (1 - len(v) / N) * v.var(ddof=1) / len(v) for v, N in zip(of, SIZES))
    assert bias == pytest.approx(0, abs=1e-12)
    assert error == pytest.approx(np.sqrt(variance))


@pytest.mark.parametrize(
    ("population", "kind"),
    [
        (yes_or_no(0.1, 0, 1), "auprc"),
        (yes_or_no(0.1, 2, 1), "auprc"),
        (yes_or_no(0.1, 2, 1), "balanced_accuracy"),
        (simulated(0.1, 0.5), "rho"),
    ],
)
def test_right_on_average_and_as_sure_as_it_says(population: Population, kind: str):
    """2 000 resamples: benchmarks/score_coverage.py."""
    truth, estimates = population.estimates(kind, 200)
    value, low, high = np.array([(e.value, e.low, e.high) for e in estimates]).T
    assert ((low <= value) & (value <= high)).all()
    assert abs(value.mean() - truth) < 0.1 * (high - low).mean()
    assert 0.91 < ((low <= truth) & (truth <= high)).mean() < 0.99
