"""Figures 7 and 25, total against direct effects, and functional universality."""

from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from universal_neurons.report.figures.illustration import ABLATION, ROLE, UNIVERSAL, FigureKind
from universal_neurons.report.figures.style import (
    ACCENT,
    REST,
    SECOND,
    STYLE,
    THIRD,
    PowersOfTen,
    canvas,
    legend_aside,
    legend_below,
    lettering,
    log_counts,
    one_panel,
    title_over,
)
from universal_neurons.report.numbers import median, number, percent
from universal_neurons.roles import Worth, tried_first
from universal_neurons.storage import Store
from universal_neurons.units import name_column, unit_name

SWEPT = {
    "norm_scale": "final norm scale",
    "reciprocal_rank": "reciprocal rank",
    "entropy": "entropy, nats",
    "loss": "loss, nats",
}
TRIED = (ACCENT, SECOND, THIRD, "#6b7f82")


def fixed_values(
    interventions: pl.DataFrame, neurons: pl.DataFrame, ablations: pl.DataFrame, histograms: pl.DataFrame
) -> Figure | None:
    """Fig 7, 25: at most four candidates for entropy neurons of one model, fixed to values, beside random controls.

    (a) L2 penalties of the last two layers, the candidates marked; (b) their logit effects over the vocabulary;
    (c–f) metrics against the fixed value, controls thin.
    """
    swept = interventions.filter(pl.col("edit") == "fix")
    tried = tried_first(ablations, "entropy").head(len(TRIED))
    if swept.is_empty() or tried.is_empty():
        return None
    names = tried.select(name_column()).to_series().to_list()
    colour = dict(zip(names, TRIED * len(names)))
    with mpl.rc_context(STYLE):
        figure = canvas(6.0)
        grid = figure.subplots(2, 3).ravel()
        _penalties(grid[0], neurons, tried, colour)
        _effects(grid[1], histograms, colour)
        for axes, (metric, label) in zip(grid[2:], SWEPT.items()):
            for (layer, neuron, kind), rows in swept.sort("value").group_by(
                ["layer", "neuron", "kind"], maintain_order=True
            ):
                if kind == "control":
                    axes.plot(rows["value"], rows[metric], color=REST, linewidth=0.6, alpha=0.7)
                elif shade := colour.get(unit_name(layer, neuron)):
                    axes.plot(rows["value"], rows[metric], color=shade, marker="o", markersize=3, zorder=3)
            clean = interventions.filter(pl.col("edit") == "none")[metric].item()
            axes.axhline(clean, color="black", linewidth=0.6, linestyle=":")
            axes.set(xlabel="activation fixed to", ylabel=label)
        verdicts = [
            f"{name}: {row['mediated']:.0%} through the norm" for name, row in zip(names, tried.iter_rows(named=True))
        ]
        confirmed = (tried["role"] == "entropy").fill_null(False).any()
        kind = "Entropy neurons" if confirmed else "No entropy neuron; the candidates, the nearest first,"
        title_over(figure, f"{kind} of {lettering(tried['model'][0])}: {', '.join(verdicts)}")
    return figure


def _of(store: Store, table: str, model: str) -> pl.DataFrame:
    return store.table(table).filter(pl.col("model") == model)


def _fixed_inputs(store: Store, model: str) -> tuple[pl.DataFrame, ...]:
    histograms = _of(store, "effect_histograms", model) if store.has("effect_histograms") else pl.DataFrame()
    tables = (_of(store, name, model) for name in ("interventions", "neurons", "ablations"))
    return *tables, histograms


