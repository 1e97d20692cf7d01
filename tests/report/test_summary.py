"""What the terminal and the page say of a study's numbers."""

import re

import pytest
from conftest import FEW_ROLES, alike_models
from test_correlation import some_tokens

from universal_neurons import StudyConfig, run_study
from universal_neurons.labels import SAID_OF_FAMILIES, SAID_OF_ROLES
from universal_neurons.report import study_view
from universal_neurons.report.facts import Counts, _heldout_line
from universal_neurons.report.summary import RELATIVE, basis_test, family_rows, words_of
from universal_neurons.roles import role_rows
from universal_neurons.terminal import plain


@pytest.mark.parametrize(
    ("q_value", "draws", "text"),
    [
        (0.0, 20, "≤ 0.05"),
        (0.049, 20, "≤ 0.05"),
        (0.05, 20, "0.05"),
        (0.0, 2, "≤ 0.50"),
        (0.31, 20, "0.31"),
        (1.0, 20, "1.00"),
    ],
)
def test_no_q_is_said_to_be_smaller_than_the_draws_can_tell(q_value, draws, text):
    assert basis_test(q_value, draws) == text


def test_little_text_is_counted_among_universal_neurons_only_where_there_are_some():
    assert _heldout_line(Counts(3, 2, 1, 4, 1, 1), "0.5").endswith("; 2 of the 3 rest on little text")
    assert "little text" not in _heldout_line(Counts(0, 0, 0, 2, 0, 0), "0.5")


LONG_NAMES = tuple(f"organisation/a-model-of-a-long-name-seed-{n}" for n in range(5))


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """Five models of long names, with labels and roles."""
    models = alike_models(LONG_NAMES)
    settings = {"draws": 2, "labels": ("tokens", "position"), "roles": FEW_ROLES, "threshold": 0.3}
    out = tmp_path_factory.mktemp("five") / "run"
    return run_study(StudyConfig(out=str(out), **settings), models=models, tokens=some_tokens(60), progress=False)


def letters_in(text):
    """All that is printed but spaces and frames."""
    return re.sub(r"[\s\u2500-\u257f]", "", text)


@pytest.mark.parametrize("width", [80, 60])
def test_nothing_is_lost_of_five_models_of_long_names(five, width):
    printed = plain(study_view(five), width)
    assert max(map(len, printed.splitlines())) <= width
    assert "…" not in printed
    for meanings in (SAID_OF_FAMILIES, SAID_OF_ROLES | RELATIVE):
        assert letters_in(words_of(meanings)) in letters_in(printed)
    assert "bestofa" in letters_in(printed)
    for rows in (family_rows(five), role_rows(five)):
        for name, counts, _ in rows:
            line = next(line for line in printed.splitlines() if line.split()[1:2] == name.split()[:1])
            assert [int(cell) for cell in line.split("│")[2:7]] == counts
    named = "; ".join(f"{letter}: {name}" for letter, name in zip("abcde", LONG_NAMES))
    assert letters_in(printed).count(letters_in(named)) == 2, "of families and roles"
    assert letters_in(printed).count(letters_in(named.split("; ", 1)[1])) == 3, "and of the neurons' matches"


def test_names_that_fit_head_their_columns(five):
    wide = plain(study_view(five), 400)
    assert "b: " not in wide
    assert all(name in wide for name in LONG_NAMES)
