"""A finished study at another threshold than its own: what counts as universal is read off the excess columns again.

Nothing is written.  What was decided while the study ran stays: which neurons were ablated or drawn, and the counts on
the way (`convergence`), which keep the study's own threshold.
"""

import math

import numpy as np
import polars as pl

from universal_neurons.config import StudyConfig
from universal_neurons.errors import ConfigError, InputError
from universal_neurons.matching import counts_above, null_counts
from universal_neurons.storage import Store

KINDS = {"": "excess", "_standardised": "excess_standardised"}


class AtThreshold(Store):
    """A study's store whose universal neurons are those above another threshold; `made` is the study as it was made."""

    def __init__(self, made: Store, threshold: float) -> None:
        super().__init__(made.path, verify=made.verify)
        self.made, self.threshold = made, threshold

    @property
    def config(self) -> StudyConfig:
        """The study's configuration, but for the threshold."""
        return super().config.model_copy(update={"threshold": self.threshold})

    def _read(self, name: str) -> pl.DataFrame:
        table = super()._read(name)
        if name in ("neurons", "subsets"):
            return table.with_columns(is_universal=_above(pl.col("excess_corr"), self.threshold))
        if name == "thresholds":
            return self._with_threshold(table)
        if name == "anchors":
            return self._anchors(table)
        if name == "cliques":
            return self._cliques(table)
        return self._clique_levels(table) if name == "clique_levels" else table

    def _with_threshold(self, table: pl.DataFrame) -> pl.DataFrame:
        """Counts over thresholds with this one among them; those of random bases are not known of it (NaN)."""
        if self.threshold in table["threshold"].to_list():
            return table
        rows = [self._counts(asker, table) for asker in table["asker"].unique(maintain_order=True)]
        added = pl.DataFrame(rows).select(pl.col(name).cast(kind) for name, kind in table.schema.items())
        return pl.concat([table, added]).sort("asker", "threshold", maintain_order=True)

    def _counts(self, asker: str, table: pl.DataFrame) -> dict[str, object]:
        own = self.neurons.filter(pl.col("model") == asker)
        row: dict[str, object] = {"asker": asker, "threshold": self.threshold}
        for ending, kind in KINDS.items():
            if f"universal{ending}" not in table.columns:
                continue
            first = "excess_corr" if not ending else kind
            columns = (first, f"{kind}_heldout", f"{kind}_low", f"{kind}_high")
            for counted, column in zip(("universal", "universal_heldout", "surely", "possibly"), columns):
                row[counted + ending] = int(counts_above(own[column].to_numpy(), [self.threshold])[0])
            row["rotated" + ending] = math.nan
            row["untrained" + ending] = self._untrained(asker, first)
        return row

    def _untrained(self, asker: str, excess: str) -> float | None:
        if not self.has("null"):
            return None
        null = self.table("null").filter(pl.col("asker") == asker)
        draws = [null.filter(pl.col("draw") == draw) for draw in range(self.manifest["null"]["draws"])]
        return float(null_counts((draw[excess].to_numpy() for draw in draws), [self.threshold])[0])

    def _anchors(self, table: pl.DataFrame) -> pl.DataFrame:
        """Anchors by level, those that are universal counted again."""
        best = self.matches.filter(pl.col("rank") == 1).group_by("model", "layer", "neuron")
        least = best.agg(pl.col("corr").abs().min().alias("least"))
        anchors = self.neurons.filter(pl.col("mutual_all") & pl.col("is_universal"))
        sizes = anchors.select("model", "layer", "neuron").join(least, on=["model", "layer", "neuron"])
        counts = [
            int(((sizes["model"] == asker) & (sizes["least"] >= level)).sum())
            for asker, level in table.select("asker", "level").iter_rows()
        ]
        return table.with_columns(pl.Series("universal", counts, table.schema["universal"]))

    def _cliques(self, table: pl.DataFrame) -> pl.DataFrame:
        universal = self.neurons.select("model", "layer", "neuron", pl.col("is_universal").alias("universal"))
        places = ["model", "layer", "neuron"]
        joined = table.drop("universal").join(universal, on=places, how="left", maintain_order="left")
        return joined.select(table.columns)

    def _clique_levels(self, table: pl.DataFrame) -> pl.DataFrame:
        cliques = self.table("cliques").group_by("clique", maintain_order=True)
        whole = cliques.agg(
            pl.col("min_corr").first(), pl.col("universal").first(), pl.col("universal").all().alias("everywhere")
        )
        smallest = whole["min_corr"].to_numpy()
        counts = {
            column: [int((smallest[whole[among].to_numpy()] >= level).sum()) for level in table["level"]]
            for column, among in (("universal", "universal"), ("universal_everywhere", "everywhere"))
        }
        return table.with_columns(pl.Series(name, values, table.schema[name]) for name, values in counts.items())


def _above(excess: pl.Expr, threshold: float) -> pl.Expr:
    """Null where nobody asked, false of dead neurons (NaN)."""
    return excess.fill_nan(-np.inf) > threshold


def at_threshold(store: Store, threshold: float | None) -> Store:
    """A study at a threshold, or as it is; raises `ConfigError` for no number, `InputError` without universality."""
    if threshold is None:
        return store
    if not math.isfinite(threshold):
        raise ConfigError("--threshold is no number", given=threshold, wanted="an excess correlation such as 0.4")
    if not store.askers:
        raise InputError(
            f"{store.path}: --threshold is for universality",
            given="a study that asked about no matches",
            wanted="a study of two models or more, with universality",
        )
    return store if threshold == store.config.threshold else AtThreshold(store, threshold)


def as_made(store: Store) -> Store:
    """The study as it was made, whatever threshold it is looked at."""
    return store.made if isinstance(store, AtThreshold) else store


def threshold_sentence(store: Store) -> str | None:
    """What is said of a study that is looked at at another threshold than its own."""
    if not isinstance(store, AtThreshold):
        return None
    own = store.made.config.threshold
    return (
        f"Universal here: excess > {store.threshold:g}, as asked for now; the study's own threshold is {own:g}. "
        f"Ablations, drawn activations and counts on the way to all tokens are those of {own:g}."
    )