def _fixed_seen(interventions: pl.DataFrame, _: pl.DataFrame, ablations: pl.DataFrame, *__: object) -> str:
    first = tried_first(ablations, "entropy").row(0, named=True)
    swept = interventions.filter(
        pl.col("edit") == "fix", pl.col("layer") == first["layer"], pl.col("neuron") == first["neuron"]
    ).sort("value")
    low, high = swept.row(0, named=True), swept.row(-1, named=True)
    confirmed = int((tried_first(ablations, "entropy")["role"] == "entropy").sum())
    name = unit_name(first["layer"], first["neuron"])
    return (
        f"Neurons with the role here: {confirmed}. Of {name}, the {'first' if confirmed else 'nearest'}, "
        f"{percent(first['mediated'])} of the effect goes through the norm. Fixed to {low['value']:g} and to "
        f"{high['value']:g} it leaves an entropy of {number(low['entropy'])} and {number(high['entropy'])} nats."
    )


ENTROPY = FigureKind(
    name="entropy",
    file="role-entropy",
    title="Candidates for entropy neurons, fixed to a row of values",
    axes=f"{ROLE} An entropy neuron sets how sure the model is, by way of the final norm's scale. First two: weights "
    "(the L2 penalty, the logit effects). The others: metrics by the fixed activation, random neurons grey.",
    look="Colours that rise or fall where grey stays level: entropy and norm scale move, while the order of tokens "
    "(reciprocal rank) hardly does.",
    stage="the stage roles",
    needs=("interventions", "ablations"),
    inputs=_fixed_inputs,
    draw=fixed_values,
    seen=_fixed_seen,
    per="one",
)


def _penalties(axes: Axes, neurons: pl.DataFrame, tried: pl.DataFrame, colour: dict[str, str]) -> None:
    late = neurons.filter((pl.col("layer") >= pl.col("layer").max() - 1) & pl.col("l2_penalty").is_finite())
    axes.hist(late["l2_penalty"].to_numpy(), 60, color=REST)
    log_counts(axes)
    for row, (name, shade) in zip(tried.iter_rows(named=True), colour.items()):
        axes.axvline(row["l2_penalty"], color=shade, label=name)
    axes.set(xlabel="L2 penalty, last two layers", ylabel="neurons")
    legend_below(axes)


def _effects(axes: Axes, histograms: pl.DataFrame, colour: dict[str, str]) -> None:
    for (layer, neuron), rows in histograms.sort("low").group_by(["layer", "neuron"], maintain_order=True):
        shade = colour.get(unit_name(layer, neuron))
        if shade is None:
            continue
        bins = rows.group_by("low", "high", maintain_order=True).agg(pl.col("count").sum())
        edges = np.append(bins["low"].to_numpy(), bins["high"][-1])
        axes.stairs(bins["count"].to_numpy() / bins["count"].sum(), edges, color=shade)
    log_counts(axes)
    axes.set(xlabel="logit effect W_U w_out", ylabel="share of the vocabulary")


def total_and_direct(ablations: pl.DataFrame) -> Figure | None:
    """Total against direct effect of mean ablations: below the diagonal the rest goes through the final norm."""
    finite = ablations.filter(pl.col("total_effect") > 0)
    if finite.is_empty():
        return None
    kinds = {"control": ("random controls", REST), "frequency": ("frequency candidates", SECOND)}
    kinds |= {"entropy": ("entropy candidates", ACCENT)}
    with mpl.rc_context(STYLE):
        figure = canvas(4.2)
        axes, aside = one_panel(figure)
        for kind, (label, colour) in kinds.items():
            rows = finite.filter(pl.col("kind") == kind)
            axes.scatter(rows["total_effect"], rows["direct_effect"], s=14, color=colour, label=label)
            for row in rows.filter(pl.col("role") == "entropy").iter_rows(named=True):
                point = (row["total_effect"], row["direct_effect"])
                name = unit_name(row["layer"], row["neuron"], lettering(row["model"]))
                axes.annotate(name, point, xytext=(4, -8), textcoords="offset points", fontsize=6)
        low, high = (float(f(finite["total_effect"].to_numpy())) for f in (np.min, np.max))
        axes.plot([low, high], [low, high], color="black", linewidth=0.6, linestyle=":")
        axes.set(xscale="log", yscale="log", xlabel="total effect, mean |Δ loss|", ylabel="direct effect, norm frozen")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PowersOfTen())
            axis.set_minor_formatter(PowersOfTen())
        legend_aside(axes, aside)
    return figure


