"""What explanations there are of a study's units, and what they are worth, in the terminal."""

from collections.abc import Sequence
from typing import Any

import polars as pl
from rich.console import Group

from universal_neurons.explanations import BY_LABELS, Kind, best_of, explanations_of, scores_of, sources_table
from universal_neurons.legible import shortened
from universal_neurons.report.facts import finite
from universal_neurons.report.numbers import number
from universal_neurons.storage import Store
from universal_neurons.terminal import TextTable, shown_lines
from universal_neurons.units import unit_name

MOST = 20  # units that are listed
SHOWN = 300  # characters of an explanation
HEADINGS = ("by", "asked", "units", "score", "chance / another's / empty", "counterparts / random")


def explained_view(store: Store) -> Group:
    """A row per source of explanations, what counterparts carry, and the best scored explanations."""
    explanations, scores = explanations_of(store), scores_of(store)
    if explanations.is_empty():
        return Group(shown_lines("No explanations: the study has no labels, and nobody has explained its units."))
    parts: list[Any] = [worth_view(store)]
    best = best_of(explanations, scores).drop_nulls("score").sort("score", descending=True, maintain_order=True)
    if len(best):
        parts.append(_best_table(best.head(MOST), len(best)))
    return Group(*parts)


def worth_view(store: Store) -> Group:
    """A row per source of explanations, and how much of what they say counterparts carry."""
    sources = sources_table(explanations_of(store), scores_of(store))
    table = TextTable(*HEADINGS, title="What explanations are worth on held-out text, on average over units")
    for row in sources.iter_rows(named=True):
        table.row(*_cells(row))
    return Group(table, shown_lines(*carried_sentences(sources)))


def _cells(row: dict[str, Any]) -> list[str]:
    score = "" if row["score"] is None else with_interval(row["score"], row["score_low"], row["score_high"])
    asked = f"{row['method']} by {row['scorer']}" if row["scorer"] else "not scored"
    beside = [_together(row, *names) for names in (("chance", "another", "empty"), ("counterpart", "random"))]
    return [row["source"], asked, f"{row['units']:,}", score, *beside]


def _together(row: dict[str, Any], *names: str) -> str:
    """Some scores in one cell; nothing where none is known."""
    return " / ".join(number(row[name]) for name in names) if any(finite(row[name]) for name in names) else ""


def with_interval(value: float | None, low: float | None, high: float | None) -> str:
    """A score and its 95 % interval."""
    return number(value) if not finite(low) else f"{number(value)} [{number(low)} {number(high)}]"


def carried_sentences(sources: pl.DataFrame) -> list[str]:
    """How much of what explanations say of their own units holds for the counterparts; none where nobody asked."""
    said = []
    for row in sources.filter(pl.col("counterpart").is_not_null()).iter_rows(named=True):
        who = f"{row['source']}, {row['method']} by {row['scorer']}"
        if row["carried"] is None:
            said.append(f"{who}: not above chance on their own units, so counterparts have nothing to carry.")
            continue
        share = with_interval(row["carried"], row["carried_low"], row["carried_high"])
        said.append(f"{who}: counterparts carry {share} of the score above chance.")
    return said


def _best_table(best: pl.DataFrame, every: int) -> TextTable:
    title = f"The best scored explanations of {every:,} units{f', the first {MOST}' if every > MOST else ''}"
    table = TextTable("unit", "score", "chance", "by", "explanation", title=title)
    for row in best.iter_rows(named=True):
        name = unit_name(row["layer"], row["neuron"], row["model"])
        score = with_interval(row["score"], row["low"], row["high"])
        table.row(name, score, number(row["chance"]), row["source"], shortened(row["explanation"], SHOWN))
    return table


def explanation_lines(store: Store, unit: dict[str, Any]) -> list[str]:
    """Each explanation of a unit, a row of the neuron table, with its scores; label sentences where they have some."""
    if not store.has("explanations"):
        return []
    place = {name: unit[name] for name in ("model", "layer", "neuron")}
    name = unit_name(unit["layer"], unit["neuron"], unit["model"])
    scores = scores_of(store).filter(pl.col("explanation") == name)
    lines = []
    for row in store.table("explanations").filter(**place).iter_rows(named=True):
        own = scores.filter(source=row["source"], **place)
        if row["source"] != BY_LABELS or len(own):
            lines.append(f"{shortened(row['explanation'], SHOWN)} ({'; '.join([row['source'], *_scores_said(own)])})")
    return lines


def _scores_said(scores: pl.DataFrame) -> Sequence[str]:
    """`detection 0.81 [0.70 0.89], chance 0.21` of every row of a unit's own scores."""
    said = []
    for row in scores.iter_rows(named=True):
        measure, chance = ("rho", 0.0) if row["method"] == Kind.SIMULATION else ("auprc", row["base_rate"])
        if row[measure] is None:
            said.append(f"{row['method']}: too few answers")
            continue
        value = with_interval(*(row[f"{measure}{end}"] for end in ("", "_low", "_high")))
        said.append(f"{row['method']} by {row['scorer']} {value}, chance {number(chance)}")
    return said
