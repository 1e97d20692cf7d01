"""Mixtures of experts against their blocks written out: routers, experts one by one, in float64."""

import copy
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import MIXTURES, tiny_model, tiny_network
from torch.nn.functional import silu

import universal_neurons as un
from universal_neurons.errors import ArchitectureError, CheckpointError, ConfigError
from universal_neurons.interventions import path_effects
from universal_neurons.models import Model, load_model, processed_weights, verify
from universal_neurons.models.architectures import ExpertParts
from universal_neurons.units import parse_unit, unit_name

IDS = torch.arange(1, 49).view(2, 24) * 7 % 1024
SPARSE = {"mixtral": [0, 1], "olmoe": [0, 1], "qwen2_moe": [0], "qwen3_moe": [1], "gpt_oss": [0, 1]}
RENORMALISED = {"mixtral": True, "olmoe": False, "qwen2_moe": False, "qwen3_moe": False}


@pytest.fixture(scope="module", params=MIXTURES)
def model(request):
    return tiny_model(request.param)


def inputs_and_outputs(model, ids=IDS):
    """What each block's MLP reads and gives."""
    seen = {}

    def keep(layer, _m, args, output):
        seen[layer] = args[0].double().flatten(0, -2), (output[0] if isinstance(output, tuple) else output).double()

    handles = [
        block.mlp.register_forward_hook(lambda m, args, output, layer=layer: keep(layer, m, args, output))
        for layer, block in enumerate(model.blocks)
    ]
    model.forward(ids)
    for handle in handles:
        handle.remove()
    return seen


def chosen(kind, p, x):
    """Of one token, its experts and their weights."""
    if kind == "gpt_oss":
        logits = p["router.weight"] @ x + p["router.bias"]
        top = logits.argsort(descending=True)[:2]
        return top.tolist(), (logits[top] - logits[top].max()).exp() / (logits[top] - logits[top].max()).exp().sum()
    logits = p["gate.weight"] @ x
    probabilities = logits.exp() / logits.exp().sum()
    top = probabilities.argsort(descending=True)[:2]
    weights = probabilities[top]
    return top.tolist(), weights / weights.sum() if RENORMALISED[kind] else weights


def of_one_expert(kind, p, expert, x):
    """An expert's gates and act(gate) · up of one token."""
    both = p["experts.gate_up_proj"][expert]
    if kind == "gpt_oss":
        both = x @ both + p["experts.gate_up_proj_bias"][expert]
        gate, up = both[0::2], both[1::2]
        low = gate.clamp(max=7)
        return gate, (up.clamp(-7, 7) + 1) * low * torch.sigmoid(1.702 * low)
    gate, up = both[:16] @ x, both[16:] @ x
    return gate, silu(gate) * up


def written_out(model, layer, reads):
    """A layer's pre-activations, activations and what it adds, token by token."""
    kind = model.hf.config.model_type
    p = {name: value.double() for name, value in model.blocks[layer].mlp.state_dict().items()}
    gates, activations, added = [], [], []
    for x in reads:
        if layer not in SPARSE[kind]:
            gate = p["gate_proj.weight"] @ x
            values = silu(gate) * (p["up_proj.weight"] @ x)
            add = p["down_proj.weight"] @ values
        else:
            gate, values, add = sparse_token(kind, p, x)
        gates.append(gate)
        activations.append(values)
        added.append(add)
    return torch.stack(gates), torch.stack(activations), torch.stack(added)


def sparse_token(kind, p, x):
    gates, values = torch.zeros(4, 16, dtype=torch.float64), torch.zeros(4, 16, dtype=torch.float64)
    add = torch.zeros(32, dtype=torch.float64)
    for expert, weight in zip(*chosen(kind, p, x), strict=True):
        gates[expert], value = of_one_expert(kind, p, expert, x)
        values[expert] = weight * value
        down = p["experts.down_proj"][expert]
        if kind == "gpt_oss":
            add += weight * (value @ down + p["experts.down_proj_bias"][expert])
        else:
            add += weight * (down @ value)
    gates, values = gates.flatten(), values.flatten()
    if kind == "qwen2_moe":
        share = torch.sigmoid(p["shared_expert_gate.weight"] @ x)
        gate = p["shared_expert.gate_proj.weight"] @ x
        shared = share * silu(gate) * (p["shared_expert.up_proj.weight"] @ x)
        gates, values = torch.cat([gate, gates]), torch.cat([shared, values])
        add = add + p["shared_expert.down_proj.weight"] @ shared
    return gates, values, add


