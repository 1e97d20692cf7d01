"""Figures 3, 9, 10, 14: what universal neurons look like, in activations and weights."""

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy import stats

from universal_neurons.report.figures.illustration import UNIVERSAL, FigureKind
from universal_neurons.report.figures.style import (
    ACCENT,
    REST,
    SECOND,
    STYLE,
    THIRD,
    PowersOfTen,
    canvas,
    highlighted,
    in_legend,
    legend_below,
    lettering,
    log_counts,
    one_panel,
    title_over,
)
from universal_neurons.report.numbers import median, number, percent
from universal_neurons.statistics import RANKED
from universal_neurons.storage import Store

METRICS = {
    "sparsity": "activation\nfrequency",
    "mean": "mean",
    "skew": "skew",
    "kurt": "kurtosis",
    "input_bias": "input bias",
    "in_out_sim": "cos(w_in, w_out)",
    "l2_penalty": "L2 penalty",
    "vocab_kurt": "kurtosis of\ncos(w_out, W_U)",
}
BY_LAYER = ("sparsity", "skew", "kurt", "input_bias", "in_out_sim", "l2_penalty", "vocab_kurt")
SINGLED = "Universal neurons are singled out, or where none is, the top 1 % by excess."
LETTERS = 4  # nested boxes of a letter-value plot: 50, 75, 87.5, 93.75 %


def percentiles(models: Mapping[str, pl.DataFrame]) -> Figure | None:
    """Fig 3: percentiles within their own layer of the neurons singled out, a letter-value plot each."""
    chosen = {name: (table, picked) for name, table in models.items() if (picked := highlighted(table)) is not None}
    metrics = [m for m in RANKED if all(t[f"{m}_percentile"].is_not_null().any() for t in models.values())]
    if not chosen or not metrics:
        return None
    with mpl.rc_context(STYLE):
        figure = canvas(3.6)
        axes = figure.subplots()
        colours = [ACCENT, SECOND, THIRD, "#6b7f82", "#8e5572"]
        width = 0.8 / len(chosen)
        for place, (name, (table, (mask, kind))) in enumerate(chosen.items()):
            colour = colours[place % len(colours)]
            for column, metric in enumerate(metrics):
                values = table.filter(mask)[f"{metric}_percentile"].fill_nan(None).drop_nulls().to_numpy()
                if len(values):
                    _letter_values(axes, column + (place - (len(chosen) - 1) / 2) * width, values, width, colour)
            axes.plot([], [], "s", color=colour, label=f"{in_legend(name)}: {int(mask.sum())} {kind}")
        axes.axhline(50, color="black", linewidth=0.6, linestyle=":")
        axes.set_xticks(range(len(metrics)), [METRICS[m] for m in metrics])
        axes.set(ylabel="percentile within the layer", ylim=(0, 100))
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _percentiles_seen(models: Mapping[str, pl.DataFrame]) -> str:
    name, table = next((name, table) for name, table in models.items() if highlighted(table) is not None)
    mask, kind = highlighted(table) or (np.ones(len(table), bool), "")
    middle = {}
    for metric in RANKED:
        values = table.filter(mask)[f"{metric}_percentile"].fill_nan(None).drop_nulls().to_numpy()
        if len(values):
            middle[METRICS[metric].replace("\n", " ")] = float(np.median(values))
    far = sorted(middle.items(), key=lambda item: -abs(item[1] - 50))[:2]
    places = " and ".join(f"{value:.0f} in {metric}" for metric, value in far)
    farthest = f"Their medians lie farthest from 50 at {places}." if far else "They have no percentile."
    return f"Neurons of {lettering(name)} drawn here: {int(mask.sum())}, {kind}. {farthest}"


PERCENTILES = FigureKind(
    name="percentiles",
    file="percentiles",
    title="Where universal neurons stand among those of their layer",
    axes=f"{UNIVERSAL} {SINGLED} Each statistic as the percentile within the neuron's own layer. Line: the median. "
    "Nested boxes: 50, 75, 87.5 and 93.75 % of the neurons.",
    look="Medians far from 50 (dotted): in these statistics universal neurons are not like any other.",
    stage="the stages universality, weights and statistics",
    needs=("matches",),
    inputs=lambda store, _: (of_models(store),),
    draw=percentiles,
    seen=_percentiles_seen,
    asked=True,
)


def of_models(store: Store) -> dict[str, pl.DataFrame]:
    """The neurons of the models that were asked about (else of all)."""
    names = store.askers or store.models
    return {name: store.neurons.filter(pl.col("model") == name) for name in names}


