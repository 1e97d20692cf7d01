"""Functional universality: do matched neurons do the same?

A neuron and its match fire together; whether they also act alike is asked in three ways: have they the same role, do
their logit effects agree over the vocabulary, and does the loss of the same tokens change alike when each is ablated in
its own model?  Beside every match stands a random neuron of the match's layer.  And what the universal neurons are
worth together: the loss and the divergence of ablating all of them, against as many random ones of the same layers
(arXiv 2508.00903).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from universal_neurons.interventions import Edit, Metrics, Trial, final_residual, intervene
from universal_neurons.labels import ROLES_BY_WEIGHTS
from universal_neurons.models import Model
from universal_neurons.statistics import jackknife, seed_of
from universal_neurons.units import Units

DRAWS = 10  # of random neurons beside the universal ones


def counterparts(matches: pl.DataFrame, asker: str, chosen: Sequence[int], units: Mapping[str, Units]) -> pl.DataFrame:
    """The best match of every chosen (flat) neuron in every other model: flat, match_model, match (flat), corr."""
    rows = matches.filter((pl.col("asker") == asker) & (pl.col("rank") == 1)).with_columns(
        flat=units[asker].number_column(),
        match=pl.coalesce(
            pl.when(match_model=name).then(units_of_model.number_column("match_"))
            for name, units_of_model in units.items()
        ),
    )
    asked_about = pl.DataFrame({"flat": list(chosen)}, schema={"flat": pl.Int64})
    return asked_about.join(rows, on="flat").select("flat", "match_model", "match", "corr").sort("flat", "match_model")


def random_partner(match: int, units: Units, seed: int, model: str) -> int | None:
    """A random other neuron of a match's layer; None where it is the layer's only one."""
    columns = units.columns(units.layer_of(match))
    others = columns.stop - columns.start - 1
    if not others:
        return None
    drawn = columns.start + int(np.random.default_rng(seed_of("partner", seed, model, match)).integers(others))
    return drawn + 1 if drawn >= match else drawn


class LossChanges:
    """Per token, by how much the loss changes when each of some neurons is mean-ablated, one at a time."""

    def __init__(self, model: Model, numbers: Sequence[int], means: Float[Tensor, " neurons"]) -> None:
        self.model = model
        self.numbers = sorted(set(numbers))
        self.means = means
        self.parts: dict[int, list[Tensor]] = {number: [] for number in self.numbers}

    @property
    def first(self) -> int:
        """The earliest layer with a neuron to ablate; the last layer where there is none."""
        return self.model.units.layer_of(min(self.numbers, default=self.model.n_neurons - 1))

    def add(self, trial: Trial) -> None:
        """Ablate each neuron alone on a batch of rows."""
        units = self.model.units
        for layer, numbers in units.by_layer(self.numbers).items():
            metrics = trial.try_out(layer, units.within_layers(numbers), [Edit("mean", self.means[numbers])])
            for number, loss in zip(numbers, metrics.loss[:, 0]):
                self.parts[number].append((loss - trial.clean.metrics.loss).cpu())

    def by_number(self) -> dict[int, Float[np.ndarray, " tokens"]]:
        """The changes at all tokens, by the neuron's number."""
        return {number: torch.cat(parts).double().numpy() for number, parts in self.parts.items() if parts}


def functional_table(
    models: Sequence[Model],
    pairs: pl.DataFrame,
    changes: Mapping[str, Mapping[int, Float[np.ndarray, " tokens"]]],
    effects: Mapping[str, Mapping[int, Float[np.ndarray, " vocabulary"]]],
    roles: Mapping[str, Sequence[Sequence[str]]],
    seed: int,
    orientation: Mapping[str, Float[np.ndarray, " neurons"]] | None = None,
) -> pl.DataFrame:
    """A row per chosen neuron of the first model and other model.

    `pairs` are those of `counterparts`.  By model and flat number, of all neurons concerned: `changes` of the loss at
    every token, and logit `effects`, times the neurons' `orientation` where it is given.  `roles` are those of all
    neurons.  Of a pair with a gated side the effect of a match counts by the sign of the pair's ρ: those that fire
    together by opposite signs act alike if their effects are opposite too.
    """
    asker = models[0]
    units = {model.name: model.units for model in models}
    gated = {model.name: model.gated for model in models}
    rows: list[dict[str, Any]] = []
    for flat, name, match, corr in pairs.iter_rows():
        (layer, neuron), (match_layer, match_neuron) = asker.units.place_of(flat), units[name].place_of(match)
        row = {"asker": asker.name, "model": asker.name, "layer": layer, "neuron": neuron, "match_model": name}
        row |= {"match_layer": match_layer, "match_neuron": match_neuron, "corr": corr}
        compared = {"": match, "_random": random_partner(match, units[name], seed, name)}
        for kind, number in compared.items():
            row |= {f"effect_corr{kind}": math.nan, f"loss_corr{kind}": math.nan}
            if number is not None:
                row[f"effect_corr{kind}"] = _corr(effects[asker.name][flat], effects[name][number])
                row[f"loss_corr{kind}"] = _corr(changes[asker.name][flat], changes[name][number])
        if orientation is not None and (asker.gated or gated[name]):
            row["effect_corr"] *= np.copysign(1.0, corr * orientation[asker.name][flat] * orientation[name][match])
        asker_roles = roles[asker.name][flat]
        row |= {"roles": list(asker_roles), "match_roles": list(roles[name][match])}
        for kind, number in compared.items():
            row[f"same_roles{kind}"] = None if number is None else _same_roles(asker_roles, roles[name][number])
        rows.append(row)
    kinds: dict[str, Any] = dict.fromkeys(("layer", "neuron", "match_layer", "match_neuron"), pl.Int32)
    kinds |= dict.fromkeys(("roles", "match_roles"), pl.List(pl.String))
    kinds |= dict.fromkeys(("same_roles", "same_roles_random"), pl.Boolean)
    return pl.DataFrame(rows, schema_overrides=kinds, infer_schema_length=None)


