"""One-to-one: the assignment of largest total ρ between the units of two models, each unit used once at most.

1. Every asker proposes its k best matches.  A pair is worth its ρ (|ρ| by size), staying unmatched is worth 0.
2. The assignment of largest total worth is a full matching of least weight in a sparse graph: askers on one side, their
   candidates and one place of its own for every asker (unmatched) on the other (`min_weight_full_bipartite_matching`,
   the sparse Jonker-Volgenant algorithm).
3. The same is made of the asker's k best rotated units of the baseline's first draw: what an assignment is worth in a
   random basis.  From which ρ up pairs are more than that (`shared`): the least ρ with (1 + pairs of the random basis)
   / pairs ≤ 0.05, counted from there up, as knockoffs are (Barber & Candès 2015).

Two dictionaries on one stream have latents that are alike even where their directions are independent: sparse codes of
one input.  Their directions say more: `pw_mcc`, the pairwise mean correlation coefficient (Song et al. 2025,
arXiv 2505.20254), the mean cosine of paired decoder directions, beside that of a decoder whose directions are rotated.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

from universal_neurons.matching.baselines import rotation
from universal_neurons.matching.comparison import Comparison

UNMATCHED = -1
WORTHLESS = 2.0  # the weight of a pair of worth 0: weights are above 0, which a sparse matrix would not hold
DISCOVERY = 0.05
PANEL_ROWS = 4096


@dataclass(frozen=True)
class OneToOne:
    """Every asker's partner by number (−1: none), what the pair is worth, and what its best candidate would be.

    `strength` is ρ, or |ρ| by size: 0 of an unmatched unit.  `corr` is signed, NaN of an unmatched one.  Dead askers
    have −1 and NaN throughout.
    """

    partner: Int[np.ndarray, " units"]
    rank: Int[np.ndarray, " units"]
    corr: Float[np.ndarray, " units"]
    strength: Float[np.ndarray, " units"]
    best: Float[np.ndarray, " units"]

    @property
    def living(self) -> Bool[np.ndarray, " units"]:
        """Which askers have a candidate at all."""
        return np.isfinite(self.best)

    @property
    def matched(self) -> Bool[np.ndarray, " units"]:
        """Which askers have a partner."""
        return self.partner >= 0

    @property
    def moved(self) -> Bool[np.ndarray, " units"]:
        """Which living askers have another partner than their best match, or none."""
        return self.living & (self.rank != 1)

    @property
    def cost(self) -> Float[np.ndarray, " units"]:
        """What each living asker gives up of its best match's worth; NaN of dead ones."""
        return self.best.clip(0) - self.strength

    @property
    def worth(self) -> Float[np.ndarray, " pairs"]:
        """What every pair is worth."""
        return self.strength[self.matched]

    @property
    def mean(self) -> float:
        """The mean worth of the pairs; NaN where there is none."""
        return float(self.worth.mean()) if self.matched.any() else np.nan

    def pairs_from(self, level: float) -> int:
        """How many pairs are worth at least so much."""
        return int((self.worth >= level).sum())


def assign(
    corr: Float[np.ndarray, "units few"], candidates: Int[np.ndarray, "units few"], *, by_size: bool = False
) -> OneToOne:
    """The assignment of largest total worth; of an asker's candidates the first is its best match.

    A candidate of −1, and a ρ that is not finite, are none.
    """
    strength = np.abs(corr) if by_size else corr
    known = (candidates >= 0) & np.isfinite(strength)
    place = _places(np.where(known, strength, -np.inf), candidates)
    chosen = place >= 0
    at = np.maximum(place, 0)[:, None]

    def of(values: np.ndarray, nothing: float | int) -> np.ndarray:
        return np.where(chosen, np.take_along_axis(values, at, 1)[:, 0], nothing)

    living = known.any(1)
    return OneToOne(
        partner=of(candidates, UNMATCHED).astype(np.int64),
        rank=np.where(chosen, place + 1, UNMATCHED),
        corr=of(corr, np.nan).astype(np.float64),
        strength=np.where(living, of(strength, 0.0), np.nan).astype(np.float64),
        best=np.where(living, np.where(known, strength, -np.inf).max(1, initial=-np.inf), np.nan).astype(np.float64),
    )


def _places(worth: Float[np.ndarray, "units few"], candidates: Int[np.ndarray, "units few"]) -> np.ndarray:
    """Which of its candidates every asker is given; −1 for none."""
    units, place = np.nonzero(worth > 0)
    others, column = np.unique(candidates[units, place], return_inverse=True)
    n = len(worth)
    rows, columns = np.concatenate([units, np.arange(n)]), np.concatenate([column, len(others) + np.arange(n)])
    weights = np.concatenate([WORTHLESS - worth[units, place], np.full(n, WORTHLESS)]).astype(np.float64)
    graph = csr_array((weights, (rows, columns)), shape=(n, len(others) + n))
    matched, to = min_weight_full_bipartite_matching(graph)
    partner = np.full(n, UNMATCHED)
    given = to < len(others)
    partner[matched[given]] = others[to[given]]
    same = (candidates == partner[:, None]) & (partner >= 0)[:, None]
    return np.where(same.any(1), same.argmax(1), UNMATCHED)


def assignments(comparison: Comparison) -> tuple[OneToOne, ...]:
    """The assignments between an asker and every other model, from the k best matches of every unit."""
    return tuple(assign(m.corr.numpy(), m.index.numpy(), by_size=m.by_size) for m in comparison.matches)


