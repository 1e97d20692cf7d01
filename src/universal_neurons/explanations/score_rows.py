"""What stands in a row of the table `scores`: what an explanation is to the unit it is tried on, and the measures."""

from typing import Any

import polars as pl

OWN, ANOTHER, EMPTY = "own", "another unit's", "empty"  # what an explanation is to the unit it is tried on
COUNTERPART, RANDOM = "counterpart", "random"  # its own unit's counterpart elsewhere, a random unit of that one's layer
MEASURES = ("auprc", "balanced_accuracy", "rho")
SCHEMA: dict[str, Any] = {
    "model": pl.String,
    "layer": pl.Int32,
    "neuron": pl.Int32,
    "explanation": pl.String,
    "source": pl.String,
    "use": pl.String,
    "method": pl.String,
    "scorer": pl.String,
    "n_windows": pl.Int32,
    "missing": pl.Int32,
    "certain": pl.Int32,
    "base_rate": pl.Float64,
    **{f"{measure}{end}": pl.Float64 for measure in MEASURES for end in ("", "_low", "_high")},
}