def test_activations_are_those_of_the_block_written_out(model):
    seen = inputs_and_outputs(model)
    activations, gates = model.activations(IDS), model.activations(IDS, pre_activations=True)
    for layer, (reads, output) in seen.items():
        columns = model.units.columns(layer)
        expected_gates, expected, added = written_out(model, layer, reads)
        found = activations[..., columns].flatten(0, 1).double()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(found == 0, expected == 0), "a token has other experts"
        torch.testing.assert_close(gates[..., columns].flatten(0, 1).double(), expected_gates, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(added, output.flatten(0, -2), rtol=1e-4, atol=1e-5)


def test_units_are_named_by_their_experts(model):
    kind = model.hf.config.model_type
    dense = [layer for layer in (0, 1) if layer not in SPARSE[kind]]
    plain = dict.fromkeys(dense, 24) | dict.fromkeys(SPARSE[kind], 20 * (kind == "qwen2_moe"))
    expected = []
    for layer in (0, 1):
        expected += [f"L{layer}.{unit}" for unit in range(plain[layer])]
        if layer in SPARSE[kind]:
            expected += [f"L{layer}.E{expert}.{unit}" for expert in range(4) for unit in range(16)]
    assert [unit_name(*model.units.place_of(number)) for number in range(model.n_neurons)] == expected


def test_the_sign_is_free_where_negating_up_and_out_changes_nothing(model):
    """Else, of up + 1, pairs must not be matched by size."""
    network = copy.deepcopy(model.hf)
    for layer in SPARSE[network.config.model_type]:
        experts = network.model.layers[layer].mlp.experts
        if network.config.model_type == "gpt_oss":
            experts.gate_up_proj[..., 1::2] *= -1
            experts.gate_up_proj_bias[..., 1::2] *= -1
        else:
            experts.gate_up_proj[:, 16:] *= -1
        experts.down_proj *= -1
    same = torch.allclose(Model(network, "negated").logits(IDS), model.logits(IDS), atol=1e-4)
    assert model.gated == same == (network.config.model_type != "gpt_oss")


def test_the_model_is_verified_and_stays_as_it_was(model):
    before, implementation = model.logits(IDS), model.hf.config._experts_implementation
    assert verify(model) < 1e-5
    model.activations(IDS)
    assert torch.equal(model.logits(IDS), before)
    with torch.no_grad():
        assert torch.equal(model.hf(input_ids=IDS).logits, before)
    assert model.hf.config._experts_implementation == implementation
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())


def test_reading_changes_nothing_of_the_pass_itself(model):
    expected = model.logits(IDS)
    with model.capturing(lambda _layer, _values: None):
        assert torch.equal(model.logits(IDS), expected)


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_whatever_function_computes_the_experts(implementation):
    model = tiny_model("mixtral")
    expected = model.activations(IDS)
    model.hf.config._experts_implementation = implementation
    assert verify(model) < 1e-5
    torch.testing.assert_close(model.activations(IDS), expected, rtol=1e-4, atol=1e-5)
    assert model.hf.config._experts_implementation == implementation


def test_in_bfloat16_it_is_verified_in_float32():
    assert verify(Model(tiny_network("gpt_oss").bfloat16(), "half")) < 1e-5


def broken(row, **changes):
    return replace(row, experts=replace(row.experts, **changes))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen2_moe", {"shared": None, "shared_gate": None}),
        ("qwen2_moe", {"shared_gate": None}),
        ("mixtral", {"module": "self_attn"}),
    ],
)
def test_a_wrong_row_is_refused(family, changes, monkeypatch):
    right = tiny_model(family).architecture
    monkeypatch.setattr("universal_neurons.models.model.architecture_of", lambda *_: broken(right, **changes))
    with pytest.raises(ArchitectureError, match=r"not activation · W_out|no part of"):
        verify(tiny_model(family))


