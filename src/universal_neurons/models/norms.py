"""A norm of a model: what it subtracts, what it divides by, and how it scales the result.

LayerNorm: (x − x̄) / √(var + ε) · γ + β; RMSNorm: x / √(mean x² + ε) · γ.  γ is the weight, in some families 1 + it; a
norm without parameters has γ = 1, β = 0.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from universal_neurons.models.architectures import Architecture

EPSILON = 1e-5  # of norms that keep theirs in the code (OLMo)


class Norm:
    """One norm of a family; its gain and shift in `dtype`, on the device of `like`."""

    def __init__(self, module: nn.Module, row: Architecture, like: Tensor, dtype: torch.dtype = torch.float32) -> None:
        self.module = module
        self.centres = row.norm == "layer"
        named = (getattr(module, name, None) for name in ("eps", "variance_epsilon"))
        self.epsilon = next((float(value) for value in named if value is not None), EPSILON)
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        plain = torch.ones(like.shape[-1], device=like.device, dtype=dtype)
        self.gain = weight.detach().to(dtype) + row.gain_offset if isinstance(weight, Tensor) else plain
        self.shift = bias.detach().to(dtype) if isinstance(bias, Tensor) else torch.zeros_like(self.gain)

    def centred(self, residual: Float[Tensor, "*any width"]) -> Float[Tensor, "*any width"]:
        """What is divided by the scale, in the norm's precision."""
        residual = residual.to(self.gain.dtype)
        return residual - residual.mean(-1, keepdim=True) if self.centres else residual

    def scale(self, residual: Float[Tensor, "*any width"]) -> Float[Tensor, "*any"]:
        """What it is divided by: the norm's scale."""
        return (self.centred(residual).square().mean(-1) + self.epsilon).sqrt()

    def __call__(self, residual: Float[Tensor, "*any width"]) -> Float[Tensor, "*any width"]:
        """What the norm makes of a residual stream."""
        return self.centred(residual) / self.scale(residual)[..., None] * self.gain + self.shift
