"""Training dynamics in a few numbers and sentences: what `uneurons dynamics` prints and the report repeats."""

import math

import polars as pl
from rich.console import Group
from rich.table import Column

from universal_neurons.dynamics import Dynamics
from universal_neurons.errors import InputError
from universal_neurons.explanations import fires_on
from universal_neurons.report.numbers import number
from universal_neurons.storage import parse_neuron
from universal_neurons.terminal import TextTable, plain, shown
from universal_neurons.units import unit_name

HEADINGS = ("step", "universal", "95 %", "median excess (p99)", "persists", "same match", "final match", "self ρ")


def dynamics_rows(dynamics: Dynamics) -> list[list[str]]:
    """A row per checkpoint of the reference, cells as in `HEADINGS`."""
    medians = self_medians(dynamics)
    return [
        [
            row["checkpoint"],
            f"{row['universal']} = {row['fraction']:.2%}",
            f"{row['universal_surely']}–{row['universal_possibly']}",
            f"{number(row['excess_median'])} ({number(row['excess_p99'])})",
            _persists(row),
            _both(row["same_match"], row["same_match_universal"]),
            _both(row["final_match"], row["final_match_universal"]),
            number(medians[row["checkpoint"]]),
        ]
        for row in dynamics.checkpoints.iter_rows(named=True)
    ]


def self_medians(dynamics: Dynamics) -> dict[str, float | None]:
    """The median ρ of the reference's neurons with themselves at the last checkpoint, by checkpoint."""
    reference = dynamics.neurons.filter((pl.col("model") == dynamics.seeds[0]) & pl.col("self_corr").is_finite())
    medians = dict(reference.group_by("checkpoint").agg(pl.col("self_corr").median()).iter_rows())
    return {name: medians.get(name) for name in dynamics.names}


def _persists(row: dict) -> str:
    change = "" if row["joined"] is None else f" +{row['joined']} −{row['left']}"
    return percent(row["persistence"]) + change


def _both(share: float | None, of_universal: float | None) -> str:
    return "–" if share is None else f"{percent(share)} ({percent(of_universal)})"


def percent(share: float | None) -> str:
    """A share as 12%, or – where there is none."""
    return "–" if share is None or math.isnan(share) else f"{share:.0%}"


def sentences(dynamics: Dynamics) -> dict[str, str]:
    """What each figure shows, in numbers, by the figure's name."""
    rows = dynamics.checkpoints.to_dicts()
    first, last = rows[0], rows[-1]
    medians = self_medians(dynamics)
    by_figure = {
        "dynamics-universal": f"From {first['checkpoint']} to {last['checkpoint']} the universal neurons of "
        f"{dynamics.seeds[0]} go from {first['universal']} ({first['fraction']:.2%}) to {last['universal']} "
        f"({last['fraction']:.2%}; the 95 % interval wholly above the threshold for {last['universal_surely']}, "
        f"reaching above it for {last['universal_possibly']}), the "
        f"median excess from {first['excess_median']:.3f} to {last['excess_median']:.3f}.",
        "dynamics-emergence": _emergence(dynamics),
        "dynamics-persistence": _persistence(rows),
        "dynamics-partners": _partners(first, last),
        "dynamics-self": f"The median neuron of {dynamics.seeds[0]} correlates "
        + ", ".join(f"{number(medians[name])} at {name}" for name in dynamics.names[:-1])
        + " with itself at the end.",
    }
    if dynamics.has("families"):
        by_figure["dynamics-families"] = _families(dynamics)
    return by_figure


def _emergence(dynamics: Dynamics) -> str:
    table = dynamics.emergence
    ever = table.filter(pl.col("first").is_not_null())
    final = table.filter(pl.col("emergence").is_not_null())
    if ever.is_empty():
        return "No neuron is universal at any checkpoint."
    counts = dict(final.group_by("emergence").len().iter_rows())
    since = ", ".join(f"{counts[name]} since {name}" for name in dynamics.names if name in counts)
    lost = f"; {len(ever) - len(final)} more were once and are not at the end" if len(ever) > len(final) else ""
    return f"{len(final)} neurons are universal at the end" + (f": {since}" if since else "") + f"{lost}."


