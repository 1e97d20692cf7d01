"""A diff in a few numbers and lists, and one unit before and after: what `uneurons diff` and `uneurons show` print."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from universal_neurons.diff import KINDS, MEASURES, Diff
from universal_neurons.errors import InputError
from universal_neurons.explanations import fires_on
from universal_neurons.report.diff_effects import (
    EFFECT_HEADINGS,
    UNIT,
    effect_rows,
    effect_sentences,
    texts_of,
    unit_effect_lines,
    where,
)
from universal_neurons.report.facts import finite
from universal_neurons.report.numbers import number
from universal_neurons.report.one_neuron import example_lines
from universal_neurons.statistics import BOTTOM
from universal_neurons.terminal import TextTable, plain, shown, shown_lines
from universal_neurons.units import NONE, parse_unit, unit_name

LISTED = 10
UNUSUAL = 0.05
MOST = "Changed most"
LISTS = {
    MOST: ("redirected", "shifted", "re-scaled", "re-tuned"),
    "Moved": ("moved", "copied"),
    "Born": ("born",),
    "Died": ("died",),
}
HEADINGS = ("unit", "kind", "ρ with itself", "scale", "is now", "fires on")


@dataclass(frozen=True)
class Listed:
    """A table of text: its headings, and its rows of cells."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def diff_view(diff: Diff) -> Group:
    """How many units changed in which way, what is not known, and which changed most, moved, were born, died."""
    base, tuned = diff.models
    parts: list[Any] = [_table(f"{base} → {tuned}: {len(diff.changes):,} units", kinds_of(diff))]
    parts.append(shown_lines(*diff_sentences(diff)))
    return Group(*parts, *(_table(title, listed) for title, listed in lists_of(diff).items()))


def _table(title: str, listed: Listed) -> Table:
    wraps = ("is now", "fires on", *EFFECT_HEADINGS[2:])
    table = TextTable(*(Column(heading, no_wrap=heading not in wraps) for heading in listed.headings), title=title)
    for row in listed.rows:
        table.row(*row)
    return table


def kinds_of(diff: Diff) -> Listed:
    """A row per kind, the most drastic last."""
    second = diff.table("changes_tuned_text") if diff.has("changes_tuned_text") else None
    rows = []
    for kind in KINDS:
        of_kind = diff.changes.filter(pl.col("kind") == kind)
        row = [kind, f"{len(of_kind):,}", f"{len(of_kind) / len(diff.changes):.2%}"]
        if diff.nulls:
            row.append("" if kind == "unchanged" else f"{unusual(of_kind):,}")
        if second is not None:
            row.append(f"{(second['kind'] == kind).sum():,}")
        rows.append(tuple(row))
    further = {f"q ≤ {UNUSUAL:g}": bool(diff.nulls), "on the second text": second is not None}
    return Listed(("kind", "units", "share", *(name for name, there in further.items() if there)), tuple(rows))


def lists_of(diff: Diff) -> dict[str, Listed]:
    """The units that changed most, moved, were born and died, by the list's title; none where there are none."""
    lists = {}
    for title in LISTS:
        rows = ranked(diff, title)
        more = f", the first {LISTED} of {len(rows):,}" if len(rows) > LISTED else ""
        if len(rows):
            cells = (change_cells(row, with_q=bool(diff.nulls)) for row in rows.head(LISTED).iter_rows(named=True))
            headings = (*HEADINGS, "q") if diff.nulls else HEADINGS
            lists[f"{title}{more}"] = Listed(headings, tuple(map(tuple, cells)))
    if diff.has(UNIT):
        measured = effect_rows(diff)
        more = f": the first {LISTED} of {len(measured):,}" if len(measured) > LISTED else ""
        place = where(diff, texts_of(diff)[0])
        title = f"By how much the loss rises {place}, thousandths of a nat a token, and its share of the gain{more}"
        lists[title] = Listed(EFFECT_HEADINGS, measured[:LISTED])
    return lists


def unusual(changes: pl.DataFrame) -> int:
    """How many changes have a q of at most 0.05."""
    return int((changes["q_change"].fill_nan(None) <= UNUSUAL).sum())


def diff_sentences(diff: Diff) -> list[str]:
    """What the numbers rest on, and what cannot be known."""
    changes = diff.changes
    surely, unknown = int(changes["surely_unchanged"].sum()), changes["kind"].null_count()
    weights = {name: int((changes["weights"] == name).sum()) for name in ("identical", "rounding")}
    dead = int((changes["dead_before"] & changes["dead_after"]).sum())
    lines = [
        f"{surely:,} are surely unchanged: every interval lies within the thresholds (docs/diff.md)"
        + (f", or the unit was dead before and after ({dead:,})." if dead else ".")
    ]
    lines += family_lines(changes)
    if unknown:
        lines.append(f"Of {unknown:,} nothing can be said: their activations never change on the held-out rows.")
    if weights["identical"]:
        lines.append(f"The own weights of {weights['identical']:,} are identical before and after.")
    if weights["rounding"]:
        lines.append(f"The own weights of {weights['rounding']:,} are equal up to rounding to bfloat16.")
    return [*lines, null_sentence(diff), *effect_sentences(diff)]


