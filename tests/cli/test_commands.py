"""The command as a person meets it: help, exit codes, errors by name, nothing left behind."""

import errno
import json
import os
import shutil
import subprocess
import sys

import polars as pl
import pytest
from conftest import SLOW, exit_code, require_light, save_tiny, some_text

from universal_neurons.cli import app
from universal_neurons.cli.frame import StudyFlags
from universal_neurons.cli.overview import SUMMARIES
from universal_neurons.config import StudyConfig
from universal_neurons.errors import InputError
from universal_neurons.terminal import output

COMMANDS = [name for summaries in SUMMARIES.values() for name in summaries]


def test_help_needs_no_torch():
    printed = require_light(*((command, "--help") for command in COMMANDS), ("--help",), without=(*SLOW, "polars"))
    for command in COMMANDS:
        assert f"uneurons {command} " in printed


def test_the_list_of_commands_needs_no_command():
    """Nor settings: `uneurons` answers at once.  What was imported is held, not how long it took."""
    code = (
        "import sys\nfrom universal_neurons.cli import main\nmain(['--help'])\nmain(['--version'])\nmain([])\n"
        "from universal_neurons.cli import overview, entry\n"
        "late = {'pydantic', 'yaml', 'filelock', 'universal_neurons.config', 'universal_neurons.cli.frame'}\n"
        "assert not late & set(sys.modules), late & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_list_of_commands_is_that_of_the_commands(capsys):
    assert exit_code("--help") == 0
    listed = capsys.readouterr().out
    app(["--help"], console=output(), result_action="return_value")
    assert capsys.readouterr().out == listed
    assert {name for names in SUMMARIES.values() for name in names} == {name for name in app if name[0] != "-"}


def test_help_names_how_much_text_is_read(capsys):
    assert StudyConfig().max_tokens == 250_000
    assert exit_code("run", "--help") == 0
    assert "else 250 000" in " ".join(capsys.readouterr().out.split())


def test_flags_are_the_settings():
    assert set(StudyFlags.model_fields) == set(StudyConfig.model_fields) - {"published", "roles"}


@pytest.mark.parametrize("command", ["run", "estimate"])
def test_several_values_after_one_flag(command, monkeypatch):
    taken = {}

    def stop(config, flags):
        taken.update(flags.model_dump(exclude_none=True))
        raise InputError("enough")

    monkeypatch.setattr("universal_neurons.cli.studies.settings_from", stop)
    words = ("--models", "a", "b", "--mask", "bos", "3", "--draws", "3", "--labels", "tokens", "--labels", "x.py")
    assert exit_code(command, *words) == 2
    assert taken == {"models": ("a", "b"), "mask": ("bos", 3), "draws": 3, "labels": ("tokens", "x.py")}


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (("run", "a", "b"), "`uneurons run --help`"),
        (("labels", "RUN", "L0.3"), "`uneurons labels --help`"),
        (("run", "--data", "x", "y"), "repeat the flag"),
        (("roles", "r", "--labels", "a", "b"), "repeat the flag"),
    ],
)
def test_values_that_nothing_takes_are_an_error_that_says_what_to_do(words, fix, capsys):
    assert exit_code(*words) == 2
    told = capsys.readouterr().err
    assert "ConfigError: no argument takes these" in told
    assert f"given:  {'a ' if words[1] == 'a' else ''}{words[-1]}" in told
    assert fix in told
    assert ("repeat the flag" in told) == any(word.startswith("--") for word in words)


@pytest.fixture
def study(folders, text_file, tmp_path):
    """Arguments of a small study and its folder."""
    run = tmp_path / "run"
    models = [argument for folder in folders[:2] for argument in ("--models", folder)]
    return [*models, "--data", text_file, "--draws", "3", "--stages", "universality", "--out", run], run


