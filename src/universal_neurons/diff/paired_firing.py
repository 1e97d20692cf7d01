"""How often does a unit fire in either of two models, and how often in both?  For each stretch of held-out rows."""

from typing import Any

import torch
from torch import Tensor

from universal_neurons.statistics import Accumulator, Batch, Named


class PairedFiring(Accumulator):
    """Positions with a pre-activation above 0 in the first model, in the second, in both, per stretch (shard number).

    It reads the pre-activations of two models whose units correspond by index.
    """

    TENSORS = ("counts", "firing")

    def __init__(self, base: Named, other: Named, n_units: int, stretches: int, *, device: Any = "cpu") -> None:
        super().__init__((base, other))
        self.counts = torch.zeros(stretches, dtype=torch.int64)
        self.firing = torch.zeros(stretches, 3, n_units, dtype=torch.int64, device=device)

    def update(self, batch: Batch) -> None:
        """Add a batch of positions to its stretch."""
        before, after = (block.values > 0 for block in self.blocks(batch))
        self.count += len(before)
        self.counts[batch.shard] += len(before)
        self.firing[batch.shard] += torch.stack([fires.sum(0) for fires in (before, after, before & after)])

    def result(self) -> tuple[Tensor, Tensor]:
        """Positions of every stretch, and at how many of them each unit fires: before, after, both."""
        return self.counts, self.firing
