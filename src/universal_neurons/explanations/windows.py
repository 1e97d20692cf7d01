"""Windows of held-out text on which explanations are scored, drawn with known probabilities.

1. A unit *fires* where its size (its activation; of gated models its |activation|) is above its 0.99 quantile on rows
   that choose.  Its 0.97, 0.99 and 0.999 quantiles there, from at most 32 768 evenly spread positions, part windows
   into strata by the highest size in them: silent, near, fires, strongly.  A quantile that is its highest size gives
   way to the next size below: a unit that is 1 on a class of tokens and 0 elsewhere fires on the class, however common.
2. Held-out rows are cut into windows from their beginnings on; the last may be shorter, and one without a counted
   position is none.
3. Every window has a number from 0 to 1, from a hash of the seed, its row and its place; of each stratum a unit keeps
   those with the smallest, so that each window of it was as likely as any other, and counts how many there were.  The
   number is the same for all units: they share windows, and a unit's do not depend on which others are asked about.

Explanations are made from rows that choose alone (`require_apart`), so no window is in both.  One pass over held-out
rows, all models at once, without snapshots: it is short, and the same again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from universal_neurons.explanations.estimates import Design
from universal_neurons.features import Source
from universal_neurons.passes import Pass
from universal_neurons.statistics import BY_POSITION, BY_ROW, Batch, seed_of
from universal_neurons.text import Rows, Shard

STRATA = ("silent", "near", "fires", "strongly")
YES = np.array([False, False, True, True])  # of which strata the unit fires
CUTS = (0.97, 0.99, 0.999)  # quantiles between them
FIRES = 0.99
DRAWN: tuple[int, ...] = (80, 100, 40, 40)  # windows of each stratum: near ones decide how sure a precision is
WIDTH = 32  # positions of a window
CUT_POSITIONS = 32_768
BATCH_TOKENS = 8192


@dataclass(frozen=True)
class UnitWindows:
    """The windows drawn for one unit, and of how many.

    `row` and `start` are where each begins, `ids` what its positions say (−1 beyond its end), `size` how much the unit
    does at each (NaN where it is not counted); `sizes` says how many windows each stratum has.
    """

    model: str
    layer: int
    neuron: int
    threshold: float
    row: Int[np.ndarray, " windows"]
    start: Int[np.ndarray, " windows"]
    ids: Int[np.ndarray, "windows width"]
    size: Float[np.ndarray, "windows width"]
    stratum: Int[np.ndarray, " windows"]
    sizes: Int[np.ndarray, " strata"]

    def __len__(self) -> int:
        return len(self.row)

    @property
    def fires(self) -> Bool[np.ndarray, "windows width"]:
        """Where the unit fires."""
        return self.size > self.threshold

    def tokens(self, window: int, strings: Sequence[str]) -> tuple[str, ...]:
        """The strings of a window, by the vocabulary's."""
        return tuple(strings[token] for token in self.ids[window].tolist() if token >= 0)

    def design(self, answered: Bool[np.ndarray, " windows"]) -> Design:
        """How those that were answered were drawn."""
        return Design(self.stratum[answered], self.sizes)


def draw_windows(
    sources: Sequence[Source],
    units: Mapping[str, Sequence[int]],
    tokens: Rows,
    chosen: Int[np.ndarray, " chosen"],
    heldout: Int[np.ndarray, " heldout"],
    *,
    gated: frozenset[str] = frozenset(),
    drawn: Sequence[int] = DRAWN,
    width: int = WIDTH,
    seed: int = 0,
) -> dict[str, list[UnitWindows]]:
    """Windows of the held-out rows for some units (flat numbers, by model); `chosen` are the rows that choose.

    `drawn` says how many of each stratum at most.  Units of `gated` models go by |activation|.
    """
    assert not np.isin(heldout, chosen).any(), "rows that choose are not held out"
    asked = [source for source in sources if len(units.get(source.name, ()))]
    if not asked:
        return {}
    for source in asked:
        source.unrounded = True
    read = Pass(asked, [])
    read.settle_means(tokens, [Shard(0, chosen)])
    chosen_units = {source.name: _Chosen(source, units[source.name], source.name in gated) for source in asked}
    cuts = _cuts(read, chosen_units, tokens, _spread(tokens, chosen))
    drawings = {
        name: _Drawing(one, cuts[name], drawn, width, tokens.context, seed) for name, one in chosen_units.items()
    }
    for _, batch in read.batches(tokens, Shard(0, heldout), BATCH_TOKENS):
        for drawing in drawings.values():
            drawing.update(batch)
    return {name: drawing.result(tokens) for name, drawing in drawings.items()}


def require_apart(evidence: Int[np.ndarray, " evidence"], heldout: Int[np.ndarray, " heldout"]) -> None:
    """Assert that what explanations are made from is none of the text that they are scored on."""
    assert not np.isin(evidence, heldout).any(), "evidence from held-out rows"


@dataclass(frozen=True)
class _Chosen:
    """Some units of a source, and whether their sign is arbitrary."""

    source: Source
    numbers: Sequence[int]
    by_size: bool

    def sizes(self, batch: Batch) -> Float[Tensor, "positions units"]:
        """How much the units do at a batch's positions."""
        block = batch.blocks[self.source.as_they_are]
        columns = torch.as_tensor(self.numbers, device=block.values.device)
        assert block.mean is not None
        values = block.values[:, columns].float() + block.mean[columns].float()
        return values.abs() if self.by_size else values


