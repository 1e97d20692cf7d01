"""Co-moments: cross products of two models' neurons, and within each layer of one model (paper A.2).

A shard's products (at most 16 384 positions) accumulate in float32 and are folded into a float64 sum; where memory is
short, into a float32 sum with a bfloat16 remainder: 6 bytes in place of 8, and as exact to eight more bits than
float32.  Of a large matrix a `CoMoments` may keep some rows only: a panel.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from universal_neurons.statistics.contract import Accumulator, Batch, Block, first_non_finite, seed_of
from universal_neurons.statistics.keys import Named
from universal_neurons.statistics.products import add_product, product_of
from universal_neurons.statistics.sparse_products import OuterProducts, add_sparse_product, add_within_layers
from universal_neurons.units import Units

FOLDED_ROWS = 64  # added at a time: what a cache holds, for sums of two precisions are added by way of a copy
TILE_ROWS = 4096  # of a panel, multiplied at a time where shards arrive whole
LAYER_TILES, LAYER_TILE_LEAST = 4, 640
Rows = tuple[int, int]


def add_product_of_blocks(
    into: Float[Tensor, "rows columns"], left: Block, rows: slice, right: Block, columns: slice, fresh: bool
) -> None:
    """into (+)= these columns of the left block (`rows`)ᵀ those of the right; `fresh` overwrites instead of adding."""
    mine, theirs = left.packed, right.packed
    if mine is None or theirs is None or type(mine) is not type(theirs):
        add_product(into, left.values[:, rows], right.values[:, columns], fresh, left.rounding)
    else:
        mine.add_product(into, rows, theirs, columns, fresh)


def add_compensated(
    total: Float[Tensor, "left right"], rest: Float[Tensor, "left right"], term: Float[Tensor, "left right"]
) -> None:
    """total + rest += term, in place: a float32 sum and, in bfloat16, what its rounding lost (Knuth's two-sum)."""
    for start in range(0, len(total), FOLDED_ROWS):
        rows = slice(start, start + FOLDED_ROWS)
        before, added = total[rows], term[rows]
        after = before + added
        taken = after - before
        lost = (before - (after - taken)).add_(added - taken).add_(rest[rows])
        total[rows] = after + lost
        rest[rows] = lost - (total[rows] - after)


@dataclass(frozen=True)
class CrossMoments:
    """Result of `CoMoments`: count, column sums and raw (shifted) cross products of two models' neurons.

    `rest` is what a compensated sum adds to `cross`; empty where `cross` is in float64.
    """

    count: int
    left_sum: Float[Tensor, " left"]
    right_sum: Float[Tensor, " right"]
    cross: Float[Tensor, "left right"]
    rest: Float[Tensor, "left right"] | None = None

    def centred(self, rows: slice = slice(None), columns: slice = slice(None)) -> Float[Tensor, "rows columns"]:
        """Σ(x−x̄)(y−ȳ) of some left and right features."""
        outer = torch.outer(self.left_sum[rows] / self.count, self.right_sum[columns])
        if self.rest is None:
            return self.cross[rows, columns] - outer
        return self.cross[rows, columns].double().add_(self.rest[rows, columns]).sub_(outer)

    def transposed(self) -> "CrossMoments":
        """The same with left and right exchanged."""
        rest = None if self.rest is None else self.rest.T
        return CrossMoments(self.count, self.right_sum, self.left_sum, self.cross.T, rest)


class CoMoments(Accumulator):
    """Cross products of neurons of one model with every neuron of another: of all rows (left neurons), or of some.

    `compensated` keeps 6 bytes an entry in place of 8.
    """

    TENSORS = ("left_sum", "right_sum", "cross", "rest")
    DETAIL: ClassVar[tuple[str, ...]] = ("rows",)

    def __init__(
        self,
        left: Named,
        right: Named,
        n_left: int,
        n_right: int,
        *,
        group: int | None = 0,
        device: Any = "cpu",
        rows: Rows | None = None,
        compensated: bool = False,
    ) -> None:
        super().__init__((left, right), group)
        self.rows = rows or (0, n_left)
        height = self.rows[1] - self.rows[0]
        kind = torch.float32 if compensated else torch.float64
        self.left_sum = torch.zeros(height, dtype=torch.float64, device=device)
        self.right_sum = torch.zeros(n_right, dtype=torch.float64, device=device)
        self.cross = torch.zeros(height, n_right, dtype=kind, device=device)
        self.rest = torch.zeros(*(self.cross.shape if compensated else (0, 0)), dtype=torch.bfloat16, device=device)
        self.at_once = self.cross.is_cuda  # a batch is a shard there: folded as soon as it is multiplied
        self.pending = torch.zeros(0 if self.at_once else height, n_right, dtype=torch.float32, device=device)
        self.outer = OuterProducts()
        self.fresh = True

    def update(self, batch: Batch) -> None:
        """Add a batch of positions."""
        self._add(*self.blocks(batch))

    def _add(self, left: Block, right: Block) -> None:
        rows = slice(*self.rows)
        self.count += left.count
        self.left_sum += left.sums[rows]
        self.right_sum += right.sums
        if not self.at_once:
            if left.codes is None and right.codes is None:
                add_product_of_blocks(self.pending, left, rows, right, slice(None), self.fresh)
            else:
                add_sparse_product(self.pending, self.outer, left, right, rows, self.fresh)
            self.fresh = False
            return
        for start in range(0, len(self.cross), TILE_ROWS):
            tile = slice(start, min(start + TILE_ROWS, len(self.cross)))
            columns = left.values[:, self.rows[0] + tile.start : self.rows[0] + tile.stop]
            self._take(tile, product_of(columns, right.values, left.rounding))

    def _take(self, rows: slice, product: Tensor) -> None:
        if self.cross.dtype == torch.float64:
            self.cross[rows] += product
        else:
            add_compensated(self.cross[rows], self.rest[rows], product)

    def fold(self) -> None:
        """Bring what is pending into the sum."""
        if not self.fresh:
            for start in range(0, len(self.cross), FOLDED_ROWS):
                rows = slice(start, min(start + FOLDED_ROWS, len(self.cross)))
                self._take(rows, self.outer.added_to(self.pending[rows], rows))
            self.outer = OuterProducts()
            self.fresh = True

    def _merge_tensor(self, name: str, theirs: Tensor) -> None:
        if self.cross.dtype == torch.float64 or name not in ("cross", "rest"):
            super()._merge_tensor(name, theirs)
        else:  # the larger parts first, then what they lost
            add_compensated(self.cross, self.rest, theirs.float())

    def result(self) -> CrossMoments:
        """The moments so far."""
        self.fold()
        rest = None if self.cross.dtype == torch.float64 else self.rest
        return CrossMoments(self.count, self.left_sum, self.right_sum, self.cross, rest)


class ShuffledCoMoments(CoMoments):
    """Co-moments with the right model's token positions shuffled within each shard: the permutation baseline.

    A shard's blocks are kept until its end, so that batches do not change what is shuffled with what.
    """

    DETAIL = ("rows", "draw")

    def __init__(self, left: Named, right: Named, draw: int, seed: int, **shape: Any) -> None:
        super().__init__(left, right, **shape)
        self.draw, self.seed, self.shard = draw, seed, 0
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.inactive: tuple[Tensor | None, Tensor | None] = (None, None)

    def update(self, batch: Batch) -> None:
        """Keep a batch until the shard ends."""
        self.shard = batch.shard
        left, right = self.blocks(batch)
        self.kept.append((left.kept(), right.kept()))
        self.inactive = left.inactive, right.inactive

    def fold(self) -> None:
        """Shuffle the shard's positions and add it."""
        if self.kept:
            left, right = (torch.cat(parts) for parts in zip(*self.kept))
            self.kept = []
            generator = torch.Generator().manual_seed(seed_of("shuffle", self.seed, self.shard, self.draw))
            order = torch.randperm(len(right), generator=generator).to(right.device)
            mine, theirs = self.inactive
            self._add(Block(left, inactive=mine), Block(right[order], inactive=theirs))
        super().fold()


@dataclass(frozen=True)
class LayerCovariance:
    """Result of `LayerMoments`: within-layer centred products and every neuron's centred sum of squares."""

    count: int
    centred: Float[Tensor, "layers width width"] | Sequence[Float[Tensor, "_ _"]]

    @property
    def units(self) -> Units:
        """The neurons of the model, or of the layers that are there, without their experts."""
        return Units(tuple(len(layer) for layer in self.centred))

    def part(self, start: int, stop: int) -> "LayerCovariance":
        """Of the layers that the neurons from `start` to before `stop` make up."""
        return replace(self, centred=self.centred[self.units.layers_in(start, stop)])

    @property
    def squares(self) -> Float[Tensor, " neurons"]:
        """Σ(x−x̄)² of every neuron of the model."""
        return torch.cat([layer.diagonal() for layer in self.centred]).clamp_min(0)


def tile_of(width: int) -> int:
    """Rows of a layer's products that are multiplied together."""
    return max(LAYER_TILE_LEAST, -(-width // LAYER_TILES))


class LayerMoments(Accumulator):
    """Cross products of the neurons of each layer of one model with each other: what the rotated baseline needs.

    Only blocks on and above the diagonal are multiplied.  The matrices of layers of unequal width stand one after the
    other in one row of numbers.
    """

    TENSORS = ("sum", "cross")

    def __init__(self, model: Named, units: Units, *, group: int = 0, device: Any = "cpu") -> None:
        super().__init__((model,), group)
        self.units = units
        equal = len(set(units.widths)) == 1
        shape = (units.layers, units.width, units.width) if equal else (sum(width**2 for width in units.widths),)
        self.sum = torch.zeros(len(units), dtype=torch.float64, device=device)
        self.cross = torch.zeros(shape, dtype=torch.float64, device=device)
        self.pending = torch.zeros(shape, dtype=torch.float32, device=device)
        self.outer = OuterProducts()
        self.fresh = True

    def update(self, batch: Batch) -> None:
        """Add a batch of positions."""
        (block,) = self.blocks(batch)
        self.count += block.count
        self.sum += block.sums
        if block.codes is not None:
            add_within_layers(self._by_layer(self.pending), self.outer, block, self.fresh)
            self.fresh = False
            return
        for layer, pending in enumerate(self._by_layer(self.pending)):
            columns, tile = self.units.columns(layer), tile_of(len(pending))
            for start in range(0, len(pending), tile):
                rows = slice(columns.start + start, min(columns.start + start + tile, columns.stop))
                rest = slice(rows.start, columns.stop)
                add_product_of_blocks(pending[start : start + tile, start:], block, rows, block, rest, self.fresh)
        self.fresh = False

    def _by_layer(self, entries: Tensor) -> list[Float[Tensor, "width width"]]:
        """The matrix of each layer."""
        sizes = [width**2 for width in self.units.widths]
        return [flat.view(width, width) for flat, width in zip(entries.view(-1).split(sizes), self.units.widths)]

    def fold(self) -> None:
        """Bring what is pending into the float64 state."""
        if not self.fresh:
            self.cross += self.pending
            for layer, entries in enumerate(self._by_layer(self.cross) if self.outer.terms else ()):
                self._add_outer(entries, self.units.columns(layer))
            self.outer = OuterProducts()
            self.fresh = True

    def _add_outer(self, entries: Float[Tensor, "width width"], units: slice) -> None:
        """Add to a layer's matrix what sparse blocks have left to add."""
        for start in range(0, len(entries), FOLDED_ROWS):
            some = slice(units.start + start, min(units.start + start + FOLDED_ROWS, units.stop))
            rows = entries[start : start + FOLDED_ROWS]
            rows.copy_(self.outer.added_to(rows, some, units))

    def non_finite(self) -> tuple[str, int] | None:
        """The first neuron in which a NaN or infinity was seen."""
        squares = torch.cat([layer.diagonal() for layer in self._by_layer(self.cross)])
        return first_non_finite(self.reads[0].source, self.sum + squares)

    def result(self) -> LayerCovariance:
        """The covariances so far."""
        self.fold()
        centred = self.cross.clone()
        layers = self._by_layer(centred)
        for layer, sums in zip(layers, self.sum.split(self.units.widths)):
            layer -= sums[:, None] * sums / max(self.count, 1)
            layer.copy_(layer.triu() + layer.triu(1).T)
        return LayerCovariance(self.count, centred if centred.dim() == 3 else layers)
