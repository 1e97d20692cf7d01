"""Units: what a model has of them in each layer, their numbers, and their names.

A unit is one feature of a model, here a neuron: unit 17 of layer 3 is `L3.17`, across models `seed-1/L3.17`.  In a
mixture of experts unit 17 of expert 5 is `L3.E5.17`, while `L3.17` is one that every token passes through (of a shared
expert).  All units of a model are numbered from 0, layer after layer, a layer's experts last; −1 is the number, the
layer and the unit of none (no match).  In a place (layer, unit), and so in tables, an expert's unit is
(expert + 1) · 1 000 000 + its number within the expert: a place has one name, whatever the model.
Numbers and places, single ones and arrays, are turned into each other here, and names are written and read here.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, overload

import numpy as np
import polars as pl
from jaxtyping import Int, Int32

NONE = -1
EXPERT = 1_000_000  # an expert's unit, in a place, counts from (expert + 1) times this
NAME = re.compile(
    r"(?:(?P<model>.+)/)?L(?P<layer>[0-9]{1,9})\.(?:E(?P<expert>[0-9]{1,4})\.(?P<within>[0-9]{1,6})|(?P<unit>[0-9]{1,9}))",
    re.DOTALL,
)


@dataclass(frozen=True)
class Units:
    """How many units each layer of a model has; layers may differ.  Outside experts a layer has at most a million.

    `experts` says of every layer of a mixture of experts how many experts it has and how many units each of these; its
    other units come first.  Empty where no layer has experts.
    """

    widths: tuple[int, ...]
    experts: tuple[tuple[int, int], ...] = ()

    @classmethod
    def equal(cls, layers: int, width: int) -> "Units":
        """`layers` layers of `width` units each."""
        return cls((width,) * layers)

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> "Units":
        """From `facts` of it, as a manifest or a sketch holds them."""
        if facts.get("widths") is None:
            return cls.equal(facts["layers"], facts["d_mlp"])
        experts = tuple((count, each) for count, each in facts.get("experts", []))
        return cls(tuple(facts["widths"]), experts if any(count for count, _ in experts) else ())

    @property
    def facts(self) -> dict[str, Any]:
        """`layers`, and `d_mlp` of the widest; `widths` and `experts` of all layers where these are not enough."""
        facts: dict[str, Any] = {"layers": self.layers, "d_mlp": max(self.widths)}
        if self.experts or len(set(self.widths)) > 1:
            facts |= {"widths": list(self.widths), "experts": [list(each) for each in self.experts]}
        return facts

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The number of each layer's first unit, and after the last layer how many units there are."""
        return tuple(accumulate(self.widths, initial=0))

    def __str__(self) -> str:
        equal = len(set(self.widths)) == 1
        return f"{self.layers} x {self.width} neurons" if equal else f"{len(self)} neurons in {self.layers} layers"

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
        """Whether the layer exists and has this unit."""
        if not 0 <= layer < self.layers or unit < 0:
            return False
        every, (experts, each) = self.plain[layer], self._experts[layer]
        expert, within = divmod(unit, EXPERT)
        return within < each and expert <= experts if expert else unit < every

    @property
    def range_said(self) -> str:
        """Which layers and neurons there are, as an error says it."""
        said = f"layer < {self.layers} and neuron < {max(self.plain, default=0)}"
        if not self.experts:
            return said
        most, each = (max(values) for values in zip(*self.experts))
        return f"{said}, or expert < {most} and neuron < {each} of it"

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
    def place_of(self, number: Any) -> tuple[Any, Any]:
        """Layer and unit of a number, or of each in an array."""
        if isinstance(number, int):
            assert NONE <= number < len(self), (number, len(self))
            layer = bisect_right(self.starts, number) - 1
            return layer, NONE if layer < 0 else self._unit(layer, number - self.starts[layer])
        assert _all_within(number, len(self)), f"a number of no unit among {len(self)}"
        layers = np.searchsorted(self.starts, number, side="right") - 1
        return layers, np.where(layers < 0, NONE, self._units(layers, number - np.array(self.starts)[layers]))

    @cached_property
    def _experts(self) -> tuple[tuple[int, int], ...]:
        """Of every layer, how many experts and units of each."""
        return self.experts or ((0, 0),) * self.layers

    @cached_property
    def plain(self) -> tuple[int, ...]:
        """How many units of each layer are no expert's."""
        return tuple(width - count * each for width, (count, each) in zip(self.widths, self._experts))

    def _unit(self, layer: int, offset: int) -> int:
        """The unit that stands so far from its layer's first."""
        beyond = offset - self.plain[layer]
        if beyond < 0:
            return offset
        expert, within = divmod(beyond, self._experts[layer][1])
        return (expert + 1) * EXPERT + within

    def _units(self, layers: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """The same of arrays."""
        if not self.experts:
            return offsets
        plain, each = self._of_layers(layers)
        beyond = offsets - plain
        return np.where(beyond < 0, offsets, (beyond // each + 1) * EXPERT + beyond % each)

    def _offsets(self, layers: np.ndarray, units: np.ndarray) -> np.ndarray:
        """How far units of arrays stand from their layer's first."""
        if not self.experts:
            return units
        plain, each = self._of_layers(layers)
        return np.where(units < EXPERT, units, plain + (units // EXPERT - 1) * each + units % EXPERT)

    def _of_layers(self, layers: np.ndarray) -> tuple[Any, Any]:
        """Of some layers, how many units are no expert's, and how many each expert has (1 where there is none)."""
        values = [self.plain, [max(each, 1) for _, each in self._experts]]
        plain, each = np.array(values)[:, layers]
        return plain, each

    @overload
    def number_of(self, layer: int, unit: int) -> int: ...
    @overload
    def number_of(
        self, layer: Int[np.ndarray, "*shape"], unit: Int[np.ndarray, "*shape"]
    ) -> Int[np.ndarray, "*shape"]: ...
    def number_of(self, layer: Any, unit: Any) -> Any:
        """The number of a unit, or of each in arrays of layers and units."""
        if isinstance(layer, int):
            assert self.has(layer, unit) or layer == unit == NONE, (layer, unit)
            return NONE if layer < 0 else self.starts[layer] + int(self._offsets(np.array(layer), np.array(unit)))
        assert _all_within(layer, self.layers), f"a layer that is none of {self.layers}"
        number = np.where(layer < 0, NONE, np.array(self.starts)[layer] + self._offsets(layer, unit))
        assert (self.place_of(number)[1] == unit).all(), "a unit that its layer does not have"
        return number

    @overload
    def layer_of(self, number: int) -> int: ...
    @overload
    def layer_of(self, number: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]: ...
    def layer_of(self, number: Any) -> Any:
        """The layer of a number, or of each."""
        return self.place_of(number)[0]

    def within_layers(self, numbers: Iterable[int]) -> list[int]:
        """How far each number is from its layer's first: its column in a block of the layer's units."""
        return [number - self.starts[self.layer_of(number)] for number in numbers]

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
        unit = pl.col(f"{prefix}neuron")
        if not self.experts:
            return first + unit
        plain, each = (
            pl.col(f"{prefix}layer").replace_strict(dict(enumerate(values)), default=None, return_dtype=pl.Int64)
            for values in (self.plain, [each for _, each in self._experts])
        )
        of_expert = plain + (unit // EXPERT - 1) * each + unit % EXPERT
        return first + pl.when(unit < EXPERT).then(unit).otherwise(of_expert)


def _all_within(numbers: Int[np.ndarray, "*shape"], end: int) -> bool:
    return bool(((numbers >= NONE) & (numbers < end)).all())


def unit_name(layer: int, unit: int, model: str | None = None) -> str:
    """`L3.17` or `L3.E5.17`, or `seed-1/L3.17`."""
    expert, within = divmod(unit, EXPERT)
    name = f"L{layer}.E{expert - 1}.{within}" if expert > 0 else f"L{layer}.{unit}"
    return name if model is None else f"{model}/{name}"


def name_column(prefix: str = "") -> pl.Expr:
    """`L3.17` or `L3.E5.17` of a table's columns `layer` and `neuron`."""
    layer, unit = pl.col(f"{prefix}layer"), pl.col(f"{prefix}neuron")
    of_expert = pl.format("L{}.E{}.{}", layer, unit // EXPERT - 1, unit % EXPERT)
    return pl.when(unit >= EXPERT).then(of_expert).otherwise(pl.format("L{}.{}", layer, unit))


def parse_unit(name: str) -> tuple[str | None, int, int] | None:
    """Model (None where it is not named), layer and unit of a name; None where it is no unit's name."""
    parts = NAME.fullmatch(name)
    if parts is None:
        return None
    expert = parts["expert"]
    unit = int(parts["unit"]) if expert is None else (int(expert) + 1) * EXPERT + int(parts["within"])
    return parts["model"], int(parts["layer"]), unit
