"""The second pass of a screened search, for all pairs of a study: from findings with candidates to exact ones."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from universal_neurons.matching import (
    CANDIDATES_LEAST,
    WHOLE,
    Candidates,
    Evidence,
    Finding,
    Findings,
    Piece,
    Place,
    Scope,
    exact_matches,
    groups_of,
    how_many,
    least_best,
    pairs_of,
)
from universal_neurons.statistics import Accumulator, Recipe, Statistics, quantile_of
from universal_neurons.study.inputs import Study


class Screen:
    """What a screened search computes exactly, and what comes of it; `z` is that of its upper bounds."""

    def __init__(self, study: Study, findings: Findings) -> None:
        self.study, self.findings = study, findings
        self.models = {model.name: model for model in study.models}
        self.z = quantile_of(sum(self.models[asker].n_neurons for asker, _ in study.asked))
        self._chosen: dict[Place, tuple[Piece, Tensor, Tensor]] = {}

    def recipes(self) -> list[Recipe]:
        """The sums of all candidates, of every group of shards."""
        recipes: list[Recipe] = []
        for left, right in self._unordered():
            pairs = self._pairs(left, right)
            n_left, n_right = self.models[left].n_neurons, self.models[right].n_neurons
            for group in range(self.study.n_groups):
                recipes.append(partial(Candidates, left, right, pairs, n_left, n_right, group=group))
        return recipes

    def settle(self, candidates: Sequence[Accumulator], statistics: Sequence[Accumulator]) -> None:
        """Replace what the sketch found by what the candidates say."""
        every = groups_of(candidates)
        groups = {Scope(subset=name): [group] for group, name in enumerate(self.study.subsets)} | {WHOLE: every}
        kept = Statistics([*candidates, *statistics])
        for scope, asker, other in list(self.findings.of):
            if scope not in groups:
                continue
            evidence = Evidence(kept, groups[scope])
            left, right = (asker, other) if (asker, other) in self._unordered() else (other, asker)
            moments = evidence.pairs(left, right)
            corr = moments.corr(evidence.spread(left), evidence.spread(right))
            places = (moments.left, moments.right) if left == asker else (moments.right, moments.left)
            piece, wanted, _ = self._wanted((scope, asker, other))
            assert piece.proposal is not None
            pairs = moments.left * self.models[right].n_neurons + moments.right
            likely = np.isin(pairs, self._pairs(left, right, lowest=False))
            top_k = self.study.config.top_k
            matches = exact_matches(piece.matches, piece.proposal, wanted, *places, corr, top_k, likely)
            self.findings.of[scope, asker, other] = Finding([replace(piece, matches=matches, proposal=None)])

    def _unordered(self) -> list[tuple[str, str]]:
        pairs: list[tuple[str, str]] = []
        for asker, other in self.study.asked:
            if (other, asker) not in pairs:
                pairs.append((asker, other))
        return pairs

    def _pairs(self, left: str, right: str, *, lowest: bool = True) -> Tensor:
        """The candidates of two models, either way, of the whole text and of subsets; of the `lowest` ρ too, or not."""
        codes = []
        for scope, asker, other in self.findings.of:
            if {asker, other} == {left, right} and scope.tokens is None:
                piece, wanted, floor = self._wanted((scope, asker, other))
                assert piece.proposal is not None
                n_right = self.models[right].n_neurons
                codes.append(pairs_of(piece.proposal, wanted, floor, n_right, asker == right, lowest=lowest))
        return torch.from_numpy(np.unique(np.concatenate(codes)))

    def _wanted(self, place: Place) -> tuple[Piece, Tensor, Tensor]:
        """What the sketch found, how many candidates of each neuron to compute, and what its best ρ is at least."""
        if place not in self._chosen:
            finding = self.findings.of[place]
            piece = finding.whole(self.study.config.top_k)
            assert finding.certainty is not None
            assert piece.proposal is not None
            least = max(CANDIDATES_LEAST, self.study.config.top_k)
            floor = least_best(piece.matches.strength[:, 0], finding.certainty)
            self._chosen[place] = piece, how_many(piece.proposal, floor, least), floor
        return self._chosen[place]
