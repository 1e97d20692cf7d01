"""Mixtures of experts: the activations of every expert's neurons, where each token was routed to some of them.

`transformers` keeps the experts of a block in two 3-D parameters, which no module reads that a hook could wait at; but
they are a module together, which is called with what it needs:

1. Its inputs are the tokens, the experts each is routed to and with which weight.  The gate and up projections of the
   routed ones are computed once more, by the module's own gate function, whatever function the model itself runs.
2. A neuron's activation is routing weight · act(gate) · up, zero where the token was not routed to its expert; of a
   shared expert the sigmoid of its gate is the weight.  So activation · W_out is what the MLP adds.
3. What hooks change of it is added to the MLP's output through W_out.

The model's own forward pass stays untouched: neither its class nor its configuration knows of it.
"""

import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from universal_neurons.errors import ArchitectureError
from universal_neurons.models.architectures import Architecture
from universal_neurons.models.parts import module_at
from universal_neurons.models.passes import hooked

Hook = Callable[[Tensor], Tensor | None]  # of (pre-)activations; what it returns takes their place


class Tap:
    """A hook of a layer that has experts, until it is removed."""

    def __init__(self, layer: "SparseMLP", hook: Hook, *, pre: bool) -> None:
        self.layer, self.hook, self.pre = layer, hook, pre

    def remove(self) -> None:
        """Hand nothing over any more."""
        self.layer.taps.remove(self)
        if not self.layer.taps:
            self.layer.detach()


