"""Products of two blocks, summed over positions: by the units that a processor has for the precision of its values.

- float32, and tf32 and bfloat16 on a GPU: as torch multiplies them, into float32.
  Float32 on a CPU where oneDNN is faster (`processor`): over short stretches, tile by tile.
- int8 (a CPU): every column of a batch is divided by a scale of its own, so that its largest value is ±32 639, and
  rounded to whole numbers 256·h + l, h and l within ±127 and −128 … 127.  Their products hh', hl' + lh' and ll' are
  exact in 32 bits over `INT8_POSITIONS` positions and are put together in float32.  A sum is then as wrong as its
  values' rounding, ½ of 32 639 of the largest in the batch.
- bfloat16 (a CPU with such units): over stretches of `STRETCH` positions, for torch rounds a product to bfloat16 too.

A block's values are rounded once and packed once, however many blocks they are multiplied with.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int8, Int32
from torch import Tensor

from universal_neurons.processor import exact_products, float32_products, onednn_is_faster, processor_flags

INT8_LARGEST = 127 * 256 + 127
INT8_POSITIONS = 65_536  # over as many |hl' + lh'| ≤ 2 · 127 · 128 · 65 536 < 2³¹
LEAST_SCALE = 2.0**-100  # of a column that is told from zeros: float32 has no squares of less
TILE = (1024, 4096)  # of a product that is put together at once: what a cache holds of its three sums
STRETCH = 2048
ONEDNN_STRETCH, ONEDNN_TILE = 128, (512, 4096)  # of a float32 product: positions, and the sums made at once
PACKED_COLUMNS = 2048  # packed at once
PACKED_BYTES = {"int8": 3, "bfloat16": 2}  # of a value, beside the float32 that other statistics read
PRODUCT_BYTES = 3 * 4 * TILE[0] * TILE[1]  # of a tile's scratch matrices
INT8_FLAGS = frozenset({"avx512_vnni", "amx_int8"})
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def units_for(rounding: str) -> list[str]:
    """The processor's units that multiply values rounded so; none where it has none."""
    wanted = {"int8": INT8_FLAGS, "bfloat16": BFLOAT16_FLAGS}.get(rounding, frozenset())
    return sorted(wanted & processor_flags())


def scales_of(values: Float[Tensor, "tokens features"]) -> Float[Tensor, " features"]:
    """Every column's scale in int8; 0 where all is next to 0, NaN where a value is infinite or none."""
    largest = torch.maximum(values.amax(0), values.amin(0).neg_())
    scale = largest / INT8_LARGEST
    return scale.masked_fill_(~scale.isfinite(), torch.nan).masked_fill_(scale < LEAST_SCALE, 0.0)


def round_to_scales(values: Float[Tensor, "tokens features"]) -> Float[Tensor, " features"]:
    """Round values in place to whole multiples of their columns' scales, and return these."""
    scale = scales_of(values)
    values.mul_(_inverse(scale)).round_().mul_(scale)
    return scale


def _inverse(scale: Float[Tensor, " features"]) -> Float[Tensor, " features"]:
    return torch.where(scale == 0, scale, scale.reciprocal())


@dataclass(frozen=True)
class Int8Halves:
    """A batch in whole numbers, stretch by stretch: its high, low and again high halves, one below the other.

    `scale` is every column's.
    """

    stretches: tuple[Int8[Tensor, "_ features"], ...]
    scale: Float[Tensor, " features"]

    @classmethod
    def of(cls, values: Float[Tensor, "tokens features"], scale: Float[Tensor, " features"]) -> "Int8Halves":
        """Of values that are rounded (`round_to_scales`)."""
        return cls(tuple(_halves(stretch, _inverse(scale)) for stretch in values.split(INT8_POSITIONS)), scale)

    def add_product(
        self, into: Float[Tensor, "left right"], rows: slice, other: "Packed", columns: slice, fresh: bool
    ) -> None:
        """into (+)= these columns (`rows`)ᵀ the other's; `fresh` overwrites instead of adding."""
        assert isinstance(other, Int8Halves)
        if fresh:
            into.zero_()
        by_row, by_column = self.scale[rows, None], other.scale[columns]
        for mine, theirs in zip(self.stretches, other.stretches):
            left, right = mine[:, rows], theirs[:, columns]
            for tile, *scratch in _tiles(into, torch.int32, torch.float32, torch.float32):
                whole = _product_of_halves(left[:, tile[0]], right[:, tile[1]], *scratch).mul_(by_row[tile[0]])
                into[tile].addcmul_(whole, by_column[tile[1]])


def _halves(
    values: Float[Tensor, "tokens features"], inverse: Float[Tensor, " features"]
) -> Int8[Tensor, "_ features"]:
    """The high, low and again high halves of values over their scales."""
    n = len(values)
    halves = torch.empty(3 * n, values.shape[1], dtype=torch.int8)
    for start in range(0, values.shape[1], PACKED_COLUMNS):
        some = slice(start, start + PACKED_COLUMNS)
        shifted = (values[:, some] * inverse[some]).add_(128.0).round_().to(torch.int16)  # 256·h + (l + 128)
        pairs = shifted.view(torch.int8).view(n, -1, 2)  # the lower byte first
        halves[:n, some] = pairs[..., 1]
        halves[n : 2 * n, some] = pairs[..., 0].bitwise_xor(-128)
    halves[2 * n :] = halves[:n]
    return halves


