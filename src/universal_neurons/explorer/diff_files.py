"""What training changed, for the page of a diff: `ID/diff`, in words, and `ID/changes`, columns of all units.

Units are of both models, by index.  The page counts kinds by itself: what it filters is what it counts.
"""

from typing import Any

import numpy as np
import polars as pl

from universal_neurons.diff import KINDS, Diff
from universal_neurons.explanations import fires_on
from universal_neurons.explorer.data_files import (
    NO_LAYER,
    NO_NEURON,
    Column,
    flag_column,
    float_column,
    integer_column,
    table_columns,
    text_column,
)
from universal_neurons.explorer.unit_columns import AMONG_ROLES, said
from universal_neurons.explorer.unit_parts import before_and_after
from universal_neurons.report import LISTS, UNUSUAL, diff_sentences, upper_end
from universal_neurons.units import NONE

NUMBERS = (
    "self_corr", "self_corr_low", "self_corr_high", "mean_shift", "scale", "offset", "firing_before", "firing_after",
    "firing_shift", "firing_overlap", "q50_shift", "q99_shift", "w_in_cos", "w_in_ratio", "w_up_cos", "w_up_ratio",
    "w_out_cos", "w_out_ratio", "contribution", "logit_cos", "tuned_match_corr", "tuned_other_corr", "q_change",
)  # fmt: skip
TEXTS = ("kind", "place", "weights", "family_before", "family_after")
SIDES = ("before", "after")
OF_SIDE = ("family", "label", "label_sign", "variance_reduction")
EFFECTS = ("joint_effects", "unit_effects")  # of a diff that measured some


def diff_data(diff: Diff) -> dict[str, Any]:
    """What `diff` holds: sentences and facts, kinds in their order, the kinds of each list, effects on the loss."""
    rules = diff.config
    thresholds = (
        f"same {rules.same:g}, redirected {rules.redirected:g}, shifted {rules.shifted:g}, re-scaled {rules.rescaled:g}"
    )
    facts = {"base": diff.models[0], "fine-tune": diff.models[1]}
    if diff.nulls:
        facts |= {
            "other fine-tunes": ", ".join(diff.nulls),
            "smallest p": f"{diff.changes['p_least'].to_numpy().min():.2g}",
        }
    return {
        "opening": diff_sentences(diff),
        "facts": facts | {"thresholds": thresholds},
        "kinds": list(KINDS),
        "lists": {title: list(kinds) for title, kinds in LISTS.items()},
        "unusual": UNUSUAL,
        "gated": bool(diff.study.gated),
    } | {name: table_columns(diff.table(name)) for name in EFFECTS if diff.has(name)}


def changes_data(diff: Diff) -> dict[str, Any]:
    """What `changes` holds, in the way of `units/M`."""
    changes = before_and_after(diff.changes).with_columns(self_most=upper_end(diff))
    columns: dict[str, Column] = {}
    for name in ("", "moved_to_", "came_from_"):
        columns |= _place(changes, name)
    columns["surely_unchanged"] = flag_column(changes["surely_unchanged"])
    columns |= {
        name: float_column(changes[name].replace([np.inf, -np.inf], np.nan))
        for name in ("self_most", *NUMBERS)
        if said(changes, name)
    }
    columns |= {name: text_column(changes[name]) for name in TEXTS if said(changes, name)}
    for when in SIDES:
        columns |= _fires_on(changes, when)
    if diff.nulls:
        columns["unusual"] = flag_column(changes["q_change"].fill_nan(None) <= UNUSUAL)
    if diff.has("changes_tuned_text"):
        columns["kind_tuned_text"] = text_column(diff.table("changes_tuned_text")["kind"])
    return {"count": len(changes), "columns": columns}


def _place(changes: pl.DataFrame, before: str) -> dict[str, Column]:
    """A unit's layer and neuron; `NO_LAYER` and `NO_NEURON` where there is none."""
    found = {}
    for part, kind, none in (("layer", "u16", NO_LAYER), ("neuron", "u32", NO_NEURON)):
        values = changes[before + part].to_numpy()
        found[before + part] = integer_column(np.where(values == NONE, none, values), kind)
    return found


def _fires_on(changes: pl.DataFrame, when: str) -> dict[str, Column]:
    """What each unit fires on, in words, where a label explains it, and its roles."""
    label, roles = f"label_{when}", f"roles_{when}"
    columns = {}
    if said(changes, label):
        side = changes.select(pl.col(f"{name}_{when}").alias(name) for name in OF_SIDE)
        told = [fires_on(row) if row["label"] else None for row in side.rows(named=True)]
        columns[label] = text_column(pl.Series(told, dtype=pl.String))
    if said(changes, roles):
        columns[roles] = text_column(changes[roles].list.join(AMONG_ROLES))
    return columns