def test_a_norm_that_experts_do_not_read_through_is_refused(monkeypatch):
    wrong = replace(tiny_model("mixtral").architecture, mlp_norm="input_layernorm")
    monkeypatch.setattr("universal_neurons.models.model.architecture_of", lambda *_: wrong)
    with pytest.raises(ArchitectureError, match=r"not W_in · norm"):
        verify(tiny_model("mixtral"))


def test_a_row_that_names_no_experts_is_refused(monkeypatch):
    right = tiny_model("mixtral").architecture
    wrong = replace(right, experts=ExpertParts(experts="mlp.expert_list"))
    monkeypatch.setattr("universal_neurons.models.model.architecture_of", lambda *_: wrong)
    with pytest.raises(ArchitectureError, match="has no mlp"):
        tiny_model("mixtral")


def test_weights_that_are_no_numbers_are_refused():
    network = tiny_network("olmoe")
    network.model.layers[0].mlp.experts.down_proj = torch.nn.Parameter(
        torch.zeros(4, 32, 16, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(CheckpointError, match="quantised"):
        Model(network, "int8")


def without_unit(model, layer, expert, unit):
    """A copy in which what one unit writes is 0."""
    network = copy.deepcopy(model.hf)
    mlp = network.model.layers[layer].mlp
    if expert is None:
        getattr(mlp, "shared_expert", mlp).down_proj.weight[:, unit] = 0
    elif network.config.model_type == "gpt_oss":
        mlp.experts.down_proj[expert, unit] = 0
    else:
        mlp.experts.down_proj[expert, :, unit] = 0
    return Model(network, "without")


def some_names(model):
    layer = SPARSE[model.hf.config.model_type][0]
    return [f"L{layer}.E1.3", *["L0.5"] * (model.units.has(0, 5))]


def test_an_experts_neuron_is_silenced_as_its_weights_would(model):
    for name in some_names(model):
        _, layer, unit = parse_unit(name)
        expert = None if ".E" not in name else 1
        expected = without_unit(model, layer, expert, unit % 1_000_000).logits(IDS)
        assert not torch.equal(expected, model.logits(IDS))
        with un.intervene(model, [name], "zero"):
            torch.testing.assert_close(model.logits(IDS), expected, rtol=1e-4, atol=1e-4)


def test_a_fixed_neuron_writes_where_no_token_came_too(model):
    name = some_names(model)[0]
    number = model.units.number_of(*parse_unit(name)[1:])
    layer = model.units.layer_of(number)
    before, clean = model.activations(IDS), inputs_and_outputs(model)[layer][1]
    with un.intervene(model, [name], un.Edit("fix", 2.0)):
        after, changed = model.activations(IDS), inputs_and_outputs(model)[layer][1]
    assert (before[..., number] == 0).any()
    assert (after[..., number] == 2).all()
    w_out = model.written(layer)[number - model.units.starts[layer]].double()
    expected = (2 - before[..., number].double())[..., None] * w_out
    torch.testing.assert_close((changed - clean).view_as(expected), expected, rtol=1e-4, atol=1e-4)


def test_only_some_positions():
    model = tiny_model("mixtral")
    positions = torch.arange(24) >= 20
    with un.intervene(model, ["L1.E0.0"], un.Edit("fix", 3.0), positions=positions):
        after = model.activations(IDS)[..., 64]
    assert (after[:, 20:] == 3).all()
    assert not (after[:, :20] == 3).any()


def test_a_neuron_that_no_expert_has_is_refused():
    model = tiny_model("qwen2_moe")
    for name in ("L0.E4.0", "L0.E0.16", "L0.20", "L1.E0.0"):
        with pytest.raises(ConfigError, match="no such neuron"), un.intervene(model, [name], "zero"):
            pass


def test_paths_to_heads():
    model = tiny_model("qwen2_moe", mlp_only_layers=[])
    number = model.units.place_of(25)
    assert unit_name(*number) == "L0.E0.5"
    effects = path_effects(model, IDS, 0, torch.tensor([25]), 1, 0)
    torch.testing.assert_close(effects["activation"][0], model.activations(IDS)[..., 25], rtol=1e-4, atol=1e-5)
    assert effects["delta_bos"].abs().max() > 0


def test_another_threads_pass_goes_on_as_it_would():
    model = tiny_model("qwen2_moe")
    expected, inside = model.logits(IDS), []

    def meanwhile(_layer, _values):
        if not inside:
            inside.append(None)
            thread = threading.Thread(target=lambda: inside.append(model.logits(IDS[:1])))
            thread.start()
            thread.join()

    with model.capturing(meanwhile):
        assert torch.equal(model.logits(IDS), expected)
    torch.testing.assert_close(inside[1], expected[:1])


def test_processed_weights_keep_what_the_model_predicts(model):
    """The last layer's experts, computed from processed weights, predict what the model does."""
    weights = processed_weights(model)
    assert weights.units == model.units
    columns = model.units.columns(1)
    last, norm = {}, model.hf.model.layers[1].post_attention_layernorm
    handles = [
        norm.register_forward_pre_hook(lambda _m, args: last.update(residual=args[0].double())),
        model.hf.model.norm.register_forward_pre_hook(lambda _m, args: last.update(final=args[0].double())),
    ]
    expected = model.logits(IDS).double().log_softmax(-1)
    for handle in handles:
        handle.remove()
    epsilon = norm.variance_epsilon
    read = last["residual"] / (last["residual"].square().mean(-1, keepdim=True) + epsilon).sqrt()
    gates = read @ weights.w_in.flatten(0, -2)[columns].T + weights.b_in.flatten()[columns]
    ups = read @ weights.w_up.flatten(0, -2)[columns].T + weights.b_up.flatten()[columns]
    activation, pre = (model.activations(IDS, pre_activations=which)[..., columns].double() for which in (False, True))
    routed = activation != 0
    torch.testing.assert_close(gates[routed], pre[routed], rtol=1e-4, atol=1e-4)
    if model.hf.config.model_type == "gpt_oss":
        low = gates.clamp(max=7)
        values = (ups.clamp(-7, 7) + 1) * low * torch.sigmoid(1.702 * low)
    else:
        values = silu(gates) * ups
    share = (activation / values)[routed & (values.abs() > 0.01)]  # the weights of experts
    assert ((share > 0) & (share <= 1 + 1e-4)).all()
    bias = last["final"] - last["residual"] - activation @ weights.w_out.flatten(0, -2)[columns]
    assert (bias.abs().max() < 1e-4) == (model.hf.config.model_type != "gpt_oss")
    final = last["final"] / (last["final"].square().mean(-1, keepdim=True) + epsilon).sqrt()
    found = (final @ weights.w_u.T + weights.b_u).log_softmax(-1)
    assert (found - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("family", MIXTURES)
def test_a_saved_model_is_read_again(family, tmp_path):
    network = tiny_network(family)
    network.save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    torch.testing.assert_close(model.activations(IDS), Model(network, "kept").activations(IDS))


@pytest.mark.parametrize("lost", ["experts.3.", "experts.2.w1", "experts.0.w2"])
def test_a_lost_expert_is_named(lost, tmp_path):
    from safetensors.torch import load_file, save_file

    tiny_network("mixtral").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if lost not in name or "layers.1" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.experts|incomplete|do not fit"):
        load_model(str(tmp_path))


def test_names_in_arrays_are_those_of_single_units():
    units = tiny_model("qwen2_moe").units
    numbers = np.arange(len(units))
    layers, within = units.place_of(numbers)
    assert [units.place_of(int(n)) for n in numbers] == list(zip(layers.tolist(), within.tolist()))
    assert units.number_of(layers, within).tolist() == numbers.tolist()
