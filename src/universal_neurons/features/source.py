"""What a pass reads: sources of blocks, and what they are shifted by."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.features.inputs import Inputs
from universal_neurons.features.pooling import Places
from universal_neurons.models import Model
from universal_neurons.statistics import Block, Key, SignedSums
from universal_neurons.text import Shard
from universal_neurons.units import Units


@dataclass
class Provisional:
    """What evenly spread rows say of a source's units: means, and quantiles of the shifted values."""

    mean: Float[Tensor, " neurons"]
    pre_mean: Float[Tensor, " neurons"]
    bounds: Float[Tensor, "quantiles neurons"]

    def to(self, device: torch.device) -> "Provisional":
        """The same on a device."""
        return Provisional(self.mean.to(device), self.pre_mean.to(device), self.bounds.to(device))


@runtime_checkable
class Source(Protocol):
    """What gives blocks of units for positions: the neurons or other features of a model, or the sums of its sketch.

    `network` is the model that runs for it, perhaps for others too; a sketch has none.
    `rounding` is the precision of the products' inputs (float32, tf32, bfloat16 or int8), `pre` whether there are
    blocks of pre-activations too, `unrounded` whether `as_they_are` is exact, `streams` whether there are norms of the
    residual stream.  Token ids, attention, positions come on the CPU.
    """

    name: str
    units: Units
    device: torch.device
    rounding: str
    pre: bool
    provisional: Provisional | None
    unrounded: bool
    streams: bool

    @property
    def network(self) -> Model | None:
        """The model that runs for it."""
        ...

    @property
    def as_they_are(self) -> Key:
        """Its block of activations that are exact: they and the block's mean make the model's own."""
        ...

    @property
    def basis(self) -> str:
        """Tells its provisional means from others."""
        ...

    def signed_sums(self) -> SignedSums:
        """What collects the signed sums of a shard."""
        ...

    def ready(self, shard: Shard) -> dict[Key, Block] | None:
        """A shard's blocks where they are at hand without the model's forward pass."""
        ...

    def reading(self, inputs: Inputs) -> AbstractContextManager[dict[Key, Block]]:
        """While open, a forward pass of the model on these inputs fills the blocks: they are whole when it is closed.

        `neurons.blocks_of` opens those of several sources and runs the model once.
        """
        ...

    def provisional_of(
        self, ids: Int[Tensor, "rows context"], attention: Int[Tensor, "rows context"], keep: Places
    ) -> Provisional:
        """Provisional means and quantiles from some rows."""
        ...

    def settle(self, provisional: Provisional) -> None:
        """Shift by these provisional means from now on."""
        ...
