"""A model from a local folder, a hub id or the bundled suite: read with care, then checked."""

import shlex
from collections.abc import Mapping
from os import PathLike, fspath
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import nn

from universal_neurons.errors import ArchitectureError, ConfigError, as_memory_error
from universal_neurons.legible import first_line
from universal_neurons.models.adapters import merge_adapter
from universal_neurons.models.architecture_table import ARCHITECTURES, architecture_of
from universal_neurons.models.described import quiet_transformers
from universal_neurons.models.gguf_files import read_gguf
from universal_neurons.models.locations import NEURONS, OF, Source, digest_of, resolve_sources
from universal_neurons.models.model import DTYPES, Model, Sink
from universal_neurons.models.parts import matrix_of
from universal_neurons.models.spread import (
    Spread,
    discard,
    is_spread,
    quiet_accelerate,
    remove_with,
    spread_note,
    spread_settings,
)
from universal_neurons.models.structure import loader_of, unembedding_of
from universal_neurons.models.tokenizer import load_tokenizer, tokenizer_folder
from universal_neurons.models.verification import verify
from universal_neurons.models.weight_files import (
    UNREADABLE,
    impossible_config,
    is_pickle_only,
    own_precision,
    pickled_files,
    pickled_tensors,
    read_config,
    require_layers,
    require_weights,
    settings_files,
    stored_tensors,
    unreadable_weights,
)
from universal_neurons.models.weight_names import fused_experts, require_fit
from universal_neurons.torch_state import settled_torch

__all__ = [
    "DTYPES", "Model", "Sink", "load_model", "load_tokenizer", "load_weights", "matrix_of", "quiet_transformers",
    "verify",
]  # fmt: skip

OWN = "file"  # the precision that a file names or has
ONE_AT_A_TIME = Lock()  # `transformers` changes torch's state while it builds a model


class Weights(NamedTuple):
    """A Hugging Face model with its weights, whether its head was left out, and what else there is to say."""

    network: Any
    headless: bool
    notes: tuple[str, ...]


def load_model(
    source: str | PathLike[str] | Source,
    *,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    name: str = "",
    device_map: str | Mapping[str, str | int] | None = None,
    max_memory: Mapping[str | int, str | int] | None = None,
) -> Model:
    """A model from a local folder (its path, as text or as a `Path`), a hub id (with `revision`), or `bundled/seed-N`,
    checked.

    `dtype` is float32, bfloat16 or float16, or `file`: the precision that config.json names, else that of the weights.
    `device_map` spreads a model that is larger than `device`, by a plan of `accelerate` (auto, balanced, sequential) or
    by a device for each part, within `max_memory` of each; activations are handed on `device`.
    Raises `MissingFileError`, `CheckpointError` (weights that are pickled, truncated, incomplete, quantised, NaN, or
    others than config.json describes; a tokenizer that does not work) and `ArchitectureError` (a family
    whose parts neither the table names nor structure tells, or whose MLP does not add activation · W_out + b to the
    residual stream).
    """
    if dtype not in (*DTYPES, OWN):
        raise ConfigError(f"no such precision: {dtype!r}", wanted="one of " + ", ".join((*DTYPES, OWN)))
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device!r} is not there", given=first_line(error)) from error
    if not isinstance(source, Source):
        source = resolve_sources([f"{fspath(source)}@{revision}" if revision else fspath(source)])[0]
    if source.features != NEURONS:
        raise ConfigError(
            f"{source.given}: a model is loaded as a whole",
            given=f"its {source.features}",
            wanted="a model alone",
            fix=f"un.features_of(un.load_model({source.given.partition(OF)[0]!r}), {source.features!r})",
        )
    with ONE_AT_A_TIME, settled_torch():
        weights = load_weights(source, dtype, spread=_spread(device_map, max_memory))
        network, apart = weights.network, is_spread(weights.network)
        tokenizer = load_tokenizer(tokenizer_folder(source), source.gguf)
        model = Model(
            (network if apart else network.to(device)).requires_grad_(False),
            name or source.name,
            tokenizer=tokenizer,
            digest=digest_of([*require_weights(source), *settings_files(source)]),
            notes=(*weights.notes, *([spread_note(network)] if apart else [])),
            device=device if apart else None,
        )
        verify(model)
    return model


def _spread(device_map: Any, max_memory: Any) -> Spread | None:
    if device_map is None and max_memory is not None:
        raise ConfigError("max_memory without a device_map", wanted="a device_map: auto", fix="add it, or leave it out")
    return None if device_map is None else Spread(device_map, max_memory)


