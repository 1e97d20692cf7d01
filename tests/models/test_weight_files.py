"""Weights and configurations that do not belong together: refused by name before anything is built, or noted."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, save_tiny, small_tokenizer, tiny_network
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification, GPT2ForSequenceClassification

import universal_neurons as un
from universal_neurons.errors import ArchitectureError, CheckpointError, InputError, MissingFileError
from universal_neurons.models import convert, quiet_transformers, require_weights, resolve_sources
from universal_neurons.study import check_models

IDS = torch.arange(1, 41).view(2, 20)


@pytest.fixture
def folder(folders, tmp_path) -> Path:
    """A copy of a tiny GPT-2's folder, to be spoilt."""
    return shutil.copytree(folders[0], tmp_path / "model")


def rewritten(folder: Path, change) -> Path:
    """The folder with `change(tensors)` as its weights."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def configured(folder: Path, **changes) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def refused(folder: Path, *parts: str, error: type[InputError] = CheckpointError) -> None:
    with pytest.raises(error) as caught:
        un.load_model(str(folder))
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_saves_loads_without_a_note(tmp_path, family):
    assert un.load_model(str(save_tiny(tmp_path / family, family))).notes == ()


@pytest.mark.parametrize(("family", "name"), [
    ("llama", "model.layers.1.mlp.down_proj.bias"),
    ("llama", "model.layers.0.self_attn.q_proj.bias"),
    ("llama", "layers.0.mlp.gate_proj.bias"),
    ("llama", "model.norm.bias"),
    ("llama", "model.layers.2.mlp.up_proj.weight"),
    ("llama", "lm_head.bias"),
    ("gpt2", "transformer.h.0.attn.bias"),
    ("gpt2", "transformer.wse.weight"),
    ("bert", "cls.predictions.transform.dense.scale"),
    ("bert", "bert.encoder.layer.0.intermediate.gate.weight"),
])  # fmt: skip
def test_weights_that_units_read_or_write_and_the_model_does_not_take_are_refused(tmp_path, family, name):
    folder = rewritten(save_tiny(tmp_path / "m", family), lambda tensors: tensors | {name: torch.ones(16)})
    refused(folder, name, "config.json")


@pytest.mark.parametrize(("family", "name", "shape"), [
    ("gpt2", "transformer.h.0.attn.bias", (1, 1, 64, 64)),
    ("gpt2", "transformer.h.1.attn.masked_bias", ()),
    ("gpt2", "score.weight", (2, 16)),
    ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq", (4,)),
    ("gpt_neox", "gpt_neox.layers.0.attention.bias", (1, 1, 64, 64)),
    ("bert", "bert.pooler.dense.weight", (16, 16)),
    ("bert", "cls.seq_relationship.weight", (2, 16)),
    ("bert", "bert.embeddings.position_ids", (1, 64)),
])  # fmt: skip
def test_what_no_unit_reads_is_left_out_with_a_note(tmp_path, family, name, shape):
    folder = save_tiny(tmp_path / "m", family)
    before = un.load_model(str(folder)).activations(IDS)
    model = un.load_model(str(rewritten(folder, lambda tensors: tensors | {name: torch.ones(shape)})))
    (note,) = model.notes
    assert name in note
    torch.testing.assert_close(model.activations(IDS), before, rtol=0, atol=0)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_orig_mod.module.", "net.", "model."])
def test_a_wrappers_prefix_is_named(folder, prefix):
    refused(rewritten(folder, lambda tensors: {prefix + name: t for name, t in tensors.items()}), prefix[:6], "rename")


def test_a_wrappers_part_inside_names_is_named(folder):
    def compiled(tensors):
        return {name.replace("mlp.", "mlp._orig_mod."): tensor for name, tensor in tensors.items()}

    refused(rewritten(folder, compiled), "'_orig_mod.'", "torch.compile")


@pytest.mark.parametrize("quantised", [{"quant_method": "gptq", "bits": 4}, {"load_in_8bit": True}, "awq"])
def test_quantised_models_are_refused(folder, quantised):
    refused(configured(folder, quantization_config=quantised), "quantised")


def test_quantised_weights_without_a_word_in_the_configuration_are_refused(folder):
    name = "transformer.h.0.mlp.c_fc.weight"
    eight_bits = rewritten(folder, lambda tensors: tensors | {name: tensors[name].to(torch.int8)})
    refused(eight_bits, "quantised", name)
    refused(
        rewritten(folder, lambda tensors: tensors | {f"{name}_scale_inv": torch.ones(1)}), "scale", error=InputError
    )


def test_an_adapters_weights_in_a_models_file_are_said_to_be_such(folder):
    weights = {"transformer.h.0.mlp.c_fc.lora_A.weight": torch.ones(2, 16)}
    refused(rewritten(folder, lambda tensors: tensors | weights), "lora_A", "merge")


def test_a_folder_that_hides_the_hub_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("gpt2", "EleutherAI/pythia-70m"):
        Path(name).mkdir(parents=True)
        with pytest.raises(MissingFileError, match=r"empty folder(.|\n)*hides the hub"):
            un.load_model(name)
    with pytest.raises(MissingFileError) as caught:
        un.load_model("./gpt2")
    assert "hub" not in str(caught.value)
    with pytest.raises(MissingFileError, match="revision"):
        un.load_model("gpt2", revision="main")


def test_paths_are_taken_literally(folder, tmp_path, monkeypatch):
    for name in ("m[1]", "m@2", "a b", "ünï", "*"):
        assert un.load_model(str(shutil.copytree(folder, tmp_path / name))).name == name
    monkeypatch.setenv("HOME", str(tmp_path))
    assert un.load_model("~/m[1]").digest == un.load_model(str(folder)).digest
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for path in (str(tmp_path / "dangling"), "x" * 300, "~nosuchuser/m", "a\0b", "", f"{tmp_path}/m@2@main"):
        with pytest.raises(MissingFileError):
            un.load_model(path)


@pytest.mark.parametrize(("files", "said"), [
    (["model.gguf"], "GGUF"), (["config.json", "pytorch_model.bin"], "uneurons convert"),
    (["config.json", "consolidated.00.pth"], "consolidated"), (["config.json"], "no weights"),
    (["config.json", "model-00001-of-00002.safetensors"], "00001"), (["notes.txt"], "no config.json"),
])  # fmt: skip
def test_folders_of_something_else_get_their_own_advice(tmp_path, files, said):
    for name in files:
        (tmp_path / name).write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match=said):
        un.load_model(str(tmp_path))


def test_what_is_no_ordinary_file_is_not_opened(folder):
    os.mkfifo(folder / "generation.json")
    refused(folder, "generation.json")
    (folder / "generation.json").unlink()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    refused(folder, "a folder")


@pytest.mark.parametrize("text", [
    "[]", "7", "null", "", "{", '{"model_type": 3}', '{"model_type": null}', "[" * 100_000, '{"a":' * 100_000, "\x00",
])  # fmt: skip
def test_a_config_that_is_no_object_of_a_model(folder, text):
    (folder / "config.json").write_text(text)
    refused(folder, "config.json")


def test_a_config_of_many_megabytes_is_not_read(folder):
    (folder / "config.json").write_text(" " * (1 << 24) + "{}")
    refused(folder, "bytes")


HUGE = 10**9


@pytest.mark.parametrize(("family", "changes"), [
    ("gpt2", {"n_layer": HUGE}), ("gpt2", {"n_layer": 10**12}), ("gpt2", {"n_layer": 3}), ("gpt2", {"n_layer": 1}),
    ("gpt2", {"vocab_size": 10**12}), ("gpt2", {"n_embd": HUGE}), ("gpt2", {"n_inner": HUGE}),
    ("gpt2", {"n_positions": HUGE}), ("gpt2", {"n_embd": -16}), ("gpt2", {"vocab_size": -1}), ("gpt2", {"n_embd": "x"}),
    ("gpt2", {"pad_token_id": 2**70}), ("gpt2", {"eos_token_id": [2**70]}), ("gpt2", {"num_labels": HUGE}),
    ("gpt2", {"layer_norm_epsilon": "x"}), ("gpt2", {"layer_norm_epsilon": float("nan")}),
    ("gpt2", {"n_layer": True}), ("gpt2", {"attn_pdrop": 10**6}), ("gpt2", {"resid_pdrop": "x"}),
    ("llama", {"max_position_embeddings": -HUGE}), ("qwen3", {"output_hidden_states": 0.5}),
    ("llama", {"num_hidden_layers": HUGE}), ("llama", {"head_dim": HUGE}), ("llama", {"num_key_value_heads": 0}),
    ("llama", {"rope_parameters": "x"}), ("qwen2", {"num_hidden_layers": HUGE, "layer_types": None}),
    ("gpt_neo", {"attention_types": [[["global", "local"], HUGE]]}), ("bert", {"max_position_embeddings": 10**12}),
    ("bert", {"pad_token_id": HUGE}), ("bert", {"chunk_size_feed_forward": 4}),
])  # fmt: skip
def test_impossible_sizes_are_refused_and_not_allocated(tmp_path, family, changes):
    folder = configured(save_tiny(tmp_path / "m", family), **changes)
    with pytest.raises((CheckpointError, ArchitectureError)) as caught:
        un.load_model(str(folder))
    assert len(str(caught.value)) < 2000


def sharded(tmp_path, parts=3) -> Path:
    with quiet_transformers():
        network = tiny_network("gpt2")
        network.save_pretrained(tmp_path / "s", max_shard_size=sum(p.nbytes for p in network.parameters()) // parts)
        small_tokenizer().save_pretrained(tmp_path / "s")
    assert len(list((tmp_path / "s").glob("model-*.safetensors"))) > 1
    return tmp_path / "s"


def test_shards_are_those_that_the_index_names(tmp_path, folders):
    folder = sharded(tmp_path)
    whole = un.load_model(str(folders[0]))
    torch.testing.assert_close(un.load_model(str(folder)).logits(IDS), whole.logits(IDS), rtol=0, atol=0)
    files = require_weights(resolve_sources([str(folder)])[0])
    save_file({"foreign": torch.ones(1)}, folder / "other.safetensors")
    assert require_weights(resolve_sources([str(folder)])[0]) == files == sorted(folder.glob("model-*"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    first, second, *_ = files
    for places in (
        {**index["weight_map"], "transformer.wte.weight": "../other.safetensors"},
        {**index["weight_map"], "transformer.wte.weight": "/etc/passwd"},
        {**index["weight_map"], "transformer.wte.weight": 3},
        {**index["weight_map"], "transformer.wte.weight": "a\0b.safetensors"},
        {**index["weight_map"], "transformer.wte.weight": "absent.safetensors"},
        dict.fromkeys(index["weight_map"], first.name),
        [],
        None,
    ):
        (folder / "model.safetensors.index.json").write_text(json.dumps(index | {"weight_map": places}))
        refused(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    second.write_bytes(first.read_bytes())
    refused(folder, "two files")
    second.unlink()
    refused(folder, second.name)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "name", ["transformer.h.1.mlp.c_proj.weight", "transformer.wte.weight", "transformer.ln_f.bias"]
)
def test_weights_that_are_no_numbers_are_refused(folder, name, value):
    def spoil(tensors):
        tensors[name].view(-1)[-1] = value
        return tensors

    refused(rewritten(folder, spoil), name)
    network = tiny_network("gpt2")
    with torch.no_grad():
        network.get_parameter(name).view(-1)[-1] = value
    config = un.StudyConfig(stages=("weights",), out=str(folder / "r"))
    with pytest.raises(CheckpointError, match=name):
        un.run_study(config, models=[un.Model(network, "spoilt")], progress=False)


def test_activations_that_overflow_are_refused(folder):
    huge = rewritten(folder, lambda tensors: {name: tensor * 1e30 for name, tensor in tensors.items()})
    refused(huge, "activations")
    with pytest.raises(CheckpointError, match="float16"):
        un.load_model(str(huge), dtype="float16")


def test_an_unembedding_that_differs_from_a_tied_embedding_is_taken_with_a_note(folder):
    embedding = load_file(folder / "model.safetensors")["transformer.wte.weight"]
    tied = un.load_model(str(rewritten(folder, lambda tensors: tensors | {"lm_head.weight": embedding.clone()})))
    assert tied.notes == ()
    model = un.load_model(str(rewritten(folder, lambda tensors: tensors | {"lm_head.weight": -embedding})))
    torch.testing.assert_close(model.logits(IDS), -tied.logits(IDS))
    assert "embedding" in model.notes[0]
    with pytest.raises(CheckpointError, match="other shapes"):
        un.load_model(str(rewritten(folder, lambda tensors: tensors | {"lm_head.weight": embedding[:9].clone()})))


def headless(folder: Path, family: str) -> Path:
    """A model's folder without its head, as its base model saves it."""
    with quiet_transformers():
        tiny_network(family, tie_word_embeddings=family == "bert").base_model.save_pretrained(folder)
        small_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["bert", "llama", "gpt_neox"])
