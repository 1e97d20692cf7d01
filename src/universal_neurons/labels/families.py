"""What a neuron fires on: the label that explains most of its variance, and the family of that label (paper §4.3).

1. The variance reduction of a binary label (eq 4) is ρ² of the neuron with it.  With N positions, n of them labelled, S
   the sum of the neuron's values there and x̄ its mean: (S − n x̄)² / (n (1 − n/N) Σ(x−x̄)²).
2. Position as a whole counts too, by the between-position share of the variance, adjusted for its many values:
   1 − (1 − η²)(N − 1)/(N − T).
3. The best label is judged on rows that did not choose it (where it holds at 20 positions or more there).  Under the
   null the labels of other rows stand against a row's activations; a label explains a neuron if its score beats the
   best null score of that neuron and the 99th percentile of all its model's neurons, and a floor below which nobody
   would call it an explanation.
4. A neuron that no label explains is a position neuron by the mutual information of firing with position, a BOS neuron
   where it fires at BOS more than anywhere, or unexplained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from universal_neurons.labels.categories import TIE, UNEXPLAINED, null_level
from universal_neurons.labels.label_set import Label, LabelSet
from universal_neurons.models import Described
from universal_neurons.statistics import (
    BY_POSITION,
    BY_PREVIOUS,
    BY_WORD,
    LABELS,
    CoMoments,
    GroupedSums,
    GroupMeans,
    Key,
    Named,
    Recipe,
    Spread,
    Statistics,
    SumSquares,
    What,
)

FEWEST = 20  # positions that a label must hold for, and not hold for
PANEL_NEURONS = 1024
POSITION_MI = 0.05  # nats
MOST_OWN = 10**6  # own labels × neurons of a model: up to so many, all scores of own labels are kept, …
MOST_NEURONS = 1000  # … else those of the best neurons of each
POSITION = Label("position", "position")
FAMILY_OF_GROUP = {
    "tokens": "token_class", "own": "token_class", "unigrams": "unigram", "syntax": "syntax", "subsets": "context",
    "topics": "context", "position": "position",
}  # fmt: skip


def family_of(label: Label) -> str:
    """The family that a label stands for."""
    if label.previous:
        return "previous_token"
    letter = label.name.partition(" (")[0]
    if label.group == "unigrams" and len(letter) == 1 and letter.isalpha():
        return "alphabet"
    return FAMILY_OF_GROUP[label.group]


def label_recipes(
    labels: LabelSet, models: Sequence[Described], *, dense: bool, width: int, null: bool = False
) -> list[Recipe]:
    """Sums of every label with every neuron; `width` is that of the labels' block, `null` adds the null's."""
    recipes: list[Recipe] = []
    groups = {BY_WORD: labels.n_words, BY_PREVIOUS: labels.previous_table.shape[1]}
    for model in models:
        name, n = model.name, model.n_neurons
        recipes.append(partial(SumSquares, name, n))
        for of_null in (False, True) if null else (False,):

            def named(key: Key, of_null: bool = of_null) -> Key:
                return key.null if of_null else key

            if not dense:
                recipes += [partial(GroupMeans, name, named(by), count, n) for by, count in groups.items()]
            if labels.position_labels:
                by, pre = named(BY_POSITION), Key(name, What.PRE)
                recipes.append(partial(GroupMeans, name, by, labels.context, n))
                recipes.append(partial(GroupMeans, pre, by, labels.context, n, of="firing"))
            if width:
                recipes.append(partial(CoMoments, named(LABELS), name, width, n, group=None))
    return recipes


@dataclass(frozen=True)
class OwnScores:
    """Labels of the user's own, with every neuron or the best `MOST_NEURONS` of each: `rank` is among all labels.

    `index` are places in `labels.all`; the signed reduction is NaN where a label or a neuron cannot be judged.
    """

    index: Int[Tensor, " own"]
    neuron: Int[Tensor, "own kept"]
    reduction: Float[Tensor, "own kept"]
    rank: Int[Tensor, "own kept"]


@dataclass(frozen=True)
class Scores:
    """The best labels of every neuron, best first: places in `labels.all` (one past its end: position as a whole)."""

    index: Int[np.ndarray, "k neurons"]
    variance_reduction: Float[np.ndarray, "k neurons"]
    sign: Int[np.ndarray, "k neurons"]
    own: OwnScores | None = None

    @property
    def second(self) -> Float[np.ndarray, " neurons"]:
        """What the second best label explains; NaN where there is one label only."""
        return self.variance_reduction[1] if len(self.index) > 1 else np.full(self.index.shape[1], np.nan)


class LabelEvidence:
    """What a pass's statistics say of every label with every neuron, on the CPU; with `null`, of the null's labels.

    `orientation` holds, of gated models, 1 or −1 for every neuron: by which its activation counts (`orientation_of`).
    """

    def __init__(
        self,
        labels: LabelSet,
        statistics: Statistics,
        *,
        dense: bool,
        null: bool = False,
        orientation: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.labels, self.statistics, self.dense, self.null = labels, statistics, dense, null
        self.orientation = {name: torch.from_numpy(signs) for name, signs in (orientation or {}).items()}
        self.own = torch.tensor(labels.own, dtype=torch.int64)
        self.tables = [_sparse(t) for t in (labels.word_table, labels.previous_table, labels.position_table)]

    def spread(self, model: str) -> Spread:
        """Σx and Σx² of a model's neurons."""
        result = self.statistics.get(SumSquares, model, group=None).result()
        return Spread(result.count, result.sum.cpu(), result.squares.cpu())

    def _named(self, key: Key) -> Key:
        return key.null if self.null else key

    def grouped(self, reads: Named, by: Key, of: str = "values", neurons: slice = slice(None)) -> GroupedSums | None:
        """Sums by word, previous token or position, of some neurons; None where they were not kept."""
        kept = self.statistics.find(GroupMeans, reads, by=self._named(by), of=of)
        if not kept:
            return None
        result = kept[0].result()
        return GroupedSums(result.counts.cpu(), result.sums[:, neurons].cpu())

    def sums(
        self, model: str, neurons: slice = slice(None)
    ) -> tuple[Float[Tensor, " labels"], Float[Tensor, "labels neurons"]]:
        """How many positions each label holds for, and Σx of some neurons there, in the order of `labels.all`."""
        counts, sums = [], []
        columns = self.statistics.find(CoMoments, self._named(LABELS), model)
        block_counts, block = torch.zeros(0), torch.zeros(0, 0)
        if columns:
            moments = columns[0].result()
            block_counts, block = moments.left_sum.cpu(), moments.cross[:, neurons].cpu()
        for name, table in zip((BY_WORD, BY_PREVIOUS, BY_POSITION), self.tables):
            grouped = self.grouped(model, name, neurons=neurons)
            if grouped is not None:
                counts.append(torch.sparse.mm(table, grouped.counts.double()[:, None])[:, 0])
                sums.append(torch.sparse.mm(table, grouped.sums))
            elif len(table):
                counts.append(block_counts[: len(table)])
                sums.append(block[: len(table)])
                block_counts, block = block_counts[len(table) :], block[len(table) :]
        if len(block):
            counts.append(block_counts)
            sums.append(block)
        if not counts:
            n = len(self.spread(model).sum[neurons])
            return torch.zeros(0, dtype=torch.float64), torch.zeros(0, n, dtype=torch.float64)
        return torch.cat(counts), torch.cat(sums)

    def reductions(self, model: str, neurons: slice = slice(None)) -> Float[Tensor, "labels neurons"]:
        """Signed variance reduction of every label (the last row: position as a whole) for some neurons; of gated ones
        the sign is that of the activation times its orientation.

        −1 … 1; NaN for neurons that never change, and for labels that hold, or do not, at fewer than 20 positions.
        """
        spread = self.spread(model)
        total = spread.centred[neurons]
        counts, sums = self.sums(model, neurons)
        rows = [variance_reduction(counts, sums, spread.count, spread.sum[neurons], total)]
        if model in self.orientation:
            rows[0] *= self.orientation[model][neurons]
        positions = self.grouped(model, BY_POSITION, neurons=neurons)
        if positions is not None:
            rows.append(adjusted_eta_squared(positions, total)[None])
        return torch.cat(rows)

    def best(self, model: str, k: int = 5, *, with_own: bool = False) -> Scores:
        """The k labels with the highest variance reduction and, with `with_own`, all of the user's own.

        Of two that say the same, one of the user's own comes first, else (one of two subsets, and the other) the one
        that holds where the neuron is higher.
        """
        parts = []
        own: list[OwnScores] = []
        for panel in self._panels(model):
            values = self.reductions(model, panel)
            size = values.abs().nan_to_num(nan=-1.0)  # a label that cannot be judged comes last
            order = self._order(values, size)
            if with_own and len(self.own):
                own = [_of_best_neurons([*own, self._own_scores(values, order, panel)], self._most_neurons(model))]
            order = order[:k].clone()  # not the rest of the panel's with it
            parts.append((order, size.gather(0, order), values.gather(0, order).nan_to_num(nan=0.0).sign().int()))
        index, best, sign = (torch.cat(part, 1).cpu().numpy() for part in zip(*parts))
        return Scores(index, np.where(best < 0, np.nan, best), sign, own[0] if own else None)

    def _order(
        self, values: Float[Tensor, "labels neurons"], size: Float[Tensor, "labels neurons"]
    ) -> Int[Tensor, "labels neurons"]:
        """Labels from the best to the worst, of each neuron."""
        ranked = torch.where(values > 0, size * (1 + TIE), size)
        ranked[self.own] *= 1 + 2 * TIE
        return ranked.argsort(dim=0, descending=True, stable=True)

    def _own_scores(
        self, values: Float[Tensor, "labels neurons"], order: Int[Tensor, "labels neurons"], panel: slice
    ) -> OwnScores:
        ranks = torch.arange(1, len(order) + 1)[:, None].expand_as(order)
        rank = torch.empty_like(order).scatter_(0, order, ranks)[self.own]
        neuron = torch.arange(panel.start, panel.stop).expand(len(self.own), -1)
        return OwnScores(self.own, neuron, values[self.own], rank)

    def _most_neurons(self, model: str) -> int:
        n = len(self.spread(model).sum)
        return n if len(self.own) * n <= MOST_OWN else MOST_NEURONS

    def of(self, model: str, index: Int[np.ndarray, " neurons"]) -> Float[np.ndarray, " neurons"]:
        """The signed variance reduction of one label for each neuron."""
        where = torch.from_numpy(index)
        parts = []
        for panel in self._panels(model):
            values = self.reductions(model, panel)
            parts.append(values.gather(0, where[panel][None].to(values.device))[0])
        return torch.cat(parts).cpu().numpy()

    def _panels(self, model: str) -> list[slice]:
        n = len(self.spread(model).sum)
        return [slice(start, min(start + PANEL_NEURONS, n)) for start in range(0, n, PANEL_NEURONS)]

    def position_information(self, model: str) -> Float[np.ndarray, " neurons"] | None:
        """Mutual information of firing with position, in nats."""
        firing = self.grouped(Key(model, What.PRE), BY_POSITION, "firing")
        return None if firing is None else mutual_information(firing).cpu().numpy()


