"""One row per model family: where its blocks, MLPs, norms and unembedding are.

To add a family, add a row: `models.load_model` checks it against the running model (`verification`) and refuses a row
that is wrong.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from universal_neurons.errors import ArchitectureError
from universal_neurons.models.architectures import FOUND, Architecture, AttentionParts, ExpertParts


def _separate(module: str, norm: str, out: str) -> AttentionParts:
    return AttentionParts(module, norm, f"{module}.q_proj", f"{module}.k_proj", f"{module}.v_proj", f"{module}.{out}")


GPT_2 = Architecture(
    name="GPT-2",
    model_types=("gpt2",),
    heads_out="attn.c_proj",
    blocks="transformer.h",
    mlp_norm="ln_2",
    w_in="mlp.c_fc",
    w_out="mlp.c_proj",
    final_norm="transformer.ln_f",
    attention=AttentionParts(
        "attn", "ln_1", "attn.c_attn", "attn.c_attn", "attn.c_attn", "attn.c_proj", fused="blocks"
    ),
)
GPT_NEOX = Architecture(
    name="GPT-NeoX",
    model_types=("gpt_neox",),
    heads_out="attention.dense",
    blocks="gpt_neox.layers",
    mlp_norm="post_attention_layernorm",
    w_in="mlp.dense_h_to_4h",
    w_out="mlp.dense_4h_to_h",
    final_norm="gpt_neox.final_layer_norm",
    attention=AttentionParts(
        "attention",
        "input_layernorm",
        "attention.query_key_value",
        "attention.query_key_value",
        "attention.query_key_value",
        "attention.dense",
        fused="heads",
    ),
)
LLAMA = Architecture(
    name="Llama",
    model_types=(
        "llama", "mistral", "qwen2", "qwen3", "smollm3", "cwm", "internlm3", "ministral", "ministral3", "seed_oss",
    ),
    heads_out="self_attn.o_proj",
    blocks="model.layers",
    mlp_norm="post_attention_layernorm",
    w_in="mlp.gate_proj",
    w_up="mlp.up_proj",
    w_out="mlp.down_proj",
    final_norm="model.norm",
    norm="rms",
    attention=_separate("self_attn", "input_layernorm", "o_proj"),
)  # fmt: skip
GRANITE = replace(
    LLAMA,
    name="Granite",
    model_types=("granite",),
    residual_multiplier="residual_multiplier",
    logit_divisor="logits_scaling",
)
GEMMA = replace(LLAMA, name="Gemma", model_types=("gemma",), gain_offset=1.0)
GEMMA_2 = replace(
    GEMMA,
    name="Gemma-2",
    model_types=("gemma2", "gemma3_text"),
    heads_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    out_norm="post_feedforward_layernorm",
    attention=None,
    logit_cap="final_logit_softcapping",
)
OLMO_2 = replace(
    LLAMA,
    name="OLMo-2",
    model_types=("olmo2", "olmo3", "exaone4"),
    heads_norm="post_attention_layernorm",
    mlp_norm=(),
    out_norm="post_feedforward_layernorm",
    attention=None,
)
PHI_3 = replace(
    LLAMA,
    name="Phi-3",
    model_types=("phi3", "glm"),
    w_in="mlp.gate_up_proj",
    w_up="mlp.gate_up_proj",
    attention=None,
)
STABLELM = replace(
    LLAMA,
    name="StableLM",
    model_types=("stablelm",),
    mlp_norm=("post_attention_layernorm", "input_layernorm"),
    norm="layer",
    attention=None,
)
OPT = Architecture(
    name="OPT",
    model_types=("opt",),
    heads_out="self_attn.out_proj",
    blocks="model.decoder.layers",
    mlp_norm="final_layer_norm",
    w_in="fc1",
    w_out="fc2",
    final_norm="model.decoder.final_layer_norm",
    attention=_separate("self_attn", "self_attn_layer_norm", "out_proj"),
)
BERT = Architecture(
    name="BERT",
    model_types=("bert",),
    heads_out="attention.output.dense",
    blocks="bert.encoder.layer",
    mlp_norm="output.LayerNorm",
    w_in="intermediate.dense",
    w_out="output.dense",
    final_norm="cls.predictions.transform.LayerNorm",
    unembedding="cls.predictions.decoder",
    post_norm=True,
    causal=False,
)

ARCHITECTURES: tuple[Architecture, ...] = (
    GPT_2,
    replace(
        GPT_2,
        name="GPT-Neo",
        model_types=("gpt_neo",),
        heads_out="attn.attention.out_proj",
        attention=_separate("attn.attention", "ln_1", "out_proj"),
    ),
    replace(GPT_2, name="GPT-BigCode", model_types=("gpt_bigcode",), attention=None),
    replace(
        GPT_2,
        name="GPT-J",
        model_types=("gptj", "codegen"),
        heads_out="attn.out_proj",
        mlp_norm="ln_1",
        w_in="mlp.fc_in",
        w_out="mlp.fc_out",
        attention=None,
    ),
    GPT_NEOX,
    replace(
        GPT_NEOX,
        name="BLOOM",
        model_types=("bloom",),
        heads_out="self_attention.dense",
        blocks="transformer.h",
        final_norm="transformer.ln_f",
        attention=None,
    ),
    replace(
        GPT_NEOX,
        name="Falcon",
        model_types=("falcon",),
        heads_out="self_attention.dense",
        blocks="transformer.h",
        mlp_norm=("ln_mlp", "post_attention_layernorm", "input_layernorm"),
        final_norm="transformer.ln_f",
        attention=None,
    ),
    replace(
        GPT_NEOX,
        name="Persimmon",
        model_types=("persimmon",),
        heads_out="self_attn.dense",
        blocks="model.layers",
        final_norm="model.final_layernorm",
        attention=None,
    ),
    Architecture(
        name="MPT",
        model_types=("mpt",),
        heads_out="attn.out_proj",
        blocks="transformer.blocks",
        mlp_norm="norm_2",
        w_in="ffn.up_proj",
        w_out="ffn.down_proj",
        final_norm="transformer.norm_f",
    ),
    Architecture(
        name="Phi",
        model_types=("phi",),
        heads_out="self_attn.dense",
        blocks="model.layers",
        mlp_norm="input_layernorm",
        w_in="mlp.fc1",
        w_out="mlp.fc2",
        final_norm="model.final_layernorm",
    ),
    LLAMA,
    replace(LLAMA, name="Helium", model_types=("helium",), attention=None),
    GRANITE,
    replace(GRANITE, name="Granite-SWA", model_types=("granite_swa",), attention=None),
    GEMMA,
    GEMMA_2,
    OLMO_2,
    replace(LLAMA, name="OLMo", model_types=("olmo",), norm="layer", attention=None),
    PHI_3,
    replace(
        PHI_3,
        name="GLM-4",
        model_types=("glm4",),
        heads_norm="post_self_attn_layernorm",
        out_norm="post_mlp_layernorm",
    ),
    STABLELM,
    replace(
        STABLELM,
        name="Cohere",
        model_types=("cohere", "cohere2"),
        mlp_norm="input_layernorm",
        logit_multiplier="logit_scale",
    ),
    replace(
        LLAMA,
        name="StarCoder2",
        model_types=("starcoder2",),
        w_in="mlp.c_fc",
        w_up=None,
        w_out="mlp.c_proj",
        norm="layer",
    ),
    replace(
        LLAMA,
        name="Nemotron",
        model_types=("nemotron",),
        w_in="mlp.up_proj",
        w_up=None,
        norm="layer",
        gain_offset=1.0,
    ),
    replace(LLAMA, name="Arcee", model_types=("arcee",), w_in="mlp.up_proj", w_up=None),
    replace(
        LLAMA,
        name="Apertus",
        model_types=("apertus",),
        mlp_norm="feedforward_layernorm",
        w_in="mlp.up_proj",
        w_up=None,
        attention=_separate("self_attn", "attention_layernorm", "o_proj"),
    ),
    replace(
        OPT,
        name="OPT-350m",
        settings={"do_layer_norm_before": False},
        final_norm=None,
        post_norm=True,
        attention=None,
    ),
    OPT,
    BERT,
    replace(
        BERT,
        name="RoBERTa",
        model_types=("roberta", "xlm-roberta", "camembert"),
        blocks="roberta.encoder.layer",
        final_norm="lm_head.layer_norm",
        unembedding="lm_head.decoder",
        positions_after_padding=True,
    ),
    replace(
        BERT,
        name="ELECTRA",
        model_types=("electra",),
        blocks="electra.encoder.layer",
        final_norm="generator_predictions.LayerNorm",
        unembedding="generator_lm_head",
    ),
    replace(
        BERT,
        name="DistilBERT",
        model_types=("distilbert",),
        heads_out="attention.out_lin",
        blocks="distilbert.transformer.layer",
        mlp_norm="output_layer_norm",
        w_in="ffn.lin1",
        w_out="ffn.lin2",
        final_norm="vocab_layer_norm",
        unembedding="vocab_projector",
    ),
    Architecture(
        name="ModernBERT",
        model_types=("modernbert",),
        heads_out="attn.Wo",
        blocks="model.layers",
        mlp_norm="mlp_norm",
        w_in="mlp.Wi",
        w_up="mlp.Wi",
        w_out="mlp.Wo",
        final_norm="head.norm",
        unembedding="decoder",
        causal=False,
    ),
    replace(LLAMA, name="EuroBERT", model_types=("eurobert",), causal=False, attention=None),
    replace(LLAMA, name="Mixtral", model_types=("mixtral", "qwen3_moe"), experts=ExpertParts()),
    # Queries and keys are normalised over all heads together.
    replace(LLAMA, name="OLMoE", model_types=("olmoe",), experts=ExpertParts(), attention=None),
    replace(
        LLAMA,
        name="Qwen2-MoE",
        model_types=("qwen2_moe",),
        experts=ExpertParts(shared="mlp.shared_expert", shared_gate="mlp.shared_expert_gate"),
    ),
    # Attention has a learned sink in place of BOS.
    replace(LLAMA, name="GPT-OSS", model_types=("gpt_oss",), up_plus_one=True, experts=ExpertParts(), attention=None),
)


def architecture_of(config: Mapping[str, Any]) -> Architecture | None:
    """The first row of the table that a configuration fits, if any does."""
    for row in ARCHITECTURES:
        if config["model_type"] in row.model_types and row.settings.items() <= config.items():
            return row
    return None


def is_gated(name: str, source: str) -> bool:
    """Whether the family of this name, as sketches hold it, is gated; `source` names the file in the error."""
    for row in ARCHITECTURES:
        if row.name == name:
            return row.gated
    for gated, found in FOUND.items():
        if name.startswith(found):
            return gated
    raise ArchitectureError(
        f"{source}: of an unknown architecture",
        given=name,
        wanted="one of " + ", ".join(row.name for row in ARCHITECTURES),
        fix="use the version that wrote it",
    )
