"""What a model's folder says before anything is built of it: its config.json, the files of its weights, their tensors.

Only headers are read, so that a configuration of another size than the weights is refused, not allocated.
"""

import contextlib
import re
import shlex
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from universal_neurons.errors import CheckpointError, ConfigError, MissingFileError
from universal_neurons.models.locations import (
    ADAPTER_SETTINGS,
    SHOWN,
    Source,
    is_of_hub,
    json_object,
    require_ordinary_files,
)
from universal_neurons.models.model import DTYPES

MOST_CLASSES = 1 << 20  # `transformers` makes a name for every one
PLAIN_FORMATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
PLAIN_DTYPES = {getattr(torch, name): name for name in PLAIN_FORMATS.values()}
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
LAYER_SETTINGS = ("num_hidden_layers", "n_layer", "num_layers")
# What broken weights and odd configurations make `transformers` raise.
UNREADABLE = (
    SafetensorError, UnpicklingError, EOFError, OSError, RuntimeError, ValueError, TypeError, LookupError,
    AttributeError, ArithmeticError, ImportError, AssertionError, MemoryError,
)  # fmt: skip
POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Stored:
    """A tensor as its file's header describes it; `precision` is None where its numbers are no ordinary ones."""

    shape: tuple[int, ...]
    precision: str | None

    @property
    def plain(self) -> bool:
        """Whether it holds ordinary floating-point numbers."""
        return self.precision is not None


def require_model_folder(source: Source) -> None:
    """Refuse a folder that holds no model, saying what it is instead."""
    folder = source.folder
    require_ordinary_files(folder, source.given)
    if (folder / "config.json").is_file():
        return
    if any(folder.glob("*.gguf")):
        raise CheckpointError(
            f"{source.given}: a folder of GGUF files, not a Hugging Face model folder",
            given=_listed(folder),
            wanted="config.json and safetensors, or the GGUF file's own name",
            fix=f"use the model that it was made from, or name {min(folder.glob('*.gguf'))}",
        )
    could_be_an_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source.given) and not source.given.startswith(".")
    hides = f"{source.given} is a folder here, which hides the hub's model of that name; " if could_be_an_id else ""
    raise MissingFileError(
        f"{source.given}: no config.json in the folder",
        given=_listed(folder),
        wanted="a Hugging Face model folder",
        fix=f"{hides}rename the folder or work elsewhere for the hub's, or bring the model's files there"
        if hides
        else "name the folder that save_pretrained wrote",
    )


