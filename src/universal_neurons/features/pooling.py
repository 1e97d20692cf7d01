"""From the tokens of a model to positions: a token each, or spans that several tokens make up.

The position of a study whose models have different tokenizers is a span.  A model's activations on the tokens of a span
are pooled: their mean, that of the last token, or the largest.  Where every position is one token, nothing is computed.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.config import PoolingKind
from universal_neurons.statistics import sparse_rows


@dataclass(frozen=True)
class Pooling:
    """Which tokens make up each position: tokens by flat number, in the order of the positions; `ends` of each one's.

    `kind` says what becomes of several; every position has a token at least.  `n_tokens` is the number of all tokens.
    """

    kind: PoolingKind
    tokens: Int[Tensor, " tokens"]
    ends: Int[Tensor, " positions"]
    n_tokens: int

    def __len__(self) -> int:
        return len(self.ends)

    def to(self, device: torch.device) -> "Pooling":
        """The same on a device."""
        if self.ends.device == device:
            return self
        return Pooling(self.kind, self.tokens.to(device), self.ends.to(device), self.n_tokens)

    @cached_property
    def _lengths(self) -> Int[Tensor, " positions"]:
        """How many tokens make up each position."""
        return self.ends.diff(prepend=self.ends.new_zeros(1))

    @cached_property
    def _shares(self) -> Tensor:
        """What each token adds to its position's mean, as a sparse matrix (positions × tokens)."""
        ends = torch.cat([self.ends.new_zeros(1), self.ends])
        shares = (1 / self._lengths).float().repeat_interleave(self._lengths)
        return sparse_rows(ends, self.tokens, shares, (len(self), self.n_tokens))

    def take(self, values: Float[Tensor, "tokens units"]) -> Float[Tensor, "positions units"]:
        """The positions' values."""
        if self.kind == "last" or len(self.tokens) == len(self.ends):
            return values.index_select(0, self.tokens[self.ends - 1])
        if self.kind == "max":
            kept = values.index_select(0, self.tokens).float()
            return torch.segment_reduce(kept, "max", lengths=self._lengths, unsafe=True).to(values.dtype)
        return (self._shares @ values.float()).to(values.dtype)


Places = Tensor | Pooling  # flat numbers of the tokens that are positions, or what makes them up


def taken(values: Float[Tensor, "tokens units"], places: Places) -> Float[Tensor, "positions units"]:
    """The values at positions."""
    return places.take(values) if isinstance(places, Pooling) else values.index_select(0, places)