def test_a_model_saved_without_its_head_has_neurons_and_no_logits(tmp_path, family):
    model = un.load_model(str(headless(tmp_path / "m", family)))
    whole = un.Model(tiny_network(family, tie_word_embeddings=family == "bert"), "whole")
    torch.testing.assert_close(model.activations(IDS), whole.activations(IDS), rtol=0, atol=0)
    assert any("no unembedding" in note for note in model.notes)
    with pytest.raises(ArchitectureError, match="no unembedding"):
        model.logits(IDS)
    weights, expected = un.processed_weights(model), un.processed_weights(whole)
    assert weights.w_u.shape == (0, model.d_model)
    torch.testing.assert_close(weights.w_out, expected.w_out)
    torch.testing.assert_close(weights.w_in, expected.w_in)


def test_a_tied_model_saved_without_its_head_is_whole(tmp_path, folders):
    with quiet_transformers():
        tiny_network("gpt2").base_model.save_pretrained(tmp_path / "m")
    model = un.load_model(str(tmp_path / "m"))
    assert model.notes == ()
    torch.testing.assert_close(model.logits(IDS), un.load_model(str(folders[0])).logits(IDS), rtol=0, atol=0)


def test_half_a_head_is_incomplete(tmp_path):
    folder = save_tiny(tmp_path / "m", "bert")

    def halved(tensors):
        return {name: t for name, t in tensors.items() if "transform.dense" not in name}

    refused(rewritten(folder, halved), "cls.predictions.transform.dense")


