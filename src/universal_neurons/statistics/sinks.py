"""Sinks: counted positions at which the norm of a model's residual stream exceeds so many times its row's median."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from universal_neurons.statistics.contract import Accumulator, Batch, Block
from universal_neurons.statistics.keys import BY_POSITION, BY_ROW, Key, What


def at_sinks(streams: Sequence[Block], factor: float) -> Bool[Tensor, " positions"]:
    """Which positions of a batch are sinks of any of the models whose norms these are (`What.STREAM`)."""
    return torch.cat([stream.values for stream in streams], 1).amax(1) > factor


class SinkPositions(Accumulator):
    """Which positions of some rows (given in rising order) are sinks of any of some models."""

    TENSORS = ("rows", "sinks")
    SAME: ClassVar[dict[str, str]] = {"rows": "rows"}

    def __init__(
        self, models: Sequence[str], rows: Int[np.ndarray, " rows"], context: int, factor: float, *, device: Any = "cpu"
    ) -> None:
        super().__init__([Key(model, What.STREAM) for model in models], group=None)
        self.factor = factor
        self.rows = torch.from_numpy(rows.astype(np.int64)).to(device)
        self.sinks = torch.zeros(len(rows), context, dtype=torch.bool, device=device)

    def update(self, batch: Batch) -> None:
        """Add a batch of positions."""
        streams = self.blocks(batch)
        self.count += len(streams[0].values)
        found = at_sinks(streams, self.factor).nonzero().flatten()
        row, position = (batch.index[key].index_select(0, found) for key in (BY_ROW, BY_POSITION))
        self.sinks[torch.searchsorted(self.rows, row), position] = True

    def _merge_tensor(self, name: str, theirs: Tensor) -> None:
        getattr(self, name).logical_or_(theirs)

    def result(self) -> Bool[np.ndarray, "rows context"]:
        """The sinks among the rows' positions."""
        return self.sinks.cpu().numpy()
