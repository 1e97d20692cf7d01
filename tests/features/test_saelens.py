"""Hand-made SAELens configurations of every release and kind, against their formulas in NumPy; or refused by name."""

import json

import numpy as np
import pytest
import torch
from dictionary_formulas import latents_of, reconstruction_of
from safetensors.torch import save_file

from universal_neurons.errors import CheckpointError, DictionaryError
from universal_neurons.features import load_dictionaries
from universal_neurons.models import Place

D, WIDTH, OUT = 8, 12, 6
RESIDUAL = "blocks.3.hook_resid_post"
SIZES = {"d_in": D, "d_sae": WIDTH}
V6 = {**SIZES, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": False, "normalize_activations": "none",
      "reshape_activations": "none"}  # fmt: skip
V6_OF_MODEL = {"sae_lens_version": "6.22.0", "model_name": "gpt2", "hook_name": RESIDUAL, "prepend_bos": True,
               "hook_head_index": None, "model_from_pretrained_kwargs": {"center_writing_weights": False}}  # fmt: skip


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weights(*names: str, d_out: int = D) -> dict[str, torch.Tensor]:
    """The tensors of a standard autoencoder and these."""
    every = {
        "W_enc": numbers(D, WIDTH, seed=1), "b_enc": numbers(WIDTH, seed=2), "W_dec": numbers(WIDTH, d_out, seed=3),
        "b_dec": numbers(d_out, seed=4), "threshold": numbers(WIDTH, seed=5), "b_gate": numbers(WIDTH, seed=6),
        "b_mag": numbers(WIDTH, seed=7), "r_mag": numbers(WIDTH, seed=8) / 4, "W_skip": numbers(d_out, D, seed=9),
        "scaling_factor": numbers(WIDTH, seed=10).abs(), "topk_threshold": torch.tensor(0.7, dtype=torch.float64),
        "log_threshold": numbers(WIDTH, seed=11) / 2,
    }  # fmt: skip
    return {name: every[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", *names)}


def v6(architecture: str, of_model: dict | None = None, **more) -> dict:
    return {**V6, "architecture": architecture, "metadata": {**V6_OF_MODEL, **(of_model or {})}, **more}


def flat(**more) -> dict:
    """As releases before 6 wrote it."""
    return {**SIZES, "model_name": "gpt2-small", "hook_name": RESIDUAL, "hook_layer": 3, "activation_fn_str": "relu",
            "context_size": 128, "l1_coefficient": 8e-5, **more}  # fmt: skip


NORMS = numbers(WIDTH, D, seed=3).double().norm(dim=1).numpy()
GATED = ("b_gate", "b_mag", "r_mag")

# name: configuration, tensors beside the standard four, what NumPy computes, the place and more that must hold
READ = {
    "6, standard": (v6("standard"), (), {"b_in": None}, {"bos": True, "read": Place("residual_out", 3)}),
    "6, the decoder's bias in the input": (v6("standard", apply_b_dec_to_input=True), (), {}, {}),
    "6, jumprelu": (v6("jumprelu"), ("threshold",), {"activation": "jumprelu", "b_in": None}, {}),
    "6, topk": (v6("topk", k=4), (), {"activation": "topk", "k": 4, "b_in": None}, {}),
    "6, topk in units of decoder norms": (
        v6("topk", k=4, rescale_acts_by_decoder_norm=True), (),
        {"activation": "topk", "k": 4, "b_in": None, "latents_by": NORMS}, {},
    ),
    "6, gated": (v6("gated"), GATED, {"activation": "gated", "b_in": None, "b_enc": "b_gate"}, {}),
    "6, batchtopk before it is saved as jumprelu": (
        v6("batchtopk", k=3.0), ("topk_threshold",), {"activation": "jumprelu", "threshold": 0.7, "b_in": None}, {},
    ),
    "6, layer norm": (v6("standard", normalize_activations="layer_norm", apply_b_dec_to_input=True), (),
                      {"normalisation": "layer_norm"}, {}),
    "6, constant norm": (v6("standard", normalize_activations="constant_norm_rescale"), (),
                         {"normalisation": "unit_norm", "b_in": None}, {}),
    "6, average norm with its factor": (
        v6("standard", normalize_activations="expected_average_only_in", norm_scaling_factor=1.7), (),
        {"scale": 1.7, "b_in": None}, {},
    ),
    "6, a constant factor": (
        v6("standard", normalize_activations="constant_scalar_rescale", activation_normalization_factor=0.3), (),
        {"scale": 0.3, "b_in": None}, {},
    ),
    "6, hook_z": (
        v6("standard", {"hook_name": "blocks.2.attn.hook_z"}, reshape_activations="hook_z"), (), {"b_in": None},
        {"read": Place("attention_heads", 2), "decoder": None},
    ),
    "6, centred weights": (
        v6("standard", {"model_from_pretrained_kwargs": {"center_writing_weights": True, "fold_ln": True}}), (),
        {"centred": True, "b_in": None}, {},
    ),
    "6, a module of a Hugging Face model": (
        v6("topk", {"hook_name": "model.layers.5", "model_class_name": "AutoModelForCausalLM", "prepend_bos": False}, k=2),
        (), {"activation": "topk", "k": 2, "b_in": None}, {"read": Place("residual_out", 5), "bos": False},
    ),
    "6, logarithms of thresholds": (
        v6("jumprelu"), ("log_threshold",),
        {"activation": "jumprelu", "threshold": weights("log_threshold")["log_threshold"].double().exp().numpy(), "b_in": None}, {},
    ),
    "before 6": (flat(), (), {}, {"read": Place("residual_out", 3), "bos": None}),
    "before 6, names of version 2": (
        {**SIZES, "hook_point": "blocks.1.hook_resid_pre", "hook_point_layer": 1, "hook_point_head_index": None,
         "normalize_activations": False}, (), {}, {"read": Place("residual_in", 1)},
    ),
    "before 6, a layer that is filled in": (
        flat(hook_name="blocks.{layer}.hook_mlp_out"), (), {}, {"read": Place("mlp_out", 3)},
    ),
    "before 6, topk": (
        flat(activation_fn_str="topk", activation_fn_kwargs={"k": 5}, apply_b_dec_to_input=False), (),
        {"activation": "topk", "k": 5, "b_in": None}, {},
    ),
    "before 6, hook_z that is not said": (
        flat(hook_name="blocks.3.attn.hook_z"), (), {}, {"read": Place("attention_heads", 3)},
    ),
    "before 6, factors of a finetuning": (
        flat(finetuning_scaling_factor=True), ("scaling_factor",), {"written_by": "scaling_factor"}, {},
    ),
    "before 6, neurons": (flat(hook_name="blocks.3.mlp.hook_post"), (), {}, {"read": Place("neurons", 3)}),
}  # fmt: skip


def save(folder, config, tensors):
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def of_numpy(tensors, settings):
    """What the formulas take: weights in float64 and settings."""
    made = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    made |= {"b_in": made["b_dec"], "activation": "relu", **settings}
    return made | ({"b_enc": made[made["b_enc"]]} if isinstance(made["b_enc"], str) else {})


@pytest.mark.parametrize("name", READ)
def test_it_is_read_as_its_release_computes_it(tmp_path, name):
    config, more, settings, facts = READ[name]
    tensors = weights(*more)
    if "gated" in name:
        del tensors["b_enc"]
    save(tmp_path, config, tensors)
    (dictionary,) = load_dictionaries(tmp_path)
    assert {fact: getattr(dictionary, fact) for fact in facts} == facts
    x = 2 * numbers(40, D, seed=20) + 0.5
    of = of_numpy(weights(*more), settings)
    by = of.pop("latents_by", np.ones(WIDTH))
    of |= {"W_enc": of["W_enc"] * by, "b_enc": of["b_enc"] * by, "W_dec": of["W_dec"] / np.reshape(by, (-1, 1))}
    expected = latents_of(x.double().numpy(), of)
    assert 0.02 < (expected > 0).mean() < 0.9
    np.testing.assert_allclose(dictionary.encode(x).numpy(), expected, atol=1e-4)
    if "written_by" in of:
        of["W_dec"] = of["W_dec"] * of[of["written_by"]][:, None]
    np.testing.assert_allclose(
        dictionary.reconstruction(x).numpy(), reconstruction_of(x.double().numpy(), of), atol=2e-4
    )


TRANSCODERS = {
    "transcoder": (),
    "skip_transcoder": ("W_skip",),
    "jumprelu_transcoder": ("threshold",),
    "jumprelu_skip_transcoder": ("threshold", "W_skip"),
}
OF_TRANSCODER = {"hook_name": "blocks.2.ln2.hook_normalized", "hook_name_out": "blocks.2.hook_mlp_out"}


@pytest.mark.parametrize("kind", TRANSCODERS)
def test_a_transcoder_is_read_as_its_release_computes_it(tmp_path, kind):
    tensors = weights(*TRANSCODERS[kind], d_out=OUT)
    (dictionary,) = load_dictionaries(save(tmp_path, v6(kind, OF_TRANSCODER, d_out=OUT), tensors))
    assert (dictionary.read, dictionary.write) == (Place("mlp_normed", 2), Place("mlp_out", 2))
    x = numbers(40, D, seed=20)
    of = of_numpy(tensors, {"b_in": None, "activation": "jumprelu" if "threshold" in tensors else "relu"})
    expected = latents_of(x.double().numpy(), of) @ of["W_dec"] + of["b_dec"]
    expected += x.double().numpy() @ of["W_skip"].T if "W_skip" in of else 0
    np.testing.assert_allclose(dictionary.reconstruction(x).numpy(), expected, atol=1e-4)


REFUSED = {
    "temporal": (v6("temporal"), (), DictionaryError, "architecture is not read"),
    "matching pursuit": (v6("matching_pursuit"), (), DictionaryError, "architecture is not read"),
    "latents of both signs": (v6("abstopk", k=3), (), DictionaryError, "architecture is not read"),
    "another activation": (flat(activation_fn_str="tanh-relu"), (), DictionaryError, "activation_fn is not read"),
    "a topk of a gated one": (flat(activation_fn_str="topk", architecture="gated"), (), DictionaryError, "activation_fn"),
    "of two models": ({**v6("standard"), "n_models": 2}, (), DictionaryError, "several places at once"),
    "of several hooks": (flat(hook_name=[RESIDUAL, "blocks.4.hook_resid_post"]), (), DictionaryError, "several places"),
    "a crosscoder by its name": (v6("topk_crosscoder", k=3), (), DictionaryError, "several places at once"),
    "a crosscoder of which its model's part tells": (
        v6("standard", {"hook_names_in": ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]}), (),
        DictionaryError, "several places at once",
    ),
    "one head": (flat(hook_head_index=3), (), DictionaryError, "hook_head_index is not read"),
    "whitened": (v6("standard", normalize_activations="covariance_whitening"), (), DictionaryError, "normalize_activations"),
    "an embedding": (v6("standard", {"hook_name": "hook_embed"}), (), DictionaryError, "a place that is not known"),
    "before the activation function": (v6("standard", {"hook_name": "blocks.0.mlp.hook_pre"}), (), DictionaryError, "place"),
    "heads reshaped that are none": (v6("standard", reshape_activations="hook_z"), (), DictionaryError, "reshape_activations"),
    "loading that moves values": (
        v6("standard", {"hook_name": "blocks.0.attn.hook_z", "model_from_pretrained_kwargs": {"fold_value_biases": True}}),
        (), DictionaryError, "model_from_pretrained_kwargs",
    ),
    "a gain folded into what is read": (
        v6("transcoder", {**OF_TRANSCODER, "model_from_pretrained_kwargs": {"fold_ln": True}}, d_out=D), (),
        DictionaryError, "model_from_pretrained_kwargs",
    ),
    "a transcoder whose input has the output's bias": (
        v6("transcoder", OF_TRANSCODER, apply_b_dec_to_input=True, d_out=D), (), DictionaryError, "apply_b_dec_to_input",
    ),
    "a transcoder with one factor for two places": (
        v6("transcoder", OF_TRANSCODER, normalize_activations="expected_average_only_in", d_out=D), (),
        DictionaryError, "normalize_activations",
    ),
    "gated in units of norms": (
        v6("gated", rescale_acts_by_decoder_norm=True), GATED, DictionaryError, "rescale_acts_by_decoder_norm",
    ),
    "a transcoder that writes nowhere": (v6("transcoder", d_out=D), (), CheckpointError, "places do not agree"),
    "no place": ({**SIZES}, (), CheckpointError, "does not say where it reads"),
    "two layers": (flat(hook_layer=4), (), CheckpointError, "two layers"),
    "another width": (v6("standard", d_sae=13), (), CheckpointError, "W_enc is of another shape"),
    "a width that is no number": (v6("standard", d_in="8"), (), CheckpointError, "d_in is no size"),
    "too many": (v6("topk", k=99), (), CheckpointError, "k is no number of latents"),
    "no thresholds": (v6("jumprelu"), (), CheckpointError, "it has no threshold"),
    "a tensor too many": (v6("standard"), ("threshold",), CheckpointError, "no place for"),
    "a factor that is none": (
        v6("standard", normalize_activations="expected_average_only_in", norm_scaling_factor=0), (), CheckpointError,
        "no factor",
    ),
    "a factor that is missing": (
        v6("standard", normalize_activations="constant_scalar_rescale"), (), CheckpointError, "no factor",
    ),
    "factors that nobody uses": (flat(), ("scaling_factor",), CheckpointError, "does not use"),
    "a flag that is none": (v6("standard", apply_b_dec_to_input="yes"), (), CheckpointError, "no truth value"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_computed_here_is_refused_by_name(tmp_path, name):
    config, more, error, words = REFUSED[name]
    with pytest.raises(error, match=words) as refusal:
        load_dictionaries(save(tmp_path, config, weights(*more)))
    assert type(refusal.value) is error
    assert str(tmp_path) in str(refusal.value)


def test_factors_of_one_are_none_and_half_precision_is_read(tmp_path):
    tensors = weights() | {"scaling_factor": torch.ones(WIDTH)}
    (whole,) = load_dictionaries(save(tmp_path / "whole", flat(), tensors))
    (half,) = load_dictionaries(
        save(tmp_path / "half", flat(dtype="bfloat16"), {k: t.bfloat16() for k, t in weights().items()})
    )
    assert half.W_enc.dtype == torch.float32
    torch.testing.assert_close(half.W_enc, whole.W_enc, rtol=2**-8, atol=0)
    assert whole.digest != half.digest


def test_an_average_norm_without_its_factor_waits_for_text(tmp_path):
    config = v6("standard", normalize_activations="expected_average_only_in")
    (dictionary,) = load_dictionaries(save(tmp_path, config, weights()))
    assert dictionary.normalisation == "average_norm"
