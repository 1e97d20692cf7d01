"""The lanes of a pass as jobs of their own: each an even stretch of its shards, added up apart and in order.

A ledger says which shards a lane's state has counted; state and ledger are written together, as generations in the
lane's folder, so that each shard counts once however often a lane is begun again.  Lanes merged in order give the bits
of a pass on one machine.
"""

import copy
import hashlib
import math
import pickle
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from universal_neurons.config import Settings
from universal_neurons.disk import disk_errors, local_path, own_folder
from universal_neurons.errors import ClusterError, StoreConflictError
from universal_neurons.features import Latents, NeuronSource, Studied, load_studied
from universal_neurons.labels import LabelSource
from universal_neurons.models import NEURONS, OF, resolve_sources, split_features
from universal_neurons.passes.one_pass import Annotations, Pass, provisional_state, restore, settle_from, state_of
from universal_neurons.statistics import Recipe, Signs
from universal_neurons.storage import Generations, Pace
from universal_neurons.text import Rows, Shard

SEEN_SECONDS = 120.0  # until what another node wrote is seen here, at most: NFS keeps listings for a minute


@dataclass
class LaneJob:
    """What a worker needs to add up any lane of a pass: plain data, nothing on a device.

    `models` are (name, place, digest), `ends` the numbers of shards at which lanes end; `folder` holds the lanes'
    generations, on storage that all nodes see.
    """

    config: Settings
    models: list[tuple[str, str, str]]
    rounding: str
    pre: bool
    provisional: dict[str, Tensor]
    recipes: list[Recipe]
    annotations: list[Annotations]
    signs: Signs | None
    tokens: Rows
    shards: list[Shard]
    ends: list[int]
    pace: Pace
    folder: Path
    scales: dict[str, list[float]]  # of dictionaries

    @classmethod
    def of(
        cls,
        run: Pass,
        models: Sequence[Studied],
        config: Settings,
        tokens: Rows,
        shards: Sequence[Shard],
        pace: Pace,
        folder: Path,
    ) -> "LaneJob":
        """The job of a pass whose provisional means are settled; `models` are all those that `config` names.

        The lanes' folders lie in a folder of `folder` that is named after what decides their bits.
        """
        tokens.resolve_files()
        places = {model.name: _everywhere(given) for model, given in zip(models, config.models)}
        sources = list(run.sources.values())
        job = cls(
            config=config,
            models=[(m.name, places[m.name], m.digest) for m in models if m.name in run.sources],
            rounding=sources[0].rounding,
            pre=sources[0].pre,
            provisional={name: tensor.cpu() for name, tensor in provisional_state(sources).items()},
            recipes=run.recipes,
            annotations=[_on(annotation, "cpu") for annotation in run.annotations],
            signs=run.signs,
            tokens=tokens,
            shards=list(shards),
            ends=run.lanes or [len(shards)],
            pace=pace,
            folder=folder,
            scales={m.name: m.scales for m in models if isinstance(m, Latents)},
        )
        job.folder = folder.absolute() / job.identity()
        return job

    def __getstate__(self) -> dict[str, Any]:
        """Recipes are pickled by name: Ray would send their code along."""
        return vars(self) | {"recipes": pickle.dumps(self.recipes)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"recipes": pickle.loads(state["recipes"])})

    def identity(self) -> str:
        """Tells these lanes from those of other provisional means, labels or recipes in the same study's folder."""
        digest = hashlib.sha256()
        labels = [a.labels.digest() for a in self.annotations if isinstance(a, LabelSource)]
        for part in (self.ends, self.signs, labels, self.rounding, self.pre, self.provisional, self.recipes):
            _tell(digest, part)
        return digest.hexdigest()[:16]

    def bounds(self, lane: int) -> tuple[int, int]:
        """The numbers of a lane's first shard and of the one after its last."""
        return (self.ends[lane - 1] if lane else 0), self.ends[lane]

    def generations(self, lane: int) -> Generations:
        """What was written of a lane."""
        return Generations(self.folder / str(lane), of=f"{self.folder.name} {lane}", shared=True)

    def positions(self, lane: int, done: int | None = None) -> int:
        """Token positions of a lane's first `done` shards, or of all."""
        first, end = self.bounds(lane)
        stop = end if done is None else first + done
        return sum(len(shard.rows) for shard in self.shards[first:stop]) * self.tokens.context

    def prepare(self) -> None:
        """Make room for its lanes, and remove those of other jobs of the same pass."""
        with disk_errors(self.folder):
            for folder in (self.folder.parent.parent, self.folder.parent, self.folder):
                own_folder(folder)
            for other in self.folder.parent.iterdir():
                if other != self.folder:
                    shutil.rmtree(other, ignore_errors=True)

    def done(self, lane: int) -> int:
        """How many shards of a lane its last usable generation has counted."""
        return self.generations(lane).newest()

    def load(self, models: Sequence[tuple[str, str, str]]) -> list[Studied]:
        """Some of its models, where this runs.  Raises `ClusterError` where a place holds another."""
        places = resolve_sources([place for _, place, _ in models])
        sources = [replace(source, name=name) for source, (name, _, _) in zip(places, models)]
        loaded = load_studied(sources, device=self.config.device.split(":")[0], dtype=self.config.dtype)
        for model, (_, place, digest) in zip(loaded, models):
            if model.digest != digest:
                raise ClusterError(
                    f"{place} on {socket.gethostname()}: not the model that the study began with",
                    given=model.digest,
                    wanted=digest,
                    fix="bring the same files to all nodes",
                )
        return loaded

    def lane_pass(self, models: Sequence[Studied]) -> Pass:
        """A worker's own pass, at its beginning."""
        for model in models:
            if isinstance(model, Latents):
                model.settle(self.scales[model.name])
        sources = [NeuronSource(model, self.rounding, pre=self.pre) for model in models]
        settle_from(self.provisional, sources)
        annotations = [_on(annotation, models[0].device) for annotation in self.annotations]
        return Pass(sources, self.recipes, annotations, signs=self.signs)

    def state(self, lane: int) -> dict[str, Tensor]:
        """The state of a lane that is done.

        Raises `ClusterError` where what was written of it is lost or damaged.
        """
        first, end = self.bounds(lane)
        begun = time.monotonic()
        saved = self.generations(lane).load()
        while (saved is None or saved[1] < end - first) and time.monotonic() - begun < SEEN_SECONDS:
            time.sleep(1.0)
            saved = self.generations(lane).load()
        if saved is None or saved[1] < end - first:
            raise ClusterError(
                f"{self.folder / str(lane)}: the end of lane {lane} is damaged or gone",
                given=f"{saved[1] if saved else 0} of its {end - first} shards",
                wanted="all of them",
                fix="run the same command again: it resumes",
            )
        state, _ = saved
        self.require_in_order(lane, state.pop("ledger").tolist())
        return state

    def require_in_order(self, lane: int, ledger: list[int]) -> None:
        """Assert that a lane counted each of its first shards once, in order."""
        first, _ = self.bounds(lane)
        wanted = [shard.index for shard in self.shards[first : first + len(ledger)]]
        assert ledger == wanted, f"lane {lane} counted the shards {ledger}, not {wanted}"


