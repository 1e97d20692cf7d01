"""One model's neurons against all others': matches and baseline maxima, from the statistics of a pass.

Used on the whole pass, on one subset's share of it, and on what has been read so far (convergence).  Where the matrix
is made in panels, each panel's piece of the answer is kept and the pieces are put together at the end.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.config import Settings
from universal_neurons.matching.baselines import (
    Baseline,
    Drawing,
    Maxima,
    excess_correlation,
    normalised_excess,
    q_values,
    rotated_maxima,
)
from universal_neurons.matching.candidates import Candidates, PairMoments, Proposal, propose
from universal_neurons.matching.correlation import (
    Matches,
    below,
    beside,
    correlation_panels,
    find_matches,
    inverse_norms,
)
from universal_neurons.matching.rotated_pairs import RotatedPairs
from universal_neurons.statistics import (
    CANDIDATES_SEEN,
    Accumulator,
    Certainty,
    CoMoments,
    CrossMoments,
    Extremes,
    Key,
    Kind,
    LayerCovariance,
    LayerMoments,
    Named,
    Rows,
    ShardEnergies,
    ShuffledCoMoments,
    Spread,
    Statistics,
    SumSquares,
    What,
    winners_curse,
)


@dataclass(frozen=True)
class Comparison:
    """What one model's neurons found in the others, models in the order of `others`.

    `raw` and `standardised` are the baselines: of the other models' neurons as they are, as the paper has it, and of
    neurons of variance 1.  `rotated` are the pairs of the first's first draw; empty where nobody asked.
    """

    asker: str
    others: tuple[str, ...]
    matches: tuple[Matches, ...]
    raw: Baseline
    standardised: Baseline
    rotated: tuple[RotatedPairs, ...] = ()

    @cached_property
    def best(self) -> Float[np.ndarray, "models neurons"]:
        """The highest ρ in each other model; the highest |ρ| where either is gated."""
        return np.stack([m.strength[:, 0].numpy() for m in self.matches])

    @cached_property
    def signs(self) -> Float[np.ndarray, "models neurons"]:
        """What makes another ρ with the best match speak for it: −1 where that is one of negative ρ, by size."""
        return np.stack([np.where(m.by_size & (m.corr[:, 0].numpy() < 0), -1.0, 1.0) for m in self.matches])

    @cached_property
    def best_index(self) -> Int[np.ndarray, "models neurons"]:
        """Where it was found; −1 for dead neurons."""
        return np.stack([m.index[:, 0].numpy() for m in self.matches])

    @property
    def maxima(self) -> Float[np.ndarray, "draws models neurons"]:
        """The best baseline ρ of every draw."""
        return self.raw.maxima

    @cached_property
    def baseline(self) -> Float[np.ndarray, "models neurons"]:
        """The best baseline ρ, averaged over draws."""
        return self.raw.mean

    @cached_property
    def excess(self) -> Float[np.ndarray, " neurons"]:
        """Excess correlation (eq 3)."""
        return excess_correlation(self.best, self.maxima)

    @cached_property
    def excess_standardised(self) -> Float[np.ndarray, " neurons"]:
        """The excess over the baseline of standardised neurons."""
        return excess_correlation(self.best, self.standardised.maxima)

    @cached_property
    def excess_normalised(self) -> Float[np.ndarray, " neurons"]:
        """How far from that baseline to 1 (`baselines.normalised_excess`)."""
        return normalised_excess(self.best, self.standardised.mean)

    @cached_property
    def q_value(self) -> Float[np.ndarray, " neurons"]:
        """False-discovery rate of `baselines.q_values`."""
        return q_values(self.best, self.maxima)


@dataclass(frozen=True)
class Piece:
    """Some of one model's neurons (rows) against some of another's (columns): matches, and the baselines' maxima.

    `maxima` are of the other model's neurons as they are, `standardised` of these with variance 1 (None: not asked, or
    no different), `rotated` the pairs of the first draw (None likewise).  `proposal` holds a screened search's
    candidates.
    """

    rows: Rows
    columns: Rows
    matches: Matches
    maxima: Maxima
    standardised: Maxima | None = None
    proposal: Proposal | None = None
    rotated: RotatedPairs | None = None


def together(pieces: Iterable[Piece]) -> Piece:
    """The pieces of one pair of models as one."""
    by_rows: dict[Rows, Piece] = {}
    for piece in sorted(pieces, key=lambda piece: (piece.rows, piece.columns)):
        earlier = by_rows.get(piece.rows)
        by_rows[piece.rows] = piece if earlier is None else _beside(earlier, piece)
    whole, *others = by_rows.values()
    for other in others:
        assert whole.rows[1] == other.rows[0], "pieces with a gap"
        whole = Piece(
            (whole.rows[0], other.rows[1]),
            whole.columns,
            below(whole.matches, other.matches),
            whole.maxima.below(other.maxima),
            whole.standardised and other.standardised and whole.standardised.below(other.standardised),
            whole.proposal and other.proposal and whole.proposal.below(other.proposal),
            whole.rotated and other.rotated and whole.rotated.below(other.rotated),
        )
    return whole


def _beside(first: Piece, second: Piece) -> Piece:
    assert first.columns[1] == second.columns[0], "pieces with a gap"
    columns = (first.columns[0], second.columns[1])
    return Piece(
        first.rows,
        columns,
        beside(first.matches, second.matches),
        first.maxima.beside(second.maxima),
        first.standardised and second.standardised and first.standardised.beside(second.standardised),
        first.proposal and second.proposal and first.proposal.beside(second.proposal),
        first.rotated and second.rotated and first.rotated.beside(second.rotated),
    )


def groups_of(accumulators: Sequence[Accumulator]) -> list[int]:
    """The groups of shards that have been read."""
    return sorted({a.group for a in accumulators if a.count and a.group is not None})


class Evidence:
    """The statistics of some groups of a pass, added up where there are several.

    `of` is what of the models' blocks the co-moments are: activations, or the signed sums of a sketch.  `signs` holds,
    of the gated models, 1 or −1 for every neuron, that change sign where the neuron's activation does (those of its
    provisional means): rotations are drawn about activations times them, lest the sign that a neuron happens to have
    be another draw.
    """

    def __init__(
        self,
        statistics: Statistics,
        groups: Sequence[int],
        of: What = What.ACTIVATION,
        signs: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.statistics = statistics
        self.groups = list(groups)
        self.of = of
        self.signs = dict(signs or {})
        self._norms: dict[str, Tensor] = {}

    @property
    def sketched(self) -> bool:
        """Whether the co-moments are those of a sketch."""
        return self.of == What.SUMS

    def by_size(self, *models: str) -> bool:
        """Whether models are matched by |ρ|: one of them is gated."""
        return not self.signs.keys().isdisjoint(models)

    def _total(self, kind: type[Kind], *reads: Named, **attributes: Any) -> Kind:
        first, *others = (self.statistics.get(kind, *reads, group=group, **attributes) for group in self.groups)
        if not others:
            return first
        total = copy.deepcopy(first)
        for other in others:
            total.merge(other)
        return total

    def layers(self, model: str, of: What = What.ACTIVATION) -> LayerCovariance:
        """Within-layer covariances of a model."""
        return self._total(LayerMoments, Key(model, of)).result()

    def spread(self, model: str, of: What = What.ACTIVATION) -> Spread:
        """Sums and squares of a model's neurons."""
        return self._total(SumSquares, Key(model, of)).result()

    def dead(self, model: str) -> Tensor:
        """Mask of a model's dead neurons: constant, or so small that their squares vanish."""
        return self._total(Extremes, model).result() | (self.spread(model).centred <= 0)

    def variances(self, model: str) -> Tensor:
        """Every neuron's variance."""
        return self.spread(model).centred / max(self.count(model), 1)

    def position_share(self, model: str) -> Tensor:
        """The largest share that one position has of every neuron's Σ(x−x̄)²; NaN for dead ones."""
        spread, extremes = self.spread(model), self._total(Extremes, model)
        highest = extremes.highest_square(spread.sum / max(spread.count, 1))
        return torch.where(self.dead(model), torch.nan, (highest / spread.centred).clamp_max(1))

    def norms(self, model: str) -> Tensor:
        """Inverse norms of a model's neurons (see `inverse_norms`)."""
        if model not in self._norms:
            self._norms[model] = inverse_norms(self.spread(model, self.of).centred, self.dead(model))
        return self._norms[model]

    def count(self, model: str) -> int:
        """Positions counted."""
        return self._total(Extremes, model).count

    def certainty(self, asker: str, other: str) -> Certainty:
        """How far the sketch may be off."""
        v: dict[str, Tensor] = {}
        tails: dict[str, Tensor] = {}
        for model in (asker, other):
            energies, dead, spread = self._total(ShardEnergies, model).result(), self.dead(model), self.spread(model)
            v[model] = torch.where(dead, torch.nan, energies.v)
            highest = self._total(Extremes, model).highest_square(spread.sum / max(spread.count, 1))
            tails[model] = torch.where(dead, torch.nan, energies.tails(spread.centred, highest))
            even = energies.even
        return Certainty(v[asker], v[other], even, tails[asker], tails[other])

    def pairs(self, left: str, right: str) -> PairMoments:
        """Co-moments of the candidates of a screened search."""
        return self._total(Candidates, left, right).result()

    def cross(self, asker: str, other: str) -> CrossMoments:
        """Co-moments of all neurons of two models, the asker's in the rows."""
        ((_, _, moments),) = self.panels(CoMoments, asker, other)
        return moments

    def panels(
        self, kind: type[CoMoments], asker: str, other: str, **attributes: Any
    ) -> list[tuple[Rows, Rows, CrossMoments]]:
        """Co-moments of two models as far as they are kept, in panels (rows of the asker, columns of the other)."""
        reads = [Key(model, self.of) for model in (asker, other)]
        forwards = bool(self.statistics.find(kind, *reads, **attributes))
        reads = reads if forwards else reads[::-1]
        panels = []
        for rows in sorted({panel.rows for panel in self.statistics.find(kind, *reads, **attributes)}):
            moments = self._total(kind, *reads, rows=rows, **attributes).result()
            columns = (0, moments.cross.shape[1])
            panels.append((rows, columns, moments) if forwards else (columns, rows, moments.transposed()))
        return panels


