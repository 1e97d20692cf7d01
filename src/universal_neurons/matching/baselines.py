"""What a correlation would be by chance: rotated, Gaussian and permutation baselines; excess and error rate.

The rotated baseline needs no second pass.  With R a random orthogonal matrix and V_ℓ the activations of layer ℓ of
the other model, Cov(A, R V_ℓ) = Cov(A, V_ℓ) Rᵀ and Var(R V_ℓ) = diag(R Cov(V_ℓ, V_ℓ) Rᵀ).  One R per draw serves every
layer and model of equal width.  `gaussian` takes the authors' matrix instead: Gaussian, its rows of unit norm.
`permutation` shuffles token positions during the pass (`comoments.ShuffledCoMoments`).

Excess correlation (eq 3): mean over models of [best ρ − mean over draws of the best baseline ρ]; |ρ| in both where
either model is gated (`correlation`).

Two things make the paper's rotation hard to read.  Where a few neurons hold most of a layer's variance every rotated
neuron is mostly these, so their own baseline is near 1; and no excess exceeds 1 − baseline.  So each draw is applied to
standardised neurons too, and `normalised` says how much of the way from the baseline to 1 a neuron went.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.matching.rotated_pairs import RotatedPairs
from universal_neurons.statistics import CrossMoments, LayerCovariance, seed_of

PANEL_ROWS = 1024
ROTATIONS_BYTES = 1 << 28  # of draws whose matrices are held together
NO_UNIT = -1
MOST_DRAWS, FEWEST_DRAWS, DRAWS_SHARE = 20, 4, 0.25  # by default, within this share of the pass's products
HIGHEST_BASELINE = 0.95  # above it an excess says nothing


def draws_within(tokens: int, width: int) -> int:
    """How many draws a study of so many tokens makes by default, where layers have at most so many neurons.

    A draw's products, of neurons as they are and standardised, are 2 · width / tokens of those of the pass.  All
    take a quarter of them at most, but for the four draws that are asked again on held-out rows.
    """
    return min(MOST_DRAWS, max(FEWEST_DRAWS, int(DRAWS_SHARE * tokens / (2 * width))))


def rotations(kind: str, widths: Iterable[int], seed: int, draw: int) -> dict[int, Float[Tensor, "width width"]]:
    """A draw's matrix for each width that layers have."""
    return {width: rotation(kind, width, seed, draw) for width in sorted(set(widths))}


def rotation_bytes(widths: Iterable[int]) -> int:
    """What a draw's matrices take, in float64 and in float32."""
    return max(1, 12 * sum(width**2 for width in set(widths)))


def rotation(kind: str, width: int, seed: int, draw: int) -> Float[Tensor, "width width"]:
    """A random orthogonal matrix (Haar), or one with Gaussian rows of unit norm, in float64."""
    generator = torch.Generator().manual_seed(seed_of("rotation", seed, draw, width))
    gaussian = torch.randn(width, width, dtype=torch.float64, generator=generator)
    if kind == "gaussian":
        return gaussian / gaussian.norm(dim=1, keepdim=True)
    assert kind == "rotation", kind
    q, r = torch.linalg.qr(gaussian)
    return q * r.diagonal().sign()


