"""The figures of a diff: how alike units and themselves are in every layer, and the kinds of change there."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from universal_neurons.report.figures.effects import EFFECTS
from universal_neurons.report.figures.illustration import FigureKind
from universal_neurons.report.figures.style import ACCENT, REST, SECOND, STYLE, THIRD, canvas, legend_below
from universal_neurons.report.numbers import median, percent

BANDS = ((0.01, 0.99), (0.1, 0.9), (0.25, 0.75))
COLOURS = {
    "re-scaled": "#dfe5e8", "shifted": REST, "redirected": "#8c6bb1", "re-tuned": ACCENT, "moved": SECOND,
    "copied": "#6fb1c7", "born": THIRD, "died": "#4a4a4a",
}  # fmt: skip


def changes_by_layer(changes: pl.DataFrame, *, by_size: bool) -> Figure:
    """(a) ρ of each unit and itself (`by_size`: |ρ|), its median and quantiles by layer; (b) units of each kind."""
    layers = changes["layer"].unique().sort().to_list()
    with mpl.rc_context(STYLE):
        figure = canvas(3.4)
        a, b = figure.subplots(1, 2)
        _alike(a, changes, layers, by_size=by_size)
        _kinds(b, changes, layers)
        for axes in (a, b):
            axes.set_xlabel("layer")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _alike(axes: Axes, changes: pl.DataFrame, layers: Sequence[int], *, by_size: bool) -> None:
    corr = changes.with_columns(corr=pl.col("self_corr").abs() if by_size else pl.col("self_corr"))
    by_layer = [corr.filter(pl.col("layer") == layer)["corr"].fill_nan(None).drop_nulls() for layer in layers]
    for shade, (low, high) in zip((0.15, 0.25, 0.35), BANDS):
        under, over = ([_quantile(values, q) for values in by_layer] for q in (low, high))
        axes.fill_between(
            layers, under, over, color=SECOND, alpha=shade, linewidth=0, label=f"{low:g}–{high:g} quantiles"
        )
    axes.plot(layers, [_quantile(values, 0.5) for values in by_layer], "o-", color=SECOND, markersize=4, label="median")
    axes.set(title="(a) Each unit and itself", ylabel="|ρ|" if by_size else "ρ")
    legend_below(axes)


def _quantile(values: pl.Series, q: float) -> float:
    return float(values.quantile(q, "linear")) if len(values) else np.nan  # type: ignore[arg-type]


def _kinds(axes: Axes, changes: pl.DataFrame, layers: Sequence[int]) -> None:
    under = np.zeros(len(layers))
    for kind, colour in COLOURS.items():
        of_kind = changes.filter(pl.col("kind") == kind)
        counts = np.array([(of_kind["layer"] == layer).sum() for layer in layers], float)
        if counts.any():
            axes.bar(layers, counts, bottom=under, color=colour, label=kind)
        under += counts
    axes.set(title="(b) Units that changed, by kind", ylabel="units")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(axes)


def _seen(changes: pl.DataFrame, *, by_size: bool) -> str:
    corr = changes["self_corr"].abs() if by_size else changes["self_corr"]
    changed = changes.filter(pl.col("kind").is_in(list(COLOURS)))
    kinds = changed["kind"].value_counts(sort=True).rows()
    named = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds, key=lambda row: (-row[1], row[0])))
    return (
        f"The median ρ of a unit and itself here is {median(corr)}. Of {len(changes):,} units {len(changed):,} "
        f"({percent(len(changed) / len(changes), 1)}) changed{': ' + named if named else ''}."
    )


DIFF_KINDS = (
    FigureKind(
        name="changes",
        file="changes",
        title="What changed, by layer",
        axes="Across: layers. (a) ρ of a unit's activation before and after training, on held-out rows (of a gated "
        "model |ρ|): median and quantiles. (b) Units that changed, by kind; the kinds are explained below.",
        look="Layers whose bands fall away from 1, and the kinds of change that stand there.",
        stage="uneurons diff",
        needs=("changes",),
        inputs=lambda diff, _: (diff.changes, bool(diff.study.gated)),
        draw=lambda changes, gated: changes_by_layer(changes, by_size=gated),
        seen=lambda changes, gated: _seen(changes, by_size=gated),
    ),
    EFFECTS,
)
