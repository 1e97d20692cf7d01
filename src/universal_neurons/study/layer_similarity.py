"""The stage similarity: every two layers of two models, on some held-out rows (`matching.similarity`).

A model whose layers make several groups (`similarity_rows`) is read once for each.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from universal_neurons.matching import MEASURES, RIDGE, VARIANCE, Layer, Similarity, drawn_shifts, similarity_of
from universal_neurons.models import Described
from universal_neurons.passes import Pass, model_pairs, provisional_state, settle_from
from universal_neurons.statistics import seed_of
from universal_neurons.study.outcome import Outcome
from universal_neurons.study.similarity_rows import layer_groups, rows_compared
from universal_neurons.text import Shard

OTHER_WAY = [MEASURES.index(name) for name in ("cka", "cca", "r2_from_match", "r2_to_match")]
SCHEMA: dict[str, Any] = {
    "asker": pl.String, "model": pl.String, "layer": pl.Int32, "match_model": pl.String, "match_layer": pl.Int32,
    "measure": pl.String, "value": pl.Float64, "chance": pl.Float64, "calibrated": pl.Float64,
    "calibrated_low": pl.Float64, "calibrated_high": pl.Float64,
}  # fmt: skip


class LayerSimilarity:
    """The similarity of a study's layers: its `table`, and what it was made of (`describe`)."""

    def __init__(self, outcome: Outcome) -> None:
        study = outcome.study
        self.study, self.config = study, study.config
        self.means = provisional_state(outcome.sources.values())
        self.shards = self._shards()
        counted = np.cumsum([study.tokens.mask(shard.rows).sum() for shard in self.shards])
        self.ends = sorted({int(end) for end in counted if end > 0})
        self.positions = self.ends[-1] if self.ends else 0
        self.shifts = drawn_shifts(self.positions, seed_of("shifted rows", self.config.seed))
        self._held: OrderedDict[tuple[str, range], list[tuple[int, Layer]]] = OrderedDict()

    def _shards(self) -> list[Shard]:
        """The rows, evenly spread over the held-out ones; a shard for every stretch that has some."""
        heldout = np.concatenate(self.study.stretches)
        spread = np.linspace(0, len(heldout) - 1, min(rows_compared(self.config), len(heldout)))
        chosen = heldout[np.unique(spread.astype(int))]
        parts = [np.intersect1d(stretch, chosen) for stretch in self.study.stretches]
        return [Shard(index, rows) for index, rows in enumerate(parts) if len(rows)]

    def describe(self) -> dict[str, Any]:
        """What the manifest keeps."""
        return {
            "positions": self.positions,
            "stretches": len(self.ends),
            "shifts": self.shifts,
            "ridge": RIDGE,
            "variance": VARIANCE,
        }

    def table(self) -> pl.DataFrame:
        """A row per asker's layer, other model's layer and measure (docs/store.md, similarity)."""
        rows: list[tuple[Any, ...]] = []
        both_ways = self.config.pairs == "all"
        for left, right in model_pairs(self.study.models, self.config.pairs) if self.positions else ():
            for mine, theirs in product(*(layer_groups(model.units, self.positions) for model in (left, right))):
                ours, others = self._layers(left, mine), self._layers(right, theirs)
                for (i, x), (j, y) in product(ours, others):
                    found = similarity_of(x, y, self.shifts)
                    rows += _rows((left.name, i), (right.name, j), found, range(len(MEASURES)))
                    if both_ways:
                        rows += _rows((right.name, j), (left.name, i), found, OTHER_WAY)
        table = pl.DataFrame(rows, schema=SCHEMA, orient="row")
        names = self.study.names
        numbers = [pl.col(name).replace_strict(names, range(len(names))) for name in ("asker", "match_model")]
        return table.sort(numbers[0], "layer", numbers[1], "match_layer", maintain_order=True) if rows else table

    def _layers(self, model: Described, layers: range) -> list[tuple[int, Layer]]:
        """Those of some layers of a model that have units; the last two groups that were asked for are held."""
        key = model.name, layers
        if key not in self._held:
            while len(self._held) > 1:
                self._held.popitem(last=False)
            values = self._read(model, layers)
            read = ((layer, values.pop(0)) for layer in layers)
            self._held[key] = [(layer, Layer(units, self.ends)) for layer, units in read if units.shape[1]]
        self._held.move_to_end(key)
        return self._held[key]

    def _read(self, model: Described, layers: range) -> list[Tensor]:
        """The activations of some layers at the counted positions."""
        source = self.study.reader.source(model, self.config.gemm_dtype)
        settle_from(self.means, [source])
        source.unrounded = True
        widths = [model.units.widths[layer] for layer in layers]
        values = [torch.empty(self.positions, width, device=source.device) for width in widths]
        run, done = Pass([source], []), 0
        for shard in self.shards:
            for _, batch in run.batches(self.study.tokens, shard, self.config.batch_tokens):
                block = batch.blocks[source.as_they_are].values
                for into, layer in zip(values, layers):
                    into[done : done + len(block)] = block[:, model.units.columns(layer)]
                done += len(block)
        assert done == self.positions, (done, self.positions)
        return values


def _rows(
    asker: tuple[str, int], other: tuple[str, int], found: Similarity, order: Sequence[int]
) -> list[tuple[Any, ...]]:
    numbers = np.stack([found.value, found.chance, found.calibrated, found.low, found.high], 1)[list(order)]
    return [(asker[0], *asker, *other, name, *row) for name, row in zip(MEASURES, numbers.tolist())]
