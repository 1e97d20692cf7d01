"""Tables of a finished study replaced by others: a reader sees all of the old ones or all of the new.

1. The new tables are written and synced in a folder beside the old ones.  Killed here, the old study stands, and the
   next writer removes the folder.
2. The mark: study.json is no longer complete and says what is to come.  From here on readers are told so, and
   the next writer goes on with step 3.
3. The tables are moved to their places one by one; those that are no longer the study's are removed, with the pages
   that were drawn of the old ones.
4. The manifest is complete again, without the mark; the folder goes.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from universal_neurons.disk import own_folder, sha256_of, sync
from universal_neurons.errors import StoreConflictError
from universal_neurons.storage.leftovers import STAGING
from universal_neurons.storage.manifest import REWRITING, Rewriting, file_of, require

PAGES = ("report.html", "figures/role-*")
NOT_DRAWN = {"explanations", "scores"}  # tables whose change leaves the pages as they are


def stage(
    folder: Path, tables: Mapping[str, pl.DataFrame], write: Callable[[Path, pl.DataFrame], str]
) -> dict[str, str]:
    """Step 1, with `write(path, table)`; returns the tables' hashes."""
    staging = own_folder(folder / STAGING)
    hashes = {name: write(staging / file_of(name), table) for name, table in tables.items()}
    sync(folder)
    return hashes


def mark(old: dict[str, Any], new: dict[str, Any], replaced: Iterable[str]) -> dict[str, Any]:
    """The manifest of step 2: not complete, with the tables that step 3 moves and step 4 removes."""
    removed = [name for name in old["tables"] if name not in new["tables"]]
    return new | {"complete": False, REWRITING: {"replaced": list(replaced), "removed": removed}}


def put_in_place(folder: Path, marked: dict[str, Any], manifest: Path) -> dict[str, Any]:
    """Step 3; returns the manifest of step 4.

    Raises `StoreConflictError`, before anything is moved, where a new table is lost.
    """
    require(manifest, marked, Rewriting)
    replaced, removed = marked[REWRITING]["replaced"], marked[REWRITING]["removed"]
    staged = [name for name in replaced if _holds(folder / STAGING / file_of(name), marked["tables"].get(name))]
    placed = [name for name in replaced if _holds(folder / file_of(name), marked["tables"].get(name))]
    lost = sorted({*replaced} - {*staged, *placed})
    if lost:
        raise StoreConflictError(
            f"{folder}: the study was being rewritten, and a new table is lost",
            given=", ".join(map(file_of, lost)),
            fix="remove the folder and run the study again",
        )
    for name in staged:
        (folder / STAGING / file_of(name)).rename(folder / file_of(name))
    outdated = [folder / file_of(name) for name in removed]
    for pattern in PAGES if {*replaced, *removed} - NOT_DRAWN else ():
        outdated += folder.glob(pattern)
    for path in outdated:
        path.unlink(missing_ok=True)
    sync(folder)
    return {key: value for key, value in marked.items() if key != REWRITING} | {"complete": True}


def sweep(folder: Path) -> None:
    """Remove what step 1 or 4 left behind."""
    shutil.rmtree(folder / STAGING, ignore_errors=True)


def _holds(path: Path, digest: str | None) -> bool:
    return path.is_file() and sha256_of(path) == digest
