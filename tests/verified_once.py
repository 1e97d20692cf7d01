"""A tiny model that was found to be what its family's row says is not run again for it by every study of it.

Only the very same weights, modules and configuration count as the same, and only where nothing was hooked to them.
"""

import hashlib
import json
from collections.abc import Callable

import torch

from universal_neurons.models import loading, verification
from universal_neurons.study import resolve

MOST_BYTES = 8 << 20  # of a model's weights: hashing more would take as long
verify: Callable[..., float] = verification.verify
FOUND: dict[str, float] = {}


def likeness(model) -> str | None:
    """A hash of all that a verification looks at; None of what is large, hooked, or not on a CPU."""
    tensors, modules = model.hf.state_dict(keep_vars=True), list(model.hf.modules())
    if any(not tensor.is_cpu for tensor in tensors.values()):
        return None
    if sum(tensor.nbytes for tensor in tensors.values()) > MOST_BYTES:
        return None
    if any(each._forward_hooks or each._forward_pre_hooks or "forward" in vars(each) for each in modules):
        return None
    told = hashlib.sha256(json.dumps(model.hf.config.to_dict(), default=str, sort_keys=True).encode())
    forwards = {type(each): type(each).forward for each in modules}
    for part in (model.hf, model.architecture, model.name, model.context, model.dtype, forwards):
        told.update(repr(part).encode())
    for name, tensor in tensors.items():
        told.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        told.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return told.hexdigest()


def verified_once(model) -> float:
    """`verify`, or what it said of the same model before."""
    key = likeness(model)
    if key is None:
        return verify(model)
    if key not in FOUND:
        FOUND[key] = verify(model)
    return FOUND[key]


loading.verify = resolve.verify = verified_once
