"""What makes latents of what an encoder gives: ReLU, JumpReLU, gated, TopK, the largest of each group.

`before` is x · W_enc, `bias` the encoder's, b_enc; the pre-activation is their sum.
"""

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Activation:
    """ReLU: the positive part of the pre-activation (standard autoencoders)."""

    def __call__(self, before: Float[Tensor, "n width"], bias: Float[Tensor, " width"]) -> Float[Tensor, "n width"]:
        """The latents."""
        return (before + bias).relu_()

    def to(self, device: torch.device | str) -> "Activation":
        """The same on a device."""
        moved = {f.name: value.to(device) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **moved)


@dataclass(frozen=True, eq=False)
class JumpReLU(Activation):
    """The pre-activation where it is above its threshold and positive, else 0; BatchTopK at one threshold for all."""

    threshold: Float[Tensor, "*width"]

    def __call__(self, before: Float[Tensor, "n width"], bias: Float[Tensor, " width"]) -> Float[Tensor, "n width"]:
        """The latents."""
        pre = before + bias
        return pre.masked_fill_(pre <= self.threshold.clamp(min=0), 0)


@dataclass(frozen=True, eq=False)
class Gated(Activation):
    """ReLU(before · exp(r_mag) + b_mag) where before + b_gate, which stands for b_enc, is positive, else 0."""

    r_mag: Float[Tensor, " width"]
    b_mag: Float[Tensor, " width"]

    def __call__(self, before: Float[Tensor, "n width"], bias: Float[Tensor, " width"]) -> Float[Tensor, "n width"]:
        """The latents."""
        magnitude = (before * self.r_mag.exp() + self.b_mag).relu_()
        return magnitude.masked_fill_(before + bias <= 0, 0)


@dataclass(frozen=True, eq=False)
class TopK(Activation):
    """The positive parts of the k largest pre-activations of each position, else 0."""

    k: int

    def __call__(self, before: Float[Tensor, "n width"], bias: Float[Tensor, " width"]) -> Float[Tensor, "n width"]:
        """The latents."""
        values, places = (before + bias).topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(before).scatter_(-1, places, values.relu_())


@dataclass(frozen=True, eq=False)
class GroupMax(Activation):
    """The positive part of the largest pre-activation in each of k groups of neighbours, else 0 (sparsify)."""

    k: int

    def __call__(self, before: Float[Tensor, "n width"], bias: Float[Tensor, " width"]) -> Float[Tensor, "n width"]:
        """The latents."""
        groups = (before + bias).relu_().unflatten(-1, (self.k, -1))
        values, places = groups.max(dim=-1, keepdim=True)
        return torch.zeros_like(groups).scatter_(-1, places, values).flatten(-2)
