"""What the universal neurons are worth together: what ablating all of them at once costs, and what controls cost.

1. All chosen neurons of the reference are set to their means at once: the change of the loss and the divergence from
   the clean run, in nats a token.
2. Neurons that contribute more cost more, whatever they do.  So beside the chosen ones stand as many others of the
   same layers, alive and none of them chosen: matched one to one by contribution (`nearest_others`, the largest chosen
   one first); the largest other contributors; and ten draws of random ones (arXiv 2508.00903).
3. What the chosen ones cost over what the controls of equal contribution cost is the answer.  How equal these are is
   in the table: where the chosen ones are the largest of their layers, controls are smaller.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from universal_neurons.interventions import (
    SILENT,
    Edit,
    Metrics,
    Trial,
    final_residual,
    intervene,
    largest_others,
    nearest_others,
)
from universal_neurons.models import Model
from universal_neurons.roles.costs import CHOSEN, EQUAL, LARGEST, RANDOM
from universal_neurons.statistics import Jackknifed, jackknife, seed_of
from universal_neurons.units import NONE

DRAWS = 10  # of random neurons beside the chosen ones


@dataclass(frozen=True)
class _Set:
    """Neurons (flat) that are ablated together; of controls matched one to one each one's contribution over its own."""

    kind: str
    numbers: list[int]
    draw: int = 0
    ratios: Float[np.ndarray, " neurons"] | None = None


class Costs:
    """The loss and divergence of ablating a set of neurons together, against controls of the same layers.

    Controls are `dead` nowhere: ablating a dead one changes nothing.  A layer with fewer living others gives those;
    where all living neurons are chosen there are no controls.  `contributed` is what every neuron contributes; without
    it all controls are random.
    """

    def __init__(
        self,
        model: Model,
        chosen: Sequence[int],
        means: Float[Tensor, " neurons"],
        dead: Bool[np.ndarray, " neurons"],
        seed: int,
        contributed: Float[np.ndarray, " neurons"] | None = None,
    ) -> None:
        self.model = model
        self.means = means
        self.dead = dead
        self.contributed = contributed
        self.first = model.n_layers - 1
        drawn = [_Set(RANDOM, self._random(chosen, seed, draw), draw + 1) for draw in range(DRAWS)]
        every = [_Set(CHOSEN, sorted(chosen)), *self._by_contribution(chosen), *drawn]
        self.sets = [one for one in every if one.numbers]
        self.losses: list[list[Tensor]] = [[] for _ in self.sets]
        self.divergences: list[list[Tensor]] = [[] for _ in self.sets]
        self.rows: list[Tensor] = []

    def _by_contribution(self, chosen: Sequence[int]) -> list[_Set]:
        """Those that contribute as much, one beside each, and those that contribute most."""
        if self.contributed is None:
            return []
        of = np.maximum(self.contributed, SILENT)
        order = sorted(chosen, key=lambda number: (-of[number], number))
        beside = np.array(nearest_others(order, self.model.units, of, ~self.dead))
        there = beside != NONE
        ratios = of[beside[there]] / of[np.array(order)[there]]
        largest = largest_others(chosen, self.model.units, of, ~self.dead)
        return [_Set(EQUAL, sorted(beside[there].tolist()), ratios=ratios), _Set(LARGEST, sorted(largest))]

    def _random(self, chosen: Sequence[int], seed: int, draw: int) -> list[int]:
        drawn: list[int] = []
        generator = np.random.default_rng(seed_of("costs", seed, draw))
        for layer, numbers in self.model.units.by_layer(chosen).items():
            columns = self.model.units.columns(layer)
            alive = columns.start + np.flatnonzero(~self.dead[columns])
            others = np.setdiff1d(alive, numbers)
            drawn += generator.choice(others, min(len(numbers), len(others)), replace=False).tolist()
        return sorted(drawn)

    @torch.inference_mode()
    def add(self, trial: Trial) -> None:
        """Ablate every set on a batch of rows."""
        self.rows.append(trial.row_of)
        for one, losses, divergences in zip(self.sets, self.losses, self.divergences):
            metrics = self._without(trial, one.numbers)
            losses.append((metrics.loss[0] - trial.clean.metrics.loss).cpu())
            divergences.append(metrics.divergence[0].cpu())

    def _without(self, trial: Trial, numbers: list[int]) -> Metrics:
        with intervene(self.model, numbers, Edit("mean", self.means[numbers])), final_residual(self.model) as seen:
            self.model.forward(trial.ids)
        residual = seen[0].reshape(-1, self.model.d_model)[trial.kept]
        return trial.readout.of_residual(residual[None], trial.clean)

    def table(self, chosen_as: str) -> pl.DataFrame:
        """A row per set, the chosen ones as `chosen_as`, then controls; means with 95 % intervals."""
        stretch = jackknife.stretch_of(torch.cat(self.rows).numpy())
        losses, divergences = (
            [_mean(torch.cat(parts).double().numpy(), stretch) for parts in of_sets]
            for of_sets in (self.losses, self.divergences)
        )
        rows = []
        for one, loss, divergence in zip(self.sets, losses, divergences):
            row = {"model": self.model.name, "set": chosen_as if one.kind == CHOSEN else one.kind, "draw": one.draw}
            row |= {"neurons": len(one.numbers), "tokens": len(stretch)}
            row |= _with_ends("loss_change", loss) | _with_ends("divergence", divergence)
            row |= self._contribution(one) | _times(losses[0], None if one.kind == CHOSEN else loss)
            rows.append(row)
        return pl.DataFrame(rows, schema_overrides=dict.fromkeys(NULLABLE, pl.Float64), infer_schema_length=None)

    def _contribution(self, one: _Set) -> dict[str, float | None]:
        """The mean contribution of a set, and how near controls matched one to one come: the median, the worst."""
        mean = None if self.contributed is None else float(self.contributed[one.numbers].mean())
        median = worst = None
        if one.ratios is not None:
            median, worst = float(np.median(one.ratios)), float(one.ratios[np.abs(np.log(one.ratios)).argmax()])
        return {"contributed": mean, "contributed_ratio": median, "contributed_ratio_worst": worst}


NULLABLE = (
    "contributed", "contributed_ratio", "contributed_ratio_worst", "loss_ratio", "loss_ratio_low", "loss_ratio_high",
)  # fmt: skip


def _mean(values: Float[np.ndarray, " tokens"], stretch: np.ndarray) -> Jackknifed:
    """A mean over tokens, and with each stretch of rows left out."""
    most = jackknife.STRETCHES
    sums, counts = np.bincount(stretch, values, most), np.bincount(stretch, minlength=most)
    found = Jackknifed.of(lambda count, total: total / count, counts, sums[:, None])
    return Jackknifed(values.mean(keepdims=True), found.without)


def _with_ends(name: str, found: Jackknifed) -> dict[str, float]:
    low, high = found.interval()
    return {name: found.value.item(), f"{name}_low": low.item(), f"{name}_high": high.item()}


def _times(chosen: Jackknifed, controls: Jackknifed | None) -> dict[str, Any]:
    """How many times as much the chosen ones cost; null where the controls' cost is not to be told from 0."""
    name = "loss_ratio"
    if controls is None or not controls.interval()[0] > 0:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    return _with_ends(name, chosen.map(lambda one, other: one / other, controls))