def test_every_stage_of_two_models(study, few_roles, few_figures, capsys):
    arguments, run = study
    assert exit_code("run", *[a for a in arguments if a not in ("--stages", "universality")], "-c", few_roles) == 0
    assert "What the neurons fire on" in capsys.readouterr().out
    assert exit_code("show", run, "m1/L1.7") == 0
    printed = capsys.readouterr().out
    for words in ("What it fires on", "Pre-activation", "Highest activations", "«", "quantiles", "--pairs all"):
        assert words in printed
    assert exit_code("estimate", *arguments, "--json") == 0
    universality = json.loads(capsys.readouterr().out)["memory_peak"]
    assert exit_code("estimate", *[a for a in arguments if a not in ("--stages", "universality")], "--json") == 0
    assert json.loads(capsys.readouterr().out)["memory_peak"] > universality
    assert exit_code("estimate", "--models", arguments[1], "--stages", "weights") == 2
    asked = (
        (),
        ("m1/L1.7",),
        ("m1/L1.7", "--all"),
        ("--anchors",),
        ("--label", "contains_comma"),
        ("--threshold", "0.1"),
    )
    printed = require_light(*(("show", run, *words) for words in asked), ("labels",), ("labels", run), ("check", run))
    for words in ("What the neurons fire on", "What it fires on", "is_year", "mutual", "are those that were written"):
        assert words in printed
    read = "store.universal, store.neuron('m1/L1.7').counterparts, store.families, store.explanations"
    opened = f"import universal_neurons as un\nstore = un.Store({str(run)!r})\n"
    require_light(code=f"{opened}print(store, {read})")
    drawn = f"{opened}print(store.plot.convergence(), store._repr_html_())"
    require_light(("serve", run, "--get", "unit.html"), code=drawn, without=("torch", "transformers"))


def test_a_finished_study_is_said_to_be_one_and_left_as_it_is(study, few_figures, capsys, monkeypatch):
    arguments, run = study
    assert exit_code("run", *arguments) == 0
    assert "finished" not in capsys.readouterr().err

    def files():
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.rglob("*") if path.is_file()}

    def rewritten_by_running():
        before = files()
        assert exit_code("run", *arguments) == 0
        after = files()
        return {path.name for path in after if after[path] != before.get(path)}

    assert rewritten_by_running() == set()
    told = capsys.readouterr()
    assert f"{run} holds a finished study" in told.err.splitlines()[0]
    assert "complete already: nothing is computed again" in " ".join(told.err.split())
    assert f"report.html, as it was (uneurons report {run} draws it again)" in told.out.replace("\n", "")
    drawn = {"report.html", "convergence.svg", "convergence.png"}
    (run / "report.html").unlink()
    assert rewritten_by_running() == drawn
    monkeypatch.setattr("universal_neurons.report.pages.__version__", "another")
    assert rewritten_by_running() == drawn


def test_run_show_report(study, folders, svg_only, capsys, tmp_path, monkeypatch, request):
    arguments, run = study
    assert exit_code("run", *arguments) == 0
    printed = capsys.readouterr().out
    assert "universal (excess > 0.5)" in printed
    assert str(run / "report.html") in printed.replace("\n", "")
    assert f"uneurons export {run} --out {run}-site, then open {run}-site/index.html" in printed.replace("\n", "")
    assert exit_code("show", run) == 0
    assert "compared with" in capsys.readouterr().out
    assert exit_code("show", run, "L1.7") == 0
    assert "most negative" in capsys.readouterr().out
    assert exit_code("show", run, "m1/L0.3") == 0
    assert "--pairs all" in capsys.readouterr().out
    (run / "report.html").unlink()
    assert exit_code("report", run) == 0
    assert (run / "report.html").exists()
    request.getfixturevalue("few_figures")
    other = tmp_path / "other"
    assert exit_code("run", *arguments[:-1], other, "--pairs", "all", "--seed", "3") == 0
    monkeypatch.chdir(tmp_path)
    assert exit_code("report", run, other) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Side by side" in page
    assert "other: m1" in page
    capsys.readouterr()
    for wrong in (("show", run, "L9.9"), ("show", run, "seven"), ("show", run, "m9/L0.0"), ("show", tmp_path / "none"),
                  ("show", run, ""), ("show", "x" * 300), ("report", run, "x" * 300), ("roles", "x" * 300),
                  ("report", run, "--out", "x.html")):  # fmt: skip
        assert exit_code(*wrong) == 2
        assert "wanted:" in capsys.readouterr().err


