"""The table `costs`, read: what the universal neurons are worth together, in a sentence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

CHOSEN, EQUAL, LARGEST, RANDOM = "chosen", "equal contribution", "largest others", "random"


@dataclass(frozen=True)
class Worth:
    """The rows of `costs`: the chosen neurons', the controls' of equal contribution and the largest others', null in
    tables of earlier versions, and those of random ones."""

    chosen: dict[str, Any]
    equal: dict[str, Any] | None
    largest: dict[str, Any] | None
    random: list[dict[str, Any]]

    @classmethod
    def of(cls, costs: pl.DataFrame) -> "Worth":
        """From the table, which has a row at least."""
        controls = {kind: costs.filter(set=kind).to_dicts() for kind in (EQUAL, LARGEST, RANDOM)}
        chosen = costs.filter(~pl.col("set").is_in(list(controls))).row(0, named=True)
        equal, largest = (next(iter(controls[kind]), None) for kind in (EQUAL, LARGEST))
        return cls(chosen, equal, largest, controls[RANDOM])

    @property
    def sentence(self) -> str:
        """What the chosen neurons are worth, the ratio to controls of equal contribution first."""
        worth = f"The {self.chosen['neurons']:,} {_called(self.chosen['set'])} are worth {_nats(self.chosen)} together"
        parts = [_largest(self.largest), _range(self.random)]
        rest = "; ".join(part for part in parts if part)
        if self.equal is None:
            why = f"others of equal contribution were not asked about; {rest}" if rest else "no others are left"
            return f"{worth} ({why})."
        return f"{worth}, {self._against(self.equal)}; {rest}."

    def _against(self, equal: dict[str, Any]) -> str:
        fewer = f", only {equal['neurons']:,}" if equal["neurons"] < self.chosen["neurons"] else ""
        near = (
            f"contribution over theirs {equal['contributed_ratio']:.2f} in the median, "
            f"{equal['contributed_ratio_worst']:.2f} at worst"
        )
        if equal["loss_ratio"] is None:
            return f"others of equal contribution {_nats(equal)}, not to be told from 0 ({near}{fewer})"
        reach = _reach(equal["loss_ratio_low"], equal["loss_ratio_high"])
        return f"{equal['loss_ratio']:.2f}{reach} times others of equal contribution, {_nats(equal)} ({near}{fewer})"


def _called(chosen_as: str) -> str:
    return "universal neurons" if chosen_as == "universal" else f"neurons ({chosen_as})"


def _nats(row: dict[str, Any]) -> str:
    return f"{row['loss_change']:.2f} nats"


def _reach(low: float, high: float) -> str:
    return f" [{low:.2f} {high:.2f}]" if np.isfinite(low) else ""


def _largest(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"the largest others {row['loss_change']:.2f}"


def _range(rows: Sequence[dict[str, Any]]) -> str:
    values = [row["loss_change"] for row in rows]
    return f"random others {min(values):.2f} to {max(values):.2f}" if values else ""
