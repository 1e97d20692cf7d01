"""A `peft` adapter merged into its model in memory; the files of both stay as they are.

1. Its tensors are sorted by the module that they change: A (r × in) and B (out × r) of LoRA, a magnitude m too of DoRA,
   or whole parameters (`modules_to_save`, `bias`).
2. A weight W (out × in) becomes W + s · B A, with s = α / r, or α / √r with `use_rslora`; an embedding's table is
   changed as its transpose is.  A bias of B is added to the module's, times s.
3. DoRA scales each row to its magnitude: m / ‖W + s · B A‖ · (W + s · B A)  (Liu et al. 2024, arXiv 2402.09353, eq 5).

All in float32, rounded once to the model's precision.  Every tensor is used, every setting is honoured, or the
adapter is refused.  A weight that another is tied to is changed alone, as in the adapter's own forward pass.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from universal_neurons.errors import CheckpointError
from universal_neurons.models.locations import ADAPTER_SETTINGS, Source, json_object
from universal_neurons.models.weight_files import SHOWN, adapter_files, read_tensors

PREFIX = "base_model.model."
PART = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<matrix>[AB])\.weight|lora_embedding_(?P<table>[AB])|(?P<bias>lora_B\.bias)"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.weight)?)"
)
WRAPPED = re.compile(r"\.(base_layer|modules_to_save)(?=\.)")
HONOURED = {
    "peft_type", "base_model_name_or_path", "revision", "r", "lora_alpha", "use_rslora", "rank_pattern",
    "alpha_pattern", "use_dora", "lora_bias", "bias", "fan_in_fan_out", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "modules_to_save", "init_lora_weights",
}  # fmt: skip
OF_TRAINING = {
    "task_type", "inference_mode", "lora_dropout", "auto_mapping", "peft_version", "megatron_core", "loftq_config",
    "eva_config", "qalora_group_size", "runtime_config",
}  # fmt: skip
STARTS_THAT_KEEP_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass
class Change:
    """What an adapter holds of one module: tensors by their part, A, B, bias or magnitude."""

    parts: dict[str, Tensor] = field(default_factory=dict)
    of_embedding: bool = False


def merge_adapter(network: Any, source: Source, *, pickled: bool = False) -> str:
    """Merge an adapter's tensors into its base's network, which changes; returns a note on what was merged.

    Raises `CheckpointError` for an adapter of another kind, with settings or tensors that are not understood, that does
    not fit the network, or lacks a part.
    """
    settings = json_object(source.folder / ADAPTER_SETTINGS, source.given)
    _require_understood(settings, source.given)
    tensors = read_tensors(adapter_files(source, pickled=pickled), source.given)
    changes, whole = _sorted(tensors, network, source.given)
    tied = len({id(parameter) for _, parameter in network.named_parameters(remove_duplicate=False)})
    with torch.no_grad():
        for name, tensor in whole.items():
            _put(network, name, _fitting(tensor, network.get_parameter(name), name, source.given))
        for path, change in changes.items():
            _merge(network, path, change, settings, source.given)
    _require_all_targets(settings, changes, whole, network, source.given)
    untied = len({id(parameter) for _, parameter in network.named_parameters(remove_duplicate=False)}) > tied
    assert source.base is not None
    merged = [f"{len(changes)} matrices"] * bool(changes) + [f"{len(whole)} whole parameters"] * bool(whole)
    note = f"an adapter: {' and '.join(merged)} merged into {source.base.given}"
    if not untied:
        return note
    network.config.tie_word_embeddings = False
    return f"{note}; embedding and unembedding, one there, are two now"


def _require_understood(settings: Mapping[str, Any], named: str) -> None:
    """Raise `CheckpointError` for an adapter of another kind than LoRA, and for settings that change what it does."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise _not_merged(f"{named}: an adapter of another kind", f"peft_type {str(kind)[:SHOWN]}", "LORA")
    unknown = sorted(key for key, value in settings.items() if value and key not in HONOURED | OF_TRAINING)
    if unknown:
        given = ", ".join(f"{key}: {settings[key]}" for key in unknown)
        raise _not_merged(f"{named}: the adapter has settings that are not understood", given, "none of these")
    start = settings.get("init_lora_weights", True)
    if start not in STARTS_THAT_KEEP_THE_BASE:
        raise _not_merged(
            f"{named}: the adapter changed its base when its training began",
            f"init_lora_weights {str(start)[:SHOWN]}",
            "an adapter of the base as it is",
        )


