"""Every family: hooks against the modules' own outputs, the checks at load, bad checkpoints, convert, the hub."""

import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import FAMILIES, FEW_ROLES, save_tiny, small_tokenizer, tiny_model, tiny_network
from transformers import AutoModelForCausalLM, GPT2Model

import universal_neurons as un
from universal_neurons.errors import ArchitectureError, CheckpointError, ConfigError, InputError, MissingFileError
from universal_neurons.models import (
    BUNDLED_FOLDER,
    ROLES_FOLDER,
    Model,
    bundled_folder,
    bundled_names,
    bundled_text,
    convert,
    resolve_sources,
    verify,
)

IDS = torch.arange(1, 41).view(2, 20) * 7


def activations_by_hand(model: Model, family: str) -> torch.Tensor:
    """Activations from each MLP's own input, by the family's formula, without the package's hooks."""
    inputs, handles = [], []
    for block in model.blocks:
        mlp = {"opt": "fc1", "bert": "intermediate"}.get(family, "mlp")
        handles.append(getattr(block, mlp).register_forward_hook(lambda _m, args, _o: inputs.append(args[0])))
    with torch.inference_mode():
        model.hf(IDS)
        for handle in handles:
            handle.remove()
        layers = []
        for block, x in zip(model.blocks, inputs):
            if family in ("gpt2", "gpt_neo"):
                layers.append(block.mlp.act(block.mlp.c_fc(x)))
            elif family == "gpt_neox":
                layers.append(block.mlp.act(block.mlp.dense_h_to_4h(x)))
            elif family == "opt":
                layers.append(torch.relu(block.fc1(x)))
            elif family == "bert":
                layers.append(block.intermediate.intermediate_act_fn(block.intermediate.dense(x)))
            else:
                layers.append(torch.nn.functional.silu(block.mlp.gate_proj(x)) * block.mlp.up_proj(x))
    return torch.cat([layer.reshape(*IDS.shape, -1) for layer in layers], -1)


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_what_the_output_projection_reads(family):
    model = tiny_model(family)
    assert verify(model) < 1e-5
    torch.testing.assert_close(model.activations(IDS), activations_by_hand(model, family), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "opt"])
def test_the_activation_function_of_the_pre_activation_is_the_activation(family):
    model = tiny_model(family)
    function = {"gpt2": "gelu_new", "gpt_neox": "gelu", "opt": "relu"}[family]
    from transformers.activations import ACT2FN

    pre = model.activations(IDS, pre_activations=True)
    torch.testing.assert_close(ACT2FN[function](pre), model.activations(IDS), rtol=1e-5, atol=1e-6)


def test_the_pre_activation_of_a_gated_mlp_is_the_gate():
    model = tiny_model("llama")
    gates = []
    handles = [b.mlp.gate_proj.register_forward_hook(lambda _m, _a, out: gates.append(out)) for b in model.blocks]
    pre = model.activations(IDS, pre_activations=True)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(pre, torch.cat(gates, -1))


def test_hooks_are_gone_even_after_a_failed_pass():
    model = tiny_model()
    with (
        pytest.raises(ValueError, match="sink"),
        model.capturing(lambda layer, act: (_ for _ in ()).throw(ValueError("sink"))),
    ):
        model.forward(IDS)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.hf.modules())


def test_an_mlp_whose_output_is_scaled_is_refused():
    network = tiny_network("gpt2")
    network.transformer.h[1].mlp.register_forward_hook(lambda _m, _a, out: out * 1.5)
    with pytest.raises(ArchitectureError, match="residual stream"):
        verify(Model(network, "scaled"))


def test_a_row_that_names_the_wrong_module_is_refused():
    model = tiny_model("llama")
    model.architecture = replace(model.architecture, w_out="self_attn.o_proj")
    with pytest.raises(ArchitectureError):
        verify(model)


def test_a_base_model_alone_is_refused():
    with pytest.raises(ArchitectureError, match="AutoModelForCausalLM"):
        Model(GPT2Model(tiny_network("gpt2").config), "headless")


def modes(network):
    return [module.training for module in network.modules()], [p.requires_grad for p in network.parameters()]


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "opt"])
def test_a_model_given_in_memory_stays_as_it_was(family):
    """In training, with dropout and gradients, part of it evaluating: it computes as in evaluation and trains on."""
    dropout = {"gpt2": {}, "llama": {"attention_dropout": 0.5}}.get(
        family, {"attention_dropout": 0.5, "hidden_dropout_prob": 0.5}
    )
    network = tiny_network(family, **dropout).train().requires_grad_(True)
    evaluated = tiny_model(family)
    next(network.base_model.children()).eval()
    list(network.parameters())[1].requires_grad_(False)
    before = modes(network)
    model = Model(network, "trains")
    assert verify(model) < 1e-5
    torch.testing.assert_close(model.activations(IDS), evaluated.activations(IDS), rtol=0, atol=0)
    torch.testing.assert_close(model.logits(IDS), evaluated.logits(IDS), rtol=0, atol=0)
    weights, expected = un.processed_weights(model), un.processed_weights(evaluated)
    torch.testing.assert_close(weights.w_u, expected.w_u, rtol=0, atol=0)
    assert not any(tensor.requires_grad for tensor in vars(weights).values() if isinstance(tensor, torch.Tensor))
    assert modes(network) == before
    with pytest.raises(IndexError):
        model.forward(torch.tensor([[5000]]))
    assert modes(network) == before


