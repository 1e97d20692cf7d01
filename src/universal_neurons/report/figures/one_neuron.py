"""Figures of one neuron: what it takes in, whom it is matched with, what it does to logits, where it fires."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.figure import Figure

from universal_neurons.report.figures.families import SPLIT_AXES, SPLIT_LOOK, Details, details_of, split_densities
from universal_neurons.report.figures.illustration import EFFECT, FigureKind
from universal_neurons.report.figures.style import (
    ACCENT,
    REST,
    SECOND,
    STYLE,
    canvas,
    legend_aside,
    lettering,
    log_counts,
    one_panel,
)
from universal_neurons.report.numbers import number, percent
from universal_neurons.storage import Neuron, Store
from universal_neurons.units import unit_name

TAIL = 0.001  # of the positions, on each side, that a histogram leaves out
TOKENS = 12  # drawn of those raised most, and of those lowered most


def _store(neuron: Neuron) -> Store:
    assert isinstance(neuron.store, Store)
    return neuron.store


def _counts(neuron: Neuron, _: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    store = _store(neuron)
    number_of = store.units[neuron.model].number_of(neuron.layer, neuron.neuron)
    return *store.histogram(neuron.model, number_of), neuron.name


def pre_activations(low: np.ndarray, high: np.ndarray, counts: np.ndarray, name: str) -> Figure | None:
    """The density of a neuron's pre-activations, but for a thousandth on each side; None where nothing was counted."""
    if not counts.sum():
        return None
    inside = np.cumsum(counts) / counts.sum()
    kept = slice(int(np.searchsorted(inside, TAIL)), int(np.searchsorted(inside, 1 - TAIL)) + 1)
    low, high, shown = low[kept], high[kept], counts[kept]
    with mpl.rc_context(STYLE):
        figure = canvas(3.4)
        axes = figure.subplots()
        density = shown / counts.sum() / np.maximum(high - low, 1e-300)
        axes.stairs(density, np.append(low, high[-1:]), color=SECOND, fill=True)
        log_counts(axes)
        axes.axvline(0, color="black", linewidth=0.8, linestyle=":")
        axes.set(xlabel="pre-activation", ylabel="density", title=lettering(name))
    return figure


def _pre_seen(low: np.ndarray, high: np.ndarray, counts: np.ndarray, _: str) -> str:
    above = counts[low >= 0].sum() / counts.sum()
    place = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
    return (
        f"Of {int(counts.sum()):,} positions here {percent(above, 1)} lie in bins above 0. The median lies between "
        f"{number(low[place])} and {number(high[place])}."
    )


PRE_ACTIVATIONS = FigureKind(
    name="pre_activations",
    file="pre-activations",
    title="What the neuron takes in",
    axes="Across: the pre-activation, what the activation function reads. Up: the density over positions, on a "
    "logarithmic scale. A thousandth on each side is left out. Dotted: 0.",
    look="A long tail to the right: a few positions for which the neuron is there.",
    stage="the stage statistics",
    needs=("examples",),
    inputs=_counts,
    draw=pre_activations,
    seen=_pre_seen,
)


def _best_matches(neuron: Neuron, _: str) -> tuple[pl.DataFrame, dict[str, Any], str]:
    return neuron.matches.filter(rank=1), neuron.row, neuron.name


def matches(best: pl.DataFrame, row: dict[str, Any], name: str) -> Figure | None:
    """ρ of a neuron with its match in every other model, and how sure it is; None where it was not asked about."""
    if best.is_empty():
        return None
    with mpl.rc_context(STYLE):
        figure = canvas(1.6 + 0.3 * len(best))
        axes, aside = one_panel(figure)
        rows = np.arange(len(best))[::-1]
        axes.hlines(rows, best["corr_low"], best["corr_high"], color="#9db4c0", linewidth=3, label="95 % (held out)")
        axes.plot(best["corr_heldout"], rows, "|", color=SECOND, markersize=8, label="held-out rows")
        axes.plot(best["corr"], rows, "o", color=ACCENT, markersize=4, label="rows that chose it")
        axes.axvline(row["mean_baseline"], color="black", linewidth=0.8, linestyle=":", label="baseline, mean")
        axes.set_yticks(rows, [_match_name(each) for each in best.iter_rows(named=True)])
        axes.set(xlabel="ρ of activations", title=lettering(name), ylim=(-0.6, len(best) - 0.4))
        legend_aside(axes, aside)
    return figure


def _match_name(match: dict[str, Any]) -> str:
    name = unit_name(match["match_layer"], match["match_neuron"], lettering(match["match_model"]))
    return f"{name} ⇄" if match["mutual"] else name