def _total_seen(ablations: pl.DataFrame) -> str:
    finite = ablations.filter(pl.col("total_effect") > 0)
    tried = finite.filter(pl.col("kind") != "control")
    confirmed = int((tried["role"] == "entropy").sum())
    best = finite.sort(pl.col("mediated").fill_nan(None), descending=True, nulls_last=True).row(0, named=True)
    what = "a random control" if best["kind"] == "control" else f"a candidate for {best['kind']}"
    return (
        f"Of {len(tried)} candidates here {confirmed} are entropy neurons. Most goes through the norm of "
        f"{unit_name(best['layer'], best['neuron'], lettering(best['model']))}, {what}: {percent(best['mediated'])}."
    )


TOTAL_DIRECT = FigureKind(
    name="total_direct",
    file="role-total-direct",
    title="How much of an ablation's effect goes through the final norm",
    axes=f"{ABLATION} A point a neuron, of every model. Across: the mean size of the change of the loss, in nats. Up: "
    "the same with the final norm's scale frozen. Both scales are logarithmic.",
    look="Points far below the diagonal (dotted): most of their effect goes through the norm's scale. These are "
    "entropy neurons.",
    stage="the stage roles",
    needs=("ablations",),
    inputs=lambda store, _: (store.table("ablations"),),
    draw=total_and_direct,
    seen=_total_seen,
)


BESIDE = {  # columns of the table `functional`
    "_random": ("a random neuron of its layer", REST),
    "_second": ("the second best match", SECOND),
    "": ("the match", ACCENT),
}


def functional(table: pl.DataFrame, what: str) -> Figure | None:
    """Functional universality: how alike matched neurons act, by how alike they fire; second best and random beside."""
    if table.is_empty():
        return None
    labels = {"effect_corr": "ρ of logit effects over the vocabulary", "loss_corr": "ρ of loss changes over tokens"}
    with mpl.rc_context(STYLE):
        figure = canvas(3.8)
        grid = figure.subplots(1, 2)
        for axes, (column, label) in zip(grid, labels.items()):
            for suffix, (name, colour) in BESIDE.items():
                if f"{column}{suffix}" not in table.columns:
                    continue
                finite = table.filter(pl.col(f"{column}{suffix}").is_finite())
                values = finite[f"{column}{suffix}"].to_numpy()
                median = f", median {np.median(values):.2f}" if len(values) else ""
                axes.scatter(finite["corr"], values, s=8, color=colour, label=name + median)
            axes.axhline(0, color="black", linewidth=0.6, linestyle=":")
            axes.set(xlabel="ρ of activations", ylabel=label, ylim=(-1.05, 1.05))
            legend_below(axes)
        title_over(figure, f"Do matched neurons act alike? {what}; {_same_roles(table)}")
    return figure


def _same_roles(table: pl.DataFrame) -> str:
    """How many pairs with a role by weights have the same, beside the second best or, in older tables, random ones."""
    beside = _beside(table)
    shares = [table[f"same_roles{kind}"].drop_nulls() for kind in ("", beside)]
    if shares[0].is_empty():
        return "no pair has a role by weights"
    same, other = (f"{int(share.sum())} of {len(share)}" if len(share) else "none has one" for share in shares)
    return f"{same} pairs with a role by weights have the same ({_called(beside)}: {other})"


def _beside(table: pl.DataFrame) -> str:
    """What matches are held against: the second best, which tables of earlier versions do not have."""
    return "_second" if "loss_corr_second" in table.columns else "_random"


def _called(beside: str) -> str:
    return "second best matches" if beside == "_second" else "random partners"


def _chosen(store: Store) -> str:
    """What the neurons are that the study ablated together."""
    return str(Worth.of(store.table("costs")).chosen["set"]) if store.has("costs") else ""


