"""The count of universal neurons is a threshold's: how many exceed each of many, and how many by chance.

The baseline's null is that of the basis test (`baselines.q_values`): a draw's maximum minus the mean of the other
draws' maxima, averaged over models.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int

GRID = tuple(round(0.05 * step, 2) for step in range(1, 20))


def thresholds_with(own: float) -> list[float]:
    """The grid 0.05 … 0.95 and a study's own threshold, ascending."""
    return sorted({*GRID, own})


def counts_above(excess: Float[np.ndarray, " neurons"], thresholds: Sequence[float]) -> Int[np.ndarray, " thresholds"]:
    """How many exceed each threshold; NaN (dead) exceeds none."""
    ordered = np.sort(excess[np.isfinite(excess)])
    return len(ordered) - np.searchsorted(ordered, thresholds, side="right")


def null_excess(maxima: Float[np.ndarray, "draws models neurons"]) -> Float[np.ndarray, "draws neurons"]:
    """Every draw's excess over the mean of the others (see the module)."""
    others = (maxima.sum(0) - maxima) / (len(maxima) - 1)
    return (maxima - others).mean(1)


def null_counts(draws: Iterable[np.ndarray], thresholds: Sequence[float]) -> Float[np.ndarray, " thresholds"]:
    """How many of a null's neurons exceed each threshold, averaged over draws: the excesses of each."""
    return np.mean([counts_above(draw, thresholds) for draw in draws], 0)
