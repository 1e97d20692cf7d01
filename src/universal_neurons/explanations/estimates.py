"""How well would a scorer's answers fit all held-out windows, from those that were drawn with known probabilities?

1. Of each stratum's N windows n were drawn, each as likely as any other; one that was drawn stands for N / n.  All
   windows of a stratum are of one class: those that should be answered yes, or no.
2. AUPRC: the mean over windows of yes of the precision among the windows whose score is at least theirs (ties
   together).  A window counts once in its own precision, and the others drawn stand for the others there are: else
   the weight of a single window lifts the precision that it is itself judged by.
3. Balanced accuracy: the mean of the shares of yes and of no that were answered right, yes being a score > 0.5;
   0.5 itself is half of each.
4. Pearson's ρ of what was simulated and the activation, over tokens, windows being drawn whole.
5. The delete-one jackknife within strata, with the finite-population correction, gives the estimate's bias, which is
   taken off, and its standard error; the 95 % interval is Student's t on the logit (ρ: arctanh) scale, with
   Satterthwaite's degrees of freedom.  Measured: `benchmarks/score_coverage.py`.
   Of balanced accuracy the interval supposes a quarter of a right and of a wrong answer more in every stratum: where
   nearly all are right the jackknife sees too little.
6. Where no two answers differ in a way that matters, the standard error is 0 and no interval: then it reaches to
   where the answers would be that none of n showed, at the exact binomial bound, all against or all for the scorer.

Sources: Wolter, Introduction to Variance Estimation (2007), ch. 4; Särndal, Swensson and Wretman, Model Assisted
Survey Sampling (1992), ch. 5.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit, logit

LEVEL = 0.95
EDGE = 1e-3  # where scales that end are cut off
HALF = 0.5  # a score above it is a yes
UNSEEN = 0.25  # of a right and of a wrong answer, that each stratum is given besides
TINY = 1e-12
ROUNDING = 1e-6  # of sums of weights

Weights = Float[np.ndarray, "times windows"]
Statistic = Callable[[Weights], Float[np.ndarray, " times"]]


class Scale(NamedTuple):
    """Where an interval is made: between `least` and `most`, by a function, its inverse and the inverse's slope."""

    least: float
    most: float
    to: Callable[[float], float]
    back: Callable[[float], float]
    slope: Callable[[float], float]


LOGIT = Scale(0.0, 1.0, logit, expit, lambda value: value * (1 - value))
ARCTANH = Scale(-1.0, 1.0, np.arctanh, np.tanh, lambda value: 1 - value**2)


@dataclass(frozen=True)
class Estimate:
    """An estimate for all windows and its 95 % interval; NaN where there is none."""

    value: float
    low: float
    high: float


