"""Python files that a stored configuration names run only where they are named again."""

import json
import os

import pytest
import yaml
from conftest import FEW_ROLES, save_tiny, some_text

import universal_neurons as un
from universal_neurons.cli import main
from universal_neurons.config_reading import replayed
from universal_neurons.errors import ConfigError
from universal_neurons.labels import require_given_again, require_named_again


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    """A finished study whose labels are a Python file that leaves a trace where it runs."""
    folder = tmp_path_factory.mktemp("sent")
    (folder / "t.txt").write_text(some_text(3000))
    script = folder / "labels.py"
    script.write_text(f"open({str(folder / 'trace')!r}, 'a').write('x')\ndef t(s): return 't' in s\n")
    config = un.StudyConfig(
        models=(str(save_tiny(folder / "m")),),
        data=str(folder / "t.txt"),
        out=str(folder / "run"),
        max_tokens=4000,
        context=32,
        labels=(str(script), "tokens"),
        stages=("weights", "statistics", "labels"),
        roles=FEW_ROLES,
    )
    un.run_study(config, progress=False)
    return folder


def runs_of(sent, action) -> int:
    """How often the label file was executed meanwhile."""
    (sent / "trace").write_text("")
    action()
    return len((sent / "trace").read_text())


def test_roles_of_a_study_run_its_label_files_only_where_they_are_named(sent):
    def unnamed():
        with pytest.raises(ConfigError, match="names Python files of labels"):
            un.study_roles(sent / "run")

    assert runs_of(sent, unnamed) == 0
    assert not un.Store(sent / "run").has("effects")
    named = (os.path.relpath(sent / "labels.py"),)
    assert runs_of(sent, lambda: un.study_roles(sent / "run", labels=named)) == 1


@pytest.mark.parametrize(("command", "option"), [("run", "-c"), ("dynamics", "-c"), ("estimate", "-c")])
def test_a_stored_configuration_runs_no_code_unasked(sent, tmp_path, capsys, command, option):
    def unnamed():
        with pytest.raises(SystemExit) as stopped:
            main([command, option, str(sent / "run" / "study.json"), "--out", str(tmp_path / "o")])
        assert stopped.value.code == 2

    assert runs_of(sent, unnamed) == 0
    assert "named again" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_named_again_the_stored_configuration_is_replayed(sent, tmp_path, monkeypatch):
    monkeypatch.setattr("universal_neurons.report.pages.write_report", lambda store: store.path)
    file, labels = str(sent / "run" / "study.json"), ["--labels", str(sent / "labels.py"), "--labels", "tokens"]
    stages = ["--stages", "statistics", "--stages", "labels"]
    action = lambda: main(["run", "-c", file, *labels, *stages, "--out", str(tmp_path / "o")])  # noqa: E731
    assert runs_of(sent, action) == 1


def test_a_yaml_file_of_ones_own_names_code_to_be_run(sent, tmp_path, monkeypatch):
    monkeypatch.setattr("universal_neurons.report.pages.write_report", lambda store: store.path)
    settings = replayed(json.loads((sent / "run" / "study.json").read_text())["config"]) | {
        "stages": ["statistics", "labels"]
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    assert runs_of(sent, lambda: main(["run", "-c", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "o")])) == 1


@pytest.mark.parametrize(
    ("stored", "named", "refused"),
    [
        (["l.py"], [], True),
        ("l.py:f", [], True),
        (["tokens", "l.py:f"], ["l.py"], False),
        (["l.py"], ["./l.py:g"], False),
        (["l.py/"], [], True),
        (["l.py", "k.py"], ["l.py"], True),
        (["l.yaml", "spans.parquet", "tokens"], [], False),
        ({"not": "labels"}, [], False),
    ],
)
def test_files_are_told_by_where_they_are(stored, named, refused):
    if refused:
        with pytest.raises(ConfigError):
            require_named_again(stored, named, "study.json")
    else:
        require_named_again(stored, named, "study.json")


@pytest.mark.parametrize(("given", "refused"), [({}, True), ({"cluster": "auto"}, False)])
def test_a_stored_cluster_is_not_connected_to_unasked(given, refused):
    settings = {"labels": ["tokens"], "cluster": "ray://elsewhere:10001"}
    if refused:
        with pytest.raises(ConfigError, match="names a Ray cluster"):
            require_given_again(settings, given, "study.json")
    else:
        require_given_again(settings, given, "study.json")
