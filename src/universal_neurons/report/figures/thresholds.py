"""How many neurons are universal, at every threshold: with the interval's ends, and beside what chance gives."""

import matplotlib as mpl
import polars as pl
from matplotlib.figure import Figure

from universal_neurons.report.figures.illustration import UNIVERSAL, FigureKind
from universal_neurons.report.figures.style import (
    ACCENT,
    REST,
    SECOND,
    STYLE,
    THIRD,
    canvas,
    legend_aside,
    lettering,
    log_counts,
    one_panel,
)
from universal_neurons.report.numbers import number

LEAST = 0.5  # of a neuron, the axis's end: no count is below 1, an average over draws may be


def thresholds(counts: pl.DataFrame, asker: str, threshold: float) -> Figure:
    """The counts of one asker over thresholds, and both nulls' counts in a draw.

    The band goes from the neurons whose 95 % interval is wholly above to those whose interval reaches above.
    """
    rows = counts.filter(pl.col("asker") == asker).sort("threshold")
    at = rows["threshold"]
    with mpl.rc_context(STYLE):
        figure = canvas(3.6)
        axes, aside = one_panel(figure)
        low, high = (_from_one(rows[name]) for name in ("surely", "possibly"))
        axes.fill_between(
            at, low, high, color=REST, alpha=0.45, linewidth=0, label="95 %: wholly above – reaches above"
        )
        axes.plot(at, _from_one(rows["universal_heldout"]), "--", color=SECOND, linewidth=1.1, label="held-out rows")
        axes.plot(at, _shown(rows["universal"]), "o-", color=ACCENT, markersize=3, linewidth=1.4, label="universal")
        axes.plot(at, _shown(rows["rotated"]), "s:", color="#6b6b6b", markersize=3, label="random bases, a draw")
        if rows["untrained"].is_not_null().any():
            axes.plot(
                at, _shown(rows["untrained"]), "^:", color=THIRD, markersize=3, label="untrained networks, a draw"
            )
        log_counts(axes)
        axes.axvline(threshold, color="black", linewidth=0.8, linestyle=":")
        axes.set_ylim(LEAST, 2 * max([1, *rows["possibly"], *rows["universal"]]))
        axes.set_xlim(0, 1)
        title = f"{lettering(asker)}: the count is the threshold's"
        axes.set(xlabel="threshold of the excess correlation", ylabel="neurons above it", title=title)
        legend_aside(axes, aside)
    return figure


def _seen(counts: pl.DataFrame, asker: str, threshold: float) -> str:
    rows = counts.filter(pl.col("asker") == asker)
    at = rows.sort((pl.col("threshold") - threshold).abs(), maintain_order=True).row(0, named=True)
    untrained = at["untrained"]
    beside = "" if untrained is None else f", and {_how_many(untrained)} of untrained networks"
    return (
        f"Above {at['threshold']:g} here lie {at['universal']:,} neurons of {lettering(asker)}, as the paper counts. "
        f"The 95 % interval of {at['surely']:,} is wholly above, of {at['possibly']:,} it reaches above. "
        f"In a draw of random bases {_how_many(at['rotated'])} do{beside}."
    )


THRESHOLDS = FigureKind(
    name="thresholds",
    file="thresholds",
    title="The count of universal neurons at every threshold",
    axes=f"{UNIVERSAL} Neurons above each threshold, on a logarithmic scale. Band: those whose 95 % interval on "
    "held-out rows lies above it, to those whose interval reaches it. Dotted curves: chance.",
    look="The distance between the curve and those of chance at the threshold (the dotted upright line). A steep curve "
    "there: the count is the threshold's choice.",
    stage="the stage universality",
    needs=("thresholds",),
    inputs=lambda store, asker: (store.table("thresholds"), asker, store.config.threshold),
    draw=thresholds,
    seen=_seen,
    per="each",
    asked=True,
)


def _how_many(count: float) -> str:
    """A count, or the mean of several draws' counts, in a sentence."""
    return "none" if count == 0 else number(count, 0 if float(count).is_integer() else 1)


def _from_one(counts: pl.Series) -> list[float]:
    """Counts for a logarithmic axis: none lies at its end."""
    return [max(float(count), LEAST) for count in counts]


def _shown(counts: pl.Series) -> list[float]:
    """Counts without those that a logarithmic axis cannot show: none ends the line."""
    return [float(count) if count > 0 else float("nan") for count in counts]
