"""Passes on a cluster: the same bits whatever dies; lanes without Ray, the driver with a fake one, nodes with the real one."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import settled, some_text
from test_correlation import some_tokens
from test_study import contents, quiet

from universal_neurons import StudyConfig, run_study
from universal_neurons.errors import (
    ClusterAddressError,
    ClusterError,
    ConfigError,
    MissingExtraError,
    NonFiniteActivationsError,
    StoreConflictError,
)
from universal_neurons.features import NeuronSource
from universal_neurons.models import load_model
from universal_neurons.passes import (
    LaneJob,
    Pass,
    cluster,
    cut,
    model_pairs,
    model_recipes,
    panel_recipes,
    run_lanes,
    state_of,
)
from universal_neurons.passes.cluster import LaneWorker
from universal_neurons.passes.lanes import LaneRun
from universal_neurons.progress import Reporter
from universal_neurons.statistics import Accumulator
from universal_neurons.storage import Generations, Pace, StoreWriter
from universal_neurons.study.run_passes import lane_ends
from universal_neurons.torch_state import settled_torch

ray = pytest.importorskip("ray")
SHARD = 1024


@pytest.fixture(autouse=True)
def torch_of_a_study():
    """torch as a study has it, also where a test computes beside one."""
    with settled_torch():
        yield


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr("universal_neurons.text.tokens.SHARD_POSITIONS", SHARD)


@pytest.fixture
def job(folders, tmp_path):
    """Three lanes of a pass over 13 shards of two models."""
    config = settled(models=tuple(map(str, folders[:2])), cluster="auto", lanes=3)
    models = [load_model(str(folder)) for folder in folders[:2]]
    tokens = some_tokens(16 * SHARD // 40)
    shards = tokens.shards(tokens.split()[0])
    (panels,) = cut(model_pairs(models, "reference"), 1)
    recipes = panel_recipes(panels, config) + model_recipes(models, {"m1"}, config)
    run = Pass([NeuronSource(model) for model in models], recipes, lanes=lane_ends(len(shards), 3))
    run.settle_means(tokens, shards)
    job = LaneJob.of(run, models, config, tokens, shards, Pace(0.0, 10.0, 0.02), tmp_path / "lanes")
    job.prepare()
    return job


def models_of(job):
    return job.load(job.models)


def same(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def straight(job, lane):
    """A lane's state without any interruption, and without a folder."""
    run = job.lane_pass(models_of(job))
    for _ in run.read(job.tokens, job.shards[slice(*job.bounds(lane))], batch_tokens=job.config.batch_tokens):
        pass
    return state_of(run.accumulators, "")


def test_a_lane_interrupted_at_every_fold_is_the_same_and_counts_each_shard_once(job, monkeypatch):
    models = models_of(job)
    fold = Pass._fold
    folds = []

    def second_breaks(self, shard):
        if len(folds) % 2:
            folds.append(None)
            raise KeyboardInterrupt
        fold(self, shard)
        folds.append(shard.index)

    monkeypatch.setattr(Pass, "_fold", second_breaks)
    first, end = job.bounds(1)
    for _ in range(end - first):
        try:
            done = LaneRun(job, models, 1).advance()
        except KeyboardInterrupt:
            continue
    assert done == end - first
    assert [index for index in folds if index is not None] == list(range(first, end))
    monkeypatch.setattr(Pass, "_fold", fold)
    same(job.state(1), straight(job, 1))
    monkeypatch.setattr(Pass, "batches", None)  # it reads nothing any more
    assert LaneRun(job, models, 1).advance() == end - first


def test_two_workers_of_one_lane_do_not_disturb_each_other(job):
    models = models_of(job)
    one, two = LaneRun(job, models, 0), LaneRun(job, models, 0)
    length = job.bounds(0)[1]
    done = 0
    chooser = random.Random(1)
    while done < length:
        done = chooser.choice((one, two)).advance(0.0)
    assert max(one.advance(), two.advance()) == length
    same(job.state(0), straight(job, 0))
    assert len(list((job.folder / "0").iterdir())) == 2


