"""What a killed writer may leave in a folder: what of it is nobody's, and what took time to find."""

import os
import re
from pathlib import Path

from universal_neurons.config import DIFF_FILE, DYNAMICS_FILE
from universal_neurons.disk import refuse_link
from universal_neurons.storage.manifest import MANIFEST

LOCK, WORK, STAGING, FIGURES, STEPS, STUDY = ".lock", "work", ".rewriting", "figures", "steps", "study"
ANSWERS = "answers"  # of language models
COSTLY = ("checkpoint-", "lanes", "self-", "untrained-")  # of the scratch folder: what took time to find
PAGE = ".report.html.partial"  # drawn without the lock
PARTIALS = re.compile(
    r"\.(study\.json|dynamics\.json|diff\.json|histograms\.safetensors|report\.html|[\w-]+\.parquet)\.partial"
)
INSIDE = {  # what a writer puts into its folders
    WORK: re.compile(
        r"\.?(checkpoint-|self-).*|lanes|sinks|untrained-\d+|(rows|spans|span-ids)(-\d+)?\.(partial|i32)|ranges\.(partial|i32)|text\.(partial|utf8)"
    ),
    STAGING: re.compile(r"\.?[\w-]+\.parquet(\.partial)?"),
    FIGURES: re.compile(r"\..+\.(svg|png)\.partial"),
}


def is_ours(entry: Path) -> bool:
    """Whether a killed writer may have left this in a folder without a manifest."""
    if entry.name in INSIDE and entry.is_dir():
        return all(INSIDE[entry.name].fullmatch(path.name) for path in entry.iterdir())
    return entry.name == LOCK or PARTIALS.fullmatch(entry.name) is not None


def holds_results(folder: Path) -> bool:
    """Whether an unfinished study's folder holds what took time to find: a snapshot, a table, a study within."""
    if not folder.is_dir():
        return True
    for entry in folder.iterdir():
        if entry.name == WORK and entry.is_dir():
            if any(path.name.startswith(COSTLY) for path in entry.iterdir()):
                return True
        elif entry.name == STEPS and entry.is_dir():
            if any(holds_results(step) for step in entry.iterdir()):
                return True
        elif entry.name == STUDY and entry.is_dir():
            if holds_results(entry):
                return True
        elif entry.name not in (MANIFEST, DYNAMICS_FILE, DIFF_FILE) and not is_ours(entry):
            return True
    return False


def sweep_partials(folder: Path) -> None:
    """Remove what was half written; pages are left, which may be written now."""
    for entry in folder.iterdir():
        if PARTIALS.fullmatch(entry.name) and entry.name != PAGE:
            entry.unlink()


def refuse_links(folder: Path) -> None:
    """Raise `StoreConflictError` where a link stands in the place of a folder of ours, or in the scratch folder."""
    for name in (WORK, STAGING, FIGURES, STEPS, STUDY, ANSWERS):
        refuse_link(folder / name)
    for inside, folders, files in os.walk(folder / WORK):
        for name in (*folders, *files):
            refuse_link(Path(inside) / name)
    for step in (folder / STEPS).glob("*"):
        refuse_link(step)
