"""A finished folder, read: every table once, and checked against the hash in the manifest when it is first read."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, ClassVar

import polars as pl

from universal_neurons.disk import disk_errors, local_path, open_regular, own_folder, write_atomically
from universal_neurons.errors import InputError, MissingFileError, StoreConflictError
from universal_neurons.storage.former_names import by_present_names
from universal_neurons.storage.manifest import (
    HISTOGRAMS,
    MANIFEST,
    REWRITING,
    Facts,
    FinishedStudy,
    file_of,
    read_manifest,
    require,
)

UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError)


class Results:
    """A finished folder: its tables as polars frames, and the manifest.

    Raises `MissingFileError` where there is none, and `StoreConflictError` where it is not finished, or its manifest
    cannot be read.  Unless `verify` is False, a table that is not the one that was written is refused when it is read.
    """

    FILE: ClassVar[str] = MANIFEST
    WHAT: ClassVar[str] = "study"
    COMMAND: ClassVar[str] = "uneurons run"
    FACTS: ClassVar[type[Facts]] = FinishedStudy
    _views: ClassVar[dict[str, Callable[..., Any]]] = {}

    def __init__(self, path: str | Path, *, verify: bool = True) -> None:
        self.path = local_path(path)
        self.verify = verify
        self._tables: dict[str, pl.DataFrame] = {}
        self._verified: set[str] = set()
        manifest = read_manifest(self.path / self.FILE)
        if manifest is None:
            raise MissingFileError(
                f"{path}: no {self.WHAT} here", wanted=f"a folder with {self.FILE}", fix=self.COMMAND
            )
        if REWRITING in manifest:
            raise self._being_rewritten()
        if not manifest["complete"]:
            raise StoreConflictError(
                f"{path}: the {self.WHAT} is not finished",
                wanted=f"a complete {self.WHAT}",
                fix="run the same command again",
            )
        require(self.path / self.FILE, manifest, self.FACTS)
        self.manifest = manifest

    @property
    def site(self) -> Path:
        """Where `uneurons export` is told to put the site: beside the folder."""
        folder = self.path if self.path.name.strip(".") else self.path.resolve()  # "." and ".." have no name
        return folder.with_name(f"{folder.name}-site")

    @classmethod
    def shown_by(cls, views: dict[str, Callable[..., Any]]) -> None:
        """Let views, which know more than a store, say what a terminal (`text`) and a notebook (`html`) show of one.

        By other names they answer what it is asked for.
        """
        cls._views = views

    def view(self, name: str) -> Callable[..., Any]:
        """A view of this name; `InputError` where the rooms below were never imported."""
        if name not in self._views:
            raise InputError(
                f"{type(self).__name__}: nothing here says its {name}",
                fix="take it from universal_neurons, not from storage",
            )
        return self._views[name]

    @property
    def plot(self) -> Any:
        """The figures of its report, one by one: `plot.universality()`; `dir(plot)` lists what there is."""
        return self.view("plot")(self)

    def __repr__(self) -> str:
        view = self._views.get("text")
        return f"{type(self).__name__}({str(self.path)!r})" if view is None else view(self)

    def _repr_html_(self) -> str | None:
        view = self._views.get("html")
        return None if view is None else view(self)

    def table(self, name: str) -> pl.DataFrame:
        """One of its tables.

        Raises `MissingFileError` where there is none of this name, or its file is gone, and `StoreConflictError` where
        the file is not the one that was written.
        """
        if name not in self._tables:
            self._tables[name] = self._read(name)
        return self._tables[name]

    def by_present_names(self, name: str, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows of one of its tables, columns and built-in labels named as this version names them."""
        labels = self.manifest.get("labels")
        return by_present_names(name, rows, labels.get("own", ()) if isinstance(labels, dict) else ())

    def has(self, name: str) -> bool:
        """Whether the manifest lists this table."""
        return name != HISTOGRAMS and name in self.manifest["tables"]

    def verified(self, name: str) -> BufferedReader:
        """The file of a table or of the histograms, open, its hash checked once."""
        path = self.path / file_of(name)
        try:
            stream = open_regular(path)
        except FileNotFoundError:
            raise self._changed(name, MissingFileError, "is not there", None) from None
        except OSError as error:
            raise self._changed(name, StoreConflictError, "cannot be read", error.strerror) from None
        if self.verify and name not in self._verified:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            wanted = self.manifest["tables"][name]
            if digest != wanted:
                stream.close()
                raise self._changed(name, StoreConflictError, "is not the file that was written", f"SHA-256 {digest}")
            self._verified.add(name)
            stream.seek(0)
        return stream

    def missing_files(self) -> list[str]:
        """The files of its tables that are gone, all others being whole.

        Raises `StoreConflictError` where one is not the file that was written.
        """
        missing, altered = [], []
        for name in self.manifest["tables"]:
            try:
                self.verified(name).close()
            except MissingFileError:
                missing.append(file_of(name))
            except StoreConflictError:
                altered.append(file_of(name))
        if altered:
            raise StoreConflictError(
                f"{self.path}: not the files that the {self.WHAT} wrote",
                given=", ".join(altered),
                wanted=f"files whose SHA-256 stands in {self.FILE}"
                + (f"; missing too: {', '.join(missing)}" if missing else ""),
                fix="remove them and run the same command again to make them anew, or name another --out",
            )
        return missing

    def write_page(self, name: str, content: bytes) -> Path:
        """Write a figure or report into the finished folder."""
        with disk_errors(self.path):
            own_folder((self.path / name).parent)
            return write_atomically(self.path / name, content)

    def _read(self, name: str) -> pl.DataFrame:
        if not self.has(name):
            names = ", ".join(sorted(table for table in self.manifest["tables"] if self.has(table)))
            what = f"{self.path}: no table {str(name)[:200]!r}"
            raise MissingFileError(what, wanted=f"a table of this {self.WHAT}: {names}")
        with self.verified(name) as stream, self.readable(name):
            return pl.read_parquet(stream)

    @contextlib.contextmanager
    def readable(self, name: str) -> Iterator[None]:
        """Name a file that its reader cannot make out."""
        try:
            yield
        except UNREADABLE as error:
            raise self._changed(name, StoreConflictError, "cannot be read", str(error)[:200]) from None

    def _changed(
        self, name: str, kind: type[MissingFileError | StoreConflictError], what: str, problem: object
    ) -> MissingFileError | StoreConflictError:
        """Why a file is not what the manifest says: the study was rewritten since it was opened, or the file alone."""
        now = read_manifest(self.path / self.FILE)
        if now is not None and REWRITING in now:
            return self._being_rewritten()
        if now is not None and now != self.manifest:
            return StoreConflictError(
                f"{self.path}: the {self.WHAT} was rewritten after it was opened",
                given=f"another {file_of(name)}",
                fix="open it again",
            )
        return kind(
            f"{self.path / file_of(name)}: {what}",
            given=problem,
            wanted=f"the file whose SHA-256 stands in {self.FILE}: {self.manifest['tables'][name]}",
            fix=f"remove it, if it is there, and run the same command again ({self.COMMAND}): it is made anew",
        )

    def _being_rewritten(self) -> StoreConflictError:
        return StoreConflictError(
            f"{self.path}: the {self.WHAT} is being rewritten",
            given="some of its tables are new, some old",
            fix="wait for `uneurons roles` to end; if it was interrupted, the same command brings it to its end first",
        )
