"""The tables of a diff: a row per unit, and those that its p rest on (columns as in docs/store.md)."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from universal_neurons.diff.kinds import kinds_of, self_ends
from universal_neurons.diff.nulls import MEASURES, null_columns, sizes_of
from universal_neurons.diff.places import BestMatches, Places, place_columns
from universal_neurons.diff.settings import DiffConfig
from universal_neurons.storage import Store
from universal_neurons.units import Units

Columns = Mapping[str, Any]
COMPARED = {  # before and after
    "family": pl.String, "label": pl.String, "label_sign": pl.Int8, "variance_reduction": pl.Float64,
    "position_mi": pl.Float64, "roles": pl.List(pl.String),
}  # fmt: skip
ENDS = ("", "_low", "_high")
SELF = (
    *(f"self_corr{end}" for end in ENDS), *(f"mean_shift{end}" for end in ENDS), *(f"scale{end}" for end in ENDS),
    *(f"offset{end}" for end in ENDS), "firing_before", "firing_after", *(f"firing_shift{end}" for end in ENDS),
    "firing_overlap", "q01_shift", "q10_shift", "q50_shift", "q90_shift", "q99_shift",
)  # fmt: skip
BEST = tuple(
    f"{side}_{part}"
    for side in ("tuned", "base")
    for part in (
        "match_layer", "match_neuron", "match_corr", "match_low", "match_high",
        "other_layer", "other_neuron", "other_corr",
    )
)  # fmt: skip
WHERE = ("moved_to_layer", "moved_to_neuron", "came_from_layer", "came_from_neuron", "heirs")


def _schema(kind: Any, names: Sequence[str]) -> dict[str, Any]:
    return dict.fromkeys(names, kind)


def _integers(names: Sequence[str]) -> set[str]:
    return {name for name in names if name.endswith(("_layer", "_neuron")) or name == "heirs"}


CHANGES_SCHEMA: dict[str, Any] = {
    "layer": pl.Int32, "neuron": pl.Int32, "kind": pl.String, "surely_unchanged": pl.Boolean, "place": pl.String,
    "dead_before": pl.Boolean, "dead_after": pl.Boolean,
    **_schema(pl.Float64, SELF),
    **{name: pl.Int32 if name in _integers((*BEST, *WHERE)) else pl.Float64 for name in (*BEST, *WHERE)},
    "weights": pl.String,
    **_schema(pl.Float64, ("w_in_cos", "w_in_ratio", "w_up_cos", "w_up_ratio", "w_out_cos", "w_out_ratio")),
    **_schema(pl.Float64, ("contribution", "contribution_low", "contribution_high", "logit_cos")),
    "raised_tokens": pl.List(pl.Int32), "raised_by": pl.List(pl.Float32),
    "lowered_tokens": pl.List(pl.Int32), "lowered_by": pl.List(pl.Float32),
    **{
        f"{name}_{when}": kind
        for name, kind in COMPARED.items()
        for when in ("before", "after")
    },
    **_schema(pl.Float64, [f"{letter}_{measure}" for measure in MEASURES for letter in "pq"]),
    "p_least": pl.Float64, "q_change": pl.Float64,
}  # fmt: skip
SECOND_TEXT = (
    "layer",
    "neuron",
    "kind",
    "surely_unchanged",
    *SELF,
    "contribution",
    "contribution_low",
    "contribution_high",
)


def changes_tables(
    study: Store,
    config: DiffConfig,
    selves: Columns,
    weights: Columns,
    nulls: Mapping[str, Columns],
    on_tuned: Columns | None,
) -> dict[str, pl.DataFrame]:
    """The table `changes`, with a second text `changes_tuned_text`, with nulls `null_changes`.

    `selves` and `on_tuned` are columns of `selves.self_columns`, `weights` of `weight_changes`, `nulls` both of each.
    """
    base, tuned = study.models
    units, gated = study.units[base], base in study.gated
    neurons = {model: study.neurons.filter(pl.col("model") == model) for model in study.models}
    dead = {f"dead_{when}": neurons[m]["dead"].to_numpy() for m, when in ((base, "before"), (tuned, "after"))}
    c = with_contribution({**dead, **selves, **weights})
    forth, back = (BestMatches.of(study.matches, model, units, by_size=gated) for model in study.models)
    places = Places.of(forth, back, self_ends(c, gated)[1], config.same, dead=c["dead_before"])
    kinds, surely = kinds_of(c, config, gated=gated, places=places)
    columns: dict[str, Any] = {**units.table_columns(), **c, **place_columns(units, forth, back, places)}
    columns |= {"kind": kinds, "surely_unchanged": surely, "place": places.place}
    for name in COMPARED:
        columns |= {f"{name}_before": neurons[base][name], f"{name}_after": neurons[tuned][name]}
    tables = {}
    if nulls:
        null_sizes = {name: sizes_of(with_contribution(null), gated) for name, null in nulls.items()}
        columns |= null_columns(units, sizes_of(c, gated), list(null_sizes.values()), kinds)
        tables["null_changes"] = _null_table(units, null_sizes)
    if on_tuned is not None:
        second = with_contribution({**c, **on_tuned})
        kinds, surely = kinds_of(second, config, gated=gated)
        named = {**units.table_columns(), **second, "kind": kinds, "surely_unchanged": surely}
        tables["changes_tuned_text"] = _framed(named, {name: CHANGES_SCHEMA[name] for name in SECOND_TEXT})
    return {"changes": _framed(columns, CHANGES_SCHEMA)} | tables


def with_contribution(columns: Columns) -> dict[str, Any]:
    """With the contribution: by what factor the standard deviation of activation times the norm of w_out changed."""
    ratio = columns["w_out_ratio"]
    return {**columns} | {f"contribution{end}": columns[f"scale{end}"] * ratio for end in ENDS}


def _null_table(units: Units, sizes: Mapping[str, Columns]) -> pl.DataFrame:
    """The size of every change in every null, as p is computed from."""
    frames = [
        pl.DataFrame({"model": [name] * len(units), **units.table_columns(), **of_null})
        for name, of_null in sizes.items()
    ]
    return pl.concat(frames)


def _framed(columns: Columns, schema: Mapping[str, Any]) -> pl.DataFrame:
    """A table of these columns; null where one is not there."""
    height = len(columns["layer"])
    return pl.DataFrame(
        {
            name: pl.Series(name, columns[name], kind, strict=False)
            if name in columns
            else pl.Series(name, [None] * height, kind)
            for name, kind in schema.items()
        }
    )
