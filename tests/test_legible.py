"""Text from outside, made fit to be shown."""

import unicodedata

import pytest

from universal_neurons.legible import FILE_BYTES, file_names, first_line, legible, legible_lines, shortened


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("\x1b[31mred", "␛[31mred"),
        ("\x9b31m", "\\u009b31m"),
        ("a\nb\tc", "a⏎b⇥c"),
        ("\0x", "␀x"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\ud83d cut", "\\ud83d cut"),
        ("one\u2028two", "one\\u2028two"),
        ("[bold] $x$ ünï 😀", "[bold] $x$ ünï 😀"),
        ("\U000e0001 tag", "\\U000e0001 tag"),
        ("\uffff\ufdd0\U0001ffff", "\\uffff\\ufdd0\\U0001ffff"),
        (17, "17"),
    ],
)
def test_what_cannot_be_seen_is_shown_by_a_sign(given, shown):
    assert legible(given) == shown


def test_no_character_at_all_stays_a_control_or_format_character():
    unseen = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    every = "".join(c for c in map(chr, range(0x110000)) if unicodedata.category(c) in unseen)
    assert len(every) > 2000
    assert {unicodedata.category(c) for c in legible(every)}.isdisjoint(unseen)


def test_lines_are_kept_where_they_are_wanted():
    assert legible_lines("a\x1b\nb\r\n") == "a␛\nb␍\n"


def test_long_text_keeps_its_ends():
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghijk", 10) == "abcdef…ijk"
    assert all(len(shortened("x" * 1000, n)) == n for n in range(1, 20))


def test_files_are_named_after_any_names():
    names = [
        "seed-1",
        "a/b",
        "a-b",
        "A-B",
        "a-b-2",
        "..",
        "",
        "\0",
        "\x1b",
        "\ud83d",
        "w" * 300,
        "w" * 301,
        "\\",
        "日本" * 99,
    ]
    parts = file_names(names)
    assert parts["seed-1"] == "seed-1"
    assert parts["a/b"] == "a-b"
    assert list(parts) == names
    assert len({part.casefold() for part in parts.values()}) == len(names)
    for part in parts.values():
        assert part.isprintable()
        assert not set(part) & set("/\\")
        assert len(part.encode()) <= FILE_BYTES + 3


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError("one\ntwo"), "one"), (KeyError(), "KeyError"), (OSError(" \n "), "OSError"), (ValueError(3), "3")],
)
def test_the_first_line_of_an_error_is_never_empty(error, line):
    assert first_line(error) == line