@pytest.mark.parametrize(
    ("kind", "family"), [(BertForSequenceClassification, "bert"), (GPT2ForSequenceClassification, "gpt2")]
)
def test_a_classifier_is_read_without_its_classes(tmp_path, kind, family):
    network = tiny_network(family)
    with quiet_transformers():
        classifier = kind(network.config)
        classifier.base_model.load_state_dict(network.base_model.state_dict(), strict=False)
        classifier.save_pretrained(tmp_path / "m")
    model = un.load_model(str(tmp_path / "m"))
    assert {"bert": "classifier", "gpt2": "score"}[family] in model.notes[0]
    expected = un.Model(network, "whole").activations(IDS)
    torch.testing.assert_close(model.activations(IDS), expected, rtol=1e-3, atol=1e-6)


def test_a_study_of_encoders_without_heads(tmp_path, text_file, capsys):
    folders = [headless(tmp_path / "a", "bert"), save_tiny(tmp_path / "b", "bert", 1)]
    config = un.StudyConfig(
        models=tuple(map(str, folders)), data=str(text_file), context=32, max_tokens=4096, draws=2,
        stages=("weights", "statistics", "universality", "roles"), out=str(tmp_path / "r"),
    )  # fmt: skip
    store = un.run_study(config)
    said = capsys.readouterr().err
    assert "a: no unembedding" in said
    assert "a: no roles, it has no unembedding" in said
    rows = store.neurons
    assert rows["w_out_norm"].is_finite().all()
    assert rows.filter(model="a")["vocab_kurt"].is_null().all()
    assert rows.filter(model="b")["vocab_kurt"].is_finite().all()
    assert rows.filter(model="a")["excess_corr"].is_finite().any()


