"""Our own form of a dictionary: dictionary.json, which says what it computes, and dictionary.safetensors.

    {"format": "universal-neurons dictionary 1", "read": {"kind": "residual_out", "layer": 3},
     "activation": "topk", "k": 16}

Tensors: W_enc (d_in, width), b_enc, W_dec (width, d_out), b_dec; b_in (taken from the input), W_skip (d_in, d_out)
where there are such; `threshold` of jumprelu, `r_mag` and `b_mag` of gated (b_enc is then the gate's).  Settings that
may be left out: `write` (as `read`), `normalisation`, `scale`, `centred`, `bos`, as `Dictionary` has them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import save

from universal_neurons.disk import disk_errors, write_atomically
from universal_neurons.errors import CheckpointError
from universal_neurons.features.dictionary import Dictionary, Normalisation
from universal_neurons.features.dictionary_activations import Activation, Gated, GroupMax, JumpReLU, TopK
from universal_neurons.features.dictionary_tensors import Tensors, read_tensors
from universal_neurons.models import PLACE_KINDS, Place

CONFIG, WEIGHTS = "dictionary.json", "dictionary.safetensors"
FORMAT = "universal-neurons dictionary 1"
ACTIVATIONS = {"relu": Activation, "topk": TopK, "groupmax": GroupMax, "jumprelu": JumpReLU, "gated": Gated}
SETTINGS = ("format", "read", "write", "activation", "k", "normalisation", "scale", "centred", "bos")


def read_plain(folder: Path, config: Mapping[str, Any], named: str) -> Dictionary:
    """The dictionary in a folder whose dictionary.json holds `config`.  Raises `CheckpointError`."""
    unknown = sorted(config.keys() - set(SETTINGS))
    if config.get("format") != FORMAT or unknown:
        raise _wrong(named, unknown[0] if unknown else "format", config, FORMAT if not unknown else ", ".join(SETTINGS))
    tensors = read_tensors(folder / WEIGHTS, named)
    W_enc = tensors.take("W_enc", None, None)
    d_in, width = W_enc.shape
    W_dec = tensors.take("W_dec", width, None)
    d_out = W_dec.shape[1]
    read = _place(config, "read", named)
    dictionary = Dictionary(
        name=folder.name,
        read=read,
        write=_place(config, "write", named) if "write" in config else read,
        W_enc=W_enc,
        b_enc=tensors.take("b_enc", width),
        W_dec=W_dec,
        b_dec=tensors.take("b_dec", d_out),
        activation=_activation(config, tensors, width, named),
        b_in=tensors.take("b_in", d_in) if "b_in" in tensors else None,
        W_skip=tensors.take("W_skip", d_in, d_out) if "W_skip" in tensors else None,
        normalisation=_one_of(config, "normalisation", get_args(Normalisation), "none", named),
        scale=float(_number(config, "scale", named)),
        centred=bool(_one_of(config, "centred", (False, True), False, named)),
        bos=_one_of(config, "bos", (None, False, True), None, named),
    )
    tensors.finish()
    return dictionary


def save_dictionary(dictionary: Dictionary, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a dictionary in this form, its numbers in this precision; the folder is made where it is not there."""
    activation = next(name for name, kind in ACTIVATIONS.items() if type(dictionary.activation) is kind)
    config: dict[str, Any] = {"format": FORMAT, "read": vars(dictionary.read)}
    config |= {"write": vars(dictionary.write)} if dictionary.transcodes else {}
    config |= {"activation": activation}
    tensors = {name: getattr(dictionary, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec", "b_in", "W_skip")}
    for name, value in vars(dictionary.activation).items():
        (tensors if isinstance(value, torch.Tensor) else config)[name] = value
    for name, default in (("normalisation", "none"), ("scale", 1.0), ("centred", False), ("bos", None)):
        config |= {name: getattr(dictionary, name)} if getattr(dictionary, name) != default else {}
    numbers = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    stored = {name: tensor.to("cpu", dtype, copy=True).contiguous() for name, tensor in numbers.items()}
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / WEIGHTS, save(stored))
        write_atomically(folder / CONFIG, (json.dumps(config, indent=1) + "\n").encode())


def _activation(config: Mapping[str, Any], tensors: Tensors, width: int, named: str) -> Activation:
    name = _one_of(config, "activation", tuple(ACTIVATIONS), None, named)
    if name == "jumprelu":
        return JumpReLU(tensors.take("threshold", width))
    if name == "gated":
        return Gated(r_mag=tensors.take("r_mag", width), b_mag=tensors.take("b_mag", width))
    if name == "relu":
        return Activation()
    k = config.get("k")
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= width or (name == "groupmax" and width % k):
        raise _wrong(named, "k", config, f"a number of latents, from 1 to {width}")
    return TopK(k) if name == "topk" else GroupMax(k)


def _place(config: Mapping[str, Any], name: str, named: str) -> Place:
    place = config.get(name)
    if not isinstance(place, dict) or place.keys() != {"kind", "layer"} or place["kind"] not in PLACE_KINDS:
        raise _wrong(named, name, config, f'{{"kind": one of {", ".join(PLACE_KINDS)}, "layer": a number}}')
    if not isinstance(place["layer"], int) or isinstance(place["layer"], bool) or place["layer"] < 0:
        raise _wrong(named, name, config, "a layer from 0 on")
    return Place(place["kind"], place["layer"])


def _one_of(config: Mapping[str, Any], name: str, choices: tuple[Any, ...], default: Any, named: str) -> Any:
    value = config.get(name, default)
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise _wrong(named, name, config, "one of " + ", ".join(map(str, choices)))
    return value


def _number(config: Mapping[str, Any], name: str, named: str) -> float:
    value = config.get(name, 1.0)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise _wrong(named, name, config, "a number above 0")
    return value


def _wrong(named: str, name: str, config: Mapping[str, Any], wanted: str) -> CheckpointError:
    return CheckpointError(
        f"{named}: {CONFIG} is not of this form",
        given=f"{name}: {config.get(name)}",
        wanted=wanted,
        fix="see docs/features.md",
    )
