"""One-to-one matching as tables: every unit's partner, and what the pairs of two models are worth beside chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from universal_neurons.matching import (
    Comparison,
    DecoderCosines,
    OneToOne,
    assignments,
    mutual_pairs,
    pw_mcc,
    rotated_assignments,
    rotated_mutual_pairs,
    shared,
)
from universal_neurons.models import Decoder
from universal_neurons.study.counts import LEVELS
from universal_neurons.units import Units

ROTATED = ("mean_corr_rotated", "level", "pw_mcc", "pw_mcc_rotated", "pw_mcc_level")
COUNTS_ROTATED = ("matched_rotated", "mutual_rotated", "shared", "pw_mcc_shared")
INTERVALS = ("shared_low", "shared_high", "pw_mcc_calibrated", "pw_mcc_low", "pw_mcc_high")


@dataclass(frozen=True)
class Pairing:
    """The units of an asker and of another model, matched one to one; those of a random basis; their decoders."""

    asker: str
    other: str
    pairs: OneToOne
    rotated: OneToOne | None
    few: int
    decoders: DecoderCosines | None


def pairings(comparison: Comparison, decoders: Mapping[str, Decoder], seed: int) -> list[Pairing]:
    """Of an asker with every other model; `decoders` by model, compared where both write to one stream."""
    found, rotated = assignments(comparison), rotated_assignments(comparison)
    made = []
    for place, (other, pairs) in enumerate(zip(comparison.others, found)):
        ours, theirs = decoders.get(comparison.asker), decoders.get(other)
        cosines = None
        if ours is not None and theirs is not None and ours.stream == theirs.stream:
            cosines = pw_mcc(ours.directions, theirs.directions, seed=seed)
        of_basis = None if rotated is None else rotated[place]
        few = comparison.matches[place].index.shape[1]
        made.append(Pairing(comparison.asker, other, pairs, of_basis, few, cosines))
    return made


def one_to_one_table(pairings: Sequence[Pairing], units: Mapping[str, Units]) -> pl.DataFrame:
    """A row per living unit that was asked about and other model: its partner, and what that costs it."""
    frames = []
    for pairing in pairings:
        living, pairs = np.flatnonzero(pairing.pairs.living), pairing.pairs
        names = {name: [name_of] * len(living) for name, name_of in _names(pairing).items()}
        columns: dict[str, Any] = names | units[pairing.asker].table_columns(living)
        columns |= units[pairing.other].table_columns(pairs.partner[living], "match_")
        columns |= {
            "rank": pl.Series(pairs.rank[living].astype(np.int32)).replace(-1, None),
            "corr": pl.Series(pairs.corr[living]).fill_nan(None),
            "cost": pairs.cost[living],
        }
        frames.append(pl.DataFrame(columns, schema_overrides=dict.fromkeys(names, pl.String)))
    table = pl.concat(frames).select(
        "asker", "model", "layer", "neuron", "match_model", "match_layer", "match_neuron", "rank", "corr", "cost"
    )
    return table.sort("asker", "layer", "neuron", "match_model", maintain_order=True)


def _names(pairing: Pairing) -> dict[str, str]:
    return {"asker": pairing.asker, "model": pairing.asker, "match_model": pairing.other}


def consistency_table(comparison: Comparison, pairings: Sequence[Pairing]) -> pl.DataFrame:
    """A row per other model: how many units are matched one to one, how well, and what chance gives."""
    mutual, by_chance = mutual_pairs(comparison), rotated_mutual_pairs(comparison)
    rows = []
    for place, pairing in enumerate(pairings):
        pairs, rotated = pairing.pairs, pairing.rotated
        living = pairs.living
        row: dict[str, Any] = _names(pairing) | {
            "candidates": pairing.few,
            "units": int(living.sum()),
            "matched": int(pairs.matched.sum()),
            "moved": int(pairs.moved.sum()),
            "cost": _mean(pairs.cost[living]),
            "mean_best": _mean(pairs.best[living]),
            "mean_corr": _number(pairs.mean),
            "mutual": int(mutual.mutual[place].sum()),
            "matched_rotated": None if rotated is None else int(rotated.matched.sum()),
            "mean_corr_rotated": None if rotated is None else _number(rotated.mean),
            "mutual_rotated": None if by_chance is None else int(by_chance.mutual[place].sum()),
        }
        rows.append(row | _shared(pairs, rotated) | _of_decoders(pairing.decoders))
    floats = dict.fromkeys((*ROTATED, *INTERVALS), pl.Float64)
    return pl.DataFrame(rows, schema_overrides=floats | dict.fromkeys(COUNTS_ROTATED, pl.Int64))


def _shared(pairs: OneToOne, rotated: OneToOne | None) -> dict[str, Any]:
    names = ("shared", "level", "shared_low", "shared_high")
    if rotated is None:
        return dict.fromkeys(names)
    found = shared(pairs.worth, rotated.worth, int(pairs.living.sum()))
    return dict(zip(names, (found.count, _number(found.level), *map(_number, found.interval))))


def _of_decoders(found: DecoderCosines | None) -> dict[str, Any]:
    names = (
        "pw_mcc", "pw_mcc_rotated", "pw_mcc_calibrated", "pw_mcc_low", "pw_mcc_high", "pw_mcc_shared", "pw_mcc_level",
    )  # fmt: skip
    if found is None:
        return dict.fromkeys(names)
    numbers = map(_number, (found.mean, found.rotated, *found.calibrated))
    return dict(zip(names, (*numbers, found.shared.count, _number(found.shared.level))))


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def consistency_levels_table(comparison: Comparison, pairings: Sequence[Pairing]) -> pl.DataFrame:
    """A row per other model and level of |ρ|: one-to-one and mutual pairs from there up, and in a random basis."""
    mutual, by_chance = mutual_pairs(comparison), rotated_mutual_pairs(comparison)
    rows = []
    for place, pairing in enumerate(pairings):
        for level in LEVELS:
            counts: dict[str, Any] = {"level": level, "matched": pairing.pairs.pairs_from(level)}
            counts["matched_rotated"] = None if pairing.rotated is None else pairing.rotated.pairs_from(level)
            counts["mutual"] = int((mutual.mutual[place] & (mutual.size[place] >= level)).sum())
            counts["mutual_rotated"] = None
            if by_chance is not None:
                counts["mutual_rotated"] = int((by_chance.mutual[place] & (by_chance.size[place] >= level)).sum())
            rows.append(_names(pairing) | counts)
    overrides = dict.fromkeys(("matched_rotated", "mutual_rotated"), pl.Int64)
    return pl.DataFrame(rows, schema_overrides=overrides)
