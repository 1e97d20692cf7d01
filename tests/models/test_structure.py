"""Models that no row of the table names: their parts are found by what they do, or they are refused, saying why."""

import copy
import json
from pathlib import Path

import pytest
import torch
from conftest import COMMON, FEW_EXPERTS, MIXTURES, random_norms, small_tokenizer, some_text, tiny_network
from tiny_types import KINDS, SHARED, SMALL, model_of, network_of
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

import universal_neurons as un
from universal_neurons.cli import main
from universal_neurons.errors import ArchitectureError, CheckpointError
from universal_neurons.interventions import Readout
from universal_neurons.models import Model, is_gated, load_model, quiet_transformers, untrained_model, verify

IDS = torch.arange(1, 41).view(2, 20) * 7
TABLE = "universal_neurons.models.architecture_table.ARCHITECTURES"
ROLES = ("w_in", "w_up", "w_out", "mlp_norm")
SILENCED = "takes from the residual stream not what it returns"
CANNOT = {  # what a row says of them cannot be found by structure
    "gemma2": SILENCED, "gemma3_text": SILENCED, "glm4": SILENCED,  # a norm follows the MLP
    "olmo2": SILENCED, "olmo3": SILENCED, "exaone4": SILENCED,
    "granite": SILENCED, "granite_swa": SILENCED,  # what the MLP adds is multiplied
    "cohere": "its logits are not", "cohere2": "its logits are not",  # logits are multiplied
    **{name: SILENCED for name, kind in KINDS.items() if kind.norm == "post"},
}  # fmt: skip


@pytest.fixture
def no_table(monkeypatch):
    monkeypatch.setattr(TABLE, ())


@pytest.mark.parametrize("name", KINDS)
def test_it_is_found_without_its_row_or_refused(name, monkeypatch):
    known = model_of(name)
    monkeypatch.setattr(TABLE, ())
    if name in CANNOT:
        with pytest.raises(ArchitectureError, match=CANNOT[name]):
            verify(Model(known.hf, name))
        return
    found = Model(known.hf, name)
    assert verify(found) < 1e-5
    row, right = found.architecture, known.architecture
    for role in ROLES if known.gated else [role for role in ROLES if role != "w_up"]:
        for layer in range(known.n_layers):
            assert found.part(layer, role) is known.part(layer, role)
    same = (
        "blocks", "final_norm", "unembedding", "norm", "gain_offset", "causal", "post_norm", "gated", "fused",
        "positions_after_padding",
    )  # fmt: skip
    assert [getattr(row, what) for what in same] == [getattr(right, what) for what in same]
    assert (found.context, found.units) == (known.context, known.units)
    for pre in (False, True):
        assert torch.equal(found.activations(IDS, pre_activations=pre), known.activations(IDS, pre_activations=pre))
    expected, weights = un.processed_weights(known), un.processed_weights(found)
    assert torch.equal(weights.w_in, expected.w_in)
    assert torch.equal(weights.w_out, expected.w_out)
    assert torch.equal(weights.w_u, expected.w_u)


def test_the_docs_say_of_how_many_kinds_that_holds():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    assert f"{len(KINDS) - len(CANNOT)} of the {len(KINDS)} tiny models" in page


@pytest.mark.parametrize("family", MIXTURES)
def test_mixtures_are_refused(family, no_table):
    with pytest.raises(ArchitectureError, match=r"experts, or another stack of matrices, at model\.layers"):
        Model(tiny_network(family), family)


OTHERS = {  # of types that no row names
    "hunyuan_v1_dense": SMALL,
    "ernie4_5": SMALL,
    "lfm2": SHARED | {"full_attn_idxs": [1], "block_ff_dim": 24, "block_auto_adjust_ff_dim": False},  # convolutions
    "biogpt": {},
    "ctrl": {"n_positions": 64, "n_embd": 16, "dff": 24, "n_layer": 2, "n_head": 2},
    "megatron-bert": {},
    "roberta-prelayernorm": {},
    "xlm-roberta-xl": {},
}
ENCODERS = ("megatron-bert", "roberta-prelayernorm", "xlm-roberta-xl")
GATED = ("hunyuan_v1_dense", "ernie4_5", "lfm2")


