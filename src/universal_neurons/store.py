"""The store: the folder of one study, and the only place that reads or writes it.

A file is written under a temporary name, synced and renamed; study.json, the manifest, says `complete` only when all
else is in place.  Until then the folder is resumable: it holds the study's identity and the last two checkpoints of
the pass (`generations`).
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import polars as pl
from torch import Tensor

from universal_neurons.config import StudyConfig, make_config
from universal_neurons.disk import disk_errors, removing, sync, write_atomically
from universal_neurons.errors import InputError, MissingFileError, StoreConflictError
from universal_neurons.generations import Generations

MANIFEST = "study.json"


class Results:
    """A finished folder: its tables as polars frames, and the manifest.

    Raises `MissingFileError` where there is none, and `StoreConflictError` where it is not finished.
    """

    FILE: ClassVar[str] = MANIFEST
    WHAT: ClassVar[str] = "study"
    COMMAND: ClassVar[str] = "uneurons run"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        manifest = _read_manifest(self.path / self.FILE)
        if manifest is None:
            raise MissingFileError(
                f"{path}: no {self.WHAT} here", wanted=f"a folder with {self.FILE}", fix=self.COMMAND
            )
        self.manifest = manifest
        if not manifest["complete"]:
            raise StoreConflictError(
                f"{path}: the {self.WHAT} is not finished",
                wanted=f"a complete {self.WHAT}",
                fix="run the same command again",
            )

    def table(self, name: str) -> pl.DataFrame:
        """One of its tables."""
        try:
            return pl.read_parquet(self.path / f"{name}.parquet")
        except FileNotFoundError:
            raise MissingFileError(f"{self.path}: no table {name!r}", wanted=f"a table of this {self.WHAT}") from None

    def has(self, name: str) -> bool:
        """Whether there is this table."""
        return (self.path / f"{name}.parquet").exists()

    def write_page(self, name: str, content: bytes) -> Path:
        """Write a figure or report into the finished folder."""
        with disk_errors(self.path):
            (self.path / name).parent.mkdir(exist_ok=True)
            return write_atomically(self.path / name, content)


class Store(Results):
    """A finished study: its tables (`neurons`, `matches`, `labels`, …) as polars frames, and the manifest.

    Raises `MissingFileError` where there is none, and `StoreConflictError` where it is not finished.
    """

    @property
    def config(self) -> StudyConfig:
        """The configuration that made the study."""
        return make_config(self.manifest["config"], str(self.path / MANIFEST))

    @property
    def models(self) -> list[str]:
        """Names of its models, the reference first."""
        return [model["name"] for model in self.manifest["models"]]

    @property
    def askers(self) -> list[str]:
        """Models whose neurons were asked about."""
        if "universality" not in self.config.stages:
            return []
        return self.models if self.config.pairs == "all" else self.models[:1]

    @property
    def neurons(self) -> pl.DataFrame:
        """A row per neuron of every model."""
        return self.table("neurons")

    @property
    def matches(self) -> pl.DataFrame:
        """A row per asker, other model and rank."""
        return self.table("matches")

    @property
    def layers(self) -> pl.DataFrame:
        """The layer profile."""
        return self.table("layers")

    @property
    def convergence(self) -> pl.DataFrame:
        """Best correlations and universal counts at log-spaced numbers of tokens."""
        return self.table("convergence")

    @property
    def subsets(self) -> pl.DataFrame:
        """Universality within each subset that was asked for."""
        return self.table("subsets")

    @property
    def labels(self) -> pl.DataFrame:
        """The best labels of every neuron."""
        return self.table("labels")

    @property
    def examples(self) -> pl.DataFrame:
        """Where every neuron fires most, and spans from lower bands."""
        return self.table("examples")

    @property
    def strings(self) -> list[str]:
        """The vocabulary as strings, by token id."""
        return self.table("vocabulary").sort("token")["string"].to_list()

    def histogram(self, model: str, neuron: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lower edges, upper edges and counts of a (flat) neuron's pre-activations; else `MissingFileError`."""
        from safetensors import safe_open

        path = self.path / "histograms.safetensors"
        if not path.exists():
            raise MissingFileError(f"{self.path}: no histograms", wanted="a study with the stage statistics")
        with safe_open(path, "np") as tensors:
            low, high = tensors.get_tensor(f"{model}/low"), tensors.get_tensor(f"{model}/high")
            counts = tensors.get_slice(f"{model}/counts")[:, neuron]
        return low, high, counts

    def __repr__(self) -> str:
        from universal_neurons.summary import plain_summary

        return plain_summary(self)

    def _repr_html_(self) -> str:
        from universal_neurons.report import summary_html

        return summary_html(self)


