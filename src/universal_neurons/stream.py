"""The one pass: every model reads every batch once, and all statistics are updated from what they hold.

1. Rows spread evenly over the text fix each neuron's provisional mean; every activation is shifted by it before it is
   rounded.
2. A shard's rows go through the models in batches.  Masked positions are dropped, so that no statistic meets them;
   each layer's activations are shifted into the model's block as the forward pass produces them.
3. At a shard's end the float32 products are folded into float64, NaN and infinity stop the study, and whoever asked
   (checkpoints, convergence, progress) is called.

The state after a shard is plain tensors: a pass restored from it goes on to the same bits.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.accumulators import (
    BOS,
    PRE,
    Accumulator,
    Batch,
    Block,
    CoMoments,
    Extremes,
    LayerMoments,
    ShuffledCoMoments,
)
from universal_neurons.errors import NonFiniteActivationsError
from universal_neurons.examples import QUANTILES
from universal_neurons.models import Model
from universal_neurons.tokens import Shard, TokenDataset

LOOK_POSITIONS = 4096


@runtime_checkable
class Annotations(Protocol):
    """A source that needs no model: what is known of the tokens themselves (labels)."""

    def batch(self, rows: np.ndarray, keep: np.ndarray) -> tuple[dict[str, Block], dict[str, Tensor]]:
        """Blocks and indices of the positions `keep` of the flattened rows."""
        ...


@dataclass
class Provisional:
    """What a first look at evenly spread rows says of a model's neurons: means, and quantiles of the shifted values."""

    mean: Float[Tensor, " neurons"]
    pre_mean: Float[Tensor, " neurons"]
    bounds: Float[Tensor, "quantiles neurons"]

    def to(self, device: torch.device) -> "Provisional":
        """The same on a device."""
        return Provisional(self.mean.to(device), self.pre_mean.to(device), self.bounds.to(device))


class NeuronSource:
    """A model as a source of feature blocks: all its neurons at the counted positions.

    With `pre`, their pre-activations too (raw, in a block of their own), and those at position 0.
    """

    def __init__(self, model: Model, gemm_dtype: torch.dtype = torch.float32, *, pre: bool = False) -> None:
        self.model = model
        self.rounding = gemm_dtype
        self.pre = pre
        native = model.device.type == "cuda"
        self.storage = gemm_dtype if native else torch.float32
        self.provisional: Provisional | None = None
        self._basis = {"": "", PRE: ""}
        self.buffer = torch.empty(0, model.n_neurons, dtype=self.storage, device=model.device)
        self.pre_buffer = torch.empty(0, model.n_neurons, device=model.device)

    def blocks(
        self,
        ids: Int[Tensor, "rows context"],
        attention: Int[Tensor, "rows context"] | None,
        keep: Int[Tensor, " tokens"],
    ) -> dict[str, Block]:
        """The blocks of one batch: positions `keep` of the flattened rows.  They are valid until the next call."""
        known, name = self.provisional, self.model.name
        assert known is not None, "look at some rows first"
        if len(self.buffer) < len(keep):
            self.buffer = self.buffer.new_empty(len(keep), self.buffer.shape[1])
        values = self.buffer[: len(keep)]
        width = self.model.d_mlp

        def take(layer: int, activation: Tensor) -> None:
            columns = slice(layer * width, (layer + 1) * width)
            kept = activation.index_select(0, keep)
            if self.rounding == torch.float32:
                torch.sub(kept, known.mean[columns], out=values[:, columns])
            else:
                values[:, columns] = (kept.float() - known.mean[columns]).to(self.rounding)

        blocks = {name: Block(values, self._basis[""], known.mean, known.bounds)}
        if not self.pre:
            with self.model.capturing(take):
                self.model.forward(ids, attention)
            return blocks
        if len(self.pre_buffer) < len(keep):
            self.pre_buffer = self.pre_buffer.new_empty(len(keep), self.pre_buffer.shape[1])
        raw = self.pre_buffer[: len(keep)]
        first = raw.new_empty(len(ids), raw.shape[1])

        def take_pre(layer: int, pre: Tensor) -> None:
            columns = slice(layer * width, (layer + 1) * width)
            raw[:, columns] = pre.index_select(0, keep)
            first[:, columns] = pre[:: ids.shape[1]]

        with self.model.capturing(take), self.model.capturing(take_pre, pre_activations=True):
            self.model.forward(ids, attention)
        blocks[name + PRE] = Block(raw, self._basis[PRE], known.pre_mean)
        blocks[name + BOS] = Block(first)
        return blocks

    def settle(self, provisional: Provisional) -> None:
        """Shift by these provisional means from now on."""
        self.provisional = provisional.to(self.model.device)
        for block, mean in (("", provisional.mean), (PRE, provisional.pre_mean)):
            self._basis[block] = hashlib.sha256(mean.cpu().numpy().tobytes()).hexdigest()

    def look(
        self, ids: Int[Tensor, "rows context"], attention: Tensor | None, keep: Int[Tensor, " tokens"]
    ) -> Provisional:
        """Provisional means and quantiles from some rows."""
        layers = self.model.n_layers
        means, pre_means, bounds = ([torch.empty(0)] * layers for _ in range(3))
        ranks = [min(int(q * len(keep)), len(keep) - 1) for q in QUANTILES]

        def take(layer: int, activation: Tensor) -> None:
            kept = activation.index_select(0, keep).float()
            means[layer] = kept.mean(0).clamp(kept.amin(0), kept.amax(0))
            if self.pre:
                bounds[layer] = _ranked(kept, ranks) - means[layer]

        def take_pre(layer: int, pre: Tensor) -> None:
            pre_means[layer] = pre.index_select(0, keep).float().mean(0)

        with self.model.capturing(take), self.model.capturing(take_pre, pre_activations=True):
            self.model.forward(ids, attention)
        nothing = torch.zeros(len(QUANTILES), self.model.n_neurons, device=self.model.device)
        return Provisional(torch.cat(means), torch.cat(pre_means), torch.cat(bounds, 1) if self.pre else nothing)


