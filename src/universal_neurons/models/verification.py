"""Is a loaded model what its row of the table says, and are its weights numbers?"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from universal_neurons.errors import ArchitectureError, CheckpointError
from universal_neurons.models.experts import SparseMLP, sparse_of
from universal_neurons.models.model import Model
from universal_neurons.models.norms import Norm
from universal_neurons.models.parts import matrix_of, module_at
from universal_neurons.models.passes import (
    calls_of,
    evaluating,
    hooked,
    in_float32,
    named_failure,
    probe_ids,
    relative_error,
    stream_after,
)
from universal_neurons.models.spread import plain_copy, stored_tensors_of
from universal_neurons.models.weights import projection

VERIFY_TOLERANCE = 1e-4
WHOLE_TOLERANCE = 1e-3  # of whole passes
WRITTEN = "what its MLP adds to the residual stream is not activation · W_out + b"
READ = "its pre-activation is not W_in · norm(residual stream) + b"
ACTED = "its activation is not a function of its pre-activation"
GATED = "its activation is not a gate's times what w_up gives"
CAUSAL = "its first tokens know of the later ones"
LOGITS = "its logits are not those of its final norm and unembedding"


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


@torch.inference_mode()
def verify(model: Model) -> float:
    """Check a model's weights and the architecture's row on it running; returns the largest relative error seen.

    1. Every block runs twice in float32 on the same input, the second time with its MLP's output projection silenced:
       the difference must be activation · W_out + b, multiplied and normalised as the row says.
    2. The pre-activation must be what the input weights make of the norm's input, by the row's formula.
    3. The first block runs again, in a gated MLP with `w_up`'s output doubled: so must be the activation; else with
       `w_in`'s output at 1: the activation must be one number.
    4. Two rows of text begin alike: so must what a causal model makes of them.
    5. The logits must be those of the row's final norm and unembedding.

    Raises `CheckpointError` for weights or activations that are NaN or infinite, and `ArchitectureError`.
    """
    require_finite(model)
    ids, alike = probe_ids(model.context, model.vocab_size)
    errors: dict[str, float] = {}
    with calls_of(model.blocks) as calls, named_failure(model.name, model.architecture.name):
        states = model.forward(ids).last_hidden_state[:, :alike]
    for layer, call in enumerate(calls):
        block, call = in_float32(model.hf, model.blocks[layer], call, model.device)
        with evaluating(block):
            found = _block_errors(model, layer, block, call, ids.numel())
        errors |= {what: max(error, errors.get(what, 0.0)) for what, error in found.items()}
    for what, error in errors.items():
        _require(model, what, error, VERIFY_TOLERANCE)
    tolerance = WHOLE_TOLERANCE if model.dtype == torch.float32 else 0.1
    if model.architecture.causal and alike:
        _require(model, CAUSAL, relative_error(states[1], states[0]), tolerance)
    if model.has_unembedding:
        with named_failure(model.name, model.architecture.name):
            error = _logit_error(model, ids)
        _require(model, LOGITS, error, tolerance)
    return max(errors.values(), default=0.0)


def _require(model: Model, what: str, error: float, limit: float) -> None:
    if not error <= limit:
        raise ArchitectureError(
            f"{model.name}: {what}",
            given=f"relative error {error:.2g}",
            wanted=f"at most {limit:g}",
            fix=f"this variant of {model.architecture.name} needs a row of its own in architecture_table.py",
        )


def _block_errors(model: Model, layer: int, block: nn.Module, call: Any, positions: int) -> dict[str, float]:
    """Relative errors of one block's row, by what is wrong where they are large."""
    row = model.architecture
    sparse = sparse_of(block, row)
    if sparse is not None:
        return _expert_errors(model, layer, sparse, block, call, positions)
    after = _Run(model, layer, block, call)
    without = _Run(model, layer, block, call, of="w_out", change=torch.zeros_like)
    activation = after.activation
    _require_shape(model, layer, "activation", activation, positions)
    _require_shape(model, layer, "pre-activation", after.pre_activation, positions)
    weight, bias = projection(model, layer, "w_out", block)
    written = (activation.double() @ weight.T + bias) * model.residual_multiplier
    if row.out_norm is not None:
        written = Norm(model.part(layer, "out_norm", block), row, written, torch.float64)(written)
    errors = {WRITTEN: _written_error(model, layer, after.residual, without.residual, written)}
    if not row.post_norm:
        # Without its MLP, a block of sequential residuals returns what an MLP without a norm of its own reads.
        read = without.residual.flatten(0, -2).double() if after.norm_input is None else after.norm_input.double()
        if row.mlp_norm:
            read = Norm(model.part(layer, "mlp_norm", block), row, read, torch.float64)(read)
        weight, bias = projection(model, layer, "w_in", block)
        expected = read @ weight.T + bias
        errors[READ] = relative_error(after.pre_activation.double(), expected, 1e-6 * float(expected.abs().max()))
    if layer == 0 and row.gated:
        doubled = _Run(model, layer, block, call, of="w_up", change=lambda up: 2 * up)
        errors[GATED] = relative_error(doubled.activation, 2 * activation)
    elif layer == 0:
        constant = _Run(model, layer, block, call, of="w_in", change=torch.ones_like).activation
        errors[ACTED] = relative_error(activation + constant, activation + constant.flatten()[0])
    return errors