def other(model_type: str, seed: int = 0):
    loader = AutoModelForMaskedLM if model_type in ENCODERS else AutoModelForCausalLM
    torch.manual_seed(seed)
    with quiet_transformers():
        return random_norms(loader.from_config(AutoConfig.for_model(model_type, **COMMON | OTHERS[model_type])))


@pytest.mark.parametrize("model_type", OTHERS)
def test_types_of_no_row_load_from_a_folder(model_type, tmp_path):
    network = other(model_type)
    network.save_pretrained(tmp_path)
    small_tokenizer().save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    gated = model_type in GATED
    assert (model.gated, model.architecture.causal) == (gated, model_type not in ENCODERS)
    assert model.architecture.name == f"found by structure{', gated' * gated}: {model_type}"
    assert is_gated(model.describe()["architecture"], "a sketch") == gated
    note = next(note for note in model.notes if "found by structure" in note)
    assert f"no row of the table for model_type '{model_type}'" in note
    assert f"w_out at {model.architecture.w_out}" in note
    row = torch.arange(model.context)[None] + 3
    torch.testing.assert_close(model.logits(row), network(input_ids=row).logits, rtol=1e-4, atol=1e-4)
    assert model.activations(row).shape == (1, model.context, 48)
    if model_type not in ENCODERS:
        assert (folded_logits(model, row) - model.logits(row).double().log_softmax(-1)).abs().max() < 2e-5
        Readout(model)


def folded_logits(model, row):
    """The logits' log-softmax by what the last block returns and the processed unembedding."""
    weights, streams = un.processed_weights(model), {}
    with model.after_blocks(streams.__setitem__):
        model.forward(row)
    x = streams[model.n_layers - 1].double()
    x = x - x.mean(-1, keepdim=True) if model.architecture.norm == "layer" else x
    norm = model.part(0, "mlp_norm")
    epsilon = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    return (x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() @ weights.w_u.T + weights.b_u).log_softmax(-1)


@pytest.mark.parametrize("what", ["bfloat16", "on the disk"])
def test_it_is_found_in_half_precision_and_spread(what, tmp_path):
    other("hunyuan_v1_dense").save_pretrained(tmp_path)
    small_tokenizer().save_pretrained(tmp_path)
    whole = load_model(str(tmp_path))
    if what == "bfloat16":
        model = load_model(str(tmp_path), dtype="bfloat16")
    else:
        pytest.importorskip("accelerate", reason="the extra big spreads models")
        model = load_model(str(tmp_path), device_map="auto", max_memory={"cpu": "75KB"})
        assert model.spread
        assert torch.equal(model.activations(IDS), whole.activations(IDS))
    assert model.architecture == whole.architecture


def test_a_study_and_a_sketch_of_models_of_no_row(tmp_path, capsys):
    (tmp_path / "t.txt").write_text(some_text(1500))
    first = other("hunyuan_v1_dense")
    second = copy.deepcopy(first)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    for layer in second.model.layers:
        for part in (layer.mlp.gate_proj, layer.mlp.up_proj):
            part.weight.copy_(part.weight[order].clone())
        layer.mlp.up_proj.weight.neg_()  # nobody's choice: the sign of what is gated
        layer.mlp.down_proj.weight.copy_(-layer.mlp.down_proj.weight[:, order])
    for name, network in (("a", first), ("b", second)):
        network.save_pretrained(tmp_path / name)
        small_tokenizer().save_pretrained(tmp_path / name)
    main(["check", str(tmp_path / "a")])
    said = " ".join(capsys.readouterr().out.split())
    assert "its parts were found by structure" in said
    about = {"data": str(tmp_path / "t.txt"), "context": 32, "max_tokens": 2048}
    config = un.StudyConfig(
        models=(str(tmp_path / "a"), str(tmp_path / "b")),
        out=str(tmp_path / "o"),
        stages=("statistics", "universality", "weights"),
        **about,
    )
    store = un.run_study(config, progress=False)
    matches = store.matches.filter(rank=1, model="a").sort("layer", "neuron")
    inverse = order.argsort().tolist()
    assert matches["match_neuron"].to_list() == [*inverse, *inverse]
    assert matches["corr"].max() < -1 + 1e-4
    written = json.loads((tmp_path / "o" / "study.json").read_text())
    assert {model["architecture"] for model in written["models"]} == {"found by structure, gated: hunyuan_v1_dense"}
    assert store.gated == {"a", "b"}


