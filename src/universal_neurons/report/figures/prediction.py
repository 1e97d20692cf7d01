"""Figures 1 (e, f), 5, 23, 24: what neurons do to the next token's logits, and what those of one class do together.

Where no neuron has a role, those that come nearest to it are drawn, and the titles say so (`role_candidates`).
"""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from universal_neurons.labels import ROLES_BY_WEIGHTS
from universal_neurons.report.figures.illustration import EFFECT, ROLE, FigureKind
from universal_neurons.report.figures.style import (
    ACCENT,
    REST,
    SECOND,
    STYLE,
    THIRD,
    canvas,
    few_ticks,
    in_legend,
    legend_below,
    lettering,
    log_counts,
    title_over,
)
from universal_neurons.report.numbers import median, number
from universal_neurons.roles import effects_shown
from universal_neurons.units import unit_name

COLUMNS = 4  # of axes on a page
SPARSE, WIDE = 200, 4  # fewer values than this are drawn in bins so many times as wide
LONGEST = 34  # characters of a class's name
MOST_ENSEMBLES = 30
EXAMPLES = 10  # of each role on the page of Fig 23
KINDS = ("effect", "activation")  # of the histograms of an ensemble
SIGNS = {1: "raises", -1: "lowers", 0: "", None: ""}


def effects_examples(histograms: pl.DataFrame, title: str, per_role: int = 1) -> Figure | None:
    """Fig 5, 1 (e, f): logit effects inside and outside the class, the first neurons of every role; Fig 23: ten each.

    `histograms` as of `effect_histograms`, its neurons in the order of preference.  None where there is no neuron.
    """
    tables = [table for role in ROLES_BY_WEIGHTS for table in _by_neuron(histograms, role, "effect")[:per_role]]
    if not tables:
        return None
    across = min(len(tables), COLUMNS) if per_role > 1 else len(tables)
    down = -(-len(tables) // across)
    with mpl.rc_context(STYLE):
        figure = canvas(2.6 * down + 0.7)
        grid = figure.subplots(down, across, squeeze=False)
        for axes, table in zip(grid.ravel(), tables):
            first = table.row(0, named=True)
            _split(axes, table, "logit effect", first["class"], "other tokens")
            score = first["class_variance_reduction"]
            reduction = "" if score is None else f" ({score:.2f})"
            near = "nearest to " if first["nearest"] else ""
            axes.set_title(f"{_name(first)}: {near}{first['role']}\n{_class(first)}{reduction}", fontsize=8)
        for axes in grid.ravel()[len(tables) :]:
            axes.set_axis_off()
        for axes in grid[:, 0]:
            axes.set_ylabel("density")
        title_over(figure, title + _without_neurons(histograms))
    return figure


CLASSES = (
    f"{ROLE} {EFFECT} Prediction neurons raise a few tokens, suppression neurons lower a few, partition neurons raise "
    "some and lower others. A neuron's class is the set of tokens that explains most of its logit effects."
)


def _effects_seen(histograms: pl.DataFrame, *_: object) -> str:
    sentences = []
    for role in ROLES_BY_WEIGHTS:
        for table in _by_neuron(histograms, role, "effect")[:1]:
            first = table.row(0, named=True)
            score = number(first["class_variance_reduction"])
            how = "is nearest to the role" if first["nearest"] else "has the role"
            sentences.append(
                f"{_name(first)} {how} {role}: it {_class(first)}, which explains {score} of its logit effects."
            )
    return " ".join(sentences)


EFFECTS = FigureKind(
    name="logit_effects",
    file="role-effects",
    title="A neuron of each role by weights",
    axes=f"{CLASSES} Across: logit effects. Up: the density over tokens, on a logarithmic scale, within the class and "
    "outside it.",
    look="Lines that lie apart: the neuron is about its class. To the right it raises the class, to the left it "
    "lowers it.",
    stage="the stage roles",
    needs=("effects", "effect_histograms"),
    inputs=lambda store, model: (effects_shown(store, model), f"Logit effects of neurons of {lettering(model)}"),
    draw=effects_examples,
    seen=_effects_seen,
    per="one",
)


def _more_seen(histograms: pl.DataFrame, *_: object) -> str:
    tables = [table for role in ROLES_BY_WEIGHTS for table in _by_neuron(histograms, role, "effect")[:EXAMPLES]]
    rows = [table.row(0, named=True) for table in tables]
    near = sum(bool(row["nearest"]) for row in rows)
    scores = pl.Series([row["class_variance_reduction"] for row in rows], dtype=pl.Float64)
    return (
        f"Of the {len(rows)} neurons drawn here {len(rows) - near} have their role, {near} are nearest to it. Their "
        f"classes explain {number(scores.min())} to {number(scores.max())} of their logit effects, {median(scores)} "
        "by median."
    )


MORE_EFFECTS = FigureKind(
    name="more_logit_effects",
    file="role-effects-more",
    title="More neurons of each role by weights",
    axes=f"{CLASSES} A panel a neuron, up to ten of each role. Across: logit effects. Up: the density over tokens, "
    "within the class and outside it.",
    look="How often the lines lie apart. Classes that come again: several neurons do the same.",
    stage="the stage roles",
    needs=("effects", "effect_histograms"),
    inputs=lambda store, model: (effects_shown(store, model), f"More neurons of {lettering(model)}", EXAMPLES),
    draw=effects_examples,
    seen=_more_seen,
    per="one",
)


def same_class_figure(histograms: pl.DataFrame, title: str) -> Figure | None:
    """Fig 24: neurons of one class, logit effects by token (above), activations by the true next token (below).

    `histograms` as of `ensemble_histograms`; of several ensembles the first is drawn.  None where there is none.
    """
    if histograms.is_empty():
        return None
    role, name = histograms.row(0, named=True)["role"], histograms.row(0, named=True)["class"]
    one = histograms.filter((pl.col("role") == role) & (pl.col("class") == name))
    effects, activations = (_by_neuron(one, role, kind) for kind in ("effect", "activation"))
    with mpl.rc_context(STYLE):
        figure = canvas(5.2)
        grid = figure.subplots(2, len(effects), squeeze=False)
        for column, (effect, activation) in enumerate(zip(effects, activations)):
            _split(grid[0, column], effect, "logit effect", name, "other tokens", legend=not column)
            _split(grid[1, column], activation, "activation", f"before {name}", "before others", legend=not column)
            grid[0, column].set_title(_name(effect.row(0, named=True)), fontsize=8)
        for axes in grid[:, 0]:
            axes.set_ylabel("density")
        near = "neurons nearest to " if one["nearest"].any() else ""
        after = "" if near else " neurons"
        title_over(figure, f"{title}: {near}{role}{after} of {_short(name)}")
    return figure


def _same_class_seen(histograms: pl.DataFrame, _: str) -> str:
    role, name = histograms.row(0, named=True)["role"], histograms.row(0, named=True)["class"]
    one = histograms.filter((pl.col("role") == role) & (pl.col("class") == name))
    middle = (pl.col("low") + pl.col("high")) / 2
    mean = (pl.col("count") * middle).sum() / pl.col("count").sum()
    means = one.group_by("kind", "in_class").agg(mean=mean)
    of = {(kind, inside): value for kind, inside, value in means.iter_rows()}
    neurons = one.select("model", "layer", "neuron").n_unique()
    effects, activations = ([number(of.get((kind, side)), 3) for side in (True, False)] for kind in KINDS)
    return (
        f"The class of {neurons} neurons here is {_short(name)}. Their mean logit effect is {effects[0]} within it and "
        f"{effects[1]} outside. Their mean activation is {activations[0]} before it and {activations[1]} elsewhere."
    )


SAME_CLASS = FigureKind(
    name="same_class",
    file="role-same-class",
    title="Several neurons of one class",
    axes=f"{CLASSES} A column a neuron. Above: densities of its logit effects over tokens. Below: of its activations "
    "over positions, by whether the true next token is of the class.",
    look="Lines that part above and below: the neuron fires before tokens of the class and raises (or lowers) them.",
    stage="the stage roles",
    needs=("class_histograms",),
    inputs=lambda store, model: (
        store.table("class_histograms").filter(pl.col("model") == model),
        f"Neurons of one class of {lettering(model)}",
    ),
    draw=same_class_figure,
    seen=_same_class_seen,
    per="one",
)


def ensembles_figure(ensembles: pl.DataFrame, title: str) -> Figure | None:
    """Does the sum of an ensemble tell its class better than the best neuron, and how alike are its neurons (§5.1)?

    Rows of `ensembles_table`, the first 30; (a) |ρ| with the true next token's class, (b) the gain with its 95 %
    interval, (c) the mean correlation of two neurons' signals given the class, and of their errors.
    """
    shown = ensembles.filter(pl.col("gain").is_finite()).head(MOST_ENSEMBLES)
    if shown.is_empty():
        return None
    rows = np.arange(len(shown))[::-1]
    columns = {name: shown[name].cast(pl.Float64).to_numpy() for name in shown.columns if shown[name].dtype.is_float()}
    with mpl.rc_context(STYLE):
        figure = canvas(1.8 + 0.24 * len(shown))
        a, b, c = figure.subplots(1, 3, sharey=True)
        best, total = np.abs(columns["corr_best"]), np.abs(columns["corr_sum"])
        a.hlines(rows, best, total, color=REST, linewidth=2)
        a.plot(best, rows, "o", color=SECOND, markersize=4, label="best neuron")
        a.plot(total, rows, "o", color=ACCENT, markersize=4, label="sum")
        b.hlines(rows, columns["gain_low"], columns["gain_high"], color=REST, linewidth=3, label="95 %")
        b.plot(columns["gain"], rows, "o", color=ACCENT, markersize=4)
        b.axvline(0, color="black", linewidth=0.8, linestyle=":")
        c.plot(columns["activation_corr"], rows, "o", color=ACCENT, markersize=4, label="activations, given the class")
        c.plot(columns["error_corr"], rows, "|", color=THIRD, markersize=8, label="errors (share their target)")
        c.axvline(0, color="black", linewidth=0.8, linestyle=":")
        names = [f"{row['role']}: {_short(row['class'])} ({row['neurons']})" for row in shown.iter_rows(named=True)]
        a.set_yticks(rows, [f"{name}*" if near else name for name, near in zip(names, shown["nearest"])], fontsize=8)
        a.set(xlabel="|ρ| with the next token's class", title="(a) sum against best", ylim=(-0.6, len(shown) - 0.4))
        b.set(xlabel="gain in ρ", title="(b) gain of the sum")
        few_ticks(a, b, c)
        c.set(xlabel="mean ρ of two neurons", title="(c) how independent")
        figure.legend(fontsize=7, loc="outside lower center", ncols=5)
        marked = " (*: only nearest to the role)" if shown["nearest"].any() else ""
        title_over(figure, title + marked)
    return figure


def _ensembles_seen(ensembles: pl.DataFrame, _: str) -> str:
    shown = ensembles.filter(pl.col("gain").is_finite()).head(MOST_ENSEMBLES)
    better, worse = int((shown["gain_low"] > 0).sum()), int((shown["gain_high"] < 0).sum())
    return (
        f"Of {len(shown)} ensembles here the sum tells better, by its 95 % interval, than the best neuron in "
        f"{better}, and worse in {worse}. The median gain is {median(shown['gain'])}. "
        f"Two neurons' activations, given the class, have a median ρ of {median(shown['activation_corr'])}."
    )


ENSEMBLES = FigureKind(
    name="ensembles",
    file="role-ensembles",
    title="Do neurons of one class know more together?",
    axes=f"{CLASSES} A row an ensemble, neurons of one role and class. (a) |ρ| with whether the next token is of the "
    "class. (b) Gain of the sum over the best neuron. (c) ρ of two neurons.",
    look="(b) Bars that lie above 0: together they tell more than the best alone. (c) Circles near 0: each adds "
    "something of its own.",
    stage="the stage roles",
    needs=("ensembles",),
    inputs=lambda store, model: (
        store.table("ensembles").filter(pl.col("model") == model),
        f"Neurons of one class of {lettering(model)} together",
    ),
    draw=ensembles_figure,
    seen=_ensembles_seen,
    per="one",
)


def _by_neuron(histograms: pl.DataFrame, role: str, kind: str) -> list[pl.DataFrame]:
    """The histograms of each neuron of a role, in their order."""
    rows = histograms.filter((pl.col("role") == role) & (pl.col("kind") == kind))
    return rows.partition_by("model", "layer", "neuron", "class", maintain_order=True)


def _split(axes: Axes, table: pl.DataFrame, what: str, inside: str, outside: str, *, legend: bool = True) -> None:
    """The densities of one neuron's values inside and outside its class."""
    for side, label, colour in ((True, inside, ACCENT), (False, outside, REST)):
        rows = table.filter(pl.col("in_class") == side).sort("low")
        counts, low, high = (rows[name].to_numpy() for name in ("count", "low", "high"))
        if counts.sum():
            wide = WIDE if counts.sum() < SPARSE and len(counts) % WIDE == 0 else 1
            counts, edges = counts.reshape(-1, wide).sum(1), np.append(low, high[-1])[::wide]
            density = counts / counts.sum() / np.diff(edges)
            axes.stairs(density, edges, color=colour, label=in_legend(label), linewidth=1.2)
    log_counts(axes)
    axes.set_xlabel(what)
    if legend:
        legend_below(axes)


def _name(row: Mapping[str, Any]) -> str:
    return unit_name(row["layer"], row["neuron"], lettering(row["model"]))


def _short(name: str) -> str:
    letters = lettering(name, 2 * LONGEST)[:LONGEST]
    return f"{letters}…" if len(name) > LONGEST else letters


def _class(row: Mapping[str, Any]) -> str:
    return f"{SIGNS[row['class_sign']]} {_short(row['class'])}".strip()


def _without_neurons(histograms: pl.DataFrame) -> str:
    """Roles that no neuron has."""
    roles = histograms.filter(~pl.col("nearest").fill_null(False))["role"].to_list()
    missing = [role for role in ROLES_BY_WEIGHTS if role not in roles]
    near = ": the nearest are shown" if histograms["nearest"].any() else ""
    return f"\nno {' or '.join(missing)} neuron{near}" if missing else ""
