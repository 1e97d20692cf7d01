"""Dictionaries verified on text: shares of variance against NumPy, refusals and the reasons that they name."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_model

from universal_neurons.errors import DictionaryError
from universal_neurons.features import Dictionary, verified
from universal_neurons.features.dictionary_activations import Activation, TopK
from universal_neurons.models import Place, captured

ROWS, CONTEXT = 12, 32
IDS = torch.randint(1, 1000, (ROWS, CONTEXT), generator=torch.Generator().manual_seed(0))
KEEP = torch.ones(ROWS, CONTEXT, dtype=torch.bool)
KEEP[::2, 5:9] = False


@pytest.fixture(scope="module")
def model():
    return tiny_model("gpt2")


def values_at(model, place) -> torch.Tensor:
    with captured(model, [place]) as values:
        model.forward(IDS)
    return values[place][KEEP].double()


def of_principal_axes(model, place, x=None) -> Dictionary:
    """Latents that stand for the directions of most variance there, or of x, both ways: they explain most of it."""
    x = values_at(model, place) if x is None else x
    mean = x.mean(0)
    axes = torch.linalg.svd(x - mean, full_matrices=False)[2][:8].float()
    both = torch.cat([axes, -axes])
    mean, none = mean.float(), torch.zeros(16)
    return Dictionary("planted", place, place, both.T.contiguous(), none, both, mean, Activation(), b_in=mean)


PLACE = Place("residual_out", 0)


def test_figures_are_those_of_numpy(model):
    dictionary = of_principal_axes(model, PLACE)
    (result,) = verified([dictionary], model, IDS, KEEP)
    x = values_at(model, PLACE).numpy()
    w, b = dictionary.W_enc.double().numpy(), dictionary.b_dec.double().numpy()
    latents = np.maximum((x - b) @ w, 0)
    left = ((x - latents @ dictionary.W_dec.double().numpy() - b) ** 2).sum()
    assert result.explained == pytest.approx(1 - left / ((x - x.mean(0)) ** 2).sum(), abs=1e-6)
    assert result.l0 == pytest.approx((latents > 0).sum(1).mean(), abs=1e-6)
    assert (result.positions, result.silent) == (int(KEEP.sum()), 0)
    assert result.describe()["read"] == "residual_out of block 0"
    assert 0.6 < result.explained < 1


def test_several_are_verified_on_the_same_passes(model):
    places = [Place(kind, layer) for kind in ("residual_out", "mlp_out") for layer in (0, 1)]
    dictionaries = [of_principal_axes(model, place) for place in places]
    together = verified(dictionaries, model, IDS, KEEP)
    alone = [verified([each], model, IDS, KEEP)[0] for each in dictionaries]
    assert [r.explained for r in together] == [r.explained for r in alone]


def mended(model, dictionary) -> str:
    with pytest.raises(DictionaryError, match="no dictionary of what gpt2-0 has") as refusal:
        verified([dictionary], model, IDS, KEEP, floor=0.6)
    return refusal.value.fix


def test_another_place_is_told_by_trying(model):
    elsewhere = Place("mlp_out", 1)
    planted = replace(of_principal_axes(model, PLACE), read=elsewhere, write=elsewhere)
    assert "it belongs to residual_out of block 0: mend the place" in mended(model, planted)


def test_other_scales_are_told_by_trying(model):
    planted = of_principal_axes(model, PLACE)
    mean = planted.b_dec * 4 / float(values_at(model, PLACE).norm(dim=1).mean())
    of_average = replace(planted, b_dec=mean, b_in=mean, normalisation="average_norm")
    (result,) = verified([of_average], model, IDS, KEEP)
    assert result.explained == pytest.approx(verified([planted], model, IDS, KEEP)[0].explained, abs=1e-5)
    assert result.dictionary.normalisation == "none"
    assert "average_norm" in mended(model, replace(of_average, normalisation="none", scale=3.0))


def test_a_bias_in_the_input_is_told_by_trying():
    """The mean is far from 0, and the encoder's bias would take it away once more."""
    model = with_means(shift=30.0)
    planted = of_principal_axes(model, PLACE)
    inside = -planted.b_dec @ planted.W_enc
    assert "left in the input" in mended(model, replace(planted, b_enc=inside))
    assert "taken from the input" in mended(model, replace(planted, b_in=None))


def test_without_a_reason_it_says_what_to_check(model):
    planted = of_principal_axes(model, PLACE)
    none = replace(planted, activation=TopK(1), W_enc=-planted.W_enc, bos=True)
    assert "trained on this model, at this place" in mended(model, none)
    assert "with BOS in front" in mended(model, none)


def with_means(*, shift: float = 0.0, spread: float = 0.0):
    """A copy whose embeddings have another mean over the text, and one of their own over the width."""
    model = tiny_model("gpt2")
    table = model.hf.transformer.wte.weight
    chance = torch.Generator().manual_seed(1)
    table.add_(shift * torch.randn(16, generator=chance) + spread * torch.randn(len(table), 1, generator=chance))
    return model


def test_centring_is_told_by_trying():
    model = with_means(spread=3.0)
    x = values_at(model, PLACE)
    planted = of_principal_axes(model, PLACE, x=x - x.mean(1, keepdim=True))
    assert "center_writing_weights" in mended(model, planted)
    assert verified([replace(planted, centred=True)], model, IDS, KEEP)[0].explained > 0.6
