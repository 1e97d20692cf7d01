"""The jackknife: how sure an estimate is, from its values with one stretch of text left out at a time.

Neighbouring tokens are alike, so what is left out is a stretch of rows.  Intervals take Student's t with one degree of
freedom fewer than there are stretches.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from universal_neurons.text import STRETCHES

LEVEL = 0.95


def stretch_of(rows: Int[np.ndarray, " tokens"]) -> Int[np.ndarray, " tokens"]:
    """The stretch, of at most 20, that each token's row of text is in."""
    known, place = np.unique(rows, return_inverse=True)
    return place * STRETCHES // len(known)


@dataclass(frozen=True)
class Jackknifed:
    """An estimate of many things at once, and the same with each stretch of text left out."""

    value: Float[np.ndarray, "*any"]
    without: Float[np.ndarray, " stretches *any"]

    @classmethod
    def of(
        cls,
        estimate: Callable[[float, np.ndarray], np.ndarray],
        counts: Int[np.ndarray, " stretches"],
        sums: Float[np.ndarray, " stretches *sums"],
    ) -> "Jackknifed":
        """An estimate made of a count and sums, from those of every stretch; stretches without a position are none."""
        used = counts > 0
        counts, sums = counts[used].astype(np.float64), sums[used]
        total, whole = counts.sum(), sums.sum(0)
        value = estimate(total, whole)
        if len(counts) < 2:
            return cls(value, np.full((1, *value.shape), np.nan))
        return cls(value, np.stack([estimate(total - n, whole - part) for n, part in zip(counts, sums)]))

    def map(self, function: Callable[..., np.ndarray], *others: "Jackknifed") -> "Jackknifed":
        """A function of this and other estimates from the same stretches."""
        values, without = [other.value for other in others], [other.without for other in others]
        parts = [function(*stretch) for stretch in zip(self.without, *without)]
        return Jackknifed(function(self.value, *values), np.stack(parts))

    def interval(
        self, level: float = LEVEL, other_error: float | Float[np.ndarray, "*any"] = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end (see the module); `other_error` is a standard error from elsewhere, added in squares."""
        error = np.sqrt(standard_error(self.without) ** 2 + np.square(other_error))
        reach = quantile(len(self.without), level) * error
        return self.value - reach, self.value + reach


def standard_error(without: Float[np.ndarray, " stretches *any"]) -> Float[np.ndarray, "*any"]:
    """Standard error of an estimate from its values with one of G stretches left out."""
    n = len(without)
    return np.asarray(np.sqrt((n - 1) / n * ((without - without.mean(0)) ** 2).sum(0)))


def quantile(stretches: int, level: float = LEVEL) -> float:
    """By how many standard errors an interval reaches to either side; NaN of one stretch."""
    from scipy import stats  # late: half a second

    return float(stats.t.ppf((1 + level) / 2, stretches - 1))


def reach(without: Float[np.ndarray, " stretches *any"], level: float = LEVEL) -> Float[np.ndarray, "*any"]:
    """Half the interval of an estimate from its values with one stretch left out."""
    return np.asarray(quantile(len(without), level) * standard_error(without))
