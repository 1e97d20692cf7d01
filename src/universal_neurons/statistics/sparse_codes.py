"""Blocks in which most units are inactive, as what their few active ones are: latents of dictionaries.

A block comes shifted by its provisional means, so that a unit that is not active has one number everywhere, not 0:
V = S + 1bᵀ.  b holds what inactive units have, S what the others differ by, and only they are kept (`Codes`).
A unit that is active at more than half of the positions has b = 0 and all its values in S, shifted as they are.
So Σx² of a column of S is at most twice Σ(x−x̄)², and float32 loses nothing to its mean.

Which blocks are sparse is told by how many of their values are active (`SPARSE_SHARE`), never by what was timed: the
same text gives the same bytes.  On a GPU all stay dense.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from torch import Tensor

SPARSE_SHARE = 1 / 32  # of a block's values: where no more are active, it is faster sparse (benchmarks/sparse_codes.py)
SPARSE_BYTES = 48  # of an active value: units by positions, positions by units, and while they are made
COUNTED_ROWS = 32  # in which active units are looked for at a time: what a cache holds


def sparse_rows(
    ends: Int[Tensor, " ends"],
    columns: Int[Tensor, " entries"],
    values: Float[Tensor, " entries"],
    shape: tuple[int, int],
) -> Tensor:
    """A sparse matrix by rows; its format is what `torch` warns of, once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.sparse_csr_tensor(ends, columns, values, shape, check_invariants=False)


@dataclass(frozen=True)
class Codes:
    """A block's values: `base`, a number of every unit, and `active` (units × positions), what they are above it."""

    base: Float[Tensor, " units"]
    active: csr_array

    def of(self, units: slice) -> "Codes":
        """Of some units."""
        return Codes(self.base[units], self.active[units])

    def times(self, dense: Float[Tensor, "positions columns"], into: Float[Tensor, "units columns"]) -> None:
        """into += Sᵀ dense."""
        ends, places, values = map(torch.from_numpy, (self.active.indptr, self.active.indices, self.active.data))
        torch.addmm(into, sparse_rows(ends, places, values, self.active.shape), dense, out=into)

    @cached_property
    def by_position(self) -> csr_array:
        """`active`, positions × units."""
        return self.active.T.tocsr()

    @cached_property
    def sums(self) -> Float[Tensor, " units"]:
        """What each unit is above its base, added up in float64."""
        return torch.from_numpy(self.active.sum(1, dtype=np.float64))


def codes_of(values: Float[Tensor, "positions units"], inactive: Float[Tensor, " units"]) -> Codes | None:
    """Values as codes, those that are not `inactive` as active; None where they are too many, or on a GPU."""
    if values.device.type != "cpu":
        return None
    block, none, most = values.numpy(), inactive.numpy(), SPARSE_SHARE * values.numel()
    found, count = [], 0
    for start in range(0, len(block), COUNTED_ROWS):
        some = np.flatnonzero(block[start : start + COUNTED_ROWS] != none)
        count += len(some)
        if count > most:
            return None
        found.append(np.array(np.divmod(some + start * block.shape[1], block.shape[1]), dtype=np.int32))
    if not count:
        return None
    positions, units = np.concatenate(found, axis=1)
    often = 2 * np.bincount(units, minlength=block.shape[1]) > len(block)
    if often.any():
        rest, always = ~often[units], np.flatnonzero(often)
        positions = np.concatenate([positions[rest], np.tile(np.arange(len(block)), len(always))])
        units = np.concatenate([units[rest], always.repeat(len(block))])
    base = np.where(often, 0, none).astype(block.dtype)
    above = block[positions, units] - base[units]
    return Codes(torch.from_numpy(base), csr_array((above, (units, positions)), shape=block.shape[::-1]))
