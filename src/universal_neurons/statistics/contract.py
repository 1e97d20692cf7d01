"""The accumulators' contract, and the plainest of them: extremes.

Co-moments are in `comoments`; moments, histograms, sums by token and position in `moments`; examples in `examples`.

Each is a small class, made of no tokens yet, with `update(batch)`, `fold`, `merge(other)`, `result()`, and its state
as plain tensors (`state`, `restore`).  Blocks arrive shifted by a provisional mean that is the same for every batch and
already rounded to the precision of the products, so all statistics speak of the same numbers:

1. products of at most a shard of positions accumulate in float32;
2. `fold` adds them to float64 sums and takes NaN and infinity for what they are;
3. `result` centres: Σ(x−x̄)(y−ȳ) = Σxy − ΣxΣy/n, harmless because of the shift.

Any split of the tokens and any merge order gives the same answer within rounding.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.errors import MergeError
from universal_neurons.statistics.keys import Key, Named, key_of
from universal_neurons.statistics.products import Packed, packed_of
from universal_neurons.statistics.sparse_codes import Codes, codes_of

ROWS_AT_ONCE = 256  # a square of so many rows fits the cache
ROWS_AT_ONCE_ON_GPU = 8192  # a kernel reads them once and keeps nothing


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from numbers and names of any size."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


@dataclass
class Block:
    """Feature values of one batch of positions, shifted and rounded; `basis` tells shifts apart.

    `mean` is the provisional mean: what was subtracted (or, of pre-activations, which come raw, what may be);
    `bounds` are provisional quantiles of the shifted values.  `rounding` names the precision they are rounded to, and
    `scale` are the columns' in int8.
    Rows may stand for more than one position each (sums of a sketch): then `weight` says for how many all of them
    count, and `_sums` what the column sums are.  `inactive` holds what a unit that is not active has, where it says.
    """

    values: Float[Tensor, "tokens features"]
    basis: str = ""
    mean: Float[Tensor, " features"] | None = field(default=None, repr=False)
    bounds: Float[Tensor, "quantiles features"] | None = field(default=None, repr=False)
    rounding: str = "float32"
    weight: int | None = None
    inactive: Float[Tensor, " features"] | None = field(default=None, repr=False)
    scale: Float[Tensor, " features"] | None = field(default=None, repr=False)
    _sums: Tensor | None = field(default=None, repr=False)
    _transposed: Tensor | None = field(default=None, repr=False)
    _copy: Tensor | None = field(default=None, repr=False)

    def own(self) -> Iterator[Tensor]:
        """The tensors that were made for it alone."""
        yield self.values
        if self._sums is not None:
            yield self._sums

    def kept(self) -> Float[Tensor, "tokens features"]:
        """A copy that outlives the batch, the same one for everybody."""
        if self._copy is None:
            self._copy = self.values.clone()
        return self._copy

    @property
    def transposed(self) -> Float[Tensor, "features tokens"]:
        """The values feature by feature, copied once however many statistics read them."""
        if self._transposed is None:
            self._transposed = self.values.T.contiguous()
        return self._transposed

    @cached_property
    def codes(self) -> Codes | None:
        """The values as sparse codes, where its products are faster so (`sparse_codes`)."""
        return None if self.inactive is None else codes_of(self.values, self.inactive)

    @cached_property
    def packed(self) -> Packed | None:
        """The values as a CPU's units for small numbers read them, packed once; None where products read them as they
        are.  Sums of a sketch are few, and may be far from 0: too far for products that are rounded to bfloat16."""
        return packed_of(self.values, self.rounding if self.weight is None else "float32", self.scale)

    @property
    def count(self) -> int:
        """Positions it counts for."""
        return len(self.values) if self.weight is None else self.weight

    @property
    def sums(self) -> Float[Tensor, " features"]:
        """Column sums in float64."""
        return self.columns.sums if self._sums is None else self._sums

    @cached_property
    def columns(self) -> "Columns":
        """What the columns add up to, computed once however many statistics read it."""
        kind: dict[str, Any] = {"dtype": torch.float64, "device": self.values.device}
        sums, squares = torch.zeros(2, self.values.shape[1], **kind)
        low, high = self.values.new_full((2, self.values.shape[1]), torch.inf)
        high.neg_()
        on_gpu = self.values.is_cuda
        for rows in self.values.split(ROWS_AT_ONCE_ON_GPU if on_gpu else ROWS_AT_ONCE):
            sums += rows.sum(0, dtype=torch.float32)
            squares += power_sums(rows, 2) if on_gpu else rows.float().square().sum(0)
            least, most = torch.aminmax(rows, dim=0) if on_gpu else (rows.amin(0), rows.amax(0))
            torch.minimum(low, least, out=low)
            torch.maximum(high, most, out=high)
        return Columns(sums, squares, low, high)


def power_sums(rows: Float[Tensor, "tokens features"], power: int) -> Float[Tensor, " features"]:
    """Σ|x|ᵖ of columns in float32, in one kernel that writes nothing else down."""
    return torch.linalg.vector_norm(rows, power, dim=0, dtype=torch.float32).pow(power)


@dataclass(frozen=True)
class Columns:
    """Sums and sums of squares of a block's columns in float64, their smallest and largest values."""

    sums: Float[Tensor, " features"]
    squares: Float[Tensor, " features"]
    low: Float[Tensor, " features"]
    high: Float[Tensor, " features"]

    @property
    def largest(self) -> Float[Tensor, " features"]:
        """The largest size of a value."""
        return torch.maximum(self.high, -self.low).float()


