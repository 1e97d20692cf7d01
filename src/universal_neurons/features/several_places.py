"""Dictionaries of several places at once, told by what their configuration or their tensors say: not read here.

A **crosscoder** encodes several layers, or several models, into one set of latents; a **cross-layer transcoder** writes
from one layer to many.  No layer's part of such latents stands alone, so there are no units of one block to study.

1. A configuration is told by the kind that it names, by counts of models, sources or targets above one, and by lists
   where one place is wanted.  What it holds in a part of its own (`metadata`, `trainer`) counts likewise.
2. Where it says nothing, weights of three axes are those of several places.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from universal_neurons.disk import disk_errors
from universal_neurons.errors import CheckpointError, DictionaryError
from universal_neurons.models import json_object

KINDS = ("architecture", "dict_class", "trainer_class", "model_kind", "sae_class", "type", "format")
NAMED = ("crosscoder", "crosslayer", "clt")  # in the name of a kind, spelled without _ and -
COUNTS = ("n_models", "num_models", "n_sources", "n_targets", "n_hookpoints")
OF_HUB = {"activation_dim", "dict_size"}  # beside these num_layers counts what is read, not the model's layers
PLACES = (
    "hook_name", "hook_names", "hook_point", "hook_layer", "hook_name_out", "hook_names_in", "hook_names_out",
    "in_hookpoints", "out_hookpoints", "hf_hook_point_in", "hf_hook_point_out", "layers_in", "layers_out", "read",
    "write",
)  # fmt: skip
CONFIGS = ("cfg.json", "config.json")
WEIGHTS = ("W_enc", "W_dec", "w_enc", "w_dec", "encoder.weight", "decoder.weight")


def require_one_place(config: Mapping[str, Any], named: str) -> None:
    """Raise `DictionaryError` for the configuration of a dictionary that reads or writes several places."""
    if said := _said(config):
        raise _several(named, said)


def require_two_axes(shapes: Mapping[str, tuple[int, ...]], named: str) -> None:
    """Raise `DictionaryError` for weights that have an axis of layers or models beside the usual two."""
    said = next((f"{name} {list(shapes[name])}" for name in WEIGHTS if len(shapes.get(name, ())) > 2), "")
    if said:
        raise _several(named, said)


def error_of_folder(root: Path) -> DictionaryError | None:
    """The error for a folder without weights that are read, where a configuration in it tells of several places."""
    with disk_errors(root):
        paths = sorted(path for name in CONFIGS for path in (root / name, *root.glob(f"*/{name}")) if path.is_file())
    for path in paths:
        try:
            said = _said(json_object(path, str(path.parent)))
        except CheckpointError:  # no configuration: the folder is told by what else it holds
            continue
        if said:
            return _several(str(path.parent), said)
    if any(root.glob("W_enc_*.safetensors")):
        return _several(str(root), "W_enc_0.safetensors and others: an encoder of each layer, decoders to many")
    return None


def _said(config: Mapping[str, Any]) -> str:
    """What of a configuration tells of several places; empty where nothing does."""
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    return next((said for part in parts if (said := _said_in(part))), "")


def _said_in(part: Mapping[str, Any]) -> str:
    for name in KINDS:
        kind = str(part.get(name)).lower().replace("_", "").replace("-", "")
        if any(each in kind for each in NAMED):
            return f"{name}: {part[name]}"
    for name in (*COUNTS, *(["num_layers"] if part.keys() >= OF_HUB else [])):
        if isinstance(part.get(name), int) and part[name] > 1:
            return f"{name}: {part[name]}"
    lists = (name for name in PLACES if isinstance(part.get(name), list) and len(part[name]) > 1)
    return next((f"{name}: {', '.join(map(str, part[name][:4]))}" for name in lists), "")


def _several(named: str, said: str) -> DictionaryError:
    return DictionaryError(
        f"{named}: a crosscoder or a cross-layer transcoder, which is of several places at once",
        given=said,
        wanted="a dictionary that reads one place of one model and writes one",
        fix="take dictionaries of single layers: no layer's part of these latents stands alone (docs/features.md)",
    )