def _same_roles(one: Iterable[str], other: Iterable[str]) -> bool | None:
    """Whether two neurons have the same role by their weights, which say of every neuron what it does (the other roles
    are tried out on candidates alone); None where neither has one."""
    roles, other_roles = set(one) & set(ROLES_BY_WEIGHTS), set(other) & set(ROLES_BY_WEIGHTS)
    return roles == other_roles if roles | other_roles else None


def _corr(one: np.ndarray, other: np.ndarray) -> float:
    size = min(len(one), len(other))  # vocabularies may be padded differently
    one, other = one[:size] - one[:size].mean(), other[:size] - other[:size].mean()
    spread = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / spread if spread > 0 else float("nan")


class Costs:
    """The loss and divergence of ablating a set of neurons together, against as many random ones of the same layers.

    Dead neurons, whose ablation changes nothing, are not among the random ones.  A layer with fewer living
    others gives those; where all living neurons are chosen there is no random set.
    """

    def __init__(
        self,
        model: Model,
        chosen: Sequence[int],
        means: Float[Tensor, " neurons"],
        dead: Bool[np.ndarray, " neurons"],
        seed: int,
    ) -> None:
        self.model = model
        self.means = means
        self.dead = dead
        self.first = model.n_layers - 1
        drawn = [self._random(chosen, seed, draw) for draw in range(DRAWS)]
        self.sets = [sorted(chosen), *(numbers for numbers in drawn if numbers)]
        self.losses: list[list[Tensor]] = [[] for _ in self.sets]
        self.divergences: list[list[Tensor]] = [[] for _ in self.sets]
        self.rows: list[Tensor] = []

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
        for numbers, losses, divergences in zip(self.sets, self.losses, self.divergences):
            metrics = self._without(trial, numbers)
            losses.append((metrics.loss[0] - trial.clean.metrics.loss).cpu())
            divergences.append(metrics.divergence[0].cpu())

    def _without(self, trial: Trial, numbers: list[int]) -> Metrics:
        with intervene(self.model, numbers, Edit("mean", self.means[numbers])), final_residual(self.model) as seen:
            self.model.forward(trial.ids)
        residual = seen[0].reshape(-1, self.model.d_model)[trial.kept]
        return trial.readout.of_residual(residual[None], trial.clean)

    def table(self, chosen_as: str) -> pl.DataFrame:
        """A row per set, the chosen ones as `chosen_as` and each draw of random ones; means with 95 % intervals."""
        rows = []
        row_of = torch.cat(self.rows).numpy()
        for draw, (numbers, losses, divergences) in enumerate(zip(self.sets, self.losses, self.divergences)):
            loss, divergence = torch.cat(losses).double().numpy(), torch.cat(divergences).double().numpy()
            row = {"model": self.model.name, "set": chosen_as if not draw else "random", "draw": draw}
            row |= {"neurons": len(numbers), "tokens": len(loss)}
            for name, values in (("loss_change", loss), ("divergence", divergence)):
                mean, reach = float(values.mean()), _reach(values, row_of)
                row |= {name: mean, f"{name}_low": mean - reach, f"{name}_high": mean + reach}
            rows.append(row)
        return pl.DataFrame(rows)


def _reach(values: np.ndarray, rows: np.ndarray) -> float:
    """Half the 95 % interval of a mean over tokens: a jackknife over at most 20 stretches of rows."""
    stretch = jackknife.stretch_of(rows)
    most = jackknife.STRETCHES
    sums, counts = np.bincount(stretch, values, most), np.bincount(stretch, minlength=most)
    used = counts > 0
    if used.sum() < 2:
        return float("nan")
    without = (sums.sum() - sums[used]) / (counts.sum() - counts[used])
    return float(jackknife.reach(without))
