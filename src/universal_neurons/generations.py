"""Checkpoints: generations of plain tensors, each a folder of its own whose manifest is written last."""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from universal_neurons.disk import disk_errors, removing, sync, write_atomically

KEPT = 2
PART_BYTES = 1 << 25
ABANDONED_SECONDS = 3600.0


class Generations:
    """The checkpoints in a folder, numbered by step; the last two are kept.

    What dead writers left half written is removed: at once, or, in a `shared` folder, where another process may still
    be writing the same steps, when it has not been touched for an hour.
    """

    def __init__(self, folder: Path, *, shared: bool = False) -> None:
        self.folder, self.shared = folder, shared

    def save(self, tensors: dict[str, Tensor], step: int) -> None:
        """Write a generation; the folder's parent must be there."""
        from safetensors.torch import save_file

        folder = self.folder / f"checkpoint-{step:08d}"
        partial = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}.partial")
        with disk_errors(self.folder), removing(partial):
            self.folder.mkdir(exist_ok=True)
            self._sweep()
            partial.mkdir()
            sizes = {}
            for number, part in enumerate(_parts(tensors)):
                state = partial / f"{number:04d}.safetensors"
                save_file({name: tensor.contiguous().cpu() for name, tensor in part.items()}, state)
                sync(state)
                sizes[state.name] = state.stat().st_size
            write_atomically(partial / "manifest.json", json.dumps({"shard": step, "bytes": sizes}).encode())
            self._put(partial, folder)
            sync(self.folder)
        for old in self.all()[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def load(self) -> tuple[dict[str, Tensor], int] | None:
        """The newest whole generation and its step, or None."""
        from safetensors.torch import load_file

        for folder in self.all():
            note = _note(folder)
            if note is None:
                continue
            tensors: dict[str, Tensor] = {}
            try:
                for name in note["bytes"]:
                    tensors |= load_file(folder / name)
            except FileNotFoundError:  # another writer removed it
                continue
            return tensors, int(note["shard"])
        return None

    def newest(self) -> int:
        """The step of the newest whole generation, or 0."""
        notes = (_note(folder) for folder in self.all())
        return next((int(note["shard"]) for note in notes if note is not None), 0)

    def all(self) -> list[Path]:
        """The generations' folders, the newest first."""
        return sorted(self.folder.glob("checkpoint-*"), reverse=True) if self.folder.exists() else []

    def _sweep(self) -> None:
        """Remove what dead writers left half written."""
        for partial in self.folder.glob(".checkpoint-*.partial"):
            try:
                age = time.time() - partial.stat().st_mtime
            except FileNotFoundError:
                continue
            if not self.shared or age > ABANDONED_SECONDS:
                shutil.rmtree(partial, ignore_errors=True)

    def _put(self, partial: Path, folder: Path) -> None:
        """Move a generation to its place; in a shared folder it may be there already, with the same bits."""
        if self.shared and _note(folder) is not None:
            return
        shutil.rmtree(folder, ignore_errors=True)
        try:
            partial.rename(folder)
        except OSError:
            if not self.shared or _note(folder) is None:
                raise


@dataclass
class Pace:
    """When a checkpoint is due: every `seconds`, or (None) so that writing takes a `share` of the time.

    Then at most every `least` seconds.
    """

    seconds: float | None
    least: float
    share: float
    interval: float = field(init=False)
    last: float = field(init=False)

    def __post_init__(self) -> None:
        self.interval = self.least if self.seconds is None else self.seconds
        self.start()

    def start(self) -> None:
        """Count from now."""
        self.last = time.perf_counter()

    @property
    def due(self) -> bool:
        """Whether it is time."""
        return time.perf_counter() - self.last >= self.interval

    def written(self, took: float) -> None:
        """A checkpoint was written and took so many seconds."""
        if self.seconds is None:
            self.interval = max(self.least, took / self.share)
        self.start()


def _note(folder: Path) -> dict | None:
    """The manifest of a whole generation; None of a torn one."""
    try:
        note = json.loads((folder / "manifest.json").read_text())
        whole = all((folder / name).stat().st_size == size for name, size in note["bytes"].items())
    except (OSError, ValueError, KeyError):
        return None
    return note if whole else None


def _parts(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Tensors in files of bounded size: writing one copies it."""
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > PART_BYTES:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += tensor.nbytes
    yield part
