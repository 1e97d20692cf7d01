"""Path ablation: what one neuron does to one head through that head's query alone (paper §6).

1. The neuron's activation a is taken where its MLP's output projection reads it, in a layer before the head's.
2. The head's query is computed from norm(x − a · w_out) in place of norm(x), x the residual stream before its block,
   at the same position.
3. Keys, values, other heads and all else are what the model computes; its own code applies the attention.

`without_path` does that to whole forward passes.  `path_effects` measures many neurons of one head: the model runs up
to the head's block once, then only the block's attention, on copies of its input, in the eager implementation, which
gives the pattern.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from universal_neurons.errors import InputError
from universal_neurons.interventions.edits import repeated
from universal_neurons.interventions.heads import Heads, hooked
from universal_neurons.models import Model, matrix_of

CPU_ELEMENTS, GPU_ELEMENTS = 1 << 20, 1 << 25  # of attention patterns or residual streams at a time: a CPU's cache


class _Path:
    """The hooks of one open `without_path`."""

    def __init__(self, model: Model, layer: int, neurons: int | Tensor, heads: Heads, head: int) -> None:
        self.heads, self.head = heads, head
        self.neurons = neurons
        self.w_out = model.written(layer)
        self.width = model.units.widths[layer]
        self.activation: Tensor | None = None
        self.residual: Tensor | None = None
        self.edits = self.forwards = 0

    def take_activation(self, activation: Tensor) -> None:
        assert activation.shape[-1] == self.width, (activation.shape, self.width)
        self.activation = activation
        self.edits = 0

    def take_residual(self, _m: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.residual = args[0]

    def queries(self) -> Tensor:
        assert self.activation is not None, "the query came before the neuron"
        assert self.residual is not None, "the query came before its norm"
        rows, context, _ = self.residual.shape
        activation = self.activation.reshape(rows, context, self.width)
        numbers = torch.as_tensor(self.neurons, device=activation.device).expand(rows)
        chosen = activation.gather(2, numbers[:, None, None].expand(rows, context, 1))
        self.edits += 1
        return queries_without(self.heads, self.head, self.residual, chosen * self.w_out[numbers][:, None])

    def check(self, _m: nn.Module, _args: Any, _output: Any) -> None:
        assert self.edits == 1, f"the query was edited {self.edits} times in one forward pass"
        self.activation = self.residual = None
        self.forwards += 1


@contextlib.contextmanager
def without_path(
    model: Model, layer: int, neurons: int | Int[Tensor, " rows"], head_layer: int, head: int
) -> Iterator[None]:
    """While open, every forward pass lacks the path from a neuron of MLP `layer` to the query of one later head.

    `neurons` is one neuron for all rows, or one for each row of the batch.  Raises `InputError` for a path that is
    not there; asserts that each forward pass edited the query once.
    """
    heads = _checked(model, layer, torch.as_tensor(neurons), head_layer, head)
    path = _Path(model, layer, neurons, heads, head)
    with hooked(
        partial(model.read, layer, path.take_activation),
        partial(heads.norm.register_forward_pre_hook, path.take_residual),
        partial(heads.query.register_forward_hook, partial(_replace, heads, head, path.queries)),
        partial(model.blocks[head_layer].register_forward_hook, path.check),
    ):
        yield
        assert path.forwards, "no forward pass came through"


def queries_without(
    heads: Heads, head: int, residual: Float[Tensor, "*rows d_model"], part: Float[Tensor, "*rows d_model"]
) -> Float[Tensor, "*rows d_head"]:
    """What the query projection gives a head of norm(residual − part), by the model's norm and weights."""
    columns = heads.columns("query", head)
    bias = heads.query.bias
    normed = heads.norm.forward(residual - part)  # not a call: hooks of the norm are for its own input
    return nn.functional.linear(normed, matrix_of(heads.query)[columns], None if bias is None else bias[columns])


def _replace(
    heads: Heads, head: int, queries: Callable[[], Tensor], _m: nn.Module, _args: Any, output: Tensor
) -> Tensor:
    """A forward hook of the query projection."""
    assert output.shape[-1] == heads.width("query"), (output.shape, heads.width("query"))
    edited = output.clone()
    edited[..., heads.columns("query", head)] = queries()
    return edited


def _checked(model: Model, layer: int, neurons: Tensor, head_layer: int, head: int) -> Heads:
    heads = Heads(model, min(max(head_layer, 0), model.n_layers - 1))
    exists = 0 <= layer < head_layer < model.n_layers and 0 <= head < heads.n_heads
    width = model.units.widths[layer] if exists else model.d_mlp
    if not exists or not bool(((neurons >= 0) & (neurons < width)).all()):
        raise InputError(
            f"{model.name}: no such path",
            given=f"neurons {neurons.tolist()} of layer {layer}, head {head} of layer {head_layer}",
            wanted=f"neurons below {width}, a head below {heads.n_heads} of a later layer below {model.n_layers}",
        )
    return heads


