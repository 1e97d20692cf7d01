"""Is a loaded model what its row of the table says, and are its weights numbers?"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from universal_neurons.errors import ArchitectureError, CheckpointError
from universal_neurons.models.architectures import Architecture, module_at
from universal_neurons.models.model import Model, matrix_of
from universal_neurons.models.spread import plain_copy, stored_tensors_of

VERIFY_TOLERANCE = 1e-4


def require_finite(model: Model) -> None:
    """Raise `CheckpointError` for weights that are NaN or infinite, naming them."""
    broken = []
    for name, tensor in stored_tensors_of(model.hf):
        if tensor.is_meta:
            raise CheckpointError(
                f"{model.name}: its weights are not in memory",
                given=f"{name} on the meta device",
                wanted="a model whose numbers are there, or that accelerate fetches",
                fix="load it by un.load_model, with device_map where it is larger than the device",
            )
        if not _is_finite(tensor.detach()):
            broken.append(name)
    if broken:
        raise CheckpointError(
            f"{model.name}: weights that are NaN or infinite",
            given=f"{', '.join(broken[:5])}{f' and {len(broken) - 5} more' if len(broken) > 5 else ''}",
            wanted=f"numbers that {str(model.dtype).removeprefix('torch.')} can hold",
            fix="copy or download the weights again; where they are too large for float16, take --dtype float32",
        )


def _is_finite(tensor: Tensor) -> bool:
    """The least and the largest value tell: both become NaN where one is."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


@contextlib.contextmanager
def _named_failure(model: Model) -> Iterator[None]:
    """`ArchitectureError` for what a forward pass raises: a setting that only it reads (dropout, rotation, outputs)."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError) as error:
        raise ArchitectureError(
            f"{model.name}: its forward pass fails",
            given=f"{type(error).__name__}: {error}".splitlines()[0][:300],
            wanted=f"a {model.architecture.name} model that runs",
            fix="mend its configuration: a setting is out of place",
        ) from error


@torch.inference_mode()
def verify(model: Model) -> float:
    """Check a model's weights and the architecture's row on it running; returns the largest relative error seen.

    Every block runs twice in float32 on the same input, the second time with its MLP's output projection silenced:
    the difference must be activation · W_out + b.  Raises `CheckpointError` for weights or activations that are NaN or
    infinite, and `ArchitectureError`.
    """
    require_finite(model)
    ids = torch.arange(2 * min(16, model.context)).view(2, -1) % model.vocab_size
    worst = 0.0
    calls: list[tuple[Any, Any]] = []
    handles = [
        block.register_forward_pre_hook(lambda _m, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
        for block in model.blocks
    ]
    try:
        with _named_failure(model):
            model.forward(ids)
    finally:
        for handle in handles:
            handle.remove()
    if model.has_unembedding:
        with _named_failure(model):
            model.logits(ids)
    row = model.architecture
    for layer, call in enumerate(calls):
        block = model.blocks[layer]
        if model.spread:
            block, call = plain_copy(block, model.device), _in_float32(call, model.device)
        elif model.dtype != torch.float32:
            block, call = copy.deepcopy(block).float(), _in_float32(call, model.device)
        with model.evaluating(block):
            after, activation = _residual_after(row, block, call, silenced=False)
            without, _ = _residual_after(row, block, call, silenced=True)
        if activation.shape != (ids.numel(), model.d_mlp):
            raise ArchitectureError(
                f"{model.name}: layer {layer}'s activation has another shape than the text",
                given=tuple(activation.shape),
                wanted=(ids.numel(), model.d_mlp),
                fix="chunk_size_feed_forward in config.json cuts it up: set it to 0" if not row.causal else None,
            )
        out = module_at(block, row.w_out)
        expected = activation.double() @ matrix_of(out).double().T
        if isinstance(out.bias, Tensor):
            expected = expected + out.bias.double()
        difference = (after.double() - without.double()).reshape(expected.shape)
        if not (_is_finite(difference) and _is_finite(expected)):
            raise CheckpointError(
                f"{model.name}: its activations are NaN or infinite",
                given=f"layer {layer}, in {str(model.dtype).removeprefix('torch.')}",
                wanted="weights of a trained model, whose activations are numbers",
                fix="copy or download the weights again, or take --dtype float32",
            )
        rounding = 1e-6 * float(after.abs().max())
        error = max(0.0, float((difference - expected).abs().max()) - rounding)
        worst = max(worst, error / max(float(expected.abs().max()), 1e-30))
    if not worst <= VERIFY_TOLERANCE:
        raise ArchitectureError(
            f"{model.name}: what its MLP adds to the residual stream is not activation · W_out + b",
            given=f"relative error {worst:.2g}",
            wanted=f"at most {VERIFY_TOLERANCE:g}",
            fix=f"this variant of {row.name} needs a row of its own in architectures.py",
        )
    return worst


def _in_float32(value: Any, device: torch.device) -> Any:
    """Tensors in nested arguments on this device, numbers as float32; all else as it is."""
    if isinstance(value, Tensor):
        return value.to(device, torch.float32 if value.is_floating_point() else value.dtype)
    if isinstance(value, dict):
        return {key: _in_float32(part, device) for key, part in value.items()}
    return type(value)(_in_float32(part, device) for part in value) if type(value) in (tuple, list) else value


def _residual_after(row: Architecture, block: nn.Module, call: Any, *, silenced: bool) -> tuple[Tensor, Tensor]:
    """One block's residual stream after its MLP (before the norm, where the norm comes last), and its activation."""
    args, kwargs = call
    seen: dict[str, Any] = {}

    def take(_m: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen["activation"] = inputs[0]
        return torch.zeros_like(output) if silenced else output

    handles = [module_at(block, row.w_out).register_forward_hook(take)]
    if row.post_norm:
        norm = module_at(block, row.mlp_norm)
        handles.append(norm.register_forward_pre_hook(lambda _m, inputs: seen.update(residual=inputs[0])))
    try:
        output = block(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    after = output[0] if isinstance(output, tuple) else output
    return seen["residual"] if row.post_norm else after, seen["activation"].flatten(0, -2)
