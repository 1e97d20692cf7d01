"""Figures of training dynamics: universal set, emergence, persistence, partners, families, self-correlation.

Steps stand on a logarithmic axis.  Step 0 and a last checkpoint whose step nobody says have no place there: they stand
beside the others, a tenth of the axis away.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from universal_neurons.dynamics import Dynamics
from universal_neurons.labels import FAMILIES
from universal_neurons.report.dynamics_summary import sentences
from universal_neurons.report.figures.illustration import FAMILY, UNIVERSAL, FigureKind
from universal_neurons.report.figures.style import (
    ACCENT,
    REST,
    SECOND,
    STYLE,
    THIRD,
    canvas,
    in_legend,
    legend_below,
    lettering,
    title_over,
)

CLOSEST = 0.06  # ticks nearer than this share of the axis would overlap
BESIDE = 0.1  # of the axis: the distance of what has no place on it
MOST_BANDS = 6  # layers that are drawn with their quartiles
LONGEST = 32  # characters of the name of a checkpoint or seed
MOST_NAMES = 8  # layers that the legend names
FAMILY_COLOURS = dict(
    zip(
        FAMILIES,
        (SECOND, "#6fb1c7", "#8c6bb1", THIRD, "#7a9a3a", ACCENT, "#e8a598", "#4a4a4a", "#dfe5e8"),
    )
)


@dataclass(frozen=True)
class StepAxis:
    """Where the checkpoints stand: powers of ten, and the names under them."""

    x: np.ndarray
    names: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str], steps: Sequence[int | None]) -> "StepAxis":
        """The axis of checkpoints in the order of training."""
        known = [math.log10(step) for step in steps if step]
        low, high = (known[0], known[-1]) if known else (0.0, 0.0)
        gap = BESIDE * (high - low) or 0.5
        x = []
        for step in steps:
            if step is None:
                x.append(high + gap)
            elif step == 0:
                x.append(low - gap)
            else:
                x.append(math.log10(step))
        return cls(np.array(x, float), tuple(names))

    def draw(self, axes: Axes) -> None:
        """Ticks and a label; names that would overlap are left out, the last one never."""
        width = max(float(np.ptp(self.x)), 1e-9)
        kept = [len(self.x) - 1]
        for index in reversed(range(len(self.x) - 1)):
            if self.x[kept[-1]] - self.x[index] >= CLOSEST * width:
                kept.append(index)
        axes.set_xticks(
            self.x[kept], [lettering(self.names[index], LONGEST) for index in kept], rotation=35, ha="right"
        )
        axes.set_xlabel("training step (log scale)")


def _pair() -> tuple[Figure, Axes, Axes]:
    figure = canvas(3.4)
    a, b = figure.subplots(1, 2)
    return figure, a, b


def _count(axes: Axes, lowest: int = 0) -> None:
    """A y axis of whole numbers, to 1 or above."""
    axes.set_ylim(1.05 * lowest, max(axes.get_ylim()[1], 1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _percent(column: pl.Series) -> np.ndarray:
    return 100 * column.fill_null(math.nan).to_numpy()


def universal_set(checkpoints: pl.DataFrame, axis: StepAxis, threshold: float) -> Figure:
    """(a) The universal share with its 95 % range, (b) the excess correlation, by step."""
    with mpl.rc_context(STYLE):
        figure, a, b = _pair()
        n = checkpoints["neurons"].to_numpy()
        low, high = (100 * checkpoints[f"universal_{word}"].to_numpy() / n for word in ("surely", "possibly"))
        a.fill_between(
            axis.x, low, high, color=REST, alpha=0.4, linewidth=0, label="95 %: wholly above – reaches above"
        )
        heldout = 100 * checkpoints["universal_heldout"].to_numpy() / n
        a.plot(axis.x, heldout, "--", color=SECOND, linewidth=1, label="on held-out rows")
        a.plot(axis.x, _percent(checkpoints["fraction"]), "o-", color=ACCENT, markersize=4, label="universal")
        a.set(ylabel="% of neurons", title=f"(a) Universal neurons (excess > {threshold:g})")
        a.set_ylim(bottom=0)
        legend_below(a)
        shades = {"max": REST, "p99": THIRD, "p90": SECOND, "median": ACCENT}
        for name, colour in shades.items():
            b.plot(axis.x, checkpoints[f"excess_{name}"], "o-", color=colour, markersize=3, label=name)
        b.axhline(threshold, color="black", linewidth=0.8, linestyle=":")
        b.set(ylabel="excess correlation", title="(b) Excess correlation over neurons")
        b.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        for axes in (a, b):
            axis.draw(axes)
    return figure


def emergence(table: pl.DataFrame, checkpoints: pl.DataFrame, axis: StepAxis) -> Figure:
    """(a) How many neurons have been universal, are, and are for good; (b) when those of each layer became so."""
    with mpl.rc_context(STYLE):
        figure, a, b = _pair()
        counts = {
            column: np.array([(table[column] == name).sum() for name in axis.names])
            for column in ("first", "emergence")
        }
        a.plot(axis.x, counts["first"].cumsum(), "o-", color=REST, markersize=3, label="have been universal")
        a.plot(axis.x, checkpoints["universal"], "o-", color=SECOND, markersize=3, label="are universal")
        a.plot(axis.x, counts["emergence"].cumsum(), "o-", color=ACCENT, markersize=4, label="are from here to the end")
        a.set(ylabel="neurons", title="(a) Emergence")
        _count(a)
        legend_below(a)
        axis.draw(a)
        layers = sorted(table["layer"].unique())
        bottom = np.zeros(len(axis.names))
        for layer, (colour, label) in zip(layers, _layers(len(layers))):
            emerged = table.filter(pl.col("layer") == layer)["emergence"]
            height = np.array([(emerged == name).sum() for name in axis.names])
            b.bar(np.arange(len(axis.names)), height, bottom=bottom, color=colour, label=label)
            bottom += height
        _by_checkpoint(b, axis)
        b.set(ylabel="neurons", title="(b) Universal from this checkpoint to the end, by layer")
        _count(b)
        b.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _layers(n: int) -> list[tuple[tuple[float, ...], str | None]]:
    """A colour for every layer, and the legend's name for some."""
    every = math.ceil(n / MOST_NAMES)
    colours = mpl.colormaps["viridis"](np.linspace(0.05, 0.92, n))
    return [(tuple(c), f"layer {i}" if i % every == 0 or i == n - 1 else None) for i, c in enumerate(colours)]