def family_lines(changes: pl.DataFrame) -> list[str]:
    """How many living units each family had and has, those first whose number changed most; none without labels."""
    before, after = (Counter(changes[f"family_{when}"].drop_nulls()) for when in ("before", "after"))
    changed = sorted(before.keys() | after.keys(), key=lambda name: (-abs(after[name] - before[name]), name))
    told = [
        f"{name.replace('_', ' ')} {before[name]:,} → {after[name]:,}"
        for name in changed
        if before[name] != after[name]
    ]
    return [f"Units by what they fire on: {', '.join(told)}."] if told else []


def null_sentence(diff: Diff) -> str:
    """What the other fine-tunes say, or what is not known without any."""
    if not diff.nulls:
        return (
            "Without --null nothing is known of other fine-tunes: intervals say how sure a change is on text like "
            "this, not whether any training would have made it."
        )
    least = float(diff.changes["p_least"].min())  # type: ignore[arg-type]
    among = f"among those of {', '.join(diff.nulls)}, pooled over a layer's units"
    return f"q says how unusual a change is {among}; the smallest p that can come out is {least:.2g}."


def ranked(diff: Diff, title: str) -> pl.DataFrame:
    """The units of a list, in order; of those that changed most by the upper end of |ρ| with itself."""
    rows = diff.changes.filter(pl.col("kind").is_in(LISTS[title]))
    if title != MOST:
        return rows.sort("layer", "neuron")
    return rows.sort(upper_end(diff), "layer", "neuron", nulls_last=True, maintain_order=True)


def upper_end(diff: Diff) -> pl.Expr:
    """The upper end of ρ of each unit and itself, of gated units of |ρ|; null where there is none."""
    size = pl.max_horizontal(pl.col("self_corr_low").abs(), pl.col("self_corr_high").abs())
    return (size if diff.study.gated else pl.col("self_corr_high")).fill_nan(None)


def change_cells(row: dict[str, Any], *, with_q: bool) -> list[str]:
    """A unit's cells, as in `HEADINGS`."""
    before, after = (fires_on(_side(row, when)) for when in ("before", "after"))
    cells = [unit_name(row["layer"], row["neuron"]), row["kind"] or "–", interval(row, "self_corr", 2)]
    cells += [_factor(row["scale"]), whereabouts(row), before if before == after else f"{before} → {after}"]
    return [*cells, _small(row["q_change"])] if with_q else cells


def interval(row: dict[str, Any], name: str, decimals: int = 3) -> str:
    """A value with its 95 % interval, – where there is none."""
    if not finite(row[name]):
        return "–"
    value, low, high = (number(row[f"{name}{end}"], decimals) for end in ("", "_low", "_high"))
    return f"{value} [{low} {high}]"


def whereabouts(row: dict[str, Any]) -> str:
    """Where the base's unit is now, and where the fine-tune's was."""
    words = [row["place"] or "–"]
    if row["moved_to_layer"] != NONE:
        words.append(f"to {unit_name(row['moved_to_layer'], row['moved_to_neuron'])}")
    if row["came_from_layer"] != NONE:
        words.append(f"(now what {unit_name(row['came_from_layer'], row['came_from_neuron'])} was)")
    return " ".join(words)


def _side(row: dict[str, Any], when: str) -> dict[str, Any]:
    """A unit's family and label before or after, by the names that a study has for them."""
    return {
        name: row[f"{name}_{when}"] for name in ("family", "label", "label_sign", "variance_reduction", "position_mi")
    }


def _factor(value: float | None) -> str:
    return f"× {value:.2f}" if finite(value) else "–"


def _small(value: float | None) -> str:
    return f"{value:.2g}" if finite(value) else "–"


SHIFTS = {
    "self_corr": "ρ with itself", "mean_shift": "mean, in its standard deviations",
    "scale": "standard deviation, times", "offset": "offset beside the scale",
    "firing_shift": "firing, in its standard deviations",
    "contribution": "contribution (times norm of w_out)",
}  # fmt: skip
EXACT = {
    "firing_before": "fires at, before", "firing_after": "after", "firing_overlap": "in both, of either",
    "q50_shift": "median", "q99_shift": "0.99 quantile",
    "w_in_cos": "w_in, cosine", "w_in_ratio": "w_in, norm times",
    "w_up_cos": "w_up, cosine", "w_up_ratio": "w_up, norm times",
    "w_out_cos": "w_out, cosine", "w_out_ratio": "w_out, norm times", "logit_cos": "logit effects, cosine",
}  # fmt: skip