def _of_best_neurons(parts: Sequence[OwnScores], most: int) -> OwnScores:
    """Scores with several parts of the neurons: the best so many of each label."""
    neuron, reduction, rank = (
        torch.cat([getattr(part, name) for part in parts], 1) for name in ("neuron", "reduction", "rank")
    )
    if neuron.shape[1] > most:
        size = reduction.abs().nan_to_num(nan=-1.0)
        best = size.argsort(dim=1, descending=True, stable=True)[:, :most]
        neuron, reduction, rank = (values.gather(1, best) for values in (neuron, reduction, rank))
    return OwnScores(parts[0].index, neuron, reduction, rank)


def _sparse(table: Bool[np.ndarray, "labels groups"]) -> Tensor:
    """A table of labels as a sparse matrix of ones: a word has some twenty of them."""
    where = torch.from_numpy(np.stack(np.nonzero(table)))
    ones = torch.ones(where.shape[1], dtype=torch.float64)
    return torch.sparse_coo_tensor(where, ones, table.shape, check_invariants=True).coalesce()


def variance_reduction(
    counts: Float[Tensor, " labels"],
    sums: Float[Tensor, "labels neurons"],
    n: int,
    total: Float[Tensor, " neurons"],
    squares: Float[Tensor, " neurons"],
) -> Float[Tensor, "labels neurons"]:
    """Eq 4 with the sign of the difference: `total` is Σx, `squares` Σ(x−x̄)² over all n positions."""
    used = (counts >= FEWEST) & (n - counts >= FEWEST)
    difference = sums - torch.outer(counts, total / max(n, 1))
    spread = torch.where(used, counts * (1 - counts / max(n, 1)), torch.nan)
    share = difference.square() / spread[:, None] / torch.where(squares > 0, squares, torch.nan)
    return share.clamp_max(1) * difference.sign()


