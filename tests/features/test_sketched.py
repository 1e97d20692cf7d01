"""Portable sketches: what a file holds, studies of files, second passes, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest
from conftest import some_text
from test_study import contents, quiet

from universal_neurons import Store, StudyConfig, make_sketch
from universal_neurons.cli import main
from universal_neurons.errors import (
    ConfigError,
    InputError,
    MissingFileError,
    NothingToCompareError,
    SketchError,
    StoreConflictError,
)
from universal_neurons.progress import Reporter
from universal_neurons.storage import SketchFile, scratch_of

TOKENS = 30_000
SILENT = Reporter(quiet=True)


def sketch_of(folder, text, out, **settings):
    settings = {"group_size": 8, "max_tokens": TOKENS} | settings
    config = StudyConfig(models=(str(folder),), data=str(text), out=str(out), search="sketch", **settings)
    return make_sketch(config, reporter=SILENT)


@pytest.fixture(scope="module")
def sketches(folders, long_text, tmp_path_factory):
    made = tmp_path_factory.mktemp("sketches")
    return [sketch_of(folder, long_text, made / f"{folder.name}.safetensors") for folder in folders[:3]]


def study_of(sketches, out, **settings):
    return quiet(StudyConfig(models=tuple(map(str, sketches)), out=str(out), draws=4, **settings))


@pytest.fixture(scope="module")
def direct(folders, long_text, tmp_path_factory):
    """The same models and text, sketched on the fly and exactly."""
    out = tmp_path_factory.mktemp("direct")
    common = {"models": tuple(map(str, folders[:3])), "data": str(long_text), "max_tokens": TOKENS, "draws": 4}
    common |= {"stages": ("universality",)}
    sketched = quiet(StudyConfig(search="sketch", group_size=8, out=str(out / "sketch"), **common))
    return sketched, quiet(StudyConfig(out=str(out / "exact"), **common))


def test_a_study_of_files_is_that_of_their_models(sketches, direct, tmp_path):
    store, (sketched, exact) = study_of(sketches, tmp_path / "run"), direct
    asked = store.neurons.filter(pl.col("model") == store.models[0])
    for other, tolerance in ((sketched, 0.01), (exact, 0.1)):
        expected = other.neurons.filter(pl.col("model") == other.models[0])
        np.testing.assert_allclose(asked["mean_corr"], expected["mean_corr"], atol=tolerance)
        np.testing.assert_allclose(asked["mean_baseline"], expected["mean_baseline"], atol=tolerance)
    mine = store.matches.filter(pl.col("rank") == 1)
    theirs = sketched.matches.filter(pl.col("rank") == 1)
    assert (mine["match_neuron"] == theirs["match_neuron"]).mean() > 0.95
    assert store.manifest["counted_tokens"] == exact.manifest["counted_tokens"]
    assert asked["layer_corr_max"].is_finite().all()
    assert len(store.convergence) == 1
    assert not list(store.path.glob("work"))


def test_held_out_correlations_are_estimated_and_their_intervals_cover(sketches, direct, tmp_path):
    store = study_of(sketches, tmp_path / "run")
    _, exact = direct
    key = ["asker", "layer", "neuron", "match_model", "match_layer", "match_neuron"]
    both = store.matches.filter(pl.col("rank") == 1).join(exact.matches.filter(pl.col("rank") == 1), on=key)
    assert len(both) > 50
    assert (both["corr_heldout"] - both["corr_heldout_right"]).abs().median() < 0.05
    covered = (both["corr_low"] <= both["corr_heldout_right"]) & (both["corr_heldout_right"] <= both["corr_high"])
    assert covered.mean() > 0.85


def test_screened_search_reads_models_and_text_again(sketches, direct, tmp_path):
    store, (_, exact) = study_of(sketches, tmp_path / "run", search="screened"), direct
    mine, theirs = (s.matches.filter(pl.col("rank") == 1) for s in (store, exact))
    same = (mine["match_layer"] == theirs["match_layer"]) & (mine["match_neuron"] == theirs["match_neuron"])
    assert same.mean() > 0.98
    assert (same | ~mine["certified"]).all()
    np.testing.assert_allclose(mine.filter(same)["corr"], theirs.filter(same)["corr"], atol=1e-5)
    assert store.manifest["search"]["certified"] == mine["certified"].sum()


@pytest.mark.parametrize("settings", [{"pairs": "all"}, {"panels": 3}, {"pairs": "all", "panels": 2}])
def test_pairs_and_panels_of_files(sketches, tmp_path, settings):
    plain = study_of(sketches, tmp_path / "plain", pairs=settings.get("pairs", "reference"))
    store = study_of(sketches, tmp_path / "run", **settings)
    assert len(store.askers) == (3 if settings.get("pairs") else 1)
    for column in ("mean_corr", "mean_baseline", "excess_heldout"):
        np.testing.assert_allclose(store.neurons[column].fill_null(0), plain.neurons[column].fill_null(0), atol=1e-6)


def test_the_same_sketch_has_the_same_bytes_and_no_text(folders, long_text, sketches, tmp_path):
    again = sketch_of(folders[0], long_text, tmp_path / "again.safetensors")
    assert again.read_bytes() == sketches[0].read_bytes()
    file = SketchFile(again)
    assert file.token_rows().rows.size == 0
    words = [word for word in some_text(200, 0).split() if len(word) > 6]
    assert not any(word.encode() in again.read_bytes() for word in words)


def test_an_interrupted_sketch_goes_on_to_the_same_bytes(folders, long_text, sketches, tmp_path):
    out = tmp_path / "parts.safetensors"
    settings = {"models": (str(folders[0]),), "data": str(long_text), "out": str(out), "search": "sketch"}
    settings |= {"group_size": 8, "max_tokens": TOKENS}
    code = (
        "import sys, json; from universal_neurons import StudyConfig, make_sketch\n"
        "from universal_neurons.progress import Reporter\n"
        "make_sketch(StudyConfig(**json.loads(sys.argv[1])), reporter=Reporter(quiet=True), checkpoint_seconds=0.0)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, json.dumps(settings)])
    deadline = time.monotonic() + 400
    while not list(scratch_of(out).glob("checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not out.exists()
    assert make_sketch(StudyConfig(**settings), reporter=SILENT).read_bytes() == sketches[0].read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"parts.safetensors"}


def test_an_interrupted_study_of_files_resumes_to_the_same_bytes(sketches, tmp_path, monkeypatch):
    from universal_neurons.storage import StoreWriter

    whole = study_of(sketches, tmp_path / "whole", search="screened", panels=2)
    save = StoreWriter.save_snapshot

    def interrupted(self, tensors, step):
        save(self, tensors, step)
        raise KeyboardInterrupt

    config = StudyConfig(
        models=tuple(map(str, sketches)), out=str(tmp_path / "parts"), draws=4, search="screened", panels=2
    )
    for _ in range(3):
        monkeypatch.setattr(StoreWriter, "save_snapshot", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quiet(config, checkpoint_seconds=0.0)
    monkeypatch.setattr(StoreWriter, "save_snapshot", save)
    assert contents(quiet(config)) == contents(whole)


@pytest.mark.parametrize("other", [{"group_size": 16}, {"seed": 3}, {"max_tokens": TOKENS - 5_000}, {"mask": ("bos",)}])
def test_other_signs_or_tokens_are_refused(sketches, folders, long_text, tmp_path, other):
    strange = sketch_of(folders[1], long_text, tmp_path / "strange.safetensors", **other)
    with pytest.raises(SketchError, match="sketches of other"):
        study_of([sketches[0], strange], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_no_sketch_is_refused(sketches, folders, tmp_path):
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(sketches[0].read_bytes()[:5000])
    for wrong, error in ((torn, SketchError), (folders[0] / "model.safetensors", SketchError), (folders[0], ConfigError),
                         (tmp_path / "none.safetensors", MissingFileError)):  # fmt: skip
        with pytest.raises(error):
            study_of([sketches[0], wrong], tmp_path / "run")
    with pytest.raises(NothingToCompareError):
        study_of(sketches[:1], tmp_path / "run")
    for settings in (
        {"max_tokens": 1000},
        {"search": "exact"},
        {"stages": ("labels",)},
        {"subset": ("a",)},
        {"lanes": 2},
    ):
        with pytest.raises(InputError):
            study_of(sketches[:2], tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_changed_model_or_text_is_refused_by_the_second_pass(folders, long_text, tmp_path):
    import shutil

    for name in ("a", "b"):
        shutil.copytree(folders[0] if name == "a" else folders[1], tmp_path / name)
    text = tmp_path / "text.txt"
    shutil.copy(long_text, text)
    made = [sketch_of(tmp_path / name, text, tmp_path / f"{name}.safetensors") for name in "ab"]
    text.write_text(text.read_text() + " and more of it" * 50)
    text.write_text("Changed. " + text.read_text())
    with pytest.raises(SketchError, match="not the text"):
        study_of(made, tmp_path / "text-changed", search="screened")
    shutil.rmtree(tmp_path / "b")
    with pytest.raises(SketchError, match="not where it was"):
        study_of(made, tmp_path / "gone", search="screened")
    shutil.copytree(folders[2], tmp_path / "b")
    with pytest.raises(SketchError, match="not the model"):
        study_of(made, tmp_path / "other", search="screened")


def test_the_command(folders, long_text, tmp_path, capsys):
    out = tmp_path / "m.safetensors"
    arguments = ["sketch", str(folders[0]), "--data", str(long_text), "--max-tokens", "20000", "--out", str(out)]
    main(arguments)
    assert "MiB" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    with pytest.raises(StoreConflictError):
        sketch_of(folders[0], long_text, tmp_path / "no" / "folder.safetensors")
    assert Store  # the file alone is no study


def test_a_sketch_of_hardly_any_sums_is_refused(folders, text_file, tmp_path):
    """In one sum any two neurons would have ρ = ±1."""
    config = StudyConfig(
        models=tuple(map(str, folders[:2])), data=str(text_file), out=str(tmp_path / "run"), context=32,
        max_tokens=2048, draws=2, stages=("universality",), search="sketch", group_size=1 << 20,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"too few sums for a sketch[\s\S]*1, each of[\s\S]*smaller --group-size"):
        quiet(config)
    assert not (tmp_path / "run").exists()