def _by_checkpoint(axes: Axes, axis: StepAxis) -> None:
    """An even axis with a place for every checkpoint."""
    n = len(axis.names)
    every = math.ceil(n / 16)
    kept = [i for i in range(n) if (n - 1 - i) % every == 0]
    axes.set_xticks(kept, [lettering(axis.names[i], LONGEST) for i in kept], rotation=35, ha="right")
    axes.set_xlabel("checkpoint")


def persistence(checkpoints: pl.DataFrame, axis: StepAxis) -> Figure:
    """(a) |U(t−1) ∩ U(t)| / |U(t−1)|; (b) how many neurons stayed, joined and left."""
    with mpl.rc_context(STYLE):
        figure, a, b = _pair()
        a.plot(axis.x, _percent(checkpoints["persistence"]), "o-", color=ACCENT, markersize=4)
        a.set(ylabel="%", title="(a) Persistence: still universal, of those a checkpoint before")
        a.set_ylim(0, 104)
        axis.draw(a)
        a.set_xlim(*_around(axis.x))
        joined, left = (checkpoints[name].fill_null(0).to_numpy() for name in ("joined", "left"))
        joined = np.where(checkpoints["joined"].is_null(), checkpoints["universal"], joined)
        stayed = checkpoints["universal"].to_numpy() - joined
        places = np.arange(len(axis.names))
        b.bar(places, stayed, color=SECOND, label="stayed")
        b.bar(places, joined, bottom=stayed, color=THIRD, label="joined")
        b.bar(places, -left, color=REST, label="left")
        b.axhline(0, color="black", linewidth=0.8)
        b.set(ylabel="neurons", title="(b) The universal set at every checkpoint")
        _count(b, -int(left.max()))
        b.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):g}"))
        _by_checkpoint(b, axis)
        legend_below(b)
    return figure


