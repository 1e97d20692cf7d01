"""Labels of one's own from files and functions, with what is wrong about them said by name; topics of a corpus."""

import json
import os

import numpy as np
import polars as pl
import pytest

from universal_neurons import TokenDataset
from universal_neurons.errors import LabelError, MissingFileError
from universal_neurons.labels import build_labels, own_labels, read_own_labels
from universal_neurons.labels.topics import find_topics
from universal_neurons.text import Vocabulary

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


HOSTILE = {
    "an exit": "import sys\nsys.exit(0)",
    "an exit with words": "raise SystemExit('done')",
    "an exit later": "import sys\ndef f(s): sys.exit(0)",
    "a recursion": "def f(s): return f(s)",
    "a recursion at once": "def f(): f()\nf()",
    "an exception of its own": "class Odd(BaseException): pass\nraise Odd('x')",
    "an exception without text": "class Odd(Exception):\n    def __str__(self): raise ValueError\nraise Odd()",
    "an exception whose text exits": "class Odd(Exception):\n    def __str__(self): raise SystemExit(0)\nraise Odd()",
    "a long exception": "raise ValueError('x' * 10**7)",
    "an answer that is none": "class Odd:\n    def __bool__(self): raise SystemExit(0)\ndef f(s): return Odd()",
    "an answer of many": "import numpy\ndef f(s): return numpy.ones(3)",
    "an object that exits when looked at": "class Odd:\n    __class__ = property(lambda s: exit(0))\nodd = Odd()\ndef _f(s): 1",
    "a generator": "def f(s): yield True",
    "a coroutine": "async def f(s): return True",
    "an end of a generator": "raise GeneratorExit",
    "no memory": "def f(s): return ' ' * (1 << 62)",
    "not UTF-8": b"x = '\xff'",
    "a NUL": b"x = 1\0",
    "too deep to be read": "x = " + "(" * 5000,
    "a missing import": "import no_such_module_anywhere",
    "a process left": "import os\nos._exit(0)",
    "a process left later": "from os import _exit\ndef f(s): _exit(0)",
    "a process replaced": "import os\ndef f(s): os.execvp('true', ['true'])",
    "a process aborted": "import os\nos.abort()",
    "an error of ours": "from universal_neurons.errors import LabelError\nraise LabelError('x')",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_whatever_a_users_code_raises_its_file_is_named(tmp_path, case):
    content = HOSTILE[case]
    path = tmp_path / "mine.py"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LabelError, match=r"mine\.py: ") as refused:
        read(path)
    assert len(str(refused.value)) < 800


def test_an_interrupt_passes(tmp_path):
    def interrupted(string):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read(interrupted=interrupted)
    with pytest.raises(KeyboardInterrupt):
        read(write(tmp_path, "mine.py", "raise KeyboardInterrupt"))


def test_answers_are_taken_for_their_truth():
    own = read(numbers=lambda s: np.bool_(s == "12"), matches=lambda s: {"cat": "found"}.get(s))
    assert members(own) == {"numbers": [5], "matches": [2]}


@pytest.mark.parametrize("name", ["", " ", "a\0b", "two\nlines", "\x1b[2J", "\ud800", "x" * 5000, "\u2028"])
def test_a_name_that_no_table_can_hold_is_refused(tmp_path, name):
    with pytest.raises(LabelError, match="a label cannot be called") as refused:
        read(write(tmp_path, "sets.json", json.dumps({name: ["cat"]})))
    assert len(str(refused.value)) < 500
    with pytest.raises(LabelError, match="a label cannot be called"):
        read(**{name: lambda s: True})


def test_long_and_foreign_names_are_names(tmp_path):
    names = ["y" * 1100, "boom 💥", "größer", "a\u00a0b", "[bold]", "$x$"]
    own = read(write(tmp_path, "sets.json", json.dumps({name: ["cat"] for name in names})))
    assert list(own.tokens) == names


@pytest.mark.parametrize("text", [json.dumps({"a": ["cat"]}, indent="\t"), '\ufeff{"a": ["c\\u0061t"]}'])
def test_json_is_read_as_json(tmp_path, text):
    assert members(read(write(tmp_path, "sets.json", text))) == {"a": [1, 2]}


