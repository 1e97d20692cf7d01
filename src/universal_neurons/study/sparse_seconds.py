"""What products of sources whose blocks are sparse take, as a share of the time of dense ones: timed on a batch each.

Blocks are sparse where few of their units are active (`statistics.sparse_codes`): those of dictionaries' latents, on a
CPU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from universal_neurons.config import Settings
from universal_neurons.features import NeuronSource, Studied
from universal_neurons.models import Described
from universal_neurons.statistics import Block, Key, OuterProducts, add_product, add_sparse_product
from universal_neurons.study.measured import fewest_seconds, measured_ids

COLUMNS = 512  # of a product that is timed


@dataclass(frozen=True)
class Shares:
    """What products of a source take of the time of dense ones: with a dense block, and with a sparse one."""

    with_dense: float = 1.0
    with_sparse: float = 1.0

    @property
    def is_sparse(self) -> bool:
        """Whether its blocks are."""
        return self != DENSE

    def times(self, other: "Shares") -> float:
        """The share of products of the two."""
        if self.is_sparse and other.is_sparse:
            return (self.with_sparse * other.with_sparse) ** 0.5
        return self.with_dense * other.with_dense


DENSE = Shares()


def product_shares(models: Sequence[Studied], config: Settings) -> dict[str, Shares]:
    """The shares of every source; only of those that are no neurons a batch is read."""
    return {model.name: DENSE if model.of_neurons else _shares_of(model, config) for model in models}


def share_of(shares: Mapping[str, Shares], left: Described, right: Described | None = None) -> float:
    """The share of the products of two sources, or of one with what is dense."""
    return shares[left.name].times(DENSE if right is None else shares[right.name])


def _shares_of(model: Studied, config: Settings) -> Shares:
    if model.device.type != "cpu":
        return DENSE
    ids = measured_ids(model, config)
    keep, attention = torch.arange(ids.numel()), torch.ones_like(ids)
    source = NeuronSource(model, config.gemm_dtype)
    source.settle(source.provisional_of(ids, attention, keep))
    block = source.blocks(ids, attention, keep)[Key(model.name)]
    if block.codes is None:
        return DENSE
    dense = Block(torch.randn(len(keep), COLUMNS))
    rows = slice(0, min(COLUMNS, model.n_neurons))
    into, within = torch.zeros(model.n_neurons, COLUMNS), torch.zeros(rows.stop, model.n_neurons)

    pairs = ((into, block, dense, slice(0, model.n_neurons)), (within, block, block, rows))
    return Shares(*(_share(*pair, config.gemm_dtype) for pair in pairs))


def _share(into: torch.Tensor, left: Block, right: Block, rows: slice, rounding: str) -> float:
    """What a sparse product takes of the time of the dense one."""

    def sparse() -> None:
        add_sparse_product(into, OuterProducts(), left, right, rows, True)

    def dense() -> None:
        add_product(into, left.values[:, rows], right.values, True, rounding)

    return fewest_seconds(sparse, 3, into.device) / fewest_seconds(dense, 2, into.device)
