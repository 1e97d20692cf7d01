"""Which neurons stand for the rest: the universal ones, or, where none is, the top 1 % by excess correlation."""

import math

import polars as pl

FALLBACK_SHARE = 0.01


def singled_out(neurons: pl.DataFrame) -> tuple[pl.DataFrame, bool]:
    """The universal neurons of a table, or the top 1 % by excess (one at least), best first; and whether universal.

    None of a table that nobody asked about, or of dead neurons alone.
    """
    alive = neurons.filter(pl.col("excess_corr").is_finite()).sort("excess_corr", descending=True)
    universal = alive.filter("is_universal")
    if len(universal):
        return universal, True
    return alive.head(math.ceil(FALLBACK_SHARE * len(alive))), False
