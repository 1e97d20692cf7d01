"""One model's neurons against all others': matches and baseline maxima, from the statistics of a pass.

Used on the whole pass, on one subset's share of it, and on what has been read so far (convergence).  Where the matrix
is made in panels, each panel's piece of the answer is kept and the pieces are put together at the end.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.accumulators import SUMS, Accumulator, Extremes
from universal_neurons.baselines import excess_correlation, q_values, rotated_best, rotation
from universal_neurons.comoments import CoMoments, CrossMoments, LayerCovariance, LayerMoments, Rows, ShuffledCoMoments
from universal_neurons.config import Settings
from universal_neurons.correlation import Matches, below, beside, correlation_panels, find_matches, inverse_norms
from universal_neurons.moments import Spread, SumSquares
from universal_neurons.screening import Candidates, PairMoments, Proposal, propose
from universal_neurons.sketch import CANDIDATES_SEEN, Certainty, ShardEnergies, winners_curse


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


@dataclass(frozen=True)
class Piece:
    """Some of one model's neurons (rows) against some of another's (columns): matches, and the baseline's maxima.

    `proposal` holds a screened search's candidates.
    """

    rows: Rows
    columns: Rows
    matches: Matches
    maxima: Float[Tensor, "draws rows"]
    proposal: Proposal | None = None


def together(pieces: Iterable[Piece]) -> Piece:
    """The pieces of one pair of models as one."""
    by_rows: dict[Rows, Piece] = {}
    for piece in sorted(pieces, key=lambda piece: (piece.rows, piece.columns)):
        there = by_rows.get(piece.rows)
        by_rows[piece.rows] = piece if there is None else _beside(there, piece)
    whole, *others = by_rows.values()
    for other in others:
        assert whole.rows[1] == other.rows[0], "pieces with a gap"
        whole = Piece(
            (whole.rows[0], other.rows[1]),
            whole.columns,
            below(whole.matches, other.matches),
            torch.cat([whole.maxima, other.maxima], 1),
            whole.proposal and other.proposal and whole.proposal.below(other.proposal),
        )
    return whole


def _beside(first: Piece, second: Piece) -> Piece:
    assert first.columns[1] == second.columns[0], "pieces with a gap"
    columns = (first.columns[0], second.columns[1])
    return Piece(
        first.rows,
        columns,
        beside(first.matches, second.matches),
        torch.fmax(first.maxima, second.maxima),
        first.proposal and second.proposal and first.proposal.beside(second.proposal),
    )


def groups_of(accumulators: Sequence[Accumulator]) -> list[int]:
    """The groups of shards that have been read."""
    return sorted({a.group for a in accumulators if a.count and a.group is not None})


class Evidence:
    """The statistics of some groups of a pass, added up where there are several.

    With `mark`, co-moments are those of other blocks of the models: `SUMS`, of a sketch.
    """

    def __init__(self, accumulators: Sequence[Accumulator], groups: Sequence[int], mark: str = "") -> None:
        self.accumulators = accumulators
        self.groups = list(groups)
        self.mark = mark
        self._norms: dict[str, Tensor] = {}

    def _total(self, kind: type[Accumulator], reads: tuple[str, ...], rows: Rows | None = None) -> Accumulator:
        found = [a for a in self.accumulators if type(a) is kind and a.reads == reads and a.group in self.groups]
        found = [a for a in found if rows is None or (isinstance(a, CoMoments) and a.rows == rows)]
        assert len(found) == len(self.groups), (kind, reads, rows)
        if len(found) == 1:
            return found[0]
        total = copy.deepcopy(found[0])
        for other in found[1:]:
            total.merge(other)
        return total

    def has(self, kind: type[Accumulator], *reads: str) -> bool:
        """Whether there is such a statistic."""
        return any(type(a) is kind and a.reads == reads for a in self.accumulators)

    def layers(self, model: str, mark: str = "") -> LayerCovariance:
        """Within-layer covariances of a model."""
        total = self._total(LayerMoments, (model + mark,))
        assert isinstance(total, LayerMoments)
        return total.result()

    def spread(self, model: str, mark: str = "") -> Spread:
        """Sums and squares of a model's neurons."""
        total = self._total(SumSquares, (model + mark,))
        assert isinstance(total, SumSquares)
        return total.result()

    def dead(self, model: str) -> Tensor:
        """Mask of a model's dead neurons: constant, or so small that their squares vanish."""
        total = self._total(Extremes, (model,))
        assert isinstance(total, Extremes)
        return total.result() | (self.spread(model).centred <= 0)

    def norms(self, model: str) -> Tensor:
        """Inverse norms of a model's neurons (see `inverse_norms`)."""
        if model not in self._norms:
            self._norms[model] = inverse_norms(self.spread(model, self.mark).centred, self.dead(model))
        return self._norms[model]

    def count(self, model: str) -> int:
        """Positions counted."""
        return self._total(Extremes, (model,)).count

    def certainty(self, asker: str, other: str) -> Certainty:
        """How far the sketch may be off."""
        found = []
        for model in (asker, other):
            energies = self._total(ShardEnergies, (model,))
            assert isinstance(energies, ShardEnergies)
            v, even = energies.result()
            found.append(torch.where(self.dead(model), torch.nan, v))
        return Certainty(found[0], found[1], even)

    def pairs(self, left: str, right: str) -> PairMoments:
        """Co-moments of the candidates of a screened search."""
        total = self._total(Candidates, (left, right))
        assert isinstance(total, Candidates)
        return total.result()

    def cross(self, asker: str, other: str) -> CrossMoments:
        """Co-moments of all neurons of two models, the asker's in the rows."""
        ((_, _, moments),) = self.panels(CoMoments, asker, other)
        return moments

    def panels(
        self, kind: type[CoMoments], asker: str, other: str, *more: str
    ) -> list[tuple[Rows, Rows, CrossMoments]]:
        """Co-moments of two models as far as they are kept, in panels (rows of the asker, columns of the other)."""
        names = (asker + self.mark, other + self.mark)
        there = self.has(kind, *names, *more)
        reads = (*(names if there else names[::-1]), *more)
        kept = {a.rows for a in self.accumulators if isinstance(a, CoMoments) and type(a) is kind and a.reads == reads}
        found = []
        for rows in sorted(kept):
            total = self._total(kind, reads, rows)
            assert isinstance(total, CoMoments)
            moments = total.result()
            columns = (0, moments.cross.shape[1])
            found.append((rows, columns, moments) if there else (columns, rows, moments.transposed()))
        return found


