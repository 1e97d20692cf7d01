"""Every figure says what is on its axes, what to look for and what is seen; what is seen are the tables' numbers."""

import re
from html import unescape
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from conftest import ODD_NAMES

from universal_neurons import StudyConfig, run_study
from universal_neurons.report import study_figures, write_joint_report
from universal_neurons.report.figures import STUDY_KINDS, kinds
from universal_neurons.report.figures.style import lettering
from universal_neurons.report.numbers import number, percent

LONGEST = 30  # words of a sentence
TERMS = {  # a word, and how the caption that uses it begins to explain it
    "excess": r"Excess: best ρ minus baseline",
    "universal": r"Universal: excess above|Universal neurons are singled out",
    "family": r"A neuron's family is",
    "role": r"A role is what a neuron does",
}


@pytest.fixture(scope="module")
def drawn(odd_store):
    return study_figures(odd_store)


@pytest.fixture(scope="module")
def of_text(folders, text_file, tmp_path_factory):
    """A study of text, with labels: it has figures of families."""
    config = StudyConfig(
        models=tuple(map(str, folders[:2])), data=str(text_file), out=str(tmp_path_factory.mktemp("text") / "run"),
        draws=2, labels=("tokens", "position"), stages=("statistics", "universality", "labels"),
    )  # fmt: skip
    return run_study(config, progress=False)


def test_every_figure_has_a_title_a_drawing_and_a_caption(of_text, drawn):
    every = drawn | study_figures(of_text)
    missing = {kind.file for kind in STUDY_KINDS if not any(name.startswith(kind.file) for name in every)}
    missing.remove("explanations")  # tests/report/test_explained_section.py has it
    assert all(name.startswith("family-") for name in missing), missing
    assert len(missing) < 7, "no family has a figure"
    assert len({kind.name for kind in STUDY_KINDS}) == len(STUDY_KINDS)
    for name, shown in every.items():
        assert shown.title, name
        assert shown.figure.axes, name
        for part in (shown.caption.axes, shown.caption.look, shown.caption.seen):
            assert part.endswith("."), (name, part)
            assert "nan" not in part.split(), (name, part)
        assert re.search(r"\d|No ", shown.caption.seen), name


def test_sentences_are_short_and_words_explained_before_they_are_used(drawn):
    for name, shown in drawn.items():
        text = f"{shown.caption.axes} {shown.caption.look}"
        for sentence in re.split(r"(?<=[.:;?]) ", text):
            assert len(sentence.split()) <= LONGEST, (name, sentence)
        for word, explained in TERMS.items():
            if re.search(rf"\b{word}\b", text.replace("Universal neurons are singled", "")):
                assert re.search(explained, text), (name, word)


def test_how_many_are_of_a_family_is_counted(of_text):
    families = of_text.neurons.filter(model=of_text.models[0])["family"].to_list()
    for name, shown in study_figures(of_text).items():
        if name.startswith("family-"):
            count = families.count(name.removeprefix("family-").replace("-", "_"))
            assert f"Of {len(families)} neurons here {count} " in shown.caption.seen


def seen(drawn, name):
    return next(shown.caption.seen for file, shown in drawn.items() if file.startswith(name))


