"""The one writer of a study's folder.

A file is written under a temporary name, synced and renamed; study.json, the manifest, says `complete` only when all
else is in place.  Until then the folder is resumable: it holds the study's identity and the last two snapshots of
the pass (`snapshots`).  A folder in which nothing was found yet is free for another study.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
from filelock import FileLock
from torch import Tensor

from universal_neurons.disk import (
    disk_errors,
    local_path,
    own_folder,
    sha256_of,
    take_lock,
    write_atomically,
    written_atomically,
)
from universal_neurons.errors import InputError, MissingFileError, StoreConflictError, StoreRemovedError
from universal_neurons.storage import rewriting
from universal_neurons.storage.leftovers import (
    FIGURES,
    LOCK,
    WORK,
    holds_results,
    is_ours,
    refuse_links,
    sweep_partials,
)
from universal_neurons.storage.manifest import MANIFEST, REWRITING, difference, file_of, read_manifest
from universal_neurons.storage.snapshots import Generations
from universal_neurons.storage.store import Store


class StoreWriter:
    """The one writer of a study's folder, or of another with a `manifest` of its own; use as a context manager.

    Raises `StoreConflictError` where the folder holds another study or other files, or another process writes it, and
    `StoreRemovedError` where the folder, or a file in it, is removed meanwhile: what is in its place is left alone.
    Brings to its end what a killed writer began to rewrite.
    """

    def __init__(self, path: str | Path, manifest: str = MANIFEST) -> None:
        try:
            self.path = local_path(path)
        except MissingFileError as error:
            raise StoreConflictError(error.what, wanted="the path of a folder", fix="name another --out") from None
        self.manifest = self.path / manifest
        self._lock: FileLock | None = None
        self._locked: tuple[int, int] | None = None  # which file that is
        self._created: list[Path] = []
        self._mine = False  # whether the manifest there is this study's

    def __enter__(self) -> "StoreWriter":
        with disk_errors(self.path):
            self._require_place()
            self._created = [p for p in (self.path, *self.path.parents) if not p.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock = take_lock(self.path / LOCK, str(self.path))
            except StoreConflictError:
                self._remove_created()
                raise
            self._locked = _identity(self.path / LOCK)
        try:
            with disk_errors(self.path):
                self._require_ours()
                self._tidy()
        except BaseException:
            self._release()
            raise
        return self

    def _require_place(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise StoreConflictError(f"{self.path}: is a file", wanted="a folder", fix="name another --out")
        for place in (self.path, *self.path.parents):
            if place.is_symlink() and not place.exists():
                raise StoreConflictError(
                    f"{place}: is a link to nothing",
                    given=f"a link to {str(place.readlink())[:200]}",
                    wanted="a folder",
                    fix="remove the link, or name another --out",
                )

    def _require_ours(self) -> None:
        foreign = [entry for entry in self.path.iterdir() if not is_ours(entry)]
        if foreign and read_manifest(self.manifest) is None:
            raise StoreConflictError(
                f"{self.path}: holds files that are not a study",
                given=foreign[0].name[:200],
                wanted="a new or empty folder, or a study's",
                fix="name another --out",
            )
        refuse_links(self.path)

    def _tidy(self) -> None:
        """Bring to its end what a killed writer began to rewrite, and sweep what it left half written."""
        earlier = read_manifest(self.manifest)
        sweep_partials(self.path)
        if earlier is not None and REWRITING in earlier:
            self.finish(rewriting.put_in_place(self.path, earlier, self.manifest))
        rewriting.sweep(self.path)
        if earlier is None:
            shutil.rmtree(self.path / WORK, ignore_errors=True)
            shutil.rmtree(self.path / FIGURES, ignore_errors=True)

    def _release(self) -> None:
        assert self._lock is not None
        if self._is_there:
            (self.path / LOCK).unlink(missing_ok=True)
        self._lock.release()
        self._lock = None

    @property
    def _is_there(self) -> bool:
        """Whether the folder is the one that was locked: an open file keeps its number."""
        return _identity(self.path / LOCK) == self._locked

    def _require_there(self, tables: Iterable[str] = ()) -> None:
        """Raise `StoreRemovedError` where the folder that was locked, or a file of these tables, is no more there."""
        files = [file_of(name) for name in tables]
        gone = [name for name in files if not (self.path / name).exists()] if self._is_there else [self.path]
        if gone:
            raise self._removed(gone[0])

    def _removed(self, what: object) -> StoreRemovedError:
        return StoreRemovedError(
            f"{self.path}: removed while it was written",
            given=f"{what} is not there any more",
            wanted="a folder that stays while a study runs",
            fix="run the same command again",
        )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if not self._is_there:
            self._release()
            if error is None or isinstance(error, Exception):
                raise self._removed(self.path) from error
            return
        try:
            earlier = read_manifest(self.manifest)
            not_as_asked = kind is not None and issubclass(kind, InputError)
            refused = not_as_asked and self._mine and self._is_free(earlier)
            if earlier is None or earlier["complete"] or refused:
                shutil.rmtree(self.work, ignore_errors=True)
            if refused:
                self.manifest.unlink(missing_ok=True)
        finally:
            self._release()
        if earlier is None or refused:
            self._remove_created()
        if isinstance(error, FileNotFoundError) and Path(str(error.filename)).is_relative_to(self.path):
            raise self._removed(error.filename) from error

    def _remove_created(self) -> None:
        """Remove the folders that this writer made, where they are still empty."""
        for folder in self._created:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()

    def _is_free(self, earlier: dict[str, Any] | None) -> bool:
        """Whether the folder is nobody's: no study began here, or nothing was found yet."""
        return earlier is None or (not earlier["complete"] and not holds_results(self.path))

    @property
    def work(self) -> Path:
        """Scratch files of a study under way: token rows and snapshots."""
        return self.path / WORK

    def prepare(self) -> Path:
        """Make the scratch folder where it is missing, and return it."""
        with disk_errors(self.path):
            return own_folder(self.work)

    def claim(self, identity: dict[str, Any]) -> None:
        """Make the folder this study's before its tokens are known; an `InputError` until `begin` undoes it."""
        if self.require_same(identity) is None:
            self.write_manifest({"complete": False} | identity)
        self._mine = True

    def stored(self, key: str) -> Any:
        """What the manifest that is there says under a key, or None."""
        return (read_manifest(self.manifest) or {}).get(key)

    def under_way(self, key: str) -> Any:
        """What the manifest of an unfinished study says under a key, or None."""
        earlier = read_manifest(self.manifest)
        return earlier.get(key) if earlier is not None and not earlier["complete"] else None

    def begin(self, manifest: dict[str, Any]) -> bool:
        """Start or go on with a study; returns whether it is complete already.

        `config`, `models`, `labels`, `tokens` and `frequencies` of the manifest are the study's identity.
        """
        earlier = self.require_same(manifest)
        if earlier is None or "tokens" not in earlier:
            self.write_manifest({"complete": False} | manifest)
        return bool(earlier and earlier["complete"])

    def require_same(self, manifest: dict[str, Any]) -> dict[str, Any] | None:
        """The manifest that is there, if any; None too where another study found nothing yet.

        Raises `StoreConflictError` where it is another study's.
        """
        earlier = read_manifest(self.manifest)
        if earlier is None:
            return None
        for key in ("config", "models", "labels", "tokens", "frequencies"):
            if key not in manifest or key not in earlier:
                continue
            current = json.loads(json.dumps(manifest[key]))
            if earlier[key] != current:
                if self._is_free(earlier):
                    return None
                raise StoreConflictError(
                    f"{self.path}: holds another study",
                    given=difference(earlier[key], current, key),
                    wanted="the same configuration, models and tokens",
                    fix="name another --out, or remove the folder",
                )
        return earlier

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Replace the manifest by another, whole or not at all; by a complete one where its tables are there."""
        self._require_there(manifest["tables"] if manifest["complete"] else ())
        with disk_errors(self.path):
            write_atomically(self.manifest, (json.dumps(manifest, indent=2) + "\n").encode())

    def write_table(self, name: str, table: pl.DataFrame) -> str:
        """Write a table; returns the SHA-256 of its file."""
        self._require_there()
        with disk_errors(self.path):
            return _write(self.path / file_of(name), table)

    def replace(self, tables: Mapping[str, pl.DataFrame], manifest: dict[str, Any]) -> Store:
        """Replace tables of a finished study, all at once; those that `manifest` does not name any more are removed."""
        old = read_manifest(self.manifest)
        assert old is not None
        assert old["complete"]
        with disk_errors(self.path):
            hashes = rewriting.stage(self.path, tables, _write)
            new = {"complete": True} | manifest | {"tables": manifest["tables"] | hashes}
            marked = rewriting.mark(old, new, hashes)
            self.write_manifest(marked)
            store = self.finish(rewriting.put_in_place(self.path, marked, self.manifest))
            rewriting.sweep(self.path)
        return store

    def write_bytes(self, name: str, content: bytes) -> str:
        """Write another file of results; returns its SHA-256."""
        self._require_there()
        with disk_errors(self.path):
            write_atomically(self.path / name, content)
        return hashlib.sha256(content).hexdigest()

    def save_snapshot(self, tensors: dict[str, Tensor], shard: int) -> None:
        """Write a snapshot of the pass, a generation; the last two are kept."""
        self.prepare()
        self._generations.save(tensors, shard)

    def load_snapshot(self, note: Callable[[str], None] = lambda text: None) -> tuple[dict[str, Tensor], int] | None:
        """The newest usable generation and its shard number, or None; `note` is told of those that are passed over."""
        return self._generations.load(note)

    @cached_property
    def _generations(self) -> Generations:
        """The snapshots of this study, and of no other."""
        earlier = read_manifest(self.manifest) or {}
        study = {key: earlier.get(key) for key in ("config", "models", "labels", "tokens", "layout")}
        return Generations(self.work, of=json.dumps(study, sort_keys=True))

    def finish(self, manifest: dict[str, Any]) -> Store:
        """Declare the study complete; its scratch files go when the writer is left."""
        self.write_manifest({"complete": True} | manifest)
        return Store(self.path)


def _write(target: Path, table: pl.DataFrame) -> str:
    with written_atomically(target) as out:
        table.write_parquet(out, compression="zstd", statistics=False)
    return sha256_of(target)


def _identity(file: Path) -> tuple[int, int] | None:
    """What tells a file from one that was put in its place; None where there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
