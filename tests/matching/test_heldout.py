"""Held-out correlations and jackknife intervals against NumPy, scipy and planted truth."""

import numpy as np
import torch
from scipy import stats

from universal_neurons.matching import HeldOut, PairedMoments, corr_interval, excess_estimate, heldout_baseline
from universal_neurons.matching.baselines import Baseline
from universal_neurons.statistics import Batch, Block, Key, What
from universal_neurons.statistics.jackknife import standard_error


def paired(rho, neurons, stretches=20, length=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    moments = PairedMoments("a", "b", torch.arange(neurons), stretches)
    data = []
    for stretch in range(stretches):
        a = torch.randn(length, neurons, generator=generator)
        b = rho * a + (1 - rho**2) ** 0.5 * torch.randn(length, neurons, generator=generator)
        data.append((a.double().numpy(), b.double().numpy()))
        for half in (slice(0, 70), slice(70, None)):
            moments.update(Batch({Key("a"): Block(a[half]), Key("b"): Block(b[half])}, shard=stretch))
    return moments.result(), data


def test_against_numpy():
    found, data = paired(0.6, 5, stretches=4)
    for neuron in range(5):
        everything = [np.concatenate([pair[side][:, neuron] for pair in data]) for side in (0, 1)]
        np.testing.assert_allclose(found.corr.value[neuron], stats.pearsonr(*everything)[0], atol=1e-6)
        for out in range(4):
            rest = [np.concatenate([p[s][:, neuron] for n, p in enumerate(data) if n != out]) for s in (0, 1)]
            np.testing.assert_allclose(found.corr.without[out, neuron], stats.pearsonr(*rest)[0], atol=1e-6)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).standard_normal(30)
    without = np.array([[np.delete(values, n).mean()] for n in range(30)])
    np.testing.assert_allclose(standard_error(without)[0], values.std(ddof=1) / 30**0.5)


def test_intervals_cover_the_truth():
    for rho in (0.1, 0.6, 0.95):
        found, _ = paired(rho, 1500, seed=int(100 * rho))
        low, high = corr_interval(found)
        covered = ((low <= rho) & (rho <= high)).mean()
        assert 0.92 <= covered <= 0.98
        assert (low >= -1).all()
        assert (high <= 1).all()


def test_the_width_is_fishers_for_independent_tokens():
    found, _ = paired(0.5, 400)
    low, high = corr_interval(found)
    width = np.median(np.arctanh(high) - np.arctanh(low))
    np.testing.assert_allclose(width, 2 * stats.t.ppf(0.975, 19) / np.sqrt(4000 - 3), rtol=0.05)


def test_excess_intervals_cover_the_truth():
    """Two other models with known ρ, a baseline that is the same in every draw and was not rotated."""
    neurons, rhos = 1000, (0.7, 0.5)
    heldout = [paired(rho, neurons, seed=n)[0] for n, rho in enumerate(rhos)]
    chooser = np.random.default_rng(0)
    maxima = 0.2 + 0.01 * chooser.standard_normal((10, 2, neurons))
    units = np.full(maxima.shape, -1)
    estimate = excess_of(heldout, Baseline(maxima, units))
    assert 0.92 <= ((estimate.low <= 0.4) & (estimate.high >= 0.4)).mean() <= 0.985
    still = excess_of(heldout, Baseline(np.full_like(maxima, 0.2), units))
    assert ((estimate.high - estimate.low) > (still.high - still.low)).all()
    np.testing.assert_allclose(estimate.value, np.mean([h.corr.value for h in heldout], 0) - maxima.mean((0, 1)))


def excess_of(heldout, baseline):
    return excess_estimate(heldout, baseline, heldout_baseline(baseline, None, heldout))


def test_one_stretch_that_carries_a_match_is_counted_as_one():
    """All of ρ comes from one stretch of ten in the first pair, from every stretch alike in the second."""
    moments = PairedMoments("a", "b", torch.arange(2), 10)
    for stretch in range(10):
        a = torch.randn(400, 2, generator=torch.Generator().manual_seed(stretch))
        b = a.clone()
        a[:, 0] *= 100 if stretch == 3 else 0.01
        moments.update(Batch({Key("a"): Block(a), Key("b"): Block(b)}, shard=stretch))
    one, all_of_them = moments.result().stretches
    assert one < 1.05
    assert all_of_them > 9.5


def test_a_neuron_that_is_silent_on_held_out_rows_has_no_interval():
    moments = PairedMoments("a", "b", torch.tensor([0, 0]), 3)
    for stretch in range(3):
        a = torch.randn(10, 2)
        a[:, 1] = 0
        moments.update(Batch({Key("a"): Block(a), Key("b"): Block(torch.randn(10, 1))}, shard=stretch))
    low, _ = corr_interval(moments.result())
    assert np.isfinite(low[0])
    assert np.isnan(low[1])


def test_stretches_without_tokens_do_not_count():
    moments = PairedMoments("a", "b", torch.tensor([0]), 4)
    for stretch in (0, 2, 3):
        moments.update(Batch({Key("a"): Block(torch.randn(50, 1)), Key("b"): Block(torch.randn(50, 1))}, shard=stretch))
    found = moments.result()
    assert isinstance(found, HeldOut)
    assert found.corr.without.shape == (3, 1)


def test_without_sinks_what_is_left_is_exact_far_from_the_shift():
    """Sinks of 10 000 in every batch have moved the provisional means to −300, in deviations of what is left."""
    chooser = np.random.default_rng(0)
    a = chooser.standard_normal((400, 3))
    b = (0.6 * a + 0.8 * chooser.standard_normal((400, 3))).astype(np.float32)
    a = a.astype(np.float32) - 300
    norms = np.ones((400, 1), np.float32)
    a[::40], b[::40], norms[::40] = 1e4, 1e4, 12
    moments = PairedMoments("a", "b", torch.arange(3), 2, streams=["b"], factor=10.0)
    for part in np.array_split(np.arange(400), 5):
        values = {Key("a"): a, Key("b"): b, Key("b", What.STREAM): norms}
        moments.update(Batch({key: Block(torch.from_numpy(of[part])) for key, of in values.items()}))
    kept = norms[:, 0] < 10
    expected = [np.corrcoef(a[kept, n].astype(float), b[kept, n].astype(float))[0, 1] for n in range(3)]
    result = moments.result()
    np.testing.assert_allclose(result.without_sinks, expected, atol=1e-9)
    assert result.corr.value.min() > 0.99
