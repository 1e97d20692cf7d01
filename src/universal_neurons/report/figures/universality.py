"""Figures 2, 11, 12, 13: correlations, their layers, convergence, intervals, subsets."""

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter
from scipy import stats

from universal_neurons.report.figures.style import (
    STYLE,
    canvas,
    in_legend,
    legend_aside,
    legend_below,
    lettering,
    log_counts,
    one_panel,
)
from universal_neurons.units import unit_name

COLOURS = {"mean_corr": "#1f6f8b", "mean_baseline": "#b0a18f", "excess_corr": "#c8553d"}
LONGEST, LONGEST_TITLE = 32, 120  # characters of a name that stands beside others, and of a title
MOST_SUBSETS = 100  # more would be an image too tall to draw
NAMES = {"mean_corr": "best ρ", "mean_baseline": "baseline", "excess_corr": "excess"}


def universality(neurons: pl.DataFrame, layers: pl.DataFrame, asker: str, threshold: float) -> Figure:
    """Fig 2, 12, 13: (a) log-count histograms, (b) min against max over models, (c) layer × layer heat map."""
    alive = _alive(neurons, asker)
    with mpl.rc_context(STYLE):
        figure = canvas(3.6)
        a, b, c = figure.subplots(1, 3)
        bins = np.linspace(min([0.0, *alive["excess_corr"]]), 1, 81)
        for column, colour in COLOURS.items():
            a.hist(alive[column], bins, histtype="step", color=colour, label=NAMES[column], linewidth=1.4)
        log_counts(a)
        a.axvline(threshold, color="black", linewidth=0.8, linestyle=":", label=f"universal: excess > {threshold:g}")
        a.set(
            xlabel="correlation (mean over models)",
            ylabel="neurons",
            title=f"(a) {lettering(asker)}: {len(alive):,} neurons",
        )
        legend_below(a)
        marked = alive["is_universal"].to_numpy()
        name = "universal"
        if len(alive) and not marked.any():
            marked = (alive["excess_corr"] >= alive["excess_corr"].quantile(0.99)).to_numpy()
            name = "top 1 % (none universal)"
        for chosen, colour, label in ((~marked, "#9db4c0", "other"), (marked, "#c8553d", name)):
            points = alive.filter(chosen)
            b.scatter(
                points["max_corr"], points["min_corr"], s=5, color=colour, linewidths=0, rasterized=True, label=label
            )
        b.plot([0, 1], [0, 1], color="black", linewidth=0.6)
        b.set(xlabel="max over models of the best ρ", ylabel="min over models of the best ρ", title="(b)")
        legend_below(b, markerscale=3)
        _heat_map(c, layers.filter(pl.col("asker") == asker))
        c.set_title("(c) % of best matches by layer")
    return figure


def _heat_map(axes: Axes, layers: pl.DataFrame) -> None:
    mean = layers.group_by("layer", "match_layer").agg(pl.col("fraction").fill_nan(None).mean() * 100)
    grid = np.zeros((layers["layer"].n_unique(), layers["match_layer"].n_unique()))
    grid[mean["layer"].to_numpy(), mean["match_layer"].to_numpy()] = mean["fraction"].fill_null(0).to_numpy()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    image = axes.imshow(grid, cmap="viridis", vmin=0, origin="lower", aspect="auto")
    axes.spines[:].set_visible(False)
    axes.set(xlabel="layer of the match", ylabel="layer of the neuron")
    if grid.size <= 144:
        for (row, column), value in np.ndenumerate(grid):
            colour = "black" if value > 0.6 * grid.max() else "white"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=7)
    axes.figure.colorbar(image, ax=axes)


def densities(neurons: Mapping[str, pl.DataFrame]) -> Figure:
    """Fig 11: densities of the best, baseline and excess correlation, a line for each reference model."""
    with mpl.rc_context(STYLE):
        figure = canvas(3.2)
        for axes, column in zip(figure.subplots(1, 3), COLOURS):
            highest = 1.0
            for label, table in neurons.items():
                values = table.filter(~pl.col("dead"))[column].drop_nulls().drop_nans().to_numpy()
                if len(values) > 2 and np.ptp(values) > 0:
                    grid = np.linspace(min(0.0, values.min()), 1, 400)
                    density = stats.gaussian_kde(values)(grid)
                    highest = max(highest, density.max())
                    axes.plot(grid, density, label=in_legend(label), linewidth=1.2)
            axes.set(xlabel=f"{NAMES[column]} (mean over models)", ylabel="density")
            log_counts(axes)
            axes.set_ylim(1e-3, 2 * highest)
        if axes.lines:
            legend_below(axes)
    return figure


