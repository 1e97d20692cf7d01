"""What the units of a study are called: by study.json, and in the place of neurons in text, but not in names."""

import re

import pytest
from plain_site import with_tables

from universal_neurons import Store
from universal_neurons.report import pages
from universal_neurons.report.words import noun_of, spoken_of


@pytest.mark.parametrize(
    ("features", "noun"),
    [
        ([None, None], "neuron"),
        (["dictionaries", "dictionaries"], "latent"),
        (["residual", "attention"], "dimension"),
        (["dictionaries", None], "unit"),
        (["residual", "dictionaries"], "unit"),
        ([], "neuron"),
    ],
)
def test_the_noun_is_that_of_all_units_or_unit(features, noun):
    assert noun_of({"models": [{"features": each} if each else {} for each in features]}) == noun


def test_words_are_replaced_and_names_are_not():
    spoken = spoken_of({"models": [{"features": "dictionaries"}]})
    assert spoken("Neurons by ρ: a neuron's pre-activation.") == "Latents by ρ: a latent's value."
    assert spoken("2 neurons of my-neurons::neuron/L1.2, @neuron") == "2 latents of my-neurons::neuron/L1.2, @neuron"
    assert spoken("Pre-activations of neuron L1.2") == "Values of latent L1.2"
    assert spoken_of({"models": [{}]})("Neurons") == "Neurons"


def test_a_page_speaks_of_latents_where_all_units_are(odd_store, tmp_path):
    """Captions and sentences of tables apart, which have tests of their own, and roles, which latents have not."""
    plain = pages._study_page(odd_store, {})
    assert "<b>Anchors</b>: neurons whose" in plain
    models = [model | {"features": "dictionaries"} for model in odd_store.manifest["models"]]
    page = pages._study_page(Store(with_tables(odd_store.path, tmp_path / "s", manifest={"models": models})), {})
    told = re.sub(r"universal-neurons|Universal neurons:|<code>.*?</code>", "", page)
    lines = [line for line in told.splitlines() if re.search(r"\bneurons?\b", line)]
    of_roles = told[told.index("What the latents do") : told.index("How this was computed")].splitlines()
    assert not [line for line in lines if line not in of_roles]
    assert "<b>Anchors</b>: latents whose" in page
    assert "layers × latents" in page
    assert "&lt;b&gt;" not in page[page.index("How to read this") :], "its markup is kept"