def test_a_file_without_the_head_and_an_untrained_network(tmp_path):
    other("megatron-bert").base_model.save_pretrained(tmp_path / "m")
    small_tokenizer().save_pretrained(tmp_path / "m")
    model = load_model(str(tmp_path / "m"))
    assert not model.has_unembedding
    whole = Model(other("megatron-bert"), "whole")
    assert torch.equal(model.activations(IDS), whole.activations(IDS))
    assert untrained_model(model, 1).architecture == model.architecture
    assert not untrained_model(model, 1).has_unembedding


def test_folders_that_are_refused_before_their_weights_are_read(tmp_path):
    folder = tmp_path / "m"
    other("biogpt").save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())

    def changed(**changes):
        (folder / "config.json").write_text(json.dumps(config | changes))
        return str(folder)

    with pytest.raises(CheckpointError, match="the weights have 2"):
        load_model(changed(num_hidden_layers=10**9))
    (folder / "config.json").write_text(json.dumps({"model_type": "trocr", "decoder_layers": 10**9}))
    with pytest.raises(CheckpointError, match="the weights have 2"):
        load_model(str(folder))
    with pytest.raises(ArchitectureError, match="unknown architecture"):
        load_model(changed(model_type="oddity"))
    with pytest.raises(ArchitectureError, match="an encoder with a decoder"):
        load_model(changed(model_type="t5", is_encoder_decoder=True))
    with pytest.raises(CheckpointError, match=r"config\.json denies weights that the file has"):
        load_model(changed(num_hidden_layers=1))


class Apart(nn.Module):
    """A block's MLP that does something else."""

    def __init__(self, mlp: nn.Module, forward) -> None:
        super().__init__()
        self.mlp, self.other, self.made = mlp, copy.deepcopy(mlp), forward

    def forward(self, x):
        return self.made(self.mlp, self.other, x)


ODD = {
    "a multiple": (lambda mlp, _, x: 1.05 * mlp(x), f"mlp.down_proj: silenced, it {SILENCED}"),
    "two MLPs": (lambda mlp, other, x: mlp(x) + other(x), "it is not the whole MLP"),
    "one after another": (lambda mlp, other, x: mlp(x + other(x)), "not what it returns"),
    "positions mixed": (
        lambda mlp, _, x: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)).cumsum(1) * mlp.up_proj(x)),
        "is not made of what mlp",
    ),
    "neurons mixed": (
        lambda mlp, _, x: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)).softmax(-1) * mlp.up_proj(x)),
        "no gate's times|not made, neuron by neuron|not made of",
    ),
    "up + 1": (
        lambda mlp, _, x: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * (mlp.up_proj(x) + 1)),
        "is no gate's times what mlp.mlp.gate_proj or mlp.mlp.up_proj gives",
    ),
    "three factors": (
        lambda mlp, other, x: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x) * other.up_proj(x)),
        "made of more than a gate and an up projection",
    ),
    "something besides": (
        lambda mlp, _, x: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x) + x.mean(-1, keepdim=True)),
        "is not made of what",
    ),
    "no norm": (lambda mlp, _, x: mlp(2 * x), "no LayerNorm or RMS norm returns what mlp.mlp.gate_proj reads"),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_a_network_of_another_kind_is_refused_with_its_candidates(what, no_table):
    forward, said = ODD[what]
    network = tiny_network("llama")
    for layer in network.model.layers:
        layer.mlp = Apart(layer.mlp, forward)
    with pytest.raises(ArchitectureError, match=said) as refused:
        verify(Model(network, "odd"))
    lines = str(refused.value).splitlines()
    assert "parts cannot be found by structure" in lines[0]
    assert any(line.startswith("mlp.mlp.down_proj: ") for line in lines)
    assert any(line.startswith("self_attn.o_proj: silenced") for line in lines)
    assert len(lines) <= 12


