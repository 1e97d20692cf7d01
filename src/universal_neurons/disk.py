"""Files that are there whole or not at all, and the disk's failures by name."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from universal_neurons.errors import DiskFullError, StoreConflictError

UNWRITABLE = (
    errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.ENAMETOOLONG, errno.EROFS,
)  # fmt: skip


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
