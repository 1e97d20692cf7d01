"""How models arrive: in the file's precision, in shards, as base models with and without their prefix."""

import json
from pathlib import Path

import pytest
import torch
from conftest import exit_code, save_tiny, small_tokenizer, tiny_network
from safetensors.torch import load_file, save_file

import universal_neurons as un
from universal_neurons.errors import CheckpointError, ConfigError
from universal_neurons.models import quiet_transformers
from universal_neurons.storage import Store

IDS = torch.arange(1, 41).view(2, 20)


def in_precision(folder: Path, precision: str, named: str | None, *, key: str = "dtype") -> Path:
    """A tiny GPT-2 whose weights have this precision and whose config.json names that one, or none."""
    save_tiny(folder)
    weights = folder / "model.safetensors"
    tensors = {name: t.to(getattr(torch, precision)) for name, t in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(config | ({key: named} if named else {})))
    return folder


@pytest.mark.parametrize(("stored", "named", "key", "own"), [
    ("bfloat16", "bfloat16", "dtype", "bfloat16"),
    ("float16", "float16", "torch_dtype", "float16"),
    ("float32", "bfloat16", "torch_dtype", "bfloat16"),
    ("bfloat16", None, "dtype", "bfloat16"),
    ("float16", None, "dtype", "float16"),
])  # fmt: skip
def test_a_files_own_precision_is_kept_on_request_and_changed_by_default(tmp_path, stored, named, key, own):
    folder = str(in_precision(tmp_path / "m", stored, named, key=key))
    assert un.load_model(folder, dtype="file").dtype == getattr(torch, own)
    assert un.load_model(folder).dtype == torch.float32


@pytest.mark.parametrize(("stored", "named"), [("float64", None), ("float32", "float8_e4m3fn"), ("float32", 7)])
def test_a_precision_in_which_no_pass_runs_is_refused_on_request_alone(tmp_path, stored, named):
    folder = str(in_precision(tmp_path / "m", stored, named))
    with pytest.raises(ConfigError, match=r"--dtype file(.|\n)*bfloat16"):
        un.load_model(folder, dtype="file")


def test_most_of_the_numbers_decide(tmp_path):
    folder = in_precision(tmp_path / "m", "bfloat16", None)
    tensors = load_file(folder / "model.safetensors")
    some = {name: tensor.float() if tensor.dim() == 1 else tensor for name, tensor in tensors.items()}
    save_file(some, folder / "model.safetensors", metadata={"format": "pt"})
    assert un.load_model(str(folder), dtype="file").dtype == torch.bfloat16


def test_a_study_in_the_files_precisions_says_which_they_were(tmp_path, text_file, folders):
    low = in_precision(tmp_path / "low", "bfloat16", "bfloat16")
    out = tmp_path / "r"
    code = exit_code(
        "run", "--models", low, folders[1], "--data", text_file, "--max-tokens", 2048, "--context", 32, "--draws", 2,
        "--dtype", "file", "--stages", "statistics", "--stages", "universality", "--out", out,
    )  # fmt: skip
    assert code == 0
    study = json.loads((out / "study.json").read_text())
    assert study["config"]["dtype"] == "file"
    assert [model["dtype"] for model in study["models"]] == ["bfloat16", "float32"]
    assert Store(out).neurons["excess_corr"].is_finite().any()


def sharded(folder: Path, family: str = "gpt2") -> Path:
    """A tiny model in several files and an index of them."""
    with quiet_transformers():
        tiny_network(family, num_hidden_layers=3).save_pretrained(folder, max_shard_size="20KB")
        small_tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_shards_are_one_model(tmp_path, family):
    model = un.load_model(str(sharded(tmp_path / "m", family)))
    whole = un.load_model(str(save_tiny(tmp_path / "whole", family, num_hidden_layers=3)))
    torch.testing.assert_close(model.activations(IDS), whole.activations(IDS), rtol=0, atol=0)


def test_a_missing_shard_is_named(tmp_path):
    folder = sharded(tmp_path / "m")
    lost = sorted(folder.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=lost.name):
        un.load_model(str(folder))


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("prefixed", [True, False])
def test_a_base_model_is_read_with_and_without_its_prefix(tmp_path, family, prefixed):
    network = tiny_network(family, tie_word_embeddings=False)
    base = f"{network.base_model_prefix}."
    with quiet_transformers():
        network.base_model.save_pretrained(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    tensors = {name.removeprefix(base): tensor for name, tensor in load_file(weights).items()}
    save_file({base * prefixed + name: tensor for name, tensor in tensors.items()}, weights, metadata={"format": "pt"})
    model = un.load_model(str(tmp_path / "m"))
    assert any("no unembedding" in note for note in model.notes)
    whole = un.Model(network, "whole")
    torch.testing.assert_close(model.activations(IDS), whole.activations(IDS), rtol=1e-3, atol=1e-6)