@dataclass(frozen=True)
class Maxima:
    """Every neuron's highest ρ with the other model's rotated neurons, in some draws of the baseline.

    `unit` says which rotated neuron it is with (the first number of its layer + row of the draw's matrix); −1 where
    there is none.  By size, `corr` is |ρ| and `sign` ρ's sign; else it is None.
    """

    corr: Float[Tensor, "draws neurons"]
    unit: Int[Tensor, "draws neurons"]
    sign: Int[Tensor, "draws neurons"] | None = None

    @classmethod
    def nothing(cls, draws: int, neurons: int, *, by_size: bool = False) -> "Maxima":
        """Of no comparison."""
        shape = draws, neurons
        sign = torch.ones(shape, dtype=torch.int8) if by_size else None
        return cls(torch.full(shape, torch.nan, dtype=torch.float64), torch.full(shape, NO_UNIT), sign)

    def put(self, draw: int, corr: Float[Tensor, " neurons"], unit: Int[Tensor, " neurons"]) -> None:
        """Set a draw's maxima, their ρ signed."""
        self.corr[draw], self.unit[draw] = corr, unit
        if self.sign is not None:
            self.sign[draw] = torch.where(self.corr[draw] < 0, -1, 1).to(torch.int8)
            self.corr[draw] = self.corr[draw].abs()

    def beside(self, other: "Maxima") -> "Maxima":
        """Of the same neurons with two parts of the other model: with both."""
        better = (other.corr > self.corr) | self.corr.isnan()
        sign = None
        if self.sign is not None and other.sign is not None:
            sign = torch.where(better, other.sign, self.sign)
        return Maxima(torch.where(better, other.corr, self.corr), torch.where(better, other.unit, self.unit), sign)

    def below(self, other: "Maxima") -> "Maxima":
        """Of two parts of the neurons: of both."""
        sign = None
        if self.sign is not None and other.sign is not None:
            sign = torch.cat([self.sign, other.sign], 1)
        return Maxima(torch.cat([self.corr, other.corr], 1), torch.cat([self.unit, other.unit], 1), sign)


@dataclass(frozen=True)
class Baseline:
    """The maxima of several other models: their ρ, or |ρ| by size, and the rotated neurons they are with.

    `signs` holds, of each model that is matched by size, the signs of these ρ; None of others.
    """

    maxima: Float[np.ndarray, "draws models neurons"]
    units: Int[np.ndarray, "draws models neurons"]
    signs: tuple[Int[np.ndarray, "draws neurons"] | None, ...] = ()

    @classmethod
    def of(cls, maxima: Sequence[Maxima]) -> "Baseline":
        """Of the other models, in this order."""
        corr, unit = (torch.stack([getattr(one, name) for one in maxima], 1).numpy() for name in ("corr", "unit"))
        return cls(corr, unit, tuple(None if one.sign is None else one.sign.numpy() for one in maxima))

    @property
    def mean(self) -> Float[np.ndarray, "models neurons"]:
        """The baseline of every neuron in each model: the mean over draws."""
        return np.asarray(self.maxima.mean(0))


def rotated_best(
    cross: CrossMoments,
    left: Float[Tensor, " left"],
    right: LayerCovariance,
    rotated: Mapping[int, Float[Tensor, "width width"]],
    noise: float = 0.0,
    *,
    standardised: bool = False,
    by_size: bool = False,
    signs: Float[Tensor, " right"] | None = None,
    pairs: RotatedPairs | None = None,
) -> tuple[Float[Tensor, " left"], Int[Tensor, " left"]]:
    """Every left neuron's highest ρ with the rotated neurons of the other model, over all its layers; and with which.

    `left` holds inverse norms; NaN (dead) stays NaN.  `noise` is the error variance of a sketch's ρ: the ρ with a
    layer's rotated neurons are near Gaussian, so their maximum shrinks with their spread, √(1 − noise / mean ρ²).
    `standardised` rotates the other model's neurons after each was brought to variance 1: else the few of largest
    variance are most of every rotated one.  `rotated` holds the matrix of each width (`rotations`); a rotated neuron
    has the number of the neuron whose row of the matrix is its.  `by_size` takes the ρ of highest size, signed; `signs`
    (1 or −1) are what the other model's neurons are taken times before they are rotated.  `pairs` is shown all ρ.
    """
    best = _Best(left, noise, by_size, pairs)
    _rotate(cross, left, right, {0: rotated}, {(0, standardised): best}, signs)
    return best.found()


