"""A study in a few numbers and tables: what `uneurons show` prints and the report repeats."""

from collections import defaultdict
from collections.abc import Sequence
from string import ascii_lowercase
from typing import Any

import numpy as np
import polars as pl
from rich.console import Group
from rich.table import Column, Table

from universal_neurons.explanations import fires_on
from universal_neurons.labels import FAMILIES, SAID_OF_FAMILIES, SAID_OF_ROLES, UNEXPLAINED, explained
from universal_neurons.legible import legible
from universal_neurons.matching import singled_out
from universal_neurons.report.consistency import consistency_view, similarity_askers, similarity_view
from universal_neurons.report.counts import clique_lines
from universal_neurons.report.explained import worth_view
from universal_neurons.report.facts import asker_lines, basis_test, facts, finite, only_sentence
from universal_neurons.report.family_strength import STRENGTH_FACTS, STRENGTH_WORDS, strength_rows
from universal_neurons.report.numbers import number
from universal_neurons.report.sources import source_sentences
from universal_neurons.report.words import noun_of
from universal_neurons.roles import (
    frequency_line,
    relative_rows,
    role_rows,
    together_sentences,
    unembedding_lines,
    unmet_lines,
)
from universal_neurons.storage import Store
from universal_neurons.study import FIT_FACTS, fit_rows
from universal_neurons.terminal import ModelsTable, TextTable, plain, shown
from universal_neurons.units import unit_name

MODEL_FACTS = ("neurons", "dead", "tokens counted")


def shown_neurons(store: Store, asker: str, most: int = 20) -> tuple[pl.DataFrame, str]:
    """The neurons to show, best first, and what they are: the universal ones, or the top 1 % where none is."""
    chosen, universal = singled_out(store.neurons.filter(pl.col("model") == asker))
    first, noun = f", the first {most}" if len(chosen) > most else "", noun_of(store.manifest)
    if universal:
        return chosen.head(most), f"Universal {noun}s of {asker} as the paper counts, by its excess{first}"
    title = (
        f"No {noun} of {asker} passes {store.config.threshold:g} as the paper counts: the top 1 % by its excess{first}"
    )
    return chosen.head(most), title


def unsure_marks(store: Store, shown: pl.DataFrame) -> tuple[list[str], str]:
    """`!` for every universal neuron of a list that is not sure to be one, and a line that says why; none of others.

    Not sure: its 95 % interval on held-out rows is not wholly above the threshold, or its matches rest on little text.
    """
    threshold = store.config.threshold
    few = pl.col("carried_by_few").fill_null(False) if "carried_by_few" in shown.columns else pl.lit(False)
    below = (pl.col("excess_low").fill_nan(None) <= threshold).fill_null(False)
    unsure = shown.select((pl.col("excess_corr") > threshold) & (below | few)).to_series()
    reasons = f"the 95 % interval on other text is not wholly above {threshold:g}, or the matches rest on little text"
    line = f"!: {reasons} ({unsure.sum()} of the {len(shown)} here)." if unsure.any() else ""
    return ["!" if marked else "" for marked in unsure], line


def match_cells(
    store: Store, asker: str, shown: pl.DataFrame, *, intervals: bool = True
) -> dict[tuple[int, int], dict[str, str]]:
    """The best match of every shown neuron in each other model, as `L1.151 0.78 [0.75 0.81]`, ⇄ where it is mutual.

    By layer and neuron, then by model.
    """
    best = store.matches.filter((pl.col("asker") == asker) & (pl.col("rank") == 1))
    cells: dict[tuple[int, int], dict[str, str]] = defaultdict(dict)
    for row in best.join(shown, on=["layer", "neuron"], how="semi").iter_rows(named=True):
        text = f"{unit_name(row['match_layer'], row['match_neuron'])} {number(row['corr'])}"
        if intervals and finite(row["corr_low"]):
            text += f" [{number(row['corr_low'])} {number(row['corr_high'])}]"
        cells[row["layer"], row["neuron"]][row["match_model"]] = text + (" ⇄" if row["mutual"] else "")
    return cells


def label_of(row: dict[str, Any]) -> str:
    """A neuron's label; `not` where the neuron is silent rather than active when it holds."""
    label = legible(row["label"] or "") or "–"
    return f"not {label}" if row["label_sign"] == -1 else label


def published_rows(store: Store) -> list[tuple[str, str, str]]:
    """Ours beside a publication's: what, ours, theirs."""
    published = store.config.published
    if published is None:
        return []
    ours = facts(store, store.models[0])
    share = f"{published.universal:,} = {published.universal / published.neurons:.2%}"
    rows = [
        ("neurons", f"{ours.neurons:,}", f"{published.neurons:,}"),
        ("universal", f"{ours.universal:,} = {ours.share:.2%}", share),
    ]
    if published.universal_per_layer:
        per_layer = zip(ours.universal_per_layer, published.universal_per_layer)
        rows += [
            (f"universal in layer {n}", str(our_count), str(their_count))
            for n, (our_count, their_count) in enumerate(per_layer)
        ]
    return rows


