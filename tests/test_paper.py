"""docs/paper.md names commands, files, figures, columns and code that there are, and the published counts as the configurations have them."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from universal_neurons.cli import app
from universal_neurons.config_reading import make_config
from universal_neurons.report.figures.kinds import STUDY_KINDS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/paper.md").read_text(encoding="utf-8")
COLUMNS = (ROOT / "docs/store.md").read_text(encoding="utf-8")
COMMANDS = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
LINES = re.findall(r"^    ((?:eval|uneurons).*)$", PAGE, re.MULTILINE)
FIGURES = {kind.name: kind for kind in STUDY_KINDS}
LAST_FIGURE = 26  # of the paper


def rows_under(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its own heading."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    table = re.findall(r"^\|(.*)\|$", section, re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")] for row in table[2:]]


def numbers_of(cell: str) -> set[int]:
    """The figures that a cell such as `Fig 2, 12, 13` names."""
    return set(map(int, re.findall(r"\d+", cell)))


def words_of(line: str) -> list[str]:
    """The words of a command, also of one within `eval`."""
    return shlex.split(re.sub(r'^eval "\$\((.*?)\)(.*)"$', r"\1", line))


@pytest.mark.parametrize("line", LINES)
def test_commands_options_and_configurations_exist(line):
    _, command, *words = words_of(line)
    assert app[command].help or app[command].default_command.__doc__
    for word in words:
        if word.startswith("--"):
            assert word in COMMANDS or f"`{word[2:].replace('-', '_')}`" in COMMANDS, word
    if "-c" in words:
        path = ROOT / words[words.index("-c") + 1]
        config = make_config(yaml.safe_load(path.read_text(encoding="utf-8")))
        if "--models" in words:
            asked = [Path(word).name for word in words[words.index("--models") + 1 :]]
            assert asked == [Path(model).name for model in config.models]


def test_options_in_the_text_exist():
    for option, value in re.findall(r"`--([a-z-]+)(?: ([\w]+))?`", PAGE):
        assert f"`{option.replace('-', '_')}`" in COMMANDS, option
        assert not value or value.isdigit() or value in COMMANDS, value


def test_every_figure_of_the_paper_has_a_figure_here():
    seen = set()
    for figures, _, names, _ in rows_under("Figures"):
        seen |= numbers_of(figures)
        named = re.findall(r"`(\w+)`", names)
        assert named, figures
        assert set(named) <= FIGURES.keys(), names
    assert seen == set(range(1, LAST_FIGURE + 1))


def test_figures_are_those_that_their_code_says_they_are():
    """As the docstring of each drawing function, or else of its file, has them."""
    for figures, _, names, _ in rows_under("Figures"):
        told = ""
        for name in re.findall(r"`(\w+)`", names):
            draw = FIGURES[name].draw
            told += draw.__doc__ if "Fig" in (draw.__doc__ or "") else import_module(draw.__module__).__doc__
        claimed = set()
        for listed in re.findall(r"Fig(?:ures)? ([\d,–()a-f ]+)", told):
            for low, high in re.findall(r"(\d+)(?:–(\d+))?", listed):
                claimed |= set(range(int(low), int(high or low) + 1))
        assert numbers_of(figures) <= claimed, (figures, names, claimed)


def test_code_and_columns_of_the_equations_exist():
    for _, _, code, columns in rows_under("Equations"):
        for dotted in re.findall(r"`(universal_neurons[\w.]+)`", code):
            found = import_module("universal_neurons")
            for place, part in enumerate(dotted.split(".")[1:], start=2):
                if not hasattr(found, part):
                    import_module(".".join(dotted.split(".")[:place]))
                found = getattr(found, part)
        for column in re.findall(r"`(\w+)`", columns):
            assert f"`{column}`" in COLUMNS or f"`{column}.parquet`" in COLUMNS, column
    for _, _, columns in rows_under("Landmarks"):
        for column in re.findall(r"`(\w+)`", columns):
            assert f"`{column}`" in COLUMNS, column


def test_published_counts_are_those_of_the_configurations():
    stated = {name: (int(neurons), int(universal)) for name, neurons, universal, *_ in rows_under("Counts")}
    for path in (ROOT / "configs").glob("*.yaml"):
        published = make_config(yaml.safe_load(path.read_text(encoding="utf-8"))).published
        name = published.source.rpartition(", ")[2]
        assert stated.pop(name) == (published.neurons, published.universal)
    assert not stated
    for name, neurons, universal, share, *_ in rows_under("Counts"):
        assert f"{100 * int(universal) / int(neurons):.2f} %" == share, name


def test_sentences_are_short_and_numbers_have_their_zero():
    prose = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"^    .*$", "", PAGE, flags=re.MULTILINE))
    prose = re.sub(r"`[^`]*`", "name", prose)
    assert not re.findall(r"(?<!\w)\.\d", prose)
    for paragraph in re.split(r"\n\s*\n|\n(?=[-|#])", prose):
        for sentence in re.split(r"(?<=[.!?:;])\s+", re.sub(r"[\n|]", " ", paragraph)):
            assert len(re.findall(r"\w\S*", sentence)) <= 30, sentence
