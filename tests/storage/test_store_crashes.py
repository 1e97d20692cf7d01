"""A writer that is killed before or after any of its operations leaves what the same command brings to the same end."""

import json
import shutil

import polars as pl
import pytest
from conftest import some_text, tiny_model
from crashes import watched

import universal_neurons as un
from universal_neurons import Store, StudyConfig, run_study
from universal_neurons.errors import InputError, MissingFileError, StoreConflictError
from universal_neurons.progress import Reporter
from universal_neurons.storage import StoreWriter
from universal_neurons.study import make_sketch
from universal_neurons.study import roles_again as again
from universal_neurons.text import tokens

TIMES = ("timings",)


def contents(folder):
    """Every file of a study; of study.json all but the timings."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    manifest = json.loads(files.pop("study.json"))
    return files | {"study.json": {key: value for key, value in manifest.items() if key not in TIMES}}


@pytest.fixture(scope="module")
def models():
    return [tiny_model("gpt2", seed, f"m{seed}") for seed in (0, 1)]


@pytest.fixture(scope="module", autouse=True)
def _short_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "SHARD_POSITIONS", 512)
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crashes")
    (folder / "text.txt").write_text(some_text(600))
    return StudyConfig(
        data=str(folder / "text.txt"), out=str(folder / "run"), draws=2, stages=("statistics", "universality"), context=32,
        max_tokens=1000, heldout_tokens=64,
    )  # fmt: skip


@pytest.fixture(scope="module")
def study(config, models):
    """Runs the study in a folder."""

    def run(folder, **changes):
        here = config.model_copy(update={"out": str(folder)} | changes)
        return run_study(here, models=models, progress=False, checkpoint_seconds=0.0)

    return run


@pytest.fixture(scope="module")
def watch(study, tmp_path_factory):
    """Every state of a study's folder, from the first operation to the last."""
    folder = tmp_path_factory.mktemp("watched")
    with watched(folder / "run", folder / "states") as seen:
        study(folder / "run")
    return seen


def test_everything_that_is_renamed_is_on_the_disk(watch):
    assert watch.unsafe == []
    assert watch.operations > 80


def test_the_states_are_those_that_a_kill_leaves(watch):
    """The watch sees what it is there for: half files, checkpoints, tables without a finished manifest."""
    names = {str(path.relative_to(state)) for state in watch.states for path in state.rglob("*")}
    for name in (".study.json.partial", "work/rows.partial", "work/checkpoint-00000002", ".neurons.parquet.partial"):
        assert name in names
    sizes = {(state / ".study.json.partial").stat().st_size
             for state in watch.states if (state / ".study.json.partial").exists()}  # fmt: skip
    assert len(sizes) > 4
    assert 0 in sizes


def test_a_study_killed_at_any_operation_is_never_half_true_and_ends_with_the_same_bytes(watch, study, tmp_path):
    whole = contents(watch.folder)
    assert "matches.parquet" in whole
    complete = 0
    for number, state in enumerate(watch.states):
        folder = shutil.copytree(state, tmp_path / str(number))
        try:
            assert Store(folder).missing_files() == []
            complete += 1
        except InputError:
            assert (
                not (folder / "study.json").exists() or not json.loads((folder / "study.json").read_text())["complete"]
            )
        study(folder)
        assert contents(folder) == whole, f"state {number}: {sorted(p.name for p in state.iterdir())}"
        shutil.rmtree(folder)
    assert 0 < complete < len(watch.states) - 30


def test_a_folder_is_free_until_something_was_found(watch, tmp_path):
    free = []
    for number, state in enumerate(watch.states):
        folder = shutil.copytree(state, tmp_path / str(number))
        costly = list(folder.glob("work/checkpoint-*")) or list(folder.glob("*.parquet"))
        with StoreWriter(folder) as writer:
            try:
                writer.claim({"config": {"data": "corrected.txt"}, "models": []})
                free.append(number)
                assert not costly
            except StoreConflictError:
                assert costly
    assert len(free) > 10


