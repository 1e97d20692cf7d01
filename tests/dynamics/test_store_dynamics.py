"""The folder of training dynamics as others leave it: its tables and those of its steps, its manifest, its scratch files."""

import json
import shutil

import pytest
from conftest import exit_code, save_tiny, some_text

from universal_neurons import Dynamics, DynamicsConfig, Store, run_dynamics
from universal_neurons.dynamics import run as dynamics
from universal_neurons.errors import MissingFileError, NonFiniteActivationsError, StoreConflictError


@pytest.fixture(scope="module")
def config(tmp_path_factory, text_file):
    root = tmp_path_factory.mktemp("seeds")
    for seed in range(2):
        for step in (1, 2):
            save_tiny(root / f"s{seed}" / f"step-{step}", seed=10 * seed + step)
    return DynamicsConfig(
        models=tuple(str(root / f"s{seed}") for seed in range(2)), data=str(text_file), draws=2, context=32,
        max_tokens=2048, stages=("universality",),
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(config):
    def run(folder, **changes):
        return run_dynamics(config.model_copy(update={"out": str(folder)} | changes), progress=False)

    return run


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    return run(tmp_path_factory.mktemp("dynamics") / "run").path


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def contents(folder):
    files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    for name in [name for name in files if name.endswith("study.json")]:
        manifest = json.loads(files[name])
        files[name] = {key: value for key, value in manifest.items() if key != "timings"}
    return files


def test_whole_ones_are_said_to_be(finished, capsys):
    assert exit_code("check", finished) == 0
    files = 3 + 2 * len(Store(finished / "steps" / "1").manifest["tables"])
    assert f"whole; {files} files" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["checkpoints.parquet", "steps/2/neurons.parquet"])
def test_an_altered_table_is_refused_and_a_missing_one_made_anew(folder, finished, run, name, capsys):
    table = folder / name
    table.write_bytes(table.read_bytes()[:-1] + b"2")
    with pytest.raises(StoreConflictError, match=table.name):
        _ = Dynamics(folder).checkpoints if "steps" not in name else Dynamics(folder).study("2").neurons
    with pytest.raises(StoreConflictError, match=table.name):
        run(folder)
    assert exit_code("check", folder) == 2
    assert table.name in capsys.readouterr().err
    table.unlink()
    assert exit_code("check", folder) == 2
    assert table.name in capsys.readouterr().err
    run(folder)
    assert contents(folder) == contents(finished)


def test_a_step_that_is_another_study_is_told(folder, capsys):
    shutil.rmtree(folder / "steps" / "1")
    shutil.copytree(folder / "steps" / "2", folder / "steps" / "1")
    assert exit_code("check", folder) == 2
    assert "not the study that dynamics.json was made of" in capsys.readouterr().err
    shutil.rmtree(folder / "steps" / "1")
    assert exit_code("check", folder) == 2
    assert "no study here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"),
    [("seeds", None), ("seeds", []), ("checkpoints", {}), ("checkpoints", []), ("tokens", None), ("config", []),
     ("tables", {"../neurons": "0" * 64}), ("environment", {}), ("complete", "no"),
     *(("checkpoints", [{"name": name, "step": 1, "sha256": [], "tables": {}}]) for name in ("..", ".", "", "a/b", 3))],
)  # fmt: skip
def test_a_manifest_of_another_kind_is_named(folder, key, value):
    manifest = json.loads((folder / "dynamics.json").read_text()) | {key: value}
    (folder / "dynamics.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreConflictError, match=r"dynamics\.json: not readable"):
        Dynamics(folder)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingFileError, match="no training dynamics"):
        Dynamics(tmp_path / "none")


def test_a_damaged_intermediate_result_is_found_again(run, finished, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(dynamics, "_tables", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run")
    parts = sorted((tmp_path / "run" / "work").glob("self-*/checkpoint-*/*.safetensors"))
    assert len(parts) == 2
    parts[0].write_bytes(parts[0].read_bytes()[:-8])
    parts[1].unlink()
    run(tmp_path / "run")
    assert contents(tmp_path / "run") == contents(finished)


@pytest.mark.parametrize("name", ["steps", "steps/1", "work"])
def test_links_are_refused_by_name(folder, run, tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    if (folder / name).exists():
        shutil.rmtree(folder / name)
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreConflictError, match="is a symbolic link"):
        run(folder)
    assert not any((tmp_path / "elsewhere").iterdir())


def test_dynamics_that_found_nothing_make_room_for_others(run, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise NonFiniteActivationsError("NaN")

    with monkeypatch.context() as patched:
        patched.setattr("universal_neurons.study.stages.Passes.run", stop)
        with pytest.raises(NonFiniteActivationsError):
            run(tmp_path / "run")
    assert (tmp_path / "run" / "steps" / "1" / "study.json").exists()
    (tmp_path / "other.txt").write_text(some_text(1500, 5))
    assert run(tmp_path / "run", data=str(tmp_path / "other.txt")).config.data == str(tmp_path / "other.txt")
