"""Attention: its geometry, path ablation and roles, against the models' own patterns and forward passes by hand."""

import math

import numpy as np
import polars as pl
import pytest
import torch
from conftest import tiny_network
from tiny_types import KINDS, network_of
from torch.nn import functional

from universal_neurons import processed_weights
from universal_neurons.errors import ArchitectureError, InputError
from universal_neurons.interventions import Heads, Paths, bos_key, effects_of_paths, path_effects, without_path
from universal_neurons.interventions.paths import eager_attention
from universal_neurons.models import Model, matrix_of
from universal_neurons.models.architecture_table import architecture_of
from universal_neurons.report.figures.attention import attention_neurons, attention_pairs
from universal_neurons.report.figures.style import render
from universal_neurons.role_settings import RoleSettings
from universal_neurons.roles import attention as roles
from universal_neurons.roles import best_pairs

CONTEXT, BOS = 20, 1001  # 0 is padding, whose embedding is 0 in some families
DISTANCES = (3, 9, 17)
IDS = torch.cat([torch.full((3, 1), BOS), torch.arange(1, 1 + 3 * (CONTEXT - 1)).view(3, -1) * 11 % 1000], 1)
VARIANTS = {
    "gpt2": ("gpt2", {}),
    "gpt2, scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt_neo": ("gpt_neo", {}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox, partial": ("gpt_neox", {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}}),
    "llama": ("llama", {}),
    "llama, shared keys": ("llama", {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0]}),
    "opt": ("opt", {}),
}  # fmt: skip
OTHERS = (
    "apertus", "arcee", "cwm", "gemma", "granite", "internlm3", "ministral", "ministral3", "nemotron", "seed_oss",
    "starcoder2",
)  # fmt: skip


def bare(family, seed=0, name="tiny", **changes):
    return Model(tiny_network(family, seed, **changes), name)


def variant(name, seed=0):
    if name in OTHERS:
        return Model(network_of(name, seed), name)
    family, changes = VARIANTS[name]
    return bare(family, seed, **changes)


def patterns(model, ids=IDS):
    """The model's own attention (rows, heads, query, key) of every layer, and what each head's W_O reads."""
    seen, inputs = [], []
    every = [Heads(model, layer) for layer in range(model.n_layers)]
    handles = [h.module.register_forward_hook(lambda _m, _a, out: seen.append(out[1])) for h in every]
    handles += [h.out.register_forward_pre_hook(lambda _m, args: inputs.append(args[0])) for h in every]
    try:
        with eager_attention(model):
            model.forward(ids)
    finally:
        for handle in handles:
            handle.remove()
    return seen, inputs


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())


def test_every_attention_of_the_table_is_tried_out():
    known = {kind.model_type for kind in KINDS.values() if architecture_of({"model_type": kind.model_type}).attention}
    assert known == {family for family, _ in VARIANTS.values()} | set(OTHERS)


@pytest.mark.parametrize("name", [*VARIANTS, *OTHERS])
def test_queries_keys_scaling_and_rotation_give_the_models_own_pattern(name):
    model = variant(name)
    positions = torch.arange(CONTEXT)
    normed = []
    every = [Heads(model, layer) for layer in range(model.n_layers)]
    handles = [h.norm.register_forward_hook(lambda _m, _a, out: normed.append(out)) for h in every]
    own, _ = patterns(model)
    for handle in handles:
        handle.remove()
    with torch.inference_mode():
        for heads, x, pattern in zip(every, normed, own):
            q = heads.rotated(heads.queries(heads.query(x)), positions)
            k = heads.rotated(heads.keys(heads.key(x)), positions)
            scores = heads.scaling * torch.einsum("rthd,rshd->rhts", q, k)
            scores = scores.masked_fill(torch.ones(CONTEXT, CONTEXT).triu(1).bool(), -torch.inf)
            torch.testing.assert_close(scores.softmax(-1), pattern, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [*VARIANTS, *OTHERS])
def test_values_and_w_o_give_what_the_attention_adds(name):
    """Σ heads W_O Σ A v + b is what the attention module writes (up to its mean, where W_O is centred)."""
    model = variant(name)
    written, normed = [], []
    every = [Heads(model, layer) for layer in range(model.n_layers)]
    handles = [h.module.register_forward_hook(lambda _m, _a, out: written.append(out[0])) for h in every]
    handles += [h.norm.register_forward_hook(lambda _m, _a, out: normed.append(out)) for h in every]
    own, _ = patterns(model)
    for handle in handles:
        handle.remove()
    with torch.inference_mode():
        for heads, x, pattern, after in zip(every, normed, own, written):
            z = torch.einsum("rhts,rshd->rthd", pattern, heads.values(heads.value(x))).double()
            made = torch.einsum("rthd,hmd->rtm", z, heads.w_o)
            expected = after.double() if heads.out.bias is None else after.double() - heads.out.bias.double()
            if heads.centred:
                expected = expected - expected.mean(-1, keepdim=True)
            torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)


