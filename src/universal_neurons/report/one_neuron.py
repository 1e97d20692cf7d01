"""One neuron in the terminal: a verdict, numbers, matches, labels, examples (`uneurons show RUN L2.17`)."""

from itertools import chain
from typing import Any

import numpy as np
import polars as pl
from rich.console import Group
from rich.table import Table
from rich.text import Text

from universal_neurons.labels import explained
from universal_neurons.legible import legible
from universal_neurons.report.explained import explanation_lines
from universal_neurons.report.facts import finite
from universal_neurons.report.numbers import number
from universal_neurons.report.sinks import has_sinks
from universal_neurons.report.sources import unit_kind
from universal_neurons.report.verdict import main_numbers, verdict
from universal_neurons.roles import neuron_lines
from universal_neurons.statistics import BOTTOM
from universal_neurons.storage import Store
from universal_neurons.terminal import TextTable, html, plain, shown, shown_lines
from universal_neurons.units import unit_name

TAIL = 0.001
BARS = 60
BLOCKS = " ▁▂▃▄▅▆▇█"
FAINT = 0.1  # activations below this share of the highest stay uncoloured
NEAREST = "The nearest labels: none explains enough to say that it fires on it"
EXPLAINED = "Explained, and how well that predicts it on held-out text (AUPRC; of simulation ρ)"
BANDS = {"top": "Highest activations", BOTTOM: "Lowest activations (the sign of such a unit is arbitrary)"}


def neuron_view(store: Store, name: str, *, all_numbers: bool = False) -> Group:
    """One neuron: a verdict, the numbers that matter (or every column), its matches, labels, roles and examples."""
    found = store.neuron(name)
    model, layer, neuron, row = found.model, found.layer, found.neuron, found.row
    this_neuron = (pl.col("layer") == layer) & (pl.col("neuron") == neuron)
    numbers = _all_numbers(found.name, row) if all_numbers else _main_numbers(found.name, store, row)
    said = verdict(store, row)
    parts: list[Any] = [shown_lines(*said), numbers] if said else [numbers]
    if row["dead"]:
        return Group(*parts)
    if lines := explanation_lines(store, row):
        parts.append(shown_lines(EXPLAINED, *lines))
    if model in store.askers:
        parts.append(_matches(store, model, this_neuron))
    if store.has("labels"):
        parts.append(_labels(store, row, this_neuron))
    if store.has("effects"):
        strings = store.strings if store.has("vocabulary") else None
        does = neuron_lines(store, model, layer, neuron, strings)
        parts += [shown_lines("What it does", *does)] if does else []
    if store.has("examples"):
        number = store.units[model].number_of(layer, neuron)
        what = "Pre-activation" if unit_kind(store, model) is None else "Value"
        parts += [_histogram(what, *store.histogram(model, number)), *example_lines(store, model, this_neuron)]
    return Group(*parts)


def _text(column: str, value: float) -> str:
    """A number to four decimals; a p or a rate, which is never 0, to two digits."""
    return f"{value:.2g}" if column.startswith(("p_", "fdr_")) else f"{value:.4f}"


def plain_neuron(store: Store, name: str) -> str:
    """`neuron_view` as plain text."""
    return plain(neuron_view(store, name), 110)


def neuron_html(store: Store, name: str) -> str:
    """`neuron_view` for a notebook, with its colours."""
    return html(neuron_view(store, name), 150)


def _main_numbers(title: str, store: Store, row: dict[str, Any]) -> Table | Text:
    lines = main_numbers(store, row)
    if not lines:
        return shown(title)
    table = TextTable("", "", title=title, show_header=False)
    for label, value in lines:
        table.row(label, value)
    return table


