"""The figure of effects: what the loss rises by when units have their base's activation back."""

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from universal_neurons.diff import CHANGED, OTHERS
from universal_neurons.report.figures.illustration import FigureKind
from universal_neurons.report.figures.style import ACCENT, REST, SECOND, STYLE, THIRD, canvas
from universal_neurons.report.numbers import number
from universal_neurons.units import unit_name

MOST = 30
COLOURS = {CHANGED: ACCENT, OTHERS: REST}


def effects_of_units(units: pl.DataFrame, joint: pl.DataFrame) -> Figure:
    """(a) Each unit's loss when patched and when ablated, with 95 % intervals; (b) all together, and others."""
    with mpl.rc_context(STYLE):
        figure = canvas(3.8)
        a, b = figure.subplots(1, 2, width_ratios=(3, 1))
        _each(a, units.sort(pl.col("patched").abs(), descending=True).head(MOST))
        _together(b, joint.filter(pl.col("count") > 0))
    return figure


def _each(axes: Axes, units: pl.DataFrame) -> None:
    places = np.arange(len(units))
    drawn = {
        "patched": ("the base's activation given back", ACCENT),
        "ablated_after": ("ablated in the fine-tune", SECOND),
        "ablated_before": ("ablated in the base", THIRD),
    }
    for beside, (name, (label, colour)) in zip((-0.2, 0, 0.2), drawn.items()):
        value, reach = _ends(units, name)
        axes.errorbar(places + beside, value, reach, fmt="o", color=colour, markersize=3, linewidth=1, label=label)
    axes.axhline(0, color="#4a4a4a", linewidth=0.6)
    names = [unit_name(*place) for place in units.select("layer", "neuron").iter_rows()]
    axes.set_xticks(places, names, rotation=90, fontsize=7)
    axes.set(title="(a) One unit at a time", ylabel="loss rises by, nats a token")
    axes.legend(fontsize=7)


def _together(axes: Axes, joint: pl.DataFrame) -> None:
    quantity = "share" if joint["share"].null_count() < len(joint) else "patched"
    for place, row in enumerate(joint.iter_rows(named=True)):
        low, high = (abs(row[quantity] - row[f"{quantity}_{end}"]) for end in ("low", "high"))
        axes.bar(place, row[quantity], yerr=[[low], [high]], color=COLOURS[row["units"]], capsize=3, linewidth=1)
    axes.set_xticks(range(len(joint)), [f"{row['count']} {row['units']}" for row in joint.iter_rows(named=True)])
    axes.axhline(0, color="#4a4a4a", linewidth=0.6)
    label = "share of the gain" if quantity == "share" else "loss rises by, nats a token"
    axes.set(title="(b) Together", ylabel=label)


def _ends(units: pl.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray]:
    value, low, high = (units[f"{name}{end}"].to_numpy() for end in ("", "_low", "_high"))
    return value, np.nan_to_num(np.stack([value - low, high - value]))


def _seen(units: pl.DataFrame, joint: pl.DataFrame) -> str:
    largest = units.sort(pl.col("patched").abs(), descending=True).row(0, named=True)
    name = unit_name(largest["layer"], largest["neuron"])
    changed, others = (joint.row(by_predicate=pl.col("units") == of, named=True) for of in (CHANGED, OTHERS))
    share = (
        f"All {changed['count']} together carry {number(changed['share'])} of the gain of "
        f"{number(changed['gain'], 3)}, {others['count']} others {number(others['share'])}."
        if changed["share"] is not None
        else f"The gain, {number(changed['gain'], 3)}, is not to be told from 0, so that (b) shows losses."
    )
    return f"{share} Alone {name} costs most: {number(largest['patched'], 3)} nats a token when it is patched."


EFFECTS = FigureKind(
    name="effects",
    file="effects",
    title="What the units that changed most carry",
    axes="By how much the loss, nats a token on held-out rows (of the second text, where there is one), rises when (a) "
    "one unit of the fine-tune has the base's activation at the same positions, or is held at its mean in either "
    f"model; the {MOST} whose patch changes most; (b) all of them have the base's activations together, and as many "
    "others of the same layers that contribute as much: the share of the fine-tune's gain that goes. Bars are 95 % "
    "intervals.",
    look="Units whose patch alone costs much; changed units that carry more of the gain than the others.",
    stage="uneurons diff --effects N",
    needs=("unit_effects", "joint_effects"),
    inputs=lambda diff, _: tuple(
        diff.table(name).filter(text=diff.table(name)["text"][-1]) for name in ("unit_effects", "joint_effects")
    ),
    draw=effects_of_units,
    seen=_seen,
)
