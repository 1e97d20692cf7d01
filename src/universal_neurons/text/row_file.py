"""Rows of numbers of one width, kept in memory or written to a file: then memory does not grow with the text."""

import contextlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int, Integer

from universal_neurons.disk import create_anew, removing

KIND = np.dtype(np.int32)


class RowFile:
    """Rows under way: a list without a folder, else a file there, whole or not at all."""

    def __init__(self, folder: Path | None, name: str, kind: np.dtype | type = KIND) -> None:
        self.kind = np.dtype(kind)
        self.path = None if folder is None else folder / name
        self._stack = contextlib.ExitStack()
        self._file: BinaryIO | None = None
        self._kept: list[np.ndarray] = []

    def __enter__(self) -> "RowFile":
        if self.path is not None:
            self._stack.enter_context(removing(self._partial))
            self._file = self._stack.enter_context(create_anew(self._partial))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stack:
            if kind is None and self._file is not None and self.path is not None:
                self._file.close()
                self._partial.rename(self.path)

    @property
    def _partial(self) -> Path:
        assert self.path is not None
        return self.path.with_suffix(".partial")

    def add(self, row: Integer[np.ndarray, " width"]) -> None:
        """Append a row, of the file's kind of number."""
        assert row.dtype == self.kind
        if self._file is None:
            self._kept.append(row)
        else:
            self._file.write(row.tobytes())

    def rows(self, width: int) -> Integer[np.ndarray, "rows width"] | Path:
        """All rows: an array, or the file that holds them."""
        if self.path is not None:
            return self.path
        return np.concatenate([np.zeros(0, self.kind), *self._kept]).reshape(-1, width)


def resolved(table: np.ndarray | Path) -> Any:
    """A table, its file by its whole path."""
    return table.resolve() if isinstance(table, Path) else table


def rows_of(
    table: Int[np.ndarray, "rows width"] | Path, rows: Int[np.ndarray, " some"], n_rows: int, width: int
) -> Int[np.ndarray, "some width"]:
    """Some of `n_rows` rows of an array or a file, as int64."""
    whole = np.memmap(table, KIND, "r", shape=(n_rows, width)) if isinstance(table, Path) else table
    return whole[rows].astype(np.int64)
