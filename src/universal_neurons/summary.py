"""A study in a few numbers and tables: what `uneurons show` prints and the report repeats."""

import math
import re
from dataclasses import dataclass
from typing import Any

import polars as pl
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from universal_neurons.errors import InputError
from universal_neurons.store import Store

FALLBACK_SHARE = 0.01  # shown where no neuron is universal: the best by excess


@dataclass(frozen=True)
class Facts:
    """What a study found about one asker's neurons."""

    asker: str
    others: tuple[str, ...]
    neurons: int
    dead: int
    tokens: int
    threshold: float
    universal: int
    universal_heldout: int
    universal_surely: int
    universal_possibly: int
    universal_per_layer: tuple[int, ...]
    excess_median: float
    excess_p99: float
    excess_max: float
    discoveries: int  # q_value <= 0.05
    gap_all: float  # mean over neurons of max - min over models of the best correlation
    gap_universal: float | None
    mutual: float  # share of best matches that are mutual
    optimism: float  # mean of corr - corr_heldout over best matches

    @property
    def share(self) -> float:
        """Universal share of all neurons."""
        return self.universal / self.neurons


def facts(store: Store, asker: str) -> Facts:
    """The facts about one asker."""
    table = store.neurons.filter(pl.col("model") == asker)
    alive = table.filter(pl.col("excess_corr").is_finite())
    universal = alive.filter("is_universal")
    best = store.matches.filter((pl.col("asker") == asker) & (pl.col("rank") == 1))
    threshold = store.config.threshold
    gap = pl.col("max_corr") - pl.col("min_corr")

    def count(condition: pl.Expr) -> int:
        return int(alive.select((condition.fill_nan(None) > threshold).sum()).item())

    per_layer = table.group_by("layer").agg(pl.col("is_universal").sum()).sort("layer")["is_universal"]
    return Facts(
        asker=asker,
        others=tuple(name for name in store.models if name != asker),
        neurons=len(table),
        dead=int(table["dead"].sum()),
        tokens=int(store.manifest["counted_tokens"]),
        threshold=threshold,
        universal=len(universal),
        universal_heldout=count(pl.col("excess_heldout")),
        universal_surely=count(pl.col("excess_low")),
        universal_possibly=count(pl.col("excess_high")),
        universal_per_layer=tuple(int(n) for n in per_layer),
        excess_median=_number(alive["excess_corr"].median()),
        excess_p99=_number(alive["excess_corr"].quantile(0.99, "linear")),
        excess_max=_number(alive["excess_corr"].max()),
        discoveries=int((alive["q_value"] <= 0.05).sum()),
        gap_all=_number(alive.select(gap.mean()).item()),
        gap_universal=_number(universal.select(gap.mean()).item()) if len(universal) else None,
        mutual=_number(best["mutual"].mean()),
        optimism=_number(best.select((pl.col("corr") - pl.col("corr_heldout")).fill_nan(None).mean()).item()),
    )


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def shown_neurons(store: Store, asker: str, most: int = 20) -> tuple[pl.DataFrame, str]:
    """The neurons to show, best first, and what they are: the universal ones, or the top 1 % where none is."""
    asked = (pl.col("model") == asker) & pl.col("excess_corr").is_finite()
    alive = store.neurons.filter(asked).sort("excess_corr", descending=True)
    universal = alive.filter("is_universal")
    if len(universal):
        some = f", the first {most}" if len(universal) > most else ""
        return universal.head(most), f"Universal neurons of {asker}{some}"
    top = max(1, math.ceil(FALLBACK_SHARE * len(alive)))
    some = f", the first {most}" if top > most else ""
    title = f"No neuron of {asker} passes {store.config.threshold:g}: the top 1 % by excess correlation{some}"
    return alive.head(min(most, top)), title


def match_cells(store: Store, asker: str, layer: int, neuron: int, *, intervals: bool = True) -> dict[str, str]:
    """The best match in each other model, as `L1.151 .78 [.75 .81]`, ⇄ where it is mutual."""
    rows = store.matches.filter(
        (pl.col("asker") == asker) & (pl.col("layer") == layer) & (pl.col("neuron") == neuron) & (pl.col("rank") == 1)
    )
    return {
        row["model"]: f"L{row['match_layer']}.{row['match_neuron']} {short(row['corr'])}"
        + (f" [{short(row['corr_low'])} {short(row['corr_high'])}]" if intervals and finite(row["corr_low"]) else "")
        + (" ⇄" if row["mutual"] else "")
        for row in rows.iter_rows(named=True)
    }


def finite(value: float | None) -> bool:
    """Whether there is a number."""
    return value is not None and math.isfinite(value)


