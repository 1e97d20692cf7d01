"""Snapshots of work under way: generations of plain tensors, each a folder of its own whose manifest is written last.

The manifest holds the SHA-256 of every file and of itself, the version that wrote it and what the tensors are of.  A
generation that is not byte for byte what this version wrote of the same thing is as good as none: the one before it is
used, and without any the work starts anew.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from universal_neurons import __version__
from universal_neurons.disk import disk_errors, own_folder, removing, sha256_of, sync, write_atomically

KEPT = 2
PART_BYTES = 1 << 25
ABANDONED_SECONDS = 3600.0
FORMAT = f"universal-neurons generation 5, {__version__}"
MANIFEST = "manifest.json"
MOST_MANIFEST_BYTES = 1 << 26


class UnusableError(Exception):
    """A generation that is damaged, or not of this version and work; says in which way."""


class Generations:
    """The snapshots in a folder, numbered by step; the last two whole ones are kept, one while the next is written.

    `of` is what they are of: those of anything else are not used.  What dead writers left half written is removed: at
    once, or, in a `shared` folder, where another process may still be writing the same steps, when it has not been
    touched for an hour.
    """

    def __init__(self, folder: Path, *, of: str = "", shared: bool = False) -> None:
        self.folder = folder
        self.shared = shared
        self.of = hashlib.sha256(of.encode()).hexdigest()
        self._whole: set[Path] = set()  # those that this process wrote or checked

    def save(self, tensors: dict[str, Tensor], step: int) -> None:
        """Write a generation; the folder's parent must be there."""
        from safetensors.torch import save_file

        folder = self.folder / _name(step)
        writer = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
        partial = self.folder / f".{folder.name}.{writer}.partial"
        with disk_errors(self.folder), removing(partial):
            own_folder(self.folder)
            self._sweep()
            self._prune([other for other in self.all() if other != folder], KEPT - 1, folder)
            partial.mkdir()
            sizes, hashes = {}, {}
            for number, part in enumerate(_parts(tensors)):
                state = partial / f"{number:04d}.safetensors"
                save_file({name: tensor.contiguous().cpu() for name, tensor in part.items()}, state)
                sync(state)
                sizes[state.name], hashes[state.name] = state.stat().st_size, sha256_of(state)
            note = {"format": FORMAT, "of": self.of, "shard": step, "bytes": sizes, "sha256": hashes}
            write_atomically(partial / MANIFEST, _sealed(note))
            self._put(partial, folder)
            sync(self.folder)
        self._whole.add(folder)
        self._prune(self.all(), KEPT, folder)

    def load(self, note: Callable[[str], None] = lambda text: None) -> tuple[dict[str, Tensor], int] | None:
        """The newest usable generation and its step, or None; `note` is told of those that are passed over."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        for folder in self.all():
            tensors: dict[str, Tensor] = {}
            try:
                manifest = self._manifest(folder)
                for name in manifest["bytes"]:
                    tensors |= load_file(folder / name)
            except (UnusableError, OSError, SafetensorError) as error:
                note(f"{folder.name} is not used: {error}")
                continue
            return tensors, int(manifest["shard"])
        return None

    def newest(self) -> int:
        """The step of the generation that `load` returns, or 0."""
        return next((_step(folder) for folder in self.all() if self._is_usable(folder)), 0)

    def all(self) -> list[Path]:
        """The generations' folders, usable or not, the newest first."""
        try:
            names = [name for name in os.listdir(self.folder) if re.fullmatch(r"checkpoint-\d{8,}", name)]
        except OSError:  # none was written, or nobody may look
            return []
        return sorted((self.folder / name for name in names), key=_step, reverse=True)

    def _manifest(self, folder: Path) -> dict[str, Any]:
        """A usable generation's manifest; raises `UnusableError`."""
        try:
            path = folder / MANIFEST
            if _regular_bytes(path) > MOST_MANIFEST_BYTES:
                raise UnusableError(f"{MANIFEST} is damaged")
            content = path.read_bytes()
            note = json.loads(content)
            if not isinstance(note, dict) or content != _sealed(note):
                raise UnusableError(f"{MANIFEST} is damaged, or of an earlier version")
            if note.get("format") != FORMAT or note["of"] != self.of or folder.name != _name(note["shard"]):
                raise UnusableError("another version or study wrote it")
            for name, size in note["bytes"].items():
                if _regular_bytes(folder / name) != size or sha256_of(folder / name) != note["sha256"][name]:
                    raise UnusableError(f"{name} is damaged")
        except OSError as error:
            raise UnusableError(f"cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise UnusableError(f"{MANIFEST} is damaged") from error
        self._whole.add(folder)
        return note

    def _is_usable(self, folder: Path) -> bool:
        with contextlib.suppress(UnusableError):
            return bool(self._manifest(folder))
        return False

    def _sweep(self) -> None:
        """Remove what dead writers left half written."""
        for partial in self.folder.glob(".checkpoint-*.partial"):
            try:
                age = time.time() - partial.lstat().st_mtime
            except FileNotFoundError:
                continue
            if not self.shared or age > ABANDONED_SECONDS:
                _remove(partial)

    def _put(self, partial: Path, folder: Path) -> None:
        """Move a generation to its place; in a shared folder it may be there already, with the same bits."""
        if self.shared and self._is_usable(folder):
            return
        _remove(folder)
        try:
            partial.rename(folder)
        except OSError:
            if not self.shared or not self._is_usable(folder):
                raise

    def _prune(self, folders: Iterable[Path], most: int, written: Path) -> None:
        """Keep the last usable ones of these, so many; one that is ahead is another writer's, or was passed over."""
        kept = 0
        for folder in folders:
            ahead = _step(folder) > _step(written) and not self.shared
            if kept == most or ahead or not (folder in self._whole or self._is_usable(folder)):
                _remove(folder)
            else:
                kept += 1


@dataclass
class Pace:
    """When a snapshot is due: every `seconds`, or (None) so that writing takes a `share` of the time.

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
        """Count the interval from now."""
        self.last = time.perf_counter()

    @property
    def due(self) -> bool:
        """Whether the interval has passed since the last snapshot."""
        return time.perf_counter() - self.last >= self.interval

    def written(self, took: float) -> None:
        """A snapshot was written and took so many seconds."""
        if self.seconds is None:
            self.interval = max(self.least, took / self.share)
        self.start()


def _name(step: int) -> str:
    return f"checkpoint-{step:08d}"


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))


def _sealed(note: dict[str, Any]) -> bytes:
    """A manifest with the SHA-256 of all else that it says."""
    content = {key: value for key, value in note.items() if key != "seal"}
    return json.dumps(content | {"seal": hashlib.sha256(json.dumps(content).encode()).hexdigest()}).encode()


def _regular_bytes(path: Path) -> int:
    """The size of a file; raises `UnusableError` for a link, a pipe or a folder."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise UnusableError(f"{path.name} is not a file")
    return status.st_size


def _remove(path: Path) -> None:
    """Remove a folder, readable or not, or what stands in its place: of a link, the link."""
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(path.lstat().st_mode):
            path.chmod(0o700)
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


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