def _not_merged(what: str, given: str, wanted: str) -> CheckpointError:
    return CheckpointError(
        what,
        given=given,
        wanted=wanted,
        fix="merge it with peft: PeftModel.from_pretrained(base, adapter).merge_and_unload(), then "
        "save_pretrained(NEW_FOLDER) of that and of the tokenizer",
    )


def _sorted(tensors: Mapping[str, Tensor], network: Any, named: str) -> tuple[dict[str, Change], dict[str, Tensor]]:
    """An adapter's tensors by the module that they change, and those that stand for whole parameters."""
    modules, parameters = dict(network.named_modules()), dict(network.named_parameters(remove_duplicate=False))
    base = f"{network.base_model_prefix}."
    changes: dict[str, Change] = {}
    whole: dict[str, Tensor] = {}
    for stored, tensor in tensors.items():
        name = stored.removeprefix(PREFIX)
        found = PART.fullmatch(name)
        known: Mapping[str, Any] = modules if found else parameters
        name = found["module"] if found else WRAPPED.sub("", f".{name}").removeprefix(".")
        name = name if name in known else base + name
        if not stored.startswith(PREFIX) or name not in known or not tensor.is_floating_point():
            raise CheckpointError(
                f"{named}: its model has no place for a tensor of the adapter",
                given=f"{stored}, {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}",
                wanted="tensors for modules of its model",
                fix="name the model that it was trained on as base_model_name_or_path in adapter_config.json",
            )
        if found is None:
            whole[name] = tensor
            continue
        change = changes.setdefault(name, Change())
        change.of_embedding |= found["table"] is not None
        change.parts[found["matrix"] or found["table"] or ("bias" if found["bias"] else "magnitude")] = tensor
    if not changes and not whole:
        raise CheckpointError(
            f"{named}: an adapter without tensors",
            wanted="an adapter that changes something",
            fix="copy or download the adapter again",
        )
    return changes, whole


def _require_all_targets(
    settings: Mapping[str, Any], changes: Mapping[str, Change], whole: Mapping[str, Tensor], network: Any, named: str
) -> None:
    """Raise `CheckpointError` where a module that the settings name, as far as they list names, has no tensors."""
    saved = _names(settings.get("modules_to_save"))
    lacking = [name for name in saved if not any(name in parameter.split(".") for parameter in whole)]
    targets = _names(settings.get("target_modules"))
    some_layers = settings.get("layers_to_transform") is not None or settings.get("exclude_modules")
    for path, module in network.named_modules():
        named_so = any(path == target or path.endswith(f".{target}") for target in targets)
        if named_so and not some_layers and _is_matrix(module) and path not in changes:
            lacking += [] if set(saved) & set(path.split(".")) else [path]
    if lacking:
        more = f" and {len(lacking) - 4} more" if len(lacking) > 4 else ""
        raise CheckpointError(
            f"{named}: the adapter is incomplete",
            given=f"no tensors for {', '.join(lacking[:4])}{more}",
            wanted="tensors for every module that adapter_config.json names",
            fix="copy or download the adapter again",
        )


def _names(value: object) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Embedding) or type(module).__name__ == "Conv1D"


