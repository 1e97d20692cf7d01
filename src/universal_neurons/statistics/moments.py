"""Statistics of single neurons, exact and in one pass: moments, histograms, sums by token and by position.

Powers are taken about the provisional mean, in float32 within a batch, and added in float64: the central moments
follow by the binomial theorem, whose cancellation is harmless because of the shift.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.errors import MergeError
from universal_neurons.statistics.contract import Accumulator, Batch, first_non_finite, widen
from universal_neurons.statistics.keys import Named, key_of

FLOAT_BINS = 1 << 12  # sign, eight bits of exponent, three of mantissa
FINITE_BINS = 255 << 3
ROWS_AT_ONCE = 256  # rows of a batch whose powers stay in the cache


@dataclass(frozen=True)
class NeuronMoments:
    """Population moments of every neuron, a Gaussian's kurtosis 3; `positive` is the share of values above 0."""

    count: int
    mean: Float[Tensor, " neurons"]
    var: Float[Tensor, " neurons"]
    skew: Float[Tensor, " neurons"]
    kurt: Float[Tensor, " neurons"]
    positive: Float[Tensor, " neurons"]
    low: Float[Tensor, " neurons"]
    high: Float[Tensor, " neurons"]


class Moments(Accumulator):
    """First four moments, share above zero, smallest and largest value of every feature of a raw block."""

    TENSORS = ("powers", "positive", "low", "high")

    def __init__(self, reads: Named, n_features: int, *, device: Any = "cpu", group: int | None = None) -> None:
        super().__init__((reads,), group)
        self.powers = torch.zeros(4, n_features, dtype=torch.float64, device=device)
        self.positive = torch.zeros(n_features, dtype=torch.int64, device=device)
        self.low = torch.full((n_features,), torch.inf, device=device)
        self.high = torch.full((n_features,), -torch.inf, device=device)
        self.origin = torch.zeros(n_features, device=device)

    def update(self, batch: Batch) -> None:
        """Add a batch of positions."""
        (block,) = self.blocks(batch)
        if block.mean is not None:
            self.origin = block.mean.float()
        self.count += len(block.values)
        for rows in block.values.split(ROWS_AT_ONCE):
            shifted = rows.float() - self.origin
            squares = shifted * shifted
            sums = [shifted.sum(0), squares.sum(0), (squares * shifted).sum(0), squares.square_().sum(0)]
            self.powers += torch.stack(sums).double()
            self.positive += (rows > 0).sum(0)
            self._merge_tensor("low", rows.amin(0))
            self._merge_tensor("high", rows.amax(0))

    def _merge_tensor(self, name: str, theirs: Tensor) -> None:
        if name in ("low", "high"):
            widen(name, getattr(self, name), theirs)
        else:
            super()._merge_tensor(name, theirs)

    def merge(self, other: "Accumulator") -> None:
        """Add another's tokens; both have the same provisional mean."""
        assert isinstance(other, Moments)
        self._require_kin(other)
        if not self.count:
            self.origin = other.origin
        elif other.count and not torch.equal(self.origin, other.origin):
            raise MergeError(f"cannot merge {self.key}", wanted="the same provisional means")
        super().merge(other)

    def state(self) -> dict[str, Tensor]:
        """Its state, the provisional mean with it."""
        return super().state() | {"origin": self.origin.clone()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over a state written by `state`."""
        super().restore(state)
        self.origin = state["origin"].to(self.powers.device)

    def non_finite(self) -> tuple[str, int] | None:
        """The first neuron in which a NaN or infinity was seen."""
        return first_non_finite(self.reads[0].source, self.powers.sum(0))

    def result(self) -> NeuronMoments:
        """The moments so far; a constant feature has no skew and no kurtosis (NaN)."""
        first, second, third, fourth = self.powers / max(self.count, 1)
        var = (second - first**2).clamp_min(0)
        m3 = third - 3 * first * second + 2 * first**3
        m4 = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
        constant = (var <= 0) | (self.low >= self.high)
        spread = torch.where(constant, torch.nan, var)
        return NeuronMoments(
            count=self.count,
            mean=(self.origin.double() + first).clamp(self.low.double(), self.high.double()),  # rounding aside
            var=torch.where(constant, 0.0, var),
            skew=m3 / spread**1.5,
            kurt=m4 / spread**2,
            positive=self.positive.double() / max(self.count, 1),
            low=self.low,
            high=self.high,
        )


@dataclass(frozen=True)
class Histograms:
    """Counts of every neuron in the bins that any neuron uses, bins in ascending order of value.

    A bin holds the values from `low` to `high` in which sign, exponent and three bits of mantissa agree.
    """

    low: Float[Tensor, " bins"]
    high: Float[Tensor, " bins"]
    counts: Int[Tensor, "bins neurons"]


class Histogram(Accumulator):
    """A histogram of every feature over bins fixed for every float: sign, exponent, three bits of mantissa."""

    TENSORS = ("counts",)

    def __init__(self, reads: Named, n_features: int, *, device: Any = "cpu", group: int | None = None) -> None:
        super().__init__((reads,), group)
        self.counts = torch.zeros(FLOAT_BINS, n_features, dtype=torch.int32, device=device)
        self.codes = torch.empty(0, n_features, dtype=torch.int64, device=device)
        self.one = torch.ones(1, 1, dtype=torch.int32, device=device)

    def update(self, batch: Batch) -> None:
        """Add a batch of positions."""
        (block,) = self.blocks(batch)
        self.count += len(block.values)
        assert self.count < 2**31, "counts are 32-bit integers"
        if len(self.codes) < ROWS_AT_ONCE:
            self.codes = self.codes.new_empty(ROWS_AT_ONCE, self.codes.shape[1])
        for rows in block.values.split(ROWS_AT_ONCE):
            codes = self.codes[: len(rows)]
            torch.bitwise_right_shift(rows.float().contiguous().view(torch.int32), 20, out=codes)
            codes &= FLOAT_BINS - 1
            self.counts.scatter_add_(0, codes, self.one.expand_as(codes))

    def state(self) -> dict[str, Tensor]:
        """Its used bins and their counts."""
        used = self.counts.any(1).nonzero().flatten()
        return {"count": torch.tensor(self.count), "used": used, "counts": self.counts[used]}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over a state written by `state`."""
        self.count = int(state["count"])
        self.counts.zero_()
        self.counts[state["used"].to(self.counts.device)] = state["counts"].to(self.counts.device)

    def result(self) -> Histograms:
        """The histogram so far."""
        used = self.counts.any(1).nonzero().flatten().cpu()
        low, high = bin_edges(used)
        order = low.argsort()
        return Histograms(low[order], high[order], self.counts[used[order].to(self.counts.device)])


def bin_edges(codes: Int[Tensor, " bins"]) -> tuple[Float[Tensor, " bins"], Float[Tensor, " bins"]]:
    """Lower and upper edge of bins, given as the twelve highest bits of the float32 values in them."""
    magnitude = codes % (FLOAT_BINS // 2)
    assert bool((magnitude < FINITE_BINS).all()), "infinite or NaN values have no bin"
    near, far = ((bits << 20).int().view(torch.float32).double() for bits in (magnitude, magnitude + 1))
    far = torch.where(magnitude + 1 == FINITE_BINS, 2.0**128, far)
    negative = codes >= FLOAT_BINS // 2
    return torch.where(negative, -far, near), torch.where(negative, -near, far)


@dataclass(frozen=True)
class Spread:
    """Result of `SumSquares`: count, Σx and Σx² of shifted values."""

    count: int
    sum: Float[Tensor, " neurons"]
    squares: Float[Tensor, " neurons"]

    @property
    def centred(self) -> Float[Tensor, " neurons"]:
        """Σ(x−x̄)²."""
        return (self.squares - self.sum**2 / max(self.count, 1)).clamp_min(0)


class SumSquares(Accumulator):
    """Σx and Σx² of every neuron: the total that a label's share is measured against."""

    TENSORS = ("sum", "squares")

    def __init__(self, model: Named, n_neurons: int, *, group: int | None = None, device: Any = "cpu") -> None:
        super().__init__((model,), group)
        self.sum = torch.zeros(n_neurons, dtype=torch.float64, device=device)
        self.squares = torch.zeros(n_neurons, dtype=torch.float64, device=device)

    def update(self, batch: Batch) -> None:
        """Add a batch of positions."""
        (block,) = self.blocks(batch)
        self.count += block.count
        self.sum += block.sums
        self.squares += block.columns.squares

    def non_finite(self) -> tuple[str, int] | None:
        """The first neuron in which a NaN or infinity was seen."""
        return first_non_finite(self.reads[0].source, self.squares)

    def result(self) -> Spread:
        """The sums so far."""
        return Spread(self.count, self.sum, self.squares)


@dataclass(frozen=True)
class GroupedSums:
    """Count of every group and Σx of every neuron in it; x shifted by the provisional mean."""

    counts: Int[Tensor, " groups"]
    sums: Float[Tensor, "groups neurons"]

    def means(self, provisional: Float[Tensor, " neurons"]) -> Float[Tensor, "groups neurons"]:
        """Mean of every group; NaN where it is empty."""
        return self.sums / self.counts.where(self.counts > 0, 0).double()[:, None] + provisional


class GroupMeans(Accumulator):
    """Sums of every neuron by group: token, previous token, position (`by` names the batch's index).

    `of` is `values`, or `firing`: whether a pre-activation is above zero.
    """

    TENSORS = ("counts", "sums")
    DETAIL = ("by", "of")

    def __init__(
        self,
        reads: Named,
        by: Named,
        n_groups: int,
        n_features: int,
        *,
        of: Literal["values", "firing"] = "values",
        device: Any = "cpu",
        group: int | None = None,
    ) -> None:
        super().__init__((reads,), group)
        self.by, self.of = key_of(by), of
        self.counts = torch.zeros(n_groups, dtype=torch.int64, device=device)
        self.sums = torch.zeros(n_groups, n_features, dtype=torch.float64, device=device)
        self.pending = torch.zeros(n_groups, n_features, device=device)
        self.touched = torch.zeros(n_groups, dtype=torch.bool, device=device)

    def update(self, batch: Batch) -> None:
        """Add a batch of positions."""
        (block,) = self.blocks(batch)
        where = batch.index[self.by]
        self.count += len(where)
        self.counts += torch.bincount(where, minlength=len(self.counts))
        values = block.values > 0 if self.of == "firing" else block.values
        self.touched[where] = True
        with deterministic(values.is_cuda):
            self.pending.index_add_(0, where, values.float())

    def fold(self) -> None:
        """Bring what is pending into the float64 state."""
        groups = self.touched.nonzero().flatten()
        self.sums[groups] += self.pending[groups]
        self.pending[groups] = 0
        self.touched.zero_()

    def result(self) -> GroupedSums:
        """The sums so far."""
        self.fold()
        return GroupedSums(self.counts, self.sums)


@contextlib.contextmanager
def deterministic(needed: bool) -> Iterator[None]:
    """While open, additions by index keep their order (on a GPU they do not by themselves)."""
    before, only_warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    if needed:
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        if needed:
            torch.use_deterministic_algorithms(before, warn_only=only_warns)
