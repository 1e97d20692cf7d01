"""Tables of explanations and scores: what stays, in which order, which is the best, how much counterparts carry."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from universal_neurons.explanations import (
    ANOTHER,
    COUNTERPART,
    EMPTY,
    OWN,
    RANDOM,
    SCHEMA,
    best_of,
    in_order,
    sources_table,
    still_true,
    with_explanations,
    with_scores,
)

NEURONS = pl.DataFrame(
    [{"model": model, "layer": layer, "neuron": neuron} for model in "ab" for layer in (0, 1) for neuron in (0, 1, 2)],
    {"model": pl.String, "layer": pl.Int32, "neuron": pl.Int32},
)
EXPLANATIONS = pl.Schema(NEURONS.schema | {"source": pl.String, "explanation": pl.String})


def said(*rows):
    """Rows of `explanations`: place (model, layer, neuron), source, sentence."""
    return pl.DataFrame([(*place, *rest) for place, *rest in rows], EXPLANATIONS, orient="row")


def scored(place, score, source="m", use=OWN, of=None, method="detection", scorer="judge", chance=0.1):
    model, layer, neuron = place
    row = dict.fromkeys(SCHEMA) | {
        "model": model, "layer": layer, "neuron": neuron, "explanation": of or f"{model}/L{layer}.{neuron}",
        "source": source, "use": use, "method": method, "scorer": scorer, "base_rate": chance,
    }  # fmt: skip
    measure = "rho" if method == "simulation" else "auprc"
    return (
        row if score is None else row | {measure: score, f"{measure}_low": score - 0.1, f"{measure}_high": score + 0.1}
    )


def table(*rows):
    return pl.DataFrame(list(rows), SCHEMA)


A, B, C = ("a", 0, 0), ("a", 0, 1), ("b", 1, 2)


def test_others_take_the_place_of_the_same_unit_and_source_alone():
    old = said((A, "labels", "one"), (A, "m", "two"), (B, "m", "three"))
    every = with_explanations(old, said((A, "m", "new"), (C, "other", "four")))
    assert set(every.rows()) == {
        (*A, "labels", "one"), (*A, "m", "new"), (*B, "m", "three"), (*C, "other", "four"),
    }  # fmt: skip
    before = table(scored(A, 0.5), scored(A, 0.5, scorer="second"), scored(A, 0.2, method="fuzzing"))
    after = with_scores(before, table(scored(A, 0.9)))
    assert sorted(after["auprc"].to_list()) == [0.2, 0.5, 0.9]
    assert after.schema == pl.Schema(SCHEMA)


def test_scores_of_what_is_not_said_any_more_go():
    """Wherever they were tried: on the unit, on counterparts, as another unit's explanation."""
    old = said((A, "m", "one"), (B, "m", "two"), (B, "labels", "three"))
    rows = [
        scored(A, 0.5), scored(C, 0.4, use=COUNTERPART, of="a/L0.0"), scored(B, 0.1, use=ANOTHER, of="a/L0.0"),
        scored(B, 0.6), scored(B, 0.7, "labels"), scored(A, 0.1, EMPTY, EMPTY, EMPTY),
    ]  # fmt: skip
    kept = still_true(table(*rows), old, said((A, "m", "another one"), (B, "m", "two")))
    assert kept.select("model", "explanation", "source").rows() == [("a", "a/L0.1", "m"), ("a", EMPTY, EMPTY)]
    assert still_true(table(*rows), old, old).equals(table(*rows))


def test_neurons_keep_their_order_and_the_best_scored_comes_first():
    explanations = said(
        (C, "m", "c"), (A, "labels", "by rule"), (A, "m", "bad"), (A, "k", "good"), (B, "m", "x"), (B, "labels", "y")
    )
    scores = table(
        scored(A, 0.3), scored(A, 0.8, "k"), scored(A, 0.5, "labels"), scored(A, 0.99, "m", method="fuzzing")
    )
    ordered = in_order(explanations, scores, NEURONS)
    assert [row[3] for row in ordered.rows()] == ["k", "labels", "m", "labels", "m", "m"]
    best = best_of(ordered, scores)
    assert best.select("model", "neuron", "source", "score", "chance").rows() == [
        ("a", 0, "k", 0.8, 0.1), ("a", 1, "labels", None, None), ("b", 2, "m", None, None),
    ]  # fmt: skip
    assert in_order(explanations, table(), NEURONS)["source"].to_list() == ["labels", "m", "k", "labels", "m", "m"]


