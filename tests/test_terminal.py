"""What is printed: text as it stands, on any terminal and into any pipe."""

import io
import os
import pickle
import subprocess
import sys
import unicodedata

import pytest
from conftest import ODD_NAMES
from rich.console import Console

from universal_neurons.cli import main
from universal_neurons.errors import InputError, OutputError
from universal_neurons.legible import legible
from universal_neurons.progress import Reporter
from universal_neurons.report import neuron_view, study_view
from universal_neurons.storage import parse_neuron
from universal_neurons.terminal import Outlet, TextTable, plain, prepare_streams, shown_lines

MARKUP = "[/red][bold]gpt2[seed=1] :smile: \\[ [link=https://x.org]"
COMMAND = "import sys; from universal_neurons.cli import main; main(sys.argv[1:])"


def controls(text):
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs")} - {"\n"}


def rendered(view, **settings):
    """As somebody's own console prints it, with rich's settings."""
    console = Console(file=io.StringIO(), width=1500, **settings)
    console.print(view)
    return console.file.getvalue()


def test_views_show_names_as_they_stand(odd_store):
    views = [study_view(odd_store), *(neuron_view(odd_store, f"{name}/L1.7") for name in ODD_NAMES)]
    printed = [rendered(view) for view in views]
    for text in (*printed, repr(odd_store), repr(odd_store.config)):
        assert not controls(text)
    for name in ODD_NAMES:
        assert all(legible(name) in text for text in printed[:2])
    assert all(f"{legible(name)}/L1.7" in "".join(text.split()) for name, text in zip(ODD_NAMES, printed[1:]))
    tokens = odd_store.strings
    assert any(controls(string) for string in tokens), "a vocabulary with control characters"
    assert not any(controls(text) for text in map(rendered, views))


def test_a_representation_is_plain_on_a_terminal(odd_store, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert "\x1b" not in repr(odd_store)
    assert "\x1b" in rendered(study_view(odd_store)), "a terminal that shows colours"


def test_tables_take_no_markup():
    table = TextTable(MARKUP, "\x1b[1mtwo", title=MARKUP)
    table.row(MARKUP, "a\nb")
    for text in (rendered(table), plain(table, 500)):
        assert text.count(MARKUP) == 3
        assert "␛[1mtwo" in text
        assert "a⏎b" in text
    assert plain(shown_lines("one\nforged", MARKUP), 500) == f"one⏎forged\n{MARKUP}\n"


def test_progress_takes_no_markup():
    console = Console(file=io.StringIO(), force_terminal=True, width=200, color_system=None)
    reporter = Reporter(console=console)
    with reporter.tokens(f"{MARKUP}\x07", 100) as meter:
        meter(50)
        meter.bar.refresh()
    reporter.note("\x1b]0;title\x07\nforged")
    printed = console.file.getvalue()
    assert f"{MARKUP}␇: 50 tokens" in printed.splitlines()[-2]
    assert printed.splitlines()[-1] == "␛]0;title␇⏎forged"
    assert "[/red][bold]gpt2[seed=1] :smile:" in printed.split("50 tokens")[0]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "shift_jis", "utf-16"])
def test_an_encoding_that_lacks_characters(odd_store, monkeypatch, encoding):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2)]
    for name, stream in zip(("stdout", "stderr"), streams):
        monkeypatch.setattr(sys, name, stream)
    main(["show", str(odd_store.path), "L0.3"])
    with pytest.raises(SystemExit) as stop:
        main(["show", str(odd_store.path), "ρ\ud83d"])
    assert stop.value.code == 2
    shown, errors = (stream.buffer.getvalue().decode(encoding) for stream in streams)
    assert "Matches" in shown
    assert ("┏" in shown) == (encoding == "utf-16")
    assert "not a neuron's name" in errors


def outcome(arguments, **streams):
    """Exit code and messages of the command, of which torch is no part."""
    done = subprocess.run([sys.executable, "-c", COMMAND, *arguments], stderr=subprocess.PIPE, text=True, **streams)
    return done.returncode, done.stderr


def test_a_reader_that_has_gone_is_no_failure():
    reading, writing = os.pipe()
    os.close(reading)
    assert outcome(["run", "--help"], stdout=writing) == (0, "")
    os.close(writing)


def test_an_output_that_cannot_be_written_is_one():
    with open("/dev/full", "w") as full:
        code, errors = outcome(["--version"], stdout=full)
        assert (code, errors.splitlines()[0]) == (1, "OutputError: what was found cannot be printed")
        assert "No space left" in errors
    code, errors = outcome(["--help"], preexec_fn=lambda: os.close(1))
    assert (code, errors.splitlines()[0]) == (1, "OutputError: what was found cannot be printed")


def test_closed_streams_are_not_given_to_files():
    code = (
        "import os, sys, tempfile\nfrom universal_neurons.terminal import prepare_streams\nprepare_streams()\n"
        "number = tempfile.TemporaryFile().fileno()\nprint('lost')\nsys.stderr.write('lost')\nos._exit(number)"
    )
    done = subprocess.run([sys.executable, "-c", code], preexec_fn=lambda: [os.close(n) for n in range(3)])
    assert done.returncode > 2


def test_streams_after_a_failure(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        outlet = Outlet(gone, needed=True)
        for _ in range(3):
            outlet.write("x")
            outlet.flush()
    for needed in (True, False):
        with open("/dev/full", "w") as full:
            outlet = Outlet(full, needed=needed)
            outlet.write("x")
            if needed:
                with pytest.raises(OutputError, match="No space left"):
                    outlet.flush()
            outlet.flush()
    prepare_streams()


def test_errors_keep_their_lines_and_stay_short():
    error = InputError("a\n  fix:    forged", given="b\x1b\nc", wanted=["\u202e"], fix="d\re", causes=["x\ny"])
    assert str(error).split("\n") == [
        "a⏎  fix:    forged",
        "x",
        "y",
        "  given:  b␛⏎c",
        "  wanted: ['\\u202e']",
        "  fix:    d␍e",
    ]
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.what) == (InputError, str(error), error.what)
    huge = InputError("w" * 10**6, given="\0" * 10**6, wanted=range(10**6), fix="f" * 10**6)
    assert len(str(huge)) < 4000
    assert str(pickle.loads(pickle.dumps(huge))) == str(huge)


def test_a_wrong_argument_is_shown_as_it_stands(capsys):
    for argument in (f"--{MARKUP}\x1b", "--draws=[bold]\x1b[31m\nuneurons: fine", "x" * 10**6):
        with pytest.raises(SystemExit) as stop:
            main(["run", argument])
        assert stop.value.code == 2
        errors = capsys.readouterr().err
        assert not controls(errors)
        assert len(errors) < 3000
        assert not any(line.startswith("uneurons: fine") for line in errors.splitlines())


@pytest.mark.parametrize(
    "name",
    ["L0", "x", "", "L-1.0", "L1.2.3", "L1.2/", "/L1.2", "L١.٢", "L1.2\n", f"L{'9' * 5000}.1", "b/L0.0", "\0/L0.0"],
)
def test_what_is_no_neuron(name):
    with pytest.raises(InputError, match=r"not a neuron's name|no such model"):
        parse_neuron(name, ["a", "c/[d]"])


def test_neurons_of_models_with_any_name():
    for model in ("a", "c/[d]", "x\ny", "L0.0", *ODD_NAMES):
        assert parse_neuron(f"{model}/L1.20", ["first", model]) == (model, 1, 20)
    assert parse_neuron("L3.17", ["first", "second"]) == ("first", 3, 17)