def _product_of_halves(
    left: Int8[Tensor, "_ left"], right: Int8[Tensor, "_ right"], sums: Tensor, whole: Tensor, part: Tensor
) -> Float[Tensor, "left right"]:
    """leftᵀ right of the numbers whose halves these are, in `whole`."""
    n = len(left) // 3
    high_low, low_high = left[: 2 * n], right[n:]
    whole.copy_(_int_product(high_low[:n], low_high[n:], sums))
    part.copy_(_int_product(high_low, low_high, sums)).add_(whole, alpha=256.0)
    return whole.copy_(_int_product(high_low[n:], low_high[:n], sums)).add_(part, alpha=256.0)


@dataclass(frozen=True)
class LowBfloat16:
    """A batch in bfloat16, for a CPU's units."""

    values: Tensor

    @classmethod
    def of(cls, values: Float[Tensor, "tokens features"]) -> "LowBfloat16":
        """Of values that are rounded to bfloat16."""
        return cls(values.bfloat16())

    def add_product(
        self, into: Float[Tensor, "left right"], rows: slice, other: "Packed", columns: slice, fresh: bool
    ) -> None:
        """into (+)= these columns (`rows`)ᵀ the other's; `fresh` overwrites instead of adding."""
        assert isinstance(other, LowBfloat16)
        if fresh:
            into.zero_()
        left, right = self.values[:, rows], other.values[:, columns]
        for tile, low, part in _tiles(into, torch.bfloat16, torch.float32):
            for start in range(0, len(left), STRETCH):
                stretch = slice(start, start + STRETCH)
                into[tile].add_(part.copy_(torch.mm(left[stretch, tile[0]].T, right[stretch, tile[1]], out=low)))


Packed = Int8Halves | LowBfloat16


def packed_of(
    values: Float[Tensor, "tokens features"], rounding: str, scale: Float[Tensor, " features"] | None
) -> Packed | None:
    """A batch as a CPU's units for small numbers read it; None where torch multiplies its values as they are."""
    if values.device.type != "cpu":
        return None
    if scale is not None:
        return Int8Halves.of(values, scale)
    return LowBfloat16.of(values) if rounding == "bfloat16" and units_for(rounding) else None


def _tiles(into: Tensor, *kinds: torch.dtype, size: tuple[int, int] = TILE) -> Iterator[tuple[Any, ...]]:
    """A matrix cut into tiles, each with scratch matrices of its size, whose memory is the same for all."""
    rows, columns = into.shape
    most = min(size[0], rows) * min(size[1], columns)
    scratch = [torch.empty(most, dtype=kind) for kind in kinds]
    for top in range(0, rows, size[0]):
        for left in range(0, columns, size[1]):
            height, width = min(size[0], rows - top), min(size[1], columns - left)
            tile = slice(top, top + height), slice(left, left + width)
            yield tile, *(each[: height * width].view(height, width) for each in scratch)


def _int_product(
    left: Int8[Tensor, "tokens left"], right: Int8[Tensor, "tokens right"], sums: Tensor
) -> Int32[Tensor, "left right"]:
    """leftᵀ right, exact in 32 bits, in `sums`."""
    if left.shape[1] == 1:  # of a single row torch 2.13 returns memory that nobody wrote
        return sums.copy_(torch._int_mm(left.expand(-1, 2).contiguous().T, right)[:1])
    return torch._int_mm(left.T, right, out=sums)


@contextlib.contextmanager
def product_precision(rounding: str, device: torch.device) -> Iterator[None]:
    """Let float32 products use the units of a lower precision that their inputs are rounded to already.

    TF32 on a GPU; on a CPU bfloat16 through oneDNN, which falls back to float32 where the processor has none.
    """
    wanted = {"tf32": "tf32", "bfloat16": "bf16"}.get(rounding)
    if wanted is None or (device.type == "cuda") != (rounding == "tf32"):
        yield
        return
    with float32_products(wanted, device.type):
        yield


def add_product(
    into: Float[Tensor, "left right"],
    left: Float[Tensor, "tokens left"],
    right: Float[Tensor, "tokens right"],
    fresh: bool,
    rounding: str = "float32",
) -> None:
    """into (+)= leftᵀ right in float32; `fresh` overwrites instead of adding.

    `rounding` names what the values are rounded to, where they are stored in float32.
    """
    if left.dtype == torch.float32 and left.device.type == "cpu" and onednn_is_faster():
        _add_by_stretches(into, left, right, fresh)
    elif left.dtype == torch.float32:
        with product_precision(rounding, left.device):
            torch.addmm(into, left.T, right, beta=0.0 if fresh else 1.0, out=into)
    elif fresh:
        into.copy_(product_of(left, right, rounding))
    else:
        into.add_(product_of(left, right, rounding))


def product_of(
    left: Float[Tensor, "tokens left"], right: Float[Tensor, "tokens right"], rounding: str = "float32"
) -> Float[Tensor, "left right"]:
    """leftᵀ right in float32 (see `add_product`)."""
    if left.dtype != torch.float32:
        return torch.mm(left.T, right, out_dtype=torch.float32)
    into = torch.empty(left.shape[1], right.shape[1], device=left.device)
    add_product(into, left, right, True, rounding)
    return into


def _add_by_stretches(
    into: Float[Tensor, "left right"],
    left: Float[Tensor, "tokens left"],
    right: Float[Tensor, "tokens right"],
    fresh: bool,
) -> None:
    """into (+)= leftᵀ right by oneDNN, which adds the products of up to 512 positions one to the other: over fewer, so
    that sums are as right as those of MKL, and tile by tile, so that they stay in a cache meanwhile."""
    if fresh:
        into.zero_()
    with exact_products("cpu"):
        for (tile,) in _tiles(into, size=ONEDNN_TILE):
            for start in range(0, len(left), ONEDNN_STRETCH):
                some = slice(start, start + ONEDNN_STRETCH)
                torch.addmm(into[tile], left[some, tile[0]].T, right[some, tile[1]], out=into[tile])
