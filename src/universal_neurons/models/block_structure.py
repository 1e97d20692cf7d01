"""Which parts of a block are its MLP's, told by what they do while it runs.

1. A candidate for the output projection is a linear layer of the residual stream's width.  Silenced, it must take from
   the stream exactly what it returns.
2. What it reads must be made, neuron by neuron, of what linear layers of its width give, or halves of one twice as
   wide: changed in some neurons at one position, they change it there and nowhere else.  So attention's output
   projection is none: it reads a mixture of positions.
3. Of two such layers one is the up projection: its output times −2 makes what the candidate reads −2 times as large.
   With all of them constant, that must be constant.
4. The norm is the module that returns what these layers read, by one of four formulas.
5. Without the candidate, what the block writes at a position must not follow what the norm returns there alone: else
   there are other neurons, such as a mixture's experts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from universal_neurons.models.architectures import FOUND, Architecture
from universal_neurons.models.norms import Norm
from universal_neurons.models.parts import module_at
from universal_neurons.models.passes import Call, first_tensor, hooked, relative_error, stream_after

TOLERANCE = 1e-4
ROUNDING = 1e-6
AT = 2  # the position that is changed: the ids of the first ones may be padding, whose embedding is 0
NORMS: tuple[dict[str, Any], ...] = tuple(
    {"norm": norm, "gain_offset": offset} for offset in (0.0, 1.0) for norm in ("rms", "layer")
)


class UnfitError(Exception):
    """Why a linear layer is no MLP's output projection."""


class Part(NamedTuple):
    """A module of a block, and which of its outputs."""

    path: str
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class Seen:
    """A module that ran: its path, what it was given and what it returned (the first tensors)."""

    path: str
    module: nn.Module
    given: Tensor
    returned: Tensor


class BlockRuns:
    """Runs of one block on one input: as it is, and with what some of its modules return changed."""

    def __init__(self, block: nn.Module, call: Call, positions: int, width: int) -> None:
        self.block, self.call, self.width = block, call, width
        self.after, self.seen = watched(block, lambda: stream_after(block, call))
        ran = [one.path for one in self.seen]
        self.linears = {
            one.path: one
            for one in self.seen
            if _is_linear(one.module) and ran.count(one.path) == 1 and one.returned.shape[:-1].numel() == positions
        }

    def candidates(self) -> list[str]:
        """Linear layers that return the residual stream's width, the last first."""
        return [path for path, one in reversed(self.linears.items()) if one.returned.shape[-1] == self.width]

    def changed(self, changes: Mapping[Part, Callable[[Tensor], Tensor]], out: str) -> tuple[Tensor, Tensor]:
        """The stream after the block, and what `out` is given, where outputs of parts are changed."""
        given: list[Tensor] = []
        handles: list[Any] = [
            module_at(self.block, part.path).register_forward_hook(_changing(part, change))
            for part, change in changes.items()
        ]
        reader = module_at(self.block, out)
        handles.append(reader.register_forward_pre_hook(lambda _m, args: given.append(args[0].clone())))
        with hooked(handles):
            return stream_after(self.block, self.call), given[0]


def watched(root: nn.Module, run: Callable[[], Any], leave_out: str | None = None) -> tuple[Any, list[Seen]]:
    """What `run` returns, and the parts of `root` that ran, in the order in which they returned."""
    seen: list[Seen] = []

    def take(path: str, module: nn.Module, args: Any, output: Any) -> None:
        given, returned = first_tensor(args), first_tensor(output)
        if isinstance(given, Tensor) and isinstance(returned, Tensor):
            seen.append(Seen(path, module, given.clone(), returned.clone()))

    handles = [
        module.register_forward_hook(lambda module, args, output, path=path: take(path, module, args, output))
        for path, module in root.named_modules()
        if path and (leave_out is None or not f"{path}.".startswith(f"{leave_out}."))
    ]
    with hooked(handles):
        return run(), seen


def mlp_of(row: Architecture, runs: BlockRuns) -> Architecture:
    """The row with the parts of the MLP whose output projection it names; `UnfitError` where one is not there."""
    out = runs.linears[row.w_out]
    silenced, _ = runs.changed({Part(row.w_out): torch.zeros_like}, row.w_out)
    lost = (runs.after - silenced).reshape(out.returned.shape)
    error = relative_error(lost, out.returned, ROUNDING * float(runs.after.abs().max()))
    if not error <= TOLERANCE:
        raise UnfitError(
            f"silenced, it takes from the residual stream not what it returns (relative error {error:.2g})"
        )
    row = _with_norm(_with_readers(row, runs), runs)
    _require_no_others(row, runs, silenced)
    return row


def returns(seen: Seen, values: Tensor) -> bool:
    """Whether a module made these values, of others."""
    return (
        seen.returned.shape == values.shape == seen.given.shape
        and torch.equal(seen.returned.to(values.device), values)
        and not torch.equal(seen.given.to(values.device), values)
    )


