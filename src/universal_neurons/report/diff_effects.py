"""What the units that changed most carry of a fine-tune's gain: sentences, a list, one unit's lines."""

from typing import Any

import polars as pl

from universal_neurons.diff import CHANGED, OTHERS, Diff
from universal_neurons.report.facts import finite
from universal_neurons.report.numbers import number
from universal_neurons.units import unit_name

UNIT, JOINT = "unit_effects", "joint_effects"
EFFECT_HEADINGS = ("unit", "kind", "patched", "share, %", "ablated before", "ablated after")


def effect_sentences(diff: Diff) -> list[str]:
    """A sentence for each text, the second first; none where no effects were measured."""
    if not diff.has(JOINT):
        return []
    joint = diff.table(JOINT)
    return [_sentence(diff, joint.filter(text=text)) for text in texts_of(diff)]


def texts_of(diff: Diff) -> list[str]:
    """The texts that effects were measured on, the fine-tune's own first."""
    return diff.table(JOINT)["text"].unique(maintain_order=True).to_list()[::-1]


def where(diff: Diff, text: str) -> str:
    """On which text, in words."""
    return f"on the {text} text" if len(texts_of(diff)) > 1 else "on held-out text"


def _sentence(diff: Diff, joint: pl.DataFrame) -> str:
    changed, others = (joint.row(by_predicate=pl.col("units") == units, named=True) for units in (CHANGED, OTHERS))
    place, gain = where(diff, changed["text"]), with_ends(changed, "gain")
    if changed["share"] is None:
        said = f"{place[0].upper()}{place[1:]} the fine-tune's gain is not to be told from 0: {gain} nats a token"
        return f"{said}. So nothing is a share of it."
    did, size = ("gained", gain) if changed["gain"] > 0 else ("lost", with_ends(changed, "gain", sign=-1))
    beside = f"; {others['count']:,} others of their layers {with_ends(others, 'share')}" if others["count"] else ""
    many = changed["count"]
    whose = f"The {many:,} units that changed most carry" if many > 1 else "The unit that changed most carries"
    carried = f"{whose} {with_ends(changed, 'share')} of what the fine-tune {did} {place} ({size} nats a token)"
    return (
        f"{carried}{beside}. Given to the base, their activations bring it {with_ends(changed, 'given_share')} of it."
    )


def with_ends(row: dict[str, Any], name: str, *, sign: int = 1) -> str:
    """A value with its 95 % interval, – where there is none."""
    if not finite(row[name]):
        return "–"
    low, high = sorted(sign * row[f"{name}{end}"] for end in ("_low", "_high"))
    return f"{_short(sign * row[name])} [{_short(low)} {_short(high)}]"


def _short(value: float) -> str:
    """Three decimals, or where that would be 0 two digits."""
    return number(value, 3) if abs(value) >= 0.01 or not value else f"{value:.2g}".replace("-", "−", 1)


def effect_rows(diff: Diff) -> tuple[tuple[str, ...], ...]:
    """The cells of `EFFECT_HEADINGS` of every unit on the fine-tune's text, in the order of their shares' size.

    Losses in thousandths of a nat, the share of the gain in per cent.
    """
    rows = diff.table(UNIT).filter(text=texts_of(diff)[0])
    rows = rows.join(diff.changes.select("layer", "neuron", "kind"), on=["layer", "neuron"], how="left")
    ordered = rows.sort(pl.col("patched").abs(), "rank", descending=[True, False])
    times = {"patched": 1000, "share": 100, "ablated_before": 1000, "ablated_after": 1000}
    return tuple(
        (
            unit_name(row["layer"], row["neuron"]),
            row["kind"] or "–",
            *(_times(row, name, factor) for name, factor in times.items()),
        )
        for row in ordered.iter_rows(named=True)
    )


def _times(row: dict[str, Any], name: str, factor: int) -> str:
    """A multiple of a value with its 95 % interval, – where there is none."""
    if not finite(row[name]):
        return "–"
    value, low, high = (number(factor * row[f"{name}{end}"], 1) for end in ("", "_low", "_high"))
    return f"{value} [{low} {high}]"


def unit_effect_lines(diff: Diff, layer: int, unit: int) -> list[str]:
    """What was measured of one unit, a line for each text; none where nothing was."""
    if not diff.has(UNIT):
        return []
    table = diff.table(UNIT).filter(layer=layer, neuron=unit)
    return [_unit_line(diff, row) for row in table.reverse().iter_rows(named=True)]


def _unit_line(diff: Diff, row: dict[str, Any]) -> str:
    share = "" if row["share"] is None else f", {with_ends(row, 'share')} of the gain"
    place = where(diff, row["text"])
    return (
        f"Loss {place}, nats a token: given the base's activation it rises by {with_ends(row, 'patched')}{share}; "
        f"ablated, by {with_ends(row, 'ablated_before')} before and {with_ends(row, 'ablated_after')} after."
    )
