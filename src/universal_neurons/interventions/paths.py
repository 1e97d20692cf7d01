"""Path ablation: what one neuron does to one head through that head's query alone (paper §6).

1. The neuron's activation a is taken where its MLP's output projection reads it, in a layer before the head's.
2. The head's query is computed from norm(x − a · w_out) in place of norm(x), x the residual stream before its block,
   at the same position.
3. Keys, values, other heads and all else are what the model computes; its own code applies the attention.

`without_path` does that to whole forward passes.  `effects_of_paths` measures many neurons of several heads: the model
runs up to the last head's block once, then only the blocks' attentions, on copies of their input, in the eager
implementation, which gives the pattern; `path_effects` those of one head.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

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


class Paths(NamedTuple):
    """The paths from some neurons of MLP `layer` to the query of one later head."""

    layer: int
    neurons: Int[Tensor, " neurons"]
    head_layer: int
    head: int


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
    return effects_of_paths(model, ids, [Paths(layer, neurons, head_layer, head)])[0]


@torch.inference_mode()
def effects_of_paths(
    model: Model, ids: Int[Tensor, "rows context"], paths: Sequence[Paths]
) -> list[dict[str, Float[Tensor, "neurons rows context"]]]:
    """`path_effects` of the paths to several heads, the model running once for all of them."""
    watched = [_Head(model, path) for path in paths]
    if not watched:
        return []
    fit = rows_at_once(model, ids.shape[1])
    with eager_attention(model), model.evaluating():
        parts = [_effects(model, batch, watched, max(1, fit // len(batch))) for batch in ids.split(fit)]
    return [{name: torch.cat([part[name] for part in of_head], 1) for name in of_head[0]} for of_head in zip(*parts)]


def rows_at_once(model: Model, context: int) -> int:
    """How many rows have their attention patterns and residual stream in memory together."""
    most = CPU_ELEMENTS if model.device.type == "cpu" else GPU_ELEMENTS
    return max(1, most // (context * max(Heads(model, 0).n_heads * context, model.d_model)))


class _Head:
    """One head that is watched: its attention to BOS and the size of its output; and the neurons whose paths go."""

    def __init__(self, model: Model, paths: Paths) -> None:
        self.heads = _checked(model, *paths)
        self.head = paths.head
        self.layer = paths.layer
        self.neurons = paths.neurons.to(model.device)
        self.w_out = model.written(paths.layer)[self.neurons]
        self.w_o = self.heads.w_o[paths.head].float()

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


class _Reached(Exception):
    """The forward pass came as far as it was to go."""


class _Seen:
    """What one forward pass leaves: activations of each watched head's neurons, by its place, and by layer the
    residual stream before a head's block and the call of that block's attention."""

    def __init__(self) -> None:
        self.activations: dict[int, Tensor] = {}
        self.residuals: dict[int, Tensor] = {}
        self.calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}


def _effects(model: Model, ids: Tensor, watched: Sequence[_Head], at_once: int) -> list[dict[str, Tensor]]:
    """What the paths of every watched head do, on some rows."""
    seen = _before_attentions(model, ids, watched)
    return [_effects_on(one, place, seen, len(ids), at_once) for place, one in enumerate(watched)]


def _effects_on(one: _Head, place: int, seen: _Seen, rows: int, at_once: int) -> dict[str, Tensor]:
    args, kwargs = seen.calls[one.heads.layer]
    residual = seen.residuals[one.heads.layer]
    attention, size = one.watch(args, kwargs)
    activation = seen.activations[place]
    delta_bos, delta_norm = [], []
    for piece, w_out in zip(activation.split(at_once), one.w_out.split(at_once)):
        parts = piece[..., None] * w_out[:, None, None]
        queries = queries_without(one.heads, one.head, residual.expand_as(parts), parts).flatten(0, 1)
        edit = partial(_replace, one.heads, one.head, queries.clone)
        with hooked(partial(one.heads.query.register_forward_hook, edit)):
            ablated_attention, ablated_size = one.watch(*repeated((args, kwargs), rows, len(piece)))
        delta_bos.append(attention - ablated_attention.unflatten(0, (len(piece), -1)))
        delta_norm.append(size - ablated_size.unflatten(0, (len(piece), -1)))
    return {
        "activation": activation.float(),
        "delta_bos": torch.cat(delta_bos),
        "delta_norm": torch.cat(delta_norm),
    }


def _before_attentions(model: Model, ids: Tensor, watched: Sequence[_Head]) -> _Seen:
    """One forward pass, as far as the attention of the last watched head."""
    seen = _Seen()
    heads_of = {one.heads.layer: one.heads for one in watched}
    last = max(heads_of)

    def take(layer: int, activation: Tensor) -> None:
        by_row = activation.reshape(*ids.shape, model.units.widths[layer])
        for place, one in enumerate(watched):
            if one.layer == layer:
                seen.activations[place] = by_row[..., one.neurons].permute(2, 0, 1)

    def reach(layer: int, _m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.calls[layer] = args, kwargs
        if layer == last:
            raise _Reached

    def before(layer: int, _m: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.residuals[layer] = args[0]

    reads = [partial(model.read, layer, partial(take, layer)) for layer in sorted({one.layer for one in watched})]
    for layer, heads in heads_of.items():
        reads.append(partial(heads.norm.register_forward_pre_hook, partial(before, layer)))
        reads.append(partial(heads.module.register_forward_pre_hook, partial(reach, layer), with_kwargs=True))
    with hooked(*reads), contextlib.suppress(_Reached):
        model.forward(ids)
    return seen