def norm_formula(seen: Seen, row: Architecture, module: nn.Module, tolerance: float) -> bool:
    """Whether the row's norm, with this module's numbers, is what was seen."""
    weight, given = getattr(module, "weight", None), seen.given.double()
    if isinstance(weight, Tensor) and weight.shape != given.shape[-1:]:
        return False
    return relative_error(seen.returned.double(), Norm(module, row, given, torch.float64)(given)) <= tolerance


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    plain = isinstance(weight, Tensor) and weight.dim() == 2 and weight.is_floating_point()
    return plain and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")


def _changing(part: Part, change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(_m: nn.Module, _args: Any, output: Any) -> Any:
        values = first_tensor(output).clone()
        values[..., part.start : part.stop] = change(values[..., part.start : part.stop])
        return (values, *output[1:]) if isinstance(output, tuple) else values

    return hook


def _with_readers(row: Architecture, runs: BlockRuns) -> Architecture:
    """The row with `w_in`, and `w_up` of a gated MLP."""
    width = runs.linears[row.w_out].given.shape[-1]
    parts = [
        Part(path, start, start + width)
        for path, one in runs.linears.items()
        if path != row.w_out and one.returned.shape[-1] in (width, 2 * width)
        for start in range(0, one.returned.shape[-1], width)
    ]
    found = [part for part in parts if _acts_neuron_by_neuron(part, runs, row.w_out)]
    tried = ", ".join(dict.fromkeys(part.path for part in parts)) or "no linear layer"
    if not found:
        raise UnfitError(f"what it reads is not made, neuron by neuron, of what {tried} gives")
    given = runs.linears[found[0].path].given
    if len(found) > 2 or not all(torch.equal(runs.linears[part.path].given, given) for part in found):
        raise UnfitError(f"what it reads is made of more than a gate and an up projection: {tried}")
    ones: Callable[[Tensor], Tensor] = torch.ones_like
    constant = runs.changed(dict.fromkeys(found, ones), row.w_out)[1]
    if relative_error(constant, constant.flatten()[0].expand_as(constant)) > TOLERANCE:
        raise UnfitError(f"what it reads is not made of what {tried} gives alone")
    gate, up = (found[0], None) if len(found) == 1 else _gate_and_up(found, runs, row.w_out)
    fused = up is not None and up.path == gate.path
    if gate.start or runs.linears[gate.path].returned.shape[-1] != width * (1 + fused):
        raise UnfitError(f"{gate.path} gives other things before gates, or besides")
    return replace(
        row,
        name=FOUND[up is not None] + row.model_types[0],
        w_in=gate.path,
        w_up=None if up is None else up.path,
    )


def _acts_neuron_by_neuron(part: Part, runs: BlockRuns, out: str) -> bool:
    """Whether every other neuron, changed at one position, changes what `out` reads there and nowhere else."""

    def change(values: Tensor) -> Tensor:
        flat = values.flatten(0, -2).clone()
        flat[AT, ::2] = 2 * flat[AT, ::2] + 1
        return flat.view(values.shape)

    before = runs.linears[out].given
    after = runs.changed({part: change}, out)[1]
    differs = (after - before).abs().flatten(0, -2) > ROUNDING * before.abs().max()
    there = differs[AT, ::2].any()
    differs[AT, ::2] = False
    return bool(there) and not bool(differs.any())


def _gate_and_up(found: list[Part], runs: BlockRuns, out: str) -> tuple[Part, Part]:
    """Which of two is the up projection; where both may be, for no function is between, the second."""
    before = runs.linears[out].given
    for up, gate in (found[::-1], found):
        after = runs.changed({up: lambda values: -2 * values}, out)[1]
        if relative_error(after, -2 * before) <= TOLERANCE:
            return gate, up
    raise UnfitError(f"what it reads is no gate's times what {found[0].path} or {found[1].path} gives")


def _with_norm(row: Architecture, runs: BlockRuns) -> Architecture:
    read = runs.linears[row.w_in].given
    for one in runs.seen:
        if returns(one, read):
            for formula in NORMS:
                normed = replace(row, mlp_norm=one.path, **formula)
                if norm_formula(one, normed, one.module, TOLERANCE):
                    return normed
    raise UnfitError(f"no LayerNorm or RMS norm returns what {row.w_in} reads")


def _require_no_others(row: Architecture, runs: BlockRuns, silenced: Tensor) -> None:
    """Refuse an MLP beside which others read the same norm and write at the same position."""

    def change(values: Tensor) -> Tensor:
        flat = values.flatten(0, -2).clone()
        flat[AT] = flat[AT].flip(0) + 1
        return flat.view(values.shape)

    norm = Part(row.paths("mlp_norm")[0])
    after, _ = runs.changed({norm: change, Part(row.w_out): torch.zeros_like}, row.w_out)
    differs = (after - silenced).abs().flatten(0, -2).amax(-1) > ROUNDING * silenced.abs().max()
    if differs[AT] and differs.sum() == 1:
        raise UnfitError("without it, others still write what they make of the same norm: it is not the whole MLP")
