"""Products of blocks of which one or both are sparse: V = S + 1bᵀ, S kept as codes (`sparse_codes`).

1. VᵀW = SᵀW + b ⊗ ΣW, where W is dense, and shifted: what stands far from 0 would lose its digits in float32.
   VᵀW = SᵀT + b ⊗ ΣT + ΣV ⊗ c, where W = T + 1cᵀ is sparse too.  Units of V that are often active are multiplied as
   dense ones with all of W.
2. Products of S and T are added up in float32 over a shard, as those of dense blocks are.  Of the rest the vectors are
   kept in float64 and multiplied when the shard is folded (`OuterProducts`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_array
from torch import Tensor

from universal_neurons.statistics.contract import Block
from universal_neurons.statistics.sparse_codes import Codes

TILE_COLUMNS = 512  # of a dense block, multiplied by a sparse one at a time
ENTRIES_AT_ONCE = 1 << 22  # of a product of two sparse blocks, before they are added
SPARSE_PRODUCT_BYTES = 32 * ENTRIES_AT_ONCE  # of these: values, where they stand, what they are added to


class OuterProducts:
    """A sum of outer products, kept as the vectors that it is made of."""

    def __init__(self) -> None:
        self.terms: list[tuple[Tensor, Tensor]] = []

    def add(self, left: Float[Tensor, " left"], right: Float[Tensor, " right"]) -> None:
        """Add left ⊗ right, to one that shares a vector with it where there is one."""
        for place, (before, after) in enumerate(self.terms):
            if torch.equal(before, left):
                self.terms[place] = (before, after + right)
                return
            if torch.equal(after, right):
                self.terms[place] = (before + left, after)
                return
        self.terms.append((left, right))

    def added_to(
        self, product: Float[Tensor, "rows columns"], rows: slice, columns: slice = slice(None)
    ) -> Float[Tensor, "rows columns"]:
        """A product with these rows and columns of the sum: in float64, unless there is nothing to add."""
        if not self.terms:
            return product
        left, right = (torch.stack(vectors) for vectors in zip(*self.terms))
        return torch.addmm(product.double(), left[:, rows].T, right[:, columns])


def add_sparse_product(
    into: Float[Tensor, "left right"], outer: OuterProducts, left: Block, right: Block, rows: slice, fresh: bool
) -> None:
    """into + outer += leftᵀ right of two blocks, one of them sparse or both, and some units of the left.

    `fresh` overwrites `into` instead of adding.
    """
    mine, theirs = left.codes, right.codes
    if fresh:
        into.zero_()
    if mine is None:
        assert theirs is not None
        for start in range(0, len(into), TILE_COLUMNS):
            tile = slice(start, start + TILE_COLUMNS)
            product = into.new_zeros(into.shape[1], len(into[tile]))
            theirs.times(left.values[:, rows][:, tile], product)
            into[tile] += product.T
    elif theirs is None:
        mine.of(rows).times(right.values, into)
    else:
        _add_codes(into, mine.of(rows), theirs)
    if mine is not None:
        outer.add(mine.base[rows].double(), right.sums if theirs is None else theirs.sums)
    if theirs is not None:
        outer.add(_sums_of_few(left)[rows], theirs.base.double())


def add_within_layers(layers: Sequence[Float[Tensor, "_ _"]], outer: OuterProducts, block: Block, fresh: bool) -> None:
    """layers + outer += the products of a sparse block's units with those of their layer; `fresh` as above."""
    codes, start = block.codes, 0
    assert codes is not None
    for into in layers:
        if fresh:
            into.zero_()
        layer = codes.of(slice(start, start + len(into)))
        _add_codes(into, layer, layer)
        start += len(into)
    outer.add(codes.base.double(), codes.sums)
    outer.add(_sums_of_few(block), codes.base.double())


def _sums_of_few(block: Block) -> Float[Tensor, " units"]:
    """The sums of a block's units, 0 of those whose products with another's base are not left to add."""
    return block.sums if block.codes is None else block.sums.index_fill(0, block.codes.often, 0)


def _add_codes(into: Float[Tensor, "left right"], left: Codes, right: Codes) -> None:
    """into += what leftᵀ right is but for the bases; of units of the left that are often active, all of it."""
    _add_sparse(into, left.active, right.by_position)
    if len(right.often):
        product = into.new_zeros(len(into), len(right.often))
        replace(left, often=left.often[:0]).times(right.of_often, product)
        into[:, right.often] += product
    into[left.often] += left.of_often.T @ right.values


def _add_sparse(into: Float[Tensor, "left right"], left: csr_array, right: csr_array) -> None:
    """into += left (units × positions) times right (positions × units): only what is not 0 is touched."""
    entries = into.numpy()
    for rows in _at_once(left, right):
        product = left[rows] @ right
        at = np.arange(rows.start, rows.stop).repeat(np.diff(product.indptr))
        entries[at, product.indices] += product.data


def _at_once(left: csr_array, right: csr_array) -> Iterator[slice]:
    """Rows of a product that together have no more than `ENTRIES_AT_ONCE` entries, or are one."""
    entries = np.concatenate([[0], np.cumsum(np.diff(right.indptr)[left.indices], dtype=np.int64)])[left.indptr]
    start = 0
    while start < left.shape[0]:
        stop = int(np.searchsorted(entries, entries[start] + ENTRIES_AT_ONCE, side="right")) - 1
        yield slice(start, max(start + 1, stop))
        start = max(start + 1, stop)
