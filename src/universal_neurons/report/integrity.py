"""Are the files of finished studies, and sketches, those that their manifests say?  Every table, by its SHA-256."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group

from universal_neurons import storage
from universal_neurons.config import DIFF_FILE, DYNAMICS_FILE
from universal_neurons.diff import STUDY, Diff
from universal_neurons.disk import local_path
from universal_neurons.dynamics import Dynamics
from universal_neurons.errors import InputError, MissingFileError, StoreConflictError
from universal_neurons.storage import SKETCH, Store
from universal_neurons.terminal import shown


def check_stores(paths: Sequence[str]) -> Group:
    """Say that the studies, training dynamics and diffs in these folders are whole.

    Raises `StoreConflictError` that lists all that is not.
    """
    problems: list[str] = []
    lines = []
    for name in paths:
        path = local_path(name)
        begun = len(problems)
        if path.suffix == SKETCH:
            lines += _check_sketch(path, problems)
            continue
        files = _check_folder(path, problems)
        if len(problems) == begun:
            lines.append(f"{path}: whole; {files} files are those that were written.")
    if problems:
        raise StoreConflictError("not what was written:", causes=problems)
    return Group(*map(shown, lines))


def _check_sketch(path: Path, problems: list[str]) -> list[str]:
    """Verify a portable sketch, which is done when it is opened."""
    try:
        sketch = storage.SketchFile(path)
    except InputError as error:
        problems.append(str(error))
        return []
    return [f"{path}: a whole sketch of {sketch.about['model']['name']}."]


def _check_folder(path: Path, problems: list[str]) -> int:
    """Check what is in a folder, by its manifest; returns how many tables there are."""
    if (path / DYNAMICS_FILE).exists():
        return _check_dynamics(path, problems)
    return _check_diff(path, problems) if (path / DIFF_FILE).exists() else _check(Store, path, problems)


def _check(kind: type[Store | Dynamics | Diff], path: Path, problems: list[str]) -> int:
    """Check the tables in one folder; returns how many there are."""
    try:
        results = kind(path)
        _ = results.config  # which can be read
        missing = results.missing_files()
        if missing:
            raise MissingFileError(
                f"{path}: files of the {results.WHAT} are gone",
                given=", ".join(missing),
                fix=f"run the same command again ({results.COMMAND}): they are made anew",
            )
    except InputError as error:
        problems.append(str(error))
        return 0
    return len(results.manifest["tables"])


def _check_dynamics(path: Path, problems: list[str]) -> int:
    """Check training dynamics and the study of every checkpoint, which must be the one that they were made of."""
    files = _check(Dynamics, path, problems)
    if not files:
        return 0
    dynamics = Dynamics(path)
    for checkpoint in dynamics.manifest["checkpoints"]:
        begun = len(problems)
        folder = path / "steps" / checkpoint["name"]
        files += _check(Store, folder, problems)
        if len(problems) == begun and Store(folder).manifest["tables"] != checkpoint["tables"]:
            problems.append(f"{folder}: not the study that {DYNAMICS_FILE} was made of")
    return files


def _check_diff(path: Path, problems: list[str]) -> int:
    """Check a diff and its study, which must be the one that it was made of."""
    files = _check(Diff, path, problems)
    if not files:
        return 0
    begun, folder = len(problems), path / STUDY
    files += _check(Store, folder, problems)
    if len(problems) == begun and Store(folder).manifest["tables"] != Diff(path).manifest["study"]:
        problems.append(f"{folder}: not the study that {DIFF_FILE} was made of")
    return files