def convergence(table: pl.DataFrame, threshold: float) -> Figure:
    """Was the corpus large enough?  Best ρ, universal count and agreement with the last answer by tokens."""
    with mpl.rc_context(STYLE):
        figure = canvas(3.2)
        a, b, c = figure.subplots(1, 3)
        for (asker,), rows in table.sort("tokens").group_by(["asker"], maintain_order=True):
            name = in_legend(asker, LONGEST)
            lines = a.plot(rows["tokens"], rows["corr_median"], "o-", markersize=3, label=f"{name}: median")
            for column, style in (("corr_p90", "--"), ("corr_p99", ":")):
                a.plot(rows["tokens"], rows[column], style, color=lines[0].get_color(), label=f"{name}: {column[5:]}")
            b.plot(rows["tokens"], rows["universal"], "o-", markersize=3, label=name)
            c.plot(rows["tokens"], 100 * rows["same_match"], "o-", markersize=3)
        for axes in (a, b, c):
            axes.set(xscale="log", xlabel="tokens")
            axes.xaxis.set_major_formatter(EngFormatter(places=0, sep=""))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xticks(_few(sorted(table["tokens"].unique().to_list())))
        a.set(ylabel="best ρ (mean over models)", title="Best correlation")
        b.set(ylabel=f"neurons with excess > {threshold:g}", title="Universal count")
        c.set(ylabel="%", title="Best matches that are the final ones")
        b.set_ylim(bottom=0)
        c.set_ylim(0, 102)
        if table["asker"].n_unique() <= 3:
            a.set_ylim(0, 1)
            legend_below(a)
        if table["asker"].n_unique() > 1:
            legend_below(b)
    return figure


def _few(ticks: list[int]) -> list[int]:
    """Ticks that are at least a factor 2 apart, the last one kept."""
    kept = ticks[-1:]
    for tick in reversed(ticks[:-1]):
        if tick * 2 <= kept[-1]:
            kept.append(tick)
    return kept


def intervals(shown: pl.DataFrame, threshold: float, title: str) -> Figure:
    """The excess of some neurons: as chosen, on held-out rows, and its 95 % interval."""
    with mpl.rc_context(STYLE):
        figure = canvas(1.4 + 0.2 * len(shown))
        axes, aside = one_panel(figure)
        rows = np.arange(len(shown))[::-1]
        low, high = shown["excess_low"].to_numpy(), shown["excess_high"].to_numpy()
        axes.hlines(rows, low, high, color="#9db4c0", linewidth=3, label="95 % (held out)")
        axes.plot(shown["excess_heldout"], rows, "|", color="#1f6f8b", markersize=8, label="held-out rows")
        axes.plot(shown["excess_corr"], rows, "o", color="#c8553d", markersize=4, label="rows that chose it")
        axes.axvline(threshold, color="black", linewidth=0.8, linestyle=":")
        axes.set_yticks(rows, [unit_name(row["layer"], row["neuron"]) for row in shown.iter_rows(named=True)])
        axes.set(xlabel="excess correlation", title=lettering(title, LONGEST_TITLE))
        axes.set_ylim(-0.6, len(shown) - 0.4)
        legend_aside(axes, aside)
    return figure


def by_subset(subsets: pl.DataFrame, threshold: float) -> Figure:
    """Excess correlation within each subset: its quartiles, 1st and 99th percentile, and the universal count."""
    with mpl.rc_context(STYLE):
        every = subsets["subset"].unique(maintain_order=True).to_list()
        names = every[:MOST_SUBSETS]
        figure = canvas(1.4 + 0.3 * len(names))
        axes = figure.subplots()
        values = [
            subsets.filter((pl.col("subset") == name) & ~pl.col("excess_corr").is_nan())["excess_corr"].to_numpy()
            for name in names
        ]
        axes.boxplot(values, whis=(1, 99), showfliers=False, orientation="horizontal")
        counts = [int((excess > threshold).sum()) for excess in values]
        labels = [f"{lettering(name, LONGEST)}: {n} universal" for name, n in zip(names, counts)]
        axes.set_yticks(range(1, len(names) + 1), labels)
        axes.invert_yaxis()
        axes.axvline(threshold, color="black", linewidth=0.8, linestyle=":")
        of_many = f", the first {MOST_SUBSETS} of {len(every):,}" if len(every) > MOST_SUBSETS else ""
        axes.set(xlabel="excess correlation", title=f"Within subsets (whiskers: 1 and 99 %){of_many}")
    return figure


def _alive(neurons: pl.DataFrame, asker: str) -> pl.DataFrame:
    return neurons.filter((pl.col("model") == asker) & ~pl.col("dead") & pl.col("excess_corr").is_finite())