class SparseMLP:
    """The MLP of one block that has experts: its units, their activations and weights.

    A shared expert's neurons come first, then those of each expert in turn.
    """

    def __init__(self, block: nn.Module, row: Architecture) -> None:
        assert row.experts is not None
        self.row = row
        self.module, self.experts = module_at(block, row.experts.module), module_at(block, row.experts.experts)
        self.shared = module_at(block, row.experts.shared) if row.experts.shared else None
        self.share = module_at(block, row.experts.shared_gate) if row.experts.shared_gate else None
        self.count, *sizes = self.experts.down_proj.shape
        self.each: int = sizes[0] if self.experts.is_transposed else sizes[1]
        self.plain = 0 if self.shared is None else int(self.shared.down_proj.weight.shape[1])
        self.taps: list[Tap] = []
        self.handles: list[Any] = []
        self.seen = threading.local()  # a forward pass of another thread goes through the same hooks

    @property
    def width(self) -> int:
        """All its neurons."""
        return self.plain + self.count * self.each

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """Of the experts, what must be plain numbers."""
        return self.experts.gate_up_proj, self.experts.down_proj

    def tap(self, hook: Hook, *, pre: bool = False) -> Tap:
        """Hand every forward pass's activations to `hook`, after those that were there before; or pre-activations."""
        if not self.taps:
            self._attach()
        self.taps.append(Tap(self, hook, pre=pre))
        return self.taps[-1]

    def detach(self) -> None:
        """Remove its hooks of the model's modules."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def _attach(self) -> None:
        def keep(name: str, value: Any) -> None:
            setattr(self.seen, name, value)

        hooks = [self.experts.register_forward_pre_hook(lambda _m, args: keep("routing", args))]
        if self.shared is not None:
            hooks += [
                self.shared.gate_proj.register_forward_hook(lambda _m, _args, output: keep("shared_gate", output)),
                self.shared.down_proj.register_forward_pre_hook(lambda _m, args: keep("shared", args[0])),
            ]
        if self.share is not None:
            hooks.append(self.share.register_forward_hook(lambda _m, _args, output: keep("share", output.sigmoid())))
        self.handles = [*hooks, self.module.register_forward_hook(self._finish)]

    def _finish(self, _m: nn.Module, _args: Any, output: Any) -> Any:
        """Hand over what was seen; what hooks changed of it goes into the MLP's output."""
        parts = [
            "routing",
            *["shared", "shared_gate"] * (self.shared is not None),
            *["share"] * (self.share is not None),
        ]
        if not all(hasattr(self.seen, part) for part in parts):
            return None  # a pass that was under way when the first hook came
        added, *others = output if isinstance(output, tuple) else (output,)
        values = self._values({tap.pre for tap in self.taps})
        vars(self.seen).clear()
        shaped = {pre: of_kind.view(*added.shape[:-1], self.width) for pre, of_kind in values.items()}
        for tap in [tap for tap in self.taps if tap.pre]:
            tap.hook(shaped[True])
        if False not in shaped:
            return None
        before = after = shaped[False]
        for tap in [tap for tap in self.taps if not tap.pre]:
            changed = tap.hook(after)
            after = after if changed is None else changed
        if after is before:
            return None
        change = (after - before).view(-1, self.width)
        columns = change.any(0).nonzero().flatten()
        added = added + (change[:, columns] @ self.w_out(columns)).view_as(added)
        return (added, *others) if isinstance(output, tuple) else added

    def _values(self, kinds: Collection[bool]) -> dict[bool, Float[Tensor, "tokens width"]]:
        """Of what was seen last, the pre-activations (True), the activations (False), or both."""
        hidden, experts, weights = self.seen.routing
        values = {pre: hidden.new_zeros(len(hidden), self.width) for pre in kinds}
        for expert in range(self.count):
            tokens, slots = torch.where(experts == expert)
            if not len(tokens):
                continue
            columns = slice(self.plain + expert * self.each, self.plain + (expert + 1) * self.each)
            gate_up = self._gate_up(expert, hidden[tokens])
            for pre, into in values.items():
                weighted = None if pre else self.experts._apply_gate(gate_up) * weights[tokens, slots, None]
                into[tokens, columns] = (self._halves(gate_up)[0] if weighted is None else weighted).to(into.dtype)
        if self.shared is not None:
            share = 1.0 if self.share is None else self.seen.share.reshape(-1, 1)
            for pre, into in values.items():
                of_shared = self.seen.shared_gate if pre else self.seen.shared
                into[:, : self.plain] = of_shared.reshape(-1, self.plain) * (1.0 if pre else share)
        return values

    def _gate_up(self, expert: int, hidden: Float[Tensor, "tokens d_model"]) -> Float[Tensor, "tokens gate_up"]:
        weight = self.experts.gate_up_proj[expert]
        bias = self.experts.gate_up_proj_bias[expert] if self.experts.has_bias else None
        return nn.functional.linear(hidden, weight.T if self.experts.is_transposed else weight, bias)

    def _halves(self, gate_up: Tensor) -> tuple[Tensor, Tensor]:
        """The gate's and the up projection's part of the last dimension."""
        if self.experts.is_concatenated:
            gate, up = gate_up.chunk(2, dim=-1)
            return gate, up
        return gate_up[..., ::2], gate_up[..., 1::2]

    def w_out(self, columns: Int[Tensor, " neurons"] | Sequence[int] | None = None) -> Float[Tensor, "neurons d_model"]:
        """What neurons write, by their place in the layer; of all of them without `columns`."""
        places = torch.arange(self.width) if columns is None else torch.as_tensor(columns)
        down = self.experts.down_proj.detach()
        places = places.to(down.device)
        stored = down if self.experts.is_transposed else down.transpose(1, 2)
        of_experts = places[places >= self.plain] - self.plain
        rows = down.new_empty(len(places), stored.shape[2])
        rows[places >= self.plain] = stored[of_experts // max(self.each, 1), of_experts % max(self.each, 1)]
        if self.shared is not None:
            rows[places < self.plain] = self.shared.down_proj.weight.detach().T[places[places < self.plain]]
        return rows

    def reads(self, role: str) -> tuple[Float[Tensor, "neurons d_model"], Float[Tensor, " neurons"]]:
        """What neurons' gates (`w_in`) or up projections (`w_up`) read, and their biases."""
        half = ("w_in", "w_up").index(role)
        weight = self.experts.gate_up_proj.detach()
        weight = weight.transpose(1, 2) if not self.experts.is_transposed else weight
        rows = self._halves(weight)[half].transpose(1, 2).flatten(0, 1)
        bias = rows.new_zeros(len(rows))
        if self.experts.has_bias:
            bias = self._halves(self.experts.gate_up_proj_bias.detach())[half].flatten()
        if self.shared is not None:
            linear = (self.shared.gate_proj, self.shared.up_proj)[half]
            rows = torch.cat([linear.weight.detach(), rows])
            bias = torch.cat([bias.new_zeros(self.plain), bias])
        return rows, bias

    def written(
        self, activation: Float[Tensor, "tokens width"], routing: Sequence[Tensor]
    ) -> Float[Tensor, "tokens d_model"]:
        """What the MLP adds, in float64: activation · W_out, and each routed expert's bias times its weight."""
        added = activation.double() @ self.w_out().double()
        if self.experts.has_bias:
            _, experts, weights = routing
            biases = self.experts.down_proj_bias.detach().double()
            added = added + (weights.double()[..., None] * biases[experts]).sum(1)
        return added

    def silenced(self, run: Callable[[], Any]) -> tuple[Any, Any, Tensor, Tensor]:
        """What `run` gives as it is and with this MLP silenced; the activation, and what it should have added.

        The whole MLP is silenced: a part of it that the table does not know, such as a shared expert, is missed then.
        """
        seen: dict[str, Any] = {}
        handles = [
            self.tap(lambda activation: seen.update(activation=activation)),
            self.experts.register_forward_pre_hook(lambda _m, args: seen.update(routing=args)),
        ]
        with hooked(handles):
            after = run()
            if "activation" not in seen:
                raise ArchitectureError(
                    f"{self.row.name}: what its row calls experts is no part of what it calls the MLP",
                    given=self.row.experts,
                    wanted="the path of the MLP whose experts these are",
                    fix="mend the row in architectures.py",
                )
            activation = seen["activation"].flatten(0, -2)
            expected = self.written(activation, seen["routing"])
            handles.append(self.module.register_forward_hook(lambda _m, _args, output: _zeros(output)))
            return after, run(), activation, expected


def _zeros(output: Any) -> Any:
    if isinstance(output, tuple):
        return torch.zeros_like(output[0]), *output[1:]
    return torch.zeros_like(output)


def sparse_of(block: nn.Module, row: Architecture) -> SparseMLP | None:
    """The experts of a block; None of a dense one."""
    if row.experts is None or module_at(block, row.experts.experts) is None:
        return None
    return SparseMLP(block, row)
