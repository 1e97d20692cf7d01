"""The baseline's rotated neurons on held-out rows, against rotating the activations in float64 NumPy."""

import numpy as np
import pytest
import torch

from universal_neurons.errors import MergeError
from universal_neurons.matching import (
    ROTATED_DRAWS,
    HeldOut,
    RotatedMoments,
    baseline_estimate,
    excess_estimate,
    heldout_baseline,
    normalised_estimate,
)
from universal_neurons.matching.baselines import Baseline, rotation
from universal_neurons.statistics import Batch, Block, Jackknifed, Key
from universal_neurons.units import Units

UNITS, NEURONS, STRETCHES, DRAWS = Units.equal(2, 6), 5, 3, 2
GENERATOR = torch.Generator().manual_seed(0)
A = torch.randn(90, NEURONS, generator=GENERATOR)
B = torch.randn(90, 12, generator=GENERATOR).exp() + A[:, [0, 1, 2] * 4]
CHOSEN = torch.tensor([[0, 3, 11, 6, -1], [5, 5, 7, 2, 8]])
SCALE = 1 / B.std(0)


def moments(scale=None):
    return RotatedMoments("a", "b", CHOSEN, UNITS, "rotation", 7, STRETCHES, scale=scale)


def feed(accumulator, stretches=range(STRETCHES)):
    for stretch in stretches:
        for rows in torch.arange(90).view(STRETCHES, 2, -1)[stretch]:
            accumulator.update(Batch({Key("a"): Block(A[rows]), Key("b"): Block(B[rows])}, shard=stretch))
    return accumulator


def by_numpy(rows, scale=None):
    values = B.double().numpy()[rows] * (1 if scale is None else scale.double().numpy())
    rho = np.full((DRAWS, NEURONS), np.nan)
    for draw in range(DRAWS):
        turned = rotation("rotation", 6, 7, draw).numpy()
        rotated = np.concatenate([values[:, :6] @ turned.T, values[:, 6:] @ turned.T], 1)
        for neuron, unit in enumerate(CHOSEN[draw].tolist()):
            if unit >= 0:
                rho[draw, neuron] = np.corrcoef(A.double().numpy()[rows, neuron], rotated[:, unit])[0, 1]
    return rho.mean(0)


@pytest.mark.parametrize("scale", [None, SCALE])
def test_against_numpy(scale):
    found = feed(moments(scale)).result()
    everything = np.arange(90)
    np.testing.assert_allclose(found.value, by_numpy(everything, scale), atol=1e-6)
    for stretch in range(STRETCHES):
        rest = everything[everything // 30 != stretch]
        np.testing.assert_allclose(found.without[stretch], by_numpy(rest, scale), atol=1e-6)


def test_any_merge_and_any_snapshot_say_the_same():
    whole = feed(moments()).result()
    first, second = feed(moments(), [0]), feed(moments(), [1, 2])
    restored = moments()
    restored.restore(second.state())
    first.merge(restored)
    np.testing.assert_allclose(first.result().value, whole.value, atol=1e-12)
    with pytest.raises(MergeError):
        first.merge(moments(SCALE))
    with pytest.raises(MergeError, match="rotated"):
        first.merge(RotatedMoments("a", "b", CHOSEN.flip(1), UNITS, "rotation", 7, STRETCHES))


def test_what_the_other_draws_add_moves_the_baseline_and_not_its_jackknife():
    """The rotated neurons of the first draws stand for all: their mean on the rows that choose is the control."""
    chooser = np.random.default_rng(0)
    maxima = chooser.uniform(0.2, 0.4, (8, 2, NEURONS))
    asked = [Jackknifed(chooser.uniform(size=NEURONS), chooser.uniform(size=(4, NEURONS))) for _ in range(2)]
    found = heldout_baseline(Baseline(maxima, np.zeros(maxima.shape, int)), asked, [])
    for model, before in enumerate(asked):
        moved = maxima[:, model].mean(0) - maxima[:ROTATED_DRAWS, model].mean(0)
        np.testing.assert_allclose(found[model].value, before.value + moved)
        np.testing.assert_allclose(found[model].without, before.without + moved)


def test_the_estimates_are_differences_on_the_same_stretches_and_stay_possible():
    chooser = np.random.default_rng(1)
    value, base = chooser.uniform(0.5, 0.99, (2, NEURONS)), chooser.uniform(0.1, 0.4, (2, NEURONS))
    noise = 0.05 * chooser.standard_normal((2, 20, NEURONS))
    matches = [
        HeldOut(Jackknifed(v, v + e), np.full(NEURONS, 20.0), np.ones((2, NEURONS))) for v, e in zip(value, noise)
    ]
    heldout = [Jackknifed(b, b + e) for b, e in zip(base, noise)]  # the same noise: the difference has none
    baseline = Baseline(np.broadcast_to(base, (4, 2, NEURONS)), np.zeros((4, 2, NEURONS), int))
    excess = excess_estimate(matches, baseline, heldout)
    np.testing.assert_allclose(excess.value, (value - base).mean(0))
    np.testing.assert_allclose(excess.high - excess.low, 0, atol=1e-12)
    normalised = normalised_estimate(matches, baseline, heldout)
    np.testing.assert_allclose(normalised.value, ((value - base) / (1 - base)).mean(0))
    assert (normalised.high <= 1).all()
    alone = baseline_estimate(baseline, heldout)
    certain = [Jackknifed(np.full(NEURONS, 0.9), np.full((20, NEURONS), 0.9)) for _ in range(2)]
    wide = [HeldOut(Jackknifed(v, v + 20 * e), m.stretches, m.variances) for v, e, m in zip(value, noise, matches)]
    np.testing.assert_allclose(excess_estimate(wide, baseline, certain).high, 0.1)  # no ρ exceeds 1
    assert (alone.high > alone.low).all()
    assert (alone.low >= -1).all()
