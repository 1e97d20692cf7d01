"""Processed weights: what a neuron reads and writes once the norms are folded in (paper §4.2, A.1, eq 6–7).

LayerNorm: fold γ and β into the weights that read through it (W diag γ, b + W β), then centre them along the residual
dimension, since what they read has mean zero; centre what is written, since the next norm takes the mean away.
RMSNorm: fold γ only, centre nothing.  Where a norm follows the MLP, its γ is folded into what is written; its division
by the size of the MLP's whole output is not.  Post-norm models (BERT): raw.  What is written and the unembedding are
multiplied as the family does (Granite, Cohere).  The unembedding is centred over the vocabulary, which leaves the
softmax as it was, unless a tanh caps the logits.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from universal_neurons.models.model import Model
from universal_neurons.models.norms import Norm
from universal_neurons.models.parts import matrix_of, module_at
from universal_neurons.units import Units


@dataclass(frozen=True)
class ProcessedWeights:
    """Weights of every neuron and the unembedding, in float64.

    `folded` is False for post-norm models, whose norms follow the residual sum and cannot be folded.  Of a model
    without an unembedding, or with one that reads a projection of the residual stream, `w_u` and `b_u` have no rows.
    Where layers are of unequal width, their neurons stand in one dimension, in the order of `units`, in place of two
    (layers, d_mlp).  Experts' own output biases are not in `b_out`.
    """

    w_in: Float[Tensor, "*neurons d_model"]
    b_in: Float[Tensor, "*neurons"]
    w_up: Float[Tensor, "*neurons d_model"] | None
    b_up: Float[Tensor, "*neurons"] | None
    w_out: Float[Tensor, "*neurons d_model"]
    b_out: Float[Tensor, "layers d_model"]
    w_u: Float[Tensor, "vocabulary d_model"]
    b_u: Float[Tensor, " vocabulary"]
    folded: bool
    layout: Units | None = None  # where it is not that of layers of one width

    @property
    def units(self) -> Units:
        """The neurons that the weights are of."""
        return Units.equal(*self.w_out.shape[:2]) if self.layout is None else self.layout

    def written_by(self, layer: int, neuron: int) -> Float[Tensor, " d_model"]:
        """w_out of one neuron, by its place as tables have it."""
        return self.w_out.flatten(0, -2)[self.units.number_of(layer, neuron)]


def processed_weights(model: Model) -> ProcessedWeights:
    """The processed weights of a model; its own weights stay as they are.  `ConfigError` for one that is spread."""
    model.require_whole("processed weights")
    row = model.architecture
    readers: dict[str, list[tuple[Tensor, Tensor]]] = {"w_in": [], "w_up": []}
    writers = []
    for layer in range(model.n_layers):
        norm = model.part(layer, "mlp_norm") if model.architecture.mlp_norm else None
        for role in ("w_in", "w_up") if row.w_up else ("w_in",):
            weight, bias = projection(model, layer, role)
            readers[role].append(_read_through(weight, bias, norm, model))
        writers.append(_written(model, layer))
    w_u, b_u = _unembedding(model)

    equal = len(set(model.units.widths)) == 1

    def stacked(tensors: Iterable[Tensor]) -> Tensor:
        return torch.stack(list(tensors)) if equal else torch.cat(list(tensors))

    return ProcessedWeights(
        w_in=stacked(w for w, _ in readers["w_in"]),
        b_in=stacked(b for _, b in readers["w_in"]),
        w_up=stacked(w for w, _ in readers["w_up"]) if row.w_up else None,
        b_up=stacked(b for _, b in readers["w_up"]) if row.w_up else None,
        w_out=stacked(w for w, _ in writers),
        b_out=torch.stack([b for _, b in writers]),
        w_u=w_u,
        b_u=b_u,
        folded=not row.post_norm,
        layout=model.units,
    )


def written_directions(
    model: Model, directions: Float[Tensor, "units d_model"]
) -> tuple[Float[Tensor, "units d_model"], Float[Tensor, "vocabulary d_model"]]:
    """What is written into the residual stream along some directions, as later norms leave it; and W_U, processed."""
    row = model.architecture
    if row.norm == "layer" and not row.post_norm:
        directions = directions - directions.mean(1, keepdim=True)
    return directions, _unembedding(model)[0]


def projection(
    model: Model, layer: int, role: str, block: nn.Module | None = None
) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"]]:
    """A block's own `w_in`, `w_up` or `w_out` with its bias, float64: a half of the module where one gives both.

    With `block`, those of this copy of it, which has no experts.
    Experts' output biases are 0: what they add depends on the routing.
    """
    if block is None and layer in model.sparse:
        sparse = model.sparse[layer]
        if role == "w_out":
            weight = sparse.w_out().double().T
            return weight, weight.new_zeros(len(weight))
        weight, bias = sparse.reads(role)
        return weight.double(), bias.double()
    weight, bias = _linear(model.part(layer, role, block))
    return weight[model.half(layer, role)], bias[model.half(layer, role)]


def _linear(module: nn.Module) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"]]:
    weight = matrix_of(module).double()
    bias = getattr(module, "bias", None)
    return weight, bias.detach().double() if isinstance(bias, Tensor) else weight.new_zeros(weight.shape[0])


def _norm(model: Model, module: nn.Module) -> Norm:
    return Norm(module, model.architecture, model.embedding.new_empty(model.d_model), torch.float64)


def _read_through(weight: Tensor, bias: Tensor, module: nn.Module | None, model: Model) -> tuple[Tensor, Tensor]:
    if module is None or model.architecture.post_norm:
        return weight, bias
    norm = _norm(model, module)
    bias = bias + weight @ norm.shift
    weight = weight * norm.gain
    return weight - weight.mean(1, keepdim=True) if norm.centres else weight, bias


def _written(model: Model, layer: int) -> tuple[Float[Tensor, "d_mlp d_model"], Float[Tensor, " d_model"]]:
    weight, bias = projection(model, layer, "w_out")
    weight, bias = weight * model.residual_multiplier, bias * model.residual_multiplier
    row = model.architecture
    if row.out_norm is not None:
        gain = _norm(model, model.part(layer, "out_norm")).gain
        weight, bias = weight * gain[:, None], bias * gain
    if row.norm == "layer" and not row.post_norm:
        weight, bias = weight - weight.mean(0), bias - bias.mean()
    return weight.T, bias


def _unembedding(model: Model) -> tuple[Float[Tensor, "vocabulary d_model"], Float[Tensor, " vocabulary"]]:
    if not model.unembedding_reads_stream:
        nothing = torch.zeros(0, model.d_model, dtype=torch.float64, device=model.device)
        return nothing, nothing[:, 0]
    w_u, b_u = _linear(module_at(model.hf, model.architecture.unembedding))
    w_u, b_u = _read_through(w_u, b_u, module_at(model.hf, model.architecture.final_norm), model)
    w_u, b_u = w_u * model.logit_multiplier, b_u * model.logit_multiplier
    return (w_u, b_u) if model.logit_cap is not None else (w_u - w_u.mean(0), b_u - b_u.mean())
