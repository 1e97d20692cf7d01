"""A tiny random model of every type that the table covers, of the real class of `transformers`, and what each is like.

`Kind` says by hand what the product's table says in its own way: what norm the MLP reads through, whether the block's
residuals are parallel, whether a norm follows the MLP.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from conftest import COMMON, CONTEXT, VOCABULARY, random_norms, small_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from universal_neurons.models import Model, quiet_transformers

GPT = {
    "n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "n_positions": CONTEXT, "vocab_size": VOCABULARY,
    "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
SHARED = {"num_key_value_heads": 1}
SMALL = SHARED | {"head_dim": 8}


@dataclass(frozen=True)
class Kind:
    """A type (and variant) and how its MLPs read and write."""

    model_type: str
    changes: dict[str, Any] = field(default_factory=dict)
    common: dict[str, Any] = field(default_factory=lambda: COMMON)
    norm: str = "rms"  # layer, rms, none (the MLP reads the residual stream), post (norms follow the residual sum)
    epsilon: float = 1e-6
    parallel: bool = False
    out_norm: bool = False
    encoder: bool = False


def layer_norm(model_type: str, epsilon: float = 1e-5, **more: Any) -> Kind:
    return Kind(model_type, norm="layer", epsilon=epsilon, **more)


KINDS = {
    "gpt2": layer_norm("gpt2", common=GPT),
    "gpt_neo": layer_norm(
        "gpt_neo", changes={"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]}
    ),
    "gptj": layer_norm("gptj", common=GPT, changes={"rotary_dim": 4}, parallel=True),
    "codegen": layer_norm("codegen", common=GPT, changes={"n_head": 4, "rotary_dim": 4}, parallel=True),
    "gpt_bigcode": layer_norm("gpt_bigcode", common=GPT),
    "gpt_neox": layer_norm("gpt_neox", parallel=True),
    "gpt_neox, sequential": layer_norm("gpt_neox", changes={"use_parallel_residual": False}),
    "bloom": layer_norm("bloom", changes={"n_head": 2, "n_layer": 2}),
    "falcon": layer_norm("falcon", changes={"ffn_hidden_size": 24}, parallel=True),
    "falcon, two norms": layer_norm(
        "falcon",
        changes={"new_decoder_architecture": True, "num_kv_heads": 1, "ffn_hidden_size": 24},
        parallel=True,
    ),
    "falcon, one norm": layer_norm(
        "falcon",
        changes={"new_decoder_architecture": True, "num_kv_heads": 1, "num_ln_in_parallel_attn": 1},
        parallel=True,
    ),
    "falcon, sequential": layer_norm(
        "falcon", changes={"parallel_attn": False, "alibi": True, "bias": True, "multi_query": False}
    ),
    "mpt": layer_norm(
        "mpt",
        common={
            "d_model": 16, "n_heads": 2, "n_layers": 2, "vocab_size": VOCABULARY, "max_seq_len": CONTEXT,
            "initializer_range": 0.3,
        },
    ),
    "opt": layer_norm("opt", changes={"ffn_dim": 24, "word_embed_proj_dim": 16}),
    "opt, post": Kind(
        "opt", changes={"ffn_dim": 24, "word_embed_proj_dim": 8, "do_layer_norm_before": False}, norm="post"
    ),
    "phi": layer_norm("phi", parallel=True),
    "phi3": Kind("phi3", SHARED, epsilon=1e-5),
    "stablelm": layer_norm("stablelm", changes=SHARED),
    "stablelm, parallel": layer_norm("stablelm", changes=SHARED | {"use_parallel_residual": True}, parallel=True),
    "llama": Kind("llama"),
    "mistral": Kind("mistral", SHARED),
    "qwen2": Kind("qwen2", SHARED),
    "qwen3": Kind("qwen3", SMALL),
    "smollm3": Kind("smollm3", SHARED),
    "cwm": Kind("cwm", SMALL, epsilon=1e-5),
    "internlm3": Kind("internlm3", SMALL, epsilon=1e-5),
    "ministral": Kind("ministral", SMALL),
    "ministral3": Kind("ministral3", SMALL, epsilon=1e-5),
    "seed_oss": Kind("seed_oss", SMALL),
    "helium": Kind("helium", SMALL, epsilon=1e-8),
    "gemma": Kind("gemma", SMALL),
    "gemma2": Kind("gemma2", SMALL | {"final_logit_softcapping": 3.0}, out_norm=True),
    "gemma3_text": Kind("gemma3_text", SMALL, out_norm=True),
    "olmo": layer_norm("olmo"),
    "olmo2": Kind("olmo2", norm="none", epsilon=1e-5, out_norm=True),
    "olmo3": Kind("olmo3", norm="none", epsilon=1e-5, out_norm=True),
    "exaone4": Kind("exaone4", SHARED, norm="none", epsilon=1e-5, out_norm=True),
    "granite": Kind("granite", {"residual_multiplier": 0.22, "logits_scaling": 3.0, "embedding_multiplier": 12.0}),
    "granite_swa": Kind("granite_swa", SHARED | {"residual_multiplier": 0.22, "logits_scaling": 3.0}, epsilon=1e-5),
    "cohere": layer_norm("cohere", changes={"logit_scale": 0.25}, parallel=True),
    "cohere2": layer_norm("cohere2", changes=SHARED | {"logit_scale": 0.25}, parallel=True),
    "starcoder2": layer_norm("starcoder2", changes=SHARED),
    "nemotron": layer_norm("nemotron", changes=SHARED),
    "arcee": Kind("arcee", SHARED, epsilon=1e-5),
    "apertus": Kind("apertus", SHARED, epsilon=1e-5),
    "glm": Kind("glm", SMALL, epsilon=1.5625e-7),
    "glm4": Kind("glm4", SMALL, epsilon=1.5625e-7, out_norm=True),
    "persimmon": layer_norm("persimmon"),
    "bert": Kind("bert", norm="post", encoder=True),
    "roberta": Kind("roberta", norm="post", encoder=True),
    "xlm-roberta": Kind("xlm-roberta", {"pad_token_id": 1}, norm="post", encoder=True),
    "camembert": Kind("camembert", norm="post", encoder=True),
    "electra": Kind("electra", {"embedding_size": 8}, norm="post", encoder=True),
    "electra, wide": Kind("electra", {"embedding_size": 16}, norm="post", encoder=True),
    "distilbert": Kind(
        "distilbert",
        common={
            "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": VOCABULARY,
            "max_position_embeddings": CONTEXT, "pad_token_id": 0, "initializer_range": 0.3,
        },
        norm="post",
        encoder=True,
    ),
    "modernbert": layer_norm("modernbert", changes={"cls_token_id": 0, "sep_token_id": 0}, encoder=True),
    "eurobert": Kind("eurobert", SHARED, epsilon=1e-5, encoder=True),
}  # fmt: skip


def network_of(name: str, seed: int = 0) -> Any:
    """A network of a kind, whose norms and biases are random too."""
    kind = KINDS[name]
    common = {k: v for k, v in kind.common.items() if not (kind.model_type == "opt" and k == "intermediate_size")}
    loader = AutoModelForMaskedLM if kind.encoder else AutoModelForCausalLM
    torch.manual_seed(seed)
    with quiet_transformers():
        return random_norms(loader.from_config(AutoConfig.for_model(kind.model_type, **common | kind.changes)))


@cache
def model_of(name: str) -> Model:
    """The one model of a kind that tests share: none changes it."""
    return Model(network_of(name), name, tokenizer=small_tokenizer())
