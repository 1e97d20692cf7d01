"""Where a model's forward pass can be read, and reading it there.

residual_in     the residual stream before a block
residual_mid    the same between attention and MLP: not in blocks whose attention and MLP read the same stream
residual_out    the same after a block
attention_heads what attention's output projection reads: the heads side by side
attention_out   what attention adds to the residual stream
mlp_in          what the MLP's input projection reads, after the norm
mlp_normed      the same before an RMS norm's gain: TransformerLens has a place of its own for it (LayerNorm's: mlp_in)
mlp_out         what the MLP adds to the residual stream
neurons         what the MLP's output projection reads: the activations

What is added is taken after a norm of its own and times the family's multiplier, where there are such.  In a model
whose norms follow the residual sums (BERT) the stream is what these norms return, and what is added is what they have
yet to read.  Values are handed as the forward pass has them, in its precision; only what is added is copied.
"""

import contextlib
import weakref
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from universal_neurons.errors import ArchitectureError, ConfigError
from universal_neurons.models.model import Model
from universal_neurons.models.norms import Norm
from universal_neurons.models.parts import matrix_of, module_at
from universal_neurons.models.passes import first_tensor, probe_ids

PlaceKind = Literal[
    "residual_in", "residual_mid", "residual_out", "attention_heads", "attention_out", "mlp_in", "mlp_normed",
    "mlp_out", "neurons",
]  # fmt: skip
PLACE_KINDS: tuple[PlaceKind, ...] = get_args(PlaceKind)
PARALLEL: "weakref.WeakKeyDictionary[Model, frozenset[int]]" = weakref.WeakKeyDictionary()
Taker = Callable[[Any], None]  # of what a forward pass has at a place


@dataclass(frozen=True, order=True)
class Place:
    """A place in a model's forward pass: of a block, one of the kinds above."""

    kind: PlaceKind
    layer: int

    @property
    def in_stream(self) -> bool:
        """Whether what stands there is the residual stream, or is added to it: a direction there has logit effects."""
        return self.kind.startswith("residual") or self.kind.endswith("_out")

    def __str__(self) -> str:
        return f"{self.kind} of block {self.layer}"


@contextlib.contextmanager
def captured(model: Model, places: Collection[Place]) -> Iterator[dict[Place, Float[Tensor, "rows context width"]]]:
    """While open, what the model's last forward pass had at these places.

    Raises `ArchitectureError` for a place that its blocks lack, `ConfigError` for a layer that it has not.
    """
    values: dict[Place, Tensor] = {}
    shape: list[int] = []

    def note_shape(_m: nn.Module, args: Any, kwargs: Any) -> None:
        shape[:] = _stream_in(args, kwargs).shape[:2]

    def take(place: Place, value: Any) -> None:
        value = first_tensor(value)
        values[place] = value.reshape(*shape, value.shape[-1]).to(model.device)

    handles: list[Any] = [model.blocks[0].register_forward_pre_hook(note_shape, with_kwargs=True)]
    try:
        for place in dict.fromkeys(places):
            require_place(model, place)
            handles.append(_hooked(model, place, partial(take, place)))
        yield values
    finally:
        for handle in handles:
            handle.remove()


def width_of(model: Model, place: Place) -> int:
    """The number of values a position has at a place; errors as `captured`."""
    require_place(model, place)
    if place.kind == "neurons":
        return model.units.widths[place.layer]
    if place.kind == "attention_heads":
        return matrix_of(_projection_of_heads(model, place)).shape[1]
    return int(model.d_model)


def require_place(model: Model, place: Place) -> None:
    """Raise `ConfigError` for a layer that a model has not, `ArchitectureError` for a place that its blocks lack."""
    if not 0 <= place.layer < model.n_layers:
        raise ConfigError(
            f"{model.name} has no {place}", given=place.layer, wanted=f"a block from 0 to {model.n_layers - 1}"
        )
    if place.kind.startswith("attention"):
        _projection_of_heads(model, place)
    if place.kind == "mlp_normed" and not model.architecture.mlp_norm:
        raise ArchitectureError(
            f"{model.name} has no {place}",
            given="an MLP that reads the residual stream itself",
            wanted="one that reads through a norm",
            fix="take mlp_in",
        )
    if place.kind == "residual_mid" and _is_parallel(model, place.layer):
        raise ArchitectureError(
            f"{model.name} has no {place}",
            given="a block whose attention and MLP read the same residual stream",
            wanted="one whose MLP reads what attention added to",
            fix="take residual_in or residual_out",
        )


