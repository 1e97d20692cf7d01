"""Dictionaries of EleutherAI's sparsify: a folder named after a module, with cfg.json and sae.safetensors.

TopK (or the largest of each group) of ReLU pre-activations; the decoder's bias is taken from the input, but not of a
transcoder, which reads what the module does and writes what it returns.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from universal_neurons.errors import CheckpointError
from universal_neurons.features.dictionary import Dictionary
from universal_neurons.features.dictionary_activations import GroupMax, TopK
from universal_neurons.features.dictionary_tensors import read_tensors
from universal_neurons.features.hook_names import place_of_module
from universal_neurons.features.saelens import refused

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
SEED = re.compile(r"seed_?\d+")


def read_sparsify(folder: Path, config: Mapping[str, Any], named: str) -> Dictionary:
    """The dictionary in a folder whose cfg.json holds `config`; its name, or its parent's, is that of the module.

    Raises `DictionaryError` for what is not computed here, `CheckpointError` for files that do not fit each other.
    """
    if config.get("signed"):
        raise refused(named, "signed", True, "latents that are not negative")
    for name in ("transcode", "skip_connection"):
        if not isinstance(config.get(name, False), bool):
            raise CheckpointError(f"{named}: {name} is no truth value", given=config[name], wanted="true or false")
    module = folder.parent.name if SEED.fullmatch(folder.name) else folder.name
    write = place_of_module(module, named)
    transcodes = config.get("transcode", False)
    tensors = read_tensors(folder / WEIGHTS, named)
    d_in = config.get("d_in")
    W_enc = tensors.take("encoder.weight", config.get("num_latents") or None, d_in).T.contiguous()
    d_in, width = W_enc.shape
    b_dec = tensors.take("b_dec", d_in)
    dictionary = Dictionary(
        name=module,
        read=place_of_module(module, named, "input") if transcodes else write,
        write=write,
        W_enc=W_enc,
        b_enc=tensors.take("encoder.bias", width),
        W_dec=tensors.take("W_dec", width, d_in),
        b_dec=b_dec,
        activation=_activation(config, width, named),
        b_in=None if transcodes else b_dec,
        W_skip=tensors.take("W_skip", d_in, d_in).T.contiguous() if config.get("skip_connection") else None,
        kind="sparsify",
    )
    tensors.finish()
    return dictionary


def _activation(config: Mapping[str, Any], width: int, named: str) -> TopK | GroupMax:
    k, function = config.get("k"), config.get("activation", "topk")
    if function not in ("topk", "groupmax"):
        raise refused(named, "activation", function, "topk or groupmax")
    grouped = function == "groupmax"
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= width or (grouped and width % k):
        raise CheckpointError(f"{named}: k is no number of latents", given=k, wanted=f"from 1 to {width}")
    return GroupMax(k) if grouped else TopK(k)