def test_scaling_is_the_modules_own():
    assert Heads(variant("gpt_neo"), 1).scaling == 1.0
    assert Heads(variant("gpt2"), 1).scaling == pytest.approx(1 / math.sqrt(8))
    assert Heads(variant("gpt2, scaled by layer"), 1).scaling == pytest.approx(1 / math.sqrt(8) / 2)
    assert [Heads(variant("smollm3"), layer).rotary is None for layer in (0, 1)] == [False, True]


def score_by_hand_gpt2(model, layer, neuron, head):
    """h from the state dict alone: GPT-2's names, an 8-wide head, w_out and W_Q centred by hand."""
    state = {k: v.double() for k, v in model.hf.state_dict().items()}
    keys = []
    handle = model.hf.transformer.h[layer].attn.c_attn.register_forward_hook(lambda _m, _a, out: keys.append(out))
    model.forward(torch.tensor([[BOS]]))
    handle.remove()
    key = keys[0][0, 0, 16 + 8 * head : 24 + 8 * head].double()
    w_out = state["transformer.h.0.mlp.c_proj.weight"][neuron]
    w_out = w_out - w_out.mean()
    w_q = state[f"transformer.h.{layer}.attn.c_attn.weight"][:, 8 * head : 8 * head + 8]
    gain = state[f"transformer.h.{layer}.ln_1.weight"]
    return float((w_out / w_out.norm() * gain) @ (w_q @ key)) / math.sqrt(8)


def test_the_bos_score_of_gpt2_by_hand():
    model = variant("gpt2")
    scores = roles.bos_scores(model, processed_weights(model), BOS, DISTANCES)
    for head in (0, 1):
        for neuron in (0, 7, 23):
            expected = score_by_hand_gpt2(model, 1, neuron, head)
            assert float(scores.neurons[0, neuron, 1, head]) == pytest.approx(expected, rel=1e-5)
    assert scores.neurons[:, :, 0].isnan().all()
    assert scores.neurons[1].isnan().all()
    assert scores.neurons[0, :, 1].isfinite().all()


@pytest.mark.parametrize("name", ["gpt_neox", "gpt_neox, partial", "llama, shared keys", "qwen3", "opt", "gpt_neo"])
def test_the_bos_score_is_what_the_neuron_adds_to_the_models_own_scores(name):
    """Mean over distances of (query of gain · w_out) · (key of BOS), both rotated forward, by the modules themselves."""
    model = variant(name)
    scores = roles.bos_scores(model, processed_weights(model), BOS, DISTANCES)
    heads, normed = Heads(model, 1), []
    handle = heads.norm.register_forward_hook(lambda _m, _a, out: normed.append(out))
    model.forward(torch.tensor([[BOS]]))
    handle.remove()
    w_out = model.part(0, "w_out").weight.T[:, :].double()
    if heads.centred:
        w_out = w_out - w_out.mean(1, keepdim=True)
    directions = w_out / w_out.norm(dim=1, keepdim=True)
    if heads.centred:
        directions = directions - directions.mean(1, keepdim=True)
    directions = (directions * heads.norm.weight.double()).float()
    with torch.inference_mode():
        zero = heads.split("query", heads.query(torch.zeros(1, 16)))
        q = heads.split("query", heads.query(directions)) - zero
        if name == "qwen3":
            q = q * heads.module.q_norm.weight
        k = heads.rotated(heads.keys(heads.key(normed[0]))[0], torch.tensor([0]))
        at = [heads.rotated(q[:, None], torch.tensor([distance]))[:, 0] for distance in DISTANCES]
        expected = heads.scaling * torch.stack([(one * k).sum(-1) for one in at]).mean(0)
    torch.testing.assert_close(scores.neurons[0, :, 1], expected, rtol=1e-4, atol=1e-5)


def test_random_directions_are_seeded_and_as_wide_as_theory_says():
    model = variant("gpt2")
    weights = processed_weights(model)
    scores = roles.bos_scores(model, weights, BOS, DISTANCES, seed=3)
    assert torch.equal(scores.random, roles.bos_scores(model, weights, BOS, DISTANCES, seed=3).random)
    assert not torch.equal(scores.random, roles.bos_scores(model, weights, BOS, DISTANCES, seed=4).random)
    heads, key = Heads(model, 1), bos_key(model, BOS, DISTANCES)[1]
    reads = heads.scaling * torch.einsum("hed,he->hd", heads.w_q, key)
    torch.testing.assert_close(scores.random_sd[1], reads.norm(dim=1) / math.sqrt(15), rtol=0.05, atol=0)
    assert (scores.random_mean[1].abs() < scores.random_sd[1] * 0.06).all()
    later = scores.neurons[0, :, 1].double()
    torch.testing.assert_close(
        scores.z[0, :, 1].double(), (later - scores.random_mean[1]) / scores.random_sd[1], rtol=1e-4, atol=1e-4
    )