ROLES = {name: un.RoleSettings(kurtosis=value) for name, value in (("old", 1.0), ("new", 2.0))}


@pytest.fixture(scope="module")
def with_roles(study, models, tmp_path_factory):
    """A study with roles of the old settings, and `change(folder, settings)`: tables that only the settings decide."""

    class Roles:
        def __init__(self, config, models, tokens, rows, vocabulary, neurons, *_):
            self.value, self.neurons = config.roles.kurtosis, neurons

        def run(self, reporter):
            tables = {name: pl.DataFrame({"value": [self.value]}) for name in ("effects", "heads")}
            if self.value == ROLES["old"].kurtosis:
                tables["ensembles"] = pl.DataFrame({"value": [self.value]})
            return tables | {"neurons": self.neurons.with_columns(null_fraction=pl.lit(self.value))}

    def change(folder, settings):
        return un.study_roles(folder, settings, models=models)

    folder = tmp_path_factory.mktemp("roles") / "old"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(again, "Roles", Roles)
        study(folder, stages=("weights", "statistics"))
        store = change(folder, ROLES["old"])
        store.write_page("report.html", b"of the old settings")
        store.write_page("figures/role-heads.svg", b"of the old settings")
        yield folder, change


@pytest.fixture(scope="module")
def rewriting(with_roles, tmp_path_factory):
    old, change = with_roles
    folder = tmp_path_factory.mktemp("rewriting")
    shutil.copytree(old, folder / "run")
    with watched(folder / "run", folder / "states") as seen:
        change(folder / "run", ROLES["new"])
    return seen


def seen_by_a_reader(folder):
    """What a reader is given: `old` or `new`, whole; or `told`, that the study is being rewritten."""
    if "rewriting" in json.loads((folder / "study.json").read_text()):
        with pytest.raises(StoreConflictError, match="being rewritten"):
            Store(folder)
        return "told"
    store = Store(folder)
    assert store.missing_files() == []
    which = {settings.kurtosis: name for name, settings in ROLES.items()}[store.config.roles.kurtosis]
    for name in ("effects", "heads"):
        assert store.table(name)["value"].to_list() == [ROLES[which].kurtosis]
    assert set(store.neurons["null_fraction"]) == {ROLES[which].kurtosis}
    assert store.has("ensembles") == (which == "old")
    if which == "new":
        assert not (folder / "report.html").exists()
        assert not list(folder.glob("figures/*"))
    return which


def test_roles_are_replaced_all_at_once(rewriting, with_roles, tmp_path):
    assert rewriting.unsafe == []
    _, change = with_roles
    whole = contents(rewriting.folder)
    assert "ensembles.parquet" not in whole
    told = []
    for number, state in enumerate(rewriting.states):
        folder = shutil.copytree(state, tmp_path / str(number))
        told.append(seen_by_a_reader(folder))
        change(folder, ROLES["new"])
        assert contents(folder) == whole, f"state {number}, {told[-1]}"
    order = list(dict.fromkeys(told))
    assert order == ["old", "told", "new"]
    assert told == sorted(told, key=order.index)
    assert told.count("old") > 10
    assert told.count("told") > 5


def test_the_next_writer_of_any_kind_ends_what_was_begun(rewriting, with_roles, tmp_path):
    old, _ = with_roles
    wanted = {"old": contents(old), "new": contents(rewriting.folder)}
    for number, state in enumerate(rewriting.states):
        folder = shutil.copytree(state, tmp_path / str(number))
        before = seen_by_a_reader(folder)
        with StoreWriter(folder):
            pass
        after = seen_by_a_reader(folder)
        assert after == ("old" if before == "old" else "new")
        assert contents(folder) == wanted[after]