def test_what_is_seen_is_in_the_tables(odd_store, drawn):
    name, threshold = ODD_NAMES[0], odd_store.config.threshold
    rows = [row for row in odd_store.neurons.to_dicts() if row["model"] == name and not row["dead"]]
    excess = np.array([row["excess_corr"] for row in rows])
    baseline = np.array([row["mean_baseline"] for row in rows])
    above = int((excess > threshold).sum())
    words = seen(drawn, "universality")
    every = int((odd_store.neurons["model"] == name).sum())
    assert f"{above} of {every} neurons ({100 * above / every:.1f} %" in words
    assert (f"; {every - len(rows)} are dead" in words) == (every > len(rows))
    assert f"the highest is {excess.max():.2f}" in words
    assert f"The mean baseline reaches {baseline.max():.2f} at most" in words
    best = [row for row in odd_store.matches.to_dicts() if row["model"] == name and row["rank"] == 1]
    same = 100 * np.mean([row["layer"] == row["match_layer"] for row in best])
    assert f"Of the best matches {same:.0f} % lie in the layer of the same number" in words

    best = np.array([row["mean_corr"] for row in rows])
    words = seen(drawn, "densities")
    assert f"Medians of {lettering(name)}: best ρ {np.median(best):.2f}, baseline {np.median(baseline):.2f}" in words

    scores = np.array([row["sparsity"] for row in odd_store.neurons.to_dicts() if row["model"] == name])
    cosines = np.array([row["in_out_sim"] for row in odd_store.neurons.to_dicts() if row["model"] == name])
    kept = np.isfinite(scores) & np.isfinite(cosines)
    slope = np.corrcoef(scores[kept], cosines[kept])[0, 1]
    assert f"r is {slope:.2f}".replace("-", "−") in seen(drawn, "sparsity")

    pairs = odd_store.table("functional").to_dicts()
    for column, of in (("effect_corr", "logit effects"), ("loss_corr", "loss changes")):
        values = np.array([row[column] for row in pairs], float)
        assert f"of {of} is {np.nanmedian(values):.2f}".replace("-", "−") in seen(drawn, "role-functional")

    for column in ("effect_corr", "loss_corr"):
        values = np.array([row[f"{column}_second"] for row in pairs], float)
        assert f"of second best matches {np.nanmedian(values):.2f}.".replace("-", "−") in seen(drawn, "role-functional")

    costs = odd_store.table("costs").to_dicts()
    chosen, equal = costs[:2]
    assert f"are worth {chosen['loss_change']:.2f} nats together" in seen(drawn, "role-costs")
    assert f"{equal['loss_change']:.2f} nats" in seen(drawn, "role-costs").partition("of equal contribution")[2]

    within = {}
    for row in odd_store.subsets.to_dicts():
        within.setdefault(row["subset"], []).append(row["excess_corr"] > threshold)
    assert f"{max(map(sum, within.values()))} neurons pass within" in seen(drawn, "subsets")

    first, last = odd_store.convergence.filter(asker=name).sort("tokens").to_dicts()[-2:]
    assert f"went from {first['universal']} to {last['universal']}" in seen(drawn, "convergence")


def test_numbers_are_written_as_the_house_does():
    assert [number(value) for value in (0.694, -0.5, -0.001, 12, None, np.nan)] == [
        "0.69", "−0.50", "0.00", "12.00", "–", "–",
    ]  # fmt: skip
    assert [percent(0.0841, 1), percent(1), percent(None)] == ["8.4 %", "100 %", "–"]


def test_labels_of_ticks_stand_apart(drawn):
    for name in ("role-roles-by-layer", "role-ensembles"):
        figure = next(shown.figure for file, shown in drawn.items() if file.startswith(name))
        figure.draw_without_rendering()
        for axes in figure.axes:
            if not axes.axison:
                continue
            panel = axes.get_window_extent()
            boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
            inside = sorted((b.x0, b.x1) for b in boxes if panel.x0 - 1 <= (b.x0 + b.x1) / 2 <= panel.x1 + 1)
            assert len(inside) > 1, name
            assert all(left[1] < right[0] for left, right in pairwise(inside)), (name, axes.get_title())


def test_a_count_of_draws_is_a_word_where_none_is():
    row = {"asker": "a", "threshold": 0.5, "universal": 84, "surely": 43, "possibly": 90}
    for rotated, untrained, said in (
        (0.0, None, "In a draw of random bases none do."),
        (0.4, 2.0, "In a draw of random bases 0.4 do, and 2 of untrained networks."),
    ):
        table = pl.DataFrame(row | {"rotated": rotated, "untrained": untrained})
        words = next(kind for kind in STUDY_KINDS if kind.name == "thresholds").seen(table, "a", 0.5)
        assert words.startswith("Above 0.5 here lie 84 neurons of a, as the paper counts.")
        assert words.endswith(said)


def test_a_title_over_no_pairs_with_a_role_says_so(odd_store):
    table = odd_store.table("functional").with_columns(
        **{f"same_roles{kind}": pl.lit(None, pl.Boolean) for kind in ("", "_second", "_random")}
    )
    figure = next(kind for kind in STUDY_KINDS if kind.name == "functional").draw(table, "a, universal")
    assert " ".join(figure.get_suptitle().split()).endswith("no pair has a role by weights")


def test_captions_stand_under_their_figures_on_the_joint_page(odd_store, tmp_path, monkeypatch):
    monkeypatch.setattr(kinds, "STUDY_KINDS", [kind for kind in STUDY_KINDS if kind.name == "convergence"])
    page = unescape(write_joint_report([odd_store, odd_store], tmp_path / "page.html").read_text())
    figures = re.findall(
        r"<figure>\n<img alt=\"([^\"]+)\" src=\"data:[^\"]+\">\n<figcaption>(.+?)</figcaption>", page, re.S
    )
    assert len(figures) == page.count("<img") == 3  # one each, and the densities of both
    for alt, caption in figures:
        assert f"<b>{alt}{'' if alt.endswith('?') else '.'}</b>" in caption
        assert "What to look for" in caption
        assert "Seen here" in caption
    assert sum("Was the corpus large enough" in alt for alt, _ in figures) == 2