def study_view(store: Store) -> Group:
    """The tables that `uneurons show STORE` prints."""
    parts: list[Any] = [shown(sentence) for sentence in [only_sentence(store), *source_sentences(store)] if sentence]
    if not store.askers:
        parts.append(models_view(store))
    for asker in store.askers:
        title = f"{asker}: which of its {noun_of(store.manifest)}s does every model find again?"
        table = TextTable(title=title, show_header=False)
        for label, value in asker_lines(store, asker):
            table.row(label, value)
        parts += [table, neurons_view(store, asker)]
        if store.has("consistency"):
            parts.append(consistency_view(store, asker))
    if similarity_askers(store):
        parts.append(similarity_view(store))
    if store.has("subsets"):
        parts.append(subsets_view(store))
    if clique_lines(store):
        parts.append(cliques_view(store))
    if store.has("spans"):
        parts.append(spans_view(store))
    if store.has("labels"):
        parts.append(families_view(store))
    if store.has_roles:
        parts.append(roles_view(store))
    if store.has("scores"):
        parts.append(worth_view(store))
    rows = published_rows(store)
    if rows and store.config.published:
        table = TextTable("", "this study", store.config.published.source, title="Beside the published counts")
        for row in rows:
            table.row(*row)
        parts.append(table)
    return Group(*parts)


def models_view(store: Store) -> Table:
    """Neurons, dead ones and counted tokens of every model, where universality was not asked about."""
    nouns = f"{noun_of(store.manifest)}s"
    table = TextTable("model", nouns, *MODEL_FACTS[1:], title=nouns.capitalize())
    for row in models_rows(store):
        table.row(*row)
    return table


def models_rows(store: Store) -> list[tuple[str, str, str, str]]:
    """Of every model: its name, neurons, dead neurons and the positions counted."""
    tokens = store.manifest["counted_tokens"]
    rows = []
    for name in store.models:
        table = store.neurons.filter(pl.col("model") == name)
        dead = "–" if table["dead"].is_null().all() else str(table["dead"].sum())
        rows.append((name, f"{len(table):,}", dead, f"{tokens:,}" if tokens else "–"))
    return rows


BEST_BY = {"bos": "bos_mean", "position": "position_mi"}  # what the others have by the variance that labels explain


def family_rows(store: Store) -> list[tuple[str, list[int], str]]:
    """Every family: its neurons in each model, and the reference model's best with what it fires on, and how surely."""
    neurons = store.neurons
    rows = []
    for family in FAMILIES:
        members = neurons.filter(pl.col("family") == family)
        counts = [len(members.filter(pl.col("model") == name)) for name in store.models]
        best = ""
        by = BEST_BY.get(family, "variance_reduction")
        ranked = members.filter(pl.col("model") == store.models[0]).sort(
            pl.col(by).fill_nan(None), descending=True, nulls_last=True, maintain_order=True
        )
        if family != UNEXPLAINED and len(ranked):
            first = ranked.row(0, named=True)
            best = unit_name(first["layer"], first["neuron"])
            best += "" if family == "bos" else f" {fires_on(first)} {_strength(first)}"
        rows.append((family.replace("_", " "), counts, best))
    return rows


def _strength(row: dict[str, Any]) -> str:
    """What a neuron's label explains of its variance; of one that fires by position alone the mutual information."""
    if explained(row["family"], row["label"]):
        return number(row["variance_reduction"])
    return f"(MI {row['position_mi']:.2f})"


def families_view(store: Store) -> Group:
    """How many neurons of each model each family has, what the families are, and how strong those of the reference."""
    title = f"What the {noun_of(store.manifest)}s fire on (variance explained)"
    counts = _counts_view(store, "family", family_rows(store), SAID_OF_FAMILIES, title)
    if not (rows := strength_rows(store)):
        return counts
    strength = TextTable("family", *STRENGTH_FACTS, title=f"How much the best labels of {store.models[0]} explain")
    for row in rows:
        strength.row(*row)
    return Group(counts, strength, shown(STRENGTH_WORDS, "table.caption"))


RELATIVE = {"relative": "with a kurtosis that is high among those that the model's unembedding allows"}


def roles_view(store: Store) -> Group:
    """How many neurons of each model have each role, what the roles are, and what universal neurons do together."""
    rows = [*role_rows(store), *relative_rows(store)]
    counted = _counts_view(store, "role", rows, SAID_OF_ROLES | RELATIVE, "What the neurons do")
    together = map(shown, together_sentences(store))
    return Group(counted, *together, *(shown(line, "table.caption") for line in what_roles_rest_on(store)))


def what_roles_rest_on(store: Store) -> list[str]:
    """What each model's unembedding allows of roles, what models but the reference cannot show, and whose token
    frequencies are meant: a line each."""
    lines = [*unembedding_lines(store), *unmet_lines(store, list(store.models[1:])), frequency_line(store)]
    return [line for line in lines if line]