def test_a_wrong_ledger_asserts(job, monkeypatch):
    monkeypatch.setattr("universal_neurons.passes.lanes.SEEN_SECONDS", 0.0)
    models = models_of(job)
    LaneRun(job, models, 0).advance(0.0)
    with pytest.raises(ClusterError, match="lane 0 is damaged or gone"):
        job.state(0)
    state, step = job.generations(0).load()
    state["ledger"] = torch.tensor([0, 0])
    job.generations(0).save(state, step + 1)
    with pytest.raises(AssertionError, match="counted the shards"):
        LaneRun(job, models, 0)
    with pytest.raises(ClusterError, match="lane 1 is damaged or gone"):
        job.state(1)


def test_a_lane_whose_last_generation_is_damaged_is_not_done_and_goes_on_from_the_one_before(job, monkeypatch):
    monkeypatch.setattr("universal_neurons.passes.lanes.SEEN_SECONDS", 0.0)
    models = models_of(job)
    length = LaneRun(job, models, 0).advance()
    newest = job.generations(0).all()[0] / "0000.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 4
    newest.write_bytes(content)
    assert job.done(0) == length - 1
    with pytest.raises(ClusterError, match="lane 0 is damaged"):
        job.state(0)
    fake = FakeRay(1)
    monkeypatch.setitem(sys.modules, "ray", fake)
    run_lanes(job, [0], print)
    same(job.state(0), straight(job, 0))


def test_lanes_are_not_written_through_links(job, tmp_path):
    LaneRun(job, models_of(job), 0).advance(0.0)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "work").mkdir()
    shutil.rmtree(job.folder.parent)
    job.folder.parent.symlink_to(theirs)
    with pytest.raises(StoreConflictError, match="symbolic link"):
        job.prepare()
    assert (theirs / "work").is_dir()


def test_lanes_of_other_labels_or_means_are_not_mixed(job):
    other = replace(job, provisional={name: tensor + 1 for name, tensor in job.provisional.items()})
    assert other.identity() != job.identity() == replace(job).identity()
    assert replace(job, recipes=job.recipes[:-1]).identity() != job.identity()
    LaneRun(job, models_of(job), 0).advance()
    other.folder = job.folder.with_name(other.identity())
    other.prepare()
    assert not job.folder.exists()
    with pytest.raises(StoreConflictError, match="not there"):
        LaneRun(job, models_of(job), 0)


def test_a_node_with_other_files_in_the_models_place_is_named(job):
    name, place, _ = job.models[0]
    with pytest.raises(ClusterError, match="not the model"):
        job.load([(name, place, job.models[1][2])])


class FakeHandle:
    """An actor's handle."""


class FakeRay:
    """Ray in this process: a call runs when it is asked for; workers die as told, their call done or not."""

    exceptions = ray.exceptions

    def __init__(self, room, dies=lambda name: False):
        self.room, self.dies, self.alive = room, dies, []

    def is_initialized(self):
        return True

    def get_runtime_context(self):
        return SimpleNamespace(gcs_address="here:1")

    def put(self, value):
        return value

    def available_resources(self):
        return {"CPU": 0.0}

    def remote(self, **options):
        assert options["max_restarts"] == options["max_task_retries"] == 0
        return lambda kind: SimpleNamespace(remote=lambda *args: self.actor(kind(*args)))

    def actor(self, worker):
        handle = FakeHandle()
        for name in ("about", "begin", "advance"):
            call = SimpleNamespace(remote=lambda *args, name=name: (handle, name, lambda: getattr(worker, name)(*args)))
            setattr(handle, name, call)
        self.alive.append(handle)
        return handle

    def wait(self, calls, timeout):
        there = [call for call in calls if call[0] in self.alive[: self.room]]
        return there[:1], None

    def get(self, call):
        _, name, work = call
        dies = self.dies(name)
        if dies == "before":
            raise ray.exceptions.WorkerCrashedError
        try:
            answer = work()
        except Exception as error:
            raise ray.exceptions.RayTaskError(
                name, "", error, "worker", 1, "127.0.0.1"
            ).as_instanceof_cause() from error
        if isinstance(answer, cluster.About):
            answer.host = "elsewhere"
        if dies:
            raise ray.exceptions.ActorUnavailableError("it may have run", b"0" * 16)
        return answer

    def kill(self, handle, no_restart):
        self.alive.remove(handle)


