"""Processed weights leave the model's predictions as they were."""

import copy

import pytest
import torch
from conftest import tiny_model

from universal_neurons import processed_weights
from universal_neurons.interventions import FinalNorm, Heads, Readout, final_residual, frozen_norm
from universal_neurons.models import matrix_of, module_at

IDS = torch.arange(1, 61).view(2, 30) * 5


PLAIN_NORMS = {"layer_norm_elementwise_affine": False, "enable_bias": False}


@pytest.mark.parametrize(
    ("family", "changes"),
    [(family, {}) for family in ("gpt2", "gpt_neo", "gpt_neox", "llama", "qwen2", "opt")] + [("opt", PLAIN_NORMS)],
)
def test_a_model_with_processed_weights_predicts_the_same(family, changes):
    model = tiny_model(family, **changes)
    expected = model.logits(IDS).double().log_softmax(-1)
    weights = processed_weights(model)
    changed = tiny_model(family, **changes)
    changed.hf = copy.deepcopy(model.hf).double()
    changed.blocks = list(module_at(changed.hf, changed.architecture.blocks))
    for layer in range(model.n_layers):
        roles = [("w_in", weights.w_in, weights.b_in), ("w_up", weights.w_up, weights.b_up)]
        for role, matrix, bias in roles[: 1 + changed.architecture.gated]:
            install(changed.part(layer, role), matrix[layer], bias[layer])
        install(changed.part(layer, "w_out"), weights.w_out[layer].T, weights.b_out[layer])
        plain(changed.part(layer, "mlp_norm"))
    plain(module_at(changed.hf, changed.architecture.final_norm))
    with torch.inference_mode():
        states = changed.hf.base_model(IDS, use_cache=False).last_hidden_state
        logits = states @ weights.w_u.T + weights.b_u
    assert weights.folded
    assert (logits.log_softmax(-1) - expected).abs().max() <= 1e-5


def install(module, matrix, bias):
    with torch.no_grad():
        matrix_of(module).copy_(matrix)
        if module.bias is not None:
            module.bias.copy_(bias)
        else:
            assert not bias.any()


def plain(norm):
    with torch.no_grad():
        if norm.weight is not None:
            norm.weight.fill_(1)
        if getattr(norm, "bias", None) is not None:
            norm.bias.zero_()


def test_norms_without_parameters_have_gain_one():
    model = tiny_model("opt", **PLAIN_NORMS)
    assert module_at(model.hf, model.architecture.final_norm).weight is None
    with final_residual(model) as seen:
        logits = model.logits(IDS)
    torch.testing.assert_close(Readout(model).logits(seen[0]), logits, rtol=1e-4, atol=1e-5)
    scale = FinalNorm(model).scale(seen[0])
    with frozen_norm(model, scale):
        torch.testing.assert_close(model.logits(IDS), logits, rtol=1e-4, atol=1e-5)
    assert Heads(model, 0).w_q.isfinite().all()


def test_layer_norm_models_are_centred_and_rms_norm_models_are_not():
    centred, not_centred = processed_weights(tiny_model("gpt2")), processed_weights(tiny_model("llama"))
    assert centred.w_in.mean(-1).abs().max() < 1e-12
    assert centred.w_out.mean(-1).abs().max() < 1e-12
    assert not_centred.w_in.mean(-1).abs().max() > 1e-3
    assert not_centred.w_out.mean(-1).abs().max() > 1e-3
    for weights in (centred, not_centred):
        assert weights.w_u.mean(0).abs().max() < 1e-12


def test_post_norm_encoders_are_raw():
    model = tiny_model("bert")
    weights = processed_weights(model)
    assert not weights.folded
    torch.testing.assert_close(weights.w_in[0].float(), model.blocks[0].intermediate.dense.weight)


def test_the_models_own_weights_stay():
    model = tiny_model("gpt2")
    before = model.logits(IDS)
    processed_weights(model)
    torch.testing.assert_close(model.logits(IDS), before, rtol=0, atol=0)
