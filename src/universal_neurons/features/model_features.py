"""What of a model is studied beside its neurons: its residual stream, what its heads read out, latents of dictionaries.

residual    the residual stream after every block: a unit is a dimension
attention   what attention's output projection reads, heads side by side: a unit is a dimension of a head

Such units have no weights of an MLP and no pre-activations: statistics of pre-activations are of their values.  Nothing
settles the sign of a dimension, so two are compared by |ρ|.  The basis of a head is nobody's choice either: a rotation
of its values that its output projection undoes leaves the model the same.  So `attention` is a negative control: what
is found there beyond the rotated baseline was not found because the basis means something.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from universal_neurons.models import OF, SIGNLESS, Described, Model, Place, PlaceKind, Sink, captured, width_of
from universal_neurons.units import Units

PLACES: dict[str, PlaceKind] = {"residual": "residual_out", "attention": "attention_heads"}


class ModelFeatures(Described):
    """Units of a model that are not its neurons: of every block, what stands at a place.

    `network` is the model, `features` says which, as behind `::`; `name` is the model's with these, unless given.
    `places` are those of the blocks that have units.
    """

    of_neurons = has_weights = False
    network: Model

    def __init__(self, network: Model, features: str, places: Mapping[int, Place], name: str = "") -> None:
        super().__init__(name or network.name + OF + features, tokenizer=network.tokenizer, notes=network.notes)
        self.network, self.features, self.places = network, features, dict(places)
        self.units = self._units()
        self.d_model, self.vocab_size, self.context = network.d_model, network.vocab_size, network.context
        self.digest = network.digest
        self.gated = features in SIGNLESS

    def _units(self) -> Units:
        layers = range(self.network.n_layers)
        return Units(tuple(width_of(self.network, self.places[layer]) for layer in layers))

    @property
    def device(self) -> torch.device:
        """Where its model hands what is read of it."""
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its model's forward pass."""
        return self.network.dtype

    @property
    def unit_dtype(self) -> torch.dtype:
        """The precision of the units' values."""
        return self.network.dtype

    @contextmanager
    def capturing(self, *sinks: Sink) -> Iterator[None]:
        """While open, a forward pass is taken in; closed, each layer's units, positions flattened, go to the sinks."""
        with captured(self.network, self.places.values()) as values:
            yield
        with torch.inference_mode():
            for layer, place in self.places.items():
                units = self._units_at(layer, values[place].flatten(0, -2))
                for sink in sinks:
                    sink(layer, units)

    def _units_at(self, layer: int, values: Float[Tensor, "positions width"]) -> Float[Tensor, "positions units"]:
        """A layer's units, from what stands at its place."""
        return values

    def like(self, network: Model) -> "ModelFeatures":
        """The same features of another model of its architecture."""
        return ModelFeatures(network, self.features, self.places)

    def describe(self) -> dict[str, Any]:
        """What the manifest keeps: of its model, and which features."""
        of_model = {key: value for key, value in self.network.describe().items() if key not in self.network.units.facts}
        described = {"name": self.name, **self.units.facts, "features": self.features, "sha256": self.digest}
        return of_model | {"model": self.network.name} | described

    def __repr__(self) -> str:
        return f"ModelFeatures({self.name!r}, {self.units} of {self.features}, {self.network!r})"


def place_features(model: Model, features: str, name: str = "") -> ModelFeatures:
    """A model's `residual` stream or `attention` heads as units."""
    places = {layer: Place(PLACES[features], layer) for layer in range(model.n_layers)}
    return ModelFeatures(model, features, places, name)
