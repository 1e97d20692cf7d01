"""What the units of a study are called: by study.json, and in the place of neurons in text, but not in names."""

import pytest

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
