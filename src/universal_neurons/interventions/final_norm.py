"""The final norm of a model: what it reads, and the norm frozen at the scale of another run."""

import contextlib
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from universal_neurons.models import Model, module_at


class FinalNorm:
    """A model's final norm: what it subtracts, divides by, and how it scales the result.

    LayerNorm: (x − x̄) / √(var + ε) · γ + β; RMSNorm: x / √(mean x² + ε) · γ.  A norm without parameters: γ = 1, β = 0.
    """

    def __init__(self, model: Model) -> None:
        self.module = module_at(model.hf, model.architecture.final_norm)
        self.centres = model.architecture.norm == "layer"
        self.epsilon = float(getattr(self.module, "eps", None) or getattr(self.module, "variance_epsilon"))  # noqa: B009
        gain, shift = getattr(self.module, "weight", None), getattr(self.module, "bias", None)
        plain = torch.ones(model.d_model, device=model.device)
        self.gain = gain.detach().float() if isinstance(gain, Tensor) else plain
        self.shift = shift.detach().float() if isinstance(shift, Tensor) else torch.zeros_like(self.gain)

    def centred(self, residual: Float[Tensor, "*any width"]) -> Float[Tensor, "*any width"]:
        """What is divided by the scale, in float32."""
        residual = residual.float()
        return residual - residual.mean(-1, keepdim=True) if self.centres else residual

    def scale(self, residual: Float[Tensor, "*any width"]) -> Float[Tensor, "*any"]:
        """What it is divided by: the final norm scale."""
        return (self.centred(residual).square().mean(-1) + self.epsilon).sqrt()


@contextlib.contextmanager
def final_residual(model: Model) -> Iterator[list[Tensor]]:
    """While open, every forward pass appends what the final norm reads, (rows, context, width), to the list."""
    seen: list[Tensor] = []
    norm = module_at(model.hf, model.architecture.final_norm)
    handle = norm.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        handle.remove()


@contextlib.contextmanager
def frozen_norm(model: Model, scale: Float[Tensor, "rows context"]) -> Iterator[None]:
    """While open, the final norm divides by this scale of another run in place of its own: direct effects
    (arXiv 2406.16254 §3)."""
    norm = FinalNorm(model)

    def hook(_m: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert args[0].shape[:-1] == scale.shape, "a scale of other rows than the model reads"
        frozen = norm.centred(args[0]) / scale.to(args[0].device)[..., None] * norm.gain + norm.shift
        return frozen.to(output.dtype)

    handle = norm.module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
