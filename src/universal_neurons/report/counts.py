"""Counts beside what chance gives, as lines for a terminal and a page.

Over thresholds, beside untrained networks, of mutual pairs and anchors, of cliques.
"""

from collections.abc import Iterable

import polars as pl

from universal_neurons.errors import StoreConflictError
from universal_neurons.legible import legible
from universal_neurons.storage import Store

DISCOVERY = 0.05  # the false-discovery rate that counts are given at
SHOWN_LEVELS = (0.3, 0.5, 0.7, 0.9)
ANCHOR_LEVEL = 0.5  # of the line that tells of anchors
ANCHOR_ROWS = {
    "mutual pairs": "pairs",
    "in a random basis": "pairs_rotated",
    "anchors": "anchors",
    "anchors in a random basis": "anchors_rotated",
    "universal anchors": "universal",
}


def threshold_counts(store: Store, asker: str, column: str) -> tuple[str, str]:
    """The thresholds around the study's own, and an asker's counts there, as text."""
    around = _around(store, store.table("thresholds").filter(pl.col("asker") == asker))
    return _numbers(around["threshold"]), " ".join(map(str, around[column]))


def _around(store: Store, rows: pl.DataFrame) -> pl.DataFrame:
    """The study's own threshold with the one before and after."""
    rows, own = rows.sort("threshold"), store.config.threshold
    if own not in rows["threshold"]:
        raise StoreConflictError(
            f"{store.path}: study.json and thresholds.parquet are not of one study",
            given=f"threshold {own}",
            wanted="one of the table's",
            fix="restore the file that was changed, or run the study again",
        )
    place = rows["threshold"].to_list().index(own)
    return rows[max(place - 1, 0) : place + 2]


def untrained_line(store: Store, asker: str) -> str:
    """How many neurons exceed untrained ones, and how far these come."""
    null = store.table("null").filter(pl.col("asker") == asker)["excess_corr"].to_numpy()
    rates = store.neurons.filter(pl.col("model") == asker)["fdr_untrained"]
    largest = f"their largest excess is {null.max():.3f}" if len(null) else "none of theirs lives"
    found = int((rates <= DISCOVERY).sum())
    draws = store.manifest["null"]["draws"]
    return f"{found} neurons at FDR ≤ {_number(DISCOVERY)}; {largest} ({draws} draw{'s' if draws > 1 else ''})"


def anchors_line(store: Store, asker: str) -> str | None:
    """How many anchors an asker has, at any |ρ| and at 0.5, and how many in a random basis; None of an older study."""
    if not store.has("anchors"):
        return None
    rows = store.table("anchors").filter(pl.col("asker") == asker)
    every, above = (rows.row(by_predicate=pl.col("level") == level, named=True) for level in (0.0, ANCHOR_LEVEL))
    line = (
        f"{every['anchors']} anchors (mutual in every model), {above['anchors']} of them at ρ ≥ {_number(ANCHOR_LEVEL)}"
    )
    if every["anchors_rotated"] is None:
        return line
    return f"{line}; in a random basis {every['anchors_rotated']} and {above['anchors_rotated']}"


def anchor_lines(store: Store, asker: str) -> list[tuple[str, ...]]:
    """Mutual pairs and anchors of an asker by least |ρ|, beside those of a random basis; nothing of an older study.

    The first row says what the columns are.
    """
    if not store.has("anchors"):
        return []
    levels = store.table("anchors").filter((pl.col("asker") == asker) & pl.col("level").is_in([0.0, *SHOWN_LEVELS]))
    rows = [("at ρ ≥", *("any" if level == 0 else _number(level) for level in levels["level"]))]
    for title, column in ANCHOR_ROWS.items():
        rows.append((title, *("–" if count is None else f"{count:,}" for count in levels[column])))
    return rows


def clique_lines(store: Store) -> list[tuple[str, str]]:
    """What they say of the mutual cliques of a study that asked about every model; nothing of another study."""
    if not store.has("clique_levels"):
        return []
    levels = store.table("clique_levels")
    every = levels.row(0, named=True)
    reference = legible(store.models[0])
    lines = [
        ("mutual cliques", str(every["cliques"])),
        (f"universal in {reference}", str(every["universal"])),
        ("universal in every model", str(every["universal_everywhere"])),
        ("in random bases", "–" if every["rotated"] is None else _with_largest(store, every["rotated"])),
    ]
    shown = levels.filter(pl.col("level").is_in(SHOWN_LEVELS))
    at = _numbers(shown["level"])
    lines.append((f"at min ρ ≥ {at}", " ".join(map(str, shown["cliques"]))))
    if every["rotated"] is not None:
        lines.append((f"random bases, at min ρ ≥ {at}", " ".join(map(str, shown["rotated"]))))
    return lines


def _with_largest(store: Store, count: int) -> str:
    """The cliques of random bases, and up to which level there are any."""
    if not count:
        return "0"
    filled = store.table("clique_levels").filter(pl.col("rotated") > 0)["level"].to_list()
    return f"{count}, none at min ρ ≥ {_number(min(1.0, round(max(filled) + 0.1, 1)))}"


def _numbers(values: Iterable[float]) -> str:
    return " ".join(map(_number, values))


def _number(value: float) -> str:
    """A threshold or level as 0.45, or with as many digits as it has."""
    return f"{value:.2f}" if round(value, 2) == value else f"{value:g}"
