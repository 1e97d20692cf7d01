"""One row per model family: where its blocks, MLPs, norms and unembedding are.

Paths are attribute paths inside the Hugging Face model; those of a block's parts start at the block.  To add a
family, add a row: `models.load_model` checks it against the running model (width of the hooked activation;
activation · W_out + b equals what the MLP adds to the residual stream) and refuses a row that is wrong.
"""

from dataclasses import dataclass
from typing import Any, Literal

from universal_neurons.errors import ArchitectureError


@dataclass(frozen=True)
class AttentionParts:
    """Names of the parts of a block's attention; queries, keys and values may come from one fused projection."""

    module: str
    norm: str  # the norm that queries, keys and values read through
    query: str
    key: str
    value: str
    out: str
    fused: Literal["", "blocks", "heads"] = ""  # all queries, all keys, all values; or those of each head in turn


def _separate(module: str, norm: str, out: str) -> AttentionParts:
    return AttentionParts(module, norm, f"{module}.q_proj", f"{module}.k_proj", f"{module}.v_proj", f"{module}.{out}")


@dataclass(frozen=True)
class ExpertParts:
    """Names of the parts of a block's MLP where it has experts (`models.experts`)."""

    module: str = "mlp"  # its output is what the MLP adds
    experts: str = "mlp.experts"  # called with tokens, the experts they are routed to, and with which weights
    shared: str | None = None  # a gated MLP that every token passes through
    shared_gate: str | None = None  # the sigmoid of its output is the shared expert's weight


@dataclass(frozen=True)
class Architecture:
    """Names of the parts of one model family."""

    name: str
    model_types: tuple[str, ...]  # values of `config.model_type`
    blocks: str
    mlp_norm: str  # the norm that the MLP's input weights read through
    w_in: str  # its output is the pre-activation; in a gated MLP, the gate
    w_out: str  # its input is the activation
    final_norm: str
    unembedding: str = "lm_head"
    w_up: str | None = None
    up_plus_one: bool = False  # the activation is act(gate) · (up + 1): its sign is no free choice
    norm: Literal["layer", "rms"] = "layer"
    post_norm: bool = False  # the norm follows the residual sum: weights cannot be folded, outputs are normalised
    causal: bool = True
    attention: AttentionParts | None = None
    experts: ExpertParts | None = None  # then w_in, w_up and w_out are those of dense layers among the sparse ones

    @property
    def gated(self) -> bool:
        """Whether the activation is act(gate) · up, so that negating w_up and w_out leaves the model the same."""
        return self.w_up is not None and not self.up_plus_one


def _sparse(
    name: str,
    model_types: tuple[str, ...],
    experts: ExpertParts,
    *,
    attention: bool = False,
    up_plus_one: bool = False,
) -> Architecture:
    """A mixture of experts that is like Llama otherwise."""
    return Architecture(
        name=name,
        model_types=model_types,
        blocks="model.layers",
        mlp_norm="post_attention_layernorm",
        w_in="mlp.gate_proj",
        w_up="mlp.up_proj",
        up_plus_one=up_plus_one,
        w_out="mlp.down_proj",
        final_norm="model.norm",
        norm="rms",
        attention=_separate("self_attn", "input_layernorm", "o_proj") if attention else None,
        experts=experts,
    )


MIXTURES = (
    _sparse("Mixtral", ("mixtral", "qwen3_moe"), ExpertParts(), attention=True),
    _sparse("OLMoE", ("olmoe",), ExpertParts()),  # queries and keys are normalised over all heads together
    _sparse(
        "Qwen2-MoE",
        ("qwen2_moe",),
        ExpertParts(shared="mlp.shared_expert", shared_gate="mlp.shared_expert_gate"),
        attention=True,
    ),
    _sparse("GPT-OSS", ("gpt_oss",), ExpertParts(), up_plus_one=True),  # a learned sink in place of BOS
)

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(
        name="GPT-2",
        model_types=("gpt2",),
        blocks="transformer.h",
        mlp_norm="ln_2",
        w_in="mlp.c_fc",
        w_out="mlp.c_proj",
        final_norm="transformer.ln_f",
        attention=AttentionParts(
            "attn", "ln_1", "attn.c_attn", "attn.c_attn", "attn.c_attn", "attn.c_proj", fused="blocks"
        ),
    ),
    Architecture(
        name="GPT-Neo",
        model_types=("gpt_neo",),
        blocks="transformer.h",
        mlp_norm="ln_2",
        w_in="mlp.c_fc",
        w_out="mlp.c_proj",
        final_norm="transformer.ln_f",
        attention=_separate("attn.attention", "ln_1", "out_proj"),
    ),
    Architecture(
        name="GPT-NeoX",
        model_types=("gpt_neox",),
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
    ),
    Architecture(
        name="Llama",
        model_types=("llama", "mistral", "qwen2", "qwen3", "smollm3"),
        blocks="model.layers",
        mlp_norm="post_attention_layernorm",
        w_in="mlp.gate_proj",
        w_up="mlp.up_proj",
        w_out="mlp.down_proj",
        final_norm="model.norm",
        norm="rms",
        attention=_separate("self_attn", "input_layernorm", "o_proj"),
    ),
    Architecture(
        name="OPT",
        model_types=("opt",),
        blocks="model.decoder.layers",
        mlp_norm="final_layer_norm",
        w_in="fc1",
        w_out="fc2",
        final_norm="model.decoder.final_layer_norm",
        attention=_separate("self_attn", "self_attn_layer_norm", "out_proj"),
    ),
    Architecture(
        name="BERT",
        model_types=("bert",),
        blocks="bert.encoder.layer",
        mlp_norm="output.LayerNorm",
        w_in="intermediate.dense",
        w_out="output.dense",
        final_norm="cls.predictions.transform.LayerNorm",
        unembedding="cls.predictions.decoder",
        post_norm=True,
        causal=False,
    ),
    *MIXTURES,
)


def architecture_of(model_type: str, source: str) -> Architecture:
    """The table's row for a `config.model_type`; `source` names the model in the error."""
    for row in ARCHITECTURES:
        if model_type in row.model_types:
            return row
    known = ", ".join(t for row in ARCHITECTURES for t in row.model_types)
    raise ArchitectureError(
        f"{source}: unknown architecture",
        given=f"model_type {model_type!r}",
        wanted=f"one of {known}",
        fix="add a row to ARCHITECTURES in architectures.py (docs/models.md says how)",
    )


def is_gated(name: str, source: str) -> bool:
    """Whether the family of this name, as sketches hold it, is gated; `source` names the file in the error."""
    for row in ARCHITECTURES:
        if row.name == name:
            return row.gated
    raise ArchitectureError(
        f"{source}: of an unknown architecture",
        given=name,
        wanted="one of " + ", ".join(row.name for row in ARCHITECTURES),
        fix="use the version that wrote it",
    )


def module_at(root: Any, path: str) -> Any:
    """The submodule at an attribute path, `None` where a part is missing."""
    for part in path.split("."):
        root = getattr(root, part, None)
        if root is None:
            return None
    return root
