"""Names that others give to places of a forward pass: TransformerLens's hook points, modules of Hugging Face models."""

import re

from universal_neurons.errors import DictionaryError
from universal_neurons.models import Place, PlaceKind

OF_TRANSFORMER_LENS: dict[str, PlaceKind] = {
    "hook_resid_pre": "residual_in",
    "hook_resid_mid": "residual_mid",
    "hook_resid_post": "residual_out",
    "hook_attn_out": "attention_out",
    "attn.hook_z": "attention_heads",
    "hook_mlp_in": "residual_mid",  # a copy of it, before the norm
    "ln2.hook_normalized": "mlp_normed",
    "mlp.hook_in": "mlp_in",  # of TransformerLens's bridge
    "mlp.hook_out": "mlp_out",
    "mlp.hook_post": "neurons",
    "hook_mlp_out": "mlp_out",
}
OF_MODULES: dict[tuple[str, str], PlaceKind] = {
    ("", "input"): "residual_in",
    ("", "output"): "residual_out",
    ("mlp", "input"): "mlp_in",
    ("mlp", "output"): "mlp_out",
    ("attn", "output"): "attention_out",
    ("self_attn", "output"): "attention_out",
    ("attention", "output"): "attention_out",
    ("self_attn.o_proj", "input"): "attention_heads",
    ("attn.c_proj", "input"): "attention_heads",
    ("attention.dense", "input"): "attention_heads",
    ("pre_feedforward_layernorm", "output"): "mlp_in",
    ("post_feedforward_layernorm", "output"): "mlp_out",
    ("mlp.down_proj", "input"): "neurons",
    ("mlp.c_proj", "input"): "neurons",
    ("mlp.dense_4h_to_h", "input"): "neurons",
}
BLOCK = re.compile(r"blocks\.(\d{1,6})\.(.+)")
MODULE = re.compile(
    r"(?:[a-z_]+\.)*(?:layers|layer|h|blocks)\.(\d{1,6})(?:\.(?!input$|output$)(.+?))?(?:\.(input|output))?"
)


def place_of_hook(name: str, named: str) -> Place:
    """The place that a hook point of TransformerLens, or else a module of a Hugging Face model, stands for.

    A module without `.input` or `.output` stands for its output.  Raises `DictionaryError`.
    """
    if (block := BLOCK.fullmatch(name)) and (kind := OF_TRANSFORMER_LENS.get(block[2])):
        return Place(kind, int(block[1]))
    return place_of_module(name, named)


def place_of_module(name: str, named: str, side: str = "output") -> Place:
    """The place that a module of a Hugging Face model stands for; `side` where the name does not say.

    Raises `DictionaryError`.
    """
    module = MODULE.fullmatch(name)
    kind = OF_MODULES.get((module[2] or "", module[3] or side)) if module else None
    if module is None or kind is None:
        raise DictionaryError(
            f"{named}: reads a place that is not known here",
            given=name,
            wanted="blocks.N. and one of "
            + ", ".join(OF_TRANSFORMER_LENS)
            + "; or a block, its MLP or its attention as the Hugging Face model names it",
            fix="take a dictionary of the residual stream, of attention or of the MLP",
        )
    return Place(kind, int(module[1]))