def _ranked(values: Float[Tensor, "tokens neurons"], ranks: list[int]) -> Float[Tensor, "ranks neurons"]:
    """The values of some ranks in each column (on a CPU NumPy's sort is the fast one)."""
    if values.is_cuda:
        return values.sort(0).values[ranks]
    return torch.from_numpy(np.sort(values.T.contiguous().numpy(), axis=1)[:, ranks].T.copy())


class Pass:
    """A pass under way: its sources, its statistics and the number of the next shard."""

    def __init__(
        self,
        sources: Sequence[NeuronSource],
        accumulators: Sequence[Accumulator],
        annotations: Sequence[Annotations] = (),
    ) -> None:
        self.sources = {source.model.name: source for source in sources}
        self.accumulators = list(accumulators)
        self.annotations = list(annotations)
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
        if any(source.provisional is None for source in self.sources.values()):
            self._look(tokens, np.concatenate([shard.rows for shard in shards]))
        for shard in shards[self.next_shard :]:
            for positions, batch in self.batches(tokens, shard, batch_tokens):
                for accumulator in self.accumulators:
                    if accumulator.group in (None, shard.group):
                        accumulator.update(batch)
                after_batch(positions)
            self._fold(shard)
            self.next_shard = shard.index + 1
            after_shard(shard)

    def _look(self, tokens: TokenDataset, rows: np.ndarray) -> None:
        """Settle the provisional means on rows that are spread evenly over all."""
        most = max(1, LOOK_POSITIONS // tokens.context)
        spread = rows[np.unique(np.linspace(0, len(rows) - 1, most).astype(int))]
        ids, attention, keep = _inputs(tokens, spread)
        if not len(keep):  # next to nothing is counted: look at all there is
            ids, attention, keep = _inputs(tokens, rows)
        for source in self.sources.values() if len(keep) else ():
            source.settle(source.look(*_on(source.model, ids, attention, keep)))

    def batches(self, tokens: TokenDataset, shard: Shard, batch_tokens: int) -> Iterable[tuple[int, Batch]]:
        """A shard's batches with the positions each one read; every model runs once on each."""
        per_batch = max(1, batch_tokens // tokens.context)
        for start in range(0, len(shard.rows), per_batch):
            rows = shard.rows[start : start + per_batch]
            ids, attention, keep = _inputs(tokens, rows)
            if not len(keep):
                continue
            blocks: dict[str, Block] = {}
            for source in self.sources.values():
                blocks |= source.blocks(*_on(source.model, ids, attention, keep))
            flat = keep.numpy()
            index = {
                "row": torch.from_numpy(rows[flat // tokens.context].astype(np.int64)),
                "position": torch.from_numpy(flat % tokens.context),
            }
            for annotation in self.annotations:
                more, sorted_by = annotation.batch(rows, flat)
                blocks |= more
                index |= sorted_by
            device = next(iter(self.sources.values())).model.device
            index = {name: numbers.to(device) for name, numbers in index.items()}
            yield len(rows) * tokens.context, Batch(blocks, shard.group, shard.index, index)

    def _fold(self, shard: Shard) -> None:
        for accumulator in self.accumulators:
            if accumulator.group not in (None, shard.group):
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
        for name, source in self.sources.items():
            if source.provisional is not None:
                tensors |= {f"provisional/{name}/{part}": t for part, t in vars(source.provisional).items()}
        return tensors

    def restore(self, state: dict[str, Tensor], next_shard: int) -> None:
        """Take over a state written by `state`."""
        for accumulator in self.accumulators:
            prefix = accumulator.key + "/"
            accumulator.restore({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        for name, source in self.sources.items():
            prefix = f"provisional/{name}/"
            parts = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if parts:
                source.settle(Provisional(**parts))
        self.next_shard = next_shard


def _inputs(tokens: TokenDataset, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask (1 where not padding) and flat indices of the counted positions."""
    ids = torch.from_numpy(tokens.ids(rows))
    attention = torch.arange(tokens.context)[None] < torch.from_numpy(tokens.lengths[rows]).long()[:, None]
    keep = torch.from_numpy(np.flatnonzero(tokens.mask(rows)))
    return ids, attention.long(), keep


def _on(model: Model, ids: Tensor, attention: Tensor, keep: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """The inputs where the model is; only encoders need the attention mask."""
    mask = None if model.architecture.causal else attention.to(model.device)
    return ids.to(model.device), mask, keep.to(model.device)


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
