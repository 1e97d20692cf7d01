"""A model larger than the device, spread over several by `accelerate` (extra `big`): GPUs, memory, disk.

Parts that are on the disk or in memory come to the device for their turn of a forward pass and leave it again;
meanwhile their parameters are on the meta device, without numbers.
"""

import contextlib
import copy
import logging
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from universal_neurons.errors import ConfigError, MissingExtraError

PLANS = ("auto", "balanced", "sequential")
DISK = "disk"


class Spread(NamedTuple):
    """How a model is spread: a plan of `accelerate`, or a device for each part; and how much memory devices give."""

    device_map: str | Mapping[str, str | int]
    max_memory: Mapping[str | int, str | int] | None = None


def spread_settings(spread: Spread, shape: Any, named: str) -> dict[str, Any]:
    """What `from_pretrained` takes for it, of a model whose (meta) modules are these.

    Raises `MissingExtraError` without `accelerate`, `ConfigError` for a plan, parts, devices or sizes that are none.
    """
    if find_spec("accelerate") is None:
        raise MissingExtraError(
            f"{named}: models are spread over devices by accelerate, which is not installed",
            wanted="the extra big",
            fix="pip install 'universal-neurons[big]', or leave device_map out",
        )
    if isinstance(spread.device_map, str):
        if spread.device_map not in PLANS:
            raise ConfigError(
                "no such device_map", given=spread.device_map, wanted=f"one of {', '.join(PLANS)}, or a dict in Python"
            )
    else:
        _require_places(spread.device_map, shape, named)
    _require_sizes(spread.max_memory or {})
    limits = {int(key) if str(key).isdigit() else key: size for key, size in (spread.max_memory or {}).items()}
    return {"device_map": spread.device_map, "max_memory": limits or None, "offload_folder": tempfile.mkdtemp()}


def _require_places(device_map: Mapping[str, str | int], shape: Any, named: str) -> None:
    """Raise `ConfigError` where a part is none of the model's, has no device, or one that is not there."""
    modules = {name for name, _ in shape.named_modules()} | {name for name, _ in shape.named_parameters()}
    unknown = [part for part in device_map if part not in modules]
    homeless = [
        name
        for name, _ in shape.named_parameters()
        if not any(part == "" or name == part or name.startswith(f"{part}.") for part in device_map)
    ]
    if unknown or homeless:
        raise ConfigError(
            f"{named}: device_map does not say where each part is",
            given=f"no part of the model: {unknown[:3]}" if unknown else f"no device for {homeless[:3]}",
            wanted="a device for every part, as {'transformer.wte': 0, 'transformer.h.0': 'disk', ...}",
        )
    for device in device_map.values():
        try:
            torch.empty(0, device="cpu" if device == DISK else device)
        except (RuntimeError, AssertionError, TypeError) as error:
            raise ConfigError(
                f"device_map: device {device!r} is not there", wanted="cpu, disk, or the number of a GPU"
            ) from error


def _require_sizes(max_memory: Mapping[str | int, str | int]) -> None:
    from accelerate.utils import convert_file_size_to_int

    for device, size in max_memory.items():
        try:
            known = device == "cpu" or str(device).isdigit()
            fits = known and (size >= 0 if isinstance(size, int) else convert_file_size_to_int(size) >= 0)
        except (ValueError, TypeError):
            fits = False
        if not fits:
            raise ConfigError(
                "max_memory: no memory of a device", given=f"{device}={size}", wanted="cpu=60GiB, or 0=20GiB for GPU 0"
            )


@contextlib.contextmanager
def quiet_accelerate() -> Iterator[None]:
    """No warning of `accelerate` that parts are elsewhere, which is what was asked for, while open."""
    logger = logging.getLogger("accelerate")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def is_spread(network: Any) -> bool:
    """Whether a network's parts are on several devices, or some on none."""
    places = getattr(network, "hf_device_map", None) or {}
    return len(set(map(str, places.values()))) > 1 or DISK in places.values()


def spread_note(network: Any) -> str:
    """Over what a network is spread."""
    return f"spread over {', '.join(sorted(set(map(str, network.hf_device_map.values()))))}"


def remove_with(network: Any, folder: str) -> None:
    """Remove a folder of weights that were put on the disk once nothing reads them any more."""
    weakref.finalize(network, shutil.rmtree, folder, ignore_errors=True)


def discard(places: Mapping[str, Any]) -> None:
    """Remove the folder for a network that was not made."""
    if places:
        shutil.rmtree(places["offload_folder"], ignore_errors=True)


def stored_tensors_of(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer by name, one after another, those that are elsewhere fetched."""
    for path, module in network.named_modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            yield f"{path}.{name}".removeprefix("."), _fetched(module, name, tensor)


def plain_copy(part: nn.Module, device: torch.device) -> nn.Module:
    """A copy of a part of a network with all its numbers, in float32 on one device, run by nothing but itself."""
    from accelerate.hooks import remove_hook_from_submodules

    hooks = [module._hf_hook for module in part.modules() if hasattr(module, "_hf_hook")]
    copied = copy.deepcopy(part, {id(hook): hook for hook in hooks})
    remove_hook_from_submodules(copied)
    for (_, module), (_, plain) in zip(part.named_modules(), copied.named_modules()):
        for name, tensor in module.named_parameters(recurse=False):
            value = _fetched(module, name, tensor).to(device, torch.float32)
            setattr(plain, name, nn.Parameter(value, requires_grad=False))
    return copied.to(device)


def _fetched(module: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """A module's tensor, read from where `accelerate` keeps it if it is elsewhere; else as it is."""
    if not tensor.is_meta:
        return tensor
    hook: Any = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", [hook]):
        weights = getattr(one, "weights_map", None)
        if weights is not None:
            return weights[name]
    return tensor
