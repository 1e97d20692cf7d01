"""`uneurons convert` of several models, and the command that a run of pickles names; the files of settings."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from conftest import exit_code
from safetensors.torch import load_file

import universal_neurons as un
from universal_neurons.cli.commands import app
from universal_neurons.config_reading import make_config, read_config
from universal_neurons.errors import CheckpointError
from universal_neurons.models import require_safetensors, resolve_sources
from universal_neurons.study import decide
from universal_neurons.study.resolve import load_models

CONFIGS = Path(__file__).parents[2] / "configs"
IDS = torch.arange(1, 41).view(2, 20)


@pytest.fixture
def pickles(folders, tmp_path, monkeypatch) -> list[str]:
    """Two pickle-only models and one of safetensors, as the command line names them from here."""
    monkeypatch.chdir(tmp_path)
    for name, folder in (("a b", folders[0]), ("c", folders[1]), ("d", folders[2])):
        shutil.copytree(folder, name)
        if name != "d":
            torch.save(load_file(Path(name, "model.safetensors")), Path(name, "pytorch_model.bin"))
            Path(name, "model.safetensors").unlink()
    return ["a b", "c", "d"]


def test_a_run_of_pickles_names_the_one_command_that_makes_it_run(pickles, folders, capsys):
    with pytest.raises(CheckpointError, match="2 of 3 models") as caught:
        load_models(decide(un.StudyConfig(models=tuple(pickles))))
    first, second = caught.value.fix.removesuffix(", and your other options").split(" && ")
    program, *words = shlex.split(first)
    assert program == "uneurons"
    assert exit_code(*words) == 0
    printed = capsys.readouterr().out.splitlines()[-1]
    assert printed == "uneurons run --models 'models/a b' --models models/c"
    assert second == f"{printed} --models d"
    _, command, *flags = shlex.split(second)
    assert command == "run"
    for place, folder in zip(flags[1::2], folders):
        expected = un.load_model(str(folder)).logits(IDS)
        torch.testing.assert_close(un.load_model(place).logits(IDS), expected, rtol=0, atol=0)


def test_of_one_pickle_the_command_is_that_of_one_folder(pickles):
    with pytest.raises(CheckpointError) as caught:
        require_safetensors(resolve_sources(["c", "d"]))
    assert caught.value.fix.startswith("uneurons convert c models/c && uneurons run --models models/c --models d")


def test_a_file_of_settings_is_converted_and_the_same_command_goes_on(pickles, capsys):
    Path("study.yaml").write_text(json.dumps({"models": pickles, "top_k": 3}))
    assert exit_code("convert", pickles[1], "models/c") == 0
    before = Path("models/c/model.safetensors").stat().st_mtime_ns
    assert exit_code("convert", "-c", "study.yaml", "models") == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == (
        "uneurons run -c study.yaml --models 'models/a b' --models models/c --models d"
    )
    assert "there already" in said.err
    assert "d: safetensors already" in said.err
    assert Path("models/c/model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("arguments", [["m"], [], ["-c", "study.yaml"], ["-c", "study.yaml", "a", "m"]])
def test_convert_needs_models_and_a_folder(pickles, arguments, capsys):
    Path("study.yaml").write_text(json.dumps({"models": pickles}))
    assert exit_code("convert", *arguments) == 2
    assert "NEW_FOLDER" in capsys.readouterr().err


def test_pickles_of_the_hub_which_are_not_fetched_are_told(pickles, tmp_path, monkeypatch):
    """A stand-in of the hub's cache: a snapshot without weights, as `run` fetches it."""
    snapshot = tmp_path / "hub" / "models--some--model" / "snapshots" / ("a" * 40)
    shutil.copytree("c", snapshot)
    (snapshot / "pytorch_model.bin").unlink()
    (source,) = resolve_sources([str(snapshot)])
    with pytest.raises(CheckpointError, match="only pickled weights"):
        require_safetensors([source])


def test_files_of_settings_resolve():
    files = sorted(CONFIGS.glob("*.yaml"))
    assert len(files) >= 3
    for path in files:
        settings, stored = read_config(path)
        config = decide(make_config(settings, str(path)))
        assert not stored
        assert len(config.models) > 1
        assert sum(config.published.universal_per_layer) == config.published.universal


def test_the_commands_in_the_files_of_settings_are_commands():
    for path in sorted(CONFIGS.glob("*.yaml")):
        commands = [line[1:].split() for line in path.read_text().splitlines() if line.startswith("#   uneurons")]
        assert commands
        for _, name, *words in commands:
            assert app[name] is not None
            assert str(path.relative_to(CONFIGS.parent)) in words


def test_the_memory_in_the_comments_is_that_of_the_correlations():
    for path, pairs in (("gpt2-small", 4), ("gpt2-medium", 4), ("pythia-160m", 3)):
        text = (CONFIGS / f"{path}.yaml").read_text()
        neurons = make_config(read_config(CONFIGS / f"{path}.yaml")[0]).published.neurons
        assert f"{8 * pairs * neurons**2 / 2**30:.0f} GiB for the {'three' if pairs == 3 else 'four'} pairs" in text
