"""Every type of the table on a tiny model of its real class: what it reads and writes, and rows that are wrong."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CONTEXT, MIXTURES, small_tokenizer, some_text
from tiny_types import KINDS, model_of, network_of
from torch import Tensor

import universal_neurons as un
from universal_neurons.errors import ArchitectureError
from universal_neurons.interventions import Readout
from universal_neurons.models import Model, load_weights, matrix_of, quiet_transformers, verify
from universal_neurons.models.architecture_table import ARCHITECTURES
from universal_neurons.models.locations import resolve_sources
from universal_neurons.models.model import context_of
from universal_neurons.roles.stage import why_no_roles

IDS = torch.arange(1, 41).view(2, 20) * 7
ACTIVATIONS = ("act", "act_fn", "activation_fn", "gelu_impl", "intermediate_act_fn", "activation")


def test_every_type_of_the_table_has_a_tiny_model_and_a_line_in_the_docs():
    types = [name for row in ARCHITECTURES for name in row.model_types]
    assert {kind.model_type for kind in KINDS.values()} | MIXTURES.keys() == set(types)
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    table = page[page.index("| architecture |") :].partition("\n\n")[0]
    lines = table.splitlines()[2:]
    told = [(line.split("|")[1].strip(), re.findall("`([^`]+)`", line.split("|")[2])) for line in lines]
    assert told == [(row.name, list(row.model_types)) for row in ARCHITECTURES]
    attention = [line.split("|")[3].strip() for line in lines]
    assert attention == ["no" if row.attention is None else "yes" for row in ARCHITECTURES]


@pytest.mark.parametrize("name", KINDS)
def test_it_passes_the_check_and_reads_rows_as_long_as_its_context(name):
    model = model_of(name)
    assert verify(model) < 1e-5
    row = torch.arange(model.context)[None] + 3
    assert model.activations(row).shape == (1, model.context, model.n_neurons)
    assert model.logits(row).isfinite().all()


def test_a_model_without_positions_has_a_context_too():
    assert model_of("mpt").context == CONTEXT
    config = copy.deepcopy(model_of("bloom").hf.config)
    del config.max_position_embeddings
    assert context_of(config, model_of("bloom").architecture) == 2048
    config.seq_length = 4096
    assert context_of(config, model_of("bloom").architecture) == 4096


NO_ROLES = {
    "gemma2": "capped by a tanh",
    "opt, post": "a projection of the residual stream",
    "electra": "a projection of the residual stream",
    "modernbert": "an encoder",
    "eurobert": "an encoder",
}


@pytest.mark.parametrize("name", KINDS)
def test_it_has_roles_or_a_reason_why_not(name):
    model = model_of(name)
    why = why_no_roles(model)
    assert NO_ROLES.get(name, "norms follow the residual sum" if KINDS[name].norm == "post" else "") in why
    if not why:
        Readout(model)


def block_outputs(hf, blocks) -> tuple[list[Tensor], list[Tensor]]:
    """What every block is given and returns, and the logits' residual, in float64, by hooks of this file alone."""
    given, returned = [], []

    def take(_m, args, kwargs, output):
        given.append((args[0] if args else kwargs["hidden_states"]).double())
        returned.append((output[0] if isinstance(output, tuple) else output).double())

    handles = [block.register_forward_hook(take, with_kwargs=True) for block in blocks]
    with torch.inference_mode():
        hf(IDS)
    for handle in handles:
        handle.remove()
    return given, returned


def normalised(kind, x: Tensor) -> Tensor:
    if kind.norm in ("none", "post"):
        return x
    x = x - x.mean(-1, keepdim=True) if kind.norm == "layer" else x
    return x / (x.square().mean(-1, keepdim=True) + kind.epsilon).sqrt()


def activation_function(block):
    return next(getattr(m, name) for m in block.modules() for name in ACTIVATIONS if callable(getattr(m, name, None)))


