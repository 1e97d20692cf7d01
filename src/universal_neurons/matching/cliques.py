"""Mutual cliques: one unit of every model, each two of which are each other's best match; and those of random bases.

Two neurons may be each other's best match by chance, and with a small ρ.  So cliques are counted beside those of units
that mean nothing: every layer of every model is rotated, Cov(R V, S W) = R Cov(V, W) Sᵀ and
Var(R V) = diag(R Cov(V, V) Rᵀ), and the same search is made among the rotated units.  Every model has a rotation of its
own, else models that share the order of their neurons would share the random basis too; it serves all its layers.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.config import Settings
from universal_neurons.matching.baselines import rotations
from universal_neurons.matching.comparison import Comparison, Evidence
from universal_neurons.statistics import CoMoments, Rows, seed_of


@dataclass(frozen=True)
class Best:
    """Of every unit of one model the best match in another and its ρ; −1 and −∞ or NaN where there is none."""

    index: Tensor
    corr: Tensor


@dataclass(frozen=True)
class Cliques:
    """Cliques, the most correlated first: a unit of every model, the least and the mean |ρ| of their pairs."""

    members: Int[np.ndarray, "cliques models"]
    min_corr: Float[np.ndarray, " cliques"]
    mean_corr: Float[np.ndarray, " cliques"]


Bests = Mapping[tuple[str, str], Best]  # by asker and other model


def best_of(comparisons: Iterable[Comparison]) -> dict[tuple[str, str], Best]:
    """Best matches as the comparisons of all models found them."""
    return {
        (c.asker, other): Best(matches.index[:, 0], matches.corr[:, 0])
        for c in comparisons
        for other, matches in zip(c.others, c.matches)
    }


def mutual_cliques(names: Sequence[str], bests: Bests) -> Cliques:
    """All cliques of some models, by what each found in every other.

    A pair's |ρ| is what the model that comes first found.  Cliques of equal |ρ| stand in the order of their units.
    """
    first = names[0]
    found = [bests[first, other].index.numpy() for other in names[1:]]
    members = np.stack([np.arange(len(found[0])), *found], 1)
    members = members[(members >= 0).all(1)]
    sizes: list[np.ndarray] = []
    for i, j in combinations(range(len(names)), 2):
        there, back = bests[names[i], names[j]], bests[names[j], names[i]]
        left, right = members.T[[i, j]]
        mutual = (there.index.numpy()[left] == right) & (back.index.numpy()[right] == left)
        members, sizes = members[mutual], [size[mutual] for size in sizes]
        sizes.append(np.abs(there.corr.double().numpy()[members[:, i]]))
    of_pairs = np.stack(sizes)
    order = np.argsort(-of_pairs.min(0), kind="stable")
    return Cliques(members[order], of_pairs.min(0)[order], of_pairs.mean(0)[order])


def can_be_rotated(config: Settings) -> bool:
    """Whether a study keeps what the cliques of random bases are made of: all pairs' exact co-moments, all layers'."""
    asked = "universality" in config.stages and config.pairs == "all"
    return asked and config.search == "exact" and config.baseline != "permutation"


class RandomBases:
    """Best matches among rotated units, of all pairs, as far as panels have said."""

    def __init__(self, config: Settings) -> None:
        self.config = config
        self.bests: dict[tuple[str, str], Best] = {}

    def take_in(self, evidence: Evidence, pairs: Iterable[tuple[str, str]]) -> None:
        """Add what a pass's panels, whole layers, say of some pairs of models; either order stands for both."""
        for left, right in dict.fromkeys(min(pair, pair[::-1]) for pair in pairs):
            ours, theirs = (_Basis(self.config, name, evidence) for name in (left, right))
            by_size = evidence.by_size(left, right)
            there, back = self._best(left, right, ours), self._best(right, left, theirs)
            for rows, columns, cross in evidence.panels(CoMoments, left, right):
                for i, mine in ours.layers(*rows):
                    for j, others in theirs.layers(*columns):
                        block = cross.centred(_within(mine, rows), _within(others, columns))
                        rho = ours.turned(i, theirs.turned(j, block.T).T)
                        rho = rho.abs() if by_size else rho
                        _raise(there, rho, mine, others.start)
                        _raise(back, rho.T, others, mine.start)

    def _best(self, asker: str, other: str, basis: "_Basis") -> Best:
        n = len(basis.units)
        return self.bests.setdefault((asker, other), Best(torch.full((n,), -1), torch.full((n,), -torch.inf)))

    def cliques(self, names: Sequence[str]) -> Cliques:
        """The cliques of all models' rotated units."""
        return mutual_cliques(names, self.bests)

    def state(self) -> dict[str, Tensor]:
        """As plain tensors."""
        if not self.bests:
            return {}
        table = torch.frombuffer(bytearray(json.dumps(list(self.bests)).encode()), dtype=torch.uint8)
        parts = {f"rotated/{n}/{name}": t for n, b in enumerate(self.bests.values()) for name, t in vars(b).items()}
        return {"rotated": table} | parts

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state written by `state`."""
        pairs = json.loads(bytes(state["rotated"].numpy())) if "rotated" in state else []
        self.bests = {
            (asker, other): Best(state[f"rotated/{n}/index"], state[f"rotated/{n}/corr"])
            for n, (asker, other) in enumerate(pairs)
        }


class _Basis:
    """A model's layers in a random basis; products in float32, scaled so that none of them overflows.

    Gated neurons are taken times their signs first (`Evidence`).
    """

    def __init__(self, config: Settings, name: str, evidence: Evidence) -> None:
        covariance = evidence.layers(name)
        self.units = covariance.units
        seed = seed_of("random basis", config.seed, name)
        drawn = rotations(config.baseline, self.units.widths, seed, 0)
        signs = evidence.signs.get(name, torch.ones(len(self.units))).split(self.units.widths)
        self.bases, self.typical, self.scale = [], [], []
        for layer, some in zip(covariance.centred, signs):
            turned = drawn[len(layer)].to(layer.device) * some.to(layer)
            variance = ((turned @ layer) * turned).sum(1)
            typical = variance.clamp_min(0).mean().rsqrt()  # infinite where all are dead
            self.bases.append(turned.float())
            self.typical.append(typical)
            self.scale.append(torch.where(variance > 0, variance.rsqrt() / typical, torch.nan).float())

    def layers(self, start: int, stop: int) -> Iterator[tuple[int, slice]]:
        """The layers that the neurons from `start` to before `stop` make up, each with its neurons."""
        for layer in range(self.units.layers)[self.units.layers_in(start, stop)]:
            if self.units.widths[layer]:
                yield layer, self.units.columns(layer)

    def turned(self, layer: int, block: Float[Tensor, "neurons others"]) -> Float[Tensor, "units others"]:
        """A layer's co-moments with something as those of its rotated units, of variance 1."""
        return (self.bases[layer] @ (block * self.typical[layer]).float()) * self.scale[layer][:, None]


def _within(neurons: slice, panel: Rows) -> slice:
    """Some neurons of a model by their places in a panel."""
    return slice(neurons.start - panel[0], neurons.stop - panel[0])


def _raise(best: Best, rho: Float[Tensor, "units others"], rows: slice, first: int) -> None:
    """Take over whatever is a better match than what was known; the others' first unit has a number."""
    corr, index = rho.clamp(-1, 1).nan_to_num(nan=-torch.inf).max(1)
    better = corr.cpu() > best.corr[rows]
    best.corr[rows] = torch.where(better, corr.cpu(), best.corr[rows])
    best.index[rows] = torch.where(better, index.cpu() + first, best.index[rows])
