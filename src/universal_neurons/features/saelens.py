"""Dictionaries that SAELens saved: cfg.json and sae_weights.safetensors, as releases before and since 6 write them.

Read for what changes latents or what they are of; what only says how it was trained is not read.  Since 6 what is of
the model stands under `metadata`; before, all stands at the top, some of it under older names.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from universal_neurons.errors import CheckpointError, DictionaryError
from universal_neurons.features.dictionary import Dictionary, Normalisation
from universal_neurons.features.dictionary_activations import Activation, Gated, JumpReLU, TopK
from universal_neurons.features.dictionary_tensors import Tensors, read_tensors
from universal_neurons.features.hook_names import place_of_hook, place_of_module
from universal_neurons.models import Place

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
OLDER = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
JUMPS = ("jumprelu", "batchtopk", "matryoshka_batchtopk", "jumprelu_transcoder", "jumprelu_skip_transcoder")
ARCHITECTURES = ("standard", "gated", "topk", "jumprelu", "batchtopk", "matryoshka_batchtopk", *TRANSCODERS)
NORMALISATIONS: dict[str, Normalisation] = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "unit_norm",
    "expected_average_only_in": "average_norm",
    "constant_scalar_rescale": "none",
}
FACTORS = {  # of the activations, by the setting that holds them
    "expected_average_only_in": "norm_scaling_factor",  # a name of our own: SAELens keeps it elsewhere
    "constant_scalar_rescale": "activation_normalization_factor",
}
HARMLESS = {  # of how the model was loaded: these change no activation that is read
    "fold_ln", "center_unembed", "n_devices", "device", "device_map", "dtype", "torch_dtype", "trust_remote_code",
    "revision", "checkpoint_index", "checkpoint_value", "hf_model", "tokenizer", "move_to_device",
    "default_padding_side", "default_prepend_bos", "attn_implementation", "low_cpu_mem_usage", "cache_dir", "token",
}  # fmt: skip
OF_HEADS = {"fold_value_biases", "refactor_factored_attn_matrices"}  # change attn.hook_z


def read_saelens(folder: Path, config: Mapping[str, Any], named: str) -> Dictionary:
    """The dictionary in a folder whose cfg.json holds `config`.

    Raises `DictionaryError` for what is not computed here, `CheckpointError` for files that do not fit each other.
    """
    settings = _flat(config)
    architecture = _architecture(settings, named)
    read, write = _places(settings, architecture, named)
    tensors = read_tensors(folder / WEIGHTS, named)
    _require_sizes(settings, named)
    W_enc = tensors.take("W_enc", settings.get("d_in"), settings.get("d_sae"))
    d_in, width = W_enc.shape
    d_out = settings.get("d_out", d_in) if architecture in TRANSCODERS else d_in
    dictionary = Dictionary(
        name=folder.name,
        read=read,
        write=write,
        W_enc=W_enc,
        b_enc=tensors.take("b_gate" if architecture == "gated" else "b_enc", width),
        W_dec=tensors.take("W_dec", width, d_out),
        b_dec=tensors.take("b_dec", d_out),
        activation=_activation(architecture, settings, tensors, width, named),
        W_skip=tensors.take("W_skip", d_out, d_in).T.contiguous() if "skip" in architecture else None,
        centred=_centred(settings, read, named),
        bos=_flag(settings, "prepend_bos", None, named),
        kind="SAELens",
        **_normalisation(settings, architecture, named),
    )
    if _flag(settings, "apply_b_dec_to_input", architecture not in TRANSCODERS, named):
        dictionary = replace(dictionary, b_in=_bias_of_input(dictionary, architecture, named))
    dictionary = _with_factors(dictionary, settings, tensors, named)
    tensors.finish()
    return dictionary


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """All settings at one level, under the names of today; a setting that is null is none."""
    metadata = config.get("metadata")
    both = {**(metadata if isinstance(metadata, dict) else {}), **config}
    return {OLDER.get(name, name): value for name, value in both.items() if value is not None and name != "metadata"}


def refused(named: str, setting: str, value: object, wanted: str, fix: str | None = None) -> DictionaryError:
    """The error for a setting of a format that is not computed here."""
    return DictionaryError(
        f"{named}: a dictionary whose {setting} is not read",
        given=f"{setting}: {value}",
        wanted=wanted,
        fix=fix or "take a dictionary of a kind that is read (docs/features.md)",
    )


def _flag(settings: Mapping[str, Any], name: str, default: bool | None, named: str) -> bool | None:
    value = settings.get(name, default)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{named}: {name} is no truth value", given=value, wanted="true or false")
    return value


def _require_sizes(settings: Mapping[str, Any], named: str) -> None:
    for name in ("d_in", "d_sae", "d_out"):
        size = settings.get(name, 1)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise CheckpointError(f"{named}: {name} is no size", given=size, wanted="a number from 1 on")


def _architecture(settings: Mapping[str, Any], named: str) -> str:
    """The architecture; before 6, TopK was a standard one with another activation function."""
    architecture, function = settings.get("architecture", "standard"), settings.get("activation_fn", "relu")
    if function not in ("relu", "topk") or (function == "topk" and architecture not in ("standard", "topk")):
        raise refused(named, "activation_fn", f"{function} of a {architecture} one", "relu, or topk of a standard one")
    if architecture not in ARCHITECTURES:
        raise refused(named, "architecture", architecture, "one of " + ", ".join(ARCHITECTURES))
    return "topk" if function == "topk" else str(architecture)


def _places(settings: Mapping[str, Any], architecture: str, named: str) -> tuple[Place, Place]:
    """Where it reads and where it writes."""
    for name in ("hook_head_index", "hook_head_index_out"):
        if settings.get(name) is not None:
            raise refused(named, name, settings[name], "a dictionary of all heads together")
    read = _place(settings, "hook_name", "hf_hook_name", named)
    reshape = settings.get("reshape_activations", "none")
    if reshape not in ("none", "hook_z") or (reshape == "hook_z" and read.kind != "attention_heads"):
        raise refused(named, "reshape_activations", f"{reshape} at {read}", "none, or hook_z of attn.hook_z")
    writes = architecture in TRANSCODERS
    if writes != ("hook_name_out" in settings and settings["hook_name_out"] != settings["hook_name"]):
        raise CheckpointError(
            f"{named}: its architecture and its places do not agree",
            given=f"{architecture}, hook_name_out: {settings.get('hook_name_out')}",
            wanted="a transcoder and the place that it writes, or neither",
            fix="write hook_name_out into cfg.json" if writes else "mend architecture in cfg.json",
        )
    return read, _place(settings, "hook_name_out", "hf_hook_name_out", named) if writes else read


def _place(settings: Mapping[str, Any], key: str, module: str, named: str) -> Place:
    hook = settings.get(key)
    if not isinstance(hook, str):
        raise CheckpointError(
            f"{named}: cfg.json does not say where it reads",
            given=f"{key}: {hook}",
            wanted="a hook point, such as blocks.3.hook_resid_post",
            fix=f"write {key} into cfg.json",
        )
    layer = settings.get("hook_layer")
    hook = hook.replace("{layer}", str(layer))
    said = re.search(r"\.(\d{1,6})\b", hook)
    if layer is not None and key == "hook_name" and said and int(said[1]) != layer:
        raise CheckpointError(
            f"{named}: cfg.json names two layers", given=f"{hook}, hook_layer: {layer}", wanted="one layer"
        )
    if isinstance(settings.get(module), str) and hook.endswith(".hook_mlp_in"):
        return place_of_module(settings[module], named)  # SAELens gives this name to what the MLP reads, too
    return place_of_hook(hook, named)


def _activation(architecture: str, settings: Mapping[str, Any], tensors: Tensors, width: int, named: str) -> Activation:
    if architecture == "gated":
        return Gated(r_mag=tensors.take("r_mag", width), b_mag=tensors.take("b_mag", width))
    if architecture == "topk":
        more = settings.get("activation_fn_kwargs")
        k = settings.get("k", more.get("k") if isinstance(more, dict) else None)
        if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= width:
            raise CheckpointError(f"{named}: k is no number of latents", given=k, wanted=f"from 1 to {width}")
        return TopK(k)
    if architecture in JUMPS:
        if "topk_threshold" in tensors:
            return JumpReLU(tensors.take("topk_threshold").expand(width).contiguous())
        if "log_threshold" in tensors:
            return JumpReLU(tensors.take("log_threshold", width).exp())
        return JumpReLU(tensors.take("threshold", width))
    return Activation()


def _normalisation(settings: Mapping[str, Any], architecture: str, named: str) -> dict[str, Any]:
    given = settings.get("normalize_activations", "none")
    if isinstance(given, bool):
        given = "expected_average_only_in" if given else "none"
    if not isinstance(given, str) or given not in NORMALISATIONS:
        fix = "fold it into the weights (SAELens: fold_activation_whitening) and save it again"
        raise refused(named, "normalize_activations", given, "one of " + ", ".join(NORMALISATIONS), fix)
    if given in FACTORS and architecture in TRANSCODERS:
        raise refused(named, "normalize_activations", given, "none, of a transcoder, whose two places differ in size")
    if given not in FACTORS or (given == "expected_average_only_in" and FACTORS[given] not in settings):
        return {"normalisation": NORMALISATIONS[given]}
    factor = settings.get(FACTORS[given])
    if not isinstance(factor, int | float) or isinstance(factor, bool) or not 0 < factor < float("inf"):
        raise CheckpointError(f"{named}: {FACTORS[given]} is no factor", given=factor, wanted="a number above 0")
    return {"scale": float(factor)}


def _centred(settings: Mapping[str, Any], read: Place, named: str) -> bool:
    """Whether the model's writing weights were centred, by what its loading was told."""
    told = settings.get("model_from_pretrained_kwargs", {})
    if not isinstance(told, dict):
        raise CheckpointError(f"{named}: model_from_pretrained_kwargs is no object", given=told, wanted="settings")
    changes = {name for name, value in told.items() if value not in (False, None)}
    moved = OF_HEADS if read.kind != "attention_heads" else set()
    odd = changes - HARMLESS - moved - {"center_writing_weights"}
    if "fold_ln" in changes and read.kind == "mlp_normed":
        odd |= {"fold_ln"}
    if odd:
        raise refused(
            named,
            "model_from_pretrained_kwargs",
            ", ".join(f"{name}: {told[name]}" for name in sorted(odd)),
            "a model whose activations are those of the Hugging Face model, or centred by center_writing_weights",
        )
    return bool(told.get("center_writing_weights", False))


