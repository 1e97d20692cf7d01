"""Figures 8 and 26: neurons that switch later heads off and on, by way of their attention to BOS (paper §6).

From the tables of `roles.attention` alone.  Changes are what the neuron's path does: original − ablated.
"""

from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from universal_neurons.report.figures.illustration import ROLE, FigureKind
from universal_neurons.report.figures.style import (
    ACCENT,
    REST,
    SECOND,
    STYLE,
    canvas,
    legend_below,
    lettering,
    log_counts,
    title_over,
)
from universal_neurons.report.numbers import number
from universal_neurons.roles import best_pairs
from universal_neurons.storage import Store
from universal_neurons.units import unit_name

MORE_PAIRS = 5  # of Fig 26
KINDS = {"random": ("random directions", REST), "neuron": ("neurons", ACCENT)}
ACTIVATION, BOS, NORM = "activation", "Δ attention to BOS", "Δ norm of the head's output"
KEY = ["model", "layer", "neuron", "head_layer", "head"]


def attention_neurons(histogram: pl.DataFrame, pairs: pl.DataFrame, samples: pl.DataFrame, title: str) -> Figure | None:
    """Fig 8 of one model: h of neurons against random directions; of the best pair, the change of attention to BOS by
    activation, and of the output's norm by that.  None where there is no pair."""
    ranked = best_pairs(pairs)
    if not len(ranked) or not len(histogram):
        return None
    with mpl.rc_context(STYLE):
        figure = canvas(3.4)
        left, middle, right = figure.subplots(1, 3)
        for kind, (label, colour) in KINDS.items():
            part = histogram.filter(pl.col("kind") == kind).sort("low")
            count = part["count"].to_numpy()
            edges = np.append(part["low"].to_numpy(), part["high"].to_numpy()[-1:])
            left.stairs(count / max(count.sum(), 1), edges, color=colour, label=label, fill=kind == "random")
        log_counts(left)
        left.set(xlabel="h: BOS score per unit of w_out", ylabel="share", title="all pairs of neuron and later head")
        legend_below(left)
        _pair(middle, right, ranked.row(0, named=True), samples)
        title_over(figure, title)
    return figure


HEADS = (
    f"{ROLE} Attention neurons switch a later head on or off, by way of its attention to BOS, the first token of every "
    "text. h: by how much a unit of w_out raises the head's score for BOS."
)
TABLES = ("attention", "attention_samples", "head_scores", "heads")


def _neuron_inputs(store: Store, model: str) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame, str]:
    pairs, samples, scores, heads = (store.table(name).filter(pl.col("model") == model) for name in TABLES)
    kind = "" if pairs["role"].is_not_null().any() else ": none confirmed, the nearest candidates"
    ratio = heads["ratio"].drop_nulls().drop_nans().median()
    what = f"‖W_O v‖ of other tokens / of BOS: median {number(ratio, 1)}"
    return scores, pairs, samples, f"Attention neurons of {lettering(model)}{kind} ({what})"


def _neuron_seen(histogram: pl.DataFrame, pairs: pl.DataFrame, *_: object) -> str:
    best = best_pairs(pairs).row(0, named=True)
    confirmed = int(pairs["role"].is_not_null().sum())
    return (
        f"Of {len(pairs)} pairs tried here {confirmed} have the role. The pair drawn, {_pair_name(best)}, has an h "
        f"{number(best['z'], 1)} standard deviations from that of random directions. Its activation and its change of "
        f"attention to BOS have r {number(best['pearson_activation_bos'])}."
    )


ATTENTION = FigureKind(
    name="attention",
    file="role-attention",
    title="A neuron that switches a later head",
    axes=f"{HEADS} Left: h of all neurons and of random directions. Middle and right, a point a position: what the "
    "neuron's direct path to the head changes.",
    look="Neurons beyond the random directions. A slope in the middle: firing moves attention to BOS. A falling slope "
    "on the right: the head then writes less.",
    stage="the stage roles",
    needs=TABLES,
    inputs=_neuron_inputs,
    draw=attention_neurons,
    seen=_neuron_seen,
    per="one",
)


