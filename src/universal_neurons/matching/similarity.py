"""Two layers as wholes, on the same n positions: debiased linear CKA, CCA, ridge R² in both directions.

1. A layer's centred activations X (positions × units) are taken to their principal axes, each of norm 1: X = Z √Λ Qᵀ.
   All four measures of X and Y are sums over P² = (Zᵀ_x Z_y)², entry by entry, so one product serves them:
   ‖XᵀY‖² = Σ λ_i μ_j P_ij²; the squared canonical correlations add up to Σ P_ij² over the components kept; ridge
   explains Σ (2h_i − h_i²) μ_j P_ij² of Σ μ_j, h_i = λ_i / (λ_i + r).
2. CKA is ⟨X, Y⟩ / √(⟨X, X⟩ ⟨Y, Y⟩) of the unbiased estimate of HSIC (Song et al. 2012, eq 5): by the biased one any
   two wide layers are alike.  CCA is the *mean squared* canonical correlation, on as many components as hold 99 % of
   either variance, at most a tenth of the positions.  r is a hundredth of a living unit's λ on average; R² is
   of the positions that ridge is fitted to.
3. CCA and R² are high by chance, the more so the wider the layers.  Chance is what the same measures give where the
   rows of Y are circularly shifted, by a random number of rows: neighbouring rows depend on each other, and still do.
   Calibrated: (value − chance) / (1 − chance), 0 by chance and 1 of layers that are the same.
4. Intervals: a jackknife over stretches, to first order.  What leaving out a stretch does to a fit is second order, so
   a stretch's share of the sums of the fit to all is left out.  The spread of chance over shifts enters in squares.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from universal_neurons.statistics import Jackknifed

MEASURES = ("cka", "cca", "r2_to_match", "r2_from_match")
SHIFTS = 3
RIDGE = 0.01  # of Σ(x − x̄)² of a living unit, on average
VARIANCE = 0.99  # of a layer, held by the components of CCA
POSITIONS_PER_COMPONENT = 10
SMALLEST = 1e-12  # of the largest λ: what is below is rounding
ROWS_AT_ONCE = 8192
KEPT_BYTES = 1 << 26  # of a layer's products within stretches; larger ones are made each time


class Layer:
    """A layer's activations in their principal axes, positions in the order of their stretches.

    `ends` are the numbers of positions at which stretches end.
    """

    def __init__(self, values: Float[Tensor, "positions units"], ends: Sequence[int]) -> None:
        self.n, self.ends = len(values), tuple(ends)
        assert self.ends[-1] == self.n
        mean = values.mean(0, dtype=torch.float64)
        pieces = values.split(ROWS_AT_ONCE)
        gram = torch.zeros(values.shape[1], values.shape[1], dtype=torch.float64, device=values.device)
        for piece in pieces:
            centred = piece.double() - mean
            gram.addmm_(centred.T, centred)
        squares, axes = torch.linalg.eigh(gram)
        kept = squares > SMALLEST * squares[-1].clamp_min(torch.finfo(torch.float64).tiny)
        self.squares, axes = squares[kept].flip(0), axes[:, kept].flip(1)
        turn = axes * self.squares.rsqrt()
        self.axes = torch.empty(self.n, len(self.squares), device=values.device)
        self.sizes = torch.empty(self.n, dtype=torch.float64, device=values.device)
        for start, piece in zip(range(0, self.n, ROWS_AT_ONCE), pieces):
            centred = piece.double() - mean
            self.axes[start : start + len(piece)] = centred @ turn
            self.sizes[start : start + len(piece)] = centred.square().sum(1)
        self.total = self.squares.sum()
        self.strength = RIDGE * self.total / (gram.diagonal() > 0).sum()
        self.of_stretches = _sums(self.sizes, self.ends)

    @cached_property
    def components(self) -> int:
        """How many principal axes CCA is of."""
        share = self.squares.cumsum(0) / self.total
        enough = int((share < VARIANCE).sum()) + 1
        return max(1, min(enough, self.n // POSITIONS_PER_COMPONENT, len(self.squares)))

    @cached_property
    def held(self) -> Float[Tensor, " axes"]:
        """What ridge leaves of every axis: h = λ / (λ + r)."""
        return self.squares / (self.squares + self.strength)

    @cached_property
    def of_itself(self) -> Float[Tensor, " estimates"]:
        """⟨X, X⟩ on all stretches, and with each left out."""
        whole = self.squares.square().sum()
        own = [whole - 2 * (self.squares.square() @ m.diagonal().double()) + _norm(m, self, self) for m in self.grams()]
        return _hsic_of_all(torch.stack([whole, *own]), self, self)

    def grams(self) -> Iterator[Float[Tensor, "axes axes"]]:
        """Zᵀ Z of every stretch."""
        yield from self._kept_grams or products(self, self)

    @cached_property
    def _kept_grams(self) -> list[Tensor]:
        return kept_products(self, self)


def _sums(values: Float[Tensor, " positions"], ends: Sequence[int]) -> Float[Tensor, " stretches"]:
    return torch.stack([part.sum() for part in values.tensor_split(list(ends[:-1]))])


def products(x: Layer, y: Layer) -> Iterator[Float[Tensor, "x_axes y_axes"]]:
    """Zᵀ_x Z_y of every stretch."""
    for start, end in zip((0, *x.ends), x.ends):
        yield x.axes[start:end].T @ y.axes[start:end]


def kept_products(x: Layer, y: Layer) -> list[Tensor]:
    """Those of every stretch where they are small; nothing where they are to be made each time."""
    small = _are_kept(len(x.ends), len(x.squares), len(y.squares))
    return list(products(x, y)) if small else []


def _are_kept(stretches: int, *axes: int) -> bool:
    return 4 * stretches * math.prod(axes) <= KEPT_BYTES


def n_products(width: int, stretches: int) -> int:
    """How many products of all positions two layers of so many units take, chance and intervals included."""
    return 1 + SHIFTS + (0 if _are_kept(stretches, width, width) else 3)


def product(x: Layer, y: Layer, shift: int = 0) -> Float[Tensor, "x_axes y_axes"]:
    """P = Zᵀ_x Z_y, in float64; with the rows of y shifted so far, circularly."""
    total = torch.zeros(len(x.squares), len(y.squares), dtype=torch.float64, device=x.axes.device)
    for first, second, count in ((0, shift, x.n - shift), (x.n - shift, 0, shift)):
        for start in range(0, count, ROWS_AT_ONCE):
            rows = min(ROWS_AT_ONCE, count - start)
            mine, theirs = x.axes[first + start :][:rows], y.axes[second + start :][:rows]
            total += mine.T @ theirs
    return total


def _hsic(
    squared: Float[Tensor, "*any"],
    products_of_sizes: Float[Tensor, "*any"],
    x_total: Float[Tensor, "*any"],
    y_total: Float[Tensor, "*any"],
    n: Float[Tensor, "*any"] | int,
) -> Float[Tensor, "*any"]:
    """n (n − 3) times the unbiased HSIC of centred layers, from ‖XᵀY‖², Σ |x|²|y|², Σ |x|², Σ |y|²."""
    scale = n / (n - 2)  # 1 + 2 / (n − 2)
    return squared - products_of_sizes * scale + x_total * y_total / ((n - 1) * (n - 2))


def _hsic_of_all(squared: Float[Tensor, " estimates"], x: Layer, y: Layer) -> Float[Tensor, " estimates"]:
    """Of all positions, and with each stretch left out (the means stay: leaving out moves them to second order)."""
    both = _sums(x.sizes * y.sizes, x.ends)
    counts = torch.tensor(np.diff((0, *x.ends)), dtype=torch.float64, device=squared.device)
    parts = [_all_but(each) for each in (both, x.of_stretches, y.of_stretches, counts)]
    return _hsic(squared, *parts)


def _all_but(parts: Float[Tensor, " stretches"]) -> Float[Tensor, " estimates"]:
    """The sum of all parts, and of all but each."""
    total = parts.sum()
    return torch.cat([total[None], total - parts])


def _measures(p: Float[Tensor, "x_axes y_axes"], x: Layer, y: Layer, shift: int = 0) -> Float[Tensor, " measures"]:
    """The four measures from P."""
    squares = p.square()
    sizes = (x.sizes * y.sizes.roll(-shift)).sum()
    cross = _hsic(x.squares @ squares @ y.squares, sizes, x.total, y.total, x.n)
    few = squares[: x.components, : y.components].sum() / min(x.components, y.components)
    to = _explains(x) @ (squares @ y.squares) / y.total
    back = (x.squares @ squares) @ _explains(y) / x.total
    return torch.stack([cross / (x.of_itself[0] * y.of_itself[0]).sqrt(), few, to, back])


def _explains(layer: Layer) -> Float[Tensor, " axes"]:
    """How much of what each axis has in common with a unit ridge explains of it: 2h − h²."""
    return layer.held * (2 - layer.held)


def _without_each(
    p: Float[Tensor, "x_axes y_axes"],
    parts_of_p: Iterable[Float[Tensor, "x_axes y_axes"]],
    whole: Float[Tensor, " measures"],
    x: Layer,
    y: Layer,
) -> Float[Tensor, "stretches measures"]:
    """The measures with each stretch left out, to first order (see the module)."""
    single, by_x, by_y = p.float(), x.squares.float()[:, None], y.squares.float()
    few = single.clone()
    few[x.components :] = few[:, y.components :] = 0
    to, back = x.held.float()[:, None] * single, single * y.held.float()  # Zᵀ_x Z_y of ridge's predictions
    of_cross = [few, to * by_y, back * by_x, by_x * single * by_y]
    of_x = [few @ few.T, (to * by_y) @ to.T]
    of_y = [few.T @ few, back.T @ (back * by_x)]
    squared, parts = [x.squares @ p.square() @ y.squares], []
    for cross, mine, theirs in zip(parts_of_p, x.grams(), y.grams()):
        canonical, fit_to, fit_back, common = (_inner(of, cross) for of in of_cross)
        in_x, fitted_to = (_inner(of, mine) for of in of_x)
        in_y, fitted_back = (_inner(of, theirs) for of in of_y)
        squared.append(squared[0] - 2 * common + _norm(cross, x, y))
        parts.append(torch.stack([2 * canonical - in_x - in_y, 2 * fit_to - fitted_to, 2 * fit_back - fitted_back]))
    cka = _hsic_of_all(torch.stack(squared), x, y) / (x.of_itself * y.of_itself).sqrt()
    canonical, explained_to, explained_back = torch.stack(parts, 1)
    return torch.stack(
        [
            cka[1:],
            whole[1] - canonical / min(x.components, y.components),
            (whole[2] * y.total - explained_to) / (y.total - y.of_stretches),
            (whole[3] * x.total - explained_back) / (x.total - x.of_stretches),
        ],
        1,
    )


def _inner(of: Float[Tensor, "rows columns"], part: Float[Tensor, "rows columns"]) -> Float[Tensor, ""]:
    return torch.dot(of.flatten(), part.flatten()).double()


def _norm(part: Float[Tensor, "x_axes y_axes"], x: Layer, y: Layer) -> Float[Tensor, ""]:
    """‖XᵀY‖² of some positions, from their Zᵀ_x Z_y."""
    return x.squares @ (part.square() @ y.squares.float()).double()


@dataclass(frozen=True)
class Similarity:
    """The measures of two layers, in the order of `MEASURES`: as they are, by chance, calibrated with 95 % intervals.

    NaN of a layer that does not vary, and intervals of fewer than two stretches.
    """

    value: Float[np.ndarray, " measures"]
    chance: Float[np.ndarray, " measures"]
    calibrated: Float[np.ndarray, " measures"]
    low: Float[np.ndarray, " measures"]
    high: Float[np.ndarray, " measures"]


NOTHING = Similarity(*(np.full(len(MEASURES), np.nan) for _ in range(5)))


def similarity_of(x: Layer, y: Layer, shifts: Sequence[int]) -> Similarity:
    """The measures of two layers on the same positions; chance is that of y's rows moved by each of `shifts`."""
    if x.n < 4 or not len(x.squares) or not len(y.squares):
        return NOTHING
    kept = kept_products(x, y)
    p = torch.stack(kept).sum(0, dtype=torch.float64) if kept else product(x, y)
    whole, without = _measures(p, x, y), torch.full((1, len(MEASURES)), torch.nan)
    if len(x.ends) > 1:
        without = _without_each(p, kept or products(x, y), whole, x, y)
    draws = torch.stack([_measures(product(x, y, shift), x, y, shift) for shift in shifts]).cpu().numpy()
    chance, value = draws.mean(0), whole.cpu().numpy()
    found = Jackknifed(value, without.cpu().numpy()).map(lambda measures: (measures - chance) / (1 - chance))
    spread = draws.std(0, ddof=1) if len(draws) > 1 else 0.0
    error = spread / np.sqrt(len(draws)) * np.abs(1 - value) / (1 - chance) ** 2
    low, high = found.interval(other_error=error)
    return Similarity(value, chance, found.value, low, high)


def drawn_shifts(positions: int, seed: int, shifts: int = SHIFTS) -> list[int]:
    """By how many rows to shift: one drawn in each equal part of the middle four fifths of the positions."""
    ends = np.linspace(0.1, 0.9, shifts + 1) * positions
    draws = np.random.default_rng(seed).random(shifts)
    return [int(shift) for shift in ends[:-1] + draws * np.diff(ends)]