def test_check_says_what_is_left_out_and_names_the_error(tmp_path, folder):
    from rich.console import Console

    console = Console(record=True, width=300)
    console.print(check_models([str(headless(tmp_path / "encoder", "bert"))]))
    assert "encoder: no unembedding" in console.export_text()
    configured(folder, quantization_config={"quant_method": "gptq"})
    with pytest.raises(CheckpointError, match="quantised"):
        check_models([str(folder)])
    with pytest.raises(ArchitectureError, match=r"CheckpointError(.|\n)*MissingFileError"):
        check_models([str(folder), str(tmp_path / "nowhere")])


def test_convert_makes_a_folder_of_a_model_without_its_head_and_says_what_it_leaves_out(tmp_path):
    source = headless(tmp_path / "m", "bert")
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save(tensors | {"pooler.dense.weight": torch.ones(16, 16)}, source / "pytorch_model.bin")
    notes = []
    converted = convert(str(source), tmp_path / "converted", note=notes.append)
    assert "pooler.dense.weight" in notes[0]
    expected = un.Model(tiny_network("bert"), "whole").activations(IDS)
    torch.testing.assert_close(un.load_model(str(converted)).activations(IDS), expected, rtol=0, atol=0)
    torch.save({**tensors, "encoder.layer.0.output.extra.bias": torch.ones(16)}, source / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"extra\.bias"):
        convert(str(source), tmp_path / "again")
