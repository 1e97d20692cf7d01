"""Tables of units, read piece by piece in the order of models and units, so that no large table is ever in memory.

The tables of every unit (`neurons`, `matches`, `examples`, …) lie on disk in the order of the study's models, and of
each model's units.  `UnitRows` streams such a file, and gives the rows of as many units as are asked for, once and in
order.  Tables of a few units lie in any order: they are read whole and sorted.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from universal_neurons.errors import StoreConflictError
from universal_neurons.storage import Results, Store
from universal_neurons.units import Units

BATCH_ROWS = 1 << 16
MODEL = 1 << 40  # more units than any model has: the key of a row is its model's number times this, plus its unit's


class UnitRows:
    """The rows of one table, to be taken in the order of models and units.

    Rows get a column `unit`, the unit's number in its model.  `by` names the column of whose units the rows are.
    """

    def __init__(
        self,
        results: Results,
        table: str,
        units: Mapping[str, Units],
        *,
        by: str = "model",
        ordered: bool = True,
    ) -> None:
        self.name, self.by, self.units = table, by, units
        self.where = f"{results.path}: {table}.parquet"
        self._batches = pieces_of(results, table) if ordered else iter([results.table(table)])
        self._ordered = ordered
        self._rest: pl.DataFrame | None = None
        self._last = -1

    def take(self, model: int, stop: int) -> pl.DataFrame | None:
        """The rows up to unit `stop` of a model that were not taken before; None where there are none."""
        target = model * MODEL + stop
        found = []
        while True:
            if self._rest is None:
                batch = next(self._batches, None)
                if batch is None:
                    break
                self._rest = self._keyed(batch)
            until = int(np.searchsorted(self._rest["key"].to_numpy(), target))
            found.append(self._rest[:until])
            if until < len(self._rest):
                self._rest = self._rest[until:]
                break
            self._rest = None
        rows = pl.concat(found) if found else None
        if rows is None or rows.is_empty():
            return None
        return rows.with_columns(unit=pl.col("key") % MODEL).drop("key", self.by)

    def _keyed(self, batch: pl.DataFrame) -> pl.DataFrame:
        """The batch with its keys, in their order; later batches of a table that is streamed must go on from there."""
        names = list(self.units)
        model = pl.col(self.by).replace_strict(names, range(len(names)), default=None, return_dtype=pl.Int64)
        number = pl.lit(None, pl.Int64)
        for name, units in self.units.items():
            number = pl.when(pl.col(self.by) == name).then(units.number_column()).otherwise(number)
        keyed = batch.with_columns(key=model * MODEL + number)
        if not self._ordered:
            return keyed.filter(pl.col("key").is_not_null()).sort("key", maintain_order=True)
        keys = keyed["key"]
        if keys.null_count() or not keys.is_sorted() or (len(keys) and int(keys[0]) < self._last):
            raise StoreConflictError(
                f"{self.where}: not in the order of its units",
                wanted="rows in the order of the study's models and their neurons, as a study writes them",
                fix="run the study again into another folder",
            )
        self._last = int(keys[-1]) if len(keys) else self._last
        return keyed


def pieces_of(results: Results, table: str) -> Iterator[pl.DataFrame]:
    """A table in pieces, its hash checked before the first."""
    with results.verified(table) as stream, results.readable(table):
        for batch in pq.ParquetFile(stream).iter_batches(BATCH_ROWS):
            yield pl.DataFrame(pl.from_arrow(batch))


class LightStore(Store):
    """A store whose table of matches has only the best ones: what summaries need."""

    def _read(self, name: str) -> pl.DataFrame:
        if name != "matches" or not self.has(name):
            return super()._read(name)
        pieces = [piece.filter(pl.col("rank") == 1) for piece in pieces_of(self, name)]
        return pl.concat(pieces)
