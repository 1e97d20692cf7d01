"""The report's section on explanations: what it says is what the scores say; nothing where nobody scored."""

import re
from html import unescape

import numpy as np
import pytest
from hand_scores import AUTHOR, COUNT, SAID, SCORER, own_score, there_score, with_hand_scores

from universal_neurons import Store
from universal_neurons.errors import InputError
from universal_neurons.report import pages
from universal_neurons.report.explained_section import EXPLAINED_WORDS, HEADINGS, MOST, explained_section
from universal_neurons.report.figures import STUDY_KINDS
from universal_neurons.report.figures.style import lettering

KIND = next(kind for kind in STUDY_KINDS if kind.name == "explained")


@pytest.fixture(scope="module")
def scored(odd_store, tmp_path_factory):
    return Store(with_hand_scores(odd_store.path, tmp_path_factory.mktemp("scored") / "s"))


def short(value):
    return f"{value:.2f}"


def test_each_source_is_held_against_chance_controls_and_counterparts(scored):
    section = explained_section(scored)
    heads, *rows = section.sources
    assert heads == list(HEADINGS)
    told = {(row["source"], row["asked"]): row for row in (dict(zip(heads, cells)) for cells in rows)}
    own, there = (np.array([score(number) for number in range(COUNT)]) for score in (own_score, there_score))
    by_author = told[AUTHOR, f"detection by {SCORER}"]
    assert by_author["score"].startswith(f"{short(own.mean())}\u00a0[")
    names = ("neurons", "chance", "label sentence", "another's", "empty", "counterparts", "random")
    wanted = (str(COUNT), "0.20", "0.24", "0.21", "0.22", short(there.mean()), short(np.mean([0.2, 0.21, 0.22])))
    assert tuple(by_author[name] for name in names) == wanted
    assert by_author["carried"].startswith(short((there - 0.2).sum() / (own - 0.2).sum()))
    by_labels = told["labels", f"detection by {SCORER}"]
    assert by_labels["score"].split("\u00a0")[0] == "0.24"
    assert [row["asked"].partition(" ")[0] for row in told.values() if row["source"] == AUTHOR] == [
        "detection",
        "fuzzing",
    ]


def test_the_best_and_the_worst_are_listed_with_what_counterparts_have(scored):
    (best, best_rows), (worst, worst_rows) = explained_section(scored).lists
    assert best == f"The {MOST} best explained of {COUNT} universal neurons"
    assert worst.startswith(f"The {MOST} worst")
    assert len(best_rows) == len(worst_rows) == MOST + 1
    for rows, first in ((best_rows, 0), (worst_rows, COUNT - MOST)):
        for number, cells in enumerate(rows[1:], first):
            row = dict(zip(rows[0], cells))
            assert row["score"].startswith(short(own_score(number)))
            assert row["explanation"] == f"{SAID}{number}"
            assert row["counterparts"].count(f"\u00a0{short(there_score(number))}") == len(scored.models) - 1
            assert row["random"] == short(0.2 + 0.01 * (number % 3))


def test_what_is_seen_in_the_figure_is_in_the_scores(scored):
    shown = KIND.of(scored, scored.models[0])
    assert shown.caption.seen.startswith("By detection. ")
    share, there = (
        (np.array([score(number) for number in range(COUNT)]) - 0.2) / 0.8 for score in (own_score, there_score)
    )
    random = np.array([0.01 * (number % 3) for number in range(COUNT)]) / 0.8
    means = f"is {share.mean():.2f}, of their counterparts {there.mean():.2f}, of random ones {random.mean():.2f}"
    assert f"Sentences by {lettering(AUTHOR)}: the mean share of {COUNT} neurons {means};" in shown.caption.seen
    assert f"above random ones for {(there > random).sum()}." in shown.caption.seen
    drawn = next(axes for axes in shown.figure.axes if axes.lines)
    xs, ys = (
        np.concatenate([line.get_data()[at] for line in drawn.lines if line.get_label() == "its counterparts"])
        for at in (0, 1)
    )
    np.testing.assert_allclose(np.sort(xs), np.sort(share))
    np.testing.assert_allclose(np.sort(ys), np.sort(there))
    for sentence in re.split(r"(?<=[.:;?]) ", f"{shown.caption.axes} {shown.caption.look} {' '.join(EXPLAINED_WORDS)}"):
        assert len(sentence.split()) <= 32, sentence


def test_the_page_has_it_as_text_and_none_where_nobody_scored(scored, odd_store):
    page = pages._study_page(scored, {})
    assert "<h2>Explanations</h2>" in page
    assert "<img src=x" not in page
    assert f"{SAID}0" in unescape(page)
    assert explained_section(odd_store) is None
    assert not KIND.has_tables(odd_store)
    with pytest.raises(InputError, match="uneurons explain RUN --scorer MODEL"):
        odd_store.plot.explained()
