"""A network of the same architecture that never learned anything: what a trained one is held against.

Its class and configuration are the model's own, its weights those of the class's own initialiser under a seed.  They
are drawn on the CPU in float32, so the same seed gives the same weights whatever the device.
"""

import copy
from typing import Any

import torch

from universal_neurons.errors import ArchitectureError
from universal_neurons.models.described import quiet_transformers
from universal_neurons.models.loading import ONE_AT_A_TIME, in_one_kernel
from universal_neurons.models.model import Model
from universal_neurons.torch_state import settled_torch


def require_initialiser(model: Model) -> None:
    """Raise `ArchitectureError` for a model whose class cannot be built from its configuration alone."""
    from transformers import PreTrainedModel

    if not isinstance(model.hf, PreTrainedModel):
        raise ArchitectureError(
            f"{model.name}: no untrained network of its kind can be built",
            given=type(model.hf).__name__,
            wanted="a model class of transformers, with an initialiser",
            fix="leave --null out",
        )


def untrained_model(model: Model, seed: int) -> Model:
    """A network of a model's class and configuration, in its precision and on its device, initialised under a seed.

    Torch's own random numbers go on as if nothing had been drawn.  Raises `ArchitectureError`.
    """
    require_initialiser(model)
    with ONE_AT_A_TIME, settled_torch(), torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.default_generator.manual_seed(seed)
        network = type(model.hf)(copy.deepcopy(model.hf.config))
    if not model.has_unembedding:
        setattr(network, model.architecture.unembedding.split(".")[0], None)
    in_one_kernel(network)
    _move_like(network, model.hf)
    network.eval().requires_grad_(False)
    name = f"{model.name} (untrained)"
    return Model(network, name, tokenizer=model.tokenizer, architecture=model.architecture)


def _move_like(network: Any, like: Any) -> None:
    """Give every tensor the device and precision that its namesake has: buffers may have others than weights."""
    there = dict(like.named_parameters()) | dict(like.named_buffers())
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if name in there:
            tensor.data = tensor.data.to(there[name].device, there[name].dtype)
