"""Gemma Scope's dictionaries: params.npz, whose place its path tells; of the second, config.json, params.safetensors.

JumpReLU, without the decoder's bias in the input.  The transcoders of the first read what the MLP's norm gives before
its gain, which was folded into the model's weights; those of the second read what the MLP does.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from universal_neurons.errors import CheckpointError, DictionaryError
from universal_neurons.features.dictionary import Dictionary
from universal_neurons.features.dictionary_activations import JumpReLU
from universal_neurons.features.dictionary_tensors import read_tensors
from universal_neurons.features.hook_names import place_of_hook, place_of_module
from universal_neurons.models import Place, PlaceKind

ARRAYS, TENSORS, SETTINGS = "params.npz", "params.safetensors", "config.json"
OF_REPOSITORIES: dict[str, tuple[PlaceKind, PlaceKind]] = {
    "res": ("residual_out", "residual_out"),
    "mlp": ("mlp_out", "mlp_out"),
    "att": ("attention_heads", "attention_heads"),
    "transcoders": ("mlp_normed", "mlp_out"),
}
REPOSITORY = re.compile(r"gemma-scope-[\w.]+-(?:pt|it)-(\w+)")
LAYER = re.compile(r"layer_(\d{1,6})")


def read_gemma_scope(folder: Path, config: Mapping[str, Any], named: str) -> Dictionary:
    """The dictionary of a params.npz; `config` is the cfg.json beside it, which names its place, or empty.

    Raises `DictionaryError` where neither that nor the path tells, `CheckpointError` for a broken file.
    """
    read, write = _places(folder, config, named)
    return _read(folder / ARRAYS, read, write, named)


def read_gemma_scope_2(folder: Path, config: Mapping[str, Any], named: str) -> Dictionary:
    """The dictionary of a params.safetensors and its config.json; errors as `read_gemma_scope`."""
    if config.get("architecture") != "jump_relu" or not isinstance(config.get("hf_hook_point_in"), str):
        raise DictionaryError(
            f"{named}: no dictionary of Gemma Scope 2",
            given=f"architecture: {config.get('architecture')}, hf_hook_point_in: {config.get('hf_hook_point_in')}",
            wanted="jump_relu, and the place that it reads",
            fix="bring the config.json that belongs to it",
        )
    read = place_of_module(config["hf_hook_point_in"], named)
    write = place_of_module(str(config.get("hf_hook_point_out") or config["hf_hook_point_in"]), named)
    return _read(folder / TENSORS, read, write, named)


def _read(path: Path, read: Place, write: Place, named: str) -> Dictionary:
    tensors = read_tensors(path, named)
    tensors.rename({"w_enc": "W_enc", "w_dec": "W_dec", "affine_skip_connection": "W_skip"})
    W_enc = tensors.take("W_enc", None, None)
    d_in, width = W_enc.shape
    d_out = d_in if read == write else None
    W_dec = tensors.take("W_dec", width, d_out)
    dictionary = Dictionary(
        name=path.parent.name,
        read=read,
        write=write,
        W_enc=W_enc,
        b_enc=tensors.take("b_enc", width),
        W_dec=W_dec,
        b_dec=tensors.take("b_dec", W_dec.shape[1]),
        activation=JumpReLU(tensors.take("threshold", width)),
        W_skip=tensors.take("W_skip", d_in, W_dec.shape[1]) if "W_skip" in tensors else None,
        bos=True,
        kind="Gemma Scope" if path.suffix == ".npz" else "Gemma Scope 2",
    )
    tensors.finish()
    return dictionary


def _places(folder: Path, config: Mapping[str, Any], named: str) -> tuple[Place, Place]:
    """Where it reads and writes: by the cfg.json beside it, else by the names of the folders that it is in."""
    if isinstance(config.get("hook_name"), str):
        read = place_of_hook(config["hook_name"], named)
        return read, place_of_hook(str(config.get("hook_name_out") or config["hook_name"]), named)
    if config:
        raise CheckpointError(
            f"{named}: its cfg.json names no place", given=", ".join(config), wanted="hook_name, and hook_name_out"
        )
    path = folder.resolve()
    layers = [match[1] for part in reversed(path.parts) if (match := LAYER.fullmatch(part))]
    kinds = [OF_REPOSITORIES.get(match[1]) for part in reversed(path.parts) if (match := REPOSITORY.search(part))]
    if not layers or not kinds or kinds[0] is None:
        raise DictionaryError(
            f"{named}: nothing says what it was trained on",
            given=str(path),
            wanted="folders named as Gemma Scope's: gemma-scope-2b-pt-res (mlp, att, transcoders), and layer_20 in it",
            fix=f'write {{"hook_name": "blocks.20.hook_resid_post"}} into cfg.json beside {ARRAYS}',
        )
    of_read, of_write = kinds[0]
    return Place(of_read, int(layers[0])), Place(of_write, int(layers[0]))