def _functional_seen(table: pl.DataFrame, _: str) -> str:
    beside = _beside(table)
    found = {name: median(table[name]) for name in ("effect_corr", "loss_corr")}
    other = {name: median(table[f"{name}{beside}"]) for name in found}
    return (
        f"Of {len(table):,} pairs here the median ρ of logit effects is {found['effect_corr']}, of {_called(beside)} "
        f"{other['effect_corr']}. That of loss changes is {found['loss_corr']}, of {_called(beside)} "
        f"{other['loss_corr']}."
    )


FUNCTIONAL = FigureKind(
    name="functional",
    file="role-functional",
    title="Do matched neurons do the same?",
    axes=f"{UNIVERSAL} A point a universal neuron, of those of highest excess, and its match (of the best 1 % where "
    "none is universal). Across: ρ of their activations. Up: ρ of what they do to logits, and to the loss when each is "
    "ablated.",
    look="Points of the match above those of the second best match: it acts alike beyond what firing alike brings. A "
    "random neuron of the match's layer is grey.",
    stage="the stage roles",
    needs=("functional",),
    inputs=lambda store, _: (
        store.table("functional"),
        f"{lettering(store.models[0])}, {_chosen(store)} as the paper counts",
    ),
    draw=functional,
    seen=_functional_seen,
)


def costs(table: pl.DataFrame) -> Figure | None:
    """What ablating the chosen neurons together costs, against controls of the same layers."""
    if table.is_empty():
        return None
    found = Worth.of(table)
    labels = {"loss_change": "change of the loss, nats", "divergence": "KL to the clean run, nats"}
    with mpl.rc_context(STYLE):
        figure = canvas(3.2)
        for axes, (column, label) in zip(figure.subplots(1, 2), labels.items()):
            drawn = _groups(found)
            for place, (_, rows, colour) in enumerate(drawn):
                middle, low, high = (np.array([row[f"{column}{end}"] for row in rows]) for end in ("", "_low", "_high"))
                spread = place + (np.linspace(-0.2, 0.2, len(middle)) if len(middle) > 1 else np.zeros(len(middle)))
                reach = np.maximum(np.stack([middle - low, high - middle]), 0)
                axes.errorbar(spread, middle, reach, fmt="o", color=colour, markersize=4, linewidth=1)
            axes.axhline(0, color="black", linewidth=0.6, linestyle=":")
            axes.set_xticks(range(len(drawn)), [name for name, _, _ in drawn])
            axes.set(ylabel=label, xlim=(-0.6, len(drawn) - 0.4))
        which = f"{found.chosen['set']} as the paper counts"
        who = f"{found.chosen['neurons']} neurons of {lettering(found.chosen['model'])}"
        title_over(figure, f"Mean ablation of {who} together: {which}")
    return figure


def _groups(found: Worth) -> list[tuple[str, list[dict[str, Any]], str]]:
    """Name, rows and colour of every group of points that there is, controls first."""
    groups = [
        (f"random,\n{len(found.random)} draws", found.random, REST),
        ("largest\nothers", [found.largest] if found.largest else [], THIRD),
        ("equal con-\ntribution", [found.equal] if found.equal else [], SECOND),
        (found.chosen["set"], [found.chosen], ACCENT),
    ]
    return [group for group in groups if group[1]]


def _costs_seen(table: pl.DataFrame) -> str:
    return Worth.of(table).sentence


COSTS = FigureKind(
    name="costs",
    file="role-costs",
    title="What the universal neurons are worth together",
    axes=f"{UNIVERSAL} {ABLATION} Here many are ablated at once: the universal ones (the best 1 % where there is "
    "none), or as many others of the same layers: matched one to one by contribution (standard deviation of the "
    "activation times the norm of w_out), the largest, random ones. Up: change of the loss, and KL to the clean run, "
    "with 95 % intervals.",
    look="The universal ones above those of equal contribution: they matter more than their size explains.",
    stage="the stage roles",
    needs=("costs",),
    inputs=lambda store, _: (store.table("costs"),),
    draw=costs,
    seen=_costs_seen,
)
