"""A model as a source of blocks: its neurons at the counted positions, shifted by provisional means and rounded."""

import hashlib
from contextlib import ExitStack
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.features.pooling import Places, taken
from universal_neurons.features.source import Provisional
from universal_neurons.features.stream import StreamNorms
from universal_neurons.models import Model
from universal_neurons.statistics import QUANTILES, Block, Key, SignedSums, What, round_to
from universal_neurons.text import Shard

BUFFERS = 3  # that a source fills in turn on a GPU: one is filled, one is full, one is read


class NeuronSource:
    """A model as a source of feature blocks: all its neurons at the counted positions.

    `rounding` is the precision of the products' inputs: float32, tf32 or bfloat16.  With `pre`, pre-activations too
    (raw, in a block of their own), and those at position 0.  With `unrounded`, which may be set at any time,
    activations as they are (neither shifted nor rounded) where the others are rounded: see `as_they_are`.  With
    `streams`, which may be set at any time too, norms of the residual stream.
    """

    unrounded = streams = False

    def __init__(self, model: Model, rounding: str = "float32", *, pre: bool = False) -> None:
        self.model = model
        self.name, self.units, self.device = model.name, model.units, model.device
        self.rounding = rounding
        self.pre = pre
        native = model.device.type == "cuda" and rounding == "bfloat16"
        self.storage = torch.bfloat16 if native else torch.float32
        self.provisional: Provisional | None = None
        self._basis = {What.ACTIVATION: "", What.PRE: ""}
        turns = BUFFERS if model.device.type == "cuda" else 1
        self.buffers = [torch.empty(0, model.n_neurons, dtype=self.storage, device=model.device)] * turns
        self.unrounded_buffers = [torch.empty(0, model.n_neurons, dtype=model.dtype, device=model.device)] * turns
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
        known, name = self.provisional, self.name
        ids, attends, keep = self._on_device(ids, attention, keep)
        assert known is not None, "no provisional means yet"
        values = _next_of(self.buffers, len(keep))
        blocks = {Key(name): Block(values, self._basis[What.ACTIVATION], known.mean, known.bounds, self.rounding)}
        as_is = None
        if self.as_they_are != Key(name):
            as_is = _next_of(self.unrounded_buffers, len(keep))
            nothing, bounds = torch.zeros_like(known.mean), known.bounds + known.mean
            blocks[self.as_they_are] = Block(as_is, self._basis[What.ACTIVATION], nothing, bounds)
        take = partial(self._take, known, keep, values, as_is)
        norms = StreamNorms(keep, tuple(ids.shape)) if self.streams else None
        with ExitStack() as hooks:
            hooks.enter_context(self.model.capturing(take))
            if self.pre:
                raw = _next_of(self.pre_buffers, len(keep))
                first = raw.new_empty(len(ids), raw.shape[1])
                blocks[Key(name, What.PRE)] = Block(raw, self._basis[What.PRE], mean=known.pre_mean)
                blocks[Key(name, What.FIRST)] = Block(first)
                take_pre = partial(self._take_pre, keep, raw, first, ids.shape[1])
                hooks.enter_context(self.model.capturing(take_pre, pre_activations=True))
            if norms is not None:
                hooks.enter_context(self.model.after_blocks(norms.take))
            self.model.forward(ids, attends)
        if norms is not None:
            blocks[Key(name, What.STREAM)] = Block(norms.of_positions())
        return blocks

    def _take(
        self, known: Provisional, keep: Places, values: Tensor, as_is: Tensor | None, layer: int, activation: Tensor
    ) -> None:
        """Write a layer's activations at the counted positions into its columns of `values`, shifted and rounded, and
        as they are into those of `as_is`."""
        columns = self.units.columns(layer)
        kept = taken(activation, keep)
        if as_is is not None:
            as_is[:, columns] = kept
        if self.rounding == "float32":
            torch.sub(kept, known.mean[columns], out=values[:, columns])
        else:
            values[:, columns] = round_to(kept.float() - known.mean[columns], self.rounding).to(self.storage)

    def _take_pre(self, keep: Places, raw: Tensor, first: Tensor, context: int, layer: int, pre: Tensor) -> None:
        """Write a layer's pre-activations at the counted positions into `raw`, those at position 0 into `first`."""
        columns = self.units.columns(layer)
        raw[:, columns] = taken(pre, keep)
        first[:, columns] = pre[::context]

    def _on_device(self, ids: Tensor, attention: Tensor, keep: Places) -> tuple[Tensor, Tensor | None, Places]:
        """The inputs where the model is; only encoders need the attention."""
        attends = None if self.model.architecture.causal else attention.to(self.device)
        return ids.to(self.device), attends, keep.to(self.device)

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
        for block, mean in ((What.ACTIVATION, provisional.mean), (What.PRE, provisional.pre_mean)):
            self._basis[block] = basis_of(mean)

    def provisional_of(
        self, ids: Int[Tensor, "rows context"], attention: Int[Tensor, "rows context"], keep: Places
    ) -> Provisional:
        """Provisional means and quantiles from some rows."""
        ids, attends, keep = self._on_device(ids, attention, keep)
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

        with self.model.capturing(take), self.model.capturing(take_pre, pre_activations=True):
            self.model.forward(ids, attends)
        nothing = torch.zeros(len(QUANTILES), self.model.n_neurons, device=self.model.device)
        return Provisional(torch.cat(means), torch.cat(pre_means), torch.cat(bounds, 1) if self.pre else nothing)


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
