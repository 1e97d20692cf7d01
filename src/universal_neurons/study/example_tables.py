"""Where neurons fire, as tables: `examples` of every model, `counterparts` with their matches' activations."""

from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from jaxtyping import Int

from universal_neurons.matching import SideBySide
from universal_neurons.statistics import AFTER, BANDS, BEFORE, BOTTOM, Examples
from universal_neurons.text import Rows
from universal_neurons.units import Units

NEURONS_AT_ONCE = 2048  # of a table of counterparts

Some = TypeVar("Some", bound=Examples)


def examples_table(model: str, units: Units, examples: Examples, tokens: Rows) -> pl.DataFrame:
    """A row per neuron, band and rank: a span of tokens and the activations on them (NaN: not counted)."""
    spans = _Spans(np.arange(len(units)), units, examples, tokens)
    digits = (spans.window.view(np.uint32) & 0xFFFF_E000).view(np.float32)  # three are kept: half the bytes on disk
    return pl.DataFrame({"model": [model] * len(digits)} | spans.columns() | {"activations": spans.lists(digits)})


def counterparts_table(
    asker: str, units: Units, examples: SideBySide, neurons: Int[np.ndarray, " neurons"], tokens: Rows
) -> pl.DataFrame:
    """A row per window of some of an asker's neurons: its activations, and those of its match in each other model."""
    frames = []
    for start in range(0, max(len(neurons), 1), NEURONS_AT_ONCE):
        some = neurons[start : start + NEURONS_AT_ONCE]
        spans = _Spans(some, units, part := _of_neurons(examples, some), tokens)
        whose = pl.Series([asker] * len(spans.row), dtype=pl.String)
        columns = {"asker": whose, "model": whose} | spans.columns()
        columns["activations"] = spans.lists(spans.window)
        matched = part.matched.cpu().numpy().transpose(4, 2, 3, 0, 1).reshape(-1, *part.matched.shape[:2])
        columns["match_activations"] = spans.lists_of_lists(matched[spans.filled])
        frames.append(pl.DataFrame(columns))
    return pl.concat(frames)


def _of_neurons(examples: Some, neurons: Int[np.ndarray, " neurons"]) -> Some:
    """The examples of some neurons."""
    chosen = torch.from_numpy(neurons).to(examples.row.device)
    return type(examples)(*(getattr(examples, field.name).index_select(-1, chosen) for field in fields(examples)))


class _Spans:
    """The windows of some neurons' examples that are filled, neuron by neuron, band by band, cut where rows end."""

    def __init__(self, neurons: Int[np.ndarray, " neurons"], units: Units, examples: Examples, tokens: Rows) -> None:
        bands, k, _ = examples.row.shape
        both = examples.row, examples.position
        row, position = (part.cpu().numpy().transpose(2, 0, 1).reshape(-1) for part in both)
        window = examples.window.cpu().numpy().transpose(3, 1, 2, 0).reshape(len(row), -1)
        self.filled = filled = np.flatnonzero(row >= 0)
        self.row, self.position, self.window = row[filled], position[filled], window[filled]
        self.neurons = {name: column[filled // (bands * k)] for name, column in units.table_columns(neurons).items()}
        self.band = np.array([*BANDS, BOTTOM])[filled // k % bands]
        self.rank = (filled % k + 1).astype(np.int32)
        around = self.position[:, None] + np.arange(-BEFORE, AFTER + 1)
        self.inside = (around >= 0) & (around < tokens.lengths[self.row][:, None])
        known, which = np.unique(self.row, return_inverse=True)
        self.ids = tokens.ids(known)[which[:, None], np.clip(around, 0, tokens.context - 1)].astype(np.int32)

    def columns(self) -> dict[str, Any]:
        """Which example it is, where it is, and its tokens."""
        return self.neurons | {
            "band": self.band,
            "rank": self.rank,
            "row": self.row,
            "position": self.position,
            "activation": self.window[:, BEFORE],
            "start": np.maximum(self.position - BEFORE, 0).astype(np.int32),
            "tokens": self.lists(self.ids),
        }

    def lists(self, values: np.ndarray) -> pl.Series:
        """Those of each window's values that are inside, as a column of lists."""
        return pl.Series(_lists(values, self.inside))

    def lists_of_lists(self, values: np.ndarray) -> pl.Series:
        """The same of values of several models: windows × models × places."""
        models = values.shape[1]
        inner = _lists(values.reshape(-1, values.shape[2]), self.inside.repeat(models, 0))
        ends = np.arange(len(values) + 1, dtype=np.int64) * models
        return pl.Series(pa.LargeListArray.from_arrays(pa.array(ends), inner))


def _lists(values: np.ndarray, inside: np.ndarray) -> pa.LargeListArray:
    ends = np.concatenate([[0], inside.sum(1).cumsum()]).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(ends), pa.array(values[inside]))