def look(
    evidence: Evidence,
    asker: str,
    other: str,
    config: Settings,
    *,
    draws: int | None = None,
    k: int | None = None,
    z: float | None = None,
) -> list[Piece]:
    """Matches and baseline maxima of the asker's neurons in another model, from the panels that are there.

    k matches of each and no histogram of all ρ; by default as many as asked for, and one.  With z, the candidates of a
    screened search too.
    """
    final = k is None
    draws, k = draws or config.draws, k or config.top_k
    k = max(k, CANDIDATES_SEEN) if evidence.mark else k
    left, right = evidence.norms(asker), evidence.norms(other)
    layers = None if config.baseline == "permutation" else evidence.layers(other, evidence.mark)
    certainty = evidence.certainty(asker, other) if evidence.mark else None
    noise = 0.0 if certainty is None else float(certainty.even)
    pieces = []
    for rows, columns, cross in evidence.panels(CoMoments, asker, other):
        some, theirs = left[slice(*rows)], right[slice(*columns)]
        matches = find_matches(cross, some, theirs, k, rows=rows[0], columns=columns[0], histogram=final)
        maxima = torch.full((draws, len(some)), torch.nan, dtype=torch.float64)
        for draw in range(draws):
            if layers is None:
                maxima[draw] = _shuffled(evidence, asker, other, draw, rows, some, theirs)
                continue
            turned = rotation(config.baseline, layers.units.width, config.seed, draw)
            maxima[draw] = rotated_best(cross, some, layers.part(*columns), turned, noise).cpu()
        proposal = None
        if z is not None:
            assert certainty is not None
            some_certainty = certainty.part(slice(*rows), slice(*columns))
            proposal = propose(cross, some, theirs, some_certainty, z, rows=rows[0], columns=columns[0])
        pieces.append(Piece(rows, columns, matches, maxima, proposal))
    return pieces


def _shuffled(evidence: Evidence, asker: str, other: str, draw: int, rows: Rows, left: Tensor, right: Tensor) -> Tensor:
    """Maxima under one draw of shuffled positions."""
    found = evidence.panels(ShuffledCoMoments, asker, other, f"draw-{draw}")
    (cross,) = [moments for there, _, moments in found if there == rows]
    maxima = torch.empty(len(left), dtype=torch.float64)
    for some, panel in correlation_panels(cross, left, right):
        highest = panel.nan_to_num(nan=-torch.inf).amax(1)
        maxima[some] = torch.where(torch.isnan(left[some]), torch.nan, highest).cpu()
    return maxima


def unbiased(piece: Piece, certainty: Certainty, k: int) -> Piece:
    """A sketch's k best matches without the upward bias of a maximum over noisy correlations."""
    matches = piece.matches
    corr, index = matches.corr[:, :k].clone(), matches.index[:, :k]
    corr[:, 0] -= winners_curse(matches.corr, matches.index, certainty)
    corr = corr.minimum(corr[:, :1])  # no lower rank above the first
    return replace(piece, matches=replace(matches, corr=corr, index=index))


def compare(
    evidence: Evidence,
    asker: str,
    others: Sequence[str],
    config: Settings,
    *,
    draws: int | None = None,
    k: int | None = None,
) -> Comparison:
    """Matches of the asker's neurons in every other model and `draws` baseline maxima, of whole matrices."""
    pieces = [together(look(evidence, asker, other, config, draws=draws, k=k)) for other in others]
    if evidence.mark == SUMS:
        certainties = [evidence.certainty(asker, other) for other in others]
        pieces = [unbiased(piece, c, k or config.top_k) for piece, c in zip(pieces, certainties)]
    return comparison(asker, others, pieces)


def comparison(asker: str, others: Sequence[str], pieces: Sequence[Piece]) -> Comparison:
    """The pieces of every other model as one answer."""
    maxima = torch.stack([piece.maxima for piece in pieces], 1).numpy()
    return Comparison(asker, tuple(others), tuple(piece.matches for piece in pieces), maxima)
