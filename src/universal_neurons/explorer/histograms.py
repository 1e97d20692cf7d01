"""Histograms of pre-activations, of some units at a time, with bins as wide as a drawing can show.

A store has eight bins an octave: hundreds of them, most far too narrow to be seen.  Neighbours are put together until a
bar is a hundredth of the range that holds all but the outermost thousandth on each side.  Counts stay exact, edges are
the table's own.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from safetensors import safe_open

from universal_neurons.storage import Store

TABLE = "histograms"
BARS = 100
TAIL = 0.001


class Histograms:
    """The histograms of a study; the file's hash is checked when this is made."""

    def __init__(self, store: Store) -> None:
        store.verified(TABLE).close()
        self.store, self.path = store, store.path / f"{TABLE}.safetensors"

    def of(self, model: str, start: int, stop: int) -> Iterator[dict[str, Any] | None]:
        """Of each of a model's units from `start` to before `stop`: edges and counts; None of a unit without any."""
        with self.store.readable(TABLE), safe_open(self.path, "np") as tensors:
            low, high = tensors.get_tensor(f"{model}/low"), tensors.get_tensor(f"{model}/high")
            counts = np.ascontiguousarray(tensors.get_slice(f"{model}/counts")[:, start:stop].T)
        for of_unit in counts:
            yield bars(low, high, of_unit)


def bars(low: np.ndarray, high: np.ndarray, counts: np.ndarray) -> dict[str, Any] | None:
    """Neighbouring bins put together, empty ones at both ends left out; None where all are empty."""
    used = np.flatnonzero(counts)
    if not len(used):
        return None
    inside = slice(used[0], used[-1] + 1)
    low, high, counts = low[inside], high[inside], counts[inside]
    share = np.cumsum(counts) / counts.sum()
    first, last = np.searchsorted(share, [TAIL, 1 - TAIL])
    last = min(last, len(low) - 1)
    width = max(float(high[last]) - float(low[first]), 1e-300) / BARS
    bar = np.clip((low.astype(np.float64) - low[first]) / width, -1e9, 1e9).astype(np.int64)
    begins = np.flatnonzero(np.diff(bar, prepend=bar[0] - 1))
    ends = np.append(begins[1:], len(bar)) - 1
    return {
        "low": _short(low[begins]),
        "high": _short(high[ends]),
        "counts": np.add.reduceat(counts, begins).tolist(),
    }


def _short(edges: np.ndarray) -> list[float]:
    """Edges to five significant digits: three bits tell one from the next."""
    return [float(f"{edge:.5g}") for edge in edges.tolist()]