def _of_model(store: Store, model: str) -> tuple[pl.DataFrame, str]:
    return store.neurons.filter(pl.col("model") == model), model


def _letter_values(axes: Axes, centre: float, values: np.ndarray, width: float, colour: str) -> None:
    for letter in range(LETTERS, 0, -1):
        tail = 0.5 ** (letter + 1)
        if letter > 1 and len(values) * tail < 1:
            continue
        low, high = np.quantile(values, [tail, 1 - tail])
        wide = width * 0.9 * (1 - (letter - 1) / LETTERS)
        box = Rectangle((centre - wide / 2, low), wide, high - low, color=colour, alpha=0.25, linewidth=0)
        axes.add_patch(box)
    median = float(np.median(values))
    axes.plot([centre - width * 0.42, centre + width * 0.42], [median, median], color="black", linewidth=1)


def sparsity_against_cosine(neurons: pl.DataFrame, title: str) -> Figure | None:
    """Fig 9: activation frequency against cos(w_in, w_out), a 2-D histogram with a straight fit."""
    both = neurons.select("sparsity", "in_out_sim").drop_nulls()
    both = both.filter(pl.all_horizontal(pl.all().is_finite()))
    if len(both) < 3:
        return None
    x, y = both["in_out_sim"].to_numpy(), both["sparsity"].to_numpy()
    with mpl.rc_context(STYLE):
        figure = canvas(3.8)
        axes, _ = one_panel(figure)
        image = axes.hexbin(x, y, gridsize=(60, 20), bins="log", cmap="viridis", mincnt=1, linewidths=0.1)
        figure.colorbar(image, ax=axes, label="neurons", format=PowersOfTen()).minorformatter = PowersOfTen()
        if np.ptp(x) > 0 and np.ptp(y) > 0:
            fit = stats.linregress(x, y)
            ends = np.array([x.min(), x.max()])
            axes.plot(ends, fit.intercept + fit.slope * ends, color=ACCENT, label=f"r = {fit.rvalue:.2f}")
            legend_below(axes)
        axes.set(
            xlabel="cos(w_in, w_out)",
            ylabel="activation frequency",
            title=lettering(title),
            ylim=(0, max(y.max(), 1e-3)),
        )
    return figure


def _sparsity_seen(neurons: pl.DataFrame, _: str) -> str:
    both = neurons.select("sparsity", "in_out_sim").drop_nulls().filter(pl.all_horizontal(pl.all().is_finite()))
    x, y = both["in_out_sim"].to_numpy(), both["sparsity"].to_numpy()
    fit = number(float(np.corrcoef(x, y)[0, 1])) if np.ptp(x) > 0 and np.ptp(y) > 0 else "–"
    return (
        f"Over {len(both):,} neurons here r is {fit}. The median neuron is active on {percent(float(np.median(y)))} "
        f"of the positions and has a cosine of {median(x)}."
    )


SPARSITY = FigureKind(
    name="sparsity",
    file="sparsity",
    title="How often neurons are active, by the cosine of their weights",
    axes="Across: the cosine of what a neuron reads (w_in) and writes (w_out). Up: activation frequency, the share of "
    "positions on which it is active. Colour: neurons. Line: a straight fit.",
    look="A slope. Neurons at a cosine near −1 take away what they read, those near 1 add to it.",
    stage="the stages weights and statistics",
    needs=("neurons",),
    inputs=_of_model,
    draw=sparsity_against_cosine,
    seen=_sparsity_seen,
    per="each",
)


def nearest(neurons: pl.DataFrame, title: str) -> Figure | None:
    """Fig 10: the highest and lowest cosine with another neuron of the model, and the highest ρ in its layer."""
    columns = {
        "w_in": ("in_cos_max", "in_cos_min", "cosine of w_in with another neuron's"),
        "w_out": ("out_cos_max", "out_cos_min", "cosine of w_out with another neuron's"),
        "activation": ("layer_corr_max", None, "highest ρ with a neuron of its layer"),
    }
    drawn = {name: entry for name, entry in columns.items() if neurons[entry[0]].is_not_null().any()}
    if not drawn:
        return None
    groups = _groups(neurons)
    with mpl.rc_context(STYLE):
        figure = canvas(3.2)
        grid = figure.subplots(1, len(drawn), squeeze=False)[0]
        for axes, (name, (high, low, label)) in zip(grid, drawn.items()):
            bins = np.linspace(-1 if low else 0, 1, 81)
            for group, (table, colour) in groups.items():
                for column in filter(None, (high, low)):
                    values = table[column].fill_nan(None).drop_nulls().to_numpy()
                    if len(values):
                        shown = group if column == high else None
                        weights = np.full(len(values), 1 / len(values))
                        axes.hist(values, bins, weights=weights, histtype="step", color=colour, label=shown)
            log_counts(axes)
            axes.set(xlabel=label, title=name)
        grid[0].set_ylabel("share of neurons")
        legend_below(grid[0])
        title_over(figure, lettering(title))
    return figure


