"""Tables of units, read piece by piece in the order of a model's units, so that no large table is ever in memory.

The tables of every unit (`neurons`, `matches`, `examples`, …) lie on disk model after model, each model's units in
their order.  `UnitRows` reads those parts of such a file that hold a model's rows, and gives the rows of as many units
as are asked for, once and in order.  Tables of a few units lie in any order: they are read whole and sorted.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from universal_neurons.errors import StoreConflictError
from universal_neurons.storage import Results, Store
from universal_neurons.units import Units

BATCH_ROWS = 1 << 16
OWN = ("model", "asker")  # the columns of a unit's own model


class UnitRows:
    """The rows of one table, to be taken in the order of a model's units, one model after the other.

    Rows get a column `unit`, the unit's number in its model, in place of its model.  `by` names the column of whose
    units the rows are, as the file has it: a version before had another model in `model`.  `whole` makes the rows of a
    table that is read whole.
    """

    def __init__(
        self,
        results: Results,
        table: str,
        units: Mapping[str, Units],
        *,
        by: str = "model",
        ordered: bool = True,
        whole: Callable[[pl.DataFrame], pl.DataFrame] | None = None,
    ) -> None:
        self.whole = whole
        self.results, self.table, self.by, self.units = results, table, by, units
        self.file = _Streamed(results, table, by) if ordered else None
        self.model: str | None = None
        self._pieces: Iterator[pl.DataFrame] = iter(())
        self._rest: pl.DataFrame | None = None

    def take(self, model: str, stop: int) -> pl.DataFrame | None:
        """The rows up to before unit `stop` of a model that were not taken before; None where there are none.

        Raises `StoreConflictError` where they are not in the order of the units.
        """
        if model != self.model:
            self.model, self._pieces, self._rest = model, self._pieces_of(model), None
        found = []
        while True:
            if self._rest is None:
                self._rest = next(self._pieces, None)
            if self._rest is None:
                break
            until = int(np.searchsorted(self._rest["unit"].to_numpy(), stop))
            found.append(self._rest[:until])
            if until < len(self._rest):
                self._rest = self._rest[until:]
                break
            self._rest = None
        rows = pl.concat(found) if found else None
        return None if rows is None or rows.is_empty() else rows

    def _pieces_of(self, model: str) -> Iterator[pl.DataFrame]:
        """A model's rows, with their units' numbers."""
        number = self.units[model].number_column().alias("unit")
        if self.file is None:
            table = self.results.table(self.table)
            rows = (self.whole(table) if self.whole else table).filter(pl.col(self.by) == model).with_columns(number)
            yield rows.filter(pl.col("unit").is_not_null()).sort("unit", maintain_order=True).drop(OWN, strict=False)
            return
        last = 0
        for piece in self.file.pieces(model):
            rows = piece.with_columns(number).drop(OWN, strict=False)
            units = rows["unit"]
            if units.null_count() or not units.is_sorted() or (len(rows) and int(units[0]) < last):
                raise self._disordered()
            last = int(units[-1]) if len(rows) else last
            yield rows

    def _disordered(self) -> StoreConflictError:
        return StoreConflictError(
            f"{self.results.path}: {self.table}.parquet: not in the order of its neurons",
            wanted="every model's neurons in their order, as a study writes them",
            fix="run the study again into another folder",
        )


class _Streamed:
    """A table on disk, its hash checked, of which the parts with a model's rows can be read.

    A table that has nothing to say may have no column at all.
    """

    def __init__(self, results: Results, table: str, by: str) -> None:
        self.results, self.table, self.by = results, table, by
        with results.readable(table):
            self.file = pq.ParquetFile(results.verified(table))
            self.groups: dict[str, list[int]] = {}
            for group in range(self.file.num_row_groups if by in self.file.schema_arrow.names else 0):
                for piece in self.file.iter_batches(BATCH_ROWS, row_groups=[group], columns=[by]):
                    for model in piece.column(0).unique().to_pylist():
                        if group not in self.groups.setdefault(model, []):
                            self.groups[model].append(group)

    def pieces(self, model: str) -> Iterator[pl.DataFrame]:
        """A model's rows, in the order of the file."""
        groups = self.groups.get(model, [])
        with self.results.readable(self.table):
            for piece in self.file.iter_batches(BATCH_ROWS, row_groups=groups):
                rows = self.results.by_present_names(self.table, pl.DataFrame(pl.from_arrow(piece)))
                rows = rows.filter(pl.col(self.by) == model)
                if len(rows):
                    yield rows


def pieces_of(results: Results, table: str) -> Iterator[pl.DataFrame]:
    """A table in pieces, its hash checked before the first."""
    with results.verified(table) as stream, results.readable(table):
        for piece in pq.ParquetFile(stream).iter_batches(BATCH_ROWS):
            yield results.by_present_names(table, pl.DataFrame(pl.from_arrow(piece)))


class LightStore(Store):
    """A store whose table of matches has only the best ones: what summaries need."""

    def _read(self, name: str) -> pl.DataFrame:
        if name != "matches" or not self.has(name):
            return super()._read(name)
        pieces = [piece.filter(pl.col("rank") == 1) for piece in pieces_of(self, name)]
        return pl.concat(pieces)