@contextlib.contextmanager
def eager_attention(model: Model) -> Iterator[None]:
    """While open, the model computes its attention step by step, in the implementation that gives the pattern."""
    configs = {id(module.config): module.config for module in model.hf.modules() if hasattr(module, "config")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation


@torch.inference_mode()
def path_effects(
    model: Model,
    ids: Int[Tensor, "rows context"],
    layer: int,
    neurons: Int[Tensor, " neurons"],
    head_layer: int,
    head: int,
) -> dict[str, Float[Tensor, "neurons rows context"]]:
    """What the path of each neuron of MLP `layer` does to one later head, float32, original minus ablated:

    `activation` of the neuron; `delta_bos`, its path's part of the head's attention to position 0, BOS (a probability);
    `delta_norm`, its path's part of ‖W_O z‖, the size of what the head writes (without the bias that all heads share).
    """
    heads = _checked(model, layer, neurons, head_layer, head)
    context = ids.shape[1]
    most = CPU_ELEMENTS if model.device.type == "cpu" else GPU_ELEMENTS
    fit = max(1, most // (context * max(heads.n_heads * context, model.d_model)))  # rows
    watched = _Head(heads, head)
    with eager_attention(model), model.evaluating():
        parts = [
            _effects(model, batch, layer, neurons.to(model.device), watched, max(1, fit // len(batch)))
            for batch in ids.split(fit)
        ]
    return {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}


class _Head:
    """One head that is watched: its attention to BOS and the size of its output."""

    def __init__(self, heads: Heads, head: int) -> None:
        self.heads = heads
        self.head = head
        self.w_o = heads.w_o[head].float()

    def watch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Attention to position 0, BOS, and ‖W_O z‖, (rows, context) each, of one call of the block's attention."""
        heads = self.heads
        taken = []
        with hooked(partial(heads.out.register_forward_pre_hook, lambda _m, args: taken.append(args[0]))):
            _, pattern, *_ = heads.module(*args, **kwargs)
        (z,) = taken
        assert pattern.shape == (len(z), heads.n_heads, z.shape[1], z.shape[1]), pattern.shape
        head_output = z[..., self.head * heads.d_head : (self.head + 1) * heads.d_head].float()
        return pattern[:, self.head, :, 0].float(), (head_output @ self.w_o.T).norm(dim=-1)


def _effects(model: Model, ids: Tensor, layer: int, neurons: Tensor, watched: _Head, at_once: int) -> dict[str, Tensor]:
    heads, head = watched.heads, watched.head
    activations, residual, args, kwargs = _before_attention(model, ids, layer, heads)
    attention, size = watched.watch(args, kwargs)
    w_out = model.written(layer)
    activation = activations[..., neurons].permute(2, 0, 1)
    delta_bos, delta_norm = [], []
    for piece, numbers in zip(activation.split(at_once), neurons.split(at_once)):
        parts = piece[..., None] * w_out[numbers][:, None, None]
        queries = queries_without(heads, head, residual.expand_as(parts), parts).flatten(0, 1)
        edit = partial(_replace, heads, head, queries.clone)
        with hooked(partial(heads.query.register_forward_hook, edit)):
            ablated_attention, ablated_size = watched.watch(*repeated((args, kwargs), len(ids), len(piece)))
        delta_bos.append(attention - ablated_attention.unflatten(0, (len(piece), -1)))
        delta_norm.append(size - ablated_size.unflatten(0, (len(piece), -1)))
    return {
        "activation": activation.float(),
        "delta_bos": torch.cat(delta_bos),
        "delta_norm": torch.cat(delta_norm),
    }


class _Reached(Exception):
    """The forward pass came as far as it was to go."""


def _before_attention(
    model: Model, ids: Tensor, layer: int, heads: Heads
) -> tuple[Tensor, Tensor, tuple[Any, ...], dict[str, Any]]:
    """Activations of a layer, the residual stream before a later block, and the call of that block's attention."""
    seen: dict[str, Any] = {}

    def reach(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["call"] = args, kwargs
        raise _Reached

    with (
        hooked(
            partial(model.read, layer, lambda activation: seen.update(activation=activation)),
            partial(heads.norm.register_forward_pre_hook, lambda _m, args: seen.update(residual=args[0])),
            partial(heads.module.register_forward_pre_hook, reach, with_kwargs=True),
        ),
        contextlib.suppress(_Reached),
    ):
        model.forward(ids)
    args, kwargs = seen["call"]
    return seen["activation"].reshape(*ids.shape, model.units.widths[layer]), seen["residual"], args, kwargs
