"""The jackknife: how sure an estimate is, from its values with one stretch of text left out at a time.

Neighbouring tokens are alike, so what is left out is a stretch of rows.  Intervals take Student's t with one degree of
freedom fewer than there are stretches.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from universal_neurons.text import STRETCHES

LEVEL = 0.95


def stretch_of(rows: Int[np.ndarray, " tokens"]) -> Int[np.ndarray, " tokens"]:
    """The stretch, of at most 20, that each token's row of text is in."""
    known, place = np.unique(rows, return_inverse=True)
    return place * STRETCHES // len(known)


def standard_error(without: Float[np.ndarray, "stretches *any"]) -> Float[np.ndarray, "*any"]:
    """Standard error of an estimate from its values with one of G stretches left out."""
    n = len(without)
    return np.asarray(np.sqrt((n - 1) / n * ((without - without.mean(0)) ** 2).sum(0)))


def quantile(stretches: int, level: float = LEVEL) -> float:
    """By how many standard errors an interval reaches to either side; NaN of one stretch."""
    return float(stats.t.ppf((1 + level) / 2, stretches - 1))


def reach(without: Float[np.ndarray, "stretches *any"], level: float = LEVEL) -> Float[np.ndarray, "*any"]:
    """Half the interval of an estimate from its values with one stretch left out."""
    return np.asarray(quantile(len(without), level) * standard_error(without))
