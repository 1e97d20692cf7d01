"""The one pass: every model reads every batch once, and all statistics are updated from what they hold.

1. The first batch fixes each neuron's provisional mean; every activation is shifted by it before it is rounded.
2. A shard's rows go through the models in batches.  Masked positions are dropped, so that no statistic meets them;
   each layer's activations are shifted into the model's block as the forward pass produces them.
3. At a shard's end the float32 products are folded into float64, NaN and infinity stop the study, and whoever asked
   (checkpoints, convergence, progress) is called.

The state after a shard is plain tensors: a pass restored from it goes on to the same bits.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.accumulators import (
    Accumulator,
    Batch,
    Block,
    CoMoments,
    Extremes,
    LayerMoments,
    ShuffledCoMoments,
)
from universal_neurons.errors import NonFiniteActivationsError
from universal_neurons.models import Model
from universal_neurons.tokens import Shard, TokenDataset


class NeuronSource:
    """A model as a source of feature blocks: the activations of all its neurons at the counted positions."""

    def __init__(self, model: Model, gemm_dtype: torch.dtype = torch.float32) -> None:
        self.model = model
        self.rounding = gemm_dtype
        native = model.device.type == "cuda"
        self.storage = gemm_dtype if native else torch.float32
        self.shift: Float[Tensor, " neurons"] | None = None
        self._basis = ""
        self.buffer = torch.empty(0, model.n_neurons, dtype=self.storage, device=model.device)

    def block(
        self,
        ids: Int[Tensor, "rows context"],
        attention: Int[Tensor, "rows context"] | None,
        keep: Int[Tensor, " tokens"],
    ) -> Block:
        """The block of one batch: positions `keep` of the flattened rows.  It is valid until the next call."""
        if self.shift is None:
            self.fix_shift(self._provisional_mean(ids, attention, keep))
            assert self.shift is not None
        if len(self.buffer) < len(keep):
            self.buffer = self.buffer.new_empty(len(keep), self.buffer.shape[1])
        values = self.buffer[: len(keep)]
        width, shift = self.model.d_mlp, self.shift

        def take(layer: int, activation: Tensor) -> None:
            columns = slice(layer * width, (layer + 1) * width)
            kept = activation.index_select(0, keep)
            if self.rounding == torch.float32:
                torch.sub(kept, shift[columns], out=values[:, columns])
            else:
                values[:, columns] = (kept.float() - shift[columns]).to(self.rounding)

        with self.model.capturing(take):
            self.model.forward(ids, attention)
        return Block(values, self._basis)

    def fix_shift(self, shift: Float[Tensor, " neurons"]) -> None:
        """Shift by this provisional mean from now on."""
        self.shift = shift.to(self.model.device)
        self._basis = hashlib.sha256(shift.cpu().numpy().tobytes()).hexdigest()

    def _provisional_mean(
        self, ids: Int[Tensor, "rows context"], attention: Tensor | None, keep: Int[Tensor, " tokens"]
    ) -> Float[Tensor, " neurons"]:
        means: dict[int, Tensor] = {}

        def take(layer: int, activation: Tensor) -> None:
            kept = activation.index_select(0, keep).float()
            means[layer] = kept.mean(0).clamp(kept.amin(0), kept.amax(0))

        with self.model.capturing(take):
            self.model.forward(ids, attention)
        return torch.cat([means[layer] for layer in range(self.model.n_layers)])


class Pass:
    """A pass under way: its sources, its statistics and the number of the next shard."""

    def __init__(self, sources: Sequence[NeuronSource], accumulators: Sequence[Accumulator]) -> None:
        self.sources = {source.model.name: source for source in sources}
        self.accumulators = list(accumulators)
        self.next_shard = 0

    def run(
        self,
        tokens: TokenDataset,
        shards: Sequence[Shard],
        *,
        batch_tokens: int,
        after_batch: Callable[[int], None] = lambda counted: None,
        after_shard: Callable[[Shard], None] = lambda shard: None,
    ) -> None:
        """Go on to the end of the shards.

        `after_batch` is told how many positions a batch had, `after_shard` which shard was folded.  Raises
        `NonFiniteActivationsError` naming model, layer and shard.
        """
        for shard in shards[self.next_shard :]:
            for positions, batch in self.batches(tokens, shard, batch_tokens):
                for accumulator in self.accumulators:
                    if accumulator.group == shard.group:
                        accumulator.update(batch)
                after_batch(positions)
            self._fold(shard)
            self.next_shard = shard.index + 1
            after_shard(shard)

    def batches(self, tokens: TokenDataset, shard: Shard, batch_tokens: int) -> Iterable[tuple[int, Batch]]:
        """A shard's batches with the positions each one read; every model runs once on each."""
        per_batch = max(1, batch_tokens // tokens.context)
        for start in range(0, len(shard.rows), per_batch):
            rows = shard.rows[start : start + per_batch]
            ids, attention, keep = _inputs(tokens, rows)
            if not len(keep):
                continue
            blocks = {}
            for name, source in self.sources.items():
                device = source.model.device
                mask = None if source.model.architecture.causal else attention.to(device)
                blocks[name] = source.block(ids.to(device), mask, keep.to(device))
            yield len(rows) * tokens.context, Batch(blocks, shard.group, shard.index)

    def _fold(self, shard: Shard) -> None:
        for accumulator in self.accumulators:
            if accumulator.group != shard.group:
                continue
            accumulator.fold()
            bad = accumulator.non_finite()
            if bad is not None:
                layer = bad[1] // self.sources[bad[0]].model.d_mlp
                raise NonFiniteActivationsError(
                    f"model {bad[0]}, layer {layer}, shard {shard.index}: NaN or infinite activations",
                    wanted="finite activations",
                    fix="run its forward passes in float32 (--dtype float32), or leave the model out",
                )

    def state(self) -> dict[str, Tensor]:
        """All statistics and provisional means as plain tensors."""
        tensors = {f"{a.key}/{name}": tensor for a in self.accumulators for name, tensor in a.state().items()}
        shifts = {f"shift/{name}": source.shift for name, source in self.sources.items()}
        return tensors | {name: shift for name, shift in shifts.items() if shift is not None}

    def restore(self, state: dict[str, Tensor], next_shard: int) -> None:
        """Take over a state written by `state`."""
        for accumulator in self.accumulators:
            prefix = accumulator.key + "/"
            accumulator.restore({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        for name, source in self.sources.items():
            if f"shift/{name}" in state:
                source.fix_shift(state[f"shift/{name}"])
        self.next_shard = next_shard


def _inputs(tokens: TokenDataset, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask (1 where not padding) and flat indices of the counted positions."""
    ids = torch.from_numpy(tokens.ids(rows))
    attention = torch.arange(tokens.context)[None] < torch.from_numpy(tokens.lengths[rows]).long()[:, None]
    keep = torch.from_numpy(np.flatnonzero(tokens.mask(rows)))
    return ids, attention.long(), keep


def model_pairs(models: Sequence[Model], pairs: str) -> list[tuple[Model, Model]]:
    """The unordered pairs whose co-moments are needed: the reference with each other model, or every two."""
    if pairs == "reference":
        return [(models[0], other) for other in models[1:]]
    return [(left, right) for i, left in enumerate(models) for right in models[i + 1 :]]


def study_accumulators(
    models: Sequence[Model], pairs: Sequence[tuple[Model, Model]], *, groups: int = 1, shuffles: int = 0, seed: int = 0
) -> list[Accumulator]:
    """The statistics a study needs, `groups` times over; `shuffles` draws of the permutation baseline."""
    accumulators: list[Accumulator] = []
    for group in range(groups):
        for model in models:
            device = model.device
            accumulators.append(LayerMoments.empty(model.name, model.n_layers, model.d_mlp, group=group, device=device))
            accumulators.append(Extremes.empty(model.name, model.n_neurons, group=group, device=device))
        for left, right in pairs:
            shape: Any = {"group": group, "n_left": left.n_neurons, "n_right": right.n_neurons, "device": left.device}
            accumulators.append(CoMoments(left.name, right.name, **shape))
            accumulators += [ShuffledCoMoments(left.name, right.name, d, seed, **shape) for d in range(shuffles)]
    return accumulators
