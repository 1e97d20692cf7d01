"""Figures and pages: drawn from tables alone, self-contained, the same every time, honest where nothing is universal."""

import re
import unicodedata
from html import unescape
from html.parser import HTMLParser

import polars as pl
import pytest
from conftest import FEW_ROLES, ODD_NAMES, draw_svg_only, tiny_model
from test_correlation import some_tokens

from universal_neurons import StudyConfig, run_study
from universal_neurons.legible import file_names, legible
from universal_neurons.report import figures, study_figures, study_view, summary_html, write_joint_report, write_report
from universal_neurons.report.facts import facts
from universal_neurons.report.numbers import number
from universal_neurons.report.opening import opening_sentences
from universal_neurons.report.summary import shown_neurons


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A study in which nothing is universal, and one of a model with its copy, in which everything is."""
    root = tmp_path_factory.mktemp("stores")
    tokens = some_tokens(200)
    different = [tiny_model("gpt2", seed) for seed in (0, 1)]
    same = [tiny_model("gpt2", 0, "one"), tiny_model("gpt2", 0, "two"), tiny_model("gpt2", 0, "three")]
    settings = {"draws": 3, "top_k": 2, "labels": ("tokens", "position"), "roles": FEW_ROLES}
    return [
        run_study(
            StudyConfig(out=str(root / "different"), **settings), models=different, tokens=tokens, progress=False
        ),
        run_study(
            StudyConfig(out=str(root / "same"), pairs="all", **settings), models=same, tokens=tokens, progress=False
        ),
    ]


@pytest.fixture(scope="module")
def pages(stores):
    """The reports of both studies, the second's figures as SVG alone: a PNG takes as long again."""
    different, same = stores
    first = write_report(different).read_text()
    with pytest.MonkeyPatch.context() as patch:
        draw_svg_only(patch)
        return [first, write_report(same).read_text()]


@pytest.fixture(scope="module")
def drawn(stores):
    """The figures of the first study, drawn once more."""
    return {name: shown.figure for name, shown in study_figures(stores[0]).items()}


def test_pages_are_self_contained(stores, pages, tmp_path, few_figures):
    for store, page in zip(stores, pages):
        links = re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']+)", page)
        site = f"../{store.path.name}-site/index.html"  # where `uneurons export` is told to put every neuron's page
        assert links.pop(0) == site
        assert links
        assert all(link.startswith("data:image/svg+xml;base64,") for link in links)
        assert all(sentence in unescape(page) for sentence in opening_sentences(store))
        assert not re.search(r"https?://|<script|@import|url\(", page)
        assert len(list((store.path / "figures").glob("*.svg"))) >= 11
        for name in {path.stem for path in (store.path / "figures").iterdir()}:
            assert (store.path / "figures" / f"{name}.svg").read_bytes().startswith(b"<?xml")
            png = (store.path / "figures" / f"{name}.png").read_bytes()
            assert png.startswith(b"\x89PNG") if store is stores[0] else not png
    joint = write_joint_report(stores, tmp_path / "page.html").read_text()
    assert "Side by side" in joint
    assert joint.count("<img") > len(stores)  # one each, and the densities of all
    assert {"different: gpt2-0", "same: one", "same: three"} <= set(re.findall(r"<th>([^<]+)</th>", joint))


def test_where_nothing_is_universal_the_best_are_shown_and_said_so(stores, pages):
    different, same = stores
    shown, title = shown_neurons(different, "gpt2-0")
    assert len(shown) == 1
    assert "No neuron of gpt2-0 passes 0.5 as the paper counts: the top 1 %" in title
    assert shown["excess_corr"][0] == facts(different, "gpt2-0").excess_max
    shown, title = shown_neurons(same, "two", most=7)
    assert len(shown) == 7
    assert title == "Universal neurons of two as the paper counts, by its excess, the first 7"
    for store, page, words in zip(stores, pages, ("No neuron of gpt2-0", "Universal neurons of one")):
        assert words in repr(store)
        assert words in page


def test_facts_are_the_tables(stores):
    same = stores[1]
    found = facts(same, "one")
    table = same.neurons.filter(pl.col("model") == "one")
    assert found.universal == table["is_universal"].sum() >= 7
    assert sum(found.universal_per_layer) == found.universal
    assert found.mutual == 1
    assert found.others == ("two", "three")
    assert found.gap_all == pytest.approx(0, abs=1e-6)
    assert abs(found.optimism) < 1e-6
    for counts in (found.paper, found.standardised):
        assert counts.surely <= counts.heldout <= counts.possibly


def test_figures_are_deterministic(stores, pages, drawn):
    written = stores[0].path / "figures"
    assert drawn.keys() == {path.stem for path in written.iterdir()}
    for name, figure in drawn.items():
        assert figures.render(figure, "svg") == (written / f"{name}.svg").read_bytes()
    drawn["densities"].set_layout_engine("none")  # as the SVG laid it out
    assert figures.render(drawn["densities"], "png") == (written / "densities.png").read_bytes()
    assert b"<dc:date>" not in (written / "densities.svg").read_bytes()


def test_the_figures_show_the_numbers(stores, drawn):
    different = stores[0]
    heat = drawn["universality-gpt2-0"].axes[2]
    expected = different.layers.sort("layer", "match_layer")["fraction"] * 100
    assert heat.images[0].get_array().ravel().tolist() == pytest.approx(expected.to_list())
    points = sum(len(c.get_offsets()) for c in drawn["universality-gpt2-0"].axes[1].collections)
    assert points == 48
    counts = drawn["convergence"].axes[1].lines[0].get_ydata()
    assert counts.tolist() == different.convergence["universal"].to_list()


def test_notebook_representations(stores):
    html = summary_html(stores[1])
    assert html == stores[1]._repr_html_()
    assert html.count("<table>") == 3
    assert study_view(stores[0])


def test_how_numbers_are_written():
    assert [number(v) for v in (0.123, -0.126, 0.999, None, float("nan"), 0.0, -0.001)] == [
        "0.12",
        "−0.13",
        "1.00",
        "–",
        "–",
        "0.00",
        "0.00",
    ]


class Heard(HTMLParser):
    """The text and the tags of a page."""

    def __init__(self, page):
        super().__init__()
        self.words, self.tags = [], set()
        self.feed(page)

    def handle_data(self, data):
        self.words.append(data)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)


def test_names_of_any_kind_are_text_on_a_page(odd_store, pages, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "render", lambda figure, kind: b"drawn by others")
    page = write_report(odd_store).read_text()
    monkeypatch.setattr(figures, "study_figures", lambda store: {})
    joint = write_joint_report([odd_store, odd_store], tmp_path / "joint.html").read_text()
    for written in (page, joint, summary_html(odd_store)):
        assert {c for c in written if unicodedata.category(c) in ("Cc", "Cf", "Cs")} <= {"\n"}
    heard = Heard(page)
    assert heard.tags == Heard(pages[1]).tags
    for name in ODD_NAMES:
        assert legible(name) in heard.words
    drawn = {path.stem for path in (odd_store.path / "figures").iterdir()}
    assert {f"universality-{part}" for part in file_names(ODD_NAMES).values()} <= drawn
    assert page.count("<img") == len(drawn)