def swapped(mlp, x):
    up, gate = mlp.gate_up_proj(x).chunk(2, -1)
    return mlp.down_proj(up * mlp.activation_fn(gate))


def interleaved(mlp, x):
    both = mlp.gate_up_proj(x)
    return mlp.down_proj(both[..., 1::2] * mlp.activation_fn(both[..., ::2]))


@pytest.mark.parametrize(
    ("forward", "said"), [(swapped, "gives other things before gates"), (interleaved, "neuron by neuron")]
)
def test_a_fused_projection_of_another_order_is_refused(forward, said, no_table):
    network = network_of("phi3")
    for layer in network.model.layers:
        layer.mlp.forward = lambda x, mlp=layer.mlp: forward(mlp, x)
    with pytest.raises(ArchitectureError, match=said):
        Model(network, "odd")


def test_blocks_that_differ_are_refused_by_the_running_model(no_table):
    network = tiny_network("llama")
    network.model.layers[1].mlp.register_forward_hook(lambda _m, _args, output: 1.05 * output)
    with pytest.raises(ArchitectureError, match="what its MLP adds"):
        verify(Model(network, "odd"))
    network.model.layers[1].mlp = Apart(network.model.layers[1].mlp, lambda mlp, _, x: mlp(x))
    with pytest.raises(ArchitectureError, match=r"block 1 has no mlp\.gate_proj"):
        verify(Model(network, "odd"))


def test_which_of_two_is_the_gate_where_the_function_keeps_doubling(no_table):
    network = tiny_network("llama", hidden_act="relu")
    assert Model(network, "relu").architecture.w_up == "mlp.up_proj"
    assert verify(Model(network, "relu")) < 1e-5


def test_a_mixture_whose_experts_are_modules_is_refused_though_one_is_shared(no_table):
    network = tiny_network("qwen2_moe", **FEW_EXPERTS | {"mlp_only_layers": []})
    for layer in network.model.layers:
        shared, routed = layer.mlp.shared_expert, copy.deepcopy(layer.mlp.shared_expert)
        layer.mlp = Apart(shared, lambda mlp, other, x: mlp(x) + other(x) * x.mean(-1, keepdim=True).sigmoid())
        layer.mlp.other = routed
    with pytest.raises(ArchitectureError, match="it is not the whole MLP"):
        Model(network, "shared")


def test_a_head_that_does_more_than_normalise_is_refused():
    config = AutoConfig.for_model("modernbert-decoder", **COMMON, cls_token_id=0, sep_token_id=0)
    with quiet_transformers():
        network = random_norms(AutoModelForCausalLM.from_config(config))
    with pytest.raises(ArchitectureError, match="is no LayerNorm of what its blocks return"):
        Model(network, "head")


def test_what_reads_no_tokens_or_has_no_numbers_is_refused():
    with torch.device("meta"):
        nothing = AutoModelForCausalLM.from_config(AutoConfig.for_model("biogpt", **COMMON))
    with pytest.raises(ArchitectureError, match="on the meta device"):
        Model(nothing, "nothing")
    with quiet_transformers():
        from transformers import AutoModel

        image = AutoModel.from_config(
            AutoConfig.for_model("vit", hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
        )
    with pytest.raises(ArchitectureError, match="no embedding of tokens"):
        Model(image, "image")
