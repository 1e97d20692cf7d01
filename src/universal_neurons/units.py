"""Units: what a model has of them in each layer, their numbers, and their names.

A unit is one feature of a model, here a neuron: unit 17 of layer 3 is `L3.17`, across models `seed-1/L3.17`.  All units
of a model are numbered from 0, layer after layer; −1 is the number, the layer and the unit of none (no match).
Numbers and places are turned into each other here, and names are written and read here.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, overload

import numpy as np
import polars as pl
import torch
from jaxtyping import Int, Int32
from torch import Tensor

NONE = -1
NAME = re.compile(r"(?:(?P<model>.+)/)?L(?P<layer>[0-9]{1,9})\.(?P<unit>[0-9]{1,9})", re.DOTALL)


@dataclass(frozen=True)
class Units:
    """How many units each layer of a model has; layers may differ."""

    widths: tuple[int, ...]

    @classmethod
    def equal(cls, layers: int, width: int) -> "Units":
        """`layers` layers of `width` units each."""
        return cls((width,) * layers)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The number of each layer's first unit, and after the last layer how many units there are."""
        return tuple(accumulate(self.widths, initial=0))

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def layers(self) -> int:
        """The number of layers."""
        return len(self.widths)

    @property
    def width(self) -> int:
        """Units of every layer, where that is one number."""
        assert len(set(self.widths)) == 1, f"layers of unequal width: {self.widths}"
        return self.widths[0]

    def has(self, layer: int, unit: int) -> bool:
        """Whether the layer exists and has a unit of this number."""
        return 0 <= layer < self.layers and 0 <= unit < self.widths[layer]

    def columns(self, layer: int) -> slice:
        """The numbers of a layer's units, as columns of a block of all units."""
        assert 0 <= layer < self.layers, (layer, self.layers)
        return slice(self.starts[layer], self.starts[layer + 1])

    def layers_in(self, start: int, stop: int) -> slice:
        """The layers whose units have the numbers from `start` to before `stop`: whole layers."""
        assert {start, stop} <= set(self.starts), f"{start} to {stop} cuts a layer in two"
        return slice(self.starts.index(start), self.starts.index(stop))

    @overload
    def place_of(self, number: int) -> tuple[int, int]: ...
    @overload
    def place_of(
        self, number: Int[np.ndarray, "*shape"]
    ) -> tuple[Int[np.ndarray, "*shape"], Int[np.ndarray, "*shape"]]: ...
    @overload
    def place_of(self, number: Int[Tensor, "*shape"]) -> tuple[Int[Tensor, "*shape"], Int[Tensor, "*shape"]]: ...
    def place_of(self, number: Any) -> tuple[Any, Any]:
        """Layer and unit of a number, or of each in an array or tensor."""
        if isinstance(number, int):
            assert NONE <= number < len(self), (number, len(self))
            layer = bisect_right(self.starts, number) - 1
            return layer, NONE if layer < 0 else number - self.starts[layer]
        assert _all_within(number, len(self)), f"a number of no unit among {len(self)}"
        if isinstance(number, Tensor):
            starts = torch.tensor(self.starts, device=number.device)
            layers = torch.bucketize(number, starts, right=True) - 1
            return layers, (number - starts[layers]).masked_fill(layers < 0, NONE)
        layers = np.searchsorted(self.starts, number, side="right") - 1
        return layers, np.where(layers < 0, NONE, number - np.array(self.starts)[layers])

    @overload
    def number_of(self, layer: int, unit: int) -> int: ...
    @overload
    def number_of(
        self, layer: Int[np.ndarray, "*shape"], unit: Int[np.ndarray, "*shape"]
    ) -> Int[np.ndarray, "*shape"]: ...
    @overload
    def number_of(self, layer: Int[Tensor, "*shape"], unit: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]: ...
    def number_of(self, layer: Any, unit: Any) -> Any:
        """The number of a unit, or of each in arrays or tensors of layers and units."""
        if isinstance(layer, int):
            assert self.has(layer, unit) or layer == unit == NONE, (layer, unit)
            return NONE if layer < 0 else self.starts[layer] + unit
        assert _all_within(layer, self.layers), f"a layer that is none of {self.layers}"
        if isinstance(layer, Tensor):
            starts = torch.tensor(self.starts, device=layer.device)
            number = (starts[layer] + unit).masked_fill(layer < 0, NONE)
        else:
            number = np.where(layer < 0, NONE, np.array(self.starts)[layer] + unit)
        assert (self.place_of(number)[1] == unit).all(), "a unit that its layer does not have"
        return number

    @overload
    def layer_of(self, number: int) -> int: ...
    @overload
    def layer_of(self, number: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]: ...
    @overload
    def layer_of(self, number: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]: ...
    def layer_of(self, number: Any) -> Any:
        """The layer of a number, or of each."""
        return self.place_of(number)[0]

    def within_layers(self, numbers: Iterable[int]) -> list[int]:
        """Each number's unit: its place within its layer."""
        return [self.place_of(number)[1] for number in numbers]

    def by_layer(self, numbers: Iterable[int]) -> dict[int, list[int]]:
        """The numbers of each layer that has some: layers in order, numbers as given."""
        grouped: dict[int, list[int]] = {}
        for number in numbers:
            grouped.setdefault(self.place_of(number)[0], []).append(number)
        return dict(sorted(grouped.items()))

    def table_columns(
        self, numbers: Int[np.ndarray, " rows"] | None = None, prefix: str = ""
    ) -> dict[str, Int32[np.ndarray, " rows"]]:
        """A table's columns `layer` and `neuron` of all units, or of some by number."""
        layer, unit = self.place_of(np.arange(len(self)) if numbers is None else numbers)
        return {f"{prefix}layer": layer.astype(np.int32), f"{prefix}neuron": unit.astype(np.int32)}

    def number_column(self, prefix: str = "") -> pl.Expr:
        """The numbers of a table's columns `layer` and `neuron`; null where there is no such layer."""
        starts = dict(enumerate(self.starts[:-1]))
        first = pl.col(f"{prefix}layer").replace_strict(starts, default=None, return_dtype=pl.Int64)
        return first + pl.col(f"{prefix}neuron")


def _all_within(numbers: Int[np.ndarray, "*shape"] | Int[Tensor, "*shape"], end: int) -> bool:
    return bool(((numbers >= NONE) & (numbers < end)).all())


def unit_name(layer: int, unit: int, model: str | None = None) -> str:
    """`L3.17`, or `seed-1/L3.17`."""
    return f"L{layer}.{unit}" if model is None else f"{model}/L{layer}.{unit}"


def name_column() -> pl.Expr:
    """`L3.17` of a table's columns `layer` and `neuron`."""
    return pl.format("L{}.{}", "layer", "neuron")


def parse_unit(name: str) -> tuple[str | None, int, int] | None:
    """Model (None where it is not named), layer and unit of a name; None where it is no unit's name."""
    parts = NAME.fullmatch(name)
    return None if parts is None else (parts["model"], int(parts["layer"]), int(parts["unit"]))