def adjusted_eta_squared(groups: GroupedSums, squares: Float[Tensor, " neurons"]) -> Float[Tensor, " neurons"]:
    """Between-group share of the variance, adjusted for the number of groups (ε² of Kelley); not below 0."""
    seen = groups.counts > 0
    counts, sums = groups.counts[seen].double(), groups.sums[seen]
    n, t = int(counts.sum()), len(counts)
    if n <= t:
        return torch.full_like(squares, torch.nan)
    between = (sums.square() / counts[:, None]).sum(0) - sums.sum(0).square() / n
    share = between / torch.where(squares > 0, squares, torch.nan)
    return (1 - (1 - share) * (n - 1) / (n - t)).clamp(0, 1)


def mutual_information(firing: GroupedSums) -> Float[Tensor, " neurons"]:
    """(1/T) Σ_t [f_t ln(f_t/f) + (1−f_t) ln((1−f_t)/(1−f))], f_t the share of firing at position t, f its mean.

    0 ln 0 = 0; its bias in small samples, (T − 1)/2n, is taken off.
    """
    seen = firing.counts > 0
    counts = firing.counts[seen].double()
    if not len(counts):
        return torch.full_like(firing.sums[0], torch.nan)
    share = firing.sums[seen] / counts[:, None]
    mean = share.mean(0)

    def part(p: Tensor, q: Tensor) -> Tensor:
        return torch.special.xlogy(p, p / q).nan_to_num(nan=0.0)

    information = (part(share, mean) + part(1 - share, 1 - mean)).mean(0)
    return information - (len(counts) - 1) / (2 * counts.sum())