def _around(x: np.ndarray) -> tuple[float, float]:
    margin = 0.05 * max(float(np.ptp(x)), 0.1)
    return float(x[0]) - margin, float(x[-1]) + margin


def partners(checkpoints: pl.DataFrame, axis: StepAxis) -> Figure:
    """Best matches that are the same neuron (a) as a checkpoint before, (b) as at the last."""
    with mpl.rc_context(STYLE):
        figure, a, b = _pair()
        drawn = ((a, "same_match", "(a) … as at the checkpoint before"), (b, "final_match", "(b) … as at the last"))
        for axes, column, title in drawn:
            axes.plot(axis.x, _percent(checkpoints[column]), "o-", color=REST, markersize=4, label="all neurons")
            universal = _percent(checkpoints[f"{column}_universal"])
            axes.plot(axis.x, universal, "o-", color=ACCENT, markersize=4, label="universal at the earlier one")
            axes.set(title=title, ylabel="% of matches")
            axes.set_ylim(0, 104)
            axis.draw(axes)
            axes.set_xlim(*_around(axis.x))
            legend_below(axes)
        title_over(figure, "Best matches that are the same neuron …")
    return figure


def families_over_time(families: pl.DataFrame, reference: str, axis: StepAxis) -> Figure:
    """Families of (a) all neurons of the reference and (b) its universal ones, at every checkpoint."""
    counts = families.filter(pl.col("model") == reference)
    with mpl.rc_context(STYLE):
        figure, a, b = _pair()
        places = np.arange(len(axis.names))
        for axes, column, title in (
            (a, "neurons", f"(a) Neurons of {lettering(reference)}"),
            (b, "universal", "(b) Universal"),
        ):
            bottom = np.zeros(len(axis.names))
            for family, colour in FAMILY_COLOURS.items():
                by_name = dict(counts.filter(pl.col("family") == family).select("checkpoint", column).iter_rows())
                height = np.array([by_name[name] for name in axis.names])
                axes.bar(places, height, bottom=bottom, color=colour, label=family.replace("_", " "))
                bottom += height
            axes.set(ylabel="neurons", title=title)
            _count(axes)
            _by_checkpoint(axes, axis)
        handles, names = b.get_legend_handles_labels()
        b.legend(handles[::-1], names[::-1], fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def self_correlation(neurons: pl.DataFrame, reference: str, axis: StepAxis) -> Figure:
    """ρ of neurons with their final selves: (a) median and quartiles by layer, (b) 10, 50, 90 % of every seed."""
    alive = neurons.filter(pl.col("self_corr").is_finite())
    with mpl.rc_context(STYLE):
        figure, a, b = _pair()
        reference_neurons = alive.filter(pl.col("model") == reference)
        layers = sorted(reference_neurons["layer"].unique())
        for layer, (colour, label) in zip(layers, _layers(len(layers))):
            low, median, high = _quantiles(reference_neurons.filter(pl.col("layer") == layer), axis, (0.25, 0.5, 0.75))
            if len(layers) <= MOST_BANDS:
                a.fill_between(axis.x, low, high, color=colour, alpha=0.12, linewidth=0)
            a.plot(axis.x, median, "o-", color=colour, markersize=3, label=label)
        quartiles = " and quartiles" if len(layers) <= MOST_BANDS else ""
        a.set(ylabel="ρ with itself at the last", title=f"(a) {lettering(reference)} by layer: median{quartiles}")
        seeds = alive["model"].unique(maintain_order=True).to_list()
        palette = (ACCENT, SECOND, THIRD, "#8c6bb1", "#7a9a3a", "#4a4a4a")
        for index, seed in enumerate(seeds):
            low, median, high = _quantiles(alive.filter(pl.col("model") == seed), axis, (0.1, 0.5, 0.9))
            one = palette[index % len(palette)]
            b.plot(
                axis.x,
                median,
                "o-",
                color=one,
                markersize=3,
                label=in_legend(seed, LONGEST) if index < len(palette) else None,
            )
            for edge in (low, high):
                b.plot(axis.x, edge, ":", color=one, linewidth=1)
        b.set(title="(b) Every seed: median, 10 and 90 %")
        for axes in (a, b):
            axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.02)
            axis.draw(axes)
            legend_below(axes)
    return figure