@pytest.mark.parametrize("room", [1, 2, 8])
def test_workers_that_die_at_random_give_the_same_lanes(job, monkeypatch, room):
    chooser = random.Random(room)
    fake = FakeRay(room, lambda name: chooser.random() < 0.3 and chooser.choice(["before", "after"]))
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(cluster, "STEP_SECONDS", 0.0)
    monkeypatch.setattr(cluster, "MOST_LOSSES", 50)
    positions = []
    run_lanes(job, range(3), positions.append)
    for lane in range(3):
        same(job.state(lane), straight(job, lane))
    assert sum(positions) == sum(len(shard.rows) for shard in job.shards) * 40
    assert fake.alive == []


def test_a_screened_study_over_workers_that_die_is_the_same(folders, text_file, tmp_path, monkeypatch):
    config = StudyConfig(
        models=tuple(map(str, folders)), data=str(text_file), out=str(tmp_path / "local"), draws=2, threads=1,
        lanes=3, stages=("universality",), search="screened", group_size=16, panels=2, subset=("all",),
    )  # fmt: skip
    local = contents(quiet(config))
    chooser = random.Random(1)
    fake = FakeRay(2, lambda name: chooser.random() < 0.2 and chooser.choice(["before", "after"]))
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(cluster, "STEP_SECONDS", 0.0)
    spread = config.model_copy(update={"out": str(tmp_path / "spread"), "cluster": "auto"})
    assert contents(quiet(spread, checkpoint_seconds=0.0)) == local


def test_a_study_of_spans_over_workers_that_die_is_the_same(folders, text_file, tmp_path, monkeypatch):
    """The second model's tokenizer knows half of the merges, so its tokens are smaller."""
    other = shutil.copytree(folders[1], tmp_path / "smaller")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][: len(tokenizer["model"]["merges"]) // 2]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = StudyConfig(
        models=(str(folders[0]), str(other)), data=str(text_file), out=str(tmp_path / "local"), draws=2, threads=1, lanes=3,
        stages=("statistics", "universality"),
    )  # fmt: skip
    local = contents(quiet(config))
    assert "spans.parquet" in local
    chooser = random.Random(2)
    fake = FakeRay(2, lambda name: chooser.random() < 0.2 and chooser.choice(["before", "after"]))
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(cluster, "STEP_SECONDS", 0.0)
    spread = config.model_copy(update={"out": str(tmp_path / "spread"), "cluster": "auto"})
    assert contents(quiet(spread, checkpoint_seconds=0.0)) == local


def test_a_study_begun_alone_goes_on_over_a_cluster_and_back(folders, text_file, tmp_path, monkeypatch):
    config = StudyConfig(
        models=tuple(map(str, folders)), data=str(text_file), out=str(tmp_path / "local"), draws=2, threads=1, lanes=3,
        panels=2, stages=("universality",),
    )  # fmt: skip
    local = contents(quiet(config))
    monkeypatch.setitem(sys.modules, "ray", FakeRay(2))
    config = config.model_copy(update={"out": str(tmp_path / "mixed")})
    save, saved = StoreWriter.save_snapshot, []

    def stop(self, tensors, step):
        save(self, tensors, step)
        saved.append(step)
        if len(saved) in (2, 3, 4):
            raise KeyboardInterrupt

    monkeypatch.setattr(StoreWriter, "save_snapshot", stop)
    for where in (None, "auto", "auto"):
        with pytest.raises(KeyboardInterrupt):
            quiet(config.model_copy(update={"cluster": where}), checkpoint_seconds=0.0)
    assert saved == [1, 2, saved[2], 2 * saved[2]]
    assert contents(quiet(config)) == local