def pieces_of(
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
    k = max(k, CANDIDATES_SEEN) if evidence.sketched else k
    left, right = evidence.norms(asker), evidence.norms(other)
    layers = None if config.baseline == "permutation" else evidence.layers(other, evidence.of)
    certainty = evidence.certainty(asker, other) if evidence.sketched else None
    noise = 0.0 if certainty is None else float(certainty.even)
    by_size, signs = evidence.by_size(asker, other), evidence.signs.get(other)
    pieces = []
    for rows, columns, cross in evidence.panels(CoMoments, asker, other):
        ours, theirs = left[slice(*rows)], right[slice(*columns)]
        first = {"rows": rows[0], "columns": columns[0]}
        matches = find_matches(cross, ours, theirs, k, **first, histogram=final, by_size=by_size)
        if layers is None:
            maxima = _shuffled(evidence, asker, other, draws, rows, ours, theirs)
            standardised, rotated = None, None
        else:
            part, some_signs = layers.part(*columns), None if signs is None else signs[slice(*columns)]
            drawing = Drawing(config.baseline, config.seed, draws, noise, by_size, config.top_k)
            places = rows[0], columns[0]
            maxima, standardised, rotated = rotated_maxima(cross, ours, part, drawing, places, some_signs, final=final)
        proposal = None
        if z is not None:
            assert certainty is not None
            some_certainty = certainty.part(slice(*rows), slice(*columns))
            proposal = propose(cross, ours, theirs, some_certainty, z, **first, by_size=by_size)
        pieces.append(Piece(rows, columns, matches, maxima, standardised, proposal, rotated))
    return pieces


def _shuffled(
    evidence: Evidence, asker: str, other: str, draws: int, rows: Rows, left: Tensor, right: Tensor
) -> Maxima:
    """Maxima under shuffled positions: whatever the scale of a neuron."""
    maxima = Maxima.nothing(draws, len(left))
    for draw in range(draws):
        panels = evidence.panels(ShuffledCoMoments, asker, other, draw=draw)
        (cross,) = [moments for of_rows, _, moments in panels if of_rows == rows]
        for neurons, panel in correlation_panels(cross, left, right):
            if evidence.by_size(asker, other):
                panel.abs_()
            highest = panel.nan_to_num(nan=-torch.inf).amax(1)
            maxima.corr[draw, neurons] = torch.where(torch.isnan(left[neurons]), torch.nan, highest).cpu()
    return maxima


def unbiased(piece: Piece, certainty: Certainty, k: int) -> Piece:
    """A sketch's k best matches without the upward bias of a maximum over noisy correlations; by size, of |ρ|."""
    matches = piece.matches
    corr, index = matches.strength[:, :k].clone(), matches.index[:, :k]
    corr[:, 0] -= winners_curse(matches.strength, matches.index, certainty)
    corr = corr.minimum(corr[:, :1])  # no lower rank above the first
    if matches.by_size:
        corr = corr.clamp_min(0).copysign(matches.corr[:, :k])
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
    pieces = [together(pieces_of(evidence, asker, other, config, draws=draws, k=k)) for other in others]
    if evidence.sketched:
        certainties = [evidence.certainty(asker, other) for other in others]
        pieces = [unbiased(piece, c, k or config.top_k) for piece, c in zip(pieces, certainties)]
    return comparison(asker, others, pieces)


def comparison(asker: str, others: Sequence[str], pieces: Sequence[Piece]) -> Comparison:
    """The pieces of every other model as one answer."""
    matches = tuple(piece.matches for piece in pieces)
    raw, standardised = [p.maxima for p in pieces], [p.standardised or p.maxima for p in pieces]
    rotated = tuple(p.rotated for p in pieces if p.rotated is not None)
    assert len(rotated) in (0, len(pieces)), "pairs of some models only"
    return Comparison(asker, tuple(others), matches, Baseline.of(raw), Baseline.of(standardised), rotated)
