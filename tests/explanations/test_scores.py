"""Planted units: the true sentence scores, wrong ones do not; what is missing is no score."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from conftest import tiny_model
from described import require_described
from oracle import Oracle, PlantedSource
from test_correlation import CONTEXT, some_tokens

from universal_neurons.explanations import (
    ANOTHER,
    EMPTY,
    FEWEST,
    OWN,
    SCHEMA,
    YES,
    Kind,
    Trial,
    controls,
    draw_windows,
    score,
)

WIDTH = 16
STRINGS = [f"t{token}" for token in range(1024)]
RARE, OTHER = range(100, 105), range(200, 205)  # of 1 024 tokens: each less than 1 % of text
YES_OR_NO = (Kind.DETECTION, Kind.FUZZING)


def graded(tokens):
    """A unit that does most on the last token of a class, least on its first."""
    return lambda ids: np.where(np.isin(ids, list(tokens)), 4 + 0.2 * (ids - tokens[0]), 0.02 * (ids % 7))


def fires_on(tokens):
    return lambda string: float(int(string[1:]) in tokens)


@pytest.fixture(scope="module")
def tokens():
    return some_tokens(1000)


@pytest.fixture(scope="module")
def source():
    """Units on a rare class, on another, and one that is 1 on 3 % of tokens."""
    return PlantedSource(tiny_model(), [graded(RARE), graded(OTHER), lambda ids: ids % 33 == 1])


def draw(source, tokens, units, drawn, seed=0):
    chosen, stretches = tokens.split()
    heldout = np.concatenate(stretches)
    return draw_windows([source], {source.name: units}, tokens, chosen, heldout, drawn=drawn, width=WIDTH, seed=seed)


@pytest.fixture(scope="module")
def planted(source, tokens):
    return draw(source, tokens, (0, 1, 2), (60, 40, 40, 40))[source.name]


ORACLE = {"rare": fires_on(RARE), "other": fires_on(OTHER), "often": lambda string: float(int(string[1:]) % 33 == 1)}


def scored(trials, kinds=YES_OR_NO, **oracle):
    return score(trials, Oracle(ORACLE, **oracle), STRINGS, kinds)


def test_a_class_is_what_the_unit_fires_on(planted):
    for unit, (low, high) in zip(planted, ((100, 105), (200, 205))):
        assert (unit.ids[unit.fires] >= low).all()
        assert (unit.ids[unit.fires] < high).all()
    assert (planted[2].ids[planted[2].fires] % 33 == 1).all()
    assert planted[2].fires.any()


@pytest.mark.parametrize(("unit", "truth"), [(0, "rare"), (1, "other"), (2, "often")])
def test_the_true_sentence_scores(planted, unit, truth):
    table = scored([Trial("a", "us", truth, planted[unit])])
    require_described(table, "scores", "scores")
    assert (table["auprc"] >= 0.95).all()
    assert (table["balanced_accuracy"] >= 0.95).all()
    assert (table["balanced_accuracy_high"] <= 1).all()
    (row,) = scored([Trial("a", "us", truth, planted[unit])], [Kind.SIMULATION]).rows(named=True)
    assert row["rho"] > 0.95
    assert row["rho_low"] < row["rho"] < row["rho_high"] or unit == 2


@pytest.mark.parametrize("wrong", ["other", "nonsense", ""])
def test_a_wrong_sentence_is_at_chance(planted, wrong):
    detection, fuzzing = scored([Trial("a", "us", wrong, planted[0])]).rows(named=True)
    for row, base in ((detection, planted[0].sizes[YES].sum() / planted[0].sizes.sum()), (fuzzing, 0.5)):
        assert row["base_rate"] == pytest.approx(base)
        assert row["balanced_accuracy_low"] <= 0.5 <= row["balanced_accuracy_high"]
        assert row["auprc_low"] <= base <= row["auprc_high"]
    (simulated,) = scored([Trial("a", "us", wrong, planted[0])], [Kind.SIMULATION]).rows(named=True)
    assert simulated["rho"] is None if wrong != "other" else abs(simulated["rho"]) < 0.1


def test_one_that_memorises_its_evidence_is_at_chance_on_new_text(planted, tokens):
    """It knows every window of the rows that choose by heart, and says no to any other text."""
    chosen, _ = tokens.split()
    evidence = {tuple(row[at : at + WIDTH]) for row in tokens.ids(chosen) for at in range(0, CONTEXT, WIDTH)}

    class Parrot(Oracle):
        def probabilities(self, questions):
            return np.array([float(tuple(int(t[1:]) for t in q.tokens) in evidence) for q in questions])

    (row,) = score([Trial("a", "us", "by heart", planted[0])], Parrot({}), STRINGS, [Kind.DETECTION]).rows(named=True)
    assert row["balanced_accuracy"] == pytest.approx(0.5)
    assert row["auprc"] == pytest.approx(row["base_rate"])


def test_marks_are_as_many_and_right_in_half_of_the_windows(planted):
    oracle = Oracle(ORACLE)
    score([Trial("a", "us", "rare", planted[0])], oracle, STRINGS, [Kind.FUZZING])
    rightly = [{int(q.tokens[m][1:]) in RARE for m in q.marks} for q in oracle.asked]
    assert all(len(each) == 1 for each in rightly)  # all of a window's marks right, or all wrong
    firing = YES[planted[0].stratum].sum()
    assert len(oracle.asked) == firing
    assert abs(sum(True in each for each in rightly) - firing / 2) <= 1
    many = sorted(len(q.marks) for q in oracle.asked)
    assert many == sorted(planted[0].fires.sum(1)[YES[planted[0].stratum]])


def test_a_window_that_fires_throughout_is_marked_wrongly_elsewhere(planted):
    unit = planted[0]
    busy = replace(unit, size=np.where(YES[unit.stratum][:, None] & np.isfinite(unit.size), 9.0, unit.size))
    oracle = Oracle(ORACLE)
    score([Trial("a", "us", "rare", busy)], oracle, STRINGS, [Kind.FUZZING])
    firing = [busy.tokens(w, STRINGS) for w in np.flatnonzero(YES[busy.stratum]).tolist()]
    wrongly = [q for q in oracle.asked if q.tokens not in firing]
    assert 0 < len(wrongly) <= len(firing) / 2
    assert {len(q.marks) for q in wrongly} <= set(busy.fires.sum(1).tolist())
    assert not any(int(q.tokens[m][1:]) in RARE for q in wrongly for m in q.marks)


def test_all_explanations_of_a_unit_are_asked_about_the_same(planted):
    oracle = Oracle(ORACLE)
    score([Trial("a", "us", "rare", planted[0]), Trial("b", "us", "other", planted[0])], oracle, STRINGS, YES_OR_NO)
    half = len(oracle.asked) // 2
    assert [(q.tokens, q.marks) for q in oracle.asked[:half]] == [(q.tokens, q.marks) for q in oracle.asked[half:]]


def test_a_missing_answer_is_missing(planted):
    """A tenth of them lost: counted, and the estimate stays what it is; nearly all lost: no score."""
    trial = [Trial("a", "us", "rare", planted[0])]
    kinds = tuple(Kind)
    some = scored(trial, kinds, lost=lambda number: number % 10 == 0)
    asked = some["n_windows"].sum()
    assert some["missing"].sum() == -(-asked // 10)
    assert (some.filter(pl.col("method") != "simulation")["auprc"] >= 0.95).all()
    few = scored(trial, kinds, lost=lambda number: number % 40 > 0)
    assert (
        few.select("auprc", "balanced_accuracy", "rho", "auprc_low", "rho_high").null_count().sum_horizontal()[0] == 15
    )
    none = scored(trial, kinds, lost=lambda number: True)
    assert none["missing"].to_list() == none["n_windows"].to_list()
    assert none["certain"].to_list() == [0, 0, None]


def test_a_unit_that_hardly_fires_has_no_score(planted):
    unit = planted[0]
    kept = ~YES[unit.stratum] | (np.cumsum(YES[unit.stratum]) < FEWEST)
    parts = {name: getattr(unit, name)[kept] for name in ("row", "start", "ids", "size", "stratum")}
    table = scored([Trial("a", "us", "rare", replace(unit, **parts))], tuple(Kind))
    assert table["auprc"].null_count() == 3
    assert table["rho"].null_count() == 3


def test_controls_are_rows_of_the_same_table(planted):
    trials = [
        Trial("a", "us", "rare", planted[0]),
        Trial("b", "us", "other", planted[1]),
        Trial("a", "labels", "rare", planted[0]),
    ]
    made = controls(trials)
    assert [(t.explanation, t.text, t.use, t.windows.neuron) for t in made] == [
        ("b", "other", ANOTHER, 0),
        ("a", "rare", ANOTHER, 1),  # of labels there is no other
        (EMPTY, "", EMPTY, 0),
        (EMPTY, "", EMPTY, 1),
    ]
    table = scored(trials + made, [Kind.DETECTION])
    assert table.schema == pl.Schema(SCHEMA)
    assert table["use"].to_list() == [OWN] * 3 + [ANOTHER] * 2 + [EMPTY] * 2
    assert (table.filter(use=OWN)["balanced_accuracy"] > 0.95).all()
    assert (table.filter(pl.col("use") != OWN)["balanced_accuracy"] < 0.6).all()


def test_answers_outside_their_range_are_no_answers(planted):
    class Wild(Oracle):
        def probabilities(self, questions):
            return np.full(len(questions), 1.5)

    with pytest.raises(AssertionError, match="outside 0 to 1"):
        score([Trial("a", "us", "rare", planted[0])], Wild({}), STRINGS, [Kind.DETECTION])


def test_drawn_windows_stand_for_the_whole_text(source, tokens):
    """A scorer that is right of most tokens, asked about all held-out windows, and about some of them over and over."""
    fair = {"fair": lambda string: 0.6 * hash_of(string) + 0.4 * fires_on(RARE)(string)}

    def scores(drawn, seed=0):
        ((unit,),) = draw(source, tokens, (0,), drawn, seed).values()
        kinds = [Kind.DETECTION, Kind.SIMULATION]
        return score([Trial("a", "us", "fair", unit)], Oracle(fair), STRINGS, kinds).rows(named=True)

    whole, *some = [scores((10**4,) * 4), *(scores((40, 40, 12, 12), seed) for seed in range(12))]
    for kind, measure in ((0, "auprc"), (0, "balanced_accuracy"), (1, "rho")):
        truth = whole[kind][measure]
        assert whole[kind][f"{measure}_low"] == truth == whole[kind][f"{measure}_high"]
        value, low, high = (np.array([rows[kind][f"{measure}{end}"] for rows in some]) for end in ("", "_low", "_high"))
        assert abs(value.mean() - truth) < 4 * value.std() / np.sqrt(len(value))
        assert ((low <= truth) & (truth <= high)).sum() >= 9


def hash_of(string: str) -> float:
    """A number from 0 to 1 that has nothing to do with what a token is."""
    return int(string[1:]) * 611 % 1000 / 1000