class StoreWriter:
    """The one writer of a study's folder, or of another with a `manifest` of its own; use as a context manager.

    Raises `StoreConflictError` where the folder holds another study or other files, or another process writes it.
    """

    def __init__(self, path: str | Path, manifest: str = MANIFEST) -> None:
        self.path = Path(path)
        self.manifest = self.path / manifest
        self._lock: IO[str] | None = None
        self._created: list[Path] = []
        self._mine = False  # whether the manifest there is this study's

    def __enter__(self) -> "StoreWriter":
        with disk_errors(self.path):
            if self.path.exists() and not self.path.is_dir():
                raise StoreConflictError(f"{self.path}: is a file", wanted="a folder", fix="name another --out")
            self._created = [p for p in (self.path, *self.path.parents) if not p.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self._lock.fileno()).st_ino != (self.path / ".lock").stat().st_ino:
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError):
            self._lock.close()
            raise StoreConflictError(
                f"{self.path}: another process is writing this study", wanted="one writer", fix="wait for it to end"
            ) from None
        try:
            foreign = [p for p in self.path.iterdir() if p.name != ".lock"]
            if foreign and _read_manifest(self.manifest) is None:
                raise StoreConflictError(
                    f"{self.path}: holds files that are not a study",
                    given=foreign[0].name,
                    wanted="a new or empty folder, or a study's",
                    fix="name another --out",
                )
        except StoreConflictError:
            self._release()
            raise
        return self

    def _release(self) -> None:
        assert self._lock is not None
        (self.path / ".lock").unlink(missing_ok=True)
        self._lock.close()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        there = _read_manifest(self.manifest)
        refused = self._mine and kind is not None and issubclass(kind, InputError)
        refused = refused and there is not None and not there["complete"] and not self._found()
        if there is None or there["complete"] or refused:
            shutil.rmtree(self.work, ignore_errors=True)
        if refused:
            self.manifest.unlink()
        self._release()
        for folder in self._created if there is None or refused else ():
            if not any(folder.iterdir()):
                folder.rmdir()

    def _found(self) -> bool:
        """Whether there is anything in the folder that took time to find."""
        beside = {".lock", self.manifest.name, self.work.name}
        return bool(Generations(self.work).all()) or any(p.name not in beside for p in self.path.iterdir())

    @property
    def work(self) -> Path:
        """Scratch files of a study under way: token rows and checkpoints."""
        return self.path / "work"

    def prepare(self) -> Path:
        """The scratch folder."""
        with disk_errors(self.path):
            self.work.mkdir(exist_ok=True)
        return self.work

    def claim(self, identity: dict[str, Any]) -> None:
        """Make the folder this study's before its tokens are known; an `InputError` until `begin` undoes it."""
        if self.require_same(identity) is None:
            self.write_manifest({"complete": False} | identity)
        self._mine = True

    def under_way(self, key: str) -> Any:
        """What the manifest of an unfinished study says under a key, or None."""
        there = _read_manifest(self.manifest)
        return there.get(key) if there is not None and not there["complete"] else None

    def begin(self, manifest: dict[str, Any]) -> bool:
        """Start or go on with a study; returns whether it is complete already.

        `config`, `models`, `labels` and `tokens` of the manifest are the study's identity.
        """
        there = self.require_same(manifest)
        if there is None or "tokens" not in there:
            self.write_manifest({"complete": False} | manifest)
        return bool(there and there["complete"])

    def require_same(self, manifest: dict[str, Any]) -> dict[str, Any] | None:
        """The manifest that is there, if any; `StoreConflictError` where it is another study's."""
        there = _read_manifest(self.manifest)
        if there is None:
            return None
        for key in ("config", "models", "labels", "tokens"):
            if key not in manifest or key not in there:
                continue
            here = json.loads(json.dumps(manifest[key]))
            if there[key] != here:
                raise StoreConflictError(
                    f"{self.path}: holds another study",
                    given=_difference(there[key], here, key),
                    wanted="the same configuration, models and tokens",
                    fix="name another --out, or remove the folder",
                )
        return there

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Replace the manifest."""
        with disk_errors(self.path):
            write_atomically(self.manifest, (json.dumps(manifest, indent=2) + "\n").encode())

    def write_table(self, name: str, table: pl.DataFrame) -> str:
        """Write a table; returns the SHA-256 of its file."""
        target = self.path / f"{name}.parquet"
        partial = target.with_name(f".{target.name}.partial")
        with disk_errors(self.path), removing(partial):
            table.write_parquet(partial, compression="zstd", statistics=False)
            sync(partial)
            partial.rename(target)
            sync(self.path)
        return hashlib.sha256(target.read_bytes()).hexdigest()

    def remove_tables(self, names: Sequence[str]) -> None:
        """Remove tables that are no longer the study's."""
        with disk_errors(self.path):
            for name in names:
                (self.path / f"{name}.parquet").unlink(missing_ok=True)

    def write_bytes(self, name: str, content: bytes) -> str:
        """Write another file of results; returns its SHA-256."""
        with disk_errors(self.path):
            write_atomically(self.path / name, content)
        return hashlib.sha256(content).hexdigest()

    def save_checkpoint(self, tensors: dict[str, Tensor], shard: int) -> None:
        """Write a generation of the pass's state; the last two are kept."""
        self.prepare()
        self._generations.save(tensors, shard)

    def load_checkpoint(self, note: Callable[[str], None] = lambda text: None) -> tuple[dict[str, Tensor], int] | None:
        """The newest usable generation and its shard number, or None; `note` is told of those that are passed over."""
        return self._generations.load(note)

    @cached_property
    def _generations(self) -> Generations:
        """The checkpoints of this study, and of no other."""
        there = _read_manifest(self.manifest) or {}
        study = {key: there.get(key) for key in ("config", "models", "labels", "tokens", "layout")}
        return Generations(self.work, of=json.dumps(study, sort_keys=True))

    def finish(self, manifest: dict[str, Any]) -> Store:
        """Declare the study complete; its scratch files go when the writer is left."""
        self.write_manifest({"complete": True} | manifest)
        return Store(self.path)


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise StoreConflictError(f"{path}: not readable", given=error, fix="remove the folder") from None
    if not isinstance(manifest, dict) or "complete" not in manifest:
        raise StoreConflictError(f"{path}: not a study's manifest", fix="name another folder")
    return manifest


def _difference(there: Any, here: Any, where: str) -> str:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in here:
            if there.get(key) != here[key]:
                return _difference(there.get(key), here[key], f"{where}.{key}")
    return f"{where}: {json.dumps(here)[:100]}, there {json.dumps(there)[:100]}"