def unit_view(diff: Diff, name: str) -> Group:
    """One unit before and after: its kind, the evidence, where it is, what it fires on and does, examples in both."""
    parsed = parse_unit(name)
    units = diff.study.units[diff.models[0]]
    if parsed is None or parsed[0] is not None or not units.has(*parsed[1:]):
        raise InputError(
            f"{name}: no unit of this diff",
            wanted=f"L0.0 to {unit_name(*units.place_of(len(units) - 1))}, the same in both models",
        )
    layer, unit = parsed[1:]
    row = diff.changes.row(units.number_of(layer, unit), named=True)
    parts: list[Any] = [shown_lines(*_verdict(diff, row)), _evidence(diff, row), shown_lines(*_tokens(diff, row))]
    study = diff.study
    for model, when in zip(diff.models, ("Before", "After")):
        if study.has("examples") and not row[f"dead_{when.lower()}"]:
            this_unit = (pl.col("layer") == layer) & (pl.col("neuron") == unit) & pl.col("band").is_in(("top", BOTTOM))
            parts += [Text(), shown(f"{when}: {model}", "bold"), *example_lines(study, model, this_unit)]
    return Group(*parts)


def _verdict(diff: Diff, row: dict[str, Any]) -> list[str]:
    name, kind = unit_name(row["layer"], row["neuron"]), row["kind"] or "not known"
    surely = ", surely" if row["surely_unchanged"] else ""
    lines = [f"{name}, {' → '.join(diff.models)}: {kind}{surely}; it {_place_words(row)}."]
    for side, word in (("tuned", "Its best match after"), ("base", "What it is now was best matched, before, by")):
        if row[f"{side}_match_layer"] != NONE:
            match = unit_name(row[f"{side}_match_layer"], row[f"{side}_match_neuron"])
            corr = f"{number(row[f'{side}_match_corr'])}"
            lines.append(f"{word}{' is' if side == 'tuned' else ''} {match}, ρ {corr} on held-out rows.")
    before, after = (fires_on(_side(row, when)) for when in ("before", "after"))
    if row["family_before"] is not None:
        lines.append(f"Fires: {before} → {after}.")
    if row["roles_before"] is not None:
        roles = (", ".join(row[f"roles_{when}"] or []) or "none" for when in ("before", "after"))
        lines.append(f"Roles: {' → '.join(roles)}.")
    return [*lines, *unit_effect_lines(diff, row["layer"], row["neuron"]), *_unusual(diff, row)]


def _place_words(row: dict[str, Any]) -> str:
    words = {
        "stays": "stays where it was",
        "lost": "is lost: no unit does the same",
        "unclear": "does something else, and whether another unit does the same is not sure",
        None: "was dead before",
    }
    return words.get(row["place"], f"is {whereabouts(row)}" if row["place"] != "moved" else whereabouts(row))


def _unusual(diff: Diff, row: dict[str, Any]) -> list[str]:
    if not diff.nulls:
        return [null_sentence(diff)]
    measures: Sequence[str] = [f"{m} p {_small(row[f'p_{m}'])} q {_small(row[f'q_{m}'])}" for m in MEASURES]
    return ["How unusual: " + "; ".join(measures) + f". The smallest p here is {row['p_least']:.2g}."]


def _evidence(diff: Diff, row: dict[str, Any]) -> Table:
    table = TextTable("", "value [95 %]", "", "", title="The unit and itself", show_header=False)
    left = [(label, interval(row, name)) for name, label in SHIFTS.items()]
    left.append(("own weights", row["weights"]))
    right = [(label, number(row[name])) for name, label in EXACT.items() if row[name] is not None]
    for place in range(max(len(left), len(right))):
        cells = [*(left[place] if place < len(left) else ("", "")), *(right[place] if place < len(right) else ("", ""))]
        table.row(*cells)
    return table


def _tokens(diff: Diff, row: dict[str, Any]) -> list[str]:
    """The tokens whose logit effects rose and fell most."""
    if not row["raised_tokens"] or not diff.study.has("vocabulary"):
        return []
    strings = diff.study.strings

    def listed(side: str) -> str:
        pairs = zip(row[f"{side}_tokens"], row[f"{side}_by"])
        return ", ".join(f"{strings[token]!r} {by:+.2f}" if token < len(strings) else str(token) for token, by in pairs)

    return [f"Effects on logits rose for {listed('raised')}; fell for {listed('lowered')}."]


def plain_diff(diff: Diff) -> str:
    """`diff_view` as plain text, 140 characters wide."""
    return plain(diff_view(diff), 140)
