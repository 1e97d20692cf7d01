"""Figures 2, 11, 12, 13: correlations, their layers, convergence, intervals, subsets."""

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter
from scipy import stats

from universal_neurons.report.figures.illustration import EXCESS, UNIVERSAL, FigureKind
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
from universal_neurons.report.numbers import median, number, percent
from universal_neurons.report.other_threshold import as_made
from universal_neurons.report.summary import shown_neurons
from universal_neurons.storage import Store
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
    grid = np.full([int(layers[column].max()) + 1 for column in ("layer", "match_layer")], np.nan)  # type: ignore[arg-type]
    grid[mean["layer"].to_numpy(), mean["match_layer"].to_numpy()] = mean["fraction"].fill_null(0).to_numpy()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    image = axes.imshow(grid, cmap="viridis", vmin=0, origin="lower", aspect="auto")
    axes.spines[:].set_visible(False)
    axes.set(xlabel="layer of the match", ylabel="layer of the neuron")
    if grid.size <= 144:
        for row, column in np.argwhere(np.isfinite(grid)):  # a layer without units has none
            value = grid[row, column]
            colour = "black" if value > 0.6 * np.nanmax(grid) else "white"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=7)
    axes.figure.colorbar(image, ax=axes)


def _universality_seen(neurons: pl.DataFrame, layers: pl.DataFrame, asker: str, threshold: float) -> str:
    alive = _alive(neurons, asker)
    if alive.is_empty():
        return "No neuron here is alive."
    universal, every = int(alive["is_universal"].sum()), int((neurons["model"] == asker).sum())
    dead = f"; {every - len(alive):,} are dead" if every > len(alive) else ""
    same = layers.filter((pl.col("asker") == asker) & (pl.col("layer") == pl.col("match_layer")))
    same = same.join(alive.group_by("layer").len("alive"), on="layer").fill_nan(0)
    share = np.average(same["fraction"], weights=same["alive"])
    return (
        f"{universal:,} of {every:,} neurons ({percent(universal / every, 1)}{dead}) have an excess above "
        f"{threshold:g}, as the paper counts; the highest is {number(alive['excess_corr'].max())}. The mean "
        f"baseline reaches {number(alive['mean_baseline'].max())} at most. Of the best matches {percent(share)} lie in "
        "the layer of the same number."
    )


UNIVERSALITY = FigureKind(
    name="universality",
    file="universality",
    title="How well other models match each neuron",
    axes=f"{UNIVERSAL} (a) Neurons by best ρ, baseline and excess, on a logarithmic scale. (b) A point a neuron: its "
    "best ρ in the model that matches it best, and worst. (c) Layers: where best matches lie.",
    look="A tail of the excess to the right of the dotted threshold. Points near the diagonal: every model has the "
    "neuron. A bright diagonal: matches lie in the same layer.",
    stage="the stage universality",
    needs=("matches", "layers"),
    inputs=lambda store, asker: (store.neurons, store.layers, asker, store.config.threshold),
    draw=universality,
    seen=_universality_seen,
    per="each",
    asked=True,
)


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


def _densities_seen(neurons: Mapping[str, pl.DataFrame]) -> str:
    sentences = []
    for label, table in list(neurons.items())[:3]:
        alive = table.filter(~pl.col("dead"))
        parts = [f"{NAMES[column]} {median(alive[column])}" for column in COLOURS]
        sentences.append(f"Medians of {lettering(label)}: {', '.join(parts)}.")
    more = len(neurons) - len(sentences)
    return " ".join(sentences) + (f" {more} more are drawn." if more else "")


DENSITIES = FigureKind(
    name="densities",
    file="densities",
    title="Densities of the best, baseline and excess correlation",
    axes=f"{EXCESS} The share of neurons at each value, on a logarithmic scale, a line for each model asked about.",
    look="A best ρ that lies to the right of its baseline. Lines that lie on one another: it matters little which "
    "model is asked about.",
    stage="the stage universality",
    needs=("matches",),
    inputs=lambda store, _: (by_asker(store),),
    draw=densities,
    seen=_densities_seen,
    asked=True,
)


def by_asker(store: Store, prefix: str = "") -> dict[str, pl.DataFrame]:
    """The neurons of every model that was asked about."""
    return {prefix + asker: store.neurons.filter(pl.col("model") == asker) for asker in store.askers}


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
        b.set(ylabel=f"neurons with excess > {threshold:g}", title="Universal, as the paper counts")
        c.set(ylabel="%", title="Best matches that are the final ones")
        b.set_ylim(bottom=0)
        c.set_ylim(0, 102)
        if table["asker"].n_unique() <= 3:
            a.set_ylim(0, 1)
            legend_below(a)
        if table["asker"].n_unique() > 1:
            legend_below(b)
    return figure


