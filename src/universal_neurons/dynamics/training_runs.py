"""The checkpoints of training runs ("seeds"), step by step, and those that all seeds have.

A seed is

1. a local folder: its subfolders `step-K`, `stepK`, `checkpoint-K` or `K` that hold a model are the checkpoints, and a
   model in the folder itself is the final one;
2. with `revisions`, a hub id, or a folder whose subfolders have these names: one checkpoint each, in this order;
3. `bundled`: the bundled seeds that come with checkpoints.

The step is the number after `step` or `checkpoint` in the name, else the first number there.  The final model's is
`final_step`, else the `global_step` of its folder's trainer_state.json (as Hugging Face's Trainer writes it); where
nobody says, it is called `final` and comes last.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from universal_neurons.config import BUNDLED
from universal_neurons.disk import local_path
from universal_neurons.errors import ConfigError, MissingFileError, NothingToCompareError, StepError
from universal_neurons.models import bundled_folder, bundled_names, folder_of, names_of

FINAL = "final"
STEP_FOLDER = re.compile(r"(?:step|checkpoint)?[-_]?\d+", re.IGNORECASE)
STEP_IN_NAME = re.compile(r"(?:step|checkpoint)[-_]?(\d+)", re.IGNORECASE)
MOST_DIGITS = 18  # of more, a date or a digest
NAMES = "step-K, stepK, checkpoint-K or K"


@dataclass(frozen=True)
class Checkpoint:
    """All seeds' models of one step, in the order of the seeds; `step` is None where nobody says the number."""

    name: str
    step: int | None
    models: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """Name, step and models, as dynamics.json holds them."""
        return {"name": self.name, "step": self.step, "models": list(self.models)}


@dataclass(frozen=True)
class Training:
    """Training runs with the checkpoints that all of them have, the first to the last; `notes` say what is left out.

    `folders` holds each seed's own folder, where it is local: its tokenizer is there.
    """

    seeds: tuple[str, ...]
    folders: tuple[Path | None, ...]
    checkpoints: tuple[Checkpoint, ...]
    notes: tuple[str, ...] = ()


@dataclass
class _Run:
    """One seed: by step (None: not known), the model that `StudyConfig.models` would name."""

    seed: str
    folder: Path | None
    models: dict[int | None, str] = field(default_factory=dict)
    unnumbered: str = FINAL
    last: bool = False  # whether one has no number in its name
    notes: list[str] = field(default_factory=list)

    def add(self, step: int | None, model: str, final_step: int | None) -> None:
        """The next checkpoint; `final_step` is that of one without a number."""
        self.last |= step is None
        step = final_step if step is None else step
        earlier = [known for known in self.models if known is not None]
        if None in self.models or (step is not None and earlier and step <= max(earlier)):
            raise StepError(
                f"{self.seed}: its checkpoints are not in the order of training",
                given=", ".join([*map(str, self.models.values()), model]),
                wanted="ascending steps, each once; one without a number stands last",
                fix="name the --revisions in order, or give the last one's number with --final-step",
            )
        self.models[step] = model


def find_training(seeds: Sequence[str], revisions: Sequence[str] = (), final_step: int | None = None) -> Training:
    """The seeds' common checkpoints (see the module).

    Raises `NothingToCompareError` for fewer than two seeds, `StepError` for fewer than two common checkpoints or steps
    that cannot be told, `MissingFileError` for what is not there.
    """
    named = _expand(seeds)
    if len(named) < 2:
        raise NothingToCompareError(
            "one seed alone has nothing to be compared with",
            given=", ".join(named),
            wanted="two seeds or more",
            fix="name another training run of the same model",
        )
    names = names_of(named)
    runs = [_with_revisions(seed, revisions, final_step) if revisions else _folder(seed, final_step) for seed in named]
    if final_step is not None and not any(run.last for run in runs):
        raise ConfigError(
            f"--final-step {final_step}: every checkpoint has its number already",
            wanted="a model in a seed's own folder, or a last revision without a number",
            fix="leave it out",
        )
    shared = [step for step in runs[0].models if all(step in run.models for run in runs)]
    if len(shared) < 2:
        raise StepError(
            "the seeds have fewer than two checkpoints in common",
            given="; ".join(f"{name}: {_listed(run, list(run.models))}" for name, run in zip(names, runs)),
            wanted="two steps or more that every seed has",
            fix=f"name folders with subfolders {NAMES}, or --revisions",
        )
    notes = [f"{name}: {note}" for name, run in zip(names, runs) for note in run.notes]
    for name, run in zip(names, runs):
        lacking = [step for step in run.models if step not in shared]
        if lacking:
            notes.append(f"{name}: left out, as not every seed has them: {_listed(run, lacking)}")
    checkpoints = tuple(
        Checkpoint(_name(runs[0], step), step, tuple(run.models[step] for run in runs)) for step in shared
    )
    return Training(tuple(names), tuple(run.folder for run in runs), checkpoints, tuple(notes))


