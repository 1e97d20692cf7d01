"""The section of a report on explanations: what each source is worth, the best and the worst explained neurons."""

from dataclasses import dataclass
from typing import Any

import polars as pl

from universal_neurons.explanations import (
    COUNTERPART,
    RANDOM,
    best_of,
    explanations_of,
    measured,
    scores_of,
    sources_table,
    unit_column,
)
from universal_neurons.legible import shortened
from universal_neurons.report.explained import SHOWN, with_interval
from universal_neurons.report.numbers import number
from universal_neurons.report.words import spoken_of
from universal_neurons.storage import Store
from universal_neurons.units import unit_name

MOST = 10  # that are listed of the best, and of the worst
EXPLAINED_WORDS = (
    "An explanation is one sentence on what a neuron fires on. Its source is who wrote it: labels, by rule; a "
    "language model, from examples; or a file that was imported. A scorer, a language model, is shown the sentence "
    "and windows of text that neither chose the sentence nor was shown to its author. Detection asks it whether the "
    "neuron fires in the window, fuzzing whether it fires on the marked tokens. Their score is the AUPRC, the area "
    "under the curve of precision and recall: 1 without a mistake, at chance the share of windows where the answer "
    "is yes. Simulation asks how strongly it fires on each token; its score is ρ with what the neuron does, at "
    "chance 0.",
    "Beside each source's mean score stand controls on the same neurons: their label sentences, another neuron's "
    "sentence of the same source, and an empty one. A sentence is tried on its neuron's counterparts too, its best "
    "matches in the other models, and on a random neuron of each counterpart's layer. Carried is the counterparts' "
    "share of the score above chance, 1 where the sentence is as true of them; there is none where sentences are not "
    "above chance on their own neurons. Brackets are 95 % intervals, of means over neurons.",
)
HEADINGS = (
    "source", "asked", "neurons", "score", "chance", "label sentence", "another's", "empty", "counterparts", "random",
    "carried",
)  # fmt: skip
UNIT_HEADINGS = ("neuron", "score", "chance", "counterparts", "random", "source", "explanation")
Rows = list[list[str]]


@dataclass(frozen=True)
class ExplainedSection:
    """Tables as rows of text, the headings first; `lists` are the best and the worst explained, each with its title."""

    words: tuple[str, ...]
    sources: Rows
    lists: list[tuple[str, Rows]]
    note: str


def explained_section(store: Store) -> ExplainedSection | None:
    """What a report says of explanations; None where nobody scored any."""
    scores = scores_of(store)
    if scores.is_empty():
        return None
    spoken, explanations = spoken_of(store.manifest), explanations_of(store)
    sources = sources_table(explanations, scores)
    best, universal = _scored_units(store, best_of(explanations, scores))
    asked = best.select("method", "scorer").unique().rows()
    note = f"By {' by '.join(asked[0])}. Of several sentences of a neuron the best is shown, chosen by this score."
    return ExplainedSection(
        tuple(map(spoken, EXPLAINED_WORDS)),
        [list(map(spoken, HEADINGS)), *map(_source_cells, sources.rows(named=True))],
        [(spoken(title), _unit_rows(rows, scores, spoken("neuron"))) for title, rows in _lists(best, universal)],
        spoken(note) if asked else "",
    )


def _scored_units(store: Store, best: pl.DataFrame) -> tuple[pl.DataFrame, bool]:
    """The best scored explanation of each universal unit, best first, and whether universal; of all where none is."""
    scored = best.drop_nulls("score").sort("score", descending=True, maintain_order=True)
    if "is_universal" not in store.neurons.columns:
        return scored, False
    universal = store.neurons.filter("is_universal")
    kept = scored.join(universal, on=["model", "layer", "neuron"], how="semi", maintain_order="left")
    return (kept, True) if len(kept) else (scored, False)


def _lists(best: pl.DataFrame, universal: bool) -> list[tuple[str, pl.DataFrame]]:
    noun = "universal neurons" if universal else "neurons"
    if best.is_empty():
        return []
    if len(best) <= 2 * MOST:
        return [(f"The {len(best)} explained {noun}, the best first", best)]
    ends = {f"The {MOST} best": best.head(MOST), f"The {MOST} worst": best.tail(MOST)}
    return [(f"{which} explained of {len(best):,} {noun}", rows) for which, rows in ends.items()]


def _source_cells(row: dict[str, Any]) -> list[str]:
    if row["scorer"] is None:
        return [row["source"], "not scored", f"{row['units']:,}", *["–"] * (len(HEADINGS) - 3)]
    score, carried = (_interval(row, name) for name in ("score", "carried"))
    beside = [number(row[name]) for name in ("chance", "label", "another", "empty", "counterpart", "random")]
    return [row["source"], f"{row['method']} by {row['scorer']}", f"{row['units']:,}", score, *beside, carried]


def _interval(row: dict[str, Any], name: str) -> str:
    return _unbroken(with_interval(row[name], row[f"{name}_low"], row[f"{name}_high"]))


def _unbroken(text: str) -> str:
    """Text that stays on one line."""
    return text.replace(" ", "\u00a0")


def _unit_rows(best: pl.DataFrame, scores: pl.DataFrame, noun: str) -> Rows:
    elsewhere = measured(scores).drop_nulls("score").with_columns(at=unit_column())
    rows = [[noun, *UNIT_HEADINGS[1:]]]
    for row in best.iter_rows(named=True):
        name = unit_name(row["layer"], row["neuron"], row["model"])
        same = elsewhere.filter(explanation=name, source=row["source"], method=row["method"], scorer=row["scorer"])
        there = same.filter(use=COUNTERPART).select("at", "score").rows()
        random: float | None = same.filter(use=RANDOM)["score"].mean()  # type: ignore[assignment]
        score = _unbroken(with_interval(row["score"], row["low"], row["high"]))
        others = ", ".join(_unbroken(f"{at} {number(value)}") for at, value in there) or "–"
        said = shortened(row["explanation"], SHOWN)
        rows.append([name, score, number(row["chance"]), others, number(random), row["source"], said])
    return rows