def _merge(network: Any, path: str, change: Change, settings: Mapping[str, Any], named: str) -> None:
    """Change one module's weight, and its bias where the adapter has one, by the formula above."""
    module = network.get_submodule(path)
    _require_parts(path, module, change, settings, named)
    turned = change.of_embedding or type(module).__name__ == "Conv1D"
    weight = module.weight.detach().T if turned else module.weight.detach()
    rank = _setting_of(path, settings, "rank_pattern", "r", named)
    _require_shapes(path, weight, module.bias if "bias" in change.parts else weight, change, rank, named)
    scale = _setting_of(path, settings, "alpha_pattern", "lora_alpha", named)
    scale /= sqrt(rank) if settings.get("use_rslora") else rank
    parts = {part: tensor.to(weight.device, torch.float32) for part, tensor in change.parts.items()}
    merged = weight.float() + scale * (parts["B"] @ parts["A"])
    if "magnitude" in parts:
        merged *= (parts["magnitude"] / torch.linalg.norm(merged, dim=1))[:, None]
    _put(network, f"{path}.weight", (merged.T if turned else merged).to(weight.dtype))
    if "bias" in parts:
        _put(network, f"{path}.bias", (module.bias.float() + scale * parts["bias"]).to(weight.dtype))


def _require_parts(path: str, module: nn.Module, change: Change, settings: Mapping[str, Any], named: str) -> None:
    """Raise `CheckpointError` where an adapter lacks a part of a module's change, has another, or changes no matrix."""
    wanted = {"A", "B"} | ({"magnitude"} if settings.get("use_dora") else set())
    wanted |= {"bias"} if settings.get("lora_bias") else set()
    of_its_kind = _is_matrix(module) and change.of_embedding == isinstance(module, nn.Embedding)
    if not of_its_kind or change.parts.keys() != wanted:
        raise CheckpointError(
            f"{named}: what the adapter has for {path} is not what its settings say",
            given=f"{', '.join(sorted(change.parts))} for a module {type(module).__name__}",
            wanted=f"{', '.join(sorted(wanted))} for a linear layer or an embedding",
            fix="copy or download the adapter and its model again",
        )


def _require_shapes(path: str, weight: Tensor, bias: Any, change: Change, rank: int, named: str) -> None:
    """Raise `CheckpointError` where an adapter's tensors do not fit a weight (out × in), or there is no bias."""
    shapes = {"A": (rank, weight.shape[1]), "B": (weight.shape[0], rank)}
    wanted = {part: shapes.get(part, (weight.shape[0],)) for part in change.parts}
    misfits = [f"{part} {list(t.shape)}" for part, t in change.parts.items() if t.shape != wanted[part]]
    if misfits or not isinstance(bias, Tensor):
        raise CheckpointError(
            f"{named}: the adapter does not fit {path} of its model",
            given="; ".join(misfits) or "a bias, where the model has none",
            wanted="; ".join(f"{part} {list(shape)}" for part, shape in wanted.items()),
            fix="name the model that it was trained on as base_model_name_or_path in adapter_config.json",
        )


def _setting_of(path: str, settings: Mapping[str, Any], patterns: str, otherwise: str, named: str) -> Any:
    """The rank or α of a module: the first pattern's that the end of its path matches, else that of all."""
    listed = settings.get(patterns) or {}
    value = settings.get(otherwise)
    try:
        value = next((v for key, v in listed.items() if re.match(rf"(.*\.)?({key})$", path)), value)
    except (re.error, AttributeError) as error:
        value = f"{patterns}: {type(error).__name__}: {error}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**31:
        raise CheckpointError(
            f"{named}: adapter_config.json does not say what {otherwise} is for {path}",
            given=str(value)[:SHOWN],
            wanted="a number above 0",
            fix="copy or download adapter_config.json again",
        )
    return value


def _fitting(tensor: Tensor, parameter: Tensor, name: str, named: str) -> Tensor:
    """A tensor in a parameter's place, in its precision.  Raises `CheckpointError` where the shape is another."""
    if tensor.shape != parameter.shape:
        raise CheckpointError(
            f"{named}: the adapter brings {name} in another shape than its model has",
            given=list(tensor.shape),
            wanted=list(parameter.shape),
            fix="merge it with peft, which changes the vocabulary's size: merge_and_unload(), then save_pretrained",
        )
    return tensor.to(parameter.device, parameter.dtype)


def _put(network: Any, name: str, value: Tensor) -> None:
    """Give a module another parameter; one that is tied to it stays."""
    path, _, last = name.rpartition(".")
    setattr(network.get_submodule(path), last, nn.Parameter(value.contiguous(), requires_grad=False))