def _spread(tokens: Rows, rows: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " spread"]:
    """Rows that are evenly spread, of so many positions as quantiles need."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, max(1, CUT_POSITIONS // tokens.context)).astype(int))]


def _cuts(
    read: Pass, units: Mapping[str, _Chosen], tokens: Rows, rows: Int[np.ndarray, " rows"]
) -> dict[str, Float[Tensor, "cuts units"]]:
    """The quantiles between strata of every unit, by model."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in units}
    for _, batch in read.batches(tokens, Shard(0, rows), BATCH_TOKENS):
        for name, chosen in units.items():
            parts[name].append(chosen.sizes(batch).cpu().numpy())
    return {name: torch.from_numpy(_quantiles(np.concatenate(sizes))).float() for name, sizes in parts.items()}


def _quantiles(sizes: Float[np.ndarray, "positions units"]) -> Float[np.ndarray, "cuts units"]:
    """The quantiles between strata; where one is the highest value, the next below, so that something is above."""
    highest = sizes.max(0)
    below = np.where(sizes < highest, sizes, -np.inf).max(0)
    cuts = np.quantile(sizes, CUTS, axis=0, method="higher")
    return np.where((cuts == highest) & (below > -np.inf), below, cuts)


class _Kept:
    """Of every unit the windows of one stratum with the smallest numbers so far, and how many there were."""

    def __init__(self, most: int, units: int, width: int, device: torch.device) -> None:
        self.number = torch.full((most, units), torch.inf, dtype=torch.float64, device=device)
        self.window = torch.full((most, units), -1, dtype=torch.int64, device=device)
        self.size = torch.full((most, units, width), torch.nan, device=device)
        self.count = torch.zeros(units, dtype=torch.int64, device=device)

    def update(
        self,
        inside: Bool[Tensor, "windows units"],
        number: Float[Tensor, " windows"],
        window: Int[Tensor, " windows"],
        size: Float[Tensor, "windows units width"],
    ) -> None:
        """Take in windows, where they are of this stratum."""
        self.count += inside.sum(0)
        numbers = torch.cat([self.number, number[:, None].where(inside, torch.inf)])
        self.number, order = numbers.topk(len(self.number), 0, largest=False)
        self.window = torch.cat([self.window, window[:, None].where(inside, -1)]).gather(0, order)
        self.size = torch.cat([self.size, size]).gather(0, order[..., None].expand_as(self.size))


class _Drawing:
    """The windows of a source's units, kept by stratum."""

    def __init__(
        self,
        chosen: _Chosen,
        cuts: Float[Tensor, "cuts units"],
        drawn: Sequence[int],
        width: int,
        context: int,
        seed: int,
    ) -> None:
        device, units = chosen.source.device, len(chosen.numbers)
        self.chosen, self.cuts, self.width, self.seed = chosen, cuts.to(device), width, seed
        self.per_row = -(-context // width)
        self.kept = [_Kept(most, units, width, device) for _, most in zip(STRATA, drawn, strict=True)]

    def update(self, batch: Batch) -> None:
        """Add a batch of whole rows."""
        row, position = batch.index[BY_ROW], batch.index[BY_POSITION]
        sizes = self.chosen.sizes(batch)
        window, local = torch.unique_consecutive(row * self.per_row + position // self.width, return_inverse=True)
        size = sizes.new_full((len(window), sizes.shape[1], self.width), torch.nan)
        size[local, :, position % self.width] = sizes
        stratum = (size.nan_to_num(-torch.inf).amax(2)[:, None] > self.cuts).sum(1)
        number = self._numbers(window)
        for s, kept in enumerate(self.kept):
            kept.update(stratum == s, number, window, size)

    def _numbers(self, window: Int[Tensor, " windows"]) -> Float[Tensor, " windows"]:
        """The number of each window, by its row and its place there."""
        row, place = np.divmod(window.cpu().numpy(), self.per_row)
        rows, which = np.unique(row, return_inverse=True)
        draws = [np.random.default_rng(seed_of("window", self.seed, one)).random(self.per_row) for one in rows.tolist()]
        return torch.from_numpy(np.stack(draws)[which, place]).to(window.device)

    def result(self, tokens: Rows) -> list[UnitWindows]:
        """What was drawn, unit by unit; windows in the order of their strata and numbers."""
        windows = torch.cat([kept.window for kept in self.kept]).cpu().numpy().T
        sizes = torch.cat([kept.size for kept in self.kept], 0).cpu().numpy().transpose(1, 0, 2)
        strata = np.repeat(np.arange(len(STRATA)), [len(kept.window) for kept in self.kept])
        counts = torch.stack([kept.count for kept in self.kept], 1).cpu().numpy()
        thresholds = self.cuts[CUTS.index(FIRES)].tolist()
        drawn = zip(self.chosen.numbers, thresholds, windows, sizes, counts)
        return [self._of_unit(tokens, number, threshold, strata, *of_unit) for number, threshold, *of_unit in drawn]

    def _of_unit(
        self,
        tokens: Rows,
        number: int,
        threshold: float,
        strata: Int[np.ndarray, " slots"],
        windows: Int[np.ndarray, " slots"],
        sizes: Float[np.ndarray, "slots width"],
        counts: Int[np.ndarray, " strata"],
    ) -> UnitWindows:
        filled = windows >= 0
        row, place = np.divmod(windows[filled], self.per_row)
        known, which = np.unique(row, return_inverse=True)
        at = place[:, None] * self.width + np.arange(self.width)
        ids = tokens.ids(known)[which[:, None], np.minimum(at, tokens.context - 1)]
        ids[at >= tokens.lengths[row][:, None]] = -1
        layer, neuron = self.chosen.source.units.place_of(number)
        return UnitWindows(
            self.chosen.source.name,
            layer,
            neuron,
            threshold,
            row,
            place * self.width,
            ids,
            sizes[filled],
            strata[filled],
            counts,
        )