def _projection_of_heads(model: Model, place: Place) -> nn.Module:
    module = module_at(model.blocks[place.layer], model.architecture.heads_out)
    if module is None:
        raise ArchitectureError(
            f"{model.name} has no {place} that is known",
            given=f"a {model.architecture.name} block, "
            f"{model.architecture.heads_out or 'of which no row of the table says where its heads are put together'}",
            wanted="attention's output projection, as heads_out in architecture_table.py names it",
            fix="take the residual stream or the MLP",
        )
    assert isinstance(module, nn.Module)
    return module


def _stream_in(args: Any, kwargs: Any) -> Tensor:
    """The residual stream that a block is called with."""
    stream = args[0] if args else kwargs["hidden_states"]
    assert isinstance(stream, Tensor)
    return stream


def _before(module: nn.Module, take: Taker) -> Any:
    return module.register_forward_pre_hook(lambda _m, args, kwargs: take(_stream_in(args, kwargs)), with_kwargs=True)


def _after(module: nn.Module, take: Taker) -> Any:
    return module.register_forward_hook(lambda _m, _args, output: take(output))


def _hooked(model: Model, place: Place, take: Taker) -> Any:
    """A handle, to be removed, of a hook that hands over what every forward pass has at a place."""
    row, layer, block = model.architecture, place.layer, model.blocks[place.layer]
    match place.kind:
        case "residual_in":
            return _before(block, take)
        case "residual_out":
            return _after(block, take)
        case "residual_mid":
            return _before(_reader_of_middle(model, layer), take)
        case "attention_heads":
            return _before(_projection_of_heads(model, place), take)
        case "attention_out":
            return _after(module_at(block, row.heads_norm) or _projection_of_heads(model, place), _added(model, take))
        case "mlp_in":
            return (
                _after(model.part(layer, "mlp_norm"), take)
                if layer in model.sparse
                else _before(_w_in(model, layer), take)
            )
        case "mlp_normed":
            return _normed(model, layer, take)
        case "mlp_out":
            return _after(_writer(model, layer), _added(model, take))
        case "neurons":
            return model.read(layer, take)


def _normed(model: Model, layer: int, take: Taker) -> Any:
    """As `_hooked`, of what the MLP's norm gives before an RMS norm's gain."""
    if model.architecture.norm == "layer":
        return _hooked(model, Place("mlp_in", layer), take)
    norm = model.part(layer, "mlp_norm")

    def divide(stream: Tensor) -> None:
        formula = Norm(norm, model.architecture, stream)
        take((formula.centred(stream) / formula.scale(stream)[..., None]).to(stream.dtype))

    return _before(norm, divide)


def _w_in(model: Model, layer: int) -> nn.Module:
    return model.part(layer, "w_in")


def _reader_of_middle(model: Model, layer: int) -> nn.Module:
    """What reads the stream between attention and MLP: the MLP's norm, else its input projection."""
    row = model.architecture
    return _w_in(model, layer) if row.post_norm or not row.mlp_norm else model.part(layer, "mlp_norm")


def _writer(model: Model, layer: int) -> nn.Module:
    """The last module of the MLP before the residual sum."""
    row = model.architecture
    if row.out_norm is not None:
        return model.part(layer, "out_norm")
    if layer in model.sparse:
        module = model.sparse[layer].module
        assert isinstance(module, nn.Module)
        return module
    return model.part(layer, "w_out")


def _added(model: Model, take: Taker) -> Taker:
    """Hand over what is added, as a copy: Falcon adds in place to what its MLP returned."""
    factor = model.residual_multiplier
    return lambda value: take(first_tensor(value) * factor)


def _is_parallel(model: Model, layer: int) -> bool:
    """Whether a block's MLP reads the stream before attention added to it."""
    if model not in PARALLEL:
        PARALLEL[model] = _parallel_layers(model)
    return layer in PARALLEL[model]


@torch.inference_mode()
def _parallel_layers(model: Model) -> frozenset[int]:
    """The blocks whose MLPs read what the block does: told from a few tokens."""
    streams: dict[int, Tensor] = {}
    middles: dict[int, Tensor] = {}
    handles = []
    for layer, block in enumerate(model.blocks):
        handles.append(_before(block, partial(streams.__setitem__, layer)))
        handles.append(_before(_reader_of_middle(model, layer), partial(middles.__setitem__, layer)))
    try:
        model.forward(probe_ids(model.context, model.vocab_size)[0])
    finally:
        for handle in handles:
            handle.remove()
    return frozenset(
        layer
        for layer, stream in streams.items()
        if torch.equal(stream, middles[layer].reshape(stream.shape).to(stream.device))
    )