def _counts_view(
    store: Store, kind: str, rows: Sequence[tuple[str, list[int], str]], meanings: dict[str, str], title: str
) -> Group:
    letters = letters_of(store.models)
    short = dict(enumerate([*letters.values(), f"best of {letters[store.models[0]]}"], 1))
    best = Column(f"best of {store.models[0]}", min_width=16)
    table = ModelsTable(kind, *store.models, best, letters=letters, short=short, title=title)
    for name, counts, example in rows:
        table.row(name, *map(str, counts), example)
    return Group(table, shown(words_of(meanings), "table.caption"))


def letters_of(models: Sequence[str]) -> dict[str, str]:
    """A letter for every model, a for the reference; from the 27th on with a number."""
    return {name: ascii_lowercase[n % 26] + (str(n // 26) if n >= 26 else "") for n, name in enumerate(models)}


def words_of(meanings: dict[str, str]) -> str:
    """What each name means, in one line."""
    return "; ".join(f"{name.replace('_', ' ')}: {said}" for name, said in meanings.items()) + "."


def spans_view(store: Store) -> Table:
    """How well the models' tokenizers fit, where they differ."""
    spans = store.table("spans")
    title = f"Positions are spans: {spans['spans'][0]:,} stretches that all tokenizers share"
    table = TextTable("tokenizer of", *FIT_FACTS, title=title)
    for row in fit_rows(spans):
        table.row(*row)
    return table


LITTLE_TOKENS = 5_000  # fewer of a subset are little text


def little_sentence(store: Store) -> str:
    """What is said of the subsets asked for of which few tokens are counted; nothing where there are none."""
    counted = store.manifest.get("counted_by_subset", {})
    little = [name for name, tokens in counted.items() if tokens < LITTLE_TOKENS]
    ending = f"little text: fewer than {LITTLE_TOKENS:,} tokens."
    return f"The counts within {', '.join(little)} rest on {ending}" if little else ""


def subsets_view(store: Store) -> Group:
    """How many neurons of the reference are universal within each subset that was asked for (`--subset`)."""
    threshold = store.config.threshold
    title = f"Within subsets (excess > {threshold:g})"
    table = TextTable("subset", "tokens", "universal", "as the paper counts", "median excess", title=title)
    counted = store.manifest.get("counted_by_subset", {})
    for (subset,), rows in store.subsets.group_by("subset", maintain_order=True):
        alive = rows.filter(pl.col("excess_corr").is_finite())
        counts = [
            str((alive[name] > threshold).sum()) if name in alive.columns else "–"
            for name in ("excess_standardised", "excess_corr")
        ]
        tokens = f"{counted[subset]:,}" if subset in counted else "–"
        table.row(subset, tokens, *counts, number(_median(alive["excess_corr"])))
    return Group(table, *(shown(sentence, "table.caption") for sentence in [little_sentence(store)] if sentence))


def _median(values: pl.Series) -> float | None:
    return None if values.is_empty() else float(np.median(values.to_numpy()))


def cliques_view(store: Store) -> Table:
    """How many mutual cliques there are, and how many by chance."""
    title = f"Mutual cliques: one {noun_of(store.manifest)} of every model"
    table = TextTable(title=title, show_header=False)
    for label, value in clique_lines(store):
        table.row(label, value)
    return table


def basis_tests(store: Store, shown: pl.DataFrame) -> tuple[list[str], str]:
    """q of every shown neuron as text; and in place of all of them what they say together, where they are the same."""
    told = [basis_test(q, store.settings.draws) for q in shown["q_value"]]
    together = f"; basis q {told[0]} for each" if len(told) > 1 and len(set(told)) == 1 else ""
    return told, together


def neurons_view(store: Store, asker: str) -> Group:
    """The most universal neurons with their matches."""
    neurons, title = shown_neurons(store, asker)
    others = [name for name in store.models if name != asker]
    labelled = store.has("labels")
    tests, together = basis_tests(store, neurons)
    apart = [] if together else ["basis q"]
    marks, why_marked = unsure_marks(store, neurons)
    marked = ["!"] if why_marked else []
    before = [noun_of(store.manifest), "excess", "95 %", *marked, *apart]
    fires = [Column("fires", min_width=12)] if labelled else []
    letters = {name: letter for name, letter in letters_of(store.models).items() if name != asker}
    shorter = dict(enumerate(letters.values(), len(before)))
    table = ModelsTable(*before, *others, *fires, letters=letters, short=shorter, title=title + together)
    matches = match_cells(store, asker, neurons, intervals=False)
    for row, q, mark in zip(neurons.iter_rows(named=True), tests, marks):
        cells = matches[row["layer"], row["neuron"]]
        interval = f"{number(row['excess_low'])} {number(row['excess_high'])}"
        place = unit_name(row["layer"], row["neuron"])
        why = [fires_on(row)] if labelled else []
        found = (cells.get(name, "–") for name in others)
        table.row(
            place,
            number(row["excess_corr"]),
            interval,
            *([mark] if marked else []),
            *([q] if apart else []),
            *found,
            *why,
        )
    return Group(table, *(shown(line, "table.caption") for line in [why_marked] if line))


def plain_summary(store: Store) -> str:
    """`study_view` as plain text."""
    return plain(study_view(store), 110)