def load_weights(source: Source, dtype: str, *, pickled: bool = False, spread: Spread | None = None) -> Weights:
    """The Hugging Face model of a folder; every weight must be there, but for a head that is left out as a whole.

    An adapter is merged into its base, which may then be a pickle or not.
    """
    if spread is not None and (source.base is not None or source.gguf is not None):
        raise ConfigError(
            f"{source.given}: {'a GGUF file' if source.gguf else 'an adapter'} is read as a whole, and not spread",
            wanted="a model of safetensors, or no device_map",
            fix=f"{shlex.join(['uneurons', 'convert', source.given])} NEW_FOLDER, then use NEW_FOLDER",
        )
    if source.base is not None:
        of_base = pickled and is_pickle_only(source.base)
        base = load_weights(source.base, dtype, pickled=of_base)
        merged = merge_adapter(base.network, source, pickled=pickled)
        return Weights(base.network, base.headless, (*base.notes, merged))
    if source.gguf is not None:
        network, note = read_gguf(source, dtype)
        in_one_kernel(network)
        return Weights(network, False, (note,))
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    config = read_config(source)
    row = architecture_of(config)
    if row is None:
        _require_known(config["model_type"], source.given)
    tensors = (
        pickled_tensors(pickled_files(source), source.given)
        if pickled
        else stored_tensors(require_weights(source), source.given)
    )
    require_layers(config, tensors, None if row is None else row.blocks, source.given)
    dtype = own_precision(config, tensors, source.given) if dtype == OWN else dtype
    try:
        with quiet_transformers(), torch.device("meta"):
            described = AutoConfig.from_pretrained(source.folder, local_files_only=True, trust_remote_code=False)
            if row is None:  # whatever its own name for it is
                layers = getattr(described, "num_hidden_layers", None)
                require_layers({"num_hidden_layers": layers}, tensors, None, source.given)
            loader = loader_of(row, described, source.given)
            shape: Any = loader.from_config(described)
    except (*UNREADABLE, StrictDataclassError) as error:
        raise as_memory_error(error) or impossible_config(source.given, f"{type(error).__name__}: {error}") from error
    unembedding = unembedding_of(shape) if row is None else row.unembedding
    stored = fused_experts(tensors) if row is not None and row.experts else tensors
    places = {} if spread is None else spread_settings(spread, shape, source.given)
    try:
        with quiet_transformers(), quiet_accelerate():
            headless, note = require_fit(stored, shape, unembedding, source)
            loaded: Any = loader.from_pretrained(
                source.folder,
                dtype=DTYPES[dtype],
                use_safetensors=not pickled,
                weights_only=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **places,
            )
    except (*UNREADABLE, StrictDataclassError) as error:
        discard(places)
        raise as_memory_error(error) or unreadable_weights(source.given, f"{type(error).__name__}: {error}") from error
    network, report = loaded
    if places:
        remove_with(network, places["offload_folder"])
    head = unembedding.split(".")[0]
    lacking = [str(name) for name in report["missing_keys"] if not (headless and str(name).startswith(f"{head}."))]
    if lacking or report["mismatched_keys"]:
        raise unreadable_weights(source.given, f"missing or misshapen: {sorted(lacking)[:5]}")
    notes = [note] if note else []
    if headless:
        setattr(network, head, None)
    elif _are_untied(network):
        notes.append(
            "config.json says that embedding and unembedding are one, the file has two that differ: they are taken"
        )
    in_one_kernel(network)
    return Weights(network, headless, tuple(notes))


def _require_known(model_type: str, named: str) -> None:
    """Raise `ArchitectureError` for a family that neither the table nor `transformers` knows."""
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        raise ArchitectureError(
            f"{named}: unknown architecture",
            given=f"model_type {model_type!r}",
            wanted="one of " + ", ".join(sorted({t for row in ARCHITECTURES for t in row.model_types})),
            fix="add a row to ARCHITECTURES in architecture_table.py (docs/models.md says how)",
        )


def _are_untied(network: Any) -> bool:
    """Whether the configuration ties the unembedding to an embedding that is another, as far as both are here."""
    if is_spread(network) or not getattr(network.config, "tie_word_embeddings", False):
        return False
    return network.get_output_embeddings().weight is not network.get_input_embeddings().weight


def in_one_kernel(network: nn.Module) -> None:
    """Compute GPT-2's GELU, which `transformers` spells out in eight steps, by the same function of `torch`."""
    from transformers.activations import GELUTanh, NewGELUActivation

    for module in network.modules():
        for name, part in module.named_children():
            if isinstance(part, NewGELUActivation):
                setattr(module, name, GELUTanh())
