"""Latents and reconstructions of every kind of dictionary, against its formulas written out in float64 NumPy."""

import numpy as np
import pytest
import torch
from conftest import tiny_model
from dictionary_formulas import latents_of, reconstruction_of

from universal_neurons.errors import ArchitectureError, ConfigError, DictionaryError
from universal_neurons.features.dictionary import Dictionary
from universal_neurons.features.dictionary_activations import Activation, Gated, GroupMax, JumpReLU, TopK
from universal_neurons.models import Place, captured, projection

D, WIDTH = 16, 24
IDS = torch.arange(1, 41).view(2, 20) * 7


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


ACTIVATIONS = {
    "relu": (Activation(), {}),
    "jumprelu": (JumpReLU(numbers(WIDTH, seed=1)), {"threshold": numbers(WIDTH, seed=1)}),
    "gated": (
        Gated(numbers(WIDTH, seed=2) / 4, numbers(WIDTH, seed=3)),
        {"r_mag": numbers(WIDTH, seed=2) / 4, "b_mag": numbers(WIDTH, seed=3)},
    ),
    "topk": (TopK(5), {"k": 5}),
    "groupmax": (GroupMax(6), {"k": 6}),
}


def dictionary_of(activation: Activation, **more) -> Dictionary:
    stream = Place("residual_out", 1)
    given = {
        "name": "planted", "read": stream, "write": stream, "W_enc": numbers(D, WIDTH, seed=4), "b_enc": numbers(WIDTH, seed=5),
        "W_dec": numbers(WIDTH, D, seed=6), "b_dec": numbers(D, seed=7), "activation": activation,
    }  # fmt: skip
    return Dictionary(**given | more)


@pytest.mark.parametrize("normalisation", ["none", "layer_norm", "unit_norm"])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_it_computes_its_formulas(kind, normalisation):
    activation, more = ACTIVATIONS[kind]
    dictionary = dictionary_of(
        activation, b_in=numbers(D, seed=7), normalisation=normalisation, centred=True, scale=1.5
    )
    x = 3 * numbers(50, D, seed=8) + 1
    settings = {
        "W_enc": dictionary.W_enc, "b_enc": dictionary.b_enc, "W_dec": dictionary.W_dec, "b_dec": dictionary.b_dec,
        "b_in": dictionary.b_in, "normalisation": normalisation, "centred": True,
        "scale": 1.5 if normalisation == "none" else 1.0, "activation": kind, **more,
    }  # fmt: skip
    settings = {k: v.double().numpy() if isinstance(v, torch.Tensor) else v for k, v in settings.items()}
    expected = latents_of(x.double().numpy(), settings)
    assert 0.02 < (expected > 0).mean() < 0.9
    np.testing.assert_allclose(dictionary.encode(x).numpy(), expected, atol=2e-5)
    np.testing.assert_allclose(
        dictionary.reconstruction(x).numpy(), reconstruction_of(x.double().numpy(), settings), atol=1e-4
    )
    assert dictionary.encode(x.half()).dtype == torch.float32


def test_a_transcoder_writes_elsewhere_and_skips():
    skip = numbers(D, 10, seed=9)
    dictionary = dictionary_of(
        Activation(), write=Place("mlp_out", 1), read=Place("mlp_in", 1), W_dec=numbers(WIDTH, 10, seed=6),
        b_dec=numbers(10, seed=7), W_skip=skip, normalisation="layer_norm",
    )  # fmt: skip
    x = numbers(30, D, seed=8).double()
    read = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)
    latents = (read @ dictionary.W_enc.double() + dictionary.b_enc).clamp(min=0)
    expected = latents @ dictionary.W_dec.double() + dictionary.b_dec + x @ skip.double()
    torch.testing.assert_close(dictionary.reconstruction(x.float()).double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(dictionary.decoder, dictionary.W_dec)


def test_an_average_norm_takes_its_factor_from_text():
    dictionary = dictionary_of(Activation(), normalisation="average_norm")
    x = 5 * numbers(100, D, seed=8)
    with pytest.raises(DictionaryError, match="on average"):
        dictionary.encode(x)
    scaled = dictionary.scaled_to(float(x.norm(dim=1).mean()))
    assert scaled.scale == pytest.approx(4 / float(x.norm(dim=1).mean()))
    torch.testing.assert_close(scaled.encode(x), dictionary_of(Activation()).encode(x * scaled.scale))
    torch.testing.assert_close(scaled.decoder, dictionary.W_dec / scaled.scale)


def test_the_identity_on_a_relu_models_neurons_gives_their_numbers():
    """Encoder: the model's own w_in on what the MLP reads; decoder: its own w_out."""
    model = tiny_model("opt")
    layer = 1
    (w_in, b_in), (w_out, b_out) = (projection(model, layer, role) for role in ("w_in", "w_out"))
    planted = Dictionary(
        "planted", Place("mlp_in", layer), Place("mlp_out", layer), w_in.T.float(), b_in.float(), w_out.T.float(),
        b_out.float(), Activation(),
    ).on(model)  # fmt: skip
    neurons = Place("neurons", layer)
    one = torch.eye(24)
    identity = Dictionary("one", neurons, neurons, one, torch.zeros(24), one, torch.zeros(24), Activation()).on(model)
    with captured(model, [planted.read, planted.write, neurons]) as values:
        activations = model.activations(IDS)[..., model.units.columns(layer)].flatten(0, 1)
    assert torch.equal(identity.encode(values[neurons].flatten(0, 1)), activations)
    assert identity.decoder is None
    read, written = (values[place].flatten(0, 1) for place in (planted.read, planted.write))
    torch.testing.assert_close(planted.encode(read), activations, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(planted.reconstruction(read), written, rtol=1e-5, atol=1e-5)


def test_it_is_of_a_model_whose_widths_are_its_own_or_refused():
    model = tiny_model("gpt2")
    assert dictionary_of(Activation(), centred=True).on(model).centred
    assert not dictionary_of(Activation(), centred=True).on(tiny_model("llama")).centred  # nothing to centre
    with pytest.raises(DictionaryError, match="no dictionary of gpt2-0") as refusal:
        dictionary_of(Activation(), read=Place("neurons", 0)).on(model)
    assert "16 numbers at neurons of block 0, where the model has 24" in refusal.value.given
    with pytest.raises(ConfigError, match="block 7"):
        dictionary_of(Activation(), write=Place("residual_out", 7)).on(model)
    with pytest.raises(ArchitectureError, match="residual_mid"):
        dictionary_of(Activation(), read=Place("residual_mid", 0)).on(tiny_model("gpt_neox"))


@pytest.mark.cuda
def test_it_moves_to_a_device_whole(device):
    for activation, _ in ACTIVATIONS.values():
        dictionary = dictionary_of(activation, b_in=numbers(D, seed=7))
        x = numbers(20, D, seed=8)
        moved = dictionary.to(device).reconstruction(x.to(device))
        torch.testing.assert_close(moved.cpu(), dictionary.reconstruction(x), rtol=1e-4, atol=1e-4)
