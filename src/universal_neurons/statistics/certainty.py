"""How far a sketch may be off, and what is certain all the same.

**One standard error.**  With c_h the chance that two positions of shard h share a group and A_h the energy Σ x² of a
neuron there, v² = Σ_h c_h A_h² / (Σ_h A_h)².  For energy and correlation spread alike over the text atanh ρ̂ is off by
√w, w = v_x v_y: a delta method, right on average and no bound.  It orders candidates and takes the bias off maxima.

**A bound** of the one error that can make a certificate wrong: that of a neuron's true match, fixed before the signs
are drawn, downwards.  Let x and y have energy 1, p = (x+y)/√2, m = (x−y)/√2, so |p|² = 1+ρ, |m|² = 1−ρ.

1. ρ̂ < r, r ≥ 0, only if Q = Σuv − r(Σu² + Σv²)/2 < 0, since a geometric mean is at most the arithmetic.  Q has mean
   ρ − r; its error is a sum over pairs of positions that share a group, of J = (1−r) p_t p_t' − (1+r) m_t m_t' with
   random signs.
2. Its variance over signs and groups is at most ½(1−r)²(v_x+v_y)² + 2r(1−ρ)G, where G = g_x + g_y and
   g = max_h c_h A_h / Σ_h A_h.  For with P, M, A, B the energies of p, m, x, y in a shard, P + M = A + B, it adds at
   most c/2 [(1−r)²P² + (1+r)²M²]: convex in M, so at most the chord from M = 0 to M = A + B, and Σ_h M_h = 1 − ρ.
   The bound is reached where y is x in some shards and −x in the others.
3. Chernoff with a rate λ, a deviation of z standard errors where errors are Gaussian:
   λ(ρ − r) ≤ z²/2 + λ²V / 2(1 − λ(1+r)G) + λ⁴K S, in which the second term is that of sums of squares, whose tail is
   heavier than a Gaussian's (Laurent and Massart 2000, Lemma 1, for the weights that m has at the worst), and the third
   that of few positions with much energy: a sum of rare jumps J has Σ c (cosh λJ − 1) ≤ λ²V/2 + λ⁴K S for λ|J| ≤ 3,
   S = (cosh 3 − 1 − 9/2)/3⁴.  |J| ≤ 2√(a_x a_y) + r(a_x + a_y), a = max x² / Σ x², and by Minkowski
   K = Σ c J⁴ ≤ [(8 k_x k_y)^¼ + r 2^-¼ (√k_x + √k_y)]⁴, k² = Σ_h c_h (Σ x⁴ in h)² / (Σ_h A_h)⁴.

So ρ is below r + what solves 3, with a λ that is best for one of its terms and not too high for the others:
`upper_bound`, from O(N) numbers a model.
Proven: 1, 2 and the bounds of J and K.  Approximate: 3 treats jumps as independent of each other and of the rest, the
energy of every group without such jumps as its mean, and takes z from the Gaussian tail; measured to be cautious
(benchmarks/certificates.py).  Energies are those about the provisional mean, over those about the mean.
"""

from dataclasses import dataclass
from math import cosh
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.statistics.contract import (
    ROWS_AT_ONCE,
    ROWS_AT_ONCE_ON_GPU,
    Accumulator,
    Batch,
    Block,
    power_sums,
)
from universal_neurons.statistics.keys import Named
from universal_neurons.statistics.signed_sums import Signs

DELTA = 0.01  # the chance that any certificate of a study is wrong
CANDIDATES_SEEN = 16  # of a neuron's highest sketched correlations, in the expectation of their maximum
NODES = 129
LIMIT = 1 - 1e-12
STEEPEST = 3.0  # rate times the largest jump
BEYOND = (cosh(STEEPEST) - 1 - STEEPEST**2 / 2) / STEEPEST**4  # of a jump's cosh, past the variance
BOUNDED_AT_ONCE = 1 << 18  # entries of a matrix of bounds


