"""What all figures share: their style, whom they single out, and their bytes."""

import base64
import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from html import escape
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, MaxNLocator, NullLocator

from universal_neurons.legible import SIGNS, legible, shortened
from universal_neurons.matching import singled_out

STYLE: Any = {
    "svg.hashsalt": "universal-neurons",
    "text.parse_math": False,  # no name, label or token is mathematics, whatever a person's own settings are
    "text.usetex": False,
    "axes.formatter.use_mathtext": False,
    "figure.autolayout": False,  # a figure that was laid out stays so
    "figure.constrained_layout.use": False,
    "text.hinting": "no_hinting",  # letters of a PNG are as wide as those of the SVG that laid the figure out
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "lines.dotted_pattern": (1, 3),  # thin dots that stand apart: at matplotlib's own distance they look like a line
    "legend.frameon": False,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
}
LONGEST = 40  # characters of a name
WIDTH = 12.0  # inches, of every figure
LINE = 150  # characters of a title's line
SHORT = 16  # characters of labels that stand beside one another in a legend
BELOW = 5.6  # from the axis to a legend under it, in the size of the legend's letters: past ticks and the axis's label
SPELT = str.maketrans(  # signs that matplotlib's font lacks
    {sign: f"\\x{ord(control):02x}" for control, sign in SIGNS.items() if sign not in "⏎⇥"}
)
DRAWING_WARNINGS = "Glyph .* missing from font|constrained_layout not applied"
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
ACCENT, REST, SECOND, THIRD = "#c8553d", "#9db4c0", "#1f6f8b", "#d9a441"


def lettering(text: object, longest: int = LONGEST) -> str:
    """Text from outside for a figure: on one line, with signs that the font has, shortened where it is long."""
    return shortened(legible(shortened(str(text), longest)).translate(SPELT), longest)


def in_legend(text: object, longest: int = LONGEST) -> str:
    """As `lettering`, for a legend: matplotlib leaves out what begins with an underscore."""
    line = lettering(text, longest)
    return f" {line}" if line.startswith("_") else line


class PowersOfTen(LogFormatterSciNotation):
    """Labels of a logarithmic axis as 10⁻³ and 2×10⁻³, in plain characters."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        plain = super().__call__(x, pos).removeprefix(r"$\mathdefault{").removesuffix("}$").replace(r"\times", "×")
        return re.sub(r"\^\{(.+?)\}", lambda power: power[1].translate(RAISED), plain)


class NotebookFigure(Figure):
    """A figure that a notebook shows without pyplot, its caption under it."""

    title: str = ""
    caption: object = ""

    def _repr_png_(self) -> bytes:
        return render(self, "png")

    def _repr_html_(self) -> str:
        picture = base64.b64encode(render(self, "png")).decode()
        return (
            f'<figure><img alt="{escape(self.title)}" style="max-width: 100%" src="data:image/png;base64,{picture}">'
            f"<figcaption>{escape(str(self.caption))}</figcaption></figure>"
        )


def canvas(height: float) -> Figure:
    """An empty figure, as wide as all others, so that letters have one size on a page; `height` in inches."""
    return NotebookFigure(figsize=(WIDTH, height), layout="constrained")


def one_panel(figure: Figure) -> tuple[Axes, Axes]:
    """The one panel of a figure, and the empty room beside it, where its legend stands."""
    panel, aside = figure.subplots(1, 2, width_ratios=(3, 2))
    aside.set_axis_off()
    return panel, aside


def legend_aside(panel: Axes, aside: Axes) -> None:
    """The legend of a panel in the room beside it."""
    aside.legend(*panel.get_legend_handles_labels(), fontsize=8, loc="upper left")


def legend_below(axes: Axes, **settings: Any) -> None:
    """A panel's legend under its axis, where it covers no data."""
    labels = axes.get_legend_handles_labels()[1]
    if labels:
        columns = 1 if max(map(len, labels)) > SHORT else min(len(labels), 3)
        place: dict[str, Any] = {
            "loc": "upper center",
            "bbox_to_anchor": (0.5, 0),
            "borderaxespad": BELOW,
            "ncols": columns,
        }
        axes.legend(fontsize=7, **(place | settings))


def title_over(figure: Figure, title: str) -> None:
    """A figure's title, in as many lines as its width asks for."""
    lines = [fill(line, LINE) for line in title.split("\n")]
    figure.suptitle("\n".join(lines), fontsize=10)


def log_counts(axes: Axes) -> None:
    """A logarithmic y axis with a tick per power of ten and no others: quick to draw."""
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def few_ticks(*panels: Axes) -> None:
    """Ticks of narrow panels so few, and of numbers so round, that their labels stand apart."""
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))


def highlighted(neurons: pl.DataFrame) -> tuple[np.ndarray, str] | None:
    """The neurons of a table that figures single out, as a mask, and what they are; None where nobody asked."""
    chosen, universal = singled_out(neurons.with_row_index("place"))
    if chosen.is_empty():
        return None
    mask = np.zeros(len(neurons), bool)
    mask[chosen["place"].to_numpy()] = True
    return mask, "universal" if universal else "top 1 % by excess (none universal)"


@contextlib.contextmanager
def _drawing() -> Iterator[None]:
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", DRAWING_WARNINGS)
        yield


def lay_out(figure: Figure) -> None:
    """Lay a figure out by the letters of an SVG, once for all: `savefig` draws a figure that it lays out twice."""
    engine, canvas, dpi = figure.get_layout_engine(), figure.canvas, figure.dpi
    if engine is None:
        return
    with _drawing():
        FigureCanvasSVG(figure)  # becomes the figure's
        engine.execute(figure)
        figure.set_canvas(canvas)
        figure.dpi = dpi
        figure.set_layout_engine(None)


def render(figure: Figure, kind: str) -> bytes:
    """A figure's bytes as `svg` or `png`, the same every time."""
    target = io.BytesIO()
    metadata = {"Date": None, "Creator": "universal-neurons"} if kind == "svg" else {"Software": "universal-neurons"}
    with _drawing():
        figure.savefig(target, format=kind, dpi=150, metadata=metadata)
    return target.getvalue()