# Forward passes by hand: the residual stream at the end, with one head's query reading x − a · w_out.


def softmax_attention(q, k, v, scaling):
    causal = torch.ones(q.shape[-2], q.shape[-2]).triu(1).bool()
    return (q @ k.transpose(-1, -2) * scaling).masked_fill(causal, -torch.inf).softmax(-1) @ v


def turned(x, width, base=10000.0):
    """Rotary embedding of (rows, heads, positions, dims), dimension i with i + width / 2."""
    angle = torch.arange(x.shape[-2])[:, None] * base ** (-torch.arange(0, width, 2) / width)
    a, b, rest = x[..., : width // 2], x[..., width // 2 : width], x[..., width:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin(), rest], -1)


def by_hand_gpt2(s, neurons, head):
    lost, x = 0, s["transformer.wte.weight"][IDS] + s["transformer.wpe.weight"][:CONTEXT]
    for layer in (0, 1):
        p = f"transformer.h.{layer}."
        norm = lambda y, name, p=p: functional.layer_norm(y, (16,), s[p + name + ".weight"], s[p + name + ".bias"])  # noqa: E731
        qkv = norm(x, "ln_1") @ s[p + "attn.c_attn.weight"] + s[p + "attn.c_attn.bias"]
        if layer == 1:
            other = norm(x - lost, "ln_1") @ s[p + "attn.c_attn.weight"] + s[p + "attn.c_attn.bias"]
            qkv[..., 8 * head : 8 * head + 8] = other[..., 8 * head : 8 * head + 8]
        q, k, v = (part.view(3, CONTEXT, 2, 8).transpose(1, 2) for part in qkv.split(16, -1))
        z = softmax_attention(q, k, v, 8**-0.5).transpose(1, 2).reshape(3, CONTEXT, 16)
        x = x + z @ s[p + "attn.c_proj.weight"] + s[p + "attn.c_proj.bias"]
        a = functional.gelu(norm(x, "ln_2") @ s[p + "mlp.c_fc.weight"] + s[p + "mlp.c_fc.bias"], approximate="tanh")
        rows = torch.arange(3)
        lost = a[rows, :, neurons][..., None] * s[p + "mlp.c_proj.weight"][neurons][:, None]
        x = x + a @ s[p + "mlp.c_proj.weight"] + s[p + "mlp.c_proj.bias"]
    return functional.layer_norm(x, (16,), s["transformer.ln_f.weight"], s["transformer.ln_f.bias"])


def by_hand_neox(s, neurons, head):
    lost, x = 0, s["gpt_neox.embed_in.weight"][IDS]
    for layer in (0, 1):
        p = f"gpt_neox.layers.{layer}."
        norm = lambda y, name, p=p: functional.layer_norm(y, (16,), s[p + name + ".weight"], s[p + name + ".bias"])  # noqa: E731
        w, b = s[p + "attention.query_key_value.weight"], s[p + "attention.query_key_value.bias"]
        qkv = (norm(x, "input_layernorm") @ w.T + b).view(3, CONTEXT, 2, 3, 8)
        if layer == 1:
            other = (norm(x - lost, "input_layernorm") @ w.T + b).view(3, CONTEXT, 2, 3, 8)
            qkv[:, :, head, 0] = other[:, :, head, 0]
        q, k, v = (qkv[:, :, :, i].transpose(1, 2) for i in range(3))
        z = softmax_attention(turned(q, ROTARY), turned(k, ROTARY), v, 8**-0.5).transpose(1, 2).reshape(3, CONTEXT, 16)
        read = norm(x, "post_attention_layernorm")  # in parallel with the attention
        a = functional.gelu(read @ s[p + "mlp.dense_h_to_4h.weight"].T + s[p + "mlp.dense_h_to_4h.bias"])
        w_out = s[p + "mlp.dense_4h_to_h.weight"].T
        lost = a[torch.arange(3), :, neurons][..., None] * w_out[neurons][:, None]
        x = x + z @ s[p + "attention.dense.weight"].T + s[p + "attention.dense.bias"]
        x = x + a @ w_out + s[p + "mlp.dense_4h_to_h.bias"]
    return functional.layer_norm(x, (16,), s["gpt_neox.final_layer_norm.weight"], s["gpt_neox.final_layer_norm.bias"])


def by_hand_llama(s, neurons, head):
    def norm(y, name):
        return y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * s[name]

    lost, x = 0, s["model.embed_tokens.weight"][IDS]
    for layer in (0, 1):
        p = f"model.layers.{layer}."
        read = norm(x, p + "input_layernorm.weight")
        q, k, v = (
            (read @ s[p + f"self_attn.{n}_proj.weight"].T).view(3, CONTEXT, 2, 8).transpose(1, 2).clone() for n in "qkv"
        )
        if layer == 1:
            other = norm(x - lost, p + "input_layernorm.weight") @ s[p + "self_attn.q_proj.weight"].T
            q[:, head] = other[..., 8 * head : 8 * head + 8]
        z = softmax_attention(turned(q, 8), turned(k, 8), v, 8**-0.5).transpose(1, 2).reshape(3, CONTEXT, 16)
        x = x + z @ s[p + "self_attn.o_proj.weight"].T
        read = norm(x, p + "post_attention_layernorm.weight")
        gate, up = (read @ s[p + f"mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        a, w_out = functional.silu(gate) * up, s[p + "mlp.down_proj.weight"].T
        lost = a[torch.arange(3), :, neurons][..., None] * w_out[neurons][:, None]
        x = x + a @ w_out
    return norm(x, "model.norm.weight")


ROTARY = 2  # of 8 dimensions: GPT-NeoX's default quarter
BY_HAND = {"gpt2": by_hand_gpt2, "gpt_neox": by_hand_neox, "llama": by_hand_llama}


@pytest.mark.parametrize("family", BY_HAND)
@pytest.mark.parametrize("neurons", [5, (5, 0, 17)])
def test_without_path_is_the_forward_pass_by_hand(family, neurons):
    model = bare(family)
    given = neurons if isinstance(neurons, int) else torch.tensor(neurons)
    each = torch.tensor([neurons] * 3) if isinstance(neurons, int) else given
    clean = model.forward(IDS).last_hidden_state
    for head in (0, 1):
        with without_path(model, 0, given, 1, head):
            found = model.forward(IDS).last_hidden_state
        expected = BY_HAND[family](model.hf.state_dict(), each, head)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert (found - clean).abs().max() > 1e-3
    assert torch.equal(model.forward(IDS).last_hidden_state, clean)


@pytest.mark.parametrize("name", [*VARIANTS, "gemma", "granite", "nemotron", "starcoder2"])
def test_path_effects_are_the_difference_of_two_eager_passes(name, monkeypatch):
    model = variant(name)
    neurons, head, before = torch.tensor([3, 20, 11]), 1, hooks(model)
    found = path_effects(model, IDS, 0, neurons, 1, head)
    heads = Heads(model, 1)

    def outcome():
        own, inputs = patterns(model)
        z = inputs[1].reshape(*IDS.shape, -1)[..., heads.d_head : 2 * heads.d_head]
        return own[1][:, head, :, 0], (z @ heads.w_o[head].float().T).norm(dim=-1)

    clean = outcome()
    activations = model.activations(IDS)
    for place, neuron in enumerate(neurons.tolist()):
        with without_path(model, 0, neuron, 1, head):
            ablated = outcome()
        torch.testing.assert_close(found["activation"][place], activations[..., neuron])
        for key, kept, lost in zip(("delta_bos", "delta_norm"), clean, ablated):
            torch.testing.assert_close(found[key][place], kept - lost, rtol=0, atol=1e-5)
    assert found["delta_bos"][:, :, CONTEXT // 2 :].abs().max() > 1e-4
    assert hooks(model) == before
    monkeypatch.setattr("universal_neurons.interventions.paths.CPU_ELEMENTS", 1)  # a row and a neuron at a time
    apart = path_effects(model, IDS, 0, neurons, 1, head)
    for key, values in found.items():
        assert values.dtype == torch.float32
        torch.testing.assert_close(apart[key], values, rtol=0, atol=1e-5)


def test_a_path_skips_blocks_and_reaches_one_head_only():
    model = bare("gpt2", n_layer=4)
    clean, _ = patterns(model)
    with without_path(model, 0, 7, 2, 1):
        ablated, _ = patterns(model)
    for layer in (0, 1):
        assert torch.equal(clean[layer], ablated[layer])
    assert torch.equal(clean[2][:, 0], ablated[2][:, 0])
    assert not torch.allclose(clean[2][:, 1], ablated[2][:, 1])
    assert not torch.allclose(clean[3], ablated[3])
    effects = path_effects(model, IDS, 0, torch.tensor([7]), 2, 1)
    torch.testing.assert_close(
        effects["delta_bos"][0], clean[2][:, 1, :, 0] - ablated[2][:, 1, :, 0], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama, shared keys"])
def test_paths_to_several_heads_are_what_they_are_alone(name):
    family, changes = VARIANTS[name]
    layers = "n_layer" if family == "gpt2" else "num_hidden_layers"
    model = bare(family, **changes | {layers: 3})
    asked = [
        Paths(1, torch.tensor([7, 2]), 2, 1),
        Paths(0, torch.tensor([3]), 1, 0),
        Paths(0, torch.tensor([3, 5]), 2, 1),
    ]
    for found, paths in zip(effects_of_paths(model, IDS, asked), asked, strict=True):
        for key, alone in path_effects(model, IDS, *paths).items():
            torch.testing.assert_close(found[key], alone, rtol=0, atol=1e-6)
    assert effects_of_paths(model, IDS, []) == []
    assert hooks(model) == 0


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
def test_a_silent_neuron_has_no_effect(name):
    model = variant(name)
    clean = model.forward(IDS).last_hidden_state
    handle = model.part(0, "w_out").register_forward_pre_hook(
        lambda _m, args: (torch.where(torch.arange(24) == 4, 0.0, args[0]),)
    )
    silent = model.forward(IDS).last_hidden_state
    with without_path(model, 0, 4, 1, 0):
        torch.testing.assert_close(model.forward(IDS).last_hidden_state, silent, rtol=0, atol=1e-5)
    effects = path_effects(model, IDS, 0, torch.tensor([4]), 1, 0)
    handle.remove()
    assert effects["activation"].abs().max() == 0
    assert effects["delta_bos"].abs().max() < 1e-6
    assert effects["delta_norm"].abs().max() < 1e-5
    assert not torch.equal(clean, silent)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "qwen3", "opt"])
def test_everything_is_as_before_also_after_a_failure(name):
    model = variant(name)
    before, implementation = hooks(model), model.hf.config._attn_implementation
    assert implementation == "sdpa"

    def fail(*_):
        raise RuntimeError("broken")

    clean = model.forward(IDS).last_hidden_state
    for broken in (model.part(0, "w_out"), Heads(model, 1).out, Heads(model, 1).key):
        handle = broken.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="broken"), without_path(model, 0, 4, 1, 0):
            model.forward(IDS)
        with pytest.raises(RuntimeError, match="broken"):
            path_effects(model, IDS, 0, torch.tensor([4, 5]), 1, 0)
        handle.remove()
        assert hooks(model) == before
        assert model.hf.config._attn_implementation == implementation
    path_effects(model, IDS, 0, torch.tensor([4, 5]), 1, 0)
    assert model.hf.config._attn_implementation == implementation
    assert torch.equal(model.forward(IDS).last_hidden_state, clean)


def test_what_is_hooked_is_asserted():
    model = variant("gpt2")
    with pytest.raises(AssertionError, match="no forward pass"), without_path(model, 0, 4, 1, 0):
        pass
    with without_path(model, 0, 4, 1, 0):
        model.forward(IDS)
        model.forward(IDS[:1])
    heads = Heads(model, 1)

    def again(_m, args):
        heads.query(args[0])

    handle = heads.module.register_forward_pre_hook(again)
    with pytest.raises(AssertionError, match="2 times"), without_path(model, 0, 4, 1, 0):
        model.forward(IDS)
    handle.remove()
    wide = heads.query.register_forward_hook(lambda _m, _a, out: torch.cat([out, out], -1))
    with pytest.raises(AssertionError), without_path(model, 0, 4, 1, 0):
        model.forward(IDS)
    wide.remove()
    assert hooks(model) == 0
    for path in ((1, 4, 1, 0), (0, 4, 2, 0), (0, 24, 1, 0), (0, 4, 1, 2), (0, -1, 1, 0)):
        with pytest.raises(InputError, match="no such path"), without_path(model, *path):
            pass
        with pytest.raises(InputError, match="no such path"):
            path_effects(model, IDS, path[0], torch.tensor([path[1]]), *path[2:])


def test_encoders_are_refused():
    model = bare("bert", name="an-encoder")
    for ask in (
        lambda: Heads(model, 0),
        lambda: bos_key(model, BOS, DISTANCES),
        lambda: roles.bos_scores(model, processed_weights(model), BOS, DISTANCES),
        lambda: path_effects(model, IDS, 0, torch.tensor([1]), 1, 0),
        lambda: roles.at_bos(model, IDS),
    ):
        with pytest.raises(ArchitectureError, match="an-encoder"):
            ask()


def test_at_bos_by_hand():
    model = variant("gpt2")
    ids = IDS.clone()
    ids[1, 15:] = BOS  # padding
    found = roles.at_bos(model, ids)
    inputs = []
    handle = model.hf.transformer.h[1].attn.c_attn.register_forward_hook(lambda _m, _a, out: inputs.append(out))
    model.forward(ids)
    handle.remove()
    w = model.hf.transformer.h[1].attn.c_proj.weight
    w = w - w.mean(1, keepdim=True)
    for head in (0, 1):
        v = inputs[0][..., 32 + 8 * head : 40 + 8 * head]
        norms = (v @ w[8 * head : 8 * head + 8]).norm(dim=-1)
        assert float(found["bos_value_norm"][1, head]) == pytest.approx(float(norms[0, 0]), rel=1e-5)
        expected = np.median(norms[ids != BOS].numpy())
        assert float(found["value_norm"][1, head]) == pytest.approx(float(expected), rel=1e-5)
    torch.testing.assert_close(found["ratio"], found["value_norm"] / found["bos_value_norm"])
    own, _ = patterns(model, ids)
    for layer, head in ((0, 1), (1, 0)):
        expected = own[layer][:, head, CONTEXT // 2 :, 0].double().mean()
        assert float(found["bos_attention"][layer, head]) == pytest.approx(float(expected), rel=1e-5)
    counted = torch.zeros(ids.shape, dtype=torch.bool)
    counted[0, 5] = True
    one = roles.at_bos(model, ids, counted)
    assert float(one["value_norm"][1, 1]) == pytest.approx(float(norms[0, 5]), rel=1e-5)
    assert one["bos_attention"].isnan().all()  # nowhere in the second half
    counted[2, 15] = True
    late = float(roles.at_bos(model, ids, counted)["bos_attention"][1, 1])
    assert late == pytest.approx(float(own[1][2, 1, 15, 0]), rel=1e-5)


def planted(name):
    """Neuron 4 of layer 0 writes along what head 1 of layer 1 reads of BOS's key, neuron 9 the other way.

    Both are made silent at BOS first, so that its key does not depend on what they write; what that head reads at BOS
    is nothing, so that attending to it is writing less.
    """
    model, read = variant(name), []
    handle = model.part(0, "w_in").register_forward_pre_hook(lambda _m, args: read.append(args[0][0, 0]))
    model.forward(torch.tensor([[BOS]]))
    handle.remove()
    with torch.no_grad():
        rows, bias = matrix_of(model.part(0, "w_in")), model.part(0, "w_in").bias
        for neuron in (4, 9):
            pre = rows[neuron] @ read[0] + (0 if bias is None else bias[neuron])
            rows[neuron] -= pre * read[0] / read[0].square().sum()
        assert model.activations(torch.tensor([[BOS]]))[0, 0, [4, 9]].abs().max() < 1e-5
        along = torch.einsum("ed,e->d", Heads(model, 1).w_q[1], bos_key(model, BOS, DISTANCES)[1, 1])
        for neuron, length in ((4, 2), (9, -2)):
            matrix_of(model.part(0, "w_out"))[:, neuron] = length * along / along.norm()
        heads, seen = Heads(model, 1), []
        handle = heads.value.register_forward_hook(lambda _m, args, output: seen.append((args[0][0, 0], output[0, 0])))
        model.forward(torch.tensor([[BOS]]))
        handle.remove()
        (reads, values), columns = seen[0], heads.columns("value", 1)
        matrix_of(heads.value)[columns] -= torch.outer(values[columns], reads / reads.square().sum())
    return model


MANY = torch.cat(
    [torch.full((40, 1), BOS), torch.randint(1, 1000, (40, 31), generator=torch.Generator().manual_seed(1))], 1
)


def with_and_without_sink():
    """The planted GPT-2, whose head 0 of layer 1 is a copy of head 1, but that queries of head 1 are moved along the key
    of BOS, of head 0 against it: one head attends to BOS, the other does not, and all BOS scores are the same."""
    model = planted("gpt2")
    heads = Heads(model, 1)
    key = bos_key(model, BOS, DISTANCES)[1, 1].float()
    with torch.no_grad():
        weight, bias = matrix_of(heads.query), heads.query.bias
        for role in ("query", "key", "value"):
            columns = [heads.columns(role, head) for head in (0, 1)]
            weight[columns[0]], bias[columns[0]] = weight[columns[1]], bias[columns[1]]
        matrix_of(heads.out)[:, :8] = matrix_of(heads.out)[:, 8:16]
        for head, towards in ((0, -12), (1, 3)):
            bias[heads.columns("query", head)] += towards * key / key.norm()
    return model


def test_the_same_weights_have_the_role_at_a_head_with_a_sink_alone():
    model = with_and_without_sink()
    scores = roles.bos_scores(model, processed_weights(model), BOS, DISTANCES)
    torch.testing.assert_close(scores.neurons[0, :, 1, 0], scores.neurons[0, :, 1, 1])
    settings = RoleSettings(attention_pairs=2, attention_deviations=3.5, attention_corr=0.4)
    seen = roles.at_bos(model, MANY)["bos_attention"]
    assert seen[1, 1] > settings.attention_sink > 0.01 > seen[1, 0]
    pairs, _ = roles.attention_table(model, MANY, settings, scores)
    for neuron, sign, role in ((4, 1, "attention_deactivation"), (9, -1, "attention_activation")):
        here, there = (pairs.filter(neuron=neuron, head=head).row(0, named=True) for head in (1, 0))
        assert here["z"] == pytest.approx(there["z"], rel=1e-3)
        assert (here["role"], there["role"]) == (role, None), (here, there)
        assert here["bos_effect"] * sign > 2 * settings.attention_effect > 2 * abs(there["bos_effect"])
    first, _ = roles.attention_table(
        model, MANY, settings.model_copy(update={"attention_pairs": 1}), scores, bos_attention=seen
    )
    assert first.select("neuron", "head").rows() == [(4, 1), (9, 1)]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_planted_neurons_are_found_and_confirmed(name):
    model = planted(name)
    weights = processed_weights(model)
    scores = roles.bos_scores(model, weights, BOS, DISTANCES)
    own = scores.neurons[0, :, 1, 1]
    assert (int(own.argmax()), int(own.argmin())) == (4, 9)
    settings = RoleSettings(attention_pairs=2, attention_deviations=3.5, attention_corr=0.4)
    ids = MANY
    pairs, samples = roles.attention_table(model, ids, settings, scores)
    assert pairs.schema == pl.Schema(roles.PAIRS_SCHEMA)
    assert samples.schema == pl.Schema(roles.SAMPLES_SCHEMA)
    assert len(pairs) == 4
    for neuron, sign, role in ((4, 1, "attention_deactivation"), (9, -1, "attention_activation")):
        row = pairs.filter(neuron=neuron, head_layer=1, head=1).row(0, named=True)
        assert row["role"] == role, row
        assert row["z"] * sign > 3.5
        assert min(row["pearson_activation_bos"] * sign, row["spearman_activation_bos"] * sign) > 0.4
        assert row["positions"] == 40 * 16
    assert (pairs["z"].to_numpy()[:2] > 0).all()
    assert pairs.filter(pl.col("z").abs() < 3.5)["role"].null_count() == 2
    effects = path_effects(model, ids, 0, torch.tensor([4]), 1, 1)
    one = samples.filter(neuron=4, head_layer=1, head=1)
    assert len(one) == 640
    rows, at = one["row"].to_numpy(), one["position"].to_numpy()
    assert at.min() >= 16
    for key in ("activation", "delta_bos", "delta_norm"):
        np.testing.assert_allclose(one[key].to_numpy(), effects[key][0].numpy()[rows, at], atol=1e-6)
    late = effects["delta_bos"][0, :, 16:].double().numpy().ravel()
    act = effects["activation"][0, :, 16:].double().numpy().ravel()
    row = pairs.filter(neuron=4, head_layer=1, head=1).row(0, named=True)
    assert row["delta_bos"] == pytest.approx(late.mean(), abs=1e-6)
    assert row["pearson_activation_bos"] == pytest.approx(np.corrcoef(act, late)[0, 1], abs=1e-5)


def test_no_role_without_confirmation():
    settings = RoleSettings(attention_deviations=5, attention_corr=0.5)
    rising = np.linspace(-1, 1, 50, dtype=np.float32)
    effect = (np.abs(rising.astype(float)) * np.abs(rising.astype(float)) ** 3).sum() / np.abs(rising).sum()
    up = {"activation": rising, "delta_bos": rising**3, "delta_norm": -rising}
    assert roles.judge(up, 6.0, settings)["role"] == "attention_deactivation"
    assert roles.judge(up, 6.0, settings)["bos_effect"] == pytest.approx(effect)
    faint = up | {"delta_bos": np.float32(0.0099 / effect) * rising**3}  # as good a correlation
    assert roles.judge(faint, 6.0, settings)["bos_effect"] == pytest.approx(0.0099, rel=1e-4)
    assert roles.judge(faint, 6.0, settings)["role"] is None
    assert roles.judge(faint, 6.0, RoleSettings(attention_effect=0.0098))["role"] == "attention_deactivation"
    assert roles.judge(up | {"activation": 0 * rising}, 6.0, settings)["bos_effect"] is None
    assert roles.judge(up, 4.9, settings)["role"] is None
    assert roles.judge(up, -6.0, settings)["role"] is None
    assert roles.judge(up | {"delta_norm": rising}, 6.0, settings)["role"] is None  # it attends to BOS and writes more
    down = up | {"delta_bos": -rising, "delta_norm": rising}
    assert roles.judge(down, -6.0, settings)["role"] == "attention_activation"
    assert roles.judge(down, 6.0, settings)["role"] is None
    jitter = rising * 1e-6
    jitter[25:] = np.roll(jitter[25:], 1) * 1e5  # ranks agree, sizes do not
    ranks = up | {"delta_bos": np.where(np.arange(50) == 0, np.float32(9), jitter)}
    assert roles.judge(ranks, 6.0, settings)["spearman_activation_bos"] > 0.5
    assert roles.judge(ranks, 6.0, settings)["role"] is None
    still = roles.judge(up | {"delta_bos": rising * 0}, 6.0, settings)
    assert still["role"] is None
    assert still["pearson_activation_bos"] is None
    assert still["pearson_bos_norm"] is None
    assert roles.judge(up, 6.0, settings)["spearman_bos_norm"] == pytest.approx(-1)


def test_candidates_are_spread_over_heads_and_heads_with_a_sink_come_first():
    model = bare("gpt2", n_layer=3)
    scores = roles.bos_scores(model, processed_weights(model), BOS, DISTANCES)
    z = scores.z.flatten(0, -3).numpy()
    chosen = roles.candidates(scores, 6)
    for sign, some in ((1, chosen.filter(pl.col("z") > 0)), (-1, chosen.filter(pl.col("z") < 0))):
        best = [np.sort(sign * z[: 24 * layer, layer, head])[::-1] for layer in (1, 2) for head in (0, 1)]
        seconds = sorted((one[1] for one in best), reverse=True)[:2]
        expected = sorted([*(one[0] for one in best), *seconds], reverse=True)
        np.testing.assert_allclose((sign * some["z"]).to_numpy(), expected, rtol=1e-6)
        for row in some.iter_rows(named=True):
            at = z[24 * row["layer"] + row["neuron"], row["head_layer"], row["head"]]
            assert row["z"] == pytest.approx(float(at))
    sinks = torch.zeros(3, 2, dtype=torch.bool)
    sinks[2, 1] = sinks[0, 0] = True  # no neuron stands before layer 0
    assert set(roles.candidates(scores, 6, sinks).select("head_layer", "head").rows()) == {(2, 1)}


def tables(model, pairs=3):
    scores = roles.bos_scores(model, processed_weights(model), BOS, DISTANCES)
    settings = RoleSettings(attention_pairs=pairs)
    counted = torch.ones(IDS.shape, dtype=torch.bool)
    counted[2] = False
    return scores, *roles.attention_table(model, IDS, settings, scores, counted=counted)


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_tables_and_figures(name):
    model = variant(name)
    scores, pairs, samples = tables(model)
    assert pairs["positions"].to_list() == [2 * CONTEXT // 2] * 6
    assert set(samples["row"].unique()) == {0, 1}
    heads = roles.heads_table(scores, roles.at_bos(model, IDS))
    assert heads.schema == pl.Schema(roles.HEADS_SCHEMA)
    assert heads.select("head_layer", "head").rows() == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert heads["score_low"].null_count() == 2
    last = heads.row(3, named=True)
    assert last["score_high"] == pytest.approx(float(scores.neurons[0, :, 1, 1].max()))
    assert last["score_low"] == pytest.approx(float(scores.neurons[0, :, 1, 1].min()))
    histogram = roles.scores_histogram(scores)
    assert histogram.schema == pl.Schema(roles.HISTOGRAM_SCHEMA)
    counts = dict(histogram.group_by("kind").agg(pl.col("count").sum()).rows())
    assert counts == {"neuron": 24 * 2, "random": roles.DIRECTIONS * 2}
    figures = attention_neurons(histogram, pairs, samples, "one"), attention_pairs(pairs, samples, "more")
    assert [len(figure.axes) for figure in figures] == [3, 10]
    if name == "gpt2":
        again = attention_neurons(histogram, pairs, samples, "one")
        assert render(figures[0], "svg") == render(again, "svg")
    order = best_pairs(pairs)["z"].to_list()
    assert [value > 0 for value in order] == [True, False] * 3
    assert abs(order[0]) >= abs(order[2]) >= abs(order[4])


def test_a_model_of_one_layer_has_no_pairs():
    model = bare("gpt2", n_layer=1)
    scores, pairs, samples = tables(model)
    assert len(pairs) == len(samples) == 0
    histogram = roles.scores_histogram(scores)
    assert len(histogram) == 0
    assert attention_neurons(histogram, pairs, samples, "none") is None
    assert attention_pairs(pairs, samples, "none") is None
    assert len(roles.heads_table(scores, roles.at_bos(model, IDS))) == 2


def test_both_kinds_of_the_histogram_mix_the_heads_in_the_same_shares():
    model = bare("gpt2", n_layer=3)
    scores = roles.bos_scores(model, processed_weights(model), BOS, DISTANCES)
    histogram = roles.scores_histogram(scores)
    counts = dict(histogram.group_by("kind").agg(pl.col("count").sum()).rows())
    assert counts == {"neuron": 24 * 2 * (1 + 2), "random": roles.DIRECTIONS * 2 * (1 + 2)}
