"""The studies of a site: each with its name in it, its store, and the dynamics or the diff that it is part of."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

from universal_neurons.config import DIFF_FILE, DYNAMICS_FILE
from universal_neurons.diff import Diff
from universal_neurons.dynamics import Dynamics
from universal_neurons.explorer.unit_rows import LightStore
from universal_neurons.storage import Store
from universal_neurons.units import Units

LONGEST_ID = 40
Result = Store | Dynamics | Diff


@runtime_checkable
class Strings(Protocol):
    """What every token is called."""

    def __getitem__(self, token: int, /) -> str:
        """The string of a token."""


class NumbersAlone:
    """The strings of tokens of which nothing but the numbers is known."""

    def __getitem__(self, token: int, /) -> str:
        return str(token)


@dataclass(frozen=True)
class ShownStudy:
    """One study of a site.  Of training dynamics its store is the last checkpoint's, of a diff that of both models."""

    id: str
    name: str
    store: Store
    dynamics: Dynamics | None = None
    diff: Diff | None = None

    def summary(self) -> LightStore:
        """The store as summaries read it, its large tables in part; a new one, which keeps what it has read."""
        return LightStore(self.store.path, verify=self.store.verify)

    @cached_property
    def models(self) -> list[str]:
        """Names of the models, the reference first; of training dynamics the seeds'."""
        return self.store.models if self.dynamics is None else self.dynamics.seeds

    @cached_property
    def strings(self) -> "Strings":
        """What every token is shown as."""
        return strings_of(self.store)

    @property
    def units(self) -> dict[str, Units]:
        """Every model's units, by the name that the store's tables have for it."""
        return self.store.units

    @property
    def title(self) -> str:
        """The reference beside the others, in words; of a diff from which model to which."""
        if self.diff is not None:
            return " → ".join(self.models)
        reference, *others = self.models
        if not others:
            return reference
        listed = ", ".join(others) if len(others) < 6 else f"{len(others)} other models"
        return f"{reference} beside {listed}" + ("" if self.dynamics is None else ", in training")


def strings_of(store: Store) -> Strings:
    """What every token of a study is shown as: its string, or its number where the study has no vocabulary."""
    return store.strings if store.has("vocabulary") else NumbersAlone()


def open_results(path: Path) -> Result:
    """The finished study, the training dynamics or the diff in a folder."""
    if (path / DIFF_FILE).exists():
        return Diff(path)
    return Dynamics(path) if (path / DYNAMICS_FILE).exists() else Store(path)


def study_of(result: Result) -> Store:
    """The study that is shown: of training dynamics the last checkpoint's, of a diff that of both models."""
    if isinstance(result, Dynamics):
        return result.study(result.names[-1])
    return result.study if isinstance(result, Diff) else result


def shown_studies(results: Sequence[Result]) -> Iterator[ShownStudy]:
    """Studies, training dynamics and diffs as a site shows them, one after the other, named after their folders."""
    names = _names([each.path for each in results])
    for each, name, identity in zip(results, names, identities(names)):
        dynamics = each if isinstance(each, Dynamics) else None
        diff = each if isinstance(each, Diff) else None
        yield ShownStudy(identity, name, study_of(each), dynamics, diff)


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' names, or their paths where names repeat."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def identities(names: Iterable[str]) -> list[str]:
    """For every name one of a-z, 0-9 and -, of at most 40 characters, each its own."""
    taken: list[str] = []
    for name in names:
        wanted = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:LONGEST_ID].strip("-") or "study"
        identity, number = wanted, 1
        while identity in taken:
            number += 1
            ending = f"-{number}"
            identity = wanted[: LONGEST_ID - len(ending)] + ending
        taken.append(identity)
    return taken