def _neighbours_seen(neurons: pl.DataFrame, _: str) -> str:
    names = {"in_cos_max": "w_in", "out_cos_max": "w_out", "layer_corr_max": "ρ"}
    sentences = []
    for group, (table, _colour) in _groups(neurons).items():
        parts = [f"{name} {median(table[c])}" for c, name in names.items() if table[c].is_not_null().any()]
        sentences.append(f"Median highest values of {group}: {', '.join(parts)}.")
    return " ".join(sentences)


NEIGHBOURS = FigureKind(
    name="neighbours",
    file="nearest",
    title="How alike a neuron is to others of its own model",
    axes=f"{UNIVERSAL} {SINGLED} Of every neuron the highest and the lowest cosine of w_in, and of w_out, with "
    "another neuron of the model, and the highest ρ in its layer. Up: the share of neurons.",
    look="Neurons at 1 or −1: the model has them twice, or has their opposite.",
    stage="the stage weights",
    needs=("neurons",),
    inputs=_of_model,
    draw=nearest,
    seen=_neighbours_seen,
    per="each",
)


def by_layer(neurons: pl.DataFrame, title: str) -> Figure | None:
    """Fig 14: metrics by layer, the neurons singled out against the rest: medians with quartiles."""
    metrics = [metric for metric in BY_LAYER if neurons[metric].is_not_null().any()]
    if not metrics:
        return None
    groups = _groups(neurons)
    with mpl.rc_context(STYLE):
        figure = canvas(5.2)
        grid = figure.subplots(2, 4).ravel()
        for axes, metric in zip(grid, metrics):
            for place, (name, (table, colour)) in enumerate(groups.items()):
                finite = table.filter(pl.col(metric).is_finite())
                quartiles = finite.group_by("layer").agg(
                    median=pl.col(metric).median(),
                    low=pl.col(metric).quantile(0.25, "linear"),
                    high=pl.col(metric).quantile(0.75, "linear"),
                )
                rows = quartiles.sort("layer")
                x = rows["layer"].to_numpy() + 0.12 * place
                middle = rows["median"].to_numpy()
                reach = np.stack([middle - rows["low"].to_numpy(), rows["high"].to_numpy() - middle])
                axes.errorbar(x, middle, reach, fmt="o", markersize=3, color=colour, linewidth=1, label=name)
            axes.set(title=METRICS[metric].replace("\n", " "), xlabel="layer")
            axes.xaxis.get_major_locator().set_params(integer=True)
        for axes in grid[len(metrics) :]:
            axes.set_axis_off()
        legend_below(grid[0])
        title_over(figure, f"{lettering(title)}: median and quartiles by layer")
    return figure


def _layers_seen(neurons: pl.DataFrame, _: str) -> str:
    metrics = [metric for metric in BY_LAYER if neurons[metric].is_not_null().any()][:3]
    sentences = []
    for group, (table, _colour) in _groups(neurons).items():
        parts = [f"{METRICS[metric]} {median(table[metric])}".replace("\n", " ") for metric in metrics]
        sentences.append(f"Medians of {group}, over all layers: {', '.join(parts)}.")
    return " ".join(sentences)


LAYERS = FigureKind(
    name="by_layer",
    file="layers",
    title="What neurons look like in each layer",
    axes=f"{UNIVERSAL} {SINGLED} Up: a statistic. Across: the layer. Dot: the median over neurons. Bar: the quartiles.",
    look="Layers where the two colours part: there universal neurons differ from the others.",
    stage="the stages weights and statistics",
    needs=("neurons",),
    inputs=_of_model,
    draw=by_layer,
    seen=_layers_seen,
    per="each",
)


def _groups(neurons: pl.DataFrame) -> dict[str, tuple[pl.DataFrame, str]]:
    """The rest and the neurons singled out, with their colours; all in one where universality was not asked about."""
    picked = highlighted(neurons)
    if picked is None:
        return {"all neurons": (neurons, SECOND)}
    mask, name = picked
    return {"other": (neurons.filter(~mask), REST), name: (neurons.filter(mask), ACCENT)}
