"""Counts over thresholds against counting one by one."""

import numpy as np
import pytest

from universal_neurons.matching import counts_above, null_counts, null_excess, thresholds_with


def test_the_grid_has_the_studys_own_threshold():
    assert thresholds_with(0.5) == [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]  # fmt: skip
    assert thresholds_with(0.42)[7:10] == [0.4, 0.42, 0.45]
    assert len(thresholds_with(-3.0)) == 20


def test_counts_are_of_those_above():
    excess = np.array([0.1, 0.5, 0.5, np.nan, 0.7, -0.2, np.inf])
    at = thresholds_with(0.5)
    with np.errstate(invalid="ignore"):
        expected = [sum(1 for e in excess[np.isfinite(excess)] if e > t) for t in at]
    np.testing.assert_array_equal(counts_above(excess, at), expected)
    assert counts_above(excess, [0.5]).item() == 1
    assert counts_above(np.full(4, np.nan), [0.0]).item() == 0


def test_a_draws_null_is_against_the_other_draws():
    maxima = np.random.default_rng(0).random((5, 3, 40))
    maxima[:, :, 7] = np.nan
    null = null_excess(maxima)
    counts = np.zeros(19)
    for draw in range(5):
        others = np.mean([maxima[d] for d in range(5) if d != draw], 0)
        expected = (maxima[draw] - others).mean(0)
        np.testing.assert_allclose(null[draw], expected, atol=1e-12)
        counts += [(expected > t).sum() for t in thresholds_with(0.5)]
    np.testing.assert_allclose(null_counts(null, thresholds_with(0.5)), counts / 5)


def test_draws_of_different_sizes_count_alike():
    draws = [np.array([0.3, 0.6]), np.array([]), np.array([0.7, 0.8, 0.9])]
    assert null_counts(draws, [0.5]) == pytest.approx([4 / 3])