def test_a_file_of_settings_and_flags_over_it(study, few_figures, tmp_path, capsys):
    arguments, run = study
    settings = {"models": [str(arguments[1]), str(arguments[3])], "data": str(arguments[5]), "draws": 3, "seed": 7, "stages": ["universality"],
                "published": {"source": "A paper", "neurons": 10, "universal": 5, "universal_per_layer": [2, 3]}}  # fmt: skip
    (tmp_path / "study.yaml").write_text(json.dumps(settings))
    assert exit_code("run", "-c", tmp_path / "study.yaml", "--seed", "8", "--out", run) == 0
    printed = capsys.readouterr().out
    assert "A paper" in printed
    assert "50.00%" in printed
    manifest = json.loads((run / "study.json").read_text())
    assert manifest["config"]["seed"] == 8
    assert exit_code("run", "-c", run / "study.json", "--out", tmp_path / "again") == 0
    again = json.loads((tmp_path / "again" / "study.json").read_text())
    assert again["tables"] == manifest["tables"]


def test_check(folders, tmp_path, capsys):
    assert exit_code("check", *folders) == 0
    assert "They work together" in capsys.readouterr().out
    odd = shutil.copytree(folders[1], tmp_path / "odd")
    (odd / "model.safetensors").write_bytes(b"torn")
    assert exit_code("check", folders[0], odd, tmp_path / "missing") == 2
    small = save_tiny(tmp_path / "small", vocab_size=100)
    errors = capsys.readouterr().err
    assert exit_code("check", folders[0], small) == 2
    assert "smaller than the tokenizer's" in capsys.readouterr().err
    assert "cannot be read" in errors
    assert "no such folder" in errors


