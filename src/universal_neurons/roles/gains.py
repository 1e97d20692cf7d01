"""The table `functional_gains`, read: do matched neurons act alike, in a sentence."""

import math
from collections.abc import Mapping
from typing import Any

import polars as pl

SECOND, RANDOM = "second best match", "random"
MEASURES = {"loss_corr": "loss changes", "effect_corr": "logit effects"}


def gains_sentence(gains: pl.DataFrame) -> str:
    """How alike matched neurons act, against the second best matches, by `functional_gains`; empty where these are not
    known."""
    of_all = gains.filter(pl.col("match_model").is_null())
    rows = {(row["measure"], row["control"]): row for row in of_all.iter_rows(named=True)}
    told = [
        _measured(measure, rows[measure, SECOND], rows.get((measure, RANDOM)))
        for measure in MEASURES
        if (measure, SECOND) in rows
    ]
    return f"Do matched neurons act alike? {' '.join(told)}" if told else ""


def _measured(measure: str, second: Mapping[str, Any], random: Mapping[str, Any] | None) -> str:
    low, high = second["gain_low"], second["gain_high"]
    reach = f" [{low:+.2f} {high:+.2f}]" if low is not None and math.isfinite(low) else ""
    others = "" if random is None else f", with random neurons {random['control_corr']:z.2f}"
    return (
        f"ρ of their {MEASURES[measure]} differs from that with the second best match by {second['gain']:+.2f}{reach} "
        f"on average, and is higher in {second['better']:.0%} of {second['pairs']:,} pairs (medians: "
        f"{second['match_corr']:z.2f}, with the second best {second['control_corr']:z.2f}{others})."
    )
