"""Where is a unit of the base in the fine-tune?  By the best matches, each way, and each unit and itself.

A match counts as another unit's where it surely has a higher |ρ| on held-out rows than the unit has with itself, and at
least `same`: the lower end of its interval exceeds the upper end of the unit's own.  So a unit of the base

- stays: its own |ρ| may be `same` or more; split: it is, and other units of the fine-tune do the same;
- moved: another unit does what it did; merged: one that does so for other units too, or goes on as itself;
- is lost: surely no unit does the same; is unclear: another one may.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from universal_neurons.units import NONE, Units

PLACES = ("merged", "moved", "split", "stays", "lost", "unclear")


@dataclass(frozen=True)
class BestMatches:
    """Of every unit of one model its best match in the other (−1: none), and the interval of |ρ| on held-out rows.

    `other` is the best one of another index (−1: not known), with its ρ on the rows that choose.
    """

    match: Int[np.ndarray, " units"]
    corr: Float[np.ndarray, " units"]
    low: Float[np.ndarray, " units"]
    high: Float[np.ndarray, " units"]
    other: Int[np.ndarray, " units"]
    other_corr: Float[np.ndarray, " units"]

    @classmethod
    def of(cls, matches: pl.DataFrame, asker: str, units: Units, *, by_size: bool) -> "BestMatches":
        """From a study's table `matches`; of gated models (`by_size`) intervals are those of |ρ|."""
        ranked = matches.filter((pl.col("asker") == asker) & (pl.col("rank") > 0)).sort("rank", maintain_order=True)
        ranked = ranked.with_columns(number=units.number_column(), match=units.number_column("match_"))
        every = pl.DataFrame({"number": np.arange(len(units))})
        best = every.join(ranked.filter(pl.col("rank") == 1), on="number", how="left", maintain_order="left")
        others = ranked.filter(pl.col("match") != pl.col("number")).unique("number", keep="first", maintain_order=True)
        other = every.join(others, on="number", how="left", maintain_order="left")
        corr, low, high = (
            best[name].fill_null(np.nan).to_numpy() for name in ("corr_heldout", "corr_low", "corr_high")
        )
        turned = by_size & (corr < 0)
        return cls(
            match=best["match"].fill_null(NONE).to_numpy(),
            corr=corr,
            low=np.where(turned, -high, low),
            high=np.where(turned, -low, high),
            other=other["match"].fill_null(NONE).to_numpy(),
            other_corr=other["corr"].fill_null(np.nan).to_numpy(),
        )

    def elsewhere(self, self_high: Float[np.ndarray, " units"], least: float) -> Int[np.ndarray, " units"]:
        """The match where it is surely another unit (see the module), else −1."""
        units = np.arange(len(self.match))
        surely = (self.low > self_high) & (self.low >= least)
        return np.where(surely & (self.match != units) & (self.match != NONE), self.match, NONE)


@dataclass(frozen=True)
class Places:
    """Of every index: `moved_to`, the unit of the fine-tune that the base's unit is found in, and `came_from`, the
    unit of the base that is found in the fine-tune's (−1: itself, or none); `heirs`, in how many others the base's is;
    `place`, a word of `PLACES`, None for units that were dead."""

    moved_to: Int[np.ndarray, " units"]
    came_from: Int[np.ndarray, " units"]
    heirs: Int[np.ndarray, " units"]
    place: list[str | None]

    @classmethod
    def of(
        cls,
        forth: BestMatches,
        back: BestMatches,
        self_high: Float[np.ndarray, " units"],
        least: float,
        *,
        dead: Bool[np.ndarray, " units"],
    ) -> "Places":
        """From the base's best matches in the fine-tune and back, and the upper ends of |ρ| of each unit and itself."""
        n, high = len(self_high), np.nan_to_num(self_high)
        moved_to, came_from = forth.elsewhere(high, least), back.elsewhere(high, least)
        heirs = np.bincount(came_from[came_from != NONE], minlength=n)
        taken = np.bincount(moved_to[moved_to != NONE], minlength=n) + (moved_to == NONE) * (came_from == NONE)
        gone, stays = moved_to != NONE, high >= least
        cases = [gone & (taken[moved_to] > 1), gone, stays & (heirs > 0), stays, np.nan_to_num(forth.high) < least]
        codes = np.select(cases, range(len(cases)), len(cases))
        return cls(moved_to, came_from, heirs, [None if was else PLACES[code] for code, was in zip(codes, dead)])

    @property
    def moved(self) -> Bool[np.ndarray, " units"]:
        """Whether the unit of the fine-tune does what another unit of the base did, which does it no longer."""
        return (self.came_from != NONE) & (self.moved_to[self.came_from] != NONE)

    @property
    def copied(self) -> Bool[np.ndarray, " units"]:
        """Whether it does what another unit of the base did, and still does."""
        return (self.came_from != NONE) & (self.moved_to[self.came_from] == NONE)


def place_columns(units: Units, forth: BestMatches, back: BestMatches, places: Places) -> Mapping[str, np.ndarray]:
    """The columns of the best matches, each way, and of where units went to and came from."""
    columns: dict[str, np.ndarray] = {}
    for name, best in (("tuned_match", forth), ("base_match", back)):
        columns |= units.table_columns(best.match, f"{name}_")
        columns |= {f"{name}_corr": best.corr, f"{name}_low": best.low, f"{name}_high": best.high}
        columns |= units.table_columns(best.other, f"{name.replace('match', 'other')}_")
        columns[f"{name.replace('match', 'other')}_corr"] = best.other_corr
    columns |= units.table_columns(places.moved_to, "moved_to_") | units.table_columns(places.came_from, "came_from_")
    return columns | {"heirs": places.heirs}
