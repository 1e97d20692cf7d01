"""The accumulators' contract, and co-moments: of two models, within a layer, and their extremes.

Moments of pre-activations, histograms, sums by token and position are in `moments`, top examples in `examples`.

Each is a small class with `empty`, `update(batch)`, `fold`, `merge(other)`, `result()`, and its state as plain
tensors (`state`, `restore`).  Blocks arrive shifted by a provisional mean that is the same for every batch and
already rounded to the precision of the products, so all statistics speak of the same numbers:

1. products of at most a shard of positions accumulate in float32;
2. `fold` adds them to float64 sums and takes NaN and infinity for what they are;
3. `result` centres: Σ(x−x̄)(y−ȳ) = Σxy − ΣxΣy/n, harmless because of the shift.

Any split of the tokens and any merge order gives the same answer within rounding.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.errors import MergeError

PRE, BOS = "@pre", "@bos"  # blocks of a model: its pre-activations, and those at position 0
OUT_DTYPE = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 8)


def model_of(block: str) -> str:
    """The model that a block's name speaks of."""
    return block.removesuffix(PRE).removesuffix(BOS)


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from numbers and names of any size."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


@dataclass
class Block:
    """Feature values of one batch of positions, shifted and rounded; `basis` tells shifts apart.

    `mean` is the provisional mean: what was subtracted (or, of pre-activations, which come raw, what may be);
    `bounds` are provisional quantiles of the shifted values.
    """

    values: Float[Tensor, "tokens features"]
    basis: str = ""
    mean: Float[Tensor, " features"] | None = field(default=None, repr=False)
    bounds: Float[Tensor, "quantiles features"] | None = field(default=None, repr=False)
    _sums: Tensor | None = field(default=None, repr=False)
    _copy: Tensor | None = field(default=None, repr=False)

    def kept(self) -> Float[Tensor, "tokens features"]:
        """A copy that outlives the batch, the same one for everybody."""
        if self._copy is None:
            self._copy = self.values.clone()
        return self._copy

    @property
    def sums(self) -> Float[Tensor, " features"]:
        """Column sums in float64, computed once however many statistics read them."""
        if self._sums is None:
            self._sums = self.values.sum(0, dtype=torch.float32).double()
        return self._sums


@dataclass(frozen=True)
class Batch:
    """The blocks of one batch of positions, by model name; `group` is the subset they belong to.

    `index` holds integers per position that statistics sort by: its `row` and `position`, its `word`, …
    """

    blocks: dict[str, Block]
    group: int = 0
    shard: int = 0
    index: dict[str, Int[Tensor, " tokens"]] = field(default_factory=dict)


class Accumulator:
    """What all statistics of the pass share: names of what they read, a token count, plain tensors as state."""

    TENSORS: ClassVar[tuple[str, ...]] = ()

    def __init__(self, reads: tuple[str, ...], group: int | None = 0) -> None:
        """Reads blocks of these names; in one group of shards, or (None) in all."""
        self.reads = reads
        self.group = group
        self.count = 0
        self.basis: tuple[str, ...] | None = None

    def blocks(self, batch: Batch) -> list[Block]:
        """The blocks it reads; all batches must be shifted by the same provisional mean."""
        found = [batch.blocks[name] for name in self.reads if name in batch.blocks]
        basis = tuple(block.basis for block in found)
        assert self.basis in (None, basis), "batches with different provisional means"
        self.basis = basis
        return found

    @property
    def key(self) -> str:
        """Its name in a checkpoint."""
        return "/".join([type(self).__name__, *self.reads, str(self.group)])

    def update(self, batch: Batch) -> None:
        """Add a batch of positions."""
        raise NotImplementedError

    def fold(self) -> None:
        """Bring what is pending into the float64 state (at the end of a shard)."""

    def non_finite(self) -> tuple[str, int] | None:
        """The first model and neuron (flat) in which a NaN or infinity was seen."""
        return None

    def _require_kin(self, other: "Accumulator") -> None:
        same = type(self) is type(other) and self.reads == other.reads
        same = same and (self.basis == other.basis or None in (self.basis, other.basis))
        if not same or any(getattr(self, t).shape != getattr(other, t).shape for t in self.TENSORS):
            raise MergeError(
                f"cannot merge {self.key} with {other.key}", wanted="the same statistic, models and provisional means"
            )

    def merge(self, other: "Accumulator") -> None:
        """Add another's tokens to this one's.  Raises `MergeError` unless both describe the same models."""
        self._require_kin(other)
        self.basis = self.basis or other.basis
        self.fold()
        other.fold()
        self.count += other.count
        for name in self.TENSORS:
            self._merge_tensor(name, getattr(other, name))

    def _merge_tensor(self, name: str, theirs: Tensor) -> None:
        getattr(self, name).add_(theirs)

    def state(self) -> dict[str, Tensor]:
        """Its folded state, to be written to a checkpoint."""
        self.fold()
        return {"count": torch.tensor(self.count)} | {name: getattr(self, name) for name in self.TENSORS}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over a state written by `state`."""
        self.count = int(state["count"])
        for name in self.TENSORS:
            getattr(self, name).copy_(state[name])

    def nbytes(self) -> int:
        """Bytes its tensors occupy."""
        tensors = [value for value in vars(self).values() if isinstance(value, Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors)


def add_product(
    into: Float[Tensor, "left right"],
    left: Float[Tensor, "tokens left"],
    right: Float[Tensor, "tokens right"],
    fresh: bool,
) -> None:
    """into (+)= leftᵀ right in float32; `fresh` overwrites instead of adding."""
    if left.dtype == torch.float32:
        torch.addmm(into, left.T, right, beta=0.0 if fresh else 1.0, out=into)
        return
    product = torch.mm(left.T, right, out_dtype=torch.float32) if OUT_DTYPE else left.T.float() @ right.float()
    if fresh:
        into.copy_(product)
    else:
        into.add_(product)


def widen(name: str, mine: Float[Tensor, " features"], theirs: Float[Tensor, " features"]) -> None:
    """Take in others' smallest (`low`) or largest (`high`) values."""
    (torch.minimum if name == "low" else torch.maximum)(mine, theirs.to(mine.dtype), out=mine)


