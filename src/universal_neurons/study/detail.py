"""The detail pass: held-out rows, read once more with what the rows that choose have chosen.

Of every asker's matches it asks how sure they are, against rotated neurons on the same text, and how much of them is
the scale of activations (ranks), the vocabulary (within tokens) or a few sinks.  The labels' part is
`family_tables.Explainer`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int

from universal_neurons.features import Source
from universal_neurons.matching import (
    ROTATED_DRAWS,
    Comparison,
    Counterparts,
    FrequentTokens,
    HeldOut,
    PairedMoments,
    RankMoments,
    RankTable,
    RotatedMoments,
    SideBySide,
    WithinTokens,
)
from universal_neurons.passes import Annotations, sample
from universal_neurons.statistics import (
    BY_TOKEN,
    GroupMeans,
    Jackknifed,
    Key,
    Recipe,
    SinkPositions,
    Statistics,
    What,
)
from universal_neurons.study.inputs import Study
from universal_neurons.study.sinks import FoundSinks


@dataclass(frozen=True)
class Detail:
    """What held-out rows say of an asker's matches, by other model; None where it cannot be asked.

    `rotated` and `standardised` are the two baselines, `ranks` and `within` ρ of mid-ranks and within tokens.
    """

    matches: list[HeldOut]
    rotated: list[Jackknifed] | None
    standardised: list[Jackknifed] | None
    ranks: Float[np.ndarray, "models neurons"] | None
    within: Float[np.ndarray, "models neurons"] | None


class DetailPass:
    """What the comparisons need of held-out rows; `deviations` are every model's 1/√Σ(x−x̄)², 0 for dead neurons.

    `signs` are those of the gated models, as `Evidence` has them.
    """

    def __init__(
        self,
        study: Study,
        sources: Sequence[Source],
        comparisons: Sequence[Comparison],
        deviations: dict[str, torch.Tensor],
        signs: dict[str, torch.Tensor],
    ) -> None:
        self.signs = signs
        self.study, self.comparisons, self.deviations = study, comparisons, deviations
        self.sources = {source.name: source for source in sources}
        self.rotates = study.config.baseline != "permutation"
        self.runs = bool(comparisons and study.reader.networks)  # sketches know no single position
        self.shows = self.runs and "statistics" in study.config.stages
        for source in sources:
            source.unrounded, source.streams = self.shows, self.runs
        self.frequent: FrequentTokens | None = None
        if self.runs:
            self.frequent = FrequentTokens(study.tokens, self._heldout)

    @property
    def _heldout(self) -> Int[np.ndarray, " rows"]:
        return np.concatenate(self.study.stretches)

    def annotations(self) -> list[Annotations]:
        """What is known of the tokens themselves."""
        return [] if self.frequent is None else [self.frequent]

    def recipes(self) -> list[Recipe]:
        """The statistics of all matches."""
        factor, streams = self.study.config.sink_factor, self.study.names if self.runs else []
        recipes: list[Recipe] = [
            partial(SinkPositions, [name], self._heldout, self.study.tokens.context, factor) for name in streams
        ]
        moments = partial(PairedMoments, stretches=len(self.study.stretches), streams=streams, factor=factor)
        for comparison in self.comparisons:
            for place, other in enumerate(comparison.others):
                match = torch.from_numpy(comparison.best_index[place])
                recipes += [partial(moments, comparison.asker, other, match)]
                recipes += self._rotated(comparison, place)
                if self.frequent is not None:
                    recipes += [partial(WithinTokens, comparison.asker, other, match, len(self.frequent))]
        if self.shows:
            recipes += [self._side_by_side(comparison) for comparison in self.comparisons]
        return recipes + (self._of_tokens(len(self.frequent)) if self.frequent is not None else [])

    def _side_by_side(self, comparison: Comparison) -> Recipe:
        """Where an asker's neurons fire, with the activations of their matches."""
        config, asker = self.study.config, comparison.asker
        return partial(
            Counterparts,
            self.sources[asker].as_they_are,
            [self.sources[other].as_they_are for other in comparison.others],
            torch.from_numpy(comparison.best_index),
            k=config.examples,
            seed=config.seed,
            both_tails=asker in self.study.gated,
        )

    def _rotated(self, comparison: Comparison, place: int) -> list[Recipe]:
        if not self.rotates:
            return []
        config, other = self.study.config, comparison.others[place]
        both = ((comparison.raw, None), (comparison.standardised, self.deviations[other]))
        return [
            partial(
                RotatedMoments,
                comparison.asker,
                other,
                torch.from_numpy(baseline.units[:ROTATED_DRAWS, place].copy()),
                self.sources[other].units,
                config.baseline,
                config.seed,
                len(self.study.stretches),
                scale=scale,
                turned=self.signs.get(other),
                sign=None if sign is None else sign[:ROTATED_DRAWS],
            )
            for baseline, scale in both
            for sign in [baseline.signs[place]]
        ]

    def _of_tokens(self, tokens: int) -> list[Recipe]:
        """Sums by token of every model, and ranks by every neuron's own quantiles."""
        tables = {
            name: RankTable.of(sample(source, self.study.tokens, self.study.shards)[Key(name)].values)
            for name, source in self.sources.items()
        }
        recipes: list[Recipe] = [
            partial(GroupMeans, name, BY_TOKEN, tokens + 1, len(source.units)) for name, source in self.sources.items()
        ]
        for c in self.comparisons:
            of_pairs = [tables[name] for name in (c.asker, *c.others)]
            recipes += [partial(RankMoments, c.asker, c.others, torch.from_numpy(c.best_index), of_pairs)]
        return recipes

    def read(self, statistics: Statistics) -> dict[str, Detail]:
        """What the pass says, by asker."""
        return {comparison.asker: self._of(comparison, statistics) for comparison in self.comparisons}

    def sinks(self, statistics: Statistics) -> FoundSinks | None:
        """The held-out positions that are sinks; None where no model ran."""
        if not self.runs:
            return None
        keys = {name: Key(name, What.STREAM) for name in self.study.names}
        found = {name: statistics.get(SinkPositions, key).result() for name, key in keys.items()}
        return FoundSinks(self.study.tokens, self._heldout, found)

    def side_by_side(self, statistics: Statistics) -> dict[str, SideBySide]:
        """Where neurons fire and what their matches do there, by asker; nothing where that is not asked for."""
        shown: dict[str, SideBySide] = {}
        for comparison in self.comparisons if self.shows else ():
            models = (comparison.asker, *comparison.others)
            keys = [self.sources[name].as_they_are for name in models]
            shown[comparison.asker] = statistics.get(Counterparts, *keys).result()
        return shown

    def _of(self, comparison: Comparison, statistics: Statistics) -> Detail:
        asker, others = comparison.asker, comparison.others

        def rotated(standardised: bool) -> list[Jackknifed] | None:
            if not self.rotates:
                return None
            kind = {"standardised": standardised}
            return [statistics.get(RotatedMoments, asker, other, **kind).result() for other in others]

        ranks = within = None
        if self.frequent is not None:
            ranks = statistics.get(RankMoments, asker, *others).result()
            sums = {name: statistics.get(GroupMeans, name, by=BY_TOKEN).result() for name in (asker, *others)}
            pairs = [statistics.get(WithinTokens, asker, other).corr(sums[asker], sums[other]) for other in others]
            within = np.stack(pairs)
        streams = [Key(name, What.STREAM) for name in self.study.names if self.runs]
        matches = [statistics.get(PairedMoments, asker, other, *streams).result() for other in others]
        return Detail(matches, rotated(False), rotated(True), ranks, within)