@pytest.mark.parametrize(("name", "text", "match"), [
    ("bad.json", '{"a": ["cat"], "a": ["dog"]}', "a key comes twice"),
    ("bad.json", "a: [cat]", "not readable: not JSON"),
    ("bad.json", '{"a": ' + "[" * 100_000, "not readable"),
    ("bad.json", '{"a": []}', "none of its strings is a token"),
    ("bad.json", '{"a": ["' + "c" * 10**6 + '"]}', "none of its strings is a token"),
    ("bad.json", '["' + "c" * 10**6 + '"]', "not names and lists of strings"),
    ("bad.json", "{}", "not names and lists of strings"),
    ("bad.yaml", "a: &a [cat]\nb: *a\n", "anchor or alias"),
    ("bad.yaml", "a: [cat]\na: [dog]\n", "a key comes twice"),
    ("bad.yaml", "a: " + "[" * 100_000, "not readable"),
    ("bad.yaml", "true: [cat]\n", "not names and lists of strings"),
    ("bad.yaml", "a: [\x01]", "not readable"),
])  # fmt: skip
def test_sets_that_cannot_be_are_refused_shortly(tmp_path, name, text, match):
    with pytest.raises(LabelError, match=match) as refused:
        read(write(tmp_path, name, text))
    assert len(str(refused.value)) < 1500


def test_sets_that_are_not_utf8_are_refused(tmp_path):
    (tmp_path / "bad.yaml").write_bytes(b"a: [caf\xe9]")
    with pytest.raises(LabelError, match="not readable"):
        read(tmp_path / "bad.yaml")


def test_label_files_are_taken_literally(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    good = pl.DataFrame({"row": [1], "start": [1], "end": [8], "label": ["x"]})
    good.write_parquet(tmp_path / "s1.parquet")
    with pytest.raises(MissingFileError, match="no such file"):
        read(tmp_path / "s*.parquet")
    good.with_columns(label=pl.lit("y")).write_parquet(tmp_path / "s[1].parquet")
    assert list(read(tmp_path / "s[1].parquet").spans) == ["y"]
    write(tmp_path, "m[1].py", "def f(s): return True")
    write(tmp_path, "s[1].JSON", '{"g": ["cat"]}')
    assert list(read("~/s1.parquet").spans) == ["x"]
    assert list(read("~/m[1].py", "~/s[1].JSON").tokens) == ["f", "g"]
    for place in ("w" * 300 + ".py", "~nosuchuser/a.yaml"):
        with pytest.raises(MissingFileError, match="cannot be a path"):
            read(place)
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.json").mkdir()
    for place in ("pipe.yaml", "folder.json"):
        with pytest.raises(MissingFileError, match="no such file"):
            read(tmp_path / place)


@pytest.mark.parametrize(("columns", "match"), [
    ({"row": [2**64 - 1]}, "outside the text"),
    ({"end": [2**63]}, "outside the text"),
    ({"label": [["x"]]}, "not readable"),
    ({"row": []}, "no spans"),
    ({"label": [None]}, "outside the text"),
    ({"start": [True]}, "not spans of tokens"),
    ({"label": ["a\nb"]}, "cannot be called"),
])  # fmt: skip
def test_odd_spans_are_refused(tmp_path, columns, match):
    columns = {"row": [1], "start": [1], "end": [8], "label": ["x"]} | columns
    n = min(map(len, columns.values()))
    pl.DataFrame({name: values[:n] for name, values in columns.items()}).write_parquet(tmp_path / "odd.parquet")
    with pytest.raises(LabelError, match=match):
        read(tmp_path / "odd.parquet")


def test_spans_of_other_types_are_the_same_spans(tmp_path):
    table = pl.DataFrame({"row": [1, 3], "start": [1, 2], "end": [8, 4], "label": ["5", "7"]})
    expected = None
    for kind, label in ((pl.UInt8, pl.String), (pl.UInt64, pl.Categorical), (pl.Int16, pl.Int32)):
        changed = table.with_columns(pl.col("row", "start", "end").cast(kind), pl.col("label").cast(label))
        changed.write_parquet(tmp_path / "spans.parquet")
        spans = {name: rows.tolist() for name, rows in read(tmp_path / "spans.parquet").spans.items()}
        expected = expected or spans
        assert spans == expected == {"5": [[1, 1, 8]], "7": [[3, 2, 4]]}


def test_too_many_spans_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(own_labels, "MOST_SPANS", 3)
    pl.DataFrame({"row": [1] * 4, "start": [1] * 4, "end": [2] * 4, "label": ["x"] * 4}).write_parquet(
        tmp_path / "a.parquet"
    )
    with pytest.raises(LabelError, match="too many spans"):
        read(tmp_path / "a.parquet")
