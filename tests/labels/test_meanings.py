"""What is said of a label is what the label does."""

import re

import polars as pl
import pytest
from conftest import exit_code

from universal_neurons.config import LABEL_GROUPS
from universal_neurons.labels import built_in_labels, meaning_of
from universal_neurons.labels.token_tests import TOKEN_TESTS, WIDER_TESTS

ALL_TESTS = TOKEN_TESTS | WIDER_TESTS
TOLD = {told.label: told.holds for told in built_in_labels() if told.group == "tokens"}


def test_every_label_has_one_sentence_and_every_group_is_there():
    everything = built_in_labels()
    assert set(TOLD) == {*ALL_TESTS, "small_norm"}
    assert {told.group for told in everything} == {*LABEL_GROUPS, "own"}
    assert len({(told.group, told.label) for told in everything}) == len(everything)
    assert all(told.holds.strip() for told in everything)


@pytest.mark.parametrize("name", [name for name, text in TOLD.items() if "one of" in text or "holds " in text])
def test_what_is_listed_holds(name):
    holds = TOLD[name]
    if holds.startswith("the word is one of "):
        listed = holds.removeprefix("the word is one of ").removesuffix(", so written").split(", ")
        assert all(ALL_TESTS[name](f" {word}") for word in listed if word != "…")
        assert not ALL_TESTS[name](" zzz")
        assert ("so written" in holds) == (not ALL_TESTS[name](listed[0].swapcase()))
    elif re.fullmatch("holds (one of )?.+", holds) and name != "contains_digit":
        signs = holds.removeprefix("holds ").removeprefix("one of ").split(" ")
        assert all(ALL_TESTS[name](f"a{sign}b") for sign in signs)
        assert not ALL_TESTS[name]("ab")


@pytest.mark.parametrize(("name", "text", "other"), [
    ("all_caps", " A1", " U"), ("all_lower", "a1", "aB"), ("all_symbolic", "--", "-a"), ("is_year", "2199", "2200"),
    ("is_year", "1491", "1490"), ("is_lt_31", "31", "32"), ("starts_w_vowel", " Apple", " bee"), ("all_alpha", "aé", "a1"),
    ("starts_w_consonant", " bee", " b1"), ("start_w_no_space", "\ning", " ing"), ("start_w_no_space_and_letter", "i", "1"),
    ("start_w_no_space_and_digit", "1", " 1"), ("starts_w_no_space_and_cap", "A", " A"), ("all_digits", "1²", "1a"),
    ("starts_w_no_space_and_lower", "a", "A"), ("starts_w_digit", " 1", " 1a"), ("starts_w_space", " -", "  "),
    ("start_w_space_and_letter", " a", " 1"), ("starts_w_cap", " A", " a"), ("all_white_space", " \n", " a"),
    ("contains_digit", "a1", "a"), ("is_two_digit", " 12", "123"), ("all_numeric", "٣", "½"), ("end_w_ness", "kindness", "ne"),
    ("start_w_un", " undo", " do"), ("is_one_digit", "1", "12"), ("is_four_digit", "1234", "123"), ("contains_double_dollar", "$$", "$"),
    ("is_three_digit", "123", "12"), ("is_website_suffix", "com", " com"), ("is_state_abv", " OH", " oh"),
])  # fmt: skip
def test_plain_sentences_by_example(name, text, other):
    assert name in TOLD
    assert TOKEN_TESTS[name](text)
    assert not TOKEN_TESTS[name](other)


def test_labels_of_a_study_have_a_meaning_too():
    for label, group, words in [
        ("the", "unigrams", "any case"), ("the (word start)", "unigrams", "longer word begins"), ("pos_NOUN", "syntax", "a noun"),
        ("dep_nsubj", "syntax", "relation"), ("ent_GPE", "syntax", "entity"), ("Number=Plur", "syntax", "morphology"),
        ("prose", "subsets", "subset"), ("position 4–7", "position", "position 4–7"), ("topic a b c", "topics", "topic"),
        ("position < 8", "position", "from 1 to below 8"), ("colour", "own", "your function"), ("small_norm", "tokens", "embedding"),
        ("position", "position", "as a whole"), ("start_w_digit", "tokens", "earlier version"),
    ]:  # fmt: skip
        assert words in meaning_of(label, group), label


def test_the_commands(odd_store, tmp_path, capsys):
    assert exit_code("labels") == 0
    printed = capsys.readouterr().out
    for name in ("all_caps", "small_norm", "pos_MULTI", "sentence_start"):
        assert name in printed
    assert exit_code("labels", odd_store.path) == 0
    printed = capsys.readouterr().out
    counts = pl.read_parquet(odd_store.path / "label_counts.parquet")
    of = counts.filter((pl.col("label") == "all_lower") & (pl.col("group") == "tokens")).sort("previous")["count"]
    line = next(line for line in printed.splitlines() if "all_lower" in line)
    assert [cell.strip() for cell in line.split("│")[3:5]] == [f"{count:,}" for count in of]
    base = counts.filter(~pl.col("previous"))
    assert f"{(base['count'] == 0).sum():,} labels hold at none" in " ".join(printed.split())
    assert exit_code("labels", tmp_path / "none") == 2
    assert "no study here" in capsys.readouterr().err