@dataclass(frozen=True)
class Families:
    """Every neuron of a model explained: its best labels, their honest score, the null's, and the family."""

    best: Scores
    heldout: Float[np.ndarray, " neurons"]
    null: Float[np.ndarray, " neurons"]
    position_mi: Float[np.ndarray, " neurons"]
    family: list[str | None]


def explain(
    model: str,
    best: Scores,
    position_mi: Float[np.ndarray, " neurons"] | None,
    heldout: LabelEvidence,
    null: LabelEvidence,
    is_bos: Bool[np.ndarray, " neurons"],
    dead: Bool[np.ndarray, " neurons"],
    floor: float,
) -> Families:
    """The family of every neuron of a model (see the module); dead neurons have none."""
    labels = [*heldout.labels.all, POSITION]
    n = best.index.shape[1]
    if not len(best.index):
        nothing = np.full(n, np.nan)
        best = Scores(np.zeros((1, n), np.int64), nothing[None], np.zeros((1, n), np.int32))
        score = judged = chance = nothing
    else:
        score = np.clip(heldout.of(model, best.index[0]) * best.sign[0], 0, None)
        judged = np.where(np.isfinite(score), score, best.variance_reduction[0])
        chance = null.best(model, 1).variance_reduction[0]
    level = np.maximum(np.maximum(null_level(chance), floor), np.nan_to_num(chance, nan=np.inf))
    explained = np.nan_to_num(judged) > level
    by_position = np.zeros(n, bool)
    if position_mi is not None:
        by_chance = null.position_information(model)
        assert by_chance is not None
        by_position = np.nan_to_num(position_mi) > max(POSITION_MI, null_level(by_chance))
    families: list[str | None] = []
    for neuron in range(n):
        if dead[neuron]:
            families.append(None)
        elif explained[neuron]:
            families.append(family_of(labels[best.index[0, neuron]]))
        elif by_position[neuron]:
            families.append("position")
        else:
            families.append("bos" if is_bos[neuron] else UNEXPLAINED)
    mi = np.full(n, np.nan) if position_mi is None else position_mi
    return Families(best, score, chance, mi, families)