def _bias_of_input(dictionary: Dictionary, architecture: str, named: str) -> torch.Tensor:
    if architecture in TRANSCODERS:
        raise refused(named, "apply_b_dec_to_input", True, "false: a transcoder's b_dec is of where it writes")
    return dictionary.b_dec


def _with_factors(dictionary: Dictionary, settings: Mapping[str, Any], tensors: Tensors, named: str) -> Dictionary:
    """The same with decoder norms in the encoder, where latents are in such units; and factors of latents folded in."""
    if _flag(settings, "rescale_acts_by_decoder_norm", False, named):
        if isinstance(dictionary.activation, Gated):
            raise refused(named, "rescale_acts_by_decoder_norm", True, "false for a gated one")
        norms = dictionary.W_dec.norm(dim=1)
        if not bool((norms > 0).all()):
            raise CheckpointError(
                f"{named}: decoder directions of length 0, by which latents are divided",
                given=int((norms == 0).sum()),
                wanted="none",
            )
        dictionary = replace(
            dictionary,
            W_enc=dictionary.W_enc * norms,
            b_enc=dictionary.b_enc * norms,
            W_dec=dictionary.W_dec / norms[:, None],
        )
    if "scaling_factor" in tensors:
        factors = tensors.take("scaling_factor", dictionary.width)
        plain = torch.allclose(factors, torch.ones_like(factors))
        if not plain and not _flag(settings, "finetuning_scaling_factor", False, named):
            raise CheckpointError(
                f"{named}: it holds factors of latents that its configuration does not use",
                given="scaling_factor, without finetuning_scaling_factor",
                wanted="both or neither",
                fix="set finetuning_scaling_factor in cfg.json",
            )
        dictionary = dictionary if plain else replace(dictionary, W_dec=dictionary.W_dec * factors[:, None])
    return dictionary