def _persistence(rows: list[dict]) -> str:
    known = [row for row in rows if row["persistence"] is not None and not math.isnan(row["persistence"])]
    if not known:
        return "Before the last checkpoint no neuron is universal: there is nothing to persist."
    shares = ", ".join(f"{percent(row['persistence'])} at {row['checkpoint']}" for row in known)
    return f"Of the neurons that were universal a checkpoint before, still so: {shares}."


def _partners(first: dict, last: dict) -> str:
    share = last["same_match_universal"]
    universal = "" if math.isnan(share) else f", {percent(share)} of those of neurons that were universal"
    return (
        f"Between the last two checkpoints {percent(last['same_match'])} of all best matches stayed the same neuron"
        f"{universal}; at {first['checkpoint']} {percent(first['final_match'])} were those of the end."
    )


def _families(dynamics: Dynamics) -> str:
    families = dynamics.families.filter(pl.col("model") == dynamics.seeds[0])
    last = families.filter((pl.col("checkpoint") == dynamics.names[-1]) & (pl.col("neurons") > 0))
    counts = ", ".join(
        f"{n} {family.replace('_', ' ')}"
        for family, n in last.sort("neurons", descending=True).select("family", "neurons").iter_rows()
    )
    same = percent(int(last["same_family"].sum()) / max(int(last["neurons"].sum()), 1))
    return f"At the end: {counts}. {same} of the neurons have the family that they had a checkpoint before."


def dynamics_view(dynamics: Dynamics) -> Group:
    """A table with a row per checkpoint, and a sentence each on emergence and families."""
    title = f"{dynamics.seeds[0]} in training: universal among {', '.join(dynamics.seeds[1:])}"
    wraps = ("median excess (p99)", "same match", "final match")
    table = TextTable(*(Column(heading, no_wrap=heading not in wraps) for heading in HEADINGS), title=title)
    for row in dynamics_rows(dynamics):
        table.row(*row)
    by_figure = sentences(dynamics)
    lines = [by_figure[name] for name in ("dynamics-emergence", "dynamics-families") if name in by_figure]
    return Group(table, *map(shown, lines))


def course_view(dynamics: Dynamics, name: str) -> Group:
    """One neuron at every checkpoint: `L3.17` of the reference, or `seed-2/L3.17`."""
    seed, layer, neuron = parse_neuron(name, dynamics.seeds)
    this_neuron = (pl.col("model") == seed) & (pl.col("layer") == layer) & (pl.col("neuron") == neuron)
    rows = dynamics.neurons.filter(this_neuron).to_dicts()
    if not rows:
        highest = dynamics.neurons.filter(pl.col("model") == seed).select("layer", "neuron").max().row(0)
        raise InputError(f"{name}: no such neuron", wanted=f"layer ≤ {highest[0]} and neuron ≤ {highest[1]} in {seed}")
    others = len(dynamics.seeds) - 1
    headings = ("step", "excess", "95 %", "same match", "final match", "self ρ", "fires")
    table = TextTable(*headings, title=f"{unit_name(layer, neuron, seed)} in training")
    for row in rows:
        partners = [f"{n} of {others}" if (n := row[c]) is not None else "–" for c in ("same_match", "final_match")]
        excess = number(row["excess_corr"]) + (" universal" if row["is_universal"] else "")
        interval = f"{number(row['excess_low'])} {number(row['excess_high'])}"
        self_corr = f"{number(row['self_corr'])} [{number(row['self_corr_low'])} {number(row['self_corr_high'])}]"
        table.row(row["checkpoint"], excess, interval, *partners, self_corr, fires_on(row))
    return Group(table)


def plain_dynamics(dynamics: Dynamics) -> str:
    """`dynamics_view` as plain text, 140 characters wide."""
    return plain(dynamics_view(dynamics), 140)