class LaneRun:
    """A lane under way, from its last generation on."""

    def __init__(self, job: LaneJob, models: Sequence[Studied], lane: int) -> None:
        if not job.folder.is_dir():
            raise StoreConflictError(
                f"{job.folder}: not there on {socket.gethostname()}",
                wanted="a folder of results on storage that all nodes see",
                fix="name another --out",
            )
        self.job = job
        self.generations = job.generations(lane)
        first, self.end = job.bounds(lane)
        self.run = job.lane_pass(models)
        self.run.next_shard = first
        self.ledger: list[int] = []
        self.pace = replace(job.pace)
        saved = self.generations.load()
        if saved is not None:
            state = saved[0]
            self.ledger = state.pop("ledger").tolist()
            self.run.next_shard += len(self.ledger)
            job.require_in_order(lane, self.ledger)
            restore(self.run.accumulators, state, "")
        left = job.shards[self.run.next_shard : self.end]
        self.reading = self.run.read(job.tokens, left, batch_tokens=job.config.batch_tokens)

    def advance(self, seconds: float = math.inf) -> int:
        """Go on for a while, or to the lane's end; returns how many of its shards are counted."""
        stop = time.perf_counter() + seconds
        for shard in self.reading:
            self.ledger.append(shard.index)
            if self.pace.due or self.run.next_shard == self.end:
                self._save()
            if time.perf_counter() >= stop:
                break
        return len(self.ledger)

    def _save(self) -> None:
        begun = time.perf_counter()
        state = state_of(self.run.accumulators, "") | {"ledger": torch.tensor(self.ledger, dtype=torch.int64)}
        self.generations.save(state, len(self.ledger))
        self.pace.written(time.perf_counter() - begun)


def _everywhere(given: str) -> str:
    """A source's place as every node finds it."""
    path, features = split_features(given)
    return _absolute(path) + ("" if features == NEURONS else OF + _absolute(features))


def _absolute(given: str) -> str:
    """A model's place as every node finds it: an absolute path, or a hub id as it is."""
    local = local_path(given)
    return str(local.resolve()) if local.is_dir() else given


def _on(annotation: Annotations, device: Any) -> Annotations:
    """Labels whose tensors are on a device."""
    if not isinstance(annotation, LabelSource):
        return annotation
    moved = copy.copy(annotation)
    moved.device = device
    moved.tables = [table.to(device) for table in annotation.tables]
    return moved


def _tell(told: Any, part: Any) -> None:
    """Add a value to a digest: recipes by what they call and hold, tensors by their bytes."""
    if isinstance(part, Tensor):
        told.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(part, partial):
        _tell(told, [part.func.__qualname__, part.args, part.keywords])
    elif isinstance(part, dict):
        _tell(told, list(part.items()))
    elif isinstance(part, list | tuple):
        told.update(f"{len(part)}(".encode())
        for one in part:
            _tell(told, one)
    else:
        told.update(f"{part!r},".encode())
