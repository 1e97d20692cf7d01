"""How sure a match and an excess are: intervals from held-out rows, which chose neither match nor rotated neuron.

- A match's ρ: the jackknife over stretches of text, on atanh ρ.
- An excess: the jackknife of the difference, mean over models of [ρ − b], of a match and the rotated neurons that the
  baseline's maxima were with (`rotated_heldout`).  These are of some draws; by how much all draws' mean differs on the
  rows that choose is added to b, and the standard error of all draws to the interval.
- Where nothing was rotated (shuffled positions) b is that of the rows that choose.

A correlation lies between −1 and 1, so an excess between −1 − b and 1 − b, and below 1, for b is a maximum: intervals
end there, b at its own end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from universal_neurons.matching.baselines import HIGHEST_BASELINE, Baseline, normalised_excess
from universal_neurons.matching.heldout import HeldOut
from universal_neurons.matching.rotated_heldout import ROTATED_DRAWS
from universal_neurons.statistics import Jackknifed

LIMIT = 1 - 1e-12


@dataclass(frozen=True)
class Estimate:
    """A number on held-out rows and the ends of its 95 % interval."""

    value: Float[np.ndarray, " neurons"]
    low: Float[np.ndarray, " neurons"]
    high: Float[np.ndarray, " neurons"]


def corr_interval(heldout: HeldOut) -> tuple[np.ndarray, np.ndarray]:
    """Interval of ρ (see the module)."""
    low, high = heldout.corr.map(lambda corr: np.arctanh(np.clip(corr, -LIMIT, LIMIT))).interval()
    return np.tanh(low), np.tanh(high)


def heldout_baseline(
    baseline: Baseline, rotated: Sequence[Jackknifed] | None, like: Sequence[HeldOut]
) -> list[Jackknifed]:
    """The baseline on held-out rows, of every other model; `rotated` holds what was asked again of its first draws."""
    if rotated is None:
        return [Jackknifed(b, np.broadcast_to(b, h.corr.without.shape)) for b, h in zip(baseline.mean, like)]
    beyond = baseline.mean - baseline.maxima[:ROTATED_DRAWS].mean(0)
    return [asked.map(lambda b, more=more: b + more) for asked, more in zip(rotated, beyond)]


def baseline_estimate(baseline: Baseline, heldout: Sequence[Jackknifed]) -> Estimate:
    """The baseline, its mean over models."""
    return _estimate(_mean(heldout), _draw_error(baseline), least=-1.0, most=1.0)


def excess_estimate(matches: Sequence[HeldOut], baseline: Baseline, heldout: Sequence[Jackknifed]) -> Estimate:
    """Mean over models of ρ − b (eq 3)."""
    excess = [match.corr.map(np.subtract, b) for match, b in zip(matches, heldout)]
    b = baseline_estimate(baseline, heldout)
    return _estimate(_mean(excess), _draw_error(baseline), least=-1 - b.high, most=np.minimum(1 - b.low, 1))


def normalised_estimate(matches: Sequence[HeldOut], baseline: Baseline, heldout: Sequence[Jackknifed]) -> Estimate:
    """Mean over models of (ρ − b) / (1 − b)."""

    def normalised(*parts: np.ndarray) -> np.ndarray:
        corr, b = np.stack(parts[: len(matches)]), np.stack(parts[len(matches) :])
        return normalised_excess(corr, b)

    first, *others = [match.corr for match in matches]
    room = np.clip(1 - baseline.mean, 1 - HIGHEST_BASELINE, None).mean(0)
    return _estimate(first.map(normalised, *others, *heldout), _draw_error(baseline) / room, least=-np.inf, most=1.0)


def _mean(estimates: Sequence[Jackknifed]) -> Jackknifed:
    first, *others = estimates
    return first.map(lambda *values: np.asarray(np.mean(values, 0)), *others)


def _draw_error(baseline: Baseline) -> Float[np.ndarray, " neurons"]:
    """Standard error of the baseline's mean over models, by its draws."""
    draws = baseline.maxima.mean(1)
    return np.asarray(draws.std(0, ddof=1) / np.sqrt(len(draws)))


def _estimate(
    jackknifed: Jackknifed, other_error: np.ndarray, *, least: float | np.ndarray, most: float | np.ndarray
) -> Estimate:
    low, high = jackknifed.interval(other_error=other_error)
    return Estimate(jackknifed.value, np.clip(low, least, most), np.clip(high, least, most))