def _listed(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return f"{', '.join(names[:8])}{' …' if len(names) > 8 else ''}"[:SHOWN] if names else "an empty folder"


def read_config(source: Source) -> dict[str, Any]:
    """The object in config.json; raises `MissingFileError` or `CheckpointError` where it describes no model we read."""
    require_model_folder(source)
    config = json_object(source.folder / "config.json", source.given)
    if not isinstance(config.get("model_type"), str):
        raise CheckpointError(
            f"{source.given}: config.json names no model_type",
            given=str(config.get("model_type"))[:SHOWN],
            wanted="an object with model_type",
        )
    if config.get("quantization_config") is not None:
        quantised = config["quantization_config"]
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise quantised_weights(source, f"quantization_config in config.json: {str(method)[:SHOWN]}")
    for name, value in config.items():
        most = MOST_CLASSES if name == "num_labels" else 2**63 - 1
        numbers = [n for n in (value if isinstance(value, list) else [value]) if isinstance(n, int)]
        if any(abs(number) > most for number in numbers):
            raise CheckpointError(
                f"{source.given}: config.json is out of all bounds",
                given=f"{name[:SHOWN]}: {str(numbers)[:SHOWN]}",
                wanted=f"numbers up to {most}",
                fix="copy or download the file again",
            )
    return config


def quantised_weights(source: Source, tensor_names: str) -> CheckpointError:
    """The error for weights that are not plain numbers."""
    return CheckpointError(
        f"{source.given}: quantised weights are not read",
        given=tensor_names,
        wanted="weights in float32, bfloat16 or float16",
        fix="use the model that was quantised, or save it dequantised",
    )


def require_weights(source: Source) -> list[Path]:
    """The safetensors files of a source, an adapter's after its base's; a pickle-only or empty folder is a
    `CheckpointError`."""
    if source.base is not None:
        return [*require_weights(source.base), *adapter_files(source)]
    if source.gguf is not None:
        return [source.folder / source.gguf]
    require_model_folder(source)
    files = _files(source, "model.safetensors")
    if files:
        return files
    folder = source.folder
    fix = f"uneurons convert {shlex.quote(source.given)} NEW_FOLDER, then use NEW_FOLDER"
    if needs_conversion(source):
        raise CheckpointError(f"{source.given}: only pickled weights", wanted="safetensors", fix=fix)
    kinds = ("safetensors", "bin", "pt", "pth", "gguf", "h5", "msgpack", "onnx")
    others = sorted(path.name for kind in kinds for path in folder.glob(f"*.{kind}"))
    raise CheckpointError(
        f"{source.given}: no safetensors weights under the names that belong to a model folder",
        given=", ".join(others)[:SHOWN] or "no weights",
        wanted="model.safetensors, or model.safetensors.index.json and the files that it names",
        fix="save the model with save_pretrained of transformers" if others else "download the weights too",
    )


def is_pickle_only(source: Source) -> bool:
    """Whether a model's weights are pickles, and there are no others."""
    return not _files(source, "model.safetensors") and bool(_files(source, "pytorch_model.bin"))


def needs_conversion(source: Source) -> bool:
    """Whether a source has pickled weights alone, or is one of the hub without others: its pickles are not fetched."""
    if source.base is not None:
        whole, pickled = ((source.folder / name).is_file() for name in ADAPTERS)
        return needs_conversion(source.base) or (not whole and (pickled or is_of_hub(source.folder)))
    if source.gguf is not None:
        return False
    require_model_folder(source)
    return is_pickle_only(source) or (is_of_hub(source.folder) and not _files(source, "model.safetensors"))


def settings_files(source: Source) -> list[Path]:
    """The files beside the weights that say what the model is."""
    if source.base is not None:
        return [*settings_files(source.base), source.folder / ADAPTER_SETTINGS]
    return [source.folder / "config.json"] if source.gguf is None else []


def adapter_files(source: Source, *, pickled: bool = False) -> list[Path]:
    """The file of an adapter's tensors, a pickle where that is allowed.  Raises `CheckpointError` without one."""
    require_ordinary_files(source.folder, source.given)
    files = [source.folder / name for name in ADAPTERS]
    there = next((path for path in files if path.is_file()), None)
    if there is None:
        raise CheckpointError(
            f"{source.given}: an adapter without weights",
            given=_listed(source.folder),
            wanted=files[0].name,
            fix="copy or download the adapter again",
        )
    if there != files[0] and not pickled:
        raise CheckpointError(
            f"{source.given}: an adapter with pickled weights alone",
            given=there.name,
            wanted=files[0].name,
            fix=f"uneurons convert {shlex.quote(source.given)} NEW_FOLDER, which merges it, then use NEW_FOLDER",
        )
    return [there]


def pickled_files(source: Source) -> list[Path]:
    """The pickled weights of a source; none is a `CheckpointError`."""
    files = _files(source, "pytorch_model.bin")
    if not files:
        raise CheckpointError(f"{source.given}: no pytorch_model.bin", wanted="a pickled model", fix="use it as it is")
    return files


def _files(source: Source, whole: str) -> list[Path]:
    """The file of this name, or those that its index names; none where neither is there."""
    folder = source.folder
    index = source.folder / f"{whole}.index.json"
    if (folder / whole).is_file():
        return [folder / whole]
    if not index.is_file():
        return []
    places = json_object(index, source.given).get("weight_map")
    names = set(places.values()) if isinstance(places, dict) and _are_names(places.values()) else set()
    suffix = whole[whole.rindex(".") :]
    if not names or any(Path(name).name != name or not name.endswith(suffix) for name in names):
        raise CheckpointError(
            f"{source.given}: {index.name} does not say where its weights are",
            given=str(places)[:SHOWN],
            wanted=f"weight_map, from each tensor's name to a {suffix} file in the same folder",
            fix="copy or download the file again",
        )
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise CheckpointError(
            f"{source.given}: its weights are incomplete",
            given=f"{index.name} names {', '.join(missing)[:SHOWN]}: not there",
            wanted=f"all {len(names)} files",
            fix="download or copy what is missing",
        )
    return sorted(folder / name for name in names)


def _are_names(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) and "\0" not in value for value in values)


def stored_tensors(files: Sequence[Path], named: str) -> dict[str, Stored]:
    """Every tensor in safetensors files, from their headers.  Raises `CheckpointError`."""
    tensors: dict[str, Stored] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
                stored = {
                    name: Stored(tuple(part.get_shape()), PLAIN_FORMATS.get(part.get_dtype()))
                    for name, part in slices.items()
                }
        except (SafetensorError, OSError, ValueError) as error:
            _refuse_pointer(path, named)
            raise unreadable_weights(named, f"{path.name}: {type(error).__name__}: {error}") from error
        _require_once(tensors, stored, named)
        tensors |= stored
    return tensors


def _refuse_pointer(path: Path, named: str) -> None:
    """Say of a file that stands for weights which git has not fetched."""
    with contextlib.suppress(OSError), path.open("rb") as stream:
        if stream.read(len(POINTER)) == POINTER:
            raise CheckpointError(
                f"{named}: {path.name} is a pointer of git-lfs",
                given="its weights were not fetched",
                wanted="the weights",
                fix="git lfs pull, in that folder",
            )


