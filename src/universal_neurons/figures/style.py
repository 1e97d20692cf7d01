"""What all figures share: their style, whom they single out, and their bytes."""

import io
import math
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from universal_neurons.shown import FALLBACK_SHARE

STYLE: Any = {
    "svg.hashsalt": "universal-neurons",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
}
ACCENT, REST, SECOND, THIRD = "#c8553d", "#9db4c0", "#1f6f8b", "#d9a441"


def log_counts(axes: Axes) -> None:
    """A logarithmic y axis with a tick per power of ten and no others: quick to draw."""
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def singled_out(neurons: pl.DataFrame) -> tuple[np.ndarray, str] | None:
    """The universal neurons of a table as a mask, or the top 1 % by excess where none is; None where nobody asked."""
    excess = neurons["excess_corr"].fill_null(math.nan).to_numpy()
    alive = np.isfinite(excess)
    if not alive.any():
        return None
    universal = neurons["is_universal"].fill_null(False).to_numpy()
    if universal.any():
        return universal, "universal"
    return alive & (excess >= np.quantile(excess[alive], 1 - FALLBACK_SHARE)), "top 1 % by excess (none universal)"


def render(figure: Figure, kind: str) -> bytes:
    """A figure's bytes as `svg` or `png`, the same every time."""
    target = io.BytesIO()
    metadata = {"Date": None, "Creator": "universal-neurons"} if kind == "svg" else {"Software": "universal-neurons"}
    with mpl.rc_context(STYLE):
        figure.savefig(target, format=kind, dpi=150, metadata=metadata)
    return target.getvalue()