def attention_pairs(pairs: pl.DataFrame, samples: pl.DataFrame, title: str) -> Figure | None:
    """Fig 26: the scatters of Fig 8 of up to five more pairs, both signs in turn.  None where there are none."""
    others = best_pairs(pairs)[1 : 1 + MORE_PAIRS]
    if not len(others):
        return None
    with mpl.rc_context(STYLE):
        figure = canvas(5.6)
        grid = figure.subplots(2, len(others), squeeze=False)
        for column, pair in enumerate(others.iter_rows(named=True)):
            _pair(grid[0, column], grid[1, column], pair, samples)
        title_over(figure, title)
    return figure


def _pairs_inputs(store: Store, model: str) -> tuple[pl.DataFrame, pl.DataFrame, str]:
    pairs, samples = (store.table(name).filter(pl.col("model") == model) for name in TABLES[:2])
    return pairs, samples, f"More pairs of {lettering(model)}"


def _pairs_seen(pairs: pl.DataFrame, *_: object) -> str:
    others = best_pairs(pairs)[1 : 1 + MORE_PAIRS]
    known = others["pearson_activation_bos"].drop_nulls().drop_nans().abs()
    return (
        f"Of the {len(others)} pairs drawn here {int(others['role'].is_not_null().sum())} have the role. The first is "
        f"{_pair_name(others.row(0, named=True))}. In size their r of activation and attention to BOS is "
        f"{number(known.min())} to {number(known.max())}."
    )


MORE_ATTENTION = FigureKind(
    name="more_attention",
    file="role-attention-more",
    title="More neurons that may switch a later head",
    axes=f"{HEADS} A column a pair of neuron and head, a point a position. Above: change of attention to BOS by "
    "activation. Below: change of what the head writes by change of attention.",
    look="A slope above and a falling slope below. Where there is none, a high h has no consequence.",
    stage="the stage roles",
    needs=TABLES,
    inputs=_pairs_inputs,
    draw=attention_pairs,
    seen=_pairs_seen,
    per="one",
)


def _pair_name(pair: dict[str, Any]) -> str:
    return f"{unit_name(pair['layer'], pair['neuron'])} on L{pair['head_layer']}.H{pair['head']}"


def _pair(above: Axes, below: Axes, pair: dict[str, Any], samples: pl.DataFrame) -> None:
    points = samples.filter(*(pl.col(name) == pair[name] for name in KEY))
    kind = "deactivation" if pair["z"] > 0 else "activation"
    doubt = "" if pair["role"] else "\nunconfirmed"
    _scatter(above, points, "activation", "delta_bos", pair["pearson_activation_bos"])
    _scatter(below, points, "delta_bos", "delta_norm", pair["pearson_bos_norm"])
    above.set(xlabel=ACTIVATION, ylabel=BOS)
    above.set_title(f"{_pair_name(pair)}\n{kind}, z = {pair['z']:.1f}{doubt}", fontsize=8)
    below.set(xlabel=BOS, ylabel=NORM, title="")


def _scatter(axes: Axes, points: pl.DataFrame, x: str, y: str, corr: float | None) -> None:
    axes.scatter(
        points[x].to_numpy(), points[y].to_numpy(), s=3, color=SECOND, alpha=0.4, linewidths=0, rasterized=True
    )
    axes.axhline(0, color="black", linewidth=0.5, linestyle=":")
    axes.axvline(0, color="black", linewidth=0.5, linestyle=":")
    text = "r = –" if corr is None else f"r = {corr:.2f}"
    height, side = (0.05, "bottom") if corr is not None and corr > 0 else (0.95, "top")  # where no points are
    axes.text(0.97, height, text, transform=axes.transAxes, ha="right", va=side, fontsize=8)
