"""A forward pass that is looked into: of a network that evaluates, of one of its blocks alone, in float32."""

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from universal_neurons.errors import ArchitectureError
from universal_neurons.models.spread import is_spread, plain_copy

Call = tuple[Any, Any]  # what a block is called with: arguments, keyword arguments


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """While open, a network evaluates: no dropout.  Afterwards, what trained trains again."""
    training = [module for module in network.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def hooked(handles: Iterable[Any]) -> Iterator[None]:
    """While open, hooks are in their places; afterwards these handles, more of which may have come, are removed."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def named_failure(named: str, architecture: str) -> Iterator[None]:
    """`ArchitectureError` for what a forward pass raises: a setting that only it reads (dropout, rotation, outputs)."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError) as error:
        raise ArchitectureError(
            f"{named}: its forward pass fails",
            given=f"{type(error).__name__}: {error}".splitlines()[0][:300],
            wanted=f"a {architecture} model that runs",
            fix="mend its configuration: a setting is out of place",
        ) from error


def probe_ids(context: int, vocabulary: int) -> tuple[Int[Tensor, "2 context"], int]:
    """Two rows of token ids that begin alike, and for how long they do."""
    ids = torch.arange(2 * min(16, context)).view(2, -1) % vocabulary
    alike = ids.shape[1] // 2
    ids[1, :alike] = ids[0, :alike]
    return ids, alike


@contextlib.contextmanager
def calls_of(blocks: Sequence[nn.Module]) -> Iterator[list[Call]]:
    """While open, what blocks are called with, one after another."""
    calls: list[Call] = []
    handles = [
        block.register_forward_pre_hook(lambda _m, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
        for block in blocks
    ]
    with hooked(handles):
        yield calls


def in_float32(network: Any, block: nn.Module, call: Call, device: torch.device) -> tuple[nn.Module, Call]:
    """A block of a network and its call, or copies that run in float32 on this device where the network does not."""
    if is_spread(network):
        return plain_copy(block, device), _in_float32(call, device)
    if network.dtype != torch.float32:
        return copy.deepcopy(block).float(), _in_float32(call, device)
    return block, call


def _in_float32(value: Any, device: torch.device) -> Any:
    """Tensors in nested arguments on this device, numbers as float32; all else as it is."""
    if isinstance(value, Tensor):
        return value.to(device, torch.float32 if value.is_floating_point() else value.dtype)
    if isinstance(value, dict):
        return {key: _in_float32(part, device) for key, part in value.items()}
    return type(value)(_in_float32(part, device) for part in value) if type(value) in (tuple, list) else value


def stream_after(block: nn.Module, call: Call) -> Tensor:
    """One block's residual stream after its MLP."""
    args, kwargs = call
    return first_tensor(block(*args, **kwargs))


def first_tensor(output: Any) -> Any:
    """What a module returns, or the first of what it does."""
    return output[0] if isinstance(output, (tuple, list)) and output else output


def relative_error(found: Tensor, expected: Tensor, rounding: float = 0.0) -> float:
    """The largest difference beyond rounding, as a share of the largest value; NaN where one is."""
    error = max(float((found - expected).abs().max()) - rounding, 0.0)
    return error / max(float(expected.abs().max()), 1e-30)
