"""A folder that an export makes: there whole or not at all, and never in the place of anything else."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from universal_neurons.disk import disk_errors, local_path, partial_of, removing
from universal_neurons.errors import StoreConflictError


@contextlib.contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` once all is written.

    Raises `StoreConflictError` where `out` is a file or holds anything.
    """
    target = local_path(out).resolve()
    partial = partial_of(target)
    with disk_errors(target):
        _require_free(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        if partial.is_dir() and not partial.is_symlink():  # by a writer that was killed
            shutil.rmtree(partial)
        with removing(partial):
            partial.mkdir()
            yield partial
            _require_free(target)
            if target.exists():
                target.rmdir()
            partial.rename(target)


def _require_free(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise StoreConflictError(f"{target}: is a file", wanted="a folder", fix="name another --out")
    if target.exists() and any(target.iterdir()):
        raise StoreConflictError(f"{target}: holds files", wanted="a new or empty folder", fix="name another --out")
