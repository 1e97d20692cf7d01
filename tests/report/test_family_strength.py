"""How strong families are, counted in plain Python."""

import polars as pl

from universal_neurons.report.family_strength import strength_of

NAN = float("nan")
#      model, family, label, explained, by the second
ROWS = [
    ("b", "unigram", "the", 0.4, 0.1),
    ("a", "unigram", "the", 0.6, 0.6),
    ("a", "unigram", "of", 0.2, 0.181),
    ("a", "unigram", "on", 0.3, 0.2699),
    ("a", "unigram", "at", 0.5, 0.499999),
    ("a", "position", "the", 0.04, 0.04),
    ("a", "position", "position 1", 0.7, NAN),
    ("a", "unexplained", "in", 0.03, 0.03),
    ("a", None, None, NAN, NAN),
]


NEURONS = pl.DataFrame(
    ROWS, schema=["model", "family", "label", "variance_reduction", "variance_reduction_second"], orient="row"
)


def test_families_by_hand():
    assert strength_of(NEURONS, ["a", "b"]).rows() == [
        ("a", "unigram", 4, 0.4, 1, 2, 3),
        ("a", "position", 2, 0.7, 1, 0, 0),
        ("a", "unexplained", 1, None, None, None, None),
        ("b", "unigram", 1, 0.4, 0, 0, 0),
    ]
    assert strength_of(NEURONS, ["b", "a"])["model"].to_list() == ["b", "a", "a", "a"]


def test_a_study_of_an_earlier_version_does_not_know_ties():
    older = strength_of(NEURONS.drop("variance_reduction_second"), ["a", "b"])
    assert older.row(0) == ("a", "unigram", 4, 0.4, 1, None, None)
