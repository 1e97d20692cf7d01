"""By how much the residual stream's norm stands out from its row: what tells sinks (docs/method.md).

1. After every block, the norm of each token's residual stream over the median of those of its row's counted tokens
   (of an even number the lower of the two in the middle).
2. Of each token, the highest of all blocks; of a span, the highest of its tokens.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from universal_neurons.features.pooling import Places, Pooling, taken


class StreamNorms:
    """The highest norms so far of a batch's rows (rows, context), whose counted positions are `places`."""

    def __init__(self, places: Places, shape: tuple[int, ...]) -> None:
        self.places = replace(places, kind="max") if isinstance(places, Pooling) else places
        tokens = places.tokens if isinstance(places, Pooling) else places
        self.highest = torch.zeros(shape, device=tokens.device)
        self.left_out = torch.ones(shape, dtype=torch.bool, device=tokens.device)
        self.left_out.view(-1)[tokens] = False
        self.middle = ((~self.left_out).sum(1, keepdim=True) - 1).clamp_min(0) // 2

    def take(self, _layer: int, stream: Float[Tensor, "tokens width"]) -> None:
        """Take in the residual stream after a block."""
        norms = torch.linalg.vector_norm(stream, dim=-1, dtype=torch.float32).view(self.highest.shape)
        medians = norms.masked_fill(self.left_out, torch.inf).sort(1).values.gather(1, self.middle)
        torch.maximum(self.highest, norms / medians, out=self.highest)

    def of_positions(self) -> Float[Tensor, "positions 1"]:
        """The counted positions' norms, in times their rows' medians."""
        return taken(self.highest.view(-1, 1), self.places)
