"""The final norm of a model: what it reads, and the norm frozen at the scale of another run."""

import contextlib
from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor, nn

from universal_neurons.models import Model, Norm, module_at


class FinalNorm(Norm):
    """A model's final norm in float32."""

    def __init__(self, model: Model) -> None:
        row = model.architecture
        super().__init__(module_at(model.hf, row.final_norm), row, model.embedding.new_empty(model.d_model))


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
