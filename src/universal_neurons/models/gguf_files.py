"""A model in a GGUF file, through the reader of `transformers` (extra `gguf`): weights as numbers again."""

from collections import Counter
from importlib.util import find_spec
from typing import Any

from universal_neurons.errors import MissingExtraError
from universal_neurons.models.architecture_table import architecture_of
from universal_neurons.models.described import quiet_transformers
from universal_neurons.models.locations import Source
from universal_neurons.models.model import DTYPES
from universal_neurons.models.structure import loader_of
from universal_neurons.models.weight_files import UNREADABLE, unreadable_weights

PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read_gguf(source: Source, dtype: str) -> tuple[Any, str]:
    """The Hugging Face model of a GGUF file, and a note on how its weights were stored.

    `dtype` `file` is the precision of most numbers, float32 for quantised ones.  Raises `MissingExtraError` without the
    package gguf, `CheckpointError` for a file that cannot be read, `ArchitectureError` for an encoder with a decoder.
    """
    from transformers import AutoConfig

    if find_spec("gguf") is None:
        raise MissingExtraError(
            f"{source.given}: GGUF files are read by the package gguf, which is not installed",
            wanted="the extra gguf",
            fix="pip install 'universal-neurons[gguf]', or use the model that the file was made from",
        )
    given: Any = {"gguf_file": source.gguf, "local_files_only": True, "trust_remote_code": False}
    try:
        with quiet_transformers():
            kind = _storage(source)
            config = AutoConfig.from_pretrained(source.folder, **given)
    except UNREADABLE as error:
        raise unreadable_weights(source.given, f"{type(error).__name__}: {error}") from error
    loader = loader_of(architecture_of(config.to_dict()), config, source.given)
    precision = PLAIN.get(kind, "float32") if dtype == "file" else dtype
    try:
        with quiet_transformers():
            loaded: Any = loader.from_pretrained(
                source.folder, dtype=DTYPES[precision], output_loading_info=True, **given
            )
    except UNREADABLE as error:
        raise unreadable_weights(source.given, f"{type(error).__name__}: {error}") from error
    network, report = loaded
    lacking = sorted(map(str, report["missing_keys"]))
    if lacking or report["mismatched_keys"] or report["unexpected_keys"]:
        misfits = [*lacking, *map(str, report["mismatched_keys"]), *map(str, report["unexpected_keys"])]
        raise unreadable_weights(source.given, f"missing, misshapen or not taken: {misfits[:5]}")
    # Its weights are numbers again: they may be cast and saved.
    network.hf_quantizer, network.is_quantized = None, False
    network.config.__dict__.pop("quantization_config", None)
    rounded = "" if kind in PLAIN else ": its weights are not those of the model that it was made from, but near them"
    return network, f"a GGUF file, stored as {kind}{rounded}"


def _storage(source: Source) -> str:
    """In which of GGUF's types most of the numbers are."""
    from gguf import GGUFReader

    numbers: Counter[str] = Counter()
    for tensor in GGUFReader(source.folder / str(source.gguf)).tensors:
        numbers[tensor.tensor_type.name] += int(tensor.n_elements)
    return max(numbers, key=lambda name: numbers[name], default="no tensors")
