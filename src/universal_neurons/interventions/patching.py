"""Activations of one run put into another: neurons of a model at the values that they have elsewhere.

with taken(base, numbers) as before:
    base.logits(ids)
with patched(tuned, before):
    logits = tuned.logits(ids)
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from universal_neurons.models import Model, hooked

ByNumber = Mapping[int, Float[Tensor, " positions"]]


@contextlib.contextmanager
def taken(model: Model, numbers: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """While open, every forward pass puts these neurons' activations at all positions into the dictionary."""
    seen: dict[int, Tensor] = {}

    def take(layer: int, of_layer: Sequence[int], activation: Tensor) -> None:
        columns = torch.tensor(model.units.within_layers(of_layer), device=activation.device)
        flat = activation.reshape(-1, model.units.widths[layer])[:, columns]
        seen.update(zip(of_layer, flat.T.to(model.device)))

    by_layer = model.units.by_layer(list(numbers))
    handles = [model.read(layer, partial(take, layer, of_layer)) for layer, of_layer in by_layer.items()]
    with hooked(handles):
        yield seen


@contextlib.contextmanager
def patched(model: Model, values: ByNumber) -> Iterator[None]:
    """While open, every forward pass has neurons' activations at these values, one for each of its positions."""
    calls = dict.fromkeys(model.units.by_layer(list(values)), 0)

    def put(layer: int, of_layer: Sequence[int], activation: Tensor) -> Tensor:
        flat = activation.reshape(-1, model.units.widths[layer]).clone()
        columns = torch.tensor(model.units.within_layers(of_layer), device=flat.device)
        given = torch.stack([values[number] for number in of_layer], 1)
        assert len(given) == len(flat), "values of other positions than the model reads"
        calls[layer] += 1
        flat[:, columns] = given.to(flat)
        return flat.view_as(activation)

    by_layer = model.units.by_layer(list(values))
    handles = [model.read(layer, partial(put, layer, of_layer)) for layer, of_layer in by_layer.items()]
    with hooked(handles):
        yield
        assert len(set(calls.values())) <= 1, "not every layer was run"