def test_the_scorer_that_was_asked_about_most_decides_and_simulation_only_where_nothing_else():
    explanations = said((A, "m", "one"), (A, "k", "two"))
    few = [scored(A, 0.9, "m", scorer="few")]
    many = [scored(A, 0.2, "m", scorer="many"), scored(A, 0.4, "k", scorer="many")]
    assert best_of(explanations, table(*few, *many))["source"].to_list() == ["k"]
    simulated = [scored(A, 0.9, "m", method="simulation"), scored(A, None, "k")]
    (row,) = best_of(explanations, table(*simulated)).rows(named=True)
    assert (row["method"], row["score"], row["chance"]) == ("simulation", 0.9, 0.0)


def test_what_a_source_is_worth_and_how_much_its_counterparts_carry():
    """Against sums by hand: counterparts have half of what own units have above chance, random units nothing."""
    rng = np.random.default_rng(0)
    own = 0.6 + 0.3 * rng.random(12)
    places = [("a", 0, n) for n in range(12)]
    rows = []
    for place, score in zip(places, own):
        name = f"a/L0.{place[2]}"
        rows += [
            scored(place, score),
            scored(place, 0.1, "m", ANOTHER, "a/L9.9"),
            scored(place, 0.12, EMPTY, EMPTY, EMPTY),
        ]
        half = 0.1 + (score - 0.1) / 2
        rows += [
            scored((other, 1, place[2]), half + way, "m", COUNTERPART, name)
            for other, way in (("b", 0.05), ("c", -0.05))
        ]
        rows += [scored((other, 0, place[2]), 0.1, "m", RANDOM, name) for other in "bc"]
    explanations = said(*((place, "m", "x") for place in places), (A, "labels", "y"))
    measured, unscored = sources_table(explanations, table(*rows)).rows(named=True)
    assert unscored["source"] == "labels"
    assert (unscored["units"], unscored["score"]) == (1, None)
    assert measured["units"] == 12
    low, high = stats.t.interval(0.95, 11, own.mean(), stats.sem(own))
    assert [measured[name] for name in ("score", "score_low", "score_high")] == pytest.approx([own.mean(), low, high])
    assert [measured[name] for name in ("chance", "another", "empty", "random")] == pytest.approx([0.1, 0.1, 0.12, 0.1])
    assert measured["counterpart"] == pytest.approx((0.1 + (own - 0.1) / 2).mean())
    assert measured["carried"] == pytest.approx(0.5)
    assert measured["carried_low"] == pytest.approx(0.5) == pytest.approx(measured["carried_high"])
    at_chance = [row | {"auprc": 0.1 + 0.02 * (n % 3 - 1)} for n, row in enumerate(rows)]
    assert sources_table(explanations, table(*at_chance))["carried"][0] is None


def test_label_sentences_are_held_against_others_on_the_same_units():
    rows = [scored(place, score) for place, score in zip((A, B), (0.9, 0.7))]
    rows += [scored(place, score, "labels") for place, score in zip((A, C), (0.4, 0.2))]
    rows += [scored(A, 0.3, "labels", scorer="second"), scored(A, 0.6, "labels", method="fuzzing")]
    explanations = said((A, "m", "x"), (A, "labels", "y"))
    found = sources_table(explanations, table(*rows)).rows(named=True)
    worth = {(row["source"], row["scorer"], row["method"]): (row["score"], row["label"]) for row in found}
    assert worth["m", "judge", "detection"] == pytest.approx((0.8, 0.4))
    assert worth["labels", "judge", "detection"] == pytest.approx((0.3, 0.3))
    assert worth["labels", "second", "detection"] == pytest.approx((0.3, 0.3))
