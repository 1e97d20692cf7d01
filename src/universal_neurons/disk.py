"""Paths as a user gives them, files that are there whole or not at all, and the disk's failures by name."""

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from universal_neurons.errors import (
    DiskError,
    DiskFullError,
    MissingFileError,
    StoreConflictError,
    UniversalNeuronsError,
)

UNWRITABLE = (
    errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ELOOP,
    errno.ENAMETOOLONG, errno.EROFS,
)  # fmt: skip


# Systems other than POSIX lack these.
NOFOLLOW, NONBLOCK = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)
BINARY = getattr(os, "O_BINARY", 0)  # theirs


def local_path(named: str | Path) -> Path:
    """The path that a user gave: `~` is their home, every other character stands for itself.

    Raises `MissingFileError` for what can be no path: an unknown user's home, a NUL, too long a name, a loop of links.
    """
    try:
        path = Path(named).expanduser()
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return path
    except (OSError, RuntimeError, ValueError) as error:
        raise MissingFileError(
            f"{str(named)[:200]!r}: cannot be a path",
            given=getattr(error, "strerror", None) or error,
            wanted="the path of a file or folder",
            fix="check the spelling",
        ) from None
    return path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_regular(path: Path) -> BufferedReader:
    """A file to read, a link to one too.  Raises `StoreConflictError` for a pipe or a device, which may never end."""
    handle = os.open(path, os.O_RDONLY | NONBLOCK | BINARY)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise StoreConflictError(f"{path}: is not a file", wanted="a regular file", fix="remove it")
    return os.fdopen(handle, "rb")


def create_anew(path: Path) -> BinaryIO:
    """A new file to write in place of what a dead writer left there; a link is removed, never followed."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW | BINARY, 0o666), "wb")


def own_folder(path: Path) -> Path:
    """A folder of ours, made where it is not there.  Raises `StoreConflictError` for a link, which leads elsewhere."""
    refuse_link(path)
    path.mkdir(exist_ok=True)
    return path


def refuse_link(path: Path) -> None:
    """Raise `StoreConflictError` where a link stands in the place of our own file or folder."""
    if path.is_symlink():
        raise StoreConflictError(
            f"{path}: is a symbolic link",
            given=f"a link to {str(path.readlink())[:200]}",
            wanted="a folder or file of its own: nothing is written through links inside a study",
            fix="remove the link",
        )


def take_lock(path: Path, what: str) -> FileLock:
    """Lock a file, made where it is not there, until the lock is released; `what` names what the lock stands for.

    Raises `StoreConflictError` where another process holds it, and where nothing can be locked.
    """
    refuse_link(path)
    existed = path.exists()
    lock = FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise StoreConflictError(
            f"{what}: another process is writing it", wanted="one writer", fix="wait for it to end"
        ) from None
    except (OSError, NotImplementedError) as error:
        if not existed:
            path.unlink(missing_ok=True)
        raise StoreConflictError(
            f"{what}: cannot be locked",
            given=getattr(error, "strerror", None) or error,
            wanted="a file system that locks files (flock), which one writer at a time needs",
            fix="name an --out on another file system",
        ) from None
    return lock


def partial_of(target: Path) -> Path:
    """Where a file is written until it is whole."""
    return target.with_name(f".{target.name}.partial")


@contextlib.contextmanager
def written_atomically(target: Path) -> Iterator[BinaryIO]:
    """A stream that becomes the file once all is written: under a temporary name, then synced and renamed."""
    partial = partial_of(target)
    with removing(partial):
        with create_anew(partial) as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        partial.rename(target)
    sync(target.parent)


def write_atomically(target: Path, content: bytes) -> Path:
    """Write under a temporary name, sync, rename."""
    with written_atomically(target) as out:
        out.write(content)
    return target


@contextlib.contextmanager
def removing(partial: Path) -> Iterator[None]:
    """Leave nothing half written behind where writing fails."""
    try:
        yield
    finally:
        if partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the disk keep what was written of a file, or the names in a folder (where a folder can be opened)."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Name a full disk, and one that fails; what has a name already, as trouble with a corpus, keeps it."""
    try:
        yield
    except UniversalNeuronsError:
        raise
    except Exception as error:
        number = getattr(error, "errno", None)
        if number in (errno.EFBIG, errno.EIO):
            raise DiskError(
                f"{path}: writing failed",
                given=error,
                wanted="a disk that works, and files that may grow (ulimit -f)",
                fix="mend that, then run the same command again",
            ) from error
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error) or "os error 28" in str(error):
            raise DiskFullError(
                f"{path}: the disk is full", wanted="more free space", fix="free some, then run the same command again"
            ) from error
        raise


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Name a full disk or a place that cannot be written."""
    try:
        with full_disk(path):
            yield
    except OSError as error:
        if error.errno in UNWRITABLE:
            raise StoreConflictError(f"{path}: cannot be written", given=error, fix="name another place") from error
        raise
