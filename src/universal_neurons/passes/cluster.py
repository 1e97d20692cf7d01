"""The lanes of a pass on a Ray cluster: the same bits whatever the number of workers, and whatever dies.

1. The driver hands lanes to workers (actors) and asks each to go on for a while.
2. A worker or node that dies is replaced, and its lane goes on from its last generation on any other.  Two workers may
   then hold one lane, where one was thought dead: they write the same bits, whole or not at all.
3. When all lanes are done the workers end; the driver merges the lanes in order, as a pass on one machine does.
"""

import contextlib
import logging
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from universal_neurons import __version__
from universal_neurons.config import IN_MEMORY, StudyConfig
from universal_neurons.errors import (
    ClusterAddressError,
    ClusterError,
    ConfigError,
    MissingExtraError,
    UniversalNeuronsError,
)
from universal_neurons.features import Studied
from universal_neurons.legible import first_line
from universal_neurons.passes.lanes import LaneJob, LaneRun
from universal_neurons.torch_state import settled_torch

STEP_SECONDS = 2.0  # a worker answers so often
PATIENCE_SECONDS = 300.0  # without a single worker
MOST_LOSSES = 5  # of workers in a row without a new generation of their lane
CONNECT_SECONDS = 10.0


@dataclass
class About:
    """What a worker says of itself."""

    pid: int
    host: str
    versions: tuple[str, str]


class LaneWorker:
    """The actor: one process, one GPU where there are GPUs, one lane at a time; its models stay loaded."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.models: dict[tuple[str, str, str], Studied] = {}
        self.lane: LaneRun | None = None

    def about(self) -> About:
        """Who it is, once it is there."""
        return about_here()

    def begin(self, job: LaneJob, lane: int) -> int:
        """Take up a lane; returns how many of its shards are counted already."""
        self.lane = None
        missing = [model for model in job.models if model not in self.models]
        with settled_torch(self.threads):
            self.models |= dict(zip(missing, job.load(missing) if missing else []))
            self.lane = LaneRun(job, [self.models[model] for model in job.models], lane)
        return len(self.lane.ledger)

    def advance(self, seconds: float) -> int:
        """Go on for a while; returns how many of the lane's shards are counted."""
        assert self.lane is not None
        with settled_torch(self.threads):
            return self.lane.advance(seconds)


def about_here() -> About:
    """What this process says of itself."""
    return About(os.getpid(), socket.gethostname(), (__version__, torch.__version__))


def run_lanes(job: LaneJob, lanes: Sequence[int], meter: Callable[[int], None]) -> None:
    """Bring lanes of a job to their ends on the cluster; `meter` is told how many positions were added.

    Raises what stops a worker's lane, and `ClusterError` where no workers are to be had.
    """
    crew = _Crew(job, lanes)
    shown = crew.positions
    try:
        while crew.unfinished:
            crew.step()
            if crew.positions > shown:
                meter(crew.positions - shown)
                shown = crew.positions
    finally:
        crew.dismiss()


@dataclass(eq=False)
class _Worker:
    handle: Any
    about: About | None = None
    lane: int | None = None


