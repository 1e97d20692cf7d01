"""One neuron of a finished study, by its name: its row, and what is its in the other tables."""

from dataclasses import dataclass
from typing import Any

import polars as pl

from universal_neurons.errors import InputError
from universal_neurons.storage.results import Results
from universal_neurons.units import Units, parse_unit, unit_name

PLACE = ("model", "layer", "neuron")


@dataclass(frozen=True, repr=False)
class Neuron:
    """A neuron of a study, as `store.neuron("L0.49")` gives it.

    Its tables are read when they are asked for: `MissingFileError` where the study has none of that name.
    """

    store: Results
    model: str
    layer: int
    neuron: int

    @classmethod
    def named(cls, store: Results, name: str, units: dict[str, Units]) -> "Neuron":
        """`L3.17` of the first model, or `seed-1/L3.17`; raises `InputError` where there is none."""
        model, layer, neuron = parse_neuron(name, list(units))
        if not units[model].has(layer, neuron):
            raise InputError(f"{name}: no such neuron", wanted=f"{units[model].range_said} in {model}")
        return cls(store, model, layer, neuron)

    @property
    def name(self) -> str:
        """Its name across models: `seed-1/L3.17`."""
        return unit_name(self.layer, self.neuron, self.model)

    @property
    def row(self) -> dict[str, Any]:
        """Its row of `store.neurons`, by column (docs/store.md)."""
        return self._of("neurons").row(0, named=True)

    @property
    def matches(self) -> pl.DataFrame:
        """Its rows of `store.matches`: other models and ranks; no rows where it is dead or was not asked about."""
        return self._of("matches")

    @property
    def counterparts(self) -> pl.DataFrame:
        """Its rows of `store.counterparts()`: its best match in every other model, and what that fires on."""
        return self.store.view("counterparts")(self.store, self)

    @property
    def labels(self) -> pl.DataFrame:
        """Its rows of `store.labels`: the labels that explain most of its activation, the best first."""
        return self._of("labels")

    @property
    def examples(self) -> pl.DataFrame:
        """Its rows of `store.examples`: where it fires most, and spans from lower bands."""
        return self._of("examples")

    @property
    def side_by_side(self) -> pl.DataFrame:
        """Its rows of `store.side_by_side`: where it fires on held-out rows, and what its matches do there."""
        return self._of("counterparts")

    @property
    def effects(self) -> pl.DataFrame:
        """Its row of the table `effects`: the tokens that it raises and lowers."""
        return self._of("effects")

    @property
    def functional(self) -> pl.DataFrame:
        """Its rows of the table `functional`: does its match in each other model do the same."""
        return self._of("functional")

    @property
    def sentence(self) -> str:
        """What is to be said of it in a sentence or two: is it universal, do its counterparts do the same."""
        return self.store.view("neuron sentence")(self.store, self.name)

    @property
    def plot(self) -> Any:
        """Its figures, one by one: `plot.matches()`; `dir(plot)` lists what there is."""
        return self.store.view("neuron plot")(self)

    def _of(self, table: str) -> pl.DataFrame:
        return self.store.table(table).filter(model=self.model, layer=self.layer, neuron=self.neuron)

    def __repr__(self) -> str:
        return self.store.view("neuron text")(self.store, self.name)

    def _repr_html_(self) -> str:
        return self.store.view("neuron html")(self.store, self.name)


def parse_neuron(name: str, models: list[str]) -> tuple[str, int, int]:
    """`L3.17` or `seed-1/L3.17` to model, layer, neuron; raises `InputError` where it is neither."""
    parsed = parse_unit(name)
    if parsed is None:
        raise InputError(f"{name}: not a neuron's name", wanted="L3.17 or seed-1/L3.17")
    model, layer, neuron = parsed
    model = model or models[0]
    if model not in models:
        raise InputError(f"{name}: no such model here", wanted="one of " + ", ".join(models))
    return model, layer, neuron
