"""The tables of effects: a row per unit and text, and a row per text and set of units (columns as in docs/store.md)."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from universal_neurons.diff.effect_units import EffectUnits
from universal_neurons.diff.effects import RowLosses
from universal_neurons.diff.finished import CHANGED, OTHERS
from universal_neurons.statistics import Jackknifed
from universal_neurons.units import Units

Losses = Float[np.ndarray, " runs"]


class Effects:
    """What the losses of all runs on a text say: values with their 95 % intervals, by the jackknife over stretches."""

    def __init__(self, losses: RowLosses, units: int) -> None:
        self.losses, self.k = losses, units
        stretches = np.arange(losses.stretch.max() + 1)
        of_stretch = (losses.stretch == stretches[:, None]).astype(np.float64)
        self.counts = (of_stretch @ losses.tokens).astype(np.int64)
        self.sums = of_stretch @ losses.sums.T
        low, high = self._estimated(_gain).interval()
        self.sure = bool(((low > 0) | (high < 0)).all())  # false of one stretch, whose interval is NaN

    def _estimated(self, of: Callable[[Losses], np.ndarray]) -> Jackknifed:
        return Jackknifed.of(lambda count, sums: of(sums / count), self.counts, self.sums)

    def columns(self, name: str, of: Callable[[Losses], np.ndarray]) -> dict[str, np.ndarray]:
        """A quantity of the mean losses, with its interval."""
        estimate = self._estimated(of)
        return dict(zip((name, f"{name}_low", f"{name}_high"), (estimate.value, *estimate.interval())))

    def shares(self, name: str, of: Callable[[Losses], np.ndarray]) -> dict[str, np.ndarray | None]:
        """The share of the gain that a quantity is; None where the gain is not to be told from 0."""
        if not self.sure:
            return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
        return dict(self.columns(name, lambda losses: of(losses) / _gain(losses)))

    def of_units(self) -> dict[str, Any]:
        """By unit: what ablation costs before and after, what the base's activation costs the fine-tune."""
        k = self.k
        patched = _rise(slice(2 + 2 * k, 2 + 3 * k), 1)
        return {
            **self.columns("ablated_before", _rise(slice(2, 2 + k), 0)),
            **self.columns("ablated_after", _rise(slice(2 + k, 2 + 2 * k), 1)),
            **self.columns("patched", patched),
            **self.shares("share", patched),
        }

    def of_sets(self) -> dict[str, Any]:
        """By set, the changed and the others: what the base's activations cost the fine-tune, and theirs give it."""
        together = 2 + 3 * self.k
        patched = _rise(slice(together, together + 2), 1)
        given = _fall(slice(together + 2, together + 4), 0)
        return {
            "loss_before": (self.sums[:, 0].sum() / self.counts.sum()).repeat(2),
            "loss_after": (self.sums[:, 1].sum() / self.counts.sum()).repeat(2),
            **self.columns("gain", lambda losses: _gain(losses).repeat(2)),
            **self.columns("patched", patched),
            **self.shares("share", patched),
            **self.columns("given", given),
            **self.shares("given_share", given),
        }


def _gain(losses: Losses) -> np.ndarray:
    return losses[:1] - losses[1:2]


def _rise(runs: slice, clean: int) -> Callable[[Losses], np.ndarray]:
    return lambda losses: losses[runs] - losses[clean]


def _fall(runs: slice, clean: int) -> Callable[[Losses], np.ndarray]:
    return lambda losses: losses[clean] - losses[runs]


def _with_ends(*names: str) -> dict[str, Any]:
    return {f"{name}{end}": pl.Float64 for name in names for end in ("", "_low", "_high")}


UNIT_EFFECTS_SCHEMA: dict[str, Any] = {
    "text": pl.String, "rank": pl.Int32, "layer": pl.Int32, "neuron": pl.Int32, "size": pl.Float64,
    "other_layer": pl.Int32, "other_neuron": pl.Int32, "tokens": pl.Int64,
    **_with_ends("ablated_before", "ablated_after", "patched", "share"),
}  # fmt: skip
JOINT_EFFECTS_SCHEMA: dict[str, Any] = {
    "text": pl.String, "units": pl.String, "count": pl.Int32, "tokens": pl.Int64,
    "loss_before": pl.Float64, "loss_after": pl.Float64,
    **_with_ends("gain", "patched", "share", "given", "given_share"),
}  # fmt: skip


def effects_tables(units: Units, chosen: EffectUnits, losses: Mapping[str, RowLosses]) -> dict[str, pl.DataFrame]:
    """The tables `unit_effects` and `joint_effects`, from the losses on each text."""
    k = len(chosen.changed)
    layers, neurons = units.place_of(np.array(chosen.others, dtype=np.int64))
    of_unit = {
        "rank": np.arange(1, k + 1), **units.table_columns(np.array(chosen.changed, dtype=np.int64)),
        "size": chosen.sizes, "other_layer": layers, "other_neuron": neurons,
    }  # fmt: skip
    of_set = {"units": [CHANGED, OTHERS], "count": [k, len(chosen.beside)]}
    by_unit, together = [], []
    for text, of_text in losses.items():
        effects, tokens = Effects(of_text, k), int(of_text.tokens.sum())
        by_unit.append(
            _frame({"text": text, **of_unit, "tokens": tokens, **effects.of_units()}, UNIT_EFFECTS_SCHEMA, k)
        )
        together.append(
            _frame({"text": text, **of_set, "tokens": tokens, **effects.of_sets()}, JOINT_EFFECTS_SCHEMA, 2)
        )
    return {"unit_effects": pl.concat(by_unit), "joint_effects": pl.concat(together)}


def _frame(columns: Mapping[str, Any], schema: Mapping[str, Any], height: int) -> pl.DataFrame:
    """A table of these columns; one value is that of every row."""
    return pl.DataFrame(
        {
            name: pl.Series(name, values if np.ndim(values) else [values] * height, schema[name])
            for name, values in columns.items()
        }
    )
