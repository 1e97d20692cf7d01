"""Figures 6 and 22: in which layers prediction and suppression neurons lie."""

from textwrap import fill

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from scipy import stats

from universal_neurons.report.figures.illustration import ROLE, FigureKind
from universal_neurons.report.figures.style import (
    STYLE,
    canvas,
    few_ticks,
    legend_below,
    lettering,
    log_counts,
    title_over,
)
from universal_neurons.report.numbers import median
from universal_neurons.roles import with_oriented_skew

PERCENTILES = (5, 25, 50, 75, 95, 99)
NEAREST_SHARE = 0.01  # of the last third's neurons, where none is above the threshold
LATE = 3  # the last third of the layers
FEWEST = 3  # neurons for a density


def role_by_layer(neurons: pl.DataFrame, threshold: float, title: str) -> Figure | None:
    """Fig 6, 22: percentiles of kurtosis and skew of cos(w_out, W_U) by layer; the skew where the kurtosis is high.

    Percentiles are means over the models, with their range; densities are of all models' neurons whose kurtosis is
    above `threshold`, a line for each layer of the last third.  None where there are no weights.
    """
    finite = neurons.select("model", "layer", "vocab_kurt", "vocab_skew").drop_nulls()
    finite = finite.filter(pl.col("vocab_kurt").is_finite() & pl.col("vocab_skew").is_finite())
    if finite.is_empty():
        return None
    with mpl.rc_context(STYLE):
        figure = canvas(3.8)
        a, b, c = figure.subplots(1, 3)
        _percentiles(a, finite, "vocab_kurt")
        _percentiles(b, finite, "vocab_skew")
        a.axhline(threshold, color="black", linewidth=0.8, linestyle=":")
        log_counts(a)
        a.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        b.axhline(0, color="black", linewidth=0.8, linestyle=":")
        a.set(ylabel="kurtosis", title=f"(a) kurtosis of cos(w_out, W_U) (dotted: {threshold:g})")
        b.set(ylabel="skew", title="(b) skew of cos(w_out, W_U)")
        legend_below(a, title="percentile", title_fontsize=7)
        _late_skew(c, finite, threshold)
        count = finite["model"].n_unique()
        spread = f"mean and range of {count} models" if count > 1 else lettering(finite["model"][0])
        title_over(figure, f"{title} ({spread})")
    return figure


def _percentiles(axes: Axes, neurons: pl.DataFrame, metric: str) -> None:
    colours = mpl.colormaps["viridis"](np.linspace(0.9, 0, len(PERCENTILES)))
    for percent, colour in zip(PERCENTILES, colours):
        by_model = neurons.group_by("model", "layer").agg(pl.col(metric).quantile(percent / 100, "linear"))
        value = pl.col(metric)
        rows = by_model.group_by("layer").agg(mean=value.mean(), low=value.min(), high=value.max()).sort("layer")
        axes.fill_between(rows["layer"], rows["low"], rows["high"], color=colour, alpha=0.25, linewidth=0)
        axes.plot(rows["layer"], rows["mean"], "o-", color=colour, markersize=2.5, linewidth=1, label=f"{percent} %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer")


def _late_skew(axes: Axes, neurons: pl.DataFrame, threshold: float) -> None:
    """The density of the skew in each of the last layers, of neurons whose kurtosis is above the threshold."""
    n_layers = int(neurons["layer"].max()) + 1  # type: ignore[arg-type]
    models = neurons["model"].n_unique()
    layers = range(n_layers - max(1, n_layers // LATE), n_layers)
    late = neurons.filter(pl.col("layer").is_in(list(layers)))
    chosen = late.filter(pl.col("vocab_kurt") > threshold)
    choice = f"kurtosis > {threshold:g}"
    if chosen.is_empty():
        chosen = late.sort("vocab_kurt", descending=True).head(max(FEWEST, round(NEAREST_SHARE * len(late))))
        choice = f"none has {choice}: the {len(chosen)} highest"
    bound = float(np.abs(chosen["vocab_skew"].to_numpy()).max()) * 1.4 + 1e-9
    grid = np.linspace(-bound, bound, 400)
    counts = []
    for layer, colour in zip(layers, mpl.colormaps["viridis"](np.linspace(0.85, 0, len(layers)))):
        skew = chosen.filter(pl.col("layer") == layer)["vocab_skew"].to_numpy()
        counts.append(f"{len(skew) / models:.1f}".removesuffix(".0"))
        if len(skew) >= FEWEST and np.ptp(skew) > 0:
            axes.plot(grid, stats.gaussian_kde(skew)(grid), color=colour, linewidth=1.2, label=f"layer {layer}")
        elif len(skew):
            axes.plot(skew, np.zeros(len(skew)), "|", color=colour, markersize=12, label=f"layer {layer}")
    axes.axvline(0, color="black", linewidth=0.8, linestyle=":")
    few_ticks(axes)
    axes.set(xlabel="skew", ylabel="density", ylim=(0, None))
    what = "neurons a model" if models > 1 else "neurons"
    axes.set_title(fill(f"(c) skew, {choice}: {' / '.join(counts)} {what}", 48), fontsize=9)
    legend_below(axes)


def _by_layer_seen(neurons: pl.DataFrame, threshold: float, _: str) -> str:
    finite = neurons.filter(pl.col("vocab_kurt").is_finite() & pl.col("vocab_skew").is_finite())
    peaked = finite.filter(pl.col("vocab_kurt") > threshold)
    first, last = (
        finite.filter(pl.col("layer") == getattr(finite["layer"], end)())["vocab_kurt"] for end in ("min", "max")
    )
    return (
        f"{len(peaked):,} of {len(finite):,} neurons of all models have a kurtosis above {threshold:g}, "
        f"{int((peaked['vocab_skew'] > 0).sum()):,} of them with skew above 0. The median kurtosis is {median(first)} "
        f"in the first layer and {median(last)} in the last."
    )


BY_LAYER = FigureKind(
    name="roles_by_layer",
    file="role-roles-by-layer",
    title="Where prediction and suppression neurons lie",
    axes=f"{ROLE} Of the cosine of w_out with each token's unembedding (W_U): kurtosis, large where few tokens stand "
    "out, and skew, its sign says which way. Lines: percentiles over neurons.",
    look="Kurtosis above the dotted threshold in late layers, with a skew that turns from above 0 (prediction) to "
    "below (suppression).",
    stage="the stage roles",
    needs=("effects", "interventions"),
    inputs=lambda store, _: (
        with_oriented_skew(store),
        store.config.roles.kurtosis,
        "cos(w_out, W_U) over the vocabulary",
    ),
    draw=role_by_layer,
    seen=_by_layer_seen,
)
