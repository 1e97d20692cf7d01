"""One model's neurons against all others': matches and baseline maxima, from the statistics of a pass.

Used on the whole pass, on one subset's share of it, and on what has been read so far (convergence).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.accumulators import (
    Accumulator,
    CoMoments,
    CrossMoments,
    Extremes,
    LayerCovariance,
    LayerMoments,
    ShuffledCoMoments,
)
from universal_neurons.baselines import excess_correlation, q_values, rotated_best, rotation
from universal_neurons.config import StudyConfig
from universal_neurons.correlation import Matches, correlation_panels, find_matches, inverse_norms


@dataclass(frozen=True)
class Comparison:
    """What one model's neurons found in the others, models in the order of `others`."""

    asker: str
    others: tuple[str, ...]
    matches: tuple[Matches, ...]
    maxima: Float[np.ndarray, "draws models neurons"]

    @cached_property
    def best(self) -> Float[np.ndarray, "models neurons"]:
        """The highest ρ in each other model."""
        return np.stack([m.corr[:, 0].numpy() for m in self.matches])

    @cached_property
    def best_index(self) -> Int[np.ndarray, "models neurons"]:
        """Where it was found; −1 for dead neurons."""
        return np.stack([m.index[:, 0].numpy() for m in self.matches])

    @cached_property
    def baseline(self) -> Float[np.ndarray, "models neurons"]:
        """The best baseline ρ, averaged over draws."""
        return self.maxima.mean(0)

    @cached_property
    def excess(self) -> Float[np.ndarray, " neurons"]:
        """Excess correlation (eq 3)."""
        return excess_correlation(self.best, self.maxima)

    @cached_property
    def q_value(self) -> Float[np.ndarray, " neurons"]:
        """False-discovery rate of `baselines.q_values`."""
        return q_values(self.best, self.maxima)


def groups_of(accumulators: Sequence[Accumulator]) -> list[int]:
    """The groups of shards that have been read."""
    return sorted({a.group for a in accumulators if a.count and a.group is not None})


class Evidence:
    """The statistics of some groups of a pass, added up where there are several."""

    def __init__(self, accumulators: Sequence[Accumulator], groups: Sequence[int]) -> None:
        self.accumulators = accumulators
        self.groups = list(groups)
        self._norms: dict[str, Tensor] = {}

    def _total(self, kind: type[Accumulator], reads: tuple[str, ...]) -> Accumulator:
        by_group = {a.group: a for a in self.accumulators if type(a) is kind and a.reads == reads}
        found = [by_group[group] for group in self.groups]
        if len(found) == 1:
            return found[0]
        total = copy.deepcopy(found[0])
        for other in found[1:]:
            total.merge(other)
        return total

    def layers(self, model: str) -> LayerCovariance:
        """Within-layer covariances of a model."""
        total = self._total(LayerMoments, (model,))
        assert isinstance(total, LayerMoments)
        return total.result()

    def dead(self, model: str) -> Tensor:
        """Mask of a model's dead neurons: constant, or so small that their squares vanish."""
        total = self._total(Extremes, (model,))
        assert isinstance(total, Extremes)
        return total.result() | (self.layers(model).squares <= 0)

    def norms(self, model: str) -> Tensor:
        """Inverse norms of a model's neurons (see `inverse_norms`)."""
        if model not in self._norms:
            self._norms[model] = inverse_norms(self.layers(model), self.dead(model))
        return self._norms[model]

    def count(self, model: str) -> int:
        """Positions counted."""
        return self._total(Extremes, (model,)).count

    def cross(self, asker: str, other: str) -> CrossMoments:
        """Co-moments of two models, the asker's neurons in the rows."""
        return self._cross(CoMoments, asker, other)

    def shuffled(self, asker: str, other: str, draw: int) -> CrossMoments:
        """Co-moments under one draw of shuffled positions."""
        return self._cross(ShuffledCoMoments, asker, other, f"draw-{draw}")

    def _cross(self, kind: type[CoMoments], asker: str, other: str, *more: str) -> CrossMoments:
        there = any(type(a) is kind and a.reads == (asker, other, *more) for a in self.accumulators)
        total = self._total(kind, (asker, other, *more) if there else (other, asker, *more))
        assert isinstance(total, CoMoments)
        return total.result() if there else total.result().transposed()


def compare(
    evidence: Evidence, asker: str, others: Sequence[str], config: StudyConfig, *, draws: int | None = None, k: int = 10
) -> Comparison:
    """Matches of the asker's neurons in every other model and `draws` baseline maxima."""
    matches = [
        find_matches(evidence.cross(asker, other), evidence.norms(asker), evidence.norms(other), k) for other in others
    ]
    maxima = baseline_maxima(evidence, asker, others, config, draws or config.n_draws)
    return Comparison(asker, tuple(others), tuple(matches), maxima)


def baseline_maxima(
    evidence: Evidence, asker: str, others: Sequence[str], config: StudyConfig, draws: int
) -> Float[np.ndarray, "draws models neurons"]:
    """The asker's highest baseline ρ, by draw and other model."""
    left = evidence.norms(asker)
    maxima = torch.empty(draws, len(others), len(left), dtype=torch.float64)
    for m, other in enumerate(others):
        if config.baseline == "permutation":
            for draw in range(draws):
                shuffled = evidence.shuffled(asker, other, draw)
                for rows, panel in correlation_panels(shuffled, left, evidence.norms(other)):
                    highest = panel.nan_to_num(nan=-torch.inf).amax(1)
                    maxima[draw, m, rows] = torch.where(torch.isnan(left[rows]), torch.nan, highest).cpu()
            continue
        cross, layers = evidence.cross(asker, other), evidence.layers(other)
        for draw in range(draws):
            rotated = rotation(config.baseline, layers.centred.shape[1], config.seed, draw)
            maxima[draw, m] = rotated_best(cross, left, layers, rotated).cpu()
    return maxima.numpy()