def test_estimate(study, capsys):
    arguments, run = study
    assert exit_code("estimate", *arguments, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seconds"] > 0
    assert found["memory_peak"] > 10_000_000
    assert exit_code("estimate", *arguments) == 0
    printed = capsys.readouterr().out
    assert "memory" in printed
    assert "the rest of a longer text is not read (--max-tokens)" in printed
    assert not run.exists()


OF_ROLES = [word for stage in ("weights", "statistics", "roles") for word in ("--stages", stage)]
BAD_INPUT = {
    "a missing model": (["--models", "./nowhere", "--models", "./nowhere-2"], "MissingFileError"),
    "one model, compared": (["--models", "{0}", "--stages", "universality"], "NothingToCompareError"),
    "no such labels": (["--labels", "colours"], "ConfigError"),
    "a missing file of labels": (["--stages", "labels", "--labels", "./nowhere.yaml"], "MissingFileError"),
    "a pipeline that is not installed": (["--stages", "labels", "--nlp", "xx_none_sm"], "MissingExtraError"),
    "labels without their stage": (["--labels", "tokens"], "ConfigError"),
    "no such stage": (["--stages", "sleep"], "ConfigError"),
    "a missing corpus": (["--data", "./nowhere.txt"], "MissingFileError"),
    "an empty corpus": (["--data", "{empty}"], "TextError"),
    "a short corpus": (["--data", "{short}"], "TextError"),
    "not UTF-8": (["--data", "{latin}"], "TextError"),
    "a token id outside the vocabulary": (["--data", "{tokens}"], "TokenRangeError"),
    "roles of different tokenizers": (
        ["--models", "{0}", "--models", "{tokenizer}", *OF_ROLES],
        "roles are of each model",
    ),
    "pooling with one tokenizer": (["--pooling", "last"], "for models of different tokenizers"),
    "truncated weights": (["--models", "{0}", "--models", "{truncated}"], "CheckpointError"),
    "a pickle": (["--models", "{0}", "--models", "{pickle}"], "uneurons convert"),
    "an unknown architecture": (["--models", "{0}", "--models", "{oddity}"], "ArchitectureError"),
    "a long context": (["--context", "4096"], "ContextError"),
    "an unknown flag": (["--colour", "blue"], "--colour"),
    "an impossible value": (["--draws", "1"], "draws"),
    "not a number": (["--draws", "many"], "draws"),
    "an unknown key": (["-c", "{keys}"], "unknown key 'colour'"),
    "a key that is no name": (["-c", "{number}"], "ConfigError"),
    "a date that is none": (["-c", "{date}"], "ConfigError"),
    "a card that is not there": (["--device", "cpu:3"], "ConfigError"),
    "a mask below zero": (["--mask", "-5"], "mask"),
    "a name that is too long": (["--out", "x" * 300], "StoreConflictError"),
    "a folder that cannot be": (["--out", "/proc/nowhere/run"], "StoreConflictError"),
    "a missing file of settings": (["-c", "./nowhere.yaml"], "MissingFileError"),
    "a torn file of settings": (["-c", "{torn}"], "ConfigError"),
    "an unknown subset": (["--subset", "nowhere"], "no subset"),
    "a device that is not there": (["--device", "abacus"], "ConfigError"),
    "an occupied folder": (["--out", "{occupied}"], "StoreConflictError"),
}


@pytest.fixture(scope="module")
def bad(folders, tmp_path_factory):
    root = tmp_path_factory.mktemp("bad")
    files = {"empty": b"", "short": some_text(20).encode(), "latin": "caf\xe9 ".encode("latin1") * 5000,
             "keys": b"colour: blue", "torn": b"models: [a\nb: }", "number": b"1: 2", "date": b"seed: 2024-13-45"}  # fmt: skip
    for name, content in files.items():
        (root / f"{name}.txt").write_bytes(content)
    places = {name: root / f"{name}.txt" for name in files}
    (root / "tokens.jsonl").write_text(20 * (json.dumps({"tokens": [5000] * 60}) + "\n"))
    places["tokens"] = root / "tokens.jsonl"
    places["tokenizer"] = save_tiny(root / "tokenizer", seed=4)
    path = root / "tokenizer" / "tokenizer.json"
    words = json.loads(path.read_text())
    words["model"]["merges"].pop()
    path.write_text(json.dumps(words))
    for name in ("truncated", "pickle", "oddity"):
        places[name] = shutil.copytree(folders[0], root / name)
    weights = root / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    (root / "pickle" / "model.safetensors").rename(root / "pickle" / "pytorch_model.bin")
    settings = json.loads((root / "oddity" / "config.json").read_text()) | {"model_type": "oddity"}
    (root / "oddity" / "config.json").write_text(json.dumps(settings))
    places["occupied"] = root / "occupied"
    places["occupied"].mkdir()
    (places["occupied"] / "diary.txt").write_text("dear diary")
    return places


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(case, bad, study, folders, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given, words = BAD_INPUT[case]
    given = [part.format(*folders, **bad) for part in given]
    arguments, run = study
    if "--models" in given:
        arguments = arguments[4:]
    if "--data" in given:
        arguments = [a for n, a in enumerate(arguments) if "--data" not in (a, arguments[n - 1])]
    if "--out" in given:
        arguments = arguments[:-2]
    before = sorted(tmp_path.rglob("*"))
    assert exit_code("run", *arguments, *given) == 2
    errors = capsys.readouterr().err
    assert words in errors
    assert "Traceback" not in errors
    assert sorted(tmp_path.rglob("*")) == before
    assert not run.exists()


def test_a_store_of_another_study(study, few_figures, capsys):
    arguments, run = study
    assert exit_code("run", *arguments) == 0
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert exit_code("run", *arguments, "--top-k", "3") == 2
    assert "config.top_k" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_a_full_disk_fails_with_1_and_resumes(study, few_figures, capsys, monkeypatch):
    import errno

    arguments, _ = study
    real = os.fsync
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert exit_code("run", *arguments) == 1
    assert "DiskFullError" in capsys.readouterr().err
    monkeypatch.setattr(os, "fsync", real)
    assert exit_code("run", *arguments) == 0


def test_an_interrupt_says_how_to_go_on(study, few_figures, capsys, monkeypatch):
    from universal_neurons.passes import Pass

    arguments, _ = study
    with monkeypatch.context() as patched:
        patched.setattr(Pass, "run", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        assert exit_code("run", *arguments) == 130
    assert "resumes" in capsys.readouterr().err
    assert exit_code("run", *arguments) == 0


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("can't start new thread"),
        ImportError("libx.so: failed to map segment from shared object"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        pl.exceptions.PanicException("Cannot allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_the_system_does_not_give_is_named(monkeypatch, capsys, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("universal_neurons.study.check_models", fail, raising=False)
    assert exit_code("check", "bundled/seed-1") == 2
    assert "MemoryNeededError: the system gives no more memory" in capsys.readouterr().err


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch):
    def fail(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr("universal_neurons.study.check_models", fail, raising=False)
    with pytest.raises(RuntimeError, match="a defect"):
        exit_code("check", "bundled/seed-1")