def read_tensors(files: Sequence[Path], named: str) -> dict[str, torch.Tensor]:
    """The tensors themselves in safetensors files or pickles; no code of a pickle runs.  Raises `CheckpointError`."""
    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        try:
            if path.suffix == ".safetensors":
                tensors |= load_file(path)
                continue
            with warnings.catch_warnings(action="ignore"):
                value = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise unreadable_weights(named, f"{path.name}: {type(error).__name__}: {error}") from error
        entries = value if isinstance(value, Mapping) else {}
        tensors |= {str(name): tensor for name, tensor in entries.items() if isinstance(tensor, torch.Tensor)}
    return tensors


def pickled_tensors(files: Sequence[Path], named: str) -> dict[str, Stored]:
    """Every tensor in pickles, without reading its numbers and without running their code."""
    tensors: dict[str, Stored] = {}
    for path in files:
        try:
            with warnings.catch_warnings(action="ignore"):
                value = torch.load(path, map_location="meta", weights_only=True)
        except Exception as error:
            raise unreadable_weights(named, f"{path.name}: {type(error).__name__}: {error}") from error
        entries = value if isinstance(value, Mapping) else {}
        stored = {
            str(name): Stored(tuple(tensor.shape), PLAIN_DTYPES.get(tensor.dtype))
            for name, tensor in entries.items()
            if isinstance(tensor, torch.Tensor)
        }
        _require_once(tensors, stored, named)
        tensors |= stored
    return tensors


def _require_once(tensors: Mapping[str, Stored], added: Mapping[str, Stored], named: str) -> None:
    twice = sorted(tensors.keys() & added.keys())
    if twice:
        raise CheckpointError(
            f"{named}: two files hold the same weights",
            given=", ".join(twice[:5])[:SHOWN],
            wanted="each tensor once",
            fix="remove the files of another model",
        )


def own_precision(config: Mapping[str, Any], tensors: Mapping[str, Stored], named: str) -> str:
    """The precision that config.json names, else the one that most of the stored numbers have.

    Raises `ConfigError` where forward passes do not run in it.
    """
    text = config.get("text_config")
    settings = (config, text if isinstance(text, dict) else {})
    claimed = next((s[key] for s in settings for key in ("dtype", "torch_dtype") if s.get(key)), None)
    numbers: Counter[str] = Counter()
    for tensor in tensors.values():
        if tensor.precision is not None:
            numbers[tensor.precision] += prod(tensor.shape)
    found = claimed or max(numbers, key=lambda name: numbers[name], default=None)
    if found not in DTYPES:
        raise ConfigError(
            f"{named}: --dtype file, and passes do not run in the file's precision",
            given=str(found)[:SHOWN],
            wanted="one of " + ", ".join(DTYPES),
            fix="name one of them with --dtype",
        )
    return found


def impossible_config(named: str, reason: str) -> CheckpointError:
    """The error for a configuration that no model can be built by."""
    return CheckpointError(
        f"{named}: no model can be built by its config.json",
        given=reason,
        wanted="the configuration that belongs to the weights",
        fix="mend config.json, or copy or download it again",
    )


def unreadable_weights(named: str, reason: str) -> CheckpointError:
    """The error for weights that a library refuses to read."""
    return CheckpointError(
        f"{named}: its weights cannot be read",
        given=(reason.splitlines() or [""])[0][:300],
        wanted="complete weights and a config.json that they fit",
        fix="copy or download the files again",
    )


def require_layers(config: Mapping[str, Any], tensors: Iterable[str], blocks: str | None, named: str) -> None:
    """Refuse a configuration of more layers than the weights have at `blocks`, before anything is built.

    Where it is not known where blocks are, any numbered parts are counted.
    """
    part = r"\w+" if blocks is None else re.escape(blocks.split(".")[-1])
    block = re.compile(rf"(?:^|\.){part}\.(\d{{1,9}})\.")
    stored = len({match.group(1) for name in tensors if (match := block.search(name))})
    claimed = {name: config[name] for name in LAYER_SETTINGS if isinstance(config.get(name), int)}
    repeats = _repeats(config.get("attention_types"))
    if repeats is not None:
        claimed["attention_types"] = repeats
    for name, layers in claimed.items():
        if layers > stored:
            raise CheckpointError(
                f"{named}: config.json describes another model than the weights",
                given=f"{name}: {str(layers)[:20]} layers; the weights have {stored}",
                wanted="as many",
                fix="copy or download config.json and the weights again",
            )


def _repeats(attention_types: object) -> int | None:
    """How many layers GPT-Neo's pairs (kinds, how often) make, where they are such."""
    if not isinstance(attention_types, list):
        return None
    pairs = [pair for pair in attention_types if isinstance(pair, list) and len(pair) == 2]
    return sum(len(kinds) * times for kinds, times in pairs if isinstance(kinds, list) and isinstance(times, int))