class ShardEnergies(Accumulator):
    """What bounds the sketch's error: of every neuron sums over shards h of A_h = Σx² and of Σx⁴.

    `total` is Σ A_h, `squares` Σ c_h A_h², `largest` max c_h A_h, `fourths` Σ c_h (Σx⁴)²; `even` is what `squares` is
    of a neuron whose energy in every position is 1.
    """

    TENSORS = ("total", "squares", "largest", "fourths", "even")

    def __init__(self, model: Named, n_neurons: int, signs: Signs, *, group: int = 0, device: Any = "cpu") -> None:
        super().__init__((model,), group)
        self.signs = signs
        zeros = (torch.zeros(n_neurons, dtype=torch.float64, device=device) for _ in range(6))
        self.total, self.squares, self.largest, self.fourths, self.pending, self.pending_fourths = zeros
        self.even = torch.zeros((), dtype=torch.float64, device=device)
        self.positions = 0

    def update(self, batch: Batch) -> None:
        """Add a batch of positions."""
        (block,) = self.blocks(batch)
        self.count += block.count
        self.positions += block.count
        self.pending += block.columns.squares
        self.pending_fourths += self._fourths(block)

    def _fourths(self, block: Block) -> Float[Tensor, " neurons"]:
        """Σx⁴ of the columns, which no value is too small for: on a GPU each is taken over its largest."""
        fourths = torch.zeros_like(self.pending_fourths)
        if not fourths.is_cuda:
            for rows in block.values.split(ROWS_AT_ONCE):
                fourths += rows.float().square().double().square().sum(0)
            return fourths
        largest = block.columns.largest
        inverse = torch.where(largest > 0, 1 / largest, 0)
        for rows in block.values.split(ROWS_AT_ONCE_ON_GPU):
            fourths += power_sums(rows * inverse, 4)
        return fourths * largest.double() ** 4

    def fold(self) -> None:
        """Add the shard."""
        if self.positions:
            self.total += self.pending
            together = self.signs.together(self.positions)
            self.squares += together * self.pending.square()
            self.fourths += together * self.pending_fourths.square()
            self._merge_tensor("largest", together * self.pending)
            self.even += together * self.positions**2
            self.pending.zero_()
            self.pending_fourths.zero_()
            self.positions = 0

    def _merge_tensor(self, name: str, theirs: Tensor) -> None:
        if name == "largest":
            torch.maximum(self.largest, theirs, out=self.largest)
        else:
            super()._merge_tensor(name, theirs)

    def result(self) -> "Energies":
        """What the sums so far say."""
        self.fold()
        return Energies(
            self.squares.sqrt() / self.total,
            self.largest / self.total,
            self.fourths.sqrt() / self.total.square(),
            self.total,
            self.even / max(self.count, 1) ** 2,
        )


@dataclass(frozen=True)
class Energies:
    """Result of `ShardEnergies`: of every neuron v, g, k (see the module) and Σx²; w of even neurons, about 1/s."""

    v: Float[Tensor, " neurons"]
    largest: Float[Tensor, " neurons"]
    fourth: Float[Tensor, " neurons"]
    total: Float[Tensor, " neurons"]
    even: Float[Tensor, ""]

    def tails(
        self, centred: Float[Tensor, " neurons"], highest: Float[Tensor, " neurons"]
    ) -> Float[Tensor, "4 neurons"]:
        """v, g, k and a of every neuron, shares of Σ(x−x̄)²; `highest` is max (x−x̄)²."""
        share = self.total / centred
        return torch.stack([self.v * share, self.largest * share, self.fourth * share.square(), highest / centred])


