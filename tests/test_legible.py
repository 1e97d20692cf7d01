"""Text from outside, made fit to be shown."""

import unicodedata

import pytest

from universal_neurons.legible import legible, legible_lines


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
        (17, "17"),
    ],
)
def test_what_cannot_be_seen_is_shown_by_a_sign(given, shown):
    assert legible(given) == shown


def test_no_character_at_all_stays_a_control_or_format_character():
    every = legible("".join(map(chr, range(0x110000))))
    assert {unicodedata.category(c) for c in every}.isdisjoint({"Cc", "Cf", "Cs", "Zl", "Zp"})


def test_lines_are_kept_where_they_are_wanted():
    assert legible_lines("a\x1b\nb\r\n") == "a␛\nb␍\n"
