"""Adapters merged by our arithmetic, against `peft`; what does not fit, is not understood or not whole is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import exit_code, save_tiny, small_tokenizer, tiny_network
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

import universal_neurons as un
from universal_neurons.errors import CheckpointError, InputError, MissingFileError
from universal_neurons.models import convert, quiet_transformers

peft = pytest.importorskip("peft", reason="the extra test has peft, the oracle of adapters")
IDS = torch.arange(1, 41).view(2, 20)
MLP = ["mlp.c_fc", "mlp.c_proj"]
LLAMA = ["q_proj", "gate_proj", "down_proj"]


def randomised(model) -> None:
    """Give every adapter's tensor numbers that change the model."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))


def adapted(root: Path, family: str = "gpt2", tied: bool = False, **settings):
    """A tiny model, an adapter of it, both as folders, and the model of `peft`."""
    base = root / "base"
    with quiet_transformers():
        save_tiny(base, family, tie_word_embeddings=tied)
        loader = AutoModelForMaskedLM if family == "bert" else AutoModelForCausalLM
        network = loader.from_pretrained(base)
        model = peft.get_peft_model(network, peft.LoraConfig(**{"r": 4, "lora_alpha": 6} | settings))
        model.peft_config["default"].base_model_name_or_path = "../base"
        randomised(model)
        model.save_pretrained(root / "adapter")
    return root / "adapter", model.eval()


def changed(adapter: Path, **settings) -> Path:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return adapter


def rewritten(adapter: Path, change) -> Path:
    path = adapter / "adapter_model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return adapter


def refused(adapter: Path, *parts: str, error: type[InputError] = CheckpointError) -> None:
    with pytest.raises(error) as caught:
        un.load_model(str(adapter))
    said = str(caught.value)
    assert all(part in said for part in parts), said
    assert "fix:" in said


@pytest.fixture(scope="module")
def plain_adapter(tmp_path_factory) -> Path:
    return adapted(tmp_path_factory.mktemp("plain"), target_modules=MLP)[0]


