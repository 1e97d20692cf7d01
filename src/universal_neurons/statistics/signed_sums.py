"""Sketches: all correlations at a fraction of the products.

The positions of a shard are multiplied by random signs σ and added in groups of g spread-out ones, the same for every
model: u_k = Σ_{t∈G_k} σ_t x_t.  The s sums of a shard are a block of their own (`What.SUMS`), from which the usual
statistics give correlations: E Σ_k u_k v_k = Σ_t x_t y_t.  Centring is exact: subtracting the mean δ of shifted values
from every position subtracts δ n_k from a sum, n_k = Σ_{t∈G_k} σ_t, so n takes the place of the column of ones and
Σ n_k² that of the count.  How far off a ρ may be, `certainty` says.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.statistics.contract import Block, seed_of
from universal_neurons.statistics.keys import Key, What
from universal_neurons.statistics.products import round_to_scales
from universal_neurons.statistics.sparse_codes import sparse_rows


@dataclass(frozen=True)
class Signs:
    """Random signs and groups of positions: the same for every model, from a seed and the number of the shard."""

    group_size: int
    seed: int

    def of(self, shard: int, positions: int) -> tuple[Int[np.ndarray, " positions"], Float[np.ndarray, " positions"]]:
        """Every position's group and sign (1 or −1) in a shard."""
        draw = np.random.default_rng(seed_of("signs", self.seed, self.group_size, shard))
        groups = self.groups(positions)
        return draw.permutation(positions) % groups, draw.integers(0, 2, positions) * 2.0 - 1.0

    def groups(self, positions: int) -> int:
        """How many groups a shard of so many positions has."""
        return max(1, -(-positions // self.group_size))

    def together(self, positions: int) -> float:
        """The chance that two positions of a shard share a group."""
        size, larger = divmod(positions, self.groups(positions))
        pairs = larger * (size + 1) * size + (self.groups(positions) - larger) * size * (size - 1)
        return pairs / max(positions * (positions - 1), 1)


class SignedSums:
    """One model's signed sums over a shard; `start` it, `add` every batch, `finish` gives them as a block."""

    def __init__(self, n_neurons: int, device: torch.device, storage: torch.dtype) -> None:
        self.storage = storage
        self.sums = torch.zeros(0, n_neurons, device=device)

    def start(self, groups: int) -> None:
        """Begin a shard."""
        if len(self.sums) != groups:
            self.sums = self.sums.new_empty(groups, self.sums.shape[1])
        self.sums.zero_()

    def add(self, values: Float[Tensor, "tokens neurons"], group: np.ndarray, sign: np.ndarray) -> None:
        """Add positions, each to its group."""
        if values.is_cuda:
            spread = torch.zeros(len(self.sums), len(values), dtype=values.dtype, device=values.device)
            places = torch.from_numpy(group).to(values.device), torch.arange(len(values), device=values.device)
            spread[places] = torch.from_numpy(sign).to(values.device, values.dtype)
            low = values.dtype != torch.float32
            self.sums += torch.mm(spread, values, out_dtype=torch.float32) if low else spread @ values
            return
        order = np.argsort(group, kind="stable")
        ends = np.concatenate([[0], np.bincount(group, minlength=len(self.sums)).cumsum()])
        weights = torch.from_numpy(sign[order].astype(np.float32))
        spread = sparse_rows(torch.from_numpy(ends), torch.from_numpy(order), weights, (len(self.sums), len(values)))
        torch.addmm(self.sums, spread, values.float(), out=self.sums)

    def finish(self, basis: str, n: Float[np.ndarray, " groups"], rounding: str) -> Block:
        """The shard's sums; `n` holds the sums of the signs alone."""
        values = round_to(self.sums, rounding).to(self.storage)
        values = values.clone() if values is self.sums else values
        scale = round_to_scales(values) if rounding == "int8" else None
        return sums_block(values, n, basis, rounding, scale)


class ShardSketch:
    """The signed sums of some models over one shard."""

    def __init__(self, signs: Signs, sums: Mapping[str, SignedSums], shard: int, positions: int) -> None:
        self.sums = sums
        self.group, self.sign = signs.of(shard, positions)
        self.n = np.zeros(signs.groups(positions))
        for of_model in sums.values():
            of_model.start(len(self.n))

    def add(self, blocks: Mapping[Key, Block], places: Int[np.ndarray, " tokens"]) -> None:
        """Add a batch's positions; `places` are theirs in the shard."""
        group, sign = self.group[places], self.sign[places]
        np.add.at(self.n, group, sign)
        for name, of_model in self.sums.items():
            of_model.add(blocks[Key(name)].values, group, sign)

    def blocks(self, precision: Mapping[str, tuple[str, str]]) -> dict[Key, Block]:
        """The sums as blocks; `precision` is every model's basis and rounding."""
        finished = {name: self.sums[name].finish(basis, self.n, kind) for name, (basis, kind) in precision.items()}
        return {Key(name, What.SUMS): block for name, block in finished.items()}


def sums_block(
    values: Float[Tensor, "groups neurons"],
    n: Float[np.ndarray, " groups"],
    basis: str,
    rounding: str,
    scale: Float[Tensor, " neurons"] | None = None,
) -> Block:
    """Signed sums as a block whose `sums` and `count` centre them exactly (see the module)."""
    signs = torch.from_numpy(n).to(values.device)
    return Block(values, basis, rounding=rounding, weight=int(n @ n), scale=scale, _sums=signs @ values.double())


def round_to(values: Float[Tensor, "*shape"], rounding: str) -> Float[Tensor, "*shape"]:
    """Values rounded to float32, tf32 (ten bits of mantissa) or bfloat16, as float32.

    In int8 they are multiples of scales that a whole batch has (`products.round_to_scales`), and float32 till then.
    """
    if rounding == "bfloat16":
        return values.bfloat16().float()
    if rounding == "tf32":
        bits = values.float().contiguous().view(torch.int32)
        rounded = ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)
        return torch.where(values.isfinite(), rounded, values.float())
    return values.float()