def _expand(seeds: Sequence[str]) -> list[str]:
    """The seeds, `bundled` replaced by the bundled models that have checkpoints."""
    expanded: list[str] = []
    for seed in seeds:
        if seed != BUNDLED:
            expanded.append(seed)
            continue
        staged = [name for name in bundled_names() if _subfolders(bundled_folder(name))[0]]
        if not staged:
            raise MissingFileError(
                "the bundled models come without checkpoints",
                wanted="seeds with checkpoints",
                fix="name your own seeds",
            )
        expanded += staged
    return expanded


def _local(seed: str) -> Path | None:
    """A seed's folder; None for a hub id.  What looks like a path and is none is a `MissingFileError`."""
    path = local_path(seed)
    looks_so = seed.startswith((".", "/", "~", f"{BUNDLED}/")) or seed.count("/") > 1
    return folder_of(seed) if os.path.lexists(path) or looks_so else None


def _subfolders(folder: Path) -> tuple[dict[str, int], list[str]]:
    """Names and steps of the checkpoints in a folder by step, and names like theirs without a model."""
    names = [path.name for path in folder.iterdir() if path.is_dir() and STEP_FOLDER.fullmatch(path.name)]
    steps = {name: step for name in names if (step := step_of(name)) is not None}
    whole = [name for name in steps if (folder / name / "config.json").exists()]
    return {name: steps[name] for name in sorted(whole, key=lambda name: steps[name])}, sorted(set(names) - set(whole))


def _folder(seed: str, final_step: int | None) -> _Run:
    """The checkpoints in a seed's folder."""
    folder = _local(seed)
    if folder is None:
        raise ConfigError(
            f"{seed}: neither a local folder nor revisions of a hub id",
            wanted="a folder with checkpoints, or --revisions",
            fix="--revisions step1000 step2000 …",
        )
    run = _Run(seed, folder)
    steps, empty = _subfolders(folder)
    run.notes += [f"{name} holds no model: left out" for name in empty]
    for name, step in steps.items():
        run.add(step, f"{seed.rstrip('/')}/{name}", None)
    if (folder / "config.json").exists():
        last = trainer_step(folder) if final_step is None else final_step
        if last in run.models and last is not None:
            run.last = True
            run.notes.append(f"the folder's own model is of step {last}, which a subfolder has: left out")
        else:
            run.add(None, seed, last)
    return run


def _with_revisions(seed: str, revisions: Sequence[str], final_step: int | None) -> _Run:
    """One checkpoint of a seed for every revision."""
    folder = _local(seed)
    if folder is None and "@" in seed:
        raise ConfigError(f"{seed}: a revision twice over", given=", ".join(revisions), wanted="a hub id alone")
    run = _Run(seed, folder)
    for revision in revisions:
        if folder is not None and not local_path(folder / revision).is_dir():
            subfolders = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir()))
            raise MissingFileError(
                f"{seed}: no subfolder {revision[:200]!r}", given=subfolders[:200] or "none", wanted="a checkpoint"
            )
        step = step_of(revision)
        run.add(step, f"{seed}@{revision}" if folder is None else f"{seed.rstrip('/')}/{revision}", final_step)
        run.unnumbered = revision.replace("/", "-") if step is None else FINAL
    return run


def step_of(name: str) -> int | None:
    """The step in a checkpoint's name: the number after `step` or `checkpoint`, else the first; None without any."""
    match = STEP_IN_NAME.search(name) or re.search(r"(\d+)", name)
    return int(match.group(1)) if match and len(match.group(1)) <= MOST_DIGITS else None


def trainer_step(folder: Path) -> int | None:
    """`global_step` of the folder's trainer_state.json, or None where there is no such file."""
    path = folder / "trainer_state.json"
    if not path.is_file():
        return None
    try:
        step = json.loads(path.read_text(encoding="utf-8"))["global_step"]
        if not isinstance(step, int) or not 0 <= step < 10**MOST_DIGITS:
            raise ValueError(f"global_step {str(step)[:200]}")
        return step
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise StepError(
            f"{path}: does not say the step",
            given=repr(error),
            wanted="an object with global_step",
            fix="mend or remove it, or give --final-step",
        ) from None


def _name(run: _Run, step: int | None) -> str:
    return run.unnumbered if step is None else str(step)


def _listed(run: _Run, steps: Sequence[int | None]) -> str:
    return ", ".join(_name(run, step) for step in steps) or "none"