def _matches_seen(best: pl.DataFrame, row: dict[str, Any], _: str) -> str:
    return (
        f"In {len(best)} models here its best ρ is {number(best['corr'].min())} to {number(best['corr'].max())}; the "
        f"mean baseline is {number(row['mean_baseline'])}. Mutual matches: {int(best['mutual'].sum())}."
    )


MATCHES = FigureKind(
    name="matches",
    file="matches",
    title="The neuron's best match in every other model",
    axes="A row a model, and the neuron there that correlates most (⇄: each is the other's best). Across: their ρ, "
    "with its 95 % interval on rows that did not choose it. Dotted: the same with rotated models.",
    look="Points and strokes far to the right of the dotted line in every row: each model has the neuron.",
    stage="the stage universality",
    needs=("matches",),
    inputs=_best_matches,
    draw=matches,
    seen=_matches_seen,
    asked=True,
)


def _effects(neuron: Neuron, _: str) -> tuple[dict[str, Any], Sequence[str], str]:
    rows = neuron.effects
    return rows.row(0, named=True) if len(rows) else {}, _store(neuron).strings, neuron.name


def logit_effects(effects: dict[str, Any], strings: Sequence[str], name: str) -> Figure | None:
    """The tokens whose logits a neuron raises most and lowers most; None where it writes nothing."""
    if not effects or effects["top_tokens"] is None:
        return None
    with mpl.rc_context(STYLE):
        figure = canvas(3.6)
        panels = figure.subplots(1, 2)
        for axes, side, colour in zip(panels, ("top", "bottom"), (ACCENT, REST)):
            tokens, values = (effects[f"{side}_{what}"][:TOKENS] for what in ("tokens", "effects"))
            rows = np.arange(len(tokens))[::-1]
            axes.barh(rows, values, color=colour)
            axes.set_yticks(rows, [lettering(strings[token]).replace(" ", "␣") or "∅" for token in tokens], fontsize=8)
            axes.axvline(0, color="black", linewidth=0.8)
            axes.set(xlabel="logit effect", title="raised most" if side == "top" else "lowered most")
        figure.suptitle(lettering(name), fontsize=10)
    return figure


def _effects_seen(effects: dict[str, Any], strings: Sequence[str], _: str) -> str:
    parts = [(lettering(strings[effects[f"{s}_tokens"][0]]), effects[f"{s}_effects"][0]) for s in ("top", "bottom")]
    (raised, most), (lowered, least) = parts
    return f"“{raised}” is raised most, by {number(most)}; “{lowered}” is lowered most, to {number(least)}."


LOGIT_EFFECTS = FigureKind(
    name="logit_effects",
    file="logit-effects",
    title="The tokens whose logits the neuron raises and lowers",
    axes=f"{EFFECT} Rows: the tokens that it raises most, and lowers most. Across: the logit effect.",
    look="Tokens that have something in common, and effects that stand out from the next ones.",
    stage="the stage roles",
    needs=("effects", "vocabulary"),
    inputs=_effects,
    draw=logit_effects,
    seen=_effects_seen,
)


def _kept(neuron: Neuron, _: str) -> tuple[Details, dict[str, Any], str]:
    store = _store(neuron)
    name = unit_name(neuron.layer, neuron.neuron) if neuron.model == store.models[0] else ""
    return *details_of(store), neuron.row, name


def activations(kept: Details, row: dict[str, Any], name: str) -> Figure | None:
    """The density of a neuron's activation by its label; None where the study did not keep its activations."""
    if name not in kept.details.columns:
        return None
    with mpl.rc_context(STYLE):
        figure = canvas(3.6)
        axes, _ = one_panel(figure)
        split_densities(axes, kept, row, row["family"])
        axes.set_ylabel("density")
    return figure


def _activations_seen(kept: Details, _: dict[str, Any], name: str) -> str:
    values, holds = kept.values(name), kept.holds(name)
    inside, outside = (number(float(v.mean())) if len(v) else "–" for v in (values[holds], values[~holds]))
    return (
        f"The label holds here at {int(holds.sum()):,} of {len(holds):,} positions. The mean activation is {inside} "
        f"there and {outside} elsewhere."
    )


ACTIVATIONS = FigureKind(
    name="activations",
    file="activations",
    title="Where the neuron is active",
    axes=SPLIT_AXES,
    look=SPLIT_LOOK,
    stage="the stage labels, which keeps the activations of some neurons of the reference",
    needs=("details", "vocabulary"),
    inputs=_kept,
    draw=activations,
    seen=_activations_seen,
)

NEURON_KINDS = (PRE_ACTIVATIONS, MATCHES, LOGIT_EFFECTS, ACTIVATIONS)