def test_a_study_of_a_model_in_training_is_that_of_the_model_evaluated(text_file, tmp_path):
    stages = ("weights", "statistics", "labels", "roles")
    config = un.StudyConfig(
        data=str(text_file), context=32, max_tokens=2048, stages=stages, labels=("tokens",), roles=FEW_ROLES
    )
    stores = []
    for name, training in (("evaluated", False), ("trains", True)):
        model = Model(tiny_network("gpt2").train(training).requires_grad_(training), "m", tokenizer=small_tokenizer())
        stores.append(
            un.run_study(config.model_copy(update={"out": str(tmp_path / name)}), models=[model], progress=False)
        )
        assert model.hf.training == training
        assert all(parameter.requires_grad == training for parameter in model.hf.parameters())
    assert stores[0].manifest["tables"] == stores[1].manifest["tables"]
    assert {"interventions", "attention", "neurons"} <= stores[0].manifest["tables"].keys()


def test_logits_are_the_models_own(folders):
    model = un.load_model(str(folders[0]))
    reference = AutoModelForCausalLM.from_pretrained(folders[0]).eval()
    with torch.inference_mode():
        torch.testing.assert_close(model.logits(IDS), reference(IDS).logits)


def test_names_are_unique(folders, tmp_path):
    for parent in ("x", "y"):
        shutil.copytree(folders[0], tmp_path / parent / "step-1")
    paths = [str(tmp_path / parent / "step-1") for parent in ("x", "y")]
    assert [s.name for s in resolve_sources(paths)] == ["x-step-1", "y-step-1"]
    assert [s.name for s in resolve_sources([paths[0], str(folders[0])])] == ["step-1", "m0"]
    assert len({s.name for s in resolve_sources(paths + paths)}) == 4
    assert [s.name for s in resolve_sources(["bundled"])] == [f"roles-{n}" for n in range(1, 4)]


def test_a_path_is_as_good_as_its_text(folders):
    assert un.load_model(folders[0]).digest == un.load_model(str(folders[0])).digest
    with pytest.raises(MissingFileError, match="folder here, which has no revisions"):
        un.load_model(folders[0], revision="main")