def short(value: float | None) -> str:
    """A correlation as .78, −.12, 1.00 or –."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.2f}"
    return text.replace("0.", ".", 1) if abs(value) < 0.995 else text


def fact_lines(found: Facts) -> list[tuple[str, str]]:
    """The facts as label and value."""
    per_layer = " ".join(map(str, found.universal_per_layer))
    gap = f"{found.gap_all:.3f}" + ("" if found.gap_universal is None else f"; universal {found.gap_universal:.3f}")
    return [
        ("compared with", ", ".join(found.others)),
        ("neurons", f"{found.neurons:,}" + (f", {found.dead} dead" if found.dead else "")),
        ("tokens counted", f"{found.tokens:,}"),
        (f"universal (excess > {found.threshold:g})", f"{found.universal} = {found.share:.2%}; per layer {per_layer}"),
        (
            "on held-out rows",
            f"{found.universal_heldout}; surely {found.universal_surely}, possibly {found.universal_possibly} (95 %)",
        ),
        (
            "excess correlation",
            f"median {found.excess_median:.3f}, p99 {found.excess_p99:.3f}, max {found.excess_max:.3f}",
        ),
        ("beyond a random basis", f"{found.discoveries} neurons at q ≤ .05 (the basis is privileged, not universal)"),
        ("max − min over models", gap),
        ("mutual best matches", f"{found.mutual:.1%}"),
        ("ρ lost on held-out rows", f"{found.optimism:.3f}"),
    ]


def published_rows(store: Store) -> list[tuple[str, str, str]]:
    """Ours beside a publication's: what, ours, theirs."""
    theirs = store.config.published
    if theirs is None:
        return []
    ours = facts(store, store.models[0])
    share = f"{theirs.universal:,} = {theirs.universal / theirs.neurons:.2%}"
    rows = [
        ("neurons", f"{ours.neurons:,}", f"{theirs.neurons:,}"),
        ("universal", f"{ours.universal:,} = {ours.share:.2%}", share),
    ]
    if theirs.universal_per_layer:
        per_layer = zip(ours.universal_per_layer, theirs.universal_per_layer)
        rows += [(f"universal in layer {n}", str(mine), str(its)) for n, (mine, its) in enumerate(per_layer)]
    return rows


def study_view(store: Store) -> Group:
    """A study as rich tables."""
    parts: list[Any] = []
    for asker in store.askers:
        table = Table(title=f"{asker}: which of its neurons does every model find again?", show_header=False)
        for label, value in fact_lines(facts(store, asker)):
            table.add_row(label, value)
        parts += [table, neurons_view(store, asker)]
    rows = published_rows(store)
    if rows and store.config.published:
        table = Table("", "this study", store.config.published.source, title="Beside the published counts")
        for row in rows:
            table.add_row(*row)
        parts.append(table)
    return Group(*parts)


def neurons_view(store: Store, asker: str) -> Table:
    """The most universal neurons with their matches."""
    shown, title = shown_neurons(store, asker)
    others = [name for name in store.models if name != asker]
    table = Table("neuron", "excess", "95 %", "q", *others, title=title)
    for row in shown.iter_rows(named=True):
        cells = match_cells(store, asker, row["layer"], row["neuron"], intervals=False)
        interval = f"{short(row['excess_low'])} {short(row['excess_high'])}"
        q = f"{row['q_value']:.3f}"
        place = f"L{row['layer']}.{row['neuron']}"
        table.add_row(place, short(row["excess_corr"]), interval, q, *(cells.get(name, "–") for name in others))
    return table


def parse_neuron(name: str, store: Store) -> tuple[str, int, int]:
    """`L3.17` or `seed-1/L3.17` to model, layer, neuron."""
    found = re.fullmatch(r"(?:(?P<model>.+)/)?L(?P<layer>\d+)\.(?P<neuron>\d+)", name)
    if not found:
        raise InputError(f"{name}: not a neuron's name", wanted="L3.17 or seed-1/L3.17")
    model = found["model"] or store.models[0]
    if model not in store.models:
        raise InputError(f"{name}: no such model in this study", wanted="one of " + ", ".join(store.models))
    return model, int(found["layer"]), int(found["neuron"])


def neuron_view(store: Store, name: str) -> Group:
    """One neuron: its numbers and its matches."""
    model, layer, neuron = parse_neuron(name, store)
    here = (pl.col("layer") == layer) & (pl.col("neuron") == neuron)
    rows = store.neurons.filter((pl.col("model") == model) & here).to_dicts()
    if not rows:
        shape = next(m for m in store.manifest["models"] if m["name"] == model)
        raise InputError(
            f"{name}: no such neuron", wanted=f"layer < {shape['layers']} and neuron < {shape['d_mlp']} in {model}"
        )
    row = rows[0]
    numbers = Table("", "", title=f"{model}/L{layer}.{neuron}", show_header=False)
    for column, value in row.items():
        if column not in ("model", "layer", "neuron") and value is not None:
            numbers.add_row(column, f"{value:.4f}" if isinstance(value, float) else str(value))
    if model not in store.askers:
        return Group(numbers, Text(f"The study did not ask about {model}'s neurons (--pairs all does)."))
    if row["dead"]:
        return Group(numbers, Text("Dead: its activation never changes, so it correlates with nothing."))
    matches = Table("model", "rank", "match", "ρ", "held out", "95 %", "mutual", title="Matches")
    for match in store.matches.filter((pl.col("asker") == model) & here).iter_rows(named=True):
        rank = "most negative" if match["rank"] < 0 else str(match["rank"])
        interval = f"{short(match['corr_low'])} {short(match['corr_high'])}" if finite(match["corr_low"]) else ""
        heldout = f"{match['corr_heldout']:.3f}" if finite(match["corr_heldout"]) else ""
        place = f"L{match['match_layer']}.{match['match_neuron']}"
        matches.add_row(
            match["model"], rank, place, f"{match['corr']:.3f}", heldout, interval, "⇄" * bool(match["mutual"])
        )
    return Group(numbers, matches)


def plain_summary(store: Store) -> str:
    """The study's facts as plain text."""
    console = Console(width=110, no_color=True, highlight=False)
    with console.capture() as captured:
        console.print(study_view(store))
    return captured.get()