def _all_numbers(title: str, row: dict[str, Any]) -> Table:
    """Every column that has a value, in pairs of columns."""
    table = TextTable(*[""] * 4, title=title, show_header=False)
    named = {"sparsity": "sparsity (share active)"}
    if not explained(row["family"], row["label"]):
        named["label"] = "label (nearest)"
    cells = [
        (named.get(column, column), _text(column, value) if isinstance(value, float) else value)
        for column, value in row.items()
        if column not in ("model", "layer", "neuron") and value is not None
    ]
    height = -(-len(cells) // 2)
    for line in range(height):
        table.row(*chain.from_iterable(cells[line::height]))
    return table


def _matches(store: Store, model: str, this_neuron: pl.Expr) -> Table:
    title = "Matches; held out: on text that did not choose them"
    beside = ["without sinks"] if has_sinks(store) else []
    matches = TextTable("model", "rank", "match", "ρ", "held out", *beside, "95 %", "mutual", title=title)
    for match in store.matches.filter((pl.col("asker") == model) & this_neuron).iter_rows(named=True):
        rank = "most negative" if match["rank"] < 0 else str(match["rank"])
        interval = f"{number(match['corr_low'])} {number(match['corr_high'])}" if finite(match["corr_low"]) else ""
        columns = ["corr_heldout", *(["corr_without_sinks"] if beside else [])]
        heldout = [number(match[column], 3) if finite(match[column]) else "" for column in columns]
        place = unit_name(match["match_layer"], match["match_neuron"])
        mutual = "⇄" * bool(match["mutual"])
        matches.row(match["match_model"], rank, place, number(match["corr"], 3), *heldout, interval, mutual)
    return matches


def _labels(store: Store, row: dict[str, Any], this_neuron: pl.Expr) -> Table:
    title = "What it fires on: the best labels" if explained(row["family"], row["label"]) else NEAREST
    table = TextTable("label", "of", "variance explained", "", title=title)
    for label in store.labels.filter((pl.col("model") == row["model"]) & this_neuron).iter_rows(named=True):
        name = ("previous token: " if label["previous"] else "") + label["label"]
        direction = "fires" if label["sign"] > 0 else "is silent"
        table.row(name, label["group"], number(label["variance_reduction"], 3), direction)
    return table


def _histogram(what: str, low: np.ndarray, high: np.ndarray, counts: np.ndarray) -> Text:
    """Pre-activations, or values, in a line of bars (log scale), but for the outermost thousandth at each end."""
    total = counts.sum()
    inside = np.cumsum(counts) / max(total, 1)
    first, last = np.searchsorted(inside, [TAIL, 1 - TAIL])
    start, end = float(low[first]), float(high[min(last, len(high) - 1)])
    edges = np.linspace(start, end, BARS + 1)
    width = np.maximum(high - low, 1e-300)
    share = np.clip(np.minimum(high, edges[1:, None]) - np.maximum(low, edges[:-1, None]), 0, None) / width
    bars = (share * counts).sum(1)
    scale = np.log1p(bars) / max(float(np.log1p(bars).max()), 1e-12)
    line = "".join(BLOCKS[min(int(np.ceil(s * (len(BLOCKS) - 1))), len(BLOCKS) - 1)] for s in scale)
    return Text(f"\n{what} (log counts)\n{start:8.2f} {line} {end:.2f}")


def example_lines(store: Store, model: str, this_neuron: pl.Expr) -> list[Text]:
    """Spans of text, tokens coloured by activation, the example's own token in « »; of a gated neuron by both signs."""
    strings = store.strings if store.has("vocabulary") else None
    rows = store.examples.filter((pl.col("model") == model) & this_neuron)
    both_tails = (rows["band"] == BOTTOM).any()
    size = rows["activation"].abs() if both_tails else rows["activation"]
    peak = max(float(size.max() or 0), 1e-12)  # type: ignore[arg-type]
    parts: list[Text] = []
    band = None
    for row in rows.iter_rows(named=True):
        if row["band"] != band:
            band = row["band"]
            title = BANDS.get(band, f"From its {band} quantiles")
            parts.append(Text.assemble("\n", shown(title, "bold")))
        line = Text(f"{row['activation']:7.2f}  ")
        for place, (token, activation) in enumerate(zip(row["tokens"], row["activations"]), start=row["start"]):
            string = legible(strings[token]) if strings else f" {token}"
            string = f"«{string}»" if place == row["position"] else string
            line.append(string, style=_colour(activation / peak, both_tails))
        parts.append(line)
    return parts


def _colour(share: float, both_tails: bool = False) -> str:
    """Background of a token by its activation's share of the highest: red, with both tails blue below 0."""
    if not (abs(share) if both_tails else share) > FAINT:
        return ""
    faded = int(255 * (1 - min(abs(share), 1.0) * 0.75))
    return f"black on rgb(255,{faded},{faded})" if share > 0 else f"black on rgb({faded},{faded},255)"