def _expert_errors(
    model: Model, layer: int, sparse: SparseMLP, block: nn.Module, call: Any, positions: int
) -> dict[str, float]:
    """Relative errors of one block's row where its MLP has experts, by what is wrong where they are large."""
    seen: dict[str, Tensor] = {}
    norm = model.part(layer, "mlp_norm", block)
    handles: list[Any] = [
        sparse.tap(lambda values: seen.update(pre=values), pre=True),
        norm.register_forward_pre_hook(lambda _m, inputs: seen.update(norm_input=inputs[0])),
    ]
    with hooked(handles):
        after, without, activation, written = sparse.silenced(partial(stream_after, block, call))
    _require_shape(model, layer, "activation", activation, positions)
    read = seen["norm_input"].flatten(0, -2).double()
    weight, bias = sparse.reads("w_in")
    expected = Norm(norm, model.architecture, read, torch.float64)(read) @ weight.double().T + bias.double()
    pre_activation = seen["pre"].flatten(0, -2).double()
    expected = expected.masked_fill(pre_activation == 0, 0)  # where a token was not routed
    return {
        WRITTEN: _written_error(model, layer, after, without, written),
        READ: relative_error(pre_activation, expected, 1e-6 * float(expected.abs().max())),
    }


def _require_shape(model: Model, layer: int, what: str, values: Tensor, positions: int) -> None:
    wanted = positions, model.units.widths[layer]
    if values.shape != wanted:
        cut = not model.architecture.causal
        raise ArchitectureError(
            f"{model.name}: layer {layer}'s {what} has another shape than the text",
            given=tuple(values.shape),
            wanted=wanted,
            fix="chunk_size_feed_forward in config.json cuts it up: set it to 0" if cut else None,
        )


def _written_error(model: Model, layer: int, after: Tensor, without: Tensor, written: Tensor) -> float:
    """Relative error of what an MLP adds; `CheckpointError` where it is no number."""
    difference = (after.double() - without.double()).reshape(written.shape)
    if not (_is_finite(difference) and _is_finite(written)):
        raise CheckpointError(
            f"{model.name}: its activations are NaN or infinite",
            given=f"layer {layer}, in {str(model.dtype).removeprefix('torch.')}",
            wanted="weights of a trained model, whose activations are numbers",
            fix="copy or download the weights again, or take --dtype float32",
        )
    return relative_error(difference, written, 1e-6 * float(after.abs().max()))


def _logit_error(model: Model, ids: Tensor) -> float:
    """Relative error of logits by the row's final norm and unembedding; 0 without a norm, or by a projection."""
    row = model.architecture
    seen: list[Tensor] = []
    norm = module_at(model.hf, row.final_norm)
    handles = [] if norm is None else [norm.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))]
    with hooked(handles):
        logits = model.logits(ids).float()
    if row.final_norm is None or not model.unembedding_reads_stream:
        return 0.0
    if not seen:
        return float("inf")
    unembedding = module_at(model.hf, row.unembedding)
    if model.spread:
        norm, unembedding = (plain_copy(part, model.device) for part in (norm, unembedding))
        seen, logits = [seen[0].to(model.device, torch.float32)], logits.to(model.device)
    weight, bias = matrix_of(unembedding), getattr(unembedding, "bias", None)
    normed = Norm(norm, row, seen[0])(seen[0]).to(weight.dtype)
    if weight.shape != (logits.shape[-1], normed.shape[-1]):
        return float("inf")
    expected = nn.functional.linear(normed, weight, bias).float() * model.logit_multiplier
    if model.logit_cap is not None:
        expected = model.logit_cap * torch.tanh(expected / model.logit_cap)
    return relative_error(logits, expected, 0.0)


class _Run:
    """One run of a block, with the output of a part of it (`of`, by role) changed.

    `residual` is the stream after its MLP (before the norm, where the norm comes last); the others have a row per
    position: `norm_input` (None where the MLP has no norm), `pre_activation`, `activation`.
    """

    def __init__(
        self,
        model: Model,
        layer: int,
        block: nn.Module,
        call: Any,
        *,
        of: str = "",
        change: Callable[[Tensor], Tensor] = torch.clone,
    ) -> None:
        row = model.architecture
        self.norm_input: Tensor | None = None
        handles = []

        def on(role: str, hook: Any, *, before: bool = False) -> None:
            module = model.part(layer, role, block)
            handles.append((module.register_forward_pre_hook if before else module.register_forward_hook)(hook))

        def changed(_m: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output[..., model.half(layer, of)] = change(output[..., model.half(layer, of)])
            return output

        def take_pre_activation(_m: nn.Module, _inputs: Any, output: Tensor) -> None:
            self.pre_activation = output[..., model.half(layer, "w_in")].flatten(0, -2)

        def take_activation(_m: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.activation = inputs[0].flatten(0, -2)

        def take_norm_input(_m: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.norm_input = inputs[0]

        on("w_in", take_pre_activation)
        on("w_out", take_activation, before=True)
        if row.mlp_norm:
            on("mlp_norm", take_norm_input, before=True)
        if of:
            on(of, changed)
        with hooked(handles):
            after = stream_after(block, call)
        self.residual = self.norm_input if row.post_norm and self.norm_input is not None else after
        self.norm_input = None if self.norm_input is None else self.norm_input.flatten(0, -2)
