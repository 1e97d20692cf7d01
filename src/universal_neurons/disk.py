"""Paths as a user gives them, files that are there whole or not at all, and the disk's failures by name."""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from universal_neurons.errors import DiskFullError, MissingFileError, StoreConflictError

UNWRITABLE = (
    errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.ENAMETOOLONG, errno.EROFS,
)  # fmt: skip


def local_path(given: str | Path) -> Path:
    """The path that a user gave: `~` is their home, every other character stands for itself.

    Raises `MissingFileError` for what can be no path: an unknown user's home, a NUL, too long a name, a loop of links.
    """
    try:
        path = Path(given).expanduser()
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return path
    except (OSError, RuntimeError, ValueError) as error:
        raise MissingFileError(
            f"{str(given)[:200]!r}: cannot be a path",
            given=getattr(error, "strerror", None) or error,
            wanted="the path of a file or folder",
            fix="check the spelling",
        ) from None
    return path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(target: Path, content: bytes) -> Path:
    """Write under a temporary name, sync, rename."""
    partial = target.with_name(f".{target.name}.partial")
    with removing(partial):
        with partial.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        partial.rename(target)
    sync(target.parent)
    return target


@contextlib.contextmanager
def removing(partial: Path) -> Iterator[None]:
    """Leave nothing half written behind where writing fails."""
    try:
        yield
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Name a full disk or a place that cannot be written."""
    try:
        yield
    except Exception as error:
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error) or "os error 28" in str(error):
            raise DiskFullError(
                f"{path}: the disk is full", wanted="more free space", fix="free some, then run the same command again"
            ) from error
        if isinstance(error, OSError) and number in UNWRITABLE:
            raise StoreConflictError(f"{path}: cannot be written", given=error, fix="name another place") from error
        raise
