"""Screened search: a sketch proposes, a second pass computes exactly, a certificate says what was missed.

1. The candidates of a neuron are those with the highest atanh ρ̂ + z√w (see `certainty`): as many as seem needed to
   find the best of them and be sure, at least 16, at most 128, on average at most 32.  Beside these a few others whose
   upper bounds of ρ stand in a certificate's way: of neurons with much energy in few positions they may say nothing.
2. A second pass adds up Σxy of these pairs alone, over all positions that choose; with the first pass's Σx and Σx²
   that is their exact ρ.
3. A match is certified where the upper bound of every pair that was not computed is below its exact ρ.  It is called
   mutual by the pairs that were computed; these hold the four likeliest askers of every neuron of the other model.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from universal_neurons.matching.correlation import Matches, correlation_panels
from universal_neurons.statistics import LIMIT, Accumulator, Batch, Block, Certainty, CrossMoments, Spread, sparse_rows

CANDIDATES_LEAST, MOST, MEAN = 16, 128, 32  # candidates of a neuron
FEW = 4  # for the most negative ρ; of every neuron of the other model, among the askers; in a certificate's way
BYTES_AT_ONCE = 1 << 31  # of activations gathered together on a GPU


@dataclass(frozen=True)
class Proposal:
    """Candidates of one model's neurons in another, by falling atanh ρ̂ + z√w; −∞ and −1 where there is none.

    `upper` bounds their ρ; `beyond` are of all others those with the highest bounds, `beyond_upper`, whose last bounds
    the rest.  `lowest` are the most negative, with their sketched ρ; `back` the best askers of every neuron of the
    other model.
    """

    bound: Float[Tensor, "neurons k"]
    index: Int[Tensor, "neurons k"]
    upper: Float[Tensor, "neurons k"]
    beyond: Int[Tensor, "neurons beyond"]
    beyond_upper: Float[Tensor, "neurons beyond"]
    lowest: Int[Tensor, "neurons lows"]
    lowest_corr: Float[Tensor, "neurons lows"]
    back: Int[Tensor, "others few"]
    back_corr: Float[Tensor, "others few"]

    def below(self, other: "Proposal") -> "Proposal":
        """The candidates of these askers and of others."""
        own = [f.name for f in fields(self) if not f.name.startswith("back")]
        joined = {name: torch.cat([getattr(self, name), getattr(other, name)]) for name in own}
        back, back_corr = _best_few(self.back, self.back_corr, other.back, other.back_corr)
        return Proposal(**joined, back=back, back_corr=back_corr)

    def beside(self, other: "Proposal") -> "Proposal":
        """The candidates of the same askers in two parts of the other model."""
        width = min(self.bound.shape[1] + other.bound.shape[1], MOST + 1)
        few = min(self.lowest.shape[1] + other.lowest.shape[1], FEW)
        bound, order = torch.cat([self.bound, other.bound], 1).sort(dim=1, descending=True, stable=True)
        index, upper = (
            torch.cat([getattr(p, n) for p in (self, other)], 1).gather(1, order) for n in ("index", "upper")
        )
        low, low_order = torch.cat([self.lowest_corr, other.lowest_corr], 1).topk(few, 1, largest=False)
        dropped = torch.cat([self.beyond_upper, other.beyond_upper, upper[:, width:]], 1)
        beyond_upper, beyond_order = dropped.topk(min(dropped.shape[1], FEW + 1), 1)
        return Proposal(
            bound[:, :width],
            index[:, :width],
            upper[:, :width],
            torch.cat([self.beyond, other.beyond, index[:, width:]], 1).gather(1, beyond_order),
            beyond_upper,
            torch.cat([self.lowest, other.lowest], 1).gather(1, low_order),
            low,
            torch.cat([self.back, other.back]),
            torch.cat([self.back_corr, other.back_corr]),
        )

    def left_out(self, wanted: Int[Tensor, " neurons"]) -> tuple[Tensor, Tensor]:
        """Upper bounds of the others that are not among the `wanted` first candidates, and their numbers."""
        within = torch.arange(self.upper.shape[1])[None] < wanted[:, None]
        upper = torch.cat([self.upper.masked_fill(within, -torch.inf), self.beyond_upper], 1)
        return upper, torch.cat([self.index, self.beyond], 1)

    def in_the_way(
        self, wanted: Int[Tensor, " neurons"], floor: Float[Tensor, " neurons"]
    ) -> Int[Tensor, "neurons few"]:
        """The few of these whose upper bounds most exceed what the best ρ is at least; −1 where there are fewer."""
        upper, index = self.left_out(wanted)
        upper, order = upper.topk(min(FEW, upper.shape[1]), 1)
        return index.gather(1, order).masked_fill(~(upper > floor[:, None]), -1)


def _best_few(index: Tensor, corr: Tensor, more: Tensor, more_corr: Tensor) -> tuple[Tensor, Tensor]:
    corr, order = torch.cat([corr, more_corr], 1).topk(max(corr.shape[1], more_corr.shape[1]), 1)
    return torch.cat([index, more], 1).gather(1, order), corr


def propose(
    cross: CrossMoments,
    left: Float[Tensor, " left"],
    right: Float[Tensor, " right"],
    certainty: Certainty,
    z: float,
    *,
    rows: int = 0,
    columns: int = 0,
    by_size: bool = False,
) -> Proposal:
    """The candidates of every left neuron; arguments as of `correlation.find_matches` (`by_size`: bounds of |ρ|)."""
    panels = []
    most, few = min(MOST + 1, len(right)), min(FEW, len(right))
    back, back_corr = torch.full((len(right), FEW), -1), torch.full((len(right), FEW), -torch.inf, dtype=torch.float64)
    for rows_here, rho in correlation_panels(cross, left, right):
        missing = torch.isnan(rho)
        low, lowest = rho.masked_fill(missing, torch.inf).topk(few, 1, largest=False)
        rho = rho.abs_() if by_size else rho
        highest, asker = rho.masked_fill(missing, -torch.inf).T.topk(min(FEW, len(rho)), 1)
        back, back_corr = _best_few(back, back_corr, asker.cpu() + rows_here.start + rows, highest.cpu())
        bound = rho.clamp(-LIMIT, LIMIT).atanh_().add_(certainty.reach(z, rows_here)).masked_fill_(missing, -torch.inf)
        upper = certainty.upper(rho, z, rows_here).masked_fill_(missing, -torch.inf)
        bound, index = bound.topk(most, 1)
        listed = upper.gather(1, index)
        beyond_upper, beyond = upper.scatter_(1, index, -torch.inf).topk(min(FEW + 1, len(right)), 1)
        index = (index + columns).masked_fill(torch.isinf(bound), -1)
        beyond = (beyond + columns).masked_fill(beyond_upper == -torch.inf, -1)
        lowest = (lowest + columns).masked_fill(torch.isinf(low), -1)
        panels.append([part.cpu() for part in (bound, index, listed, beyond, beyond_upper, lowest, low)])
    names = [f.name for f in fields(Proposal) if not f.name.startswith("back")]
    parts = dict(zip(names, map(torch.cat, zip(*panels))))
    return Proposal(**parts, back=back.masked_fill(torch.isinf(back_corr), -1), back_corr=back_corr)


def least_best(best: Float[Tensor, " neurons"], certainty: Certainty) -> Float[Tensor, " neurons"]:
    """What the highest exact ρ of every neuron is at least, expected, where `best` is the sketched one."""
    return (best.clamp(-LIMIT, LIMIT).atanh() - certainty.even.cpu().sqrt()).tanh()


def how_many(proposal: Proposal, floor: Float[Tensor, " neurons"], least: int) -> Int[Tensor, " neurons"]:
    """How many candidates of every neuron to compute: all that may exceed `floor` (see `least_best`), expected.

    The easiest neurons first, until there are `MEAN` per neuron.
    """
    width = proposal.bound.shape[1]
    needed = (proposal.upper > floor[:, None]).sum(1)
    least, most = min(least, width), min(MOST, width)
    wanted = needed.clamp(least, most)
    wanted[(needed > most) | torch.isnan(floor)] = least
    order = wanted.argsort(stable=True)
    allowed = least * len(wanted) + (wanted[order] - least).cumsum(0) <= max(MEAN, least) * len(wanted)
    wanted[order[~allowed]] = least
    return wanted


def pairs_of(
    proposal: Proposal,
    wanted: Int[Tensor, " neurons"],
    floor: Float[Tensor, " neurons"],
    n_others: int,
    back: bool = False,
    *,
    lowest: bool = True,
) -> Int[np.ndarray, " pairs"]:
    """The pairs to compute as sorted numbers asker · n_others + other (`back`: other · n_askers + asker).

    Those of the most negative ρ among them, or (`lowest`) not.
    """
    (n, width), n_back = proposal.index.shape, len(proposal.back)
    index = proposal.index.masked_fill(torch.arange(width)[None] >= wanted[:, None], -1)
    index = torch.cat([index, proposal.in_the_way(wanted, floor), proposal.lowest[:, : None if lowest else 0]], 1)
    asker = torch.cat([torch.arange(n)[:, None].expand_as(index)[index >= 0], proposal.back[proposal.back >= 0]])
    other = torch.cat([index[index >= 0], torch.arange(n_back)[:, None].expand_as(proposal.back)[proposal.back >= 0]])
    return np.unique((other * n + asker if back else asker * n_others + other).numpy())


class Candidates(Accumulator):
    """Σxy of some pairs of two models' neurons; pairs are sorted numbers left · n_right + right."""

    TENSORS = ("pairs", "cross")
    SAME: ClassVar[dict[str, str]] = {"pairs": "candidates"}

    def __init__(
        self, left: str, right: str, pairs: Tensor, n_left: int, n_right: int, *, group: int = 0, device: Any = "cpu"
    ) -> None:
        super().__init__((left, right), group)
        self.pairs = pairs.to(device, copy=True)  # groups do not share it
        self.n_right = n_right
        self.left, self.right = self.pairs // n_right, self.pairs % n_right
        self.ends = torch.cat([self.left.new_zeros(1), torch.bincount(self.left, minlength=n_left).cumsum(0)])
        self.cross = torch.zeros(len(pairs), dtype=torch.float64, device=device)
        counts = self.ends.diff()
        self.by_count = counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())]

    def update(self, batch: Batch) -> None:
        """Add a batch of positions."""
        left, right = self.blocks(batch)
        self.count += left.count
        self.cross += (self._gathered(left, right) if self.cross.is_cuda else self._sampled(left, right)).double()

    def _sampled(self, left: Block, right: Block) -> Float[Tensor, " pairs"]:
        shape = (len(self.ends) - 1, self.n_right)
        wanted = sparse_rows(self.ends, self.right, torch.zeros(len(self.pairs)), shape)
        return torch.sparse.sampled_addmm(wanted, left.transposed.float(), right.transposed.float().T).values()

    def _gathered(self, left: Block, right: Block) -> Float[Tensor, " pairs"]:
        """Neurons with about as many candidates each are multiplied together, each with its own."""
        products = torch.empty(len(self.pairs), device=self.cross.device)
        room = max(1, BYTES_AT_ONCE // (left.values.element_size() * max(1, len(left.values))))
        start = 0
        while start < len(self.by_count):
            first = self.ends[self.by_count[start] :][:2]
            width = int(first[1] - first[0])  # the most of those that are left
            mine = self.by_count[start : start + max(1, room // width)]
            begin, count = self.ends[mine, None], self.ends[mine + 1, None] - self.ends[mine, None]
            within = torch.arange(width, device=mine.device)
            places, there = begin + within.minimum(count - 1), within < count
            theirs = right.transposed[self.right[places]]
            found = batched_products(left.transposed[mine], theirs)
            products[places[there]] = found[there]
            start += len(mine)
        return products

    def result(self) -> "PairMoments":
        """The sums so far."""
        return PairMoments(self.count, self.left.cpu().numpy(), self.right.cpu().numpy(), self.cross.cpu().numpy())


def batched_products(
    left: Float[Tensor, "neurons tokens"], right: Float[Tensor, "neurons candidates tokens"]
) -> Float[Tensor, "neurons candidates"]:
    """Σxy of each neuron with its own candidates, in float32."""
    if left.dtype == torch.float32:
        return torch.bmm(right, left[:, :, None])[:, :, 0]
    return torch.bmm(right, left[:, :, None], out_dtype=torch.float32)[:, :, 0]


@dataclass(frozen=True)
class PairMoments:
    """Result of `Candidates`: count, the pairs, and Σxy of shifted values."""

    count: int
    left: Int[np.ndarray, " pairs"]
    right: Int[np.ndarray, " pairs"]
    cross: Float[np.ndarray, " pairs"]

    def corr(self, left: Spread, right: Spread) -> Float[np.ndarray, " pairs"]:
        """The exact ρ of every pair."""
        sums = [spread.sum.cpu().numpy() for spread in (left, right)]
        squares = [spread.centred.cpu().numpy() for spread in (left, right)]
        centred = self.cross - sums[0][self.left] * sums[1][self.right] / self.count
        return np.clip(centred / np.sqrt(squares[0][self.left] * squares[1][self.right]), -1, 1)


def exact_matches(
    sketched: Matches,
    proposal: Proposal,
    wanted: Int[Tensor, " neurons"],
    asker: Int[np.ndarray, " pairs"],
    other: Int[np.ndarray, " pairs"],
    corr: Float[np.ndarray, " pairs"],
    k: int,
    likely: Bool[np.ndarray, " pairs"],
) -> Matches:
    """Matches by the exact ρ of the pairs that were computed, and which of them are certified.

    `likely` pairs are those computed because they may be the best.  By size only these certify: which others were, for
    the most negative ρ, depends on signs that are nobody's choice.
    """
    n, living = len(sketched.corr), torch.isfinite(sketched.corr[:, 0])
    k = max(1, min(k, int((proposal.index >= 0).sum(1).max())))
    strength = np.abs(corr) if sketched.by_size else corr
    best, index = _highest(n, asker, other, strength, k)
    lowest, low_index = _highest(n, asker, other, -corr, 1)
    back, back_index = _highest(len(sketched.best_back), other, asker, strength, 1)
    certifying = likely if sketched.by_size else np.ones(len(likely), bool)
    left_out = _highest_left_out(proposal, wanted, asker[certifying], other[certifying])
    certified = living & (left_out <= best[:, 0])
    missing = ~living[:, None] | torch.isinf(best)
    return replace(
        sketched,
        corr=(_signed(best, index, asker, other, corr) if sketched.by_size else best).masked_fill(missing, torch.nan),
        index=index.masked_fill(missing, -1),
        lowest_corr=(-lowest[:, 0]).masked_fill(~living, torch.nan),
        lowest_index=low_index[:, 0].masked_fill(~living, -1),
        best_back=back_index[:, 0],
        back_corr=back[:, 0],
        certified=certified,
    )


def _signed(
    best: Tensor,
    index: Tensor,
    asker: Int[np.ndarray, " pairs"],
    other: Int[np.ndarray, " pairs"],
    corr: Float[np.ndarray, " pairs"],
) -> Tensor:
    """The best |ρ| of every row with the signs that the pairs have."""
    width = int(other.max(initial=0)) + 1
    negative = torch.from_numpy((asker * width + other)[corr < 0])
    codes = torch.arange(len(index))[:, None] * width + index
    return torch.where((index >= 0) & torch.isin(codes, negative), -best, best)


def _highest_left_out(
    proposal: Proposal, wanted: Tensor, asker: Int[np.ndarray, " pairs"], other: Int[np.ndarray, " pairs"]
) -> Float[Tensor, " neurons"]:
    """The highest upper bound of the pairs of every neuron that were not computed."""
    upper, index = proposal.left_out(wanted)
    n_others = len(proposal.back)
    codes = (torch.arange(len(index))[:, None] * n_others + index)[:, :-1].numpy()
    computed = torch.from_numpy(np.isin(codes, asker * n_others + other)) & (index[:, :-1] >= 0)
    return torch.maximum(upper[:, :-1].masked_fill(computed, -torch.inf).amax(1), upper[:, -1])


def _highest(
    n: int, rows: Int[np.ndarray, " pairs"], columns: Int[np.ndarray, " pairs"], values: np.ndarray, k: int
) -> tuple[Tensor, Tensor]:
    """The k highest values of every row and their columns; −∞ and −1 where there are fewer."""
    order = np.lexsort((columns, -values, rows))
    sorted_rows = rows[order]
    starts = np.searchsorted(sorted_rows, np.arange(n))
    rank = np.arange(len(order)) - starts[sorted_rows]
    kept = rank < k
    best, index = np.full((n, k), -np.inf), np.full((n, k), -1)
    best[sorted_rows[kept], rank[kept]] = values[order][kept]
    index[sorted_rows[kept], rank[kept]] = columns[order][kept]
    return torch.from_numpy(best), torch.from_numpy(index)
