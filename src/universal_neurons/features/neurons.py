"""A model as a source of blocks: its units at the counted positions, shifted by provisional means and rounded.

Units are neurons, or what else of it is studied (`model_features`).  Sources of one model read a batch together: its
forward pass runs once and fills the blocks of all of them.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.features.inputs import Inputs
from universal_neurons.features.model_features import ModelFeatures
from universal_neurons.features.pooling import Places, taken
from universal_neurons.features.source import Provisional, Source
from universal_neurons.features.stream import StreamNorms
from universal_neurons.models import Model, Sink
from universal_neurons.statistics import QUANTILES, Block, Key, SignedSums, What, round_to, round_to_scales
from universal_neurons.text import Shard

BUFFERS = 3  # that a source fills in turn on a GPU: one is filled, one is full, one is read


class NeuronSource:
    """A model as a source of feature blocks: all its neurons, or other features of it, at the counted positions.

    `rounding` is the precision of the products' inputs: float32, tf32, bfloat16 or int8.  With `pre`, pre-activations
    too (raw, in a block of their own), and those at position 0; of units that have none, their values.  With
    `unrounded`, which may be set at any time, activations as they are (neither shifted nor rounded) where the others
    are rounded: see `as_they_are`.  With `streams`, which may be set at any time too, norms of the residual stream.
    """

    unrounded = streams = False

    def __init__(self, model: Model | ModelFeatures, rounding: str = "float32", *, pre: bool = False) -> None:
        self.model, self.network = model, model.network
        self.name, self.units, self.device = model.name, model.units, model.device
        self.rounding = rounding
        self.pre = pre
        native = model.device.type == "cuda" and rounding == "bfloat16"
        self.storage = torch.bfloat16 if native else torch.float32
        self.provisional: Provisional | None = None
        self.inactive = torch.empty(0)  # what an activation of 0 is once it is shifted and rounded
        self._basis = {What.ACTIVATION: "", What.PRE: ""}
        turns = BUFFERS if model.device.type == "cuda" else 1
        self.buffers = [torch.empty(0, model.n_neurons, dtype=self.storage, device=model.device)] * turns
        self.unrounded_buffers = [torch.empty(0, model.n_neurons, dtype=model.unit_dtype, device=model.device)] * turns
        self.pre_buffers = [torch.empty(0, model.n_neurons, device=model.device)] * turns
        self.sums = SignedSums(model.n_neurons, model.device, self.storage)

    def blocks(
        self,
        ids: Int[Tensor, "rows context"],
        attention: Int[Tensor, "rows context"],
        keep: Places,
    ) -> dict[Key, Block]:
        """The blocks of one batch: positions `keep` of the flattened rows, or what they are pooled from.

        They are valid until the next call, on a GPU for `BUFFERS` calls.
        """
        return blocks_of([self], Inputs(ids, attention, keep))

    @contextmanager
    def reading(self, inputs: Inputs) -> Iterator[dict[Key, Block]]:
        """While open, a forward pass of the model on these inputs fills the blocks: they are whole when it is closed.

        They are valid until the next time, on a GPU for `BUFFERS` times.
        """
        known, name, keep, shape = self.provisional, self.name, inputs.places.to(self.device), inputs.ids.shape
        assert known is not None, "no provisional means yet"
        values = _next_of(self.buffers, len(keep))
        scale = values.new_empty(values.shape[1]) if self.rounding == "int8" else None
        of_units = known.mean, known.bounds, self.rounding
        block = Block(values, self._basis[What.ACTIVATION], *of_units, inactive=self.inactive, scale=scale)
        blocks = {Key(name): block}
        as_is = None
        if self.as_they_are != Key(name):
            as_is = _next_of(self.unrounded_buffers, len(keep))
            nothing, bounds = torch.zeros_like(known.mean), known.bounds + known.mean
            blocks[self.as_they_are] = Block(as_is, self._basis[What.ACTIVATION], nothing, bounds)
        take = partial(self._take, known, keep, block, as_is)
        norms = StreamNorms(keep, tuple(shape)) if self.streams else None
        with ExitStack() as hooks:
            takers = [take]
            if self.pre:
                raw = _next_of(self.pre_buffers, len(keep))
                first = raw.new_empty(shape[0], raw.shape[1])
                blocks[Key(name, What.PRE)] = Block(raw, self._basis[What.PRE], mean=known.pre_mean)
                blocks[Key(name, What.FIRST)] = Block(first)
                takers.append(partial(self._take_pre, keep, raw, first, shape[1]))
            hooks.enter_context(self._taking(*takers))
            if norms is not None:
                hooks.enter_context(self.network.after_blocks(norms.take))
            yield blocks
        if norms is not None:
            blocks[Key(name, What.STREAM)] = Block(norms.of_positions())

    @contextmanager
    def _taking(self, take: Sink, take_pre: Sink | None = None) -> Iterator[None]:
        """While open, a forward pass hands activations to one, and pre-activations (else activations) to the other."""
        with ExitStack() as hooks:
            if isinstance(self.model, Model):
                hooks.enter_context(self.model.capturing(take))
                if take_pre is not None:
                    hooks.enter_context(self.model.capturing(take_pre, pre_activations=True))
            else:
                hooks.enter_context(self.model.capturing(*[each for each in (take, take_pre) if each is not None]))
            yield

    def _take(
        self, known: Provisional, keep: Places, block: Block, as_is: Tensor | None, layer: int, activation: Tensor
    ) -> None:
        """Write a layer's activations at the counted positions into its columns of `block`, shifted and rounded, and
        as they are into those of `as_is`."""
        columns = self.units.columns(layer)
        kept = taken(activation, keep)
        if as_is is not None:
            as_is[:, columns] = kept
        if self.rounding == "float32" or self.storage == torch.bfloat16:  # in one kernel, rounded as it is written
            torch.sub(kept, known.mean[columns], out=block.values[:, columns])
            return
        shifted = kept.float() - known.mean[columns]
        if block.scale is not None:
            block.scale[columns] = round_to_scales(shifted)
        block.values[:, columns] = round_to(shifted, self.rounding)

    def _take_pre(self, keep: Places, raw: Tensor, first: Tensor, context: int, layer: int, pre: Tensor) -> None:
        """Write a layer's pre-activations at the counted positions into `raw`, those at position 0 into `first`."""
        columns = self.units.columns(layer)
        raw[:, columns] = taken(pre, keep)
        first[:, columns] = pre[::context]

    @property
    def as_they_are(self) -> Key:
        """Its block of activations that are exact: they and the block's mean make the model's own."""
        return Key(self.name, What.UNROUNDED if self.unrounded and self.rounding != "float32" else What.ACTIVATION)

    def signed_sums(self) -> SignedSums:
        """What collects the signed sums of a shard."""
        return self.sums

    def ready(self, shard: Shard) -> dict[Key, Block] | None:
        """A shard's blocks where they are at hand without the model's forward pass."""
        return None

    @property
    def basis(self) -> str:
        """Tells its provisional means from others."""
        return self._basis[What.ACTIVATION]

    def settle(self, provisional: Provisional) -> None:
        """Shift by these provisional means from now on."""
        self.provisional = provisional.to(self.model.device)
        self.inactive = round_to(0 - self.provisional.mean, self.rounding).to(self.storage)
        for block, mean in ((What.ACTIVATION, provisional.mean), (What.PRE, provisional.pre_mean)):
            self._basis[block] = basis_of(mean)

    def provisional_of(
        self, ids: Int[Tensor, "rows context"], attention: Int[Tensor, "rows context"], keep: Places
    ) -> Provisional:
        """Provisional means and quantiles from some rows."""
        keep = keep.to(self.device)
        layers = self.model.n_layers
        means, pre_means, bounds = ([torch.empty(0)] * layers for _ in range(3))
        ranks = [min(int(q * len(keep)), len(keep) - 1) for q in QUANTILES]

        def take(layer: int, activation: Tensor) -> None:
            kept = taken(activation, keep).float()
            means[layer] = kept.mean(0).clamp(kept.amin(0), kept.amax(0))
            if self.pre:
                bounds[layer] = _ranked(kept, ranks) - means[layer]

        def take_pre(layer: int, pre: Tensor) -> None:
            pre_means[layer] = taken(pre, keep).float().mean(0)

        with self._taking(take, take_pre):
            _run(self.network, ids, attention)
        nothing = torch.zeros(len(QUANTILES), self.model.n_neurons, device=self.model.device)
        return Provisional(torch.cat(means), torch.cat(pre_means), torch.cat(bounds, 1) if self.pre else nothing)