def rotated_assignments(comparison: Comparison) -> tuple[OneToOne, ...] | None:
    """Those between the asker and the other models' rotated units; None where nobody rotated them."""
    if not comparison.rotated:
        return None
    return tuple(assign(pairs.few_corr.numpy(), pairs.few_units.numpy()) for pairs in comparison.rotated)


@dataclass(frozen=True)
class Shared:
    """How many pairs are more than chance gives, of how many living units; `level`, what the least is worth, or NaN."""

    count: int
    of: int
    level: float

    @property
    def share(self) -> float:
        """Their share of the living units."""
        return self.count / self.of if self.of else np.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval over units (Wilson)."""
        if not self.of:
            return np.nan, np.nan
        from scipy import stats  # late: half a second

        interval = stats.binomtest(self.count, self.of).proportion_ci(method="wilson")
        return float(interval.low), float(interval.high)


def shared(worth: Float[np.ndarray, " pairs"], by_chance: Float[np.ndarray, " chance"], of: int) -> Shared:
    """The pairs from the least worth up at which (1 + pairs by chance) / pairs is at most 0.05; `of` so many units."""
    ours, theirs = np.sort(worth), np.sort(by_chance)
    n_ours = len(ours) - np.arange(len(ours))
    n_theirs = len(theirs) - np.searchsorted(theirs, ours, side="left")
    good = np.flatnonzero((1 + n_theirs) / np.maximum(n_ours, 1) <= DISCOVERY)
    return Shared(int(n_ours[good[0]]), of, float(ours[good[0]])) if len(good) else Shared(0, of, np.nan)


@dataclass(frozen=True)
class DecoderCosines:
    """The cosines of paired decoder directions (PW-MCC is their mean), and those with one decoder rotated.

    `pairs` are the rows of either decoder, `of` how many rows of the first live.
    """

    pairs: Int[np.ndarray, "pairs 2"]
    cosines: Float[np.ndarray, " pairs"]
    by_chance: Float[np.ndarray, " chance"]
    of: int

    @property
    def mean(self) -> float:
        """PW-MCC."""
        return float(self.cosines.mean()) if len(self.cosines) else np.nan

    @property
    def rotated(self) -> float:
        """PW-MCC with one decoder rotated."""
        return float(self.by_chance.mean()) if len(self.by_chance) else np.nan

    @property
    def shared(self) -> Shared:
        """The pairs whose cosines are more than those with the rotated decoder."""
        return shared(self.cosines, self.by_chance, self.of)

    @property
    def calibrated(self) -> tuple[float, float, float]:
        """(PW-MCC − rotated) / (1 − rotated) and its 95 % interval over pairs: 0 is chance, 1 the same directions."""
        values = (self.cosines - self.rotated) / (1 - self.rotated)
        if len(values) < 2:
            return float(values.mean()) if len(values) else np.nan, np.nan, np.nan
        from scipy import stats  # late: half a second

        reach = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
        return float(values.mean()), float(values.mean() - reach), float(values.mean() + reach)


def pw_mcc(
    decoder_a: Float[Tensor, "units width"],
    decoder_b: Float[Tensor, "others width"],
    pairs: Int[np.ndarray, "pairs 2"] | None = None,
    *,
    few: int = 10,
    seed: int = 0,
) -> DecoderCosines:
    """The cosines of two decoders' paired directions: of the `pairs` given, else of the assignment of largest total
    cosine from the `few` nearest directions of each.

    The rotated value is of `decoder_b` times a random orthogonal matrix, the assignment made anew, or for the pairs
    given.  Rows of norm 0 are dead, and in no pair.
    """
    ours, theirs = _unit_rows(decoder_a), _unit_rows(decoder_b)
    turned = theirs @ rotation("rotation", theirs.shape[1], seed, 0).float().to(theirs.device)
    chosen, cosines = _paired(ours, theirs, pairs, few)
    living = int(torch.isfinite(ours[:, 0]).sum())
    return DecoderCosines(chosen, cosines, _paired(ours, turned, pairs, few)[1], living)


def _unit_rows(decoder: Float[Tensor, "units width"]) -> Float[Tensor, "units width"]:
    norms = decoder.float().norm(dim=1, keepdim=True)
    return torch.where(norms > 0, decoder.float() / norms, torch.nan)


def _paired(
    ours: Float[Tensor, "units width"],
    theirs: Float[Tensor, "others width"],
    pairs: Int[np.ndarray, "pairs 2"] | None,
    few: int,
) -> tuple[Int[np.ndarray, "living 2"], Float[np.ndarray, " living"]]:
    if pairs is None:
        found = assign(*nearest(ours, theirs, few))
        units = np.flatnonzero(found.matched)
        return np.stack([units, found.partner[units]], 1), found.strength[units]
    cosines = torch.linalg.vecdot(ours[pairs[:, 0]], theirs[pairs[:, 1]]).double().cpu().numpy()
    known = np.isfinite(cosines)
    return pairs[known], cosines[known]


def nearest(
    ours: Float[Tensor, "units width"], theirs: Float[Tensor, "others width"], few: int
) -> tuple[Float[np.ndarray, "units few"], Int[np.ndarray, "units few"]]:
    """The highest cosines of every row with the other's rows, and with which; rows have norm 1, or are NaN (dead)."""
    corr, index = [], []
    for rows in ours.split(PANEL_ROWS):
        cosines = (rows @ theirs.T).nan_to_num(nan=-torch.inf)
        best = cosines.topk(min(few, len(theirs)), 1)
        corr.append(best.values.double().cpu())
        index.append(best.indices.masked_fill(torch.isinf(best.values), UNMATCHED).cpu())
    return torch.cat(corr).clamp_max(1).numpy(), torch.cat(index).numpy()