@dataclass(frozen=True)
class Batch:
    """The blocks of one batch of positions; `group` is the subset they belong to.

    `index` holds integers per position that statistics sort by: its `row` and `position`, its `word`, …
    """

    blocks: dict[Key, Block]
    group: int = 0
    shard: int = 0
    index: dict[Key, Int[Tensor, " tokens"]] = field(default_factory=dict)


class Accumulator:
    """What all statistics of the pass share: names of what they read, a token count, plain tensors as state.

    `TENSORS` names the state, `DETAIL` the attributes that tell it from others of its kind that read the same.
    `SAME` says of tensors that are chosen beforehand, and so must be the same to merge, what they choose.
    """

    TENSORS: ClassVar[tuple[str, ...]] = ()
    DETAIL: ClassVar[tuple[str, ...]] = ()
    SAME: ClassVar[Mapping[str, str]] = {}

    def __init__(self, reads: Sequence[Named], group: int | None = 0) -> None:
        """Reads these blocks; in one group of shards, or (None) in all."""
        self.reads = tuple(map(key_of, reads))
        self.group = group
        self.count = 0
        self.basis: tuple[str, ...] | None = None

    def wants(self, batch: Batch) -> bool:
        """Whether the batch holds what it reads, of its group."""
        return self.group in (None, batch.group) and any(name in batch.blocks for name in self.reads)

    def blocks(self, batch: Batch) -> list[Block]:
        """The blocks it reads; all batches must be shifted by the same provisional mean."""
        blocks = [batch.blocks[name] for name in self.reads if name in batch.blocks]
        basis = tuple(block.basis for block in blocks)
        assert self.basis in (None, basis), "batches with different provisional means"
        self.basis = basis
        return blocks

    @property
    def key(self) -> str:
        """Its name in a snapshot of the pass."""
        detail = [f"{name}={getattr(self, name)}" for name in self.DETAIL]
        return "/".join([type(self).__name__, *map(str, self.reads), *detail, f"group={self.group}"])

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
        same = same and all(getattr(self, name) == getattr(other, name) for name in self.DETAIL)
        same = same and (self.basis == other.basis or None in (self.basis, other.basis))
        if not same or any(getattr(self, t).shape != getattr(other, t).shape for t in self.TENSORS):
            raise MergeError(
                f"cannot merge {self.key} with {other.key}", wanted="the same statistic, models and provisional means"
            )
        for name, chosen in self.SAME.items():
            if not torch.equal(getattr(self, name), getattr(other, name)):
                raise MergeError(f"cannot merge {self.key}", given=f"other {chosen}", wanted=f"the same {chosen}")

    def merge(self, other: "Accumulator") -> None:
        """Add another's tokens to this one's.  Raises `MergeError` unless both describe the same models.

        One that declares no tensors keeps its data elsewhere, where nothing adds them up: it cannot merge.
        """
        if not self.TENSORS:
            raise MergeError(f"{self.key} cannot merge", wanted="a statistic that declares its tensors")
        self._require_kin(other)
        self.basis = self.basis or other.basis
        self.fold()
        other.fold()
        self.count += other.count
        for name in self.TENSORS:
            if name not in self.SAME:
                self._merge_tensor(name, getattr(other, name))

    def _merge_tensor(self, name: str, theirs: Tensor) -> None:
        getattr(self, name).add_(theirs)

    def state(self) -> dict[str, Tensor]:
        """Its folded state, to be written to a snapshot."""
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


Recipe = Callable[..., Accumulator]  # makes a statistic of no tokens yet on a `device`; can be pickled


def widen(name: str, mine: Float[Tensor, " features"], theirs: Float[Tensor, " features"]) -> None:
    """Take in others' smallest (`low`) or largest (`high`) values."""
    (torch.minimum if name == "low" else torch.maximum)(mine, theirs.to(mine.dtype), out=mine)


def first_non_finite(model: str, values: Float[Tensor, " neurons"]) -> tuple[str, int] | None:
    """The model and the first neuron whose value is NaN or infinite."""
    bad = torch.nonzero(~torch.isfinite(values)).flatten()
    return (model, int(bad[0])) if len(bad) else None


class Extremes(Accumulator):
    """Smallest and largest value of every neuron; a neuron whose two are equal is dead."""

    TENSORS = ("low", "high")

    def __init__(self, model: Named, n_neurons: int, *, group: int = 0, device: Any = "cpu") -> None:
        super().__init__((model,), group)
        self.low = torch.full((n_neurons,), torch.inf, device=device)
        self.high = torch.full((n_neurons,), -torch.inf, device=device)

    def update(self, batch: Batch) -> None:
        """Add a batch of positions."""
        (block,) = self.blocks(batch)
        self.count += len(block.values)
        self._merge_tensor("low", block.columns.low)
        self._merge_tensor("high", block.columns.high)

    def _merge_tensor(self, name: str, theirs: Tensor) -> None:
        widen(name, getattr(self, name), theirs)

    def result(self) -> Tensor:
        """Which neurons are dead, as a mask."""
        return self.low >= self.high

    def highest_square(self, mean: Float[Tensor, " features"]) -> Float[Tensor, " features"]:
        """The highest (x − mean)² of every neuron."""
        return torch.maximum((self.low - mean).square(), (self.high - mean).square())
