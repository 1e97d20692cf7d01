"""By how much the loss of every token changes when single neurons are mean-ablated, one at a time.

Only the loss is read, not what else interventions are asked about: of changed logits the log of the sum of
exponentials and the true token's.  In the last layer, changed logits cost no product (`Readout`).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.interventions import Edit, Readout, Trial
from universal_neurons.models import Model


class LossChanges:
    """Per token, by how much the loss changes when each of some neurons is mean-ablated, one at a time."""

    def __init__(self, model: Model, numbers: Sequence[int], means: Float[Tensor, " neurons"]) -> None:
        self.model = model
        self.numbers = sorted(set(numbers))
        self.means = means
        self.parts: dict[int, list[Tensor]] = {number: [] for number in self.numbers}
        self.rows: list[Tensor] = []

    @property
    def first(self) -> int:
        """The earliest layer with a neuron to ablate; the last layer where there is none."""
        return self.model.units.layer_of(min(self.numbers, default=self.model.n_neurons - 1))

    @torch.inference_mode()
    def add(self, trial: Trial) -> None:
        """Ablate each neuron alone on a batch of rows."""
        units = self.model.units
        self.rows.append(trial.row_of)
        for layer, numbers in units.by_layer(self.numbers).items():
            change = trial.changes(layer, units.within_layers(numbers), Edit("mean", self.means[numbers]))
            directions = trial.written(layer, units.within_layers(numbers))
            for number, loss in zip(numbers, _losses(trial, layer, change, directions)):
                self.parts[number].append((loss - trial.clean.metrics.loss).cpu())

    def by_number(self) -> dict[int, Float[np.ndarray, " tokens"]]:
        """The changes at all tokens, by the neuron's number."""
        return {number: torch.cat(parts).double().numpy() for number, parts in self.parts.items() if parts}

    @property
    def row_of(self) -> Int[np.ndarray, " tokens"]:
        """The row of text that each token is in."""
        return torch.cat(self.rows).numpy() if self.rows else np.zeros(0, np.int64)


def _losses(
    trial: Trial, layer: int, change: Float[Tensor, "neurons positions"], directions: Float[Tensor, "neurons width"]
) -> Iterator[Float[Tensor, " kept"]]:
    """The loss of every kept token after each neuron's change of activation."""
    if trial.nothing_runs_again(layer):
        yield from _losses_of_last_layer(trial, change[:, trial.kept], directions)
        return
    for start in range(0, len(change), trial.copies):
        copies = slice(start, start + trial.copies)
        for residual in trial.after(layer, trial.added(layer, change[copies], directions[copies])):
            pieces = residual.split(trial.readout.rows), trial.clean.targets.split(trial.readout.rows)
            yield torch.cat([_loss(trial.readout, trial.readout.logits(part), true) for part, true in zip(*pieces)])


def _losses_of_last_layer(
    trial: Trial, change: Float[Tensor, "neurons kept"], directions: Float[Tensor, "neurons width"]
) -> Iterator[Float[Tensor, " kept"]]:
    """The same in the last layer: with residual r, (W r + Δ W w_out) / s′ + c, s′ the scale of r + Δ w_out."""
    readout, clean = trial.readout, trial.clean
    residual = trial.final[trial.kept]
    effects = readout.norm.centred(directions) @ readout.matrix.T
    for values, direction, effect in zip(change, directions, effects):
        scales = readout.norm.scale(residual + values[:, None] * direction)
        losses = []
        for start in range(0, len(clean.raw), readout.step):
            piece = slice(start, start + readout.step)
            logits = torch.addcmul(clean.raw[piece], values[piece, None], effect)
            torch.addcdiv(readout.constant, logits, scales[piece, None], out=logits)
            losses.append(_loss(readout, logits, clean.targets[piece]))
        yield torch.cat(losses)


def _loss(
    readout: Readout, logits: Float[Tensor, "tokens vocabulary"], targets: Int[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """Loss in nats, a stretch of the logits at a time, so that it stays in the cache; they are written over."""
    losses = []
    for part, true in zip(logits.split(readout.step), targets.split(readout.step)):
        right = part.gather(1, true[:, None])[:, 0]
        highest = part.amax(1, keepdim=True)
        losses.append(part.sub_(highest).exp_().sum(1).log() + highest[:, 0] - right)
    return torch.cat(losses)