def first_non_finite(model: str, values: Float[Tensor, " neurons"]) -> tuple[str, int] | None:
    """The model and the first neuron whose value is NaN or infinite."""
    bad = torch.nonzero(~torch.isfinite(values)).flatten()
    return (model, int(bad[0])) if len(bad) else None


@dataclass(frozen=True)
class CrossMoments:
    """Result of `CoMoments`: count, column sums and raw (shifted) cross products of two models' neurons."""

    count: int
    left_sum: Float[Tensor, " left"]
    right_sum: Float[Tensor, " right"]
    cross: Float[Tensor, "left right"]

    def centred(self, rows: slice = slice(None), columns: slice = slice(None)) -> Float[Tensor, "rows columns"]:
        """Σ(x−x̄)(y−ȳ) of some left and right features."""
        outer = torch.outer(self.left_sum[rows] / self.count, self.right_sum[columns])
        return self.cross[rows, columns] - outer

    def transposed(self) -> "CrossMoments":
        """The same with left and right exchanged."""
        return CrossMoments(self.count, self.right_sum, self.left_sum, self.cross.T)


class CoMoments(Accumulator):
    """Cross products of every neuron of one model with every neuron of another (paper A.2)."""

    TENSORS = ("left_sum", "right_sum", "cross")

    def __init__(
        self, left: str, right: str, group: int | None, n_left: int, n_right: int, device: Any = "cpu"
    ) -> None:
        super().__init__((left, right), group)
        self.left_sum = torch.zeros(n_left, dtype=torch.float64, device=device)
        self.right_sum = torch.zeros(n_right, dtype=torch.float64, device=device)
        self.cross = torch.zeros(n_left, n_right, dtype=torch.float64, device=device)
        self.pending = torch.zeros(n_left, n_right, dtype=torch.float32, device=device)
        self.fresh = True

    @classmethod
    def empty(
        cls, left: str, right: str, n_left: int, n_right: int, *, group: int = 0, device: Any = "cpu"
    ) -> "CoMoments":
        """Of no tokens yet."""
        return cls(left, right, group, n_left, n_right, device)

    def update(self, batch: Batch) -> None:
        """Add a batch of positions."""
        self._add(*self.blocks(batch))

    def _add(self, left: Block, right: Block) -> None:
        self.count += len(left.values)
        self.left_sum += left.sums
        self.right_sum += right.sums
        add_product(self.pending, left.values, right.values, self.fresh)
        self.fresh = False

    def fold(self) -> None:
        """Bring what is pending into the float64 state."""
        if not self.fresh:
            self.cross += self.pending
            self.fresh = True

    def result(self) -> CrossMoments:
        """The moments so far."""
        self.fold()
        return CrossMoments(self.count, self.left_sum, self.right_sum, self.cross)


