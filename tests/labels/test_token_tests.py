"""The tests of a token's string against a table of awkward tokens, written by hand from the authors' definitions.

`awkward_tokens.tsv` has in each line a token (as a JSON string) and all tests that hold for it, ours too.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from universal_neurons.labels import token_test_masks
from universal_neurons.labels.token_tests import TOKEN_TESTS, WIDER_TESTS, narrower
from universal_neurons.text import Vocabulary

ALL_TESTS = TOKEN_TESTS | WIDER_TESTS
LINES = Path(__file__).with_name("awkward_tokens.tsv").read_text(encoding="utf-8").split("\n")[1:-1]
AWKWARD = {json.loads(token): set(names.split(" ")) for token, names in (line.split("\t") for line in LINES)}


def test_the_table_has_every_test():
    assert len(AWKWARD) == len(LINES) > 500
    assert set().union(*AWKWARD.values()) == set(ALL_TESTS)


def test_all_tests_hold_for_the_tokens_of_the_table_as_it_says():
    held = {token: {name for name, holds in ALL_TESTS.items() if holds(token)} for token in AWKWARD}
    assert {token: names for token, names in held.items() if names != AWKWARD[token]} == {}


def test_there_are_the_papers_207_token_tests():
    assert len(TOKEN_TESTS) == 207
    assert sum(name.endswith("_pronoun") for name in TOKEN_TESTS) == 19


def test_of_a_token_without_a_sign_only_that_it_is_white_space_holds():
    assert [name for name, holds in ALL_TESTS.items() if holds("")] == ["all_white_space"]


def test_a_number_too_long_for_an_integer_is_none():
    assert TOKEN_TESTS["all_numeric"]("1" * 5000)
    assert not TOKEN_TESTS["is_year"]("1" * 5000)


@pytest.mark.parametrize("name", WIDER_TESTS)
def test_a_wider_test_holds_where_the_papers_does_and_elsewhere_too(name):
    wide = {token for token, names in AWKWARD.items() if name in names}
    assert wide > {token for token, names in AWKWARD.items() if narrower(name) in names}


def test_a_wider_test_is_a_label_only_where_the_vocabulary_tells_it_from_the_papers():
    vocabulary = Vocabulary(("<s>", "-", "'", "’", "%"), np.arange(5) == 0)
    names = {label.name for label, _ in token_test_masks(vocabulary, None)}
    assert names - set(TOKEN_TESTS) == {"contains_any_apostrophe", "contains_any_math_symbol"}
