"""Figures drawn by two processes are the files that one draws, also where the second one fails."""

import sys

import pytest
from conftest import tiny_model
from test_correlation import some_tokens

from universal_neurons import StudyConfig, run_study
from universal_neurons.report import drawing, write_report


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A study of few figures."""
    config = StudyConfig(out=str(tmp_path_factory.mktemp("drawn") / "study"), stages=("statistics", "weights"))
    return run_study(config, models=[tiny_model("gpt2", 0)], tokens=some_tokens(100), progress=False)


@pytest.fixture(scope="module")
def by_one(store):
    """The files of its report as one process draws them."""
    return files_of(store, write_report(store))


def files_of(store, page):
    found = {path.name: path.read_bytes() for path in [page, *(store.path / "figures").iterdir()]}
    for path in (store.path / "figures").iterdir():
        path.unlink()
    return found


@pytest.mark.parametrize("interpreter", [sys.executable, "/bin/false"], ids=["two draw", "the second fails"])
def test_two_processes_draw_what_one_does(interpreter, store, by_one, monkeypatch):
    monkeypatch.setattr(drawing, "FEWEST", 2)
    monkeypatch.setattr(drawing, "_cores", lambda: 2)
    monkeypatch.setattr(sys, "executable", interpreter)
    alone = drawing.written
    drawn = []

    def seen(store, figures):
        drawn.append(set(figures))
        return alone(store, figures)

    monkeypatch.setattr(drawing, "written", seen)
    assert files_of(store, write_report(store)) == by_one
    names = {name.removesuffix(".svg") for name in by_one if name.endswith(".svg")}
    assert set.union(*drawn) == names if interpreter == "/bin/false" else drawn[0] < names
    assert len(drawn) == 1 + (interpreter == "/bin/false")


@pytest.mark.parametrize(("given", "cores"), [("1", 1), ("", 8), ("4", 4), ("12", 8), ("2,3", 8)])
def test_no_more_processes_than_openmp_may_have_threads(given, cores, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert drawing._cores() == cores