class _Best:
    """The highest ρ so far of every left neuron with rotated neurons of one draw (see `rotated_best`)."""

    def __init__(self, left: Tensor, noise: float, by_size: bool, pairs: RotatedPairs | None) -> None:
        self.left, self.noise, self.by_size, self.pairs = left, noise, by_size, pairs
        self.best = torch.full_like(left, -torch.inf, dtype=torch.float32)
        self.unit = torch.full(left.shape, NO_UNIT, device=left.device)
        self.negative = torch.zeros(left.shape, dtype=torch.bool, device=left.device)

    def see(self, rows: slice, columns: slice, rho: Float[Tensor, "rows width"]) -> None:
        """Take over what is higher among some rows' ρ with a layer's rotated neurons."""
        strength = (rho.abs() if self.by_size else rho).nan_to_num(nan=-torch.inf)
        highest, row = strength.max(1)
        below = self.by_size & (rho.gather(1, row[:, None])[:, 0] < 0)
        kept: Tensor | float = 1.0
        if self.noise:
            kept = (1 - self.noise / rho.square_().nanmean(1)).clamp_min(0).sqrt()
            highest *= kept
        if self.pairs is not None:
            self.pairs.see(rows, columns, strength, kept)
        better = highest > self.best[rows]
        self.best[rows] = torch.where(better, highest, self.best[rows])
        self.unit[rows] = torch.where(better, row + columns.start, self.unit[rows])
        self.negative[rows] = torch.where(better, below, self.negative[rows])

    def found(self) -> tuple[Float[Tensor, " left"], Int[Tensor, " left"]]:
        """The highest ρ, signed, and the rotated neurons they are with."""
        known = torch.isfinite(self.best) & ~torch.isnan(self.left)
        best = torch.where(self.negative, -self.best, self.best)
        return torch.where(known, best.clamp(-1, 1).double(), torch.nan), torch.where(known, self.unit, NO_UNIT)


def _rotate(
    cross: CrossMoments,
    left: Float[Tensor, " left"],
    right: LayerCovariance,
    rotated: Mapping[int, Mapping[int, Float[Tensor, "width width"]]],
    into: Mapping[tuple[int, bool], _Best],
    signs: Float[Tensor, " right"] | None,
) -> None:
    """Show each of `into`, by draw and whether neurons are standardised, the ρ with that draw's rotated neurons.

    Co-moments are centred once for all draws.
    """
    rotated = {draw: {w: m.to(left.device) for w, m in matrices.items()} for draw, matrices in rotated.items()}
    for layer, covariance in enumerate(right.centred):
        if not len(covariance):  # a layer without units
            continue
        columns = right.units.columns(layer)
        inverse = inverse_deviations(covariance)
        covariances = {False: covariance, True: covariance * inverse[:, None] * inverse}
        turned, scales = {}, {}
        for draw, standardised in into:
            matrix = rotated[draw][len(covariance)]
            matrix = matrix if signs is None else matrix * signs[columns]
            variance = ((matrix @ covariances[standardised]) * matrix).sum(1)
            scales[draw, standardised] = torch.where(variance > 0, variance.rsqrt(), torch.nan).float()
            turned[draw] = matrix.float()
        for start in range(0, len(left), PANEL_ROWS):
            rows = slice(start, start + PANEL_ROWS)
            centred = cross.centred(rows, columns) * left[rows, None]
            of_kind = {kind: (centred * inverse if kind else centred).float() for kind in {kind for _, kind in into}}
            for which, best in into.items():
                draw, standardised = which
                best.see(rows, columns, (of_kind[standardised] @ turned[draw].T).mul_(scales[which]))


@dataclass(frozen=True)
class Drawing:
    """How rotations are drawn, and compared: `noise` and `by_size` as of `rotated_best`."""

    kind: str
    seed: int
    draws: int
    noise: float = 0.0
    by_size: bool = False
    few: int = 1  # rotated neurons of the first draw that are kept of every asker


