"""p-values and false-discovery rates under a sample, against their definitions neuron by neuron and scipy."""

import numpy as np
import pytest
from scipy import stats

from universal_neurons.matching import discovery_rates, p_values


def test_p_and_rate_are_their_definitions():
    chooser = np.random.default_rng(0)
    excess, null = np.round(chooser.normal(0.1, 0.1, 60), 2), np.round(chooser.normal(0, 0.1, 300), 2)  # with ties
    excess[[3, 17]] = np.nan
    p = p_values(excess, np.append(null, np.nan))
    for own, value in zip(excess, p):
        if np.isnan(own):
            assert np.isnan(value)
        else:
            assert value == (1 + sum(n >= own for n in null)) / 301
    alive = np.flatnonzero(~np.isnan(p))
    ordered = sorted(alive, key=lambda i: p[i])
    rates = discovery_rates(p)
    for place, neuron in enumerate(ordered):
        later = [p[other] * len(alive) / (rank + 1) for rank, other in enumerate(ordered) if rank >= place]
        assert rates[neuron] == pytest.approx(min(1, *later))
    np.testing.assert_array_equal(rates[alive], stats.false_discovery_control(p[alive]))
    assert np.isnan(rates[[3, 17]]).all()


def test_there_may_be_nobody():
    np.testing.assert_array_equal(p_values(np.array([0.2, np.nan]), np.array([])), [1, np.nan])
    assert np.isnan(discovery_rates(np.full(3, np.nan))).all()


def test_of_the_null_itself_p_is_uniform():
    chooser = np.random.default_rng(1)
    p = p_values(chooser.standard_cauchy(2000), chooser.standard_cauchy(10_000))
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert (discovery_rates(p) <= 0.05).sum() == 0