@pytest.mark.parametrize(("family", "settings"), [
    ("gpt2", {"target_modules": MLP}),
    ("gpt2", {"target_modules": ["c_attn"], "use_rslora": True, "bias": "lora_only"}),
    ("gpt2", {"target_modules": ["c_fc", "lm_head"], "lora_bias": False, "bias": "all"}),
    ("gpt2", {"target_modules": ["c_fc"], "lora_bias": True}),
    ("gpt2", {"target_modules": ["c_attn", "wte"], "use_dora": True, "modules_to_save": ["lm_head", "ln_f"]}),
    ("gpt2", {"target_modules": "all-linear", "use_dora": True, "use_rslora": True}),
    ("gpt2", {"target_modules": ["c_fc"], "layers_to_transform": [1], "layers_pattern": "h"}),
    ("llama", {"target_modules": LLAMA, "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 3}}),
    ("llama", {"target_modules": LLAMA, "alpha_pattern": {"^model.layers.0.+gate_proj": 9}, "use_dora": True}),
    ("llama", {"target_modules": ["embed_tokens", "up_proj"], "exclude_modules": ["model.layers.0.mlp.up_proj"]}),
    ("gpt_neox", {"target_modules": ["dense_h_to_4h"], "init_lora_weights": "gaussian"}),
    ("bert", {"target_modules": ["query", "dense"]}),
])  # fmt: skip
def test_the_merged_model_is_that_of_peft(tmp_path, family, settings):
    adapter, oracle = adapted(tmp_path, family, **settings)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    model = un.load_model(str(adapter))
    with torch.no_grad():
        expected = oracle.merge_and_unload()(input_ids=IDS).logits
    torch.testing.assert_close(model.logits(IDS), expected, rtol=1e-5, atol=1e-5)
    plain = un.load_model(str(tmp_path / "base"))
    assert (plain.logits(IDS) - expected).abs().max() > 1e-2
    assert "merged into ../base" in model.notes[0]
    assert model.name == "adapter"
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("settings", [
    {"target_modules": ["wte"]}, {"target_modules": ["c_fc"], "modules_to_save": ["lm_head"]},
])  # fmt: skip
def test_of_tied_embeddings_the_adapters_own_is_changed_alone(tmp_path, settings):
    adapter, oracle = adapted(tmp_path, tied=True, **settings)
    model = un.load_model(str(adapter))
    with torch.no_grad():
        torch.testing.assert_close(model.logits(IDS), oracle(input_ids=IDS).logits, rtol=1e-5, atol=1e-5)
    assert "are two now" in model.notes[0]
    converted = un.load_model(str(convert(str(adapter), tmp_path / "whole")))
    torch.testing.assert_close(converted.logits(IDS), model.logits(IDS), rtol=1e-6, atol=1e-6)


def test_low_precision_is_rounded_once(tmp_path):
    adapter, _ = adapted(tmp_path, target_modules=MLP)
    whole, low = un.load_model(str(adapter)), un.load_model(str(adapter), dtype="bfloat16")
    for exact, rounded in zip(whole.hf.parameters(), low.hf.parameters()):
        torch.testing.assert_close(rounded.float(), exact, rtol=2**-7, atol=2**-7)


def test_digest_and_tokenizer_are_of_both(tmp_path):
    adapter, _ = adapted(tmp_path, target_modules=MLP)
    model = un.load_model(str(adapter))
    assert model.tokenizer is not None
    other = rewritten(shutil.copytree(adapter, tmp_path / "other"), lambda ts: {n: 2 * t for n, t in ts.items()})
    assert len({model.digest, un.load_model(str(other)).digest, un.load_model(str(tmp_path / "base")).digest}) == 3
    with quiet_transformers():
        longer = small_tokenizer()
        longer.add_tokens(["Ünïversal"])
        longer.save_pretrained(other)
    assert len(un.load_model(str(other)).tokenizer) == len(model.tokenizer) + 1
    network = tiny_network("gpt2", 1, tie_word_embeddings=False)
    with quiet_transformers():
        network.save_pretrained(tmp_path / "base")
    assert un.load_model(str(adapter)).digest != model.digest


def test_names_without_the_base_models_prefix(tmp_path):
    """As of an adapter that was trained on `AutoModel`."""
    adapter, _ = adapted(tmp_path, target_modules=MLP)
    expected = un.load_model(str(adapter)).logits(IDS)
    rewritten(adapter, lambda tensors: {name.replace("transformer.", ""): t for name, t in tensors.items()})
    torch.testing.assert_close(un.load_model(str(adapter)).logits(IDS), expected, rtol=0, atol=0)


def test_an_adapter_of_a_bundled_model_and_a_study_of_both(tmp_path, text_file):
    adapter, _ = adapted(tmp_path, target_modules=MLP)
    store = un.run_study(un.StudyConfig(
        models=(str(tmp_path / "base"), str(adapter)), data=str(text_file), max_tokens=2048, context=32, draws=2,
        stages=("universality",), out=str(tmp_path / "run"),
    ), progress=False)  # fmt: skip
    assert store.neurons["max_corr"].is_finite().any()
    assert exit_code("check", tmp_path / "base", adapter) == 0
    bundled = tmp_path / "of-bundled"
    shutil.copytree(adapter, bundled)
    changed(bundled, base_model_name_or_path="bundled/seed-1")
    refused(bundled, "does not fit")


@pytest.mark.parametrize(("settings", "part"), [
    ({"peft_type": "IA3"}, "peft_type IA3"),
    ({"peft_type": None}, "peft_type None"),
    ({"trainable_token_indices": [3]}, "trainable_token_indices"),
    ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ({"new_of_next_year": 7}, "new_of_next_year: 7"),
    ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16"),
    ({"init_lora_weights": []}, "changed its base"),
    ({"r": 8}, "[8, "),
    ({"r": "4"}, "what r is"),
    ({"lora_alpha": None}, "what lora_alpha is"),
    ({"rank_pattern": {"(": 4}}, "rank_pattern"),
    ({"rank_pattern": [4]}, "rank_pattern"),
    ({"use_dora": True}, "magnitude"),
    ({"lora_bias": True}, "bias"),
    ({"modules_to_save": ["lm_head"]}, "no tensors for lm_head"),
    ({"target_modules": ["c_fc", "c_attn", "c_proj"]}, "h.0.attn.c_attn"),
    ({"base_model_name_or_path": None}, "names no model"),
    ({"base_model_name_or_path": "a\0b"}, "names no model"),
    ({"base_model_name_or_path": 9}, "names no model"),
    ({"base_model_name_or_path": "."}, "adapter of an adapter"),
    ({"base_model_name_or_path": "../adapter"}, "adapter of an adapter"),
])  # fmt: skip
def test_settings_that_are_not_understood_are_refused_by_name(plain_adapter, tmp_path, settings, part):
    adapter = shutil.copytree(plain_adapter, tmp_path / "adapter")
    changed(adapter, base_model_name_or_path=str(plain_adapter.parent / "base"))
    refused(changed(adapter, **settings), part)


FIRST = "base_model.model.transformer.h.0.mlp.c_fc.lora_A.weight"


@pytest.mark.parametrize(("change", "part"), [
    (lambda ts: {n: t for n, t in ts.items() if n != FIRST}, "B for a module Conv1D"),
    (lambda ts: ts | {FIRST: torch.ones(4, 17)}, "A [4, 17]"),
    (lambda ts: ts | {FIRST: torch.ones(64)}, "A [64]"),
    (lambda ts: ts | {FIRST: torch.full((4, 16), torch.nan)}, "NaN"),
    (lambda ts: ts | {FIRST: torch.ones(4, 16, dtype=torch.int8)}, "int8"),
    (lambda ts: {n: t for n, t in ts.items() if ".h.0." not in n}, "no tensors for transformer.h.0.mlp.c_fc"),
    (lambda ts: ts | {"base_model.model.score.weight": torch.ones(2, 16)}, "no place"),
    (lambda ts: ts | {"base_model.model.transformer.wte.weight": torch.ones(9, 16)}, "another shape"),
    (lambda ts: ts | {"base_model.model.transformer.h.0.ln_1.lora_A.weight": torch.ones(4, 16)}, "LayerNorm"),
    (lambda ts: ts | {FIRST.replace("lora_A", "lora_C"): torch.ones(4, 16)}, "lora_C"),
    (lambda ts: ts | {FIRST.replace("base_model.model.", ""): torch.ones(4, 16)}, "no place"),
    (lambda _: {}, "without tensors"),
])  # fmt: skip
def test_tensors_that_do_not_fit_are_refused_by_name(plain_adapter, tmp_path, change, part):
    adapter = shutil.copytree(plain_adapter, tmp_path / "adapter")
    changed(adapter, base_model_name_or_path=str(plain_adapter.parent / "base"))
    refused(rewritten(adapter, change), part)


def test_what_is_missing_is_named(plain_adapter, tmp_path, monkeypatch):
    adapter = shutil.copytree(plain_adapter, tmp_path / "adapter")
    monkeypatch.chdir(adapter)
    refused(adapter, "model is not there", "../base", "base_model_name_or_path", error=MissingFileError)
    changed(adapter, base_model_name_or_path="x" * 300)
    refused(adapter, "model is not there", error=MissingFileError)
    changed(adapter, base_model_name_or_path="nobody/nothing", revision="main")
    refused(adapter, "nobody/nothing at revision main", error=MissingFileError)
    monkeypatch.chdir(plain_adapter.parent)
    assert un.load_model(str(changed(adapter, base_model_name_or_path="base", revision=None))).n_layers == 2
    (adapter / "adapter_model.safetensors").write_bytes(b"\xff" * 40)
    refused(adapter, "cannot be read")
    (adapter / "adapter_model.safetensors").unlink()
    refused(adapter, "without weights")
    (adapter / "adapter_config.json").write_text("[]")
    refused(adapter, "unreadable adapter_config.json")


def test_a_pickled_adapter_is_refused_and_convert_makes_a_whole_model_of_it(plain_adapter, tmp_path):
    adapter = shutil.copytree(plain_adapter, tmp_path / "adapter")
    base = shutil.copytree(plain_adapter.parent / "base", tmp_path / "base")
    for folder, name in ((adapter, "adapter_model"), (base, "pytorch_model")):
        file = folder / f"{name.replace('pytorch_', '')}.safetensors"
        torch.save(load_file(file), folder / f"{name}.bin")
        file.unlink()
        refused(adapter, "uneurons convert")
    notes = []
    whole = convert(str(adapter), tmp_path / "whole", note=notes.append)
    expected = un.load_model(str(plain_adapter))
    torch.testing.assert_close(un.load_model(str(whole)).logits(IDS), expected.logits(IDS), rtol=0, atol=0)
    assert "merged" in notes[-1]
    assert un.load_model(str(whole)).tokenizer is not None
