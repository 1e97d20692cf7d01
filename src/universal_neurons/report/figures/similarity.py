"""Layers as wholes: a heat map for each measure, beside that of Fig 2c."""

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from universal_neurons.matching import MEASURES
from universal_neurons.report.figures.illustration import FigureKind
from universal_neurons.report.figures.style import STYLE, canvas, lettering
from universal_neurons.report.numbers import number

TITLES = dict(
    zip(MEASURES, ("(a) CKA", "(b) mean squared CCA", "(c) R² of the other layer", "(d) R² from the other layer"))
)
MOST_NUMBERS = 64  # cells of a map that say their value


def _means(table: pl.DataFrame, asker: str, measure: str) -> pl.DataFrame:
    """The calibrated measure of every two layers, averaged over the other models."""
    rows = table.filter((pl.col("asker") == asker) & (pl.col("measure") == measure))
    return rows.group_by("layer", "match_layer").agg(pl.col("calibrated").fill_nan(None).mean()).sort(pl.all())


def layers_alike(table: pl.DataFrame, asker: str) -> Figure | None:
    """The four measures of every two layers, calibrated, averaged over the other models."""
    if table.filter(pl.col("asker") == asker).is_empty():
        return None
    with mpl.rc_context(STYLE):
        figure = canvas(3.0)
        panels = figure.subplots(1, len(TITLES))
        for axes, (measure, title) in zip(panels, TITLES.items()):
            image = _heat_map(axes, _means(table, asker, measure), title)
        panels[0].set_ylabel(f"layer of {lettering(asker)}")
        figure.colorbar(image, ax=panels)
    return figure


def _heat_map(axes: Axes, means: pl.DataFrame, title: str) -> AxesImage:
    shape = [int(means[column].max()) + 1 for column in ("layer", "match_layer")]  # type: ignore[arg-type]
    grid = np.full(shape, np.nan)
    grid[means["layer"].to_numpy(), means["match_layer"].to_numpy()] = means["calibrated"].to_numpy()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    image = axes.imshow(grid, cmap="viridis", vmin=0, vmax=1, origin="lower", aspect="auto")
    axes.spines[:].set_visible(False)
    axes.set(xlabel="layer of the others", title=title)
    if grid.size <= MOST_NUMBERS:
        for row, column in np.argwhere(np.isfinite(grid)):  # a layer without units has none
            value = float(grid[row, column])
            colour = "black" if value > 0.6 else "white"
            axes.text(column, row, number(value), ha="center", va="center", color=colour, fontsize=7)
    return image


def _seen(table: pl.DataFrame, asker: str) -> str:
    parts = []
    for measure, title in TITLES.items():
        means = _means(table, asker, measure)
        same = means.filter(pl.col("layer") == pl.col("match_layer"))["calibrated"].mean()
        other = means.filter(pl.col("layer") != pl.col("match_layer"))["calibrated"].mean()
        parts.append(f"{title[4:]} {number(same)} ({number(other)})")
    return (
        f"Means over layers of {lettering(asker)} with the layer of the same number (with the others): "
        f"{', '.join(parts)}."
    )


SIMILARITY = FigureKind(
    name="similarity",
    file="similarity",
    title="How alike layers are as wholes",
    axes="A cell: a layer and one of another model, averaged over the other models; 0 is chance (the other's rows "
    "shifted circularly), 1 the same layer. (a) Debiased linear CKA. (b) The mean squared canonical correlation of the "
    "components that hold 99 % of the variance. (c) How much of the other layer's variance ridge regression explains "
    "from the layer; (d) the other way.",
    look="A bright diagonal: layers of the same depth are alike, also where few of their neurons are. Values near 0: "
    "what they have in common is chance.",
    stage="the stage similarity",
    needs=("similarity",),
    inputs=lambda store, asker: (store.table("similarity"), asker),
    draw=layers_alike,
    seen=_seen,
    per="each",
)