def _quantiles(rows: pl.DataFrame, axis: StepAxis, shares: Sequence[float]) -> np.ndarray:
    """Quantiles of the self-correlation (shares, checkpoints); NaN where nothing is alive."""
    by_name = {name: table["self_corr"] for (name,), table in rows.group_by("checkpoint")}
    table = np.full((len(shares), len(axis.names)), math.nan)
    for place, name in enumerate(axis.names):
        if name in by_name:
            table[:, place] = [by_name[name].quantile(share, "linear") for share in shares]
    return table


def _kind(
    name: str, title: str, axes: str, look: str, draw: Callable[[Dynamics, StepAxis], Figure], *more: str
) -> FigureKind:
    file = f"dynamics-{name.partition('_')[0]}"
    return FigureKind(
        name=name,
        file=file,
        title=title,
        axes=axes,
        look=look,
        stage="uneurons dynamics",
        needs=("checkpoints", "neurons", "emergence", *more),
        inputs=lambda dynamics, _: (dynamics, StepAxis.of(dynamics.names, dynamics.steps)),
        draw=draw,
        seen=lambda dynamics, _: sentences(dynamics)[file],
    )


DYNAMICS_KINDS = (
    _kind(
        "universal_set",
        "The universal set",
        f"{UNIVERSAL} Across: training steps. (a) The share of universal neurons, on the rows that chose the matches "
        "and on held-out rows, with its 95 % band. (b) Quantiles of the excess.",
        "Where the curves rise, and whether they are level at the end of training.",
        lambda dynamics, axis: universal_set(dynamics.checkpoints, axis, dynamics.config.threshold),
    ),
    _kind(
        "emergence",
        "Emergence",
        f"{UNIVERSAL} A neuron emerges at the checkpoint from which it is universal to the end. (a) Neurons by step. "
        "(b) Neurons that emerge at each checkpoint, by layer.",
        "A gap in (a) between those that are universal and those that are for good: some come and go.",
        lambda dynamics, axis: emergence(dynamics.emergence, dynamics.checkpoints, axis),
    ),
    _kind(
        "persistence",
        "Persistence",
        f"{UNIVERSAL} (a) Of the universal neurons of a checkpoint before, the share that still is. (b) The universal "
        "set: who stayed, joined and left.",
        "Shares near 100 %: who is universal stays so.",
        lambda dynamics, axis: persistence(dynamics.checkpoints, axis),
    ),
    _kind(
        "partners",
        "Partners",
        "A best match is the neuron of another seed that correlates most. Up: the share of best matches that are the "
        "same neuron (a) as a checkpoint before, (b) as at the last.",
        "Universal neurons (coloured) above all neurons (grey): they keep their partners.",
        lambda dynamics, axis: partners(dynamics.checkpoints, axis),
    ),
    _kind(
        "families",
        "Families",
        f"{UNIVERSAL} {FAMILY} A bar a checkpoint. Up: neurons of each family, (a) of all, (b) of the universal ones.",
        "Colours that are there from the first checkpoints on, and those that come late.",
        lambda dynamics, axis: families_over_time(dynamics.families, dynamics.checkpoints["asker"][0], axis),
        "families",
    ),
    _kind(
        "self_correlation",
        "Each neuron and its final self",
        "Up: ρ of a neuron's activation with its own at the last checkpoint, on held-out rows. (a) By layer. (b) Of "
        "every seed: median, and 10 and 90 %.",
        "Layers that reach their final values early.",
        lambda dynamics, axis: self_correlation(dynamics.neurons, dynamics.checkpoints["asker"][0], axis),
    ),
)