@dataclass(frozen=True)
class Certainty:
    """How far a sketch may be off: v of the asker's and of the other model's neurons, and w of even ones.

    Tails are what `upper_bound` needs.
    """

    asker: Float[Tensor, " neurons"]
    other: Float[Tensor, " others"]
    even: Float[Tensor, ""]
    asker_tails: Float[Tensor, "4 neurons"]
    other_tails: Float[Tensor, "4 others"]

    def part(self, askers: slice, others: slice) -> "Certainty":
        """Of some neurons."""
        tails = self.asker_tails[:, askers], self.other_tails[:, others]
        return Certainty(self.asker[askers], self.other[others], self.even, *tails)

    def reach(self, z: float, rows: slice, index: Int[Tensor, "rows k"] | None = None) -> Tensor:
        """z standard errors of atanh ρ: of some askers with all others, or with those of `index`."""
        theirs = self.other[None] if index is None else self.other[index.clamp_min(0)]
        return z * (self.asker[rows, None] * theirs).sqrt()

    def upper(self, corr: Float[Tensor, "rows others"], z: float, rows: slice) -> Float[Tensor, "rows others"]:
        """Upper bounds of ρ, given sketched ones, of some askers with all others; of |ρ|, given |ρ̂|."""
        bounds, ours = torch.empty_like(corr), self.asker_tails[:, rows]
        for some in torch.arange(len(corr)).split(max(1, BOUNDED_AT_ONCE // max(corr.shape[1], 1))):
            part = slice(int(some[0]), int(some[-1]) + 1)
            bounds[part] = upper_bound(corr[part], ours[:, part, None], self.other_tails[:, None], z)
        return bounds


def upper_bound(corr: Tensor, asker: Tensor, other: Tensor, z: float) -> Tensor:
    """The ρ that a sketched one may stand for at the most, by the module's bound with z standard errors.

    `asker` and `other` hold v, g, k and a in their first dimension.  Above 1 it says nothing; infinite where sums were.
    """
    (v, g, k, a), (v_other, g_other, k_other, a_other) = asker, other
    r = corr.clamp(0, LIMIT)
    largest = g + g_other
    variance = (1 - r).square() * (v + v_other).square() / 2 + 2 * r * (1 - r) * largest  # at ρ = r
    heavier = (1 + r) * largest
    jump = 2 * (a * a_other).sqrt() + r * (a + a_other)
    root = 8**0.25 * (k * k_other).pow(0.25) + 2**-0.25 * r * (k.sqrt() + k_other.sqrt())  # of K, the fourth
    rate = torch.minimum(z / (variance.sqrt() + z * heavier), STEEPEST / jump)
    rate = torch.minimum(rate, (z * z / (6 * BEYOND)) ** 0.25 / root)
    room = 1 - rate * heavier
    gap = z * z / (2 * rate) + rate * variance / (2 * room) + (rate * root).pow(3) * root * BEYOND
    return (r + gap / (1 + rate * r * largest / room)).nan_to_num(nan=torch.inf)  # the variance at ρ is that much less


def quantile_of(certificates: int, delta: float = DELTA) -> float:
    """z such that of so many certificates all are right with probability 1 − delta.

    A certificate of a neuron can be wrong only if the bound fails at its one true match, fixed before the signs are
    drawn: no union over all other neurons is needed.
    """
    from scipy import stats  # late: half a second

    return float(stats.norm.isf(delta / max(certificates, 1)))


def expected_maximum(
    means: Float[Tensor, "neurons k"], errors: Float[Tensor, "neurons k"]
) -> Float[Tensor, " neurons"]:
    """E max_k (m_k + e_k), e_k independent Gaussians with these standard errors; by Simpson's rule."""
    low = (means - 6 * errors).amax(1)
    high = (means + 6 * errors).amax(1)
    step = (high - low) / (NODES - 1)
    total = torch.zeros_like(low)
    for node in range(NODES):
        x = low + node * step
        below = torch.special.ndtr((x[:, None] - means) / errors).prod(1)
        total += (1 - below) * (1 if node in (0, NODES - 1) else 4 if node % 2 else 2)
    return low + total * step / 3


def winners_curse(
    corr: Float[Tensor, "neurons k"], index: Int[Tensor, "neurons k"], certainty: Certainty
) -> Float[Tensor, " neurons"]:
    """How much the highest of a neuron's sketched correlations exceeds the true one, on average.

    The highest ones with fresh errors on top: how far their maximum rises once more.  NaN for dead neurons.
    """
    seen = corr[:, :CANDIDATES_SEEN].double()
    errors = (1 - seen.square()) * certainty.reach(1.0, slice(None), index[:, :CANDIDATES_SEEN]).cpu()
    return expected_maximum(seen, errors.clamp_min(1e-12)) - seen[:, 0]