def _convergence_seen(table: pl.DataFrame, threshold: float) -> str:
    rows = table.filter(pl.col("asker") == table["asker"][0]).sort("tokens").to_dicts()
    if len(rows) < 2:
        tokens = sum(row["tokens"] for row in rows)
        return f"The corpus is one shard, {tokens:,} tokens: too short to see whether more would change the answer."
    before, last = rows[-2], rows[-1]
    change = number(last["corr_median"] - before["corr_median"], 3)
    return (
        f"From {before['tokens']:,} to {last['tokens']:,} tokens the median best ρ changed by {change}. The neurons "
        f"with excess > {threshold:g} went from {before['universal']} to {last['universal']}. "
        f"{percent(before['same_match'])} of the best matches were already the final ones."
    )


CONVERGENCE = FigureKind(
    name="convergence",
    file="convergence",
    title="Was the corpus large enough?",
    axes=f"{UNIVERSAL} After so many tokens: the best ρ over neurons, how many are universal, and how many best "
    "matches are those of the end. Every point uses two draws of the baseline.",
    look="Curves that are level at their right end: more text would change little.",
    stage="the stage universality",
    needs=("convergence",),
    inputs=lambda store, _: (store.convergence, as_made(store).config.threshold),
    draw=convergence,
    seen=_convergence_seen,
    asked=True,
)


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


def _intervals_seen(shown: pl.DataFrame, threshold: float, _: str) -> str:
    if shown.is_empty():
        return "No neuron here is alive."
    low, high = (shown[f"excess_{end}"].fill_nan(None) for end in ("low", "high"))
    above, below = int((low > threshold).sum()), int((high <= threshold).sum())
    lost = number((shown["excess_corr"] - shown["excess_heldout"]).fill_nan(None).mean())
    return (
        f"Of {len(shown)} intervals here {above} lie above {threshold:g}, {below} below, and "
        f"{len(shown) - above - below} reach across it or are unknown. On held-out rows the excess is {lost} lower on "
        "average."
    )


INTERVALS = FigureKind(
    name="intervals",
    file="intervals",
    title="How sure the excess of the best neurons is",
    axes=f"{UNIVERSAL} A row a neuron. Circle: the excess on the rows that chose its matches. Stroke and bar: the "
    "excess on rows held out from choosing, and its 95 % interval. Dotted: the threshold.",
    look="Bars that lie wholly to the right of the dotted line: these are universal, whatever the rows. Circles far to "
    "the right of their bars: choosing was optimistic.",
    stage="the stage universality",
    needs=("matches",),
    inputs=lambda store, asker: _intervals_inputs(store, asker),
    draw=intervals,
    seen=_intervals_seen,
    per="each",
    asked=True,
)


def _intervals_inputs(store: Store, asker: str) -> tuple[pl.DataFrame, float, str]:
    shown, title = shown_neurons(store, asker)
    return shown, store.config.threshold, title


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


def _subsets_seen(subsets: pl.DataFrame, threshold: float) -> str:
    excess = pl.col("excess_corr").fill_nan(None)
    counted = subsets.group_by("subset", maintain_order=True).agg(
        universal=(excess > threshold).sum(), median=excess.median()
    )
    ranked = counted.sort("universal", descending=True, maintain_order=True)
    most, fewest = ranked.row(0, named=True), ranked.row(-1, named=True)
    return (
        f"{most['universal']:,} neurons pass within {lettering(most['subset'])}, the most, and "
        f"{fewest['universal']:,} within {lettering(fewest['subset'])}, the fewest. Median excesses lie between "
        f"{number(counted['median'].min())} and {number(counted['median'].max())}."
    )


SUBSETS = FigureKind(
    name="subsets",
    file="subsets",
    title="Excess correlation within subsets of the text",
    axes=f"{UNIVERSAL} A row a subset of the text. Box: the quartiles of the excess over neurons. Whiskers: 1 and 99 "
    "%. Dotted: the threshold.",
    look="Boxes that lie alike: universality is not of one kind of text.",
    stage="uneurons run --subset",
    needs=("subsets",),
    inputs=lambda store, _: (store.subsets, store.config.threshold),
    draw=by_subset,
    seen=_subsets_seen,
    asked=True,
)


def _alive(neurons: pl.DataFrame, asker: str) -> pl.DataFrame:
    return neurons.filter((pl.col("model") == asker) & ~pl.col("dead") & pl.col("excess_corr").is_finite())
