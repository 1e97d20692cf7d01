"""One-to-one matches, and layers as wholes, as rows of text for a terminal and a page."""

from typing import Any

import polars as pl
from rich.console import Group
from rich.table import Table

from universal_neurons.report.facts import finite
from universal_neurons.report.numbers import number
from universal_neurons.storage import Store
from universal_neurons.terminal import TextTable, shown

CONSISTENCY_WORDS = (
    "Every unit is used once: the pairs of largest total ρ. Moved: given another unit than its best match, or none; "
    "cost: the ρ that is lost thereby, a unit. In a random basis: the same with the other model's rotated units. "
    "Beyond chance: pairs of a ρ from which at most a twentieth as many are in the random basis, as a share of the "
    "living units, with its 95 % interval."
)
SIMILARITY_WORDS = (
    "Of every layer the one that is most alike by debiased CKA, calibrated: 0 by chance, 1 of the same layers; with "
    "95 % intervals."
)
OF_DECODERS = "PW-MCC (rotated)"


def consistency_rows(store: Store, asker: str) -> list[tuple[str, ...]]:
    """An asker's one-to-one matches with every other model; the first row says what the columns are.

    Nothing of an older study.
    """
    if not store.has("consistency"):
        return []
    table = store.table("consistency").filter(pl.col("asker") == asker)
    heading = (
        "one to one with", "pairs", "moved", "cost", "mean ρ", "in a random basis", "beyond chance", "mutual",
    )  # fmt: skip
    decoders = not table["pw_mcc"].is_null().all()
    rows: list[tuple[str, ...]] = [(*heading, OF_DECODERS) if decoders else heading]
    for row in table.iter_rows(named=True):
        cells = (
            row["match_model"],
            f"{row['matched']:,} of {row['units']:,}",
            f"{row['moved']:,}",
            number(row["cost"], 3),
            number(row["mean_corr"]),
            number(row["mean_corr_rotated"]),
            _beyond(row),
            f"{row['mutual']:,}" + ("" if row["mutual_rotated"] is None else f" ({row['mutual_rotated']:,} rotated)"),
        )
        mcc = f"{number(row['pw_mcc'])} ({number(row['pw_mcc_rotated'])})"
        rows.append((*cells, mcc) if decoders else cells)
    return rows


def _beyond(row: dict[str, Any]) -> str:
    if row["shared"] is None:
        return "–"
    share = f"{row['shared'] / row['units']:.0%}" if row["units"] else "–"
    interval = f" [{row['shared_low']:.0%} {row['shared_high']:.0%}]" if finite(row["shared_low"]) else ""
    return share + interval + (f" at ρ ≥ {number(row['level'])}" if finite(row["level"]) else "")


def similarity_askers(store: Store) -> list[str]:
    """The models whose layers are compared with others', in the study's order; none of an older study."""
    if not store.has("similarity"):
        return []
    named = set(store.table("similarity")["asker"])
    return [name for name in store.models if name in named]


def similarity_rows(store: Store, asker: str) -> list[tuple[str, ...]]:
    """Of every layer of a model the most alike one of every other; the first row says what the columns are."""
    table = store.table("similarity").filter((pl.col("asker") == asker) & (pl.col("measure") == "cka"))
    others = [name for name in store.models if name in set(table["match_model"])]
    best = (
        table.with_columns(pl.col("calibrated").fill_nan(None))
        .sort("calibrated", descending=True, nulls_last=True, maintain_order=True)
        .group_by("layer", "match_model", maintain_order=True)
        .first()
    )
    cells = {(row["layer"], row["match_model"]): _most_alike(row) for row in best.iter_rows(named=True)}
    rows = [(f"layer of {asker}", *others)]
    for layer in sorted(set(table["layer"])):
        rows.append((f"L{layer}", *(cells[layer, other] for other in others)))
    return rows


def _most_alike(row: dict[str, Any]) -> str:
    if not finite(row["calibrated"]):
        return "–"
    interval = f" [{number(row['calibrated_low'])} {number(row['calibrated_high'])}]"
    return f"L{row['match_layer']} {number(row['calibrated'])}" + interval * finite(row["calibrated_low"])


def consistency_view(store: Store, asker: str) -> Group:
    """An asker's one-to-one matches with every other model."""
    return Group(_table(consistency_rows(store, asker), f"One to one: {asker}"), _words(CONSISTENCY_WORDS))


def similarity_view(store: Store) -> Group:
    """Which layers are most alike."""
    tables = [_table(similarity_rows(store, asker), f"Layers as wholes: {asker}") for asker in similarity_askers(store)]
    return Group(*tables, _words(SIMILARITY_WORDS))


def _table(rows: list[tuple[str, ...]], title: str) -> Table:
    table = TextTable(*rows[0], title=title)
    for row in rows[1:]:
        table.row(*row)
    return table


def _words(text: str) -> Any:
    return shown(text, "table.caption")