@pytest.mark.parametrize("name", KINDS)
def test_processed_weights_are_what_neurons_read_and_write(name):
    """From the residual stream alone: pre-activations, activations, and what each MLP adds to the stream."""
    kind, model = KINDS[name], model_of(name)
    weights = un.processed_weights(model)
    assert weights.folded == (kind.norm != "post")
    activations, pre = (
        model.activations(IDS, pre_activations=before).unflatten(-1, (2, -1)).double() for before in (False, True)
    )
    given, returned = block_outputs(model.hf, model.blocks)
    for layer, block in enumerate(model.blocks):
        act, z = activations[:, :, layer], pre[:, :, layer]
        # Without its MLP, a block of sequential residuals returns what its MLP read.
        silent = copy.deepcopy(model.hf)
        out = Model(silent, name).part(layer, "w_out")
        out.weight.zero_()
        if out.bias is not None:
            out.bias.zero_()
        without = block_outputs(silent, Model(silent, name).blocks)[1][layer]
        if kind.norm != "post":
            read = normalised(kind, given[layer] if kind.parallel else without)
            expected = read @ weights.w_in[layer].T + weights.b_in[layer]
            torch.testing.assert_close(z, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
            up = 1.0 if weights.w_up is None else read @ weights.w_up[layer].T + weights.b_up[layer]
            made = activation_function(block)(z.float()) * up
            torch.testing.assert_close(act, made.double(), rtol=0, atol=2e-5 * float(made.abs().max()))
            added = returned[layer] - without
            written = act @ weights.w_out[layer] + weights.b_out[layer]
            if kind.norm == "layer":
                added = added - added.mean(-1, keepdim=True)
            if kind.out_norm:  # known but for a factor at every position
                added, written = (torch.nn.functional.normalize(x, dim=-1) for x in (added, written))
            torch.testing.assert_close(added, written, rtol=0, atol=2e-5 * float(written.abs().max()))
        else:
            assert torch.equal(weights.w_out[layer], matrix_of(model.part(layer, "w_out")).double().T)


@pytest.mark.parametrize("name", KINDS)
def test_processed_weights_keep_the_log_softmax(name):
    kind, model = KINDS[name], model_of(name)
    weights = un.processed_weights(model)
    narrow = "a projection of the residual stream" in " ".join(model.notes)
    assert narrow == (name in ("opt, post", "electra"))
    if narrow:
        assert weights.w_u.shape == (0, model.d_model)
        return
    seen = []
    reader = model.hf.get_output_embeddings()
    if name == "modernbert":
        reader = model.hf.head.norm
    handle = reader.register_forward_pre_hook(lambda _m, args: seen.append(args[0].double()))
    own = model.logits(IDS).double().log_softmax(-1)
    handle.remove()
    if name == "modernbert":
        read = normalised(kind, seen[0])
    elif kind.norm == "post":
        read = seen[0]
    else:
        read = normalised(
            replace(kind, norm="rms") if kind.norm == "none" else kind, block_outputs(model.hf, model.blocks)[1][-1]
        )
    logits = read @ weights.w_u.T + weights.b_u
    cap = KINDS[name].changes.get("final_logit_softcapping")
    centred = bool(weights.w_u.mean(0).abs().max() < 1e-9)
    assert centred == (cap is None)
    if cap is not None:
        assert any("not centred" in note for note in model.notes)
        logits = cap * torch.tanh(logits / cap)
    assert (logits.log_softmax(-1) - own).abs().max() <= 1e-5


@pytest.mark.parametrize("name", KINDS)
def test_a_permuted_copy_has_the_same_neurons_in_another_order(name):
    model = model_of(name)
    copied, order = permuted(name)
    for before in (False, True):
        expected = model.activations(IDS, pre_activations=before).unflatten(-1, (2, -1))[..., order]
        torch.testing.assert_close(
            copied.activations(IDS, pre_activations=before).unflatten(-1, (2, -1)), expected, rtol=1e-4, atol=1e-5
        )


def permuted(name: str) -> tuple[Model, Tensor]:
    """A copy whose neurons are in another order, the same in both layers."""
    copied = Model(copy.deepcopy(model_of(name).hf), f"{name}, permuted", tokenizer=small_tokenizer())
    order = torch.randperm(copied.d_mlp, generator=torch.Generator().manual_seed(0))
    for layer in range(copied.n_layers):
        modules = {copied.part(layer, role) for role in (("w_in", "w_up") if copied.gated else ("w_in",))}
        for module in modules:
            rows = torch.cat([order + start for start in range(0, matrix_of(module).shape[0], copied.d_mlp)])
            weight = matrix_of(module)
            weight.copy_(weight[rows].clone())
            if module.bias is not None:
                module.bias.copy_(module.bias[rows].clone())
        weight = matrix_of(copied.part(layer, "w_out"))
        weight.copy_(weight[:, order].clone())
    return copied, order


@pytest.mark.parametrize("name", ["phi3", "gemma3_text", "falcon"])
def test_a_study_matches_a_permuted_copy_with_itself(name, tmp_path):
    (tmp_path / "text.txt").write_text(some_text(1500))
    copied, order = permuted(name)
    config = un.StudyConfig(
        data=str(tmp_path / "text.txt"),
        out=str(tmp_path / "out"),
        context=32,
        max_tokens=2048,
        stages=("universality",),
    )
    store = un.run_study(config, models=[model_of(name), copied], progress=False)
    matches = store.matches.filter(rank=1).sort("layer", "neuron")
    inverse = order.argsort()
    expected = torch.cat([inverse, inverse])
    assert matches["corr"].abs().min() > 1 - 1e-4
    assert matches["match_neuron"].to_list() == expected.tolist()


@pytest.mark.parametrize("name", KINDS)
def test_it_loads_from_a_folder(name, tmp_path):
    model = model_of(name)
    with quiet_transformers():
        model.hf.save_pretrained(tmp_path)
    loaded = load_weights(resolve_sources([str(tmp_path)])[0], "float32")
    assert not loaded.headless
    torch.testing.assert_close(
        Model(loaded.network, name).activations(IDS), model.activations(IDS), rtol=1e-4, atol=1e-5
    )


WRONG = {
    "blocks": ("gpt2", {"blocks": "transformer.layers"}, "not a whole"),
    "mlp_norm": ("gpt2", {"mlp_norm": "ln_1"}, "pre-activation is not"),
    "mlp_norm of none": ("olmo2", {"mlp_norm": "post_attention_layernorm"}, "pre-activation is not"),
    "no mlp_norm": ("llama", {"mlp_norm": ()}, "pre-activation is not"),
    "another mlp_norm": ("gemma2", {"mlp_norm": "post_attention_layernorm"}, "pre-activation is not"),
    "mlp_norm of a falcon": ("falcon, two norms", {"mlp_norm": "ln_attn"}, "pre-activation is not"),
    "w_in": ("gpt2", {"w_in": "attn.c_attn"}, "another shape"),
    "w_in that is none": ("bloom", {"w_in": "mlp.c_fc"}, "has no mlp.c_fc"),
    "w_in and w_up": ("llama", {"w_in": "mlp.up_proj", "w_up": "mlp.gate_proj"}, "not a gate's times"),
    "w_up": ("phi3", {"w_up": None}, "another shape"),
    "w_up that is not there": ("gemma", {"w_up": None}, "not a function of its pre-activation"),
    "w_out": ("llama", {"w_out": "self_attn.o_proj"}, "another shape"),
    "final_norm": ("gpt2", {"final_norm": "transformer.h.1.ln_1"}, "logits"),
    "final_norm that is none": ("gpt2", {"final_norm": "transformer.norm"}, "logits"),
    "unembedding": ("mpt", {"unembedding": "transformer.blocks.0.ffn.up_proj"}, "logits"),
    "norm": ("llama", {"norm": "layer"}, "pre-activation is not"),
    "norm, the other way": ("cohere", {"norm": "rms"}, "pre-activation is not"),
    "gain_offset": ("gemma", {"gain_offset": 0.0}, "pre-activation is not"),
    "out_norm left out": ("gemma3_text", {"out_norm": None}, "residual stream"),
    "out_norm": ("exaone4", {"out_norm": "post_attention_layernorm"}, "residual stream"),
    "out_norm too many": ("llama", {"out_norm": "input_layernorm"}, "residual stream"),
    "post_norm": ("gpt2", {"post_norm": True}, "residual stream"),
    "post_norm left out": ("bert", {"post_norm": False}, "residual stream"),
    "post_norm of OPT": ("opt, post", {"post_norm": False}, "residual stream"),
    "causal": ("eurobert", {"causal": True}, "first tokens know"),
    "residual_multiplier": ("granite", {"residual_multiplier": None}, "residual stream"),
    "logit_multiplier": ("cohere2", {"logit_multiplier": None}, "logits"),
    "logit_divisor": ("granite", {"logit_divisor": None}, "logits"),
    "logit_cap": ("gemma2", {"logit_cap": None}, "logits"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_row_that_is_wrong_is_refused_by_the_running_model(what, monkeypatch):
    name, changes, said = WRONG[what]
    monkeypatch.setattr(
        "universal_neurons.models.architecture_table.ARCHITECTURES", [replace(model_of(name).architecture, **changes)]
    )
    with pytest.raises(ArchitectureError, match=said):
        verify(Model(model_of(name).hf, name))


def test_logits_that_are_no_numbers_are_refused():
    network = network_of("gpt2")
    network.lm_head.register_forward_hook(lambda _m, _a, out: out.masked_fill(out > 0, torch.nan))
    with pytest.raises(ArchitectureError, match="logits"):
        verify(Model(network, "broken"))


def test_every_field_of_a_row_is_broken_above_or_checked_elsewhere():
    """`settings` choose a row; `attention` is checked against attention patterns (tests/roles/test_attention.py);
    `positions_after_padding` by rows as long as the context; those of experts in test_experts.py; where heads are put
    together (`heads_…`) by what a block adds, in test_places.py."""
    broken = {field for _, changes, _ in WRONG.values() for field in changes}
    elsewhere = {"name", "model_types", "settings", "attention", "positions_after_padding", "experts", "up_plus_one"}
    elsewhere |= {"heads_out", "heads_norm"}
    assert broken | elsewhere == set(ARCHITECTURES[0].__dataclass_fields__)


def test_a_block_that_scales_what_its_mlp_adds_is_refused_in_half_precision_too():
    network = network_of("phi3").bfloat16()
    assert verify(Model(network, "half")) < 1e-4
    network.model.layers[1].mlp.register_forward_hook(lambda _m, _a, out: out * 1.05)
    with pytest.raises(ArchitectureError, match="residual stream"):
        verify(Model(network, "half"))
