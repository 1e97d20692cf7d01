"""Labels of one's own from files and functions, with what is wrong about them said by name; topics of a corpus."""

import json

import numpy as np
import polars as pl
import pytest

from universal_neurons import TokenDataset
from universal_neurons.errors import LabelError, MissingFileError
from universal_neurons.labels import build_labels
from universal_neurons.own_labels import read_own_labels
from universal_neurons.topics import find_topics
from universal_neurons.vocabulary import Vocabulary

STRINGS = ("<s>", " cat", "cat", " dog", "!", "12", " yes")
CONTEXT = 8


def vocabulary():
    return Vocabulary(STRINGS, np.arange(len(STRINGS)) == 0)


def some_rows(rows=12):
    pieces = [("", np.random.default_rng(row).integers(1, len(STRINGS), CONTEXT - 1)) for row in range(rows)]
    return TokenDataset.from_pieces(pieces, context=CONTEXT, bos=0, masked=(0,))


def read(*sources, **functions):
    return read_own_labels(tuple(map(str, sources)), functions, vocabulary(), some_rows())


def members(own):
    return {name: np.flatnonzero(mask).tolist() for name, mask in own.tokens.items()}


def write(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


PYTHON = """
from string import capwords
import os

def animal(s): return s.strip() in ("cat", "dog")
def loud(s): return "!" in s
short = lambda s: len(s) < 3
def _private(s): return True
limit = 3
"""


def test_every_public_function_of_a_python_file_is_a_label(tmp_path):
    own = read(write(tmp_path, "mine.py", PYTHON))
    assert members(own) == {"animal": [1, 2, 3], "loud": [4], "short": [4, 5]}


def test_one_function_of_a_python_file_can_be_named(tmp_path):
    own = read(f"{write(tmp_path, 'mine.py', PYTHON)}:loud")
    assert members(own) == {"loud": [4]}


@pytest.mark.parametrize("name", ["sets.yaml", "sets.yml", "sets.json"])
def test_sets_of_strings_hold_with_and_without_the_space_around_them(tmp_path, name):
    own = read(write(tmp_path, name, json.dumps({"cats": ["cat"], "spaced": [" cat", "!"], "digits": ["12"]})))
    assert members(own) == {"cats": [1, 2], "spaced": [1, 4], "digits": [5]}


def test_functions_in_memory_are_labels_and_never_hold_for_special_tokens():
    asked = []
    own = read(everything=lambda s: asked.append(s) or True, nothing=lambda s: None)
    assert members(own) == {"everything": [1, 2, 3, 4, 5, 6], "nothing": []}
    assert "<s>" not in asked


def test_spans_hold_from_start_up_to_end(tmp_path):
    table = pl.DataFrame(
        {"row": [3, 0, 3, 5], "start": [5, 1, 1, 7], "end": [7, 2, 3, 8], "label": ["quote", "quote", "quote", "last"]}
    )
    table.write_parquet(tmp_path / "spans.parquet")
    own = read(tmp_path / "spans.parquet")
    assert {name: spans.tolist() for name, spans in own.spans.items()} == {
        "last": [[5, 7, 8]],
        "quote": [[0, 1, 2], [3, 1, 3], [3, 5, 7]],
    }
    (column,) = build_labels((), some_rows(), vocabulary(), own=own).columns
    assert [label.name for label in column.labels] == ["last", "quote"]
    codes = column.codes(np.array([5, 3]))
    expected = np.full((2, CONTEXT, 2), -1)
    expected[0, 7, 0] = 0
    expected[1, [1, 2, 5, 6], 1] = 1
    np.testing.assert_array_equal(codes, expected)


@pytest.mark.parametrize(("name", "text", "match"), [
    ("bad.py", "def f(s:", "cannot be run"),
    ("bad.py", "raise RuntimeError('no')", "RuntimeError: no"),
    ("bad.py", "import os\nlimit = 3\n", "no function"),
    ("bad.py", "def f(s): return s[1]", "label f: its function failed"),
    ("bad.py", "def f(a, b): return True", "TypeError"),
    ("bad.yaml", "a: [b\n", "not readable"),
    ("bad.yaml", "", "not names and lists of strings"),
    ("bad.yaml", "- cat\n", "not names and lists of strings"),
    ("bad.yaml", "a: cat\n", "not names and lists of strings"),
    ("bad.yaml", "a: [12, yes]\n", "quote numbers and yes/no"),
    ("bad.json", '{"a": ["unknown"]}', "none of its strings is a token"),
    ("bad.json", '{"a": ["<s>"]}', "none of its strings is a token"),
    ("bad.parquet", "no parquet", "not readable"),
    ("bad.txt", "cat", "not a file of labels"),
])  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(tmp_path, name, text, match):
    with pytest.raises(LabelError, match=match):
        read(write(tmp_path, name, text))


def test_a_function_that_is_not_in_the_file_is_named(tmp_path):
    with pytest.raises(LabelError, match="no function quiet"):
        read(f"{write(tmp_path, 'mine.py', PYTHON)}:quiet")


@pytest.mark.parametrize("name", ["none.py", "none.py:f", "none.yaml", "none.parquet"])
def test_a_file_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(MissingFileError, match="no such file"):
        read(tmp_path / name)


def test_two_labels_of_one_name_are_refused(tmp_path):
    with pytest.raises(LabelError, match="two labels of the name 'loud'"):
        read(write(tmp_path, "mine.py", PYTHON), loud=lambda s: True)


@pytest.mark.parametrize(("change", "match"), [
    ({"row": [12]}, "outside the text"),
    ({"row": [-1]}, "outside the text"),
    ({"start": [-1]}, "outside the text"),
    ({"end": [1]}, "outside the text"),
    ({"end": [9]}, "outside the text"),
    ({"start": [None]}, "outside the text|not spans"),
    ({"label": [None]}, "outside the text"),
    ({"row": ["1"]}, "not spans of tokens"),
    ({"end": [2.5]}, "not spans of tokens"),
])  # fmt: skip
def test_spans_that_cannot_be_are_refused(tmp_path, change, match):
    columns = {"row": [1], "start": [1], "end": [8], "label": ["x"]}
    good = pl.DataFrame(columns)
    good.write_parquet(tmp_path / "good.parquet")
    assert list(read(tmp_path / "good.parquet").spans) == ["x"]
    bad = pl.concat([good, pl.DataFrame(columns | change)], how="vertical_relaxed")
    bad.write_parquet(tmp_path / "bad.parquet")
    with pytest.raises(LabelError, match=match):
        read(tmp_path / "bad.parquet")


def test_spans_without_a_column_are_refused(tmp_path):
    pl.DataFrame({"row": [1], "start": [1], "label": ["x"]}).write_parquet(tmp_path / "bad.parquet")
    with pytest.raises(LabelError, match="not spans of tokens"):
        read(tmp_path / "bad.parquet")


def topical(rows_of_each, words_of_each=40):
    """Rows about the sea, rows about the court, and words that stand in both."""
    chooser = np.random.default_rng(0)
    letters = [a + b for a in "abcdefghij" for b in "klmnopqrst"]
    sea, court, common = ([f" {topic}{s}" for s in letters[:words_of_each]] for topic in ("sea", "court", "the"))
    strings = ["<s>", *sea, *court, *common]
    pieces = []
    for row in range(2 * rows_of_each):
        own = chooser.integers(0, words_of_each, 12) + 1 + words_of_each * (row % 2)
        shared = chooser.integers(0, words_of_each, 12) + 1 + 2 * words_of_each
        pieces.append(("", chooser.permutation(np.concatenate([own, shared]))))
    tokens = TokenDataset.from_pieces(pieces, context=25, bos=0, masked=(0,))
    return tokens, Vocabulary(tuple(strings), np.arange(len(strings)) == 0)


def test_two_planted_vocabularies_are_found_as_topics():
    tokens, words = topical(60)
    topics = find_topics(tokens, words, 2)
    about = [{words.strings[token].strip()[:3] for token in members} for members in topics.values()]
    assert sorted(about, key=str) == [{"cou"}, {"sea"}]
    assert all(len(members) > 20 for members in topics.values())
    for name, members in topics.items():
        first = name.removeprefix("topic ").split(" ")
        assert len(first) == 3
        assert {f" {word}" for word in first} <= {words.strings[token] for token in members}
    assert find_topics(tokens, words, 2) == topics


@pytest.mark.parametrize(("rows", "n_topics"), [(2, 20), (60, 1), (60, 0)])
def test_a_tiny_text_has_no_topics(rows, n_topics):
    assert find_topics(*topical(rows), n_topics) == {}
