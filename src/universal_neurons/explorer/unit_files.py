"""The files of units: for every model `units/M` and `search/M`, and for every 64 units `unit/M/K`.

Tables are streamed side by side, a block of units at a time (`unit_rows`); what a block's rows say becomes Python
objects (`unit_parts`), is written, and gone.
"""

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from universal_neurons.explanations import label_sentences
from universal_neurons.explorer.data_files import without_nothing, write_data
from universal_neurons.explorer.explained_units import best_told
from universal_neurons.explorer.histograms import TABLE as HISTOGRAMS
from universal_neurons.explorer.histograms import Histograms
from universal_neurons.explorer.search_index import SearchIndex
from universal_neurons.explorer.studies import ShownStudy
from universal_neurons.explorer.unit_columns import BestMatches, unit_columns
from universal_neurons.explorer.unit_parts import PARTS, Context, Part, change, course, neighbours, neuron_columns
from universal_neurons.explorer.unit_rows import UnitRows
from universal_neurons.labels import explaining_label

SHARD = 64  # units in a file
BLOCK = 16 * SHARD  # units that are worked on together
WITH_TOKENS = ("examples", "counterparts")
COURSE = Part("course", "neurons", course, ordered=False)


def write_unit_files(study: ShownStudy, folder: Path) -> None:
    """Write the files of every unit of a study."""
    files = UnitFiles(study)
    with _no_search_for_cycles():
        for model in range(len(study.models)):
            for path, data in files.of_model(model):
                write_data(folder, f"{study.id}/{path}", data)


@contextlib.contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Rows hold no cycles: looking for some among a block's many objects takes half as long as all the rest."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


@dataclass
class UnitFiles:
    """What the files of a study's units hold; each model's are to be taken once."""

    study: ShownStudy
    rows: dict[str, UnitRows] = field(default_factory=dict)

    def __post_init__(self) -> None:
        store, units = self.study.store, self.study.units
        self.neurons = UnitRows(store, "neurons", units)
        for part in PARTS:
            if store.has(part.table):
                self.rows[part.key] = UnitRows(
                    store, part.table, units, by=part.by, ordered=part.ordered, whole=part.whole
                )
        if self.study.dynamics is not None:
            seeds = dict(zip(self.study.dynamics.seeds, units.values()))
            self.rows[COURSE.key] = UnitRows(self.study.dynamics, COURSE.table, seeds, ordered=False)
        self.histograms = Histograms(store) if HISTOGRAMS in store.manifest["tables"] else None
        self.told = best_told(store)
        self.changes = None if self.study.diff is None else self.study.diff.changes

    @cached_property
    def parts(self) -> list[Part]:
        """The parts that the study has tables of."""
        return [part for part in (*PARTS, COURSE) if part.key in self.rows]

    def of_model(self, model: int) -> Iterator[tuple[str, Any]]:
        """Path and data of every file of a model's units."""
        name = self.study.store.models[model]
        count = len(self.study.units[name])
        context = Context(self.study.store.models, self.study.strings, model)
        neurons = self.neurons.take(name, count)
        assert neurons is not None
        if "label" in neurons.columns:  # a page names what its unit fires on, not the nearest label
            neurons = neurons.with_columns(explaining_label())
        matches, index = BestMatches(count, self.study.store.models), SearchIndex(self.study.strings)
        for start in range(0, count, BLOCK):
            block = self._block(neurons[start : start + BLOCK], start, context, matches, index)
            for first in range(0, len(block), SHARD):
                yield f"unit/{model}/{(start + first) // SHARD}", _shard(start + first, block[first : first + SHARD])
        yield f"units/{model}", unit_columns(neurons, matches, self.told.filter(pl.col("model") == name))
        if not index.empty:
            yield f"search/{model}", index.data()

    def _block(
        self, neurons: pl.DataFrame, start: int, context: Context, matches: BestMatches, index: SearchIndex
    ) -> list[dict[str, Any]]:
        """The content of the units of a block."""
        stop = start + len(neurons)
        content: dict[str, list[Any]] = {}
        taken: dict[str, pl.DataFrame | None] = {}
        name = context.models[context.model]
        for part in self.parts:
            whose = self.study.models[context.model] if part is COURSE else name
            rows = taken[part.key] = self.rows[part.key].take(whose, stop)
            content[part.key] = part.of_units(rows, start, stop, context)
            if rows is not None and part.key == "matches":
                matches.add(rows)
            elif rows is not None:
                index.add(part.key, rows)
        labels = taken.get("labels")
        if "explanations" not in content and labels is not None:
            content["explanations"] = _composed(neurons, labels, taken.get("effects"), context)
        if self.histograms is not None:
            content["histogram"] = list(self.histograms.of(name, start, stop))
        if self.changes is not None:
            content["change"] = change(self.changes[start:stop], context.strings)
        columns = neuron_columns(neurons)
        places = neurons.select("layer", "neuron").rows()
        return [
            _unit(place, of_unit, {key: values[number] for key, values in content.items()})
            for number, (place, of_unit) in enumerate(zip(places, columns))
        ]


def _composed(
    neurons: pl.DataFrame, labels: pl.DataFrame, effects: pl.DataFrame | None, context: Context
) -> list[list[dict[str, Any]] | None]:
    """The sentences of a block of units, of a study that was made without them."""
    said = label_sentences(neurons, labels, effects, context.strings.__getitem__)
    return [None if text is None else [{"text": text}] for text in said]


def _unit(place: tuple[int, int], columns: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    layer, neuron = place
    content["neighbours"] = neighbours(columns, content.get("ablations"), layer)
    return {"layer": layer, "neuron": neuron, "columns": columns} | without_nothing(content)


def _shard(first: int, units: list[dict[str, Any]]) -> dict[str, Any]:
    """A file's units, with every string of their windows once."""
    numbers: dict[str, int] = {}
    for unit in units:
        for key in WITH_TOKENS:
            for window in unit.get(key, ()):
                window["tokens"] = [numbers.setdefault(text, len(numbers)) for text in window["tokens"]]
    return {"first": first, "strings": list(numbers), "units": units}
