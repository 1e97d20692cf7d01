"""A GGUF file through the reader of `transformers`: a tiny Llama, written by the package gguf."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_tokenizer, tiny_network

import universal_neurons as un
from universal_neurons.errors import CheckpointError, MissingExtraError, MissingFileError
from universal_neurons.models import convert, gguf_files

gguf = pytest.importorskip("gguf", reason="the extra gguf reads GGUF files")
IDS = torch.arange(1, 41).view(2, 20)
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries and keys in the order of llama.cpp, which rotates neighbours, not halves."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def written(path: Path, stored: type[np.floating] = np.float32, architecture: str = "llama"):
    """A tiny Llama as a GGUF file; returns its network."""
    network = tiny_network("llama")
    config = network.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokenizer = json.loads(small_tokenizer().backend_tokenizer.to_str())["model"]
    vocabulary = sorted(small_tokenizer().get_vocab(), key=small_tokenizer().get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] + [1] * (len(vocabulary) - 1))
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, tensor in network.state_dict().items():
        module, _, part = name.rpartition(".")
        values = tensor.numpy()
        if module in OUTER:
            place = OUTER[module]
        else:
            _, _, layer, inner = module.split(".", 3)
            place = f"blk.{layer}.{NAMES[inner]}"
            if inner in ("self_attn.q_proj", "self_attn.k_proj"):
                values = interleaved(values, config.num_attention_heads)
        writer.add_tensor(f"{place}.{part}", values.astype(np.float32 if values.ndim == 1 else stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return network


def test_a_gguf_file_is_the_model_that_it_was_made_from(tmp_path):
    network = written(tmp_path / "tiny.gguf")
    model = un.load_model(str(tmp_path / "tiny.gguf"))
    torch.testing.assert_close(model.logits(IDS), network(input_ids=IDS).logits, rtol=1e-5, atol=1e-5)
    assert model.notes == ("a GGUF file, stored as F32",)
    text = "the cat, and 12 dogs"
    assert model.tokenizer(text)["input_ids"] == small_tokenizer()(text)["input_ids"]
    assert model.name == "tiny.gguf"
    converted = un.load_model(str(convert(str(tmp_path / "tiny.gguf"), tmp_path / "whole")))
    torch.testing.assert_close(converted.logits(IDS), model.logits(IDS), rtol=0, atol=0)
    assert converted.tokenizer(text)["input_ids"] == small_tokenizer()(text)["input_ids"]


def test_its_own_precision(tmp_path):
    written(tmp_path / "half.gguf", np.float16)
    assert un.load_model(str(tmp_path / "half.gguf"), dtype="file").dtype == torch.float16
    assert un.load_model(str(tmp_path / "half.gguf")).dtype == torch.float32


def test_what_is_no_gguf_file_that_we_read(tmp_path, monkeypatch):
    written(tmp_path / "whole.gguf")
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "whole.gguf").read_bytes()[:3000])
    (tmp_path / "noise.gguf").write_bytes(b"GGUF" + bytes(range(256)))
    for name in ("cut.gguf", "noise.gguf"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            un.load_model(str(tmp_path / name))
    with pytest.raises(MissingFileError, match="not a model folder"):
        un.load_model(str(tmp_path / "whole.gguf"), revision="main")
    with pytest.raises(MissingFileError):
        un.load_model(str(tmp_path / "nowhere.gguf"))
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(tmp_path / "whole.gguf", alone)
    with pytest.raises(CheckpointError, match=r"name .*whole\.gguf"):
        un.load_model(str(alone))
    monkeypatch.setattr(gguf_files, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"universal-neurons\[gguf\]"):
        un.load_model(str(tmp_path / "whole.gguf"))
