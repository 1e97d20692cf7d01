"""The one pass: every model reads every batch once, and all statistics are updated from what they hold.

A model whose neurons, residual stream and dictionaries are all studied runs once for all of them.

1. Rows spread evenly over the text fix each neuron's provisional mean; every activation is shifted by it before it is
   rounded.
2. A shard's rows go through the models in batches.  Masked positions are dropped, so that no statistic meets them;
   each layer's activations are shifted into the model's block as the forward pass produces them.
3. With a sketch, the shard's signed sums are a batch of their own.
4. At a shard's end the float32 products are folded into float64, NaN and infinity stop the study, and whoever asked
   (checkpoints, convergence, progress) is called.

The state after a shard is plain tensors: a pass restored from it goes on to the same bits.  With lanes, each lane's
shards are added up apart and the lanes merged in order: the same bits whoever does them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from universal_neurons.errors import NonFiniteActivationsError
from universal_neurons.features import Provisional, Source, blocks_of, counted_positions, inputs_of, spread_rows
from universal_neurons.passes.prefetch import ahead
from universal_neurons.statistics import BY_POSITION, BY_ROW, Accumulator, Batch, Block, Key, Recipe, ShardSketch, Signs
from universal_neurons.text import Rows, Shard


@runtime_checkable
class Annotations(Protocol):
    """A source that needs no model: what is known of the tokens themselves (labels)."""

    def batch(self, rows: np.ndarray, keep: np.ndarray) -> tuple[dict[Key, Block], dict[Key, Tensor]]:
        """Blocks and indices of the positions `keep` of the flattened rows."""
        ...


class Pass:
    """A pass under way: its sources, its statistics (made by recipes) and the number of the next shard.

    `signs` adds a sketch: blocks of signed sums.  `lanes` are the numbers of shards at which lanes end; then `total`
    holds the lanes that are done.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        recipes: Sequence[Recipe],
        annotations: Sequence[Annotations] = (),
        *,
        signs: Signs | None = None,
        lanes: Sequence[int] = (),
    ) -> None:
        self.sources = {source.name: source for source in sources}
        self.device = next(iter(self.sources.values())).device
        self.recipes = list(recipes)
        self.accumulators = self.fresh()
        self.total: list[Accumulator] | None = None
        self.annotations = list(annotations)
        self.signs = signs
        self.lanes = list(lanes)
        self.next_shard = 0

    @property
    def by_network(self) -> list[list[Source]]:
        """The sources that a model runs for, of every model."""
        together: dict[int, list[Source]] = {}
        for source in self.sources.values():
            together.setdefault(id(source.network), []).append(source)
        return list(together.values())

    def fresh(self) -> list[Accumulator]:
        """Its statistics of no tokens yet."""
        return [recipe(device=self.device) for recipe in self.recipes]

    def run(
        self,
        tokens: Rows,
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
        self.settle_means(tokens, shards)
        for shard in self.read(tokens, shards[self.next_shard :], batch_tokens=batch_tokens, after_batch=after_batch):
            if self.next_shard in self.lanes:
                self.close_lane()
            after_shard(shard)

    def read(
        self,
        tokens: Rows,
        shards: Sequence[Shard],
        *,
        batch_tokens: int,
        after_batch: Callable[[int], None] = lambda counted: None,
    ) -> Iterator[Shard]:
        """Add the next shards to the statistics, one after the other; each is yielded when it is folded."""
        for (shard, positions), batch in ahead(self._steps(tokens, shards, batch_tokens), self.device):
            if batch is not None:
                for accumulator in self.accumulators:
                    if accumulator.wants(batch):
                        accumulator.update(batch)
                after_batch(positions)
                continue
            self._fold(shard)
            self.next_shard += 1
            yield shard

    def _steps(
        self, tokens: Rows, shards: Sequence[Shard], batch_tokens: int
    ) -> Iterator[tuple[tuple[Shard, int], Batch | None]]:
        """Every shard's batches, then None where it ends."""
        for shard in shards:
            for positions, batch in self.batches(tokens, shard, batch_tokens):
                yield (shard, positions), batch
            yield (shard, 0), None

    def close_lane(self) -> None:
        """Merge a finished lane into the total and start the next."""
        if self.total is None:
            self.total = self.accumulators
        else:
            for whole, lane in zip(self.total, self.accumulators):
                whole.merge(lane)
        self.accumulators = self.total if self.next_shard == self.lanes[-1] else self.fresh()

    def take_over(self, lane: dict[str, Tensor], end: int) -> None:
        """Take over the state of the lane that ends with a shard, and close it."""
        restore(self.accumulators, lane, "")
        self.next_shard = end
        if self.lanes:
            self.close_lane()

    def settle_means(self, tokens: Rows, shards: Sequence[Shard]) -> None:
        """Settle the provisional means on rows that are spread evenly over the shards, unless they are settled."""
        if any(source.provisional is None for source in self.sources.values()):
            self._settle_means(tokens, np.concatenate([shard.rows for shard in shards]))

    def _settle_means(self, tokens: Rows, rows: np.ndarray) -> None:
        """Settle the provisional means on rows that are spread evenly over all."""
        spread, positions = spread_rows(tokens, rows)
        inputs = inputs_of(tokens, self.sources, spread, positions)
        for name, source in self.sources.items() if len(positions) else ():
            source.settle(source.provisional_of(*inputs[name]))

    def batches(self, tokens: Rows, shard: Shard, batch_tokens: int) -> Iterable[tuple[int, Batch]]:
        """A shard's batches with the positions each one read; every model runs once on each.

        With a sketch the last one holds the shard's signed sums, and read none.
        """
        ready = [source.ready(shard) for source in self.sources.values()]
        at_hand = {key: block for blocks in ready if blocks is not None for key, block in blocks.items()}
        if at_hand:
            yield len(shard.rows) * tokens.context, Batch(at_hand, shard.group, shard.index)
            return
        per_batch = max(1, batch_tokens // tokens.context)
        sketch = None
        if self.signs is not None:
            sums = {name: source.signed_sums() for name, source in self.sources.items()}
            sketch = ShardSketch(self.signs, sums, shard.index, len(shard.rows) * tokens.context)
        for start in range(0, len(shard.rows), per_batch):
            rows = shard.rows[start : start + per_batch]
            flat = counted_positions(tokens, rows)
            if not len(flat):
                continue
            blocks: dict[Key, Block] = {}
            inputs = inputs_of(tokens, self.sources, rows, flat)
            for together in self.by_network:
                blocks |= blocks_of(together, inputs[together[0].name])
            if sketch is not None:
                sketch.add(blocks, start * tokens.context + flat)
            index = {
                BY_ROW: torch.from_numpy(rows[flat // tokens.context].astype(np.int64)),
                BY_POSITION: torch.from_numpy(flat % tokens.context),
            }
            for annotation in self.annotations:
                of_labels, sorted_by = annotation.batch(rows, flat)
                blocks |= of_labels
                index |= sorted_by
            index = {name: numbers.to(self.device) for name, numbers in index.items()}
            yield len(rows) * tokens.context, Batch(blocks, shard.group, shard.index, index)
        if sketch is not None:
            precision = {name: (source.basis, source.rounding) for name, source in self.sources.items()}
            yield 0, Batch(sketch.blocks(precision), shard.group, shard.index)

    def _fold(self, shard: Shard) -> None:
        for accumulator in self.accumulators:
            if accumulator.group not in (None, shard.group):
                continue
            accumulator.fold()
            bad = accumulator.non_finite()
            if bad is not None:
                layer = self.sources[bad[0]].units.layer_of(bad[1])
                raise NonFiniteActivationsError(
                    f"model {bad[0]}, layer {layer}, shard {shard.index}: NaN or infinite activations",
                    wanted="finite activations",
                    fix="run its forward passes in float32 (--dtype float32), or leave the model out",
                )

    def state(self) -> dict[str, Tensor]:
        """All statistics as plain tensors (its sources' provisional means: `provisional_state`)."""
        tensors = state_of(self.accumulators, "")
        if self.total is not None and self.total is not self.accumulators:
            tensors |= state_of(self.total, "total/")
        return tensors

    def restore(self, state: dict[str, Tensor], next_shard: int) -> None:
        """Take over a state written by `state`."""
        restore(self.accumulators, state, "")
        if any(key.startswith("total/") for key in state):
            self.total = self.fresh()
            restore(self.total, state, "total/")
        elif self.lanes and next_shard == self.lanes[-1]:
            self.total = self.accumulators
        self.next_shard = next_shard


def provisional_state(sources: Iterable[Source]) -> dict[str, Tensor]:
    """The provisional means of sources that have settled them, as plain tensors."""
    settled = [(s.name, s.provisional) for s in sources if s.provisional is not None]
    return {f"provisional/{name}/{part}": t for name, known in settled for part, t in vars(known).items()}


def settle_from(state: dict[str, Tensor], sources: Iterable[Source]) -> None:
    """Let sources shift by the provisional means in a state, where it has them."""
    for source in sources:
        parts = under(state, f"provisional/{source.name}/")
        if parts:
            source.settle(Provisional(**parts))


def state_of(accumulators: Iterable[Accumulator], prefix: str) -> dict[str, Tensor]:
    """Statistics as plain tensors, whose keys begin so."""
    return {f"{prefix}{a.key}/{name}": tensor for a in accumulators for name, tensor in a.state().items()}


def restore(accumulators: Iterable[Accumulator], state: dict[str, Tensor], prefix: str) -> None:
    """Give statistics what `state_of` wrote."""
    for accumulator in accumulators:
        accumulator.restore(under(state, f"{prefix}{accumulator.key}/"))


def under(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The part of a state whose keys begin so, without that."""
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}


def sample(source: Source, tokens: Rows, shards: Sequence[Shard]) -> dict[Key, Block]:
    """A source's blocks of the rows that provisional means are settled by."""
    rows, positions = spread_rows(tokens, np.concatenate([shard.rows for shard in shards]))
    return blocks_of([source], inputs_of(tokens, [source.name], rows, positions)[source.name])
