"""Figures take any text: none of it is mathematics, none of it hides, breaks the file or makes the picture explode."""

import warnings
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import polars as pl
import pytest
from conftest import ODD_NAMES
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatterSciNotation

from universal_neurons.report import figures, study_figures
from universal_neurons.report.figures.families import Details, split_densities
from universal_neurons.report.figures.style import LONGEST, STYLE, PowersOfTen, in_legend, lettering

HOSTILE_SETTINGS = {"text.parse_math": True, "text.usetex": True, "axes.formatter.use_mathtext": True}


@pytest.fixture(scope="module")
def drawn(odd_store):
    """All figures of the study with odd names, drawn under settings of a person who writes TeX."""
    with mpl.rc_context(HOSTILE_SETTINGS):
        return {name: shown.figure for name, shown in study_figures(odd_store).items()}


def words(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def test_no_text_is_mathematics(drawn):
    assert len(drawn) > 15
    for name, figure in drawn.items():
        with warnings.catch_warnings(), mpl.rc_context(HOSTILE_SETTINGS):
            warnings.simplefilter("error")
            svg = figures.render(figure, "svg")
        ElementTree.fromstring(svg)
        with mpl.rc_context(STYLE):  # else it makes ticks of its own for axes that are switched off
            texts = figure.findobj(Text)
        assert not any(text.get_parse_math() or text.get_usetex() for text in texts), name
        assert not any("mathdefault" in text.get_text() for text in texts), name
        assert max(len(text.get_text()) for text in texts) < 400, name
        assert (figure.get_size_inches() <= 30).all(), name


def test_names_are_shown(drawn):
    shown = [lettering(name) for name in ODD_NAMES]
    titles = [text for place in drawn if place.startswith("universality") for text in words(drawn[place])]
    assert all(any(name in text for text in titles) for name in shown)
    legend = [text.get_text() for text in drawn["densities"].axes[-1].get_legend().get_texts()]
    assert legend == [in_legend(name) for name in ODD_NAMES]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("$x$", "$x$"),
        ("\x1b[0m\x7f\n\t", "\\x1b[0m\\x7f⏎⇥"),
        ("\u202eab\ud83d", "\\u202eab\\ud83d"),
        ("a" * 30 + "b" * 30, "a" * 26 + "…" + "b" * 13),
        ("Größe", "Größe"),
    ],
)
def test_lettering(given, shown):
    assert lettering(given) == shown
    assert len(lettering(given * 40)) <= LONGEST


def test_a_legend_keeps_what_begins_with_an_underscore():
    assert in_legend("_x").lstrip(" ") == "_x"
    axes = Figure().subplots()
    axes.plot([0, 1], label=in_legend("__init__"))
    assert [text.get_text() for text in axes.legend().get_texts()] == [" __init__"]


@pytest.mark.parametrize("label", ["other", "all", "_", "$$"])
@pytest.mark.parametrize("family", ["syntax", "context"])
def test_a_label_of_any_name_has_its_own_curve(label, family):
    details = pl.DataFrame({"L0.0": np.linspace(0, 1, 100), "L0.0 label": np.arange(100) % 4 == 0})
    row = {"layer": 0, "neuron": 0, "label": label, "label_sign": 1, "variance_reduction": 0.5}
    with mpl.rc_context(STYLE):
        axes = Figure().subplots()
        split_densities(axes, Details(details, pl.DataFrame(), []), row, family)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        in_legend(label),
        "all" if family == "context" else "other",
    ]


def test_many_subsets_still_make_an_image():
    names = [f"subset {n}" for n in range(2000)]
    table = pl.DataFrame({"subset": np.repeat(names, 3).tolist(), "excess_corr": [0.1, 0.5, 0.9] * len(names)})
    figure = figures.by_subset(table, 0.5)
    assert figures.render(figure, "png").startswith(b"\x89PNG")
    assert any("the first 100 of 2,000" in text for text in words(figure))


@pytest.mark.parametrize("low", [-12, -3, 0, 2])
@pytest.mark.parametrize("decades", [0.3, 1, 4])
def test_logarithmic_labels_are_those_of_matplotlib_in_plain_characters(low, decades):
    axes = Figure().subplots()
    axes.set(xscale="log", xlim=(10.0**low, 10.0 ** (low + decades)))
    ours, theirs = PowersOfTen(), LogFormatterSciNotation()
    raised = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    for formatter in (ours, theirs):
        formatter.set_axis(axes.xaxis)
        formatter.set_locs(axes.xaxis.get_majorticklocs())
    for place in axes.xaxis.get_majorticklocs():
        plain = ours(place)
        assert not set(plain) & set("${}\\^")
        expected = theirs(place).replace("$\\mathdefault{", "").replace("\\times", "×")
        assert plain.translate(raised) == "".join(c for c in expected if c not in "${}\\^")