def test_ending_it_may_be_killed_too(rewriting, tmp_path):
    marked = next(state for state in rewriting.states if "rewriting" in json.loads((state / "study.json").read_text()))
    shutil.copytree(marked, tmp_path / "run")
    with watched(tmp_path / "run", tmp_path / "states") as seen, StoreWriter(tmp_path / "run"):
        pass
    assert len(seen.states) > 8
    for state in seen.states:
        with StoreWriter(state):
            pass
        assert contents(state) == contents(rewriting.folder)


def test_the_command_that_was_interrupted_ends_it(rewriting, tmp_path):
    marked = next(state for state in rewriting.states if "rewriting" in json.loads((state / "study.json").read_text()))
    folder = shutil.copytree(marked, tmp_path / "run")
    assert again.settings_of_roles(folder) == ROLES["new"]
    assert contents(folder) == contents(rewriting.folder)
    with pytest.raises(MissingFileError, match="no study"):
        again.settings_of_roles(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_store_that_was_open_never_mixes(with_roles, tmp_path):
    old, change = with_roles
    folder = shutil.copytree(old, tmp_path / "run")
    store = Store(folder)
    assert store.table("effects")["value"].to_list() == [ROLES["old"].kurtosis]
    change(folder, ROLES["new"])
    assert store.table("effects")["value"].to_list() == [ROLES["old"].kurtosis]
    for read in (lambda: store.neurons, lambda: store.table("heads"), lambda: store.table("ensembles")):
        with pytest.raises(StoreConflictError, match="rewritten after it was opened"):
            read()
    assert Store(folder).table("heads")["value"].to_list() == [ROLES["new"].kurtosis]


def test_a_new_table_that_is_lost_is_named_and_nothing_is_moved(rewriting, tmp_path):
    marked = next(state for state in rewriting.states if "rewriting" in json.loads((state / "study.json").read_text()))
    folder = shutil.copytree(marked, tmp_path / "run")
    (folder / ".rewriting" / "heads.parquet").write_bytes(b"torn")
    before = (folder / "effects.parquet").read_bytes()
    with pytest.raises(StoreConflictError, match=r"heads\.parquet"):
        StoreWriter(folder).__enter__()
    assert (folder / "effects.parquet").read_bytes() == before
    assert not (folder / ".lock").exists()


def test_pages_are_whole_or_not_there(with_roles, tmp_path):
    old, _ = with_roles
    folder = shutil.copytree(old, tmp_path / "run")
    with watched(folder, tmp_path / "states") as seen:
        Store(folder).write_page("figures/other.svg", b"a figure" * 50)
        Store(folder).write_page("report.html", b"a page" * 50)
    assert seen.unsafe == []
    for state in seen.states:
        for name, content in (("figures/other.svg", b"a figure" * 50), ("report.html", b"a page" * 50)):
            if (state / name).exists():
                assert (state / name).read_bytes() in (content, b"of the old settings")
        store = Store(state)
        store.write_page("figures/other.svg", b"a figure" * 50)
        store.write_page("report.html", b"a page" * 50)
        assert contents(state) == contents(folder)


def test_a_sketch_killed_at_any_operation_ends_with_the_same_bytes(folders, config, tmp_path):
    def sketch(folder):
        here = {"models": (str(folders[0]),), "out": str(folder / "m.safetensors"), "search": "sketch", "group_size": 8}
        make_sketch(config.model_copy(update=here), reporter=Reporter(quiet=True), checkpoint_seconds=0.0)

    (tmp_path / "run").mkdir()
    with watched(tmp_path / "run", tmp_path / "states") as seen:
        sketch(tmp_path / "run")
    assert seen.unsafe == []
    whole = (tmp_path / "run" / "m.safetensors").read_bytes()
    assert len(seen.states) > 20
    for state in seen.states[::3]:
        if not (state / "m.safetensors").exists():
            sketch(state)
        assert (state / "m.safetensors").read_bytes() == whole