class _Crew:
    """The workers of a pass, and who does which lane: as many as the cluster has room for, one a lane at most.

    More are asked for than there is room, so that a node that joins brings its worker.
    """

    def __init__(self, job: LaneJob, lanes: Sequence[int]) -> None:
        import ray

        self.ray: Any = ray
        self.job = job
        self.done = {lane: job.done(lane) for lane in lanes}
        self.saved = dict(self.done)
        self.waiting = deque(sorted(self.unfinished))
        self.losses: Counter[int | None] = Counter()
        self.workers: list[_Worker] = []
        self.calls: dict[Any, _Worker] = {}
        self.neighbours: list[psutil.Process] = []  # workers of this machine
        self.reference = ray.put(job) if self.unfinished else None
        self.seen = time.monotonic()

    @property
    def unfinished(self) -> set[int]:
        """Lanes that are not done."""
        return {lane for lane, done in self.done.items() if done < self._length(lane)}

    @property
    def positions(self) -> int:
        """Token positions that are done."""
        return sum(self.job.positions(lane, done) for lane, done in self.done.items())

    def _length(self, lane: int) -> int:
        first, end = self.job.bounds(lane)
        return end - first

    def step(self) -> None:
        """Hand out what waits, and hear whoever answers next."""
        self._staff()
        ready, _ = self.ray.wait(list(self.calls), timeout=1.0)
        for call in ready:
            worker = self.calls.pop(call)
            try:
                self._answered(worker, self.ray.get(call))
            except self.ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UniversalNeuronsError):
                    raise error.cause from None
                if not isinstance(error.cause, self.ray.exceptions.RayError):
                    raise
                self._lost(worker, error)
            except self.ray.exceptions.RayError as error:
                self._lost(worker, error)
        if any(worker.about is not None for worker in self.workers):
            self.seen = time.monotonic()
        elif time.monotonic() - self.seen > PATIENCE_SECONDS:
            raise ClusterError(
                f"no worker on the cluster for {PATIENCE_SECONDS:.0f} s",
                given=f"free: {self.ray.available_resources()}",
                wanted="a GPU for each worker" if self._on_gpus else f"{self._threads} CPUs for each worker",
                fix="bring nodes back, then run the same command again: it resumes",
            )

    @property
    def _on_gpus(self) -> bool:
        return self.job.config.device.startswith("cuda")

    @property
    def _threads(self) -> int:
        return self.job.config.threads or 1

    def _staff(self) -> None:
        """A worker for every lane that is not done: ask for those that lack, dismiss those who are too many."""
        for worker in self.workers:
            if worker.about is not None and worker.lane is None and self.waiting:
                worker.lane = self.waiting.popleft()
                self.calls[worker.handle.begin.remote(self.reference, worker.lane)] = worker
        spare = sorted((w for w in self.workers if w.lane is None), key=lambda w: w.about is not None)
        for worker in spare[: max(0, len(self.workers) - len(self.unfinished))]:
            self._dismiss(worker)
        while len(self.workers) < len(self.unfinished):
            options = {"num_cpus": 1 if self._on_gpus else self._threads, "num_gpus": int(self._on_gpus)}
            actor = self.ray.remote(max_restarts=0, max_task_retries=0, **options)(LaneWorker)
            worker = _Worker(actor.remote(self._threads))
            self.workers.append(worker)
            self.calls[worker.handle.about.remote()] = worker

    def _answered(self, worker: _Worker, answer: Any) -> None:
        if isinstance(answer, About):
            here = about_here()
            if answer.versions != here.versions:
                raise ClusterError(
                    f"{answer.host}: other versions of universal-neurons and torch than here",
                    given=" and ".join(answer.versions),
                    wanted=" and ".join(here.versions),
                    fix="install the same on all nodes, then run the same command again",
                )
            worker.about = answer
            if answer.host == here.host:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.neighbours.append(psutil.Process(answer.pid))
            self.losses[None] = 0
            return
        lane = worker.lane
        assert lane is not None
        self.done[lane] = answer
        if answer == self._length(lane):
            worker.lane = None
        else:
            self.calls[worker.handle.advance.remote(STEP_SECONDS)] = worker

    def _lost(self, worker: _Worker, error: Exception) -> None:
        """A worker is gone: its lane waits for another."""
        lane = worker.lane
        self._dismiss(worker)
        if lane is not None:
            self.done[lane] = self.job.done(lane)
            if self.done[lane] > self.saved[lane]:
                self.losses[lane] = 0
            self.saved[lane] = self.done[lane]
            self.waiting.appendleft(lane)
        self.losses[lane] += 1
        if self.losses[lane] > MOST_LOSSES:
            whose = "a worker" if lane is None else f"the worker of lane {lane}"
            raise ClusterError(
                f"{whose} died {self.losses[lane]} times in a row",
                given=str(error).strip()[:500],
                wanted="workers that have memory enough and see the same files and packages as this process",
                fix="then run the same command again: it resumes",
            ) from error

    def _dismiss(self, worker: _Worker) -> None:
        self.ray.kill(worker.handle, no_restart=True)
        self.workers.remove(worker)
        self.calls = {call: other for call, other in self.calls.items() if other is not worker}

    def dismiss(self) -> None:
        """End all workers, and wait for those of this machine: their GPUs are free then."""
        for worker in list(self.workers):
            self._dismiss(worker)
        stop = time.monotonic() + CONNECT_SECONDS
        while any(map(_runs, self.neighbours)) and time.monotonic() < stop:
            time.sleep(0.05)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def connected(config: StudyConfig) -> Iterator[None]:
    """A resolved configuration's cluster, if it has one; `auto`: one that runs here, else one of this machine alone.

    Raises `ConfigError`, `MissingExtraError` or `ClusterAddressError` where it cannot be used.
    """
    if config.cluster is None:
        yield
        return
    _require_spreadable(config)
    try:
        import ray
    except ImportError:
        raise MissingExtraError(
            "--cluster: Ray is not installed",
            wanted="the extra cluster",
            fix="pip install 'universal-neurons[cluster]'",
        ) from None
    if ray.is_initialized():
        address = ray.get_runtime_context().gcs_address
        if config.cluster not in ("auto", address):
            raise ClusterAddressError(
                f"--cluster {config.cluster}: this process is connected to another cluster", given=address, wanted="one"
            )
        yield
        return
    _connect(config.cluster)
    try:
        yield
    finally:
        ray.shutdown()


def _require_spreadable(config: StudyConfig) -> None:
    """Refuse what a cluster cannot do."""
    if any(model.startswith(IN_MEMORY) for model in config.models):
        raise ConfigError(
            "--cluster needs models that every node can load", given="models in memory", wanted="folders or hub ids"
        )
    if not config.reads_tokens:
        raise ConfigError(
            "--cluster is for studies that read text", given="the stage weights alone", fix="leave it out"
        )
    if config.lanes == 1:
        raise ConfigError(
            "--cluster with one lane", wanted="as many lanes as workers, or more", fix="leave --lanes out"
        )


def _running_here() -> str:
    """The address of RAY_ADDRESS, or of the last cluster started here if it still answers; else `local`: a new one."""
    if given := os.environ.get("RAY_ADDRESS"):
        return given
    try:
        last = (Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster").read_text().strip()
        host, _, port = last.rpartition(":")
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError):  # a cluster that has ended leaves its address behind
        return "local"
    return last


def _connect(address: str) -> None:
    """Connect to a cluster, quietly.  Raises `ClusterAddressError`."""
    import ray

    wanted = "auto, or HOST:PORT of a Ray cluster that this machine is a node of"
    where = _running_here() if address == "auto" else address
    if where != "local":
        host, _, port = where.rpartition(":")
        if "://" in where or not host or not port.isdigit():
            raise ClusterAddressError(f"--cluster {address}: no address", wanted=wanted)
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise ClusterAddressError(f"--cluster {address}: nothing answers", given=error, wanted=wanted) from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray.init(address=where, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # plain where one of its processes is killed while it starts
        ray.shutdown()
        given = first_line(error)
        raise ClusterAddressError(
            f"--cluster {address}: cannot be connected to", given=given, wanted=wanted, fix="ray start, or ray stop"
        ) from error