def blocks_of(sources: Sequence[Source], inputs: Inputs) -> dict[Key, Block]:
    """The blocks of sources of one model that read the same: its forward pass runs once."""
    network = sources[0].network
    assert network is not None
    assert all(source.network is network for source in sources)
    with ExitStack() as opened:
        blocks = [opened.enter_context(source.reading(inputs)) for source in sources]
        _run(network, inputs.ids, inputs.attention)
    return {key: block for of_source in blocks for key, block in of_source.items()}


def _run(network: Model, ids: Tensor, attention: Tensor) -> None:
    """A forward pass where the model is; only encoders need the attention."""
    attends = None if network.architecture.causal else attention.to(network.device)
    network.forward(ids.to(network.device), attends)


def _next_of(buffers: list[Tensor], rows: int) -> Tensor:
    """Rows of the buffer whose turn it is, which is made larger where it is too small."""
    buffer = buffers.pop(0)
    if len(buffer) < rows:
        buffer = buffer.new_empty(rows, buffer.shape[1])
    buffers.append(buffer)
    return buffer[:rows]


def _ranked(values: Float[Tensor, "tokens neurons"], ranks: list[int]) -> Float[Tensor, "ranks neurons"]:
    """The values of some ranks in each column (on a CPU NumPy's sort is the fast one)."""
    if values.is_cuda:
        return values.sort(0).values[ranks]
    return torch.from_numpy(np.sort(values.T.contiguous().numpy(), axis=1)[:, ranks].T.copy())


def basis_of(mean: Float[Tensor, " neurons"]) -> str:
    """What tells a block that is shifted by these means from others."""
    return hashlib.sha256(mean.cpu().numpy().tobytes()).hexdigest()