class ShuffledCoMoments(CoMoments):
    """Co-moments with the right model's token positions shuffled within each shard: the permutation baseline.

    A shard's blocks are kept until its end, so that batches do not change what is shuffled with what.
    """

    def __init__(self, left: str, right: str, draw: int, seed: int, **shape: Any) -> None:
        super().__init__(left, right, **shape)
        self.reads = (left, right, f"draw-{draw}")
        self.draw, self.seed, self.shard = draw, seed, 0
        self.kept: list[tuple[Tensor, Tensor]] = []

    def update(self, batch: Batch) -> None:
        """Keep a batch until the shard ends."""
        self.shard = batch.shard
        left, right = self.blocks(batch)
        self.kept.append((left.kept(), right.kept()))

    def fold(self) -> None:
        """Shuffle the shard's positions and add it."""
        if self.kept:
            left, right = (torch.cat(parts) for parts in zip(*self.kept))
            self.kept = []
            generator = torch.Generator().manual_seed(seed_of("shuffle", self.seed, self.shard, self.draw))
            order = torch.randperm(len(right), generator=generator).to(right.device)
            self._add(Block(left), Block(right[order]))
        super().fold()


@dataclass(frozen=True)
class LayerCovariance:
    """Result of `LayerMoments`: within-layer centred products and every neuron's centred sum of squares."""

    count: int
    centred: Float[Tensor, "layers d_mlp d_mlp"]

    @property
    def squares(self) -> Float[Tensor, " neurons"]:
        """Σ(x−x̄)² of every neuron of the model."""
        return self.centred.diagonal(dim1=1, dim2=2).flatten().clamp_min(0)


class LayerMoments(Accumulator):
    """Cross products of the neurons of each layer of one model with each other: its variances, and what the rotated
    baseline needs."""

    TENSORS = ("sum", "cross")

    def __init__(self, model: str, group: int, n_layers: int, d_mlp: int, device: Any = "cpu") -> None:
        super().__init__((model,), group)
        self.sum = torch.zeros(n_layers * d_mlp, dtype=torch.float64, device=device)
        self.cross = torch.zeros(n_layers, d_mlp, d_mlp, dtype=torch.float64, device=device)
        self.pending = torch.zeros(n_layers, d_mlp, d_mlp, dtype=torch.float32, device=device)
        self.fresh = True

    @classmethod
    def empty(cls, model: str, n_layers: int, d_mlp: int, *, group: int = 0, device: Any = "cpu") -> "LayerMoments":
        """Of no tokens yet."""
        return cls(model, group, n_layers, d_mlp, device)

    def update(self, batch: Batch) -> None:
        """Add a batch of positions."""
        (block,) = self.blocks(batch)
        self.count += len(block.values)
        self.sum += block.sums
        for layer, values in enumerate(block.values.split(self.cross.shape[1], 1)):
            add_product(self.pending[layer], values, values, self.fresh)
        self.fresh = False

    def fold(self) -> None:
        """Bring what is pending into the float64 state."""
        if not self.fresh:
            self.cross += self.pending
            self.fresh = True

    def non_finite(self) -> tuple[str, int] | None:
        """The first neuron in which a NaN or infinity was seen."""
        return first_non_finite(self.reads[0], self.sum + self.cross.diagonal(dim1=1, dim2=2).flatten())

    def result(self) -> LayerCovariance:
        """The covariances so far."""
        self.fold()
        sums = self.sum.view(len(self.cross), -1)
        return LayerCovariance(self.count, self.cross - sums[:, :, None] * sums[:, None, :] / max(self.count, 1))


class Extremes(Accumulator):
    """Smallest and largest value of every neuron; a neuron whose two are equal is dead."""

    TENSORS = ("low", "high")

    def __init__(self, model: str, group: int, n_neurons: int, device: Any = "cpu") -> None:
        super().__init__((model,), group)
        self.low = torch.full((n_neurons,), torch.inf, device=device)
        self.high = torch.full((n_neurons,), -torch.inf, device=device)

    @classmethod
    def empty(cls, model: str, n_neurons: int, *, group: int = 0, device: Any = "cpu") -> "Extremes":
        """Of no tokens yet."""
        return cls(model, group, n_neurons, device)

    def update(self, batch: Batch) -> None:
        """Add a batch of positions."""
        values = self.blocks(batch)[0].values
        self.count += len(values)
        if len(values):
            self._merge_tensor("low", values.amin(0))
            self._merge_tensor("high", values.amax(0))

    def _merge_tensor(self, name: str, theirs: Tensor) -> None:
        widen(name, getattr(self, name), theirs)

    def result(self) -> Tensor:
        """Which neurons are dead, as a mask."""
        return self.low >= self.high
