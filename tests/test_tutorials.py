"""Tutorials run from beginning to end, say in short sentences what their outputs show, and stand in their notebooks as they are."""

import contextlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "docs/tutorials"
LONGEST_SENTENCE, LARGEST_NOTEBOOK = 30, 300_000  # words; bytes


def loaded() -> ModuleType:
    """docs/tutorials/notebooks.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("tutorial_notebooks", FOLDER / "notebooks.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its data classes look themselves up
    spec.loader.exec_module(module)
    return module


NOTEBOOKS = loaded()
NAMES = NOTEBOOKS.names()


def text_of(name: str) -> str:
    """The prose of a tutorial, without code and addresses."""
    prose = "\n\n".join(cell.source for cell in NOTEBOOKS.cells_of(name) if cell.kind == "markdown")
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"^    .*$", "", prose, flags=re.MULTILINE))


def numbers_in(text: str) -> list[str]:
    """The numbers with decimals or of two digits and more, but for those in names such as seed-1 or L0.29."""
    return re.findall(r"(?<![\w.-])(?:\d*\.\d+|\d{2,})(?![\w]|\.\d)", text)


def shows(number: str, shown: list[str]) -> bool:
    """Whether one of the shown numbers is this one, to its decimals."""
    decimals = len(number.partition(".")[2])
    return any(round(float(other), decimals) == float(number) for other in shown)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where all of them run: the first study is made once."""
    return tmp_path_factory.mktemp("tutorials")


def test_every_tutorial_is_listed_and_has_its_notebook():
    assert {path.stem for path in FOLDER.glob("*.py")} - {"notebooks"} == set(NAMES)
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_its_prose_has_no_number_that_it_does_not_show(name, folder):
    shown = []
    with contextlib.chdir(folder):
        for _, outputs in NOTEBOOKS.run(NOTEBOOKS.cells_of(name), f"{name}.py"):
            for output in outputs:
                shown += numbers_in(output.get("text", "") + output.get("data", {}).get("text/plain", ""))
    for number in numbers_in(text_of(name)):
        assert shows(number, shown), number


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_is_its_source_with_outputs(name):
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size <= LARGEST_NOTEBOOK
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert [(cell["cell_type"], cell["source"]) for cell in cells] == [
        (cell.kind, cell.source) for cell in NOTEBOOKS.cells_of(name)
    ], "python docs/tutorials/notebooks.py writes it again"
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert outputs
    assert all(len(picture) <= 4 / 3 * NOTEBOOKS.LARGEST_PICTURE + 4 for picture in pictures)
    assert not re.search(r"/(?:tmp|home|root|work)/", json.dumps(outputs))


@pytest.mark.parametrize("name", NAMES)
def test_sentences_are_short_and_numbers_have_their_zero(name):
    prose = re.sub(r"`[^`]*`", "name", text_of(name))
    assert not re.findall(r"(?<!\w)\.\d", prose)
    for paragraph in re.split(r"\n\s*\n|\n(?=[-|#])", prose):
        for sentence in re.split(r"(?<=[.!?:;])\s+", paragraph.replace("\n", " ")):
            assert len(re.findall(r"\w\S*", sentence)) <= LONGEST_SENTENCE, sentence
