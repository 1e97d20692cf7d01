"""Blocks in which most units are inactive, as what their few active ones are: latents of dictionaries.

A block comes shifted by its provisional means, so that a unit that is not active has one number everywhere, not 0:
V = S + 1bᵀ.  b holds what inactive units have, S what the others differ by, and only they are kept (`Codes`).
Units that are active at more than a sixteenth of the positions stay dense and shifted, b = 0: products of them are
faster so, float32 adds up a few hundred terms of the others at most, and Σx² of these is hardly more than Σ(x−x̄)².

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
OFTEN_SHARE = 1 / 16  # of the positions: a unit that is active at more of them stays dense
CODES_BYTES = 4  # a value of a block, at most: codes in both orders, often active units, what making them takes
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
    """A block's values: `base`, a number of every unit, and `active` (units × positions), what they are above it.

    Of units that are `often` active the values count as they are: their base is 0, and `active` has none of them.
    """

    values: Float[Tensor, "positions units"]
    base: Float[Tensor, " units"]
    active: csr_array
    often: Int[Tensor, " often"]

    def of(self, units: slice) -> "Codes":
        """Of some units."""
        often = self.often[(self.often >= units.start) & (self.often < units.stop)] - units.start
        return Codes(self.values[:, units], self.base[units], self.active[units], often)

    def times(self, dense: Float[Tensor, "positions columns"], into: Float[Tensor, "units columns"]) -> None:
        """into += (V − 1bᵀ)ᵀ dense."""
        ends, places, values = map(torch.from_numpy, (self.active.indptr, self.active.indices, self.active.data))
        torch.addmm(into, sparse_rows(ends, places, values, self.active.shape), dense, out=into)
        into[self.often] += self.of_often.T @ dense

    @cached_property
    def of_often(self) -> Float[Tensor, "positions often"]:
        """The values of the units that are often active."""
        return self.values[:, self.often]

    @cached_property
    def by_position(self) -> csr_array:
        """`active`, positions × units."""
        return self.active.T.tocsr()

    @cached_property
    def sums(self) -> Float[Tensor, " units"]:
        """What each unit is above its base, added up in float64."""
        sums = torch.from_numpy(self.active.sum(1, dtype=np.float64))
        return sums.index_add(0, self.often, self.of_often.sum(0, dtype=torch.float64))


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
    active = np.bincount(units, minlength=block.shape[1])
    often = active > OFTEN_SHARE * len(block)
    base = np.where(often, 0, none).astype(block.dtype)
    few = ~often[units]
    positions, units = positions[few], units[few]
    above = block[positions, units] - base[units]
    codes = csr_array((above, (units, positions)), shape=block.shape[::-1])
    return Codes(values, torch.from_numpy(base), codes, torch.from_numpy(np.flatnonzero(often)))
