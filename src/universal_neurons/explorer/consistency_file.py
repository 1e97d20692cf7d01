"""A study's one-to-one matches and similarity of layers as one JSON file: `uneurons export RUN --consistency`.

The classes are the format: what is written was validated by them, `Consistency.model_validate_json` reads it, and
`Consistency.model_json_schema()` is its JSON Schema.  `version` changes where a reader of this one would misread
a file.
Numbers that are not there are null; the same study gives the same bytes.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict

from universal_neurons import __version__
from universal_neurons.disk import disk_errors, local_path, write_atomically
from universal_neurons.errors import MissingFileError, StoreConflictError
from universal_neurons.storage import Store
from universal_neurons.units import name_column

FORMAT: Literal["universal-neurons consistency"] = "universal-neurons consistency"
VERSION: Literal[1] = 1
TABLES = ("consistency", "consistency_levels", "one_to_one", "similarity")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ComparedModel(_Part):
    """A model: its name in this file, the SHA-256 of its weights, how many units each of its layers has."""

    name: str
    sha256: str
    widths: tuple[int, ...]


class Level(_Part):
    """Pairs of at least this |ρ|: matched one to one, mutual best matches, and the same in a random basis."""

    level: float
    matched: int
    matched_rotated: int | None
    mutual: int
    mutual_rotated: int | None


class Partners(_Part):
    """One list each, an entry a living unit of the asker: its name, its partner's (null: none), ρ, the partner's rank
    among its matches, what of the best match's ρ it gives up, and whether its best match is mutual."""

    unit: tuple[str, ...]
    match: tuple[str | None, ...]
    corr: tuple[float | None, ...]
    rank: tuple[int | None, ...]
    cost: tuple[float, ...]
    mutual: tuple[bool, ...]


class ModelPair(_Part):
    """The units of `asker` matched with those of `match_model`: the row of the table `consistency`, and the pairs."""

    asker: str
    match_model: str
    candidates: int
    units: int
    matched: int
    moved: int
    cost: float | None
    mean_best: float | None
    mean_corr: float | None
    mutual: int
    matched_rotated: int | None
    mean_corr_rotated: float | None
    mutual_rotated: int | None
    shared: int | None
    level: float | None
    shared_low: float | None
    shared_high: float | None
    pw_mcc: float | None
    pw_mcc_rotated: float | None
    pw_mcc_calibrated: float | None
    pw_mcc_low: float | None
    pw_mcc_high: float | None
    pw_mcc_shared: int | None
    pw_mcc_level: float | None
    levels: tuple[Level, ...]
    partners: Partners


class LayerPair(_Part):
    """A measure of two layers: a row of the table `similarity`."""

    asker: str
    layer: int
    match_model: str
    match_layer: int
    measure: Literal["cka", "cca", "r2_to_match", "r2_from_match"]
    value: float | None
    chance: float | None
    calibrated: float | None
    calibrated_low: float | None
    calibrated_high: float | None


class Consistency(_Part):
    """The file."""

    format: Literal["universal-neurons consistency"] = FORMAT
    version: Literal[1] = VERSION
    universal_neurons: str
    study: str
    tokens: int
    search: str
    baseline: str
    models: tuple[ComparedModel, ...]
    pairs: tuple[ModelPair, ...]
    layers: tuple[LayerPair, ...]


def consistency_of(store: Store) -> Consistency:
    """What the file holds of a study; `MissingFileError` where it has neither one-to-one matches nor similarity."""
    if not any(map(store.has, TABLES)):
        raise MissingFileError(
            f"{store.path}: no one-to-one matches and no similarity of layers",
            given="a study of one model, without the stages universality and similarity, or of an earlier version",
            wanted="a study of two models or more with one of these stages",
            fix="run it again into another folder: uneurons run -c RUN/study.json --out ANOTHER",
        )
    units = store.units
    models = [
        {"name": facts["name"], "sha256": facts["sha256"], "widths": units[facts["name"]].widths}
        for facts in store.manifest["models"]
    ]
    return Consistency.model_validate(
        {
            "universal_neurons": __version__,
            "study": store.path.resolve().name,
            "tokens": store.manifest["counted_tokens"],
            "search": store.config.search,
            "baseline": store.config.baseline,
            "models": models,
            "pairs": list(_pairs(store)) if store.has("consistency") else [],
            "layers": _rows(store.table("similarity").drop("model")) if store.has("similarity") else [],
        }
    )


def _pairs(store: Store) -> Iterator[dict[str, Any]]:
    levels, partners = store.table("consistency_levels"), store.table("one_to_one")
    best = store.matches.filter(pl.col("rank") == 1).select("asker", "layer", "neuron", "match_model", "mutual")
    partners = partners.join(best, on=["asker", "layer", "neuron", "match_model"], how="left", maintain_order="left")
    for row in _rows(store.table("consistency").drop("model")):
        of_pair = (pl.col("asker") == row["asker"]) & (pl.col("match_model") == row["match_model"])
        chosen = partners.filter(of_pair).select(
            name_column().alias("unit"),
            pl.when(pl.col("match_neuron") >= 0).then(name_column("match_")).alias("match"),
            "corr", "rank", "cost", "mutual",
        )  # fmt: skip
        at_levels = _rows(levels.filter(of_pair).drop("asker", "model", "match_model"))
        yield row | {"levels": at_levels, "partners": chosen.to_dict(as_series=False)}


def _rows(table: pl.DataFrame) -> list[dict[str, Any]]:
    """A table's rows, with null for what is not finite."""

    def known(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return [{name: known(value) for name, value in row.items()} for row in table.iter_rows(named=True)]


def write_consistency(store: Store, out: str | Path) -> Path:
    """Write a study's file; returns it.  Raises `StoreConflictError` where a folder, or a file of another kind, is."""
    target, content = local_path(out), consistency_of(store)
    with disk_errors(target):
        if target.is_dir() or (target.exists() and FORMAT.encode() not in target.read_bytes()[:200]):
            raise StoreConflictError(
                f"{target}: is a {'folder' if target.is_dir() else 'file of another kind'}",
                wanted="a new file, or one that --consistency wrote",
                fix="name another --out, such as consistency.json",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        return write_atomically(target, content.model_dump_json().encode() + b"\n")
