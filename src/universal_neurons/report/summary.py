"""A study in a few numbers and tables: what `uneurons show` prints and the report repeats."""

from collections import defaultdict
from typing import Any

import numpy as np
import polars as pl
from rich.console import Group
from rich.table import Column, Table

from universal_neurons.labels import FAMILIES, SAID_OF_FAMILIES, SAID_OF_ROLES, UNEXPLAINED, explained
from universal_neurons.legible import legible
from universal_neurons.matching import singled_out
from universal_neurons.report.counts import clique_lines
from universal_neurons.report.facts import asker_lines, basis_test, facts, finite, short
from universal_neurons.roles import role_rows
from universal_neurons.storage import Store
from universal_neurons.study import FIT_FACTS, fit_rows
from universal_neurons.terminal import TextTable, plain, shown
from universal_neurons.units import unit_name

MODEL_FACTS = ("neurons", "dead", "tokens counted")


def shown_neurons(store: Store, asker: str, most: int = 20) -> tuple[pl.DataFrame, str]:
    """The neurons to show, best first, and what they are: the universal ones, or the top 1 % where none is."""
    chosen, universal = singled_out(store.neurons.filter(pl.col("model") == asker))
    first = f", the first {most}" if len(chosen) > most else ""
    if universal:
        return chosen.head(most), f"Universal neurons of {asker} as the paper counts, by its excess{first}"
    title = (
        f"No neuron of {asker} passes {store.config.threshold:g} as the paper counts: the top 1 % by its excess{first}"
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
    """The best match of every shown neuron in each other model, as `L1.151 .78 [.75 .81]`, ⇄ where it is mutual.

    By layer and neuron, then by model.
    """
    best = store.matches.filter((pl.col("asker") == asker) & (pl.col("rank") == 1))
    cells: dict[tuple[int, int], dict[str, str]] = defaultdict(dict)
    for row in best.join(shown, on=["layer", "neuron"], how="semi").iter_rows(named=True):
        text = f"{unit_name(row['match_layer'], row['match_neuron'])} {short(row['corr'])}"
        if intervals and finite(row["corr_low"]):
            text += f" [{short(row['corr_low'])} {short(row['corr_high'])}]"
        cells[row["layer"], row["neuron"]][row["match_model"]] = text + (" ⇄" if row["mutual"] else "")
    return cells


def fires_on(row: dict[str, Any]) -> str:
    """The label of a neuron that a label explains, else its family."""
    if row["family"] in (None, "bos", UNEXPLAINED):
        return row["family"] or "–"
    if not explained(row["family"], row["label"]):
        return f"position (MI {row['position_mi']:.2f})"
    return f"{label_of(row)} {short(row['variance_reduction'])}"


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
    parts: list[Any] = []
    if not store.askers:
        parts.append(models_view(store))
    for asker in store.askers:
        table = TextTable(title=f"{asker}: which of its neurons does every model find again?", show_header=False)
        for label, value in asker_lines(store, asker):
            table.row(label, value)
        parts += [table, neurons_view(store, asker)]
    if store.has("subsets"):
        parts.append(subsets_view(store))
    if clique_lines(store):
        parts.append(cliques_view(store))
    if store.has("spans"):
        parts.append(spans_view(store))
    if store.has("labels"):
        parts.append(families_view(store))
    if store.has("effects"):
        parts.append(roles_view(store))
    rows = published_rows(store)
    if rows and store.config.published:
        table = TextTable("", "this study", store.config.published.source, title="Beside the published counts")
        for row in rows:
            table.row(*row)
        parts.append(table)
    return Group(*parts)


def models_view(store: Store) -> Table:
    """Neurons, dead ones and counted tokens of every model, where universality was not asked about."""
    table = TextTable("model", *MODEL_FACTS, title="Neurons")
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
    """Every family: its neurons in each model, and the reference model's best with its label."""
    neurons = store.neurons
    rows = []
    for family in FAMILIES:
        members = neurons.filter(pl.col("family") == family)
        counts = [len(members.filter(pl.col("model") == name)) for name in store.models]
        best = ""
        ranked = members.filter(pl.col("model") == store.models[0]).sort(
            pl.col(BEST_BY.get(family, "variance_reduction")).fill_nan(None), descending=True, nulls_last=True,
            maintain_order=True,
        )  # fmt: skip
        if family != UNEXPLAINED and len(ranked):
            first = ranked.row(0, named=True)
            best = unit_name(first["layer"], first["neuron"]) + ("" if family == "bos" else f" {fires_on(first)}")
        rows.append((family.replace("_", " "), counts, best))
    return rows


def families_view(store: Store) -> Table:
    """How many neurons of each model each family has."""
    best = f"best of {store.models[0]}"
    title = "What the neurons fire on (variance explained)"
    table = TextTable("family", *store.models, Column(best, overflow="fold", min_width=16), title=title)
    for family, counts, example in family_rows(store):
        table.row(family, *map(str, counts), example)
    return _with_words(table, SAID_OF_FAMILIES)


def roles_view(store: Store) -> Table:
    """How many neurons of each model have each role."""
    best = Column(f"best of {store.models[0]}", overflow="fold", min_width=16)
    table = TextTable("role", *store.models, best, title="What the neurons do")
    for role, counts, example in role_rows(store):
        table.row(role, *map(str, counts), example)
    return _with_words(table, SAID_OF_ROLES)


def _with_words(table: TextTable, meanings: dict[str, str]) -> TextTable:
    """The table, and below it what each of its names means."""
    return _with_line(table, words_of(meanings))


def _with_line(table: TextTable, line: str) -> TextTable:
    """The table, and a line below it."""
    table.caption = shown(line)
    table.caption_justify = "left"
    return table


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


def subsets_view(store: Store) -> Table:
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
        table.row(subset, tokens, *counts, short(_median(alive["excess_corr"])))
    return table


def _median(values: pl.Series) -> float | None:
    return None if values.is_empty() else float(np.median(values.to_numpy()))


def cliques_view(store: Store) -> Table:
    """How many mutual cliques there are, and how many by chance."""
    title = "Mutual cliques: one neuron of every model"
    table = TextTable(title=title, show_header=False)
    for label, value in clique_lines(store):
        table.row(label, value)
    return table


def basis_tests(store: Store, shown: pl.DataFrame) -> tuple[list[str], str]:
    """q of every shown neuron as text; and in place of all of them what they say together, where they are the same."""
    told = [basis_test(q, store.config.n_draws) for q in shown["q_value"]]
    together = f"; basis q {told[0]} for each" if len(told) > 1 and len(set(told)) == 1 else ""
    return told, together


def neurons_view(store: Store, asker: str) -> Table:
    """The most universal neurons with their matches."""
    shown, title = shown_neurons(store, asker)
    others = [name for name in store.models if name != asker]
    labelled = store.has("labels")
    tests, together = basis_tests(store, shown)
    apart = [] if together else ["basis q"]
    marks, why_marked = unsure_marks(store, shown)
    marked = ["!"] if why_marked else []
    fires = [Column("fires on", overflow="fold", min_width=12)] if labelled else []
    table = TextTable("neuron", "excess", "95 %", *marked, *apart, *others, *fires, title=title + together)
    matches = match_cells(store, asker, shown, intervals=False)
    for row, q, mark in zip(shown.iter_rows(named=True), tests, marks):
        cells = matches[row["layer"], row["neuron"]]
        interval = f"{short(row['excess_low'])} {short(row['excess_high'])}"
        place = unit_name(row["layer"], row["neuron"])
        why = [fires_on(row)] if labelled else []
        found = (cells.get(name, "–") for name in others)
        table.row(
            place,
            short(row["excess_corr"]),
            interval,
            *([mark] if marked else []),
            *([q] if apart else []),
            *found,
            *why,
        )
    return _with_line(table, why_marked) if why_marked else table


def plain_summary(store: Store) -> str:
    """`study_view` as plain text."""
    return plain(study_view(store), 110)
