"""Every state that a folder goes through while something writes it: what a kill at any moment would leave.

Python's audit events tell of every open, rename, removal and new folder before it happens; `os.fsync` is watched too.
Before each of them the folder is copied, once more with what is synced for the first time cut in half.  A process that is killed leaves
one of these states: files are written between their open and their fsync.
"""

import contextlib
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate")
UNSYNCED = (  # made again at every start
    "rows.i32", "rows-0.i32", "rows-1.i32", "spans-0.i32", "spans-1.i32", "span-ids.i32", "ranges.i32", "text.utf8",
)  # fmt: skip


class Watch:
    """States of a folder, each once, in `states`; and what was renamed without being on the disk, in `unsafe`."""

    def __init__(self, folder: Path, copies: Path) -> None:
        self.folder, self.copies = folder, copies
        self.states: list[Path] = []
        self.operations = 0
        self.unsafe: list[str] = []
        self._seen: set[str] = set()
        self._synced: dict[int, tuple[int, int]] = {}
        self._unsettled: set[int] = set()  # folders in which something was renamed
        self._busy = False

    def hear(self, event: str, arguments: tuple) -> None:
        """An operation that is about to happen."""
        if self._busy:
            return
        writing = event in CHANGES
        if event == "open":
            _, mode, flags = arguments
            writing = bool(flags & (os.O_WRONLY | os.O_RDWR)) or any(letter in str(mode or "") for letter in "wax+")
        if not writing:
            return
        self._busy = True
        self.operations += 1
        self._copy()
        if event == "os.rename":
            self._check(Path(os.fsdecode(arguments[0])), Path(os.fsdecode(arguments[1])))
        self._busy = False

    def sync(self, handle: int) -> None:
        """What an open file or folder holds is about to be on the disk."""
        self._busy = True
        self.operations += 1
        state = os.fstat(handle)
        self._copy()
        place = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if place.is_file() and self.folder in place.parents and state.st_ino not in self._synced:
            self._copy(half=place.relative_to(self.folder))
        self._synced[state.st_ino] = state.st_size, state.st_mtime_ns
        self._unsettled.discard(state.st_ino)
        self._busy = False

    def _copy(self, half: Path | None = None) -> None:
        if not self.folder.exists():
            return
        copy = self.copies / f"{len(self.states):04d}"
        shutil.copytree(self.folder, copy, symlinks=True)
        if half is not None:
            content = (copy / half).read_bytes()
            (copy / half).write_bytes(content[: len(content) // 2])
        signature = fingerprint(copy)
        if signature in self._seen:
            shutil.rmtree(copy)
            return
        self._seen.add(signature)
        self.states.append(copy)

    def _check(self, source: Path, target: Path) -> None:
        if target.name in UNSYNCED or self.folder not in target.parents:
            return
        for path in [source] if source.is_file() else list(source.rglob("*")):
            state = path.stat()
            if self._synced.get(state.st_ino) != (state.st_size, state.st_mtime_ns):
                self.unsafe.append(f"{path} -> {target}: not synced")
        if target.suffix == ".json" and self._unsettled:
            self.unsafe.append(f"{target}: before the folders of other files were synced")
        self._unsettled.add(target.parent.stat().st_ino)


def fingerprint(folder: Path) -> str:
    """A hash of all files and folders in a folder."""
    told = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        told.update(f"{path.relative_to(folder)} {path.is_dir()} ".encode())
        if path.is_file():
            told.update(hashlib.sha256(path.read_bytes()).digest())
    return told.hexdigest()


_watches: list[Watch] = []


@contextlib.contextmanager
def watched(folder: Path, copies: Path) -> Iterator[Watch]:
    """Watch a folder; the copies of its states go into another, which must not be inside."""
    if not hasattr(sys, "_crashes_are_heard"):
        sys.addaudithook(lambda event, arguments: [watch.hear(event, arguments) for watch in _watches] and None)
        sys._crashes_are_heard = True
    copies.mkdir()
    watch, fsync = Watch(folder, copies), os.fsync

    def told(handle):
        watch.sync(handle)
        fsync(handle)

    _watches.append(watch)
    os.fsync = told
    try:
        yield watch
    finally:
        os.fsync = fsync
        _watches.remove(watch)
    watch._busy = True
    watch._copy()
