"""Which neurons of a family figures show first.

Of a family's neurons the universal ones come first, by how much their label explains; where none is universal, the best
by excess; where universality was not asked about, by how much the label explains.
"""

import polars as pl

PER_FAMILY = 4
DUPLICATES = 3


def ranking(neurons: pl.DataFrame) -> tuple[pl.DataFrame, str]:
    """A family's neurons, the ones to show first in front, and by what they were ranked."""
    if neurons["is_universal"].any():
        first = neurons.filter("is_universal").sort("variance_reduction", descending=True, nulls_last=True)
        return pl.concat([first, ranking(neurons.filter(~pl.col("is_universal")))[0]]), "universal ones first"
    if neurons["excess_corr"].is_not_null().any():
        ranked = neurons.sort(pl.col("excess_corr").fill_nan(None), descending=True, nulls_last=True)
        return ranked, "none universal: the best by excess"
    ranked = neurons.sort(pl.col("variance_reduction").fill_nan(None), descending=True, nulls_last=True)
    return ranked, "by variance reduction"


def same_label(neurons: pl.DataFrame) -> pl.DataFrame:
    """The unigram neurons that share the commonest label, best first: duplicates of one feature (Fig 4a)."""
    unigrams = neurons.filter(pl.col("family") == "unigram")
    if unigrams.is_empty():
        return unigrams
    counts = unigrams.group_by("label").agg(pl.len(), pl.col("variance_reduction").sum())
    commonest = counts.sort("len", "variance_reduction", "label", descending=True)["label"][0]
    return unigrams.filter(pl.col("label") == commonest).sort("variance_reduction", descending=True)