def test_failures_of_a_worker_have_their_names(job, monkeypatch):
    def broken(self):
        return self.reads[0].source, 30

    fake = FakeRay(2)
    monkeypatch.setitem(sys.modules, "ray", fake)
    with monkeypatch.context() as patched:
        patched.setattr(Accumulator, "non_finite", broken)
        with pytest.raises(NonFiniteActivationsError, match="model m0, layer 1, shard 0"):
            run_lanes(job, range(3), print)
    with monkeypatch.context() as patched:
        patched.setattr(LaneWorker, "begin", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_lanes(job, range(3), print)
    with monkeypatch.context() as patched:
        patched.setattr(LaneWorker, "about", lambda _: replace(cluster.about_here(), versions=("0.0", "1.0")))
        with pytest.raises(ClusterError, match=r"0\.0 and 1\.0"):
            run_lanes(job, range(3), print)
    fake.dies = lambda name: name == "begin"
    with pytest.raises(ClusterError, match="died 6 times"):
        run_lanes(job, range(3), print)
    assert fake.alive == []


def test_no_workers_for_long_is_named(job, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", FakeRay(0))
    monkeypatch.setattr(cluster, "PATIENCE_SECONDS", 0.01)
    with pytest.raises(ClusterError, match="same command again"):
        run_lanes(job, range(3), print)


def test_what_dead_writers_left_is_removed(tmp_path):
    left = tmp_path / ".checkpoint-00000007.elsewhere.12.partial"
    left.mkdir()
    Generations(tmp_path, shared=True).save({"a": torch.ones(2)}, 1)
    assert left.exists()
    os.utime(left, (1, 1))
    Generations(tmp_path, shared=True).save({"a": torch.ones(2)}, 2)
    assert not left.exists()
    left.mkdir()
    Generations(tmp_path).save({"a": torch.ones(2)}, 3)
    assert not left.exists()


def test_what_a_cluster_cannot_do_is_refused(folders, text_file, tmp_path, monkeypatch):
    config = StudyConfig(
        models=tuple(map(str, folders)), data=str(text_file), out=str(tmp_path / "run"), cluster="auto"
    )
    from conftest import tiny_model

    for changes, more, error in (
        ({}, {"models": [tiny_model("gpt2", seed) for seed in (0, 1)]}, ConfigError),
        ({"lanes": 1}, {}, ConfigError),
        ({"stages": ("weights",)}, {}, ConfigError),
        ({"cluster": "127.0.0.1:9"}, {}, ClusterAddressError),
        ({"cluster": "ray://127.0.0.1:10001"}, {}, ClusterAddressError),
        ({"cluster": "somewhere"}, {}, ClusterAddressError),
    ):
        with pytest.raises(error, match="--cluster"):
            quiet(config.model_copy(update=changes), **more)
        assert not (tmp_path / "run").exists()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match="universal-neurons\\[cluster\\]"):
        quiet(config)
    assert not (tmp_path / "run").exists()


def test_a_cluster_whose_start_is_killed_is_named(monkeypatch):
    """Ray then raises an `Exception` of no kind."""
    ray = pytest.importorskip("ray")
    ended = []

    def start(**_):
        raise Exception("The current node timed out during startup.\nThe raylet may have been killed.")

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    monkeypatch.setattr("universal_neurons.passes.cluster._running_here", lambda: "local")
    config = StudyConfig(models=("a", "b"), cluster="auto")
    named = pytest.raises(ClusterAddressError, match=r"cannot be connected to[\s\S]*timed out")
    with named, cluster.connected(config):
        pytest.fail("connected")
    assert ended


@pytest.fixture(scope="module")
def nodes():
    """A cluster of one node with one CPU."""
    from ray.cluster_utils import Cluster

    args = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    there = Cluster(initialize_head=True, head_node_args=args)
    yield there
    ray.shutdown()
    there.shutdown()


@pytest.fixture(scope="module")
def study(folders, tmp_path_factory):
    """A study in four lanes, and its store as a run without a cluster makes it."""
    import universal_neurons.text.tokens as tokens

    folder = tmp_path_factory.mktemp("cluster")
    (folder / "corpus.txt").write_text(some_text(16_000, 1))
    config = StudyConfig(
        models=tuple(map(str, folders)),
        data=str(folder / "corpus.txt"),
        out=str(folder / "local"),
        max_tokens=30_000,
        draws=2,
        labels=("tokens", "position"),
        stages=("weights", "statistics", "labels", "universality"),
        lanes=4,
        threads=1,
    )
    before = tokens.SHARD_POSITIONS
    tokens.SHARD_POSITIONS = SHARD
    store = quiet(config)
    tokens.SHARD_POSITIONS = before
    return config, contents(store)


def killed_driver(config):
    """A driver in a process of its own, killed once a lane has a checkpoint; it says nothing of Ray."""
    code = (
        "import sys, json, universal_neurons.text.tokens as t; from universal_neurons import StudyConfig, run_study\n"
        f"t.SHARD_POSITIONS = {SHARD}\n"
        "run_study(StudyConfig(**json.loads(sys.argv[1])), checkpoint_seconds=0.0)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, config.model_dump_json()], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 400
    while not list(Path(config.out).glob("work/lanes/0/*/*/checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    _, noise = child.communicate()
    assert all("Ray" not in line and "ray" not in line for line in noise.splitlines()), noise


def test_a_killed_driver_killed_workers_and_a_lost_node_give_the_same_bytes(nodes, study, tmp_path, monkeypatch):
    """The driver dies while there is one node; the next one's worker dies, and then a second node, which leaves one."""
    config, local = study
    spread = config.model_copy(update={"cluster": nodes.address, "out": str(tmp_path / "run")})
    killed_driver(spread)
    second = nodes.add_node(num_cpus=1, object_store_memory=80 << 20)
    chooser = random.Random(time.time_ns())
    deaths = {chooser.randint(1, 6): "worker", chooser.randint(7, 12): "node"}
    answered, staff = cluster._Crew._answered, cluster._Crew._staff
    answers, happened, notes = [], [], []

    def deadly(self, worker, answer):
        answered(self, worker, answer)
        answers.append(answer) if isinstance(answer, int) else None
        death = deaths.pop(len(answers), None)
        if death == "worker":
            os.kill(chooser.choice([w for w in self.workers if w.about is not None]).about.pid, signal.SIGKILL)
        if death == "node":
            nodes.remove_node(second, allow_graceful=False)
        happened.append(death)

    def both(self):
        """Hand out nothing until there are two."""
        waiting = self.waiting
        if not answers and sum(w.about is not None for w in self.workers) < 2:
            self.waiting = deque()
        staff(self)
        self.waiting = waiting

    monkeypatch.setattr(cluster._Crew, "_answered", deadly)
    monkeypatch.setattr(cluster._Crew, "_staff", both)
    monkeypatch.setattr(cluster, "STEP_SECONDS", 0.0)
    reporter = Reporter(quiet=True)
    reporter.note = notes.append
    store = run_study(spread, reporter=reporter, checkpoint_seconds=0.0)
    assert {"worker", "node"} <= set(happened)
    assert any(note.startswith("resumed: ") for note in notes), notes
    assert contents(store) == local
    assert not (store.path / "work").exists()
    assert not ray.is_initialized()
