"""Processed weights: what a neuron reads and writes once the norms are folded in (paper §4.2, A.1, eq 6–7).

LayerNorm: fold γ and β into the weights that read through it (W diag γ, b + W β), then centre them along the residual
dimension, since what they read has mean zero; centre what is written, since the next norm takes the mean away.
RMSNorm: fold γ only, centre nothing.  Post-norm encoders (BERT): raw.  The unembedding is centred over the
vocabulary always, which leaves the softmax as it was.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from universal_neurons.models.architectures import module_at
from universal_neurons.models.model import Model, matrix_of
from universal_neurons.units import Units


@dataclass(frozen=True)
class ProcessedWeights:
    """Weights of every neuron and the unembedding, in float64.

    `folded` is False for post-norm encoders, whose norms follow the residual sum and cannot be folded.  Of a model
    without an unembedding, `w_u` and `b_u` have no rows.
    """

    w_in: Float[Tensor, "layers d_mlp d_model"]
    b_in: Float[Tensor, "layers d_mlp"]
    w_up: Float[Tensor, "layers d_mlp d_model"] | None
    b_up: Float[Tensor, "layers d_mlp"] | None
    w_out: Float[Tensor, "layers d_mlp d_model"]
    b_out: Float[Tensor, "layers d_model"]
    w_u: Float[Tensor, "vocabulary d_model"]
    b_u: Float[Tensor, " vocabulary"]
    folded: bool

    @property
    def units(self) -> Units:
        """Layers and widths of the neurons that the weights are of."""
        return Units.equal(*self.w_out.shape[:2])


def processed_weights(model: Model) -> ProcessedWeights:
    """The processed weights of a model; its own weights stay as they are.  `ConfigError` for one that is spread."""
    import torch

    model.require_whole("processed weights")
    row = model.architecture
    readers: dict[str, list[tuple[Tensor, Tensor]]] = {"w_in": [], "w_up": []}
    writers = []
    for layer in range(model.n_layers):
        norm = model.part(layer, "mlp_norm")
        for role in ("w_in", "w_up") if row.gated else ("w_in",):
            weight, bias = _linear(model.part(layer, role))
            readers[role].append(_read_through(weight, bias, norm, model))
        weight, bias = _linear(model.part(layer, "w_out"))
        writers.append(_written(weight, bias, model))
    if model.has_unembedding:
        w_u, b_u = _linear(module_at(model.hf, row.unembedding))
    else:
        w_u, b_u = writers[0][0].new_zeros(0, model.d_model), writers[0][0].new_zeros(0)
    if not row.post_norm:
        w_u, b_u = _read_through(w_u, b_u, module_at(model.hf, row.final_norm), model)

    def stacked(role: str, part: int) -> Tensor:
        return torch.stack([pair[part] for pair in readers[role]])

    return ProcessedWeights(
        w_in=stacked("w_in", 0),
        b_in=stacked("w_in", 1),
        w_up=stacked("w_up", 0) if row.gated else None,
        b_up=stacked("w_up", 1) if row.gated else None,
        w_out=torch.stack([w for w, _ in writers]),
        b_out=torch.stack([b for _, b in writers]),
        w_u=w_u - w_u.mean(0),
        b_u=b_u - b_u.mean(),
        folded=not row.post_norm,
    )


def _linear(module: nn.Module) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"]]:
    weight = matrix_of(module).double()
    bias = getattr(module, "bias", None)
    return weight, bias.detach().double() if isinstance(bias, Tensor) else weight.new_zeros(weight.shape[0])


def _read_through(weight: Tensor, bias: Tensor, norm: nn.Module, model: Model) -> tuple[Tensor, Tensor]:
    if model.architecture.post_norm:
        return weight, bias
    gain, shift = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if isinstance(shift, Tensor):
        bias = bias + weight @ shift.detach().double()
    if isinstance(gain, Tensor):
        weight = weight * gain.detach().double()
    if model.architecture.norm == "layer":
        weight = weight - weight.mean(1, keepdim=True)
    return weight, bias


def _written(weight: Tensor, bias: Tensor, model: Model) -> tuple[Tensor, Tensor]:
    if model.architecture.norm == "layer" and not model.architecture.post_norm:
        weight, bias = weight - weight.mean(0), bias - bias.mean()
    return weight.T, bias
