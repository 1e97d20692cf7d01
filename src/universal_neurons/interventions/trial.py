"""What changes when neurons are changed: one clean run of some rows, from which every intervention goes on.

A change Δ of a neuron's activation adds Δ · w_out to the residual stream after its block (which `models.verify` has
checked), or where a norm follows the MLP, what that norm makes of it; only the blocks after it run again, on as many
changed copies of the rows at once as memory allows, or a CPU's cache.  After the last block nothing runs again:
`readout` knows the rest.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from universal_neurons.interventions.edits import Edit, repeated
from universal_neurons.interventions.final_norm import final_residual
from universal_neurons.interventions.readout import Clean, Metrics, Readout, first_alike
from universal_neurons.models import Model, Norm, hooked
from universal_neurons.text import TokenDataset

LOGITS_AT_ONCE = 1 << 26  # of a clean run on a CPU
LOGITS_ON_GPU = 1 << 28
COPIES = 16  # changed runs of the same rows together, at most
CACHED = 1 << 11  # positions that each thread of a CPU runs blocks on together: more of them leave its cache


class Trial:
    """Some rows of text, run once by a model whose blocks from `first` on may run again.

    `counted` are the flattened positions whose own and next token are counted, `following` the next token of every
    position; `kept`, of rows `row_of`, are those counted ones that metrics speak of: where `places` is true, else all.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: Model,
        readout: Readout,
        tokens: TokenDataset,
        rows: np.ndarray,
        first: int = 0,
        places: Bool[np.ndarray, "rows context"] | None = None,
    ) -> None:
        self.model = model
        self.readout = readout
        self.rows = rows
        ids = self.ids = torch.from_numpy(tokens.ids(rows)).to(model.device)
        both = counted_pairs(tokens, rows)
        read = both if places is None else both & places
        self.counted, self.kept = (torch.from_numpy(np.flatnonzero(where)).to(model.device) for where in (both, read))
        self.row_of = torch.from_numpy(rows[np.nonzero(read)[0]])
        self.following = ids.roll(-1, 1).reshape(-1)
        self.shape = ids.shape
        self.activations: dict[int, Float[Tensor, "positions d_mlp"]] = {}
        self.outputs: dict[int, Float[Tensor, "positions width"]] = {}  # of MLPs that a norm follows
        self.calls: dict[int, tuple[Any, Any]] = {}

        def take(layer: int, activation: Tensor) -> None:
            if layer >= first:
                self.activations[layer] = activation.float()

        def keep_call(layer: int, _m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.calls[layer] = args, kwargs

        def keep_output(layer: int, _m: nn.Module, _args: Any, output: Tensor) -> None:
            self.outputs[layer] = output.float().flatten(0, -2)

        handles = [
            model.blocks[layer].register_forward_pre_hook(partial(keep_call, layer), with_kwargs=True)
            for layer in range(first + 1, model.n_layers)
        ]
        if model.architecture.out_norm is not None:
            handles += [
                model.part(layer, "w_out").register_forward_hook(partial(keep_output, layer))
                for layer in range(first, model.n_layers)
            ]
        with hooked(handles), model.capturing(take), final_residual(model) as seen:
            model.forward(ids)
        self.final = seen[0].reshape(-1, model.d_model)
        self.clean: Clean = readout.clean(self.final[self.kept], self.following[self.kept])

    @property
    def copies(self) -> int:
        """How many changed copies of the rows blocks run on at once."""
        if self.model.device.type != "cpu":
            return COPIES
        return min(COPIES, max(1, positions_cached() // self.ids.numel()))

    def nothing_runs_again(self, layer: int) -> bool:
        """Whether changed logits follow from the clean run's: in the last layer, where no norm follows the MLP."""
        return layer == self.model.n_layers - 1 and layer not in self.outputs

    @torch.inference_mode()
    def after(self, layer: int, added: Float[Tensor, "copies positions width"]) -> Float[Tensor, "copies kept width"]:
        """What the final norm reads at the kept positions when the residual stream after a block is added to."""
        if layer == self.model.n_layers - 1:
            return self.final[self.kept] + added[:, self.kept]
        copies = len(added)
        rows = self.shape[0]
        args, kwargs = self.calls[layer + 1]
        hidden = args[0] if args else kwargs["hidden_states"]
        hidden = hidden.repeat(copies, 1, 1) + added.to(hidden.dtype).reshape(-1, *self.shape[1:], hidden.shape[-1])
        for later in range(layer + 1, self.model.n_layers):
            args, kwargs = self.calls[later]
            args, kwargs = repeated(args[1:], rows, copies), repeated(kwargs, rows, copies)
            kwargs.pop("hidden_states", None)
            with self.model.evaluating(self.model.blocks[later]):
                output = self.model.blocks[later](hidden, *args, **kwargs)
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden.reshape(copies, -1, hidden.shape[-1])[:, self.kept]

    def written(self, layer: int, neurons: Sequence[int]) -> Float[Tensor, "neurons width"]:
        """w_out of some neurons of a layer."""
        return self.model.written(layer)[list(neurons)].float()

    def added(
        self, layer: int, change: Float[Tensor, "copies positions"], directions: Float[Tensor, "copies width"]
    ) -> Float[Tensor, "copies positions width"]:
        """What changes of activations along `written` directions add to the residual stream after a block."""
        step = change[:, :, None] * directions[:, None]
        if layer not in self.outputs:
            return step
        before = self.outputs[layer]
        norm = Norm(self.model.part(layer, "out_norm"), self.model.architecture, before)
        return norm(before + step) - norm(before)

    def changes(self, layer: int, neurons: Sequence[int], edit: Edit) -> Float[Tensor, "neurons positions"]:
        """By how much an edit changes each neuron's activation at every position."""
        before = self.activations[layer][:, list(neurons)]
        return (edit(before) - before).T

    @torch.inference_mode()
    def try_out(self, layer: int, neurons: Sequence[int], edits: Sequence[Edit], *, frozen: bool = False) -> Metrics:
        """Metrics (neurons, edits, kept positions), one neuron and edit at a time; `frozen`: direct effects.

        An edit's values, where it has several, are one per neuron.
        """
        (metrics,) = self._tried(layer, neurons, edits, (frozen,))
        return metrics

    @torch.inference_mode()
    def total_and_direct(self, layer: int, neurons: Sequence[int], edits: Sequence[Edit]) -> tuple[Metrics, Metrics]:
        """`try_out`, and the same with `frozen`, of which the blocks run once."""
        total, direct = self._tried(layer, neurons, edits, (False, True))
        return total, direct

    def _tried(
        self, layer: int, neurons: Sequence[int], edits: Sequence[Edit], frozen: tuple[bool, ...]
    ) -> list[Metrics]:
        change = torch.stack([self.changes(layer, neurons, edit) for edit in edits], 1)
        directions = self.written(layer, neurons)
        if self.nothing_runs_again(layer):
            kept = change[:, :, self.kept]
            return [self.readout.of_last_layer(directions, kept, self.clean, frozen=direct) for direct in frozen]
        alike = [first_alike(values) for values in change]
        runs = [(neuron, edit) for neuron, first in enumerate(alike) for edit in sorted(set(first))]
        places = {run: place for place, run in enumerate(runs)}
        place = torch.tensor([[places[neuron, edit] for edit in first] for neuron, first in enumerate(alike)])
        by_way: list[list[Metrics]] = [[] for _ in frozen]
        for start in range(0, len(runs), self.copies):
            whose, which = map(list, zip(*runs[start : start + self.copies]))
            residual = self.after(layer, self.added(layer, change[whose, which], directions[whose]))
            for direct, parts in zip(frozen, by_way):
                scale = self.clean.metrics.scale if direct else None
                parts.append(self.readout.of_residual(residual, self.clean, scale))
        return [
            Metrics(*(torch.cat([vars(part)[name] for part in parts])[place] for name in vars(parts[0])))
            for parts in by_way
        ]


def counted_pairs(tokens: TokenDataset, rows: np.ndarray) -> Bool[np.ndarray, "rows context"]:
    """The positions whose own and next token are counted."""
    counted = tokens.mask(rows)
    both = np.zeros_like(counted)
    both[:, :-1] = counted[:, :-1] & counted[:, 1:]
    return both


def spread_places(places: Bool[np.ndarray, "rows context"], most: int) -> Bool[np.ndarray, "rows context"]:
    """At most so many of some places, evenly spread over them."""
    flat = np.flatnonzero(places)
    if len(flat) <= most:
        return places
    taken = np.zeros_like(places)
    taken.flat[flat[np.linspace(0, len(flat) - 1, most).round().astype(int)]] = True
    return taken


def positions_cached() -> int:
    """On how many positions blocks run together on a CPU."""
    return CACHED * torch.get_num_threads()


def positions_together(device: str, context: int, vocabulary: int) -> int:
    """How many positions one clean run reads, of whole rows: as memory allows for logits, or a CPU's cache."""
    most = (LOGITS_ON_GPU if device == "cuda" else LOGITS_AT_ONCE) // vocabulary
    if device == "cpu":
        most = min(most, positions_cached())
    return context * max(1, most // context)


def trials(
    model: Model, readout: Readout, tokens: TokenDataset, rows: np.ndarray, first: int = 0, most: int | None = None
) -> Iterator[Trial]:
    """Clean runs of some rows, as many at a time as memory allows; metrics of `most` positions of all of them."""
    step = positions_together(model.device.type, tokens.context, len(readout.matrix)) // tokens.context
    places = counted_pairs(tokens, rows)
    if most is not None:
        places = spread_places(places, most)
    for start in range(0, len(rows), step):
        some = slice(start, start + step)
        if places[some].any():
            yield Trial(model, readout, tokens, rows[some], first, places[some])