NOTHING = Estimate(np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class Design:
    """Which stratum each answered window is of, and how many windows each stratum has in all."""

    stratum: Int[np.ndarray, " windows"]
    sizes: Int[np.ndarray, " strata"]

    def __post_init__(self) -> None:
        assert (self.counts <= self.sizes).all(), "more windows drawn than there are"

    @classmethod
    def of(
        cls, stratum: Int[np.ndarray, " windows"], sizes: Int[np.ndarray, " strata"], yes: Bool[np.ndarray, " strata"]
    ) -> "Design":
        """A stratum of which fewer than two windows (and not all) were answered joins another of its class."""
        stratum, sizes = stratum.copy(), sizes.copy()
        for s, size in enumerate(sizes.tolist()):
            kin = np.flatnonzero((yes == yes[s]) & (sizes > 0) & (np.arange(len(sizes)) != s))
            if (stratum == s).sum() < min(size, 2) and len(kin):
                stratum[stratum == s] = kin[0]
                sizes[kin[0]] += size
                sizes[s] = 0
        return cls(stratum, sizes)

    @cached_property
    def counts(self) -> Int[np.ndarray, " strata"]:
        """How many windows of each stratum were answered."""
        return np.bincount(self.stratum, minlength=len(self.sizes))

    @property
    def represents(self) -> bool:
        """Whether every stratum that has windows has at least two that were answered, or all of them."""
        return bool((self.counts >= np.minimum(self.sizes, 2)).all())

    @cached_property
    def weights(self) -> Float[np.ndarray, " windows"]:
        """For how many windows each stands."""
        return (self.sizes / np.maximum(self.counts, 1))[self.stratum]

    @cached_property
    def left_out(self) -> Weights:
        """The weights with each window in turn left out; the others of its stratum stand for it."""
        counts = self.counts[self.stratum]
        same = self.stratum[:, None] == self.stratum
        others = self.weights * (counts / np.maximum(counts - 1, 1))
        weights = np.where(same, others, self.weights)
        np.fill_diagonal(weights, np.where(counts > 1, 0, self.weights))  # alone and all there is: never left out
        return weights

    def by_stratum(self, values: Float[np.ndarray, " windows"]) -> Float[np.ndarray, " strata"]:
        """Sums of the windows' values in each stratum."""
        return np.bincount(self.stratum, values, len(self.sizes))

    @cached_property
    def not_drawn(self) -> Float[np.ndarray, " strata"]:
        """The share of each stratum that was not drawn: the finite-population correction."""
        return np.where(self.sizes, 1 - self.counts / np.maximum(self.sizes, 1), 0)

    def bias_and_error(self, value: float, replicates: Float[np.ndarray, " windows"]) -> tuple[float, float, float]:
        """The jackknife's bias and standard error of a value, and the error's degrees of freedom."""
        counts = np.maximum(self.counts, 1)
        means = self.by_stratum(replicates) / counts
        bias = (self.not_drawn * (counts - 1) * (means - value))[self.counts > 0].sum()
        spread = self.by_stratum((replicates - means[self.stratum]) ** 2)
        parts = self.not_drawn * (counts - 1) / counts * spread
        return float(bias), float(np.sqrt(parts.sum())), self.freedom(parts)

    def freedom(self, parts: Float[np.ndarray, " strata"]) -> float:
        """Satterthwaite's degrees of freedom of a variance whose parts are of the strata."""
        of_strata = (parts**2 / np.maximum(self.counts - 1, 1)).sum()
        return float(max(parts.sum() ** 2 / max(of_strata, np.finfo(float).tiny), 1))


@dataclass(frozen=True)
class Answered:
    """Answers to yes-or-no questions: of each window drawn the score, and which strata should be answered yes."""

    design: Design
    score: Float[np.ndarray, " windows"]
    yes: Bool[np.ndarray, " strata"]

    @property
    def base_rate(self) -> float:
        """The share of all windows that should be answered yes: the AUPRC of a scorer that knows nothing."""
        return float(self.design.sizes[self.yes].sum() / self.design.sizes.sum())

    def auprc(self) -> Estimate:
        """The area under the curve of precision and recall."""
        return self._estimated(self._average_precision)

    def balanced_accuracy(self) -> Estimate:
        """The mean of the shares of yes and of no that were answered right."""
        estimate, design = self._estimated(self._balanced_accuracy), self.design
        counts, right = design.counts, design.by_stratum(self._right(self.score, design.stratum))
        alike = (right == 0) | (right == counts)
        if not np.isfinite(estimate.value) or alike.all() or not design.not_drawn.any():
            return estimate
        whole = np.where(self.yes, design.sizes[self.yes].sum(), design.sizes[~self.yes].sum())
        shares = (right + UNSEEN) / (counts + 2 * UNSEEN)
        parts = (design.sizes / whole / 2) ** 2 * design.not_drawn * shares * (1 - shares) / np.maximum(counts - 1, 1)
        centre = float((design.sizes / whole / 2 * shares).sum())
        low, high = _interval(centre, float(np.sqrt(parts.sum())), design.freedom(parts), LOGIT)
        return Estimate(estimate.value, min(low, estimate.value), max(high, estimate.value))

    def _estimated(self, statistic: Callable[..., Float[np.ndarray, " times"]]) -> Estimate:
        design = self.design
        if not design.represents or not 0 < self.base_rate < 1:
            return NOTHING
        estimate = _estimated(design, partial(statistic, self.score, design.stratum), LOGIT)
        if estimate.low < estimate.high or not design.not_drawn.any():
            return estimate
        ends = [float(statistic(*self._with_unseen(in_favour))[0]) for in_favour in (False, True)]
        return Estimate(estimate.value, min(ends[0], estimate.value), max(ends[1], estimate.value))

    def _with_unseen(self, in_favour: bool) -> tuple[np.ndarray, np.ndarray, Weights]:
        """Scores, strata, weights with one window a stratum more, for as many as none of n answers might have shown."""
        design = self.design
        share = design.not_drawn * (1 - ((1 - LEVEL) / 2) ** (1 / np.maximum(design.counts, 1)))
        weights = np.concatenate([design.weights * (1 - share)[design.stratum], design.sizes * share])
        unseen = np.where(self.yes == in_favour, np.inf, -np.inf)
        stratum = np.concatenate([design.stratum, np.arange(len(design.sizes))])
        return np.concatenate([self.score, unseen]), stratum, weights[None]

    def _average_precision(
        self, score: np.ndarray, stratum: np.ndarray, weights: Weights
    ) -> Float[np.ndarray, " times"]:
        order = np.argsort(-score, kind="stable")
        score, stratum, weights = score[order], stratum[order], weights[:, order]
        ties = np.searchsorted(-score, -score, side="right") - 1
        above = np.stack([np.cumsum(weights * (stratum == s), 1)[:, ties] for s in range(len(self.yes))])
        kin = np.take_along_axis(above, stratum[None, None], 0)[0]
        sizes = self.design.sizes[stratum]
        besides = sizes - weights  # its stratum's windows for which those drawn besides stand
        again = np.where(besides > ROUNDING, (sizes - 1) / np.maximum(besides, ROUNDING), 0)
        once = 1 - kin + (kin - weights) * again  # itself once, and its kin by those drawn besides
        of_yes = weights * self.yes[stratum]
        precision = (above[self.yes].sum(0) + once) / np.maximum(above.sum(0) + once, 1)
        return np.asarray((of_yes * precision).sum(1) / of_yes.sum(1))

    def _balanced_accuracy(
        self, score: np.ndarray, stratum: np.ndarray, weights: Weights
    ) -> Float[np.ndarray, " times"]:
        yes = self.yes[stratum]
        right = self._right(score, stratum)
        shares = [(weights[:, of] * right[of]).sum(1) / weights[:, of].sum(1) for of in (yes, ~yes)]
        return np.asarray(sum(shares) / 2)

    def _right(self, score: np.ndarray, stratum: np.ndarray) -> Float[np.ndarray, " answers"]:
        """How right each answer is."""
        return np.where(score == HALF, 0.5, (score > HALF) == self.yes[stratum]).astype(float)


@dataclass(frozen=True)
class Simulated:
    """Of each window drawn, on the tokens that were answered: how many, and the sums of what was said, what was, their
    squares and their product.
    """

    design: Design
    sums: Float[np.ndarray, "windows six"]

    @classmethod
    def of(cls, design: Design, said: np.ndarray, was: np.ndarray) -> "Simulated":
        """From windows × tokens of what was said and what was; a token counts where neither is NaN."""
        known = np.isfinite(said) & np.isfinite(was)
        x, y = (np.where(known, _standardised(values, known), 0) for values in (said, was))
        return cls(design, np.stack([part.sum(1) for part in (known, x, y, x * x, y * y, x * y)], 1).astype(float))

    def rho(self) -> Estimate:
        """Pearson's ρ over all tokens; none where either never varies."""
        if not self.design.represents or not np.isfinite(self._rho(self.design.weights[None])[0]):
            return NOTHING
        return _estimated(self.design, self._rho, ARCTANH)

    def _rho(self, weights: Weights) -> Float[np.ndarray, " times"]:
        n, x, y, xx, yy, xy = (weights @ self.sums).T
        spread = (xx - x * x / n) * (yy - y * y / n)
        return np.asarray((xy - x * y / n) / np.sqrt(np.where(spread > TINY, spread, np.nan)))


def _standardised(values: np.ndarray, known: Bool[np.ndarray, "windows tokens"]) -> np.ndarray:
    """Values about their mean, in standard deviations: ρ stays, and small numbers do not vanish."""
    of_known = values[known].astype(float)
    return (values - of_known.mean()) / (of_known.std() or 1.0)


def _estimated(design: Design, statistic: Statistic, scale: Scale) -> Estimate:
    """A statistic of the weights, its bias taken off, with its interval; none where it rests on one window."""
    plain = float(statistic(design.weights[None])[0])
    if not design.not_drawn.any():
        return Estimate(plain, plain, plain)
    replicates = statistic(design.left_out)
    if not np.isfinite(replicates).all():
        return NOTHING
    bias, error, freedom = design.bias_and_error(plain, replicates)
    value = min(max(plain - bias, scale.least), scale.most)
    if error < TINY:
        return Estimate(value, value, value)
    low, high = _interval(value, error, freedom, scale)
    return Estimate(value, min(low, value), max(high, value))


def _interval(centre: float, error: float, freedom: float, scale: Scale) -> tuple[float, float]:
    """Student's t interval, made on a scale."""
    inside = min(max(centre, scale.least + EDGE), scale.most - EDGE)
    from scipy.stats import t as student  # late: half a second

    reach = float(student.ppf((1 + LEVEL) / 2, freedom)) * error / scale.slope(inside)
    low, high = (float(scale.back(scale.to(inside) + way * reach)) for way in (-1, 1))
    return low, high