def test_truncated_weights(folders, tmp_path):
    broken = shutil.copytree(folders[0], tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        un.load_model(str(broken))


def test_missing_weights_are_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_tiny(tmp_path / "partial")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("transformer.h.1.mlp.c_fc.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"mlp\.c_fc\.weight"):
        un.load_model(str(folder))


def pickled(folder, tmp_path):
    target = shutil.copytree(folder, tmp_path / "pickled")
    (target / "model.safetensors").unlink()
    torch.save(AutoModelForCausalLM.from_pretrained(folder).state_dict(), target / "pytorch_model.bin")
    return target


def test_a_pickle_is_refused_and_convert_is_named_and_works(folders, tmp_path):
    source = pickled(folders[0], tmp_path)
    with pytest.raises(CheckpointError, match="uneurons convert"):
        un.load_model(str(source))
    converted = convert(str(source), tmp_path / "converted")
    torch.testing.assert_close(
        un.load_model(str(converted)).logits(IDS), un.load_model(str(folders[0])).logits(IDS), rtol=0, atol=0
    )
    assert un.load_model(str(converted)).tokenizer is not None
    with pytest.raises(InputError, match="not an empty folder"):
        convert(str(source), tmp_path / "converted")


class Exploit:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the pickle ran code')",))


def test_convert_runs_no_code_of_the_pickle(folders, tmp_path):
    source = pickled(folders[0], tmp_path)
    with (source / "pytorch_model.bin").open("wb") as out:
        pickle.dump({"transformer.wte.weight": Exploit()}, out)
    with pytest.raises(CheckpointError):
        convert(str(source), tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_unknown_and_missing(folders, tmp_path):
    odd = shutil.copytree(folders[0], tmp_path / "odd")
    config = json.loads((odd / "config.json").read_text()) | {"model_type": "oddity"}
    (odd / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArchitectureError, match="oddity"):
        un.load_model(str(odd))
    for missing in (str(tmp_path / "nowhere"), "bundled/seed-9", "./nowhere", str(folders[0] / "config.json")):
        with pytest.raises(MissingFileError):
            un.load_model(missing)
    with pytest.raises(MissingFileError, match="hub"):
        un.load_model("nobody/nothing")


@pytest.mark.parametrize(
    "changes", [{"n_layer": "two"}, {"n_head": 0}, {"n_layer": 0}, {"activation_function": "sine"}, {"n_head": None}]
)
def test_odd_configurations(folders, tmp_path, changes):
    odd = shutil.copytree(folders[0], tmp_path / "odd")
    (odd / "config.json").write_text(json.dumps(json.loads((odd / "config.json").read_text()) | changes))
    with pytest.raises((CheckpointError, ArchitectureError)):
        un.load_model(str(odd))
    (odd / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        un.load_model(str(odd))


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_low_precision_models_are_checked_in_float32(family):
    network = tiny_network(family).bfloat16()
    assert verify(Model(network, "half")) < 1e-4
    out = tiny_model(family).architecture.w_out.split(".")[-1]
    block = Model(network, "half").blocks[1]
    holder = block.output if family == "bert" else block.mlp
    getattr(holder, out).register_forward_hook(lambda _m, _a, output: output * 1.05)
    if family != "bert":
        with pytest.raises(ArchitectureError):
            verify(Model(network, "half"))


def test_a_hub_id_with_revision_from_the_cache(folders, tmp_path):
    """A stand-in of the hub's cache: ids resolve to snapshots, each revision to its own."""
    repository = tmp_path / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    for revision, commit, folder in (("main", "a" * 40, folders[0]), ("step-9", "b" * 40, folders[1])):
        (repository / "refs" / revision).write_text(commit)
        shutil.copytree(folder, repository / "snapshots" / commit)
    code = (
        "import universal_neurons as un\n"
        "print(un.load_model('some/model').digest)\n"
        "print(un.load_model('some/model', revision='step-9').digest)\n"
        "print(un.load_model('some/model@step-9').name)\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    digests = [un.load_model(str(folder)).digest for folder in folders[:2]]
    assert done.stdout.split() == [*digests, "model"]


@pytest.mark.parametrize(("name", "neurons"), [("seed-3", 256), ("roles-2-gelu", 640)])
def test_bundled_models_load(name, neurons):
    model = un.load_model(f"bundled/{name}")
    assert (model.n_layers, model.d_mlp, model.dtype) == (3, neurons, torch.float32)
    assert len(model.tokenizer.get_vocab()) == model.vocab_size == 1024
    assert name in repr(model)


def test_each_suite_has_a_tokenizer_and_a_text_of_its_own(tmp_path, monkeypatch):
    of_roles, of_seeds = (suite / "heldout.jsonl.xz" for suite in (ROLES_FOLDER, BUNDLED_FOLDER))
    assert bundled_text(["bundled"]) == bundled_text([str(ROLES_FOLDER / "roles-2")]) == of_roles
    assert bundled_text(["bundled/roles-2-gelu"]) == bundled_text(["bundled/roles-1::residual"]) == of_roles
    assert bundled_text(["my/model", "bundled/roles-1", "bundled/seed-1"]) == of_roles
    assert (
        bundled_text(["bundled/seed-1/step-742"])
        == bundled_text(["my/model"])
        == bundled_text(["in-memory:a\0"])
        == of_seeds
    )
    ids = [
        un.load_model(f"bundled/{name}").tokenizer("zusammen mit").input_ids
        for name in ("roles-1", "roles-2-gelu", "seed-1", "seed-1-german")
    ]
    assert ids[0] == ids[1] != ids[2] == ids[3]
    assert {path.name for path in map(bundled_folder, bundled_names())} >= {"seed-1", "seed-1-german", "roles-4-gelu"}
    with pytest.raises(MissingFileError, match="no such bundled model"):
        bundled_text(["bundled/roles-9"])


@pytest.mark.parametrize("given", ["a/path", None, torch.nn.Linear(2, 2)])
def test_what_is_no_model_is_refused(given):
    with pytest.raises(ArchitectureError, match="not a Hugging Face model"):
        Model(given, "odd")


def test_no_such_precision_or_device(folders):
    with pytest.raises(ConfigError, match="float32, bfloat16"):
        un.load_model(str(folders[0]), dtype="float99")
    with pytest.raises(ConfigError, match="nodevice"):
        un.load_model(str(folders[0]), device="nodevice")


def test_weights_that_are_not_in_memory_are_refused():
    network = tiny_network("gpt2").to("meta")
    with pytest.raises(CheckpointError, match="not in memory"):
        verify(Model(network, "elsewhere", digest="-"))