def rotated_maxima(
    cross: CrossMoments,
    left: Float[Tensor, " left"],
    right: LayerCovariance,
    drawing: Drawing,
    first: tuple[int, int],
    signs: Float[Tensor, " right"] | None = None,
    *,
    final: bool,
) -> tuple[Maxima, Maxima | None, RotatedPairs | None]:
    """Maxima under rotations, of neurons as they are and (`final`) of standardised ones; `signs` as of `rotated_best`.

    `final`: also who is whose best in the first draw, neurons as they are.  `first` are the numbers of the first of the
    asker's and of the other model's neurons that are there.
    """
    kinds, by_size = (False, *[True] * final), drawing.by_size
    maxima = {kind: Maxima.nothing(drawing.draws, len(left), by_size=by_size) for kind in kinds}
    pairs = RotatedPairs.nothing(len(left), len(right.units), left.device, drawing.few) if final else None
    widths = right.units.widths
    together = max(1, ROTATIONS_BYTES // rotation_bytes(widths))
    for start in range(0, drawing.draws, together):
        draws = range(start, min(start + together, drawing.draws))
        into = {
            (draw, kind): _Best(left, drawing.noise, by_size, None if draw or kind else pairs)
            for draw in draws
            for kind in kinds
        }
        turned = {draw: rotations(drawing.kind, widths, drawing.seed, draw) for draw in draws}
        _rotate(cross, left, right, turned, into, signs)
        for (draw, kind), best in into.items():
            corr, unit = best.found()
            maxima[kind].put(draw, corr, torch.where(unit >= 0, unit + first[1], unit))
    return maxima[False], maxima.get(True), None if pairs is None else pairs.numbered(*first)


def inverse_deviations(covariance: Float[Tensor, "width width"]) -> Float[Tensor, " width"]:
    """1/√Σ(x−x̄)² of a layer's neurons, 0 for dead ones: what standardises them."""
    squares = covariance.diagonal()
    return torch.where(squares > 0, squares.rsqrt(), 0)


def excess_correlation(
    best: Float[np.ndarray, "models neurons"], maxima: Float[np.ndarray, "draws models neurons"]
) -> Float[np.ndarray, " neurons"]:
    """Eq 3, the baseline averaged over its draws."""
    return (best - maxima.mean(0)).mean(0)


def normalised_excess(
    best: Float[np.ndarray, "models neurons"], baseline: Float[np.ndarray, "models neurons"]
) -> Float[np.ndarray, " neurons"]:
    """Mean over models of (ρ − b) / (1 − b): 1 where every match is perfect, 0 where it is the baseline's.

    NaN where a baseline exceeds 0.95: there is nothing left to measure.
    """
    room = np.where(baseline <= HIGHEST_BASELINE, 1 - baseline, np.nan)
    return np.asarray(((best - baseline) / room).mean(0))


def q_values(
    best: Float[np.ndarray, "models neurons"], maxima: Float[np.ndarray, "draws models neurons"]
) -> Float[np.ndarray, " neurons"]:
    """False-discovery rate of calling every neuron with at least this excess a discovery.

    A draw's null excess is its maximum minus the mean of the other draws' maxima, averaged over models; the observed
    excess is measured against the same other draws.  At a threshold t the rate is the mean over draws of
    #{null ≥ t} / #{observed ≥ t}; a neuron's q-value is the lowest rate at any t up to its own excess.  It tests
    whether the neuron basis is privileged over a random one, not whether a neuron is universal.  Dead neurons: NaN.
    """
    alive = np.isfinite(best).all(0) & np.isfinite(maxima).all((0, 1))
    best, maxima = best[:, alive], maxima[:, :, alive]
    n_draws = len(maxima)
    excess = excess_correlation(best, maxima)
    rates = np.zeros_like(excess)
    total = maxima.sum(0)
    for draw in maxima:
        others = (total - draw) / (n_draws - 1)
        null = np.sort((draw - others).mean(0))
        observed = np.sort((best - others).mean(0))
        n_null = len(null) - np.searchsorted(null, excess, side="left")
        n_observed = len(observed) - np.searchsorted(observed, excess, side="left")
        rates += np.minimum(n_null / np.maximum(n_observed, 1), 1.0) / n_draws
    order = np.argsort(excess, kind="stable")
    lowest = np.empty_like(rates)
    lowest[order] = np.minimum.accumulate(rates[order])
    result = np.full(len(alive), np.nan)
    result[alive] = lowest
    return result
