"""A pass that makes some panels of the co-moments; the first of a study keeps all other statistics too."""

from collections.abc import Sequence
from functools import partial

from universal_neurons.features import Source
from universal_neurons.matching import DRAWS, WHOLE, Evidence, Scope, groups_of
from universal_neurons.models import Described
from universal_neurons.passes import (
    Annotations,
    Pass,
    blocks_of,
    model_recipes,
    panel_recipes,
    provisional_state,
    settle_from,
    signs_of,
)
from universal_neurons.statistics import Histogram, Key, LayerMoments, Moments, Recipe, Statistics, TopExamples, What
from universal_neurons.study.inputs import Study
from universal_neurons.study.outcome import Outcome
from universal_neurons.study.screen import Screen
from universal_neurons.text import Rows


class PanelPass:
    """`begin` it, `read_so_far` at some points on the way, `finish` reduces its panels to what was found."""

    def __init__(self, study: Study, outcome: Outcome, screen: Screen | None, number: int) -> None:
        self.study, self.outcome, self.screen = study, outcome, screen
        self.config, self.panels = study.config, study.panels[number]
        self.is_first = number == 0
        several = len(study.panels) > 1
        self.name = f"pass {number + 1} of {len(study.panels)}" if several else "the pass"
        self.of_panels = panel_recipes(self.panels, self.config, study.n_groups, compensated=study.layout.compensated)

    @property
    def tokens(self) -> Rows:
        """The text it reads."""
        return self.study.tokens

    def begin(self, lanes: Sequence[int]) -> Pass:
        """The pass at its beginning."""
        recipes = self.study.reader.recipes([*self.of_panels, *self.other_recipes()])
        signs = signs_of(self.config) if self.study.askers else None
        return Pass(self._sources(), recipes, self._annotations(), signs=signs, lanes=lanes)

    def _sources(self) -> list[Source]:
        if self.is_first:
            return list(self.outcome.sources.values())
        sources = [self.study.reader.source(model, self.config.gemm_dtype) for model in self._involved()]
        settle_from(provisional_state(self.outcome.sources.values()), sources)
        return sources

    def _annotations(self) -> list[Annotations]:
        labelling = self.study.labelling
        return [labelling.source()] if self.is_first and labelling is not None else []

    def _involved(self) -> list[Described]:
        names = {model.name for panel in self.panels for model in (panel.left, panel.right)}
        return [model for model in self.study.models if model.name in names]

    def other_recipes(self) -> list[Recipe]:
        """What the pass keeps besides its panels."""
        study, rotated = self.study, {other for _, other in self.study.asked}
        if not self.is_first:
            alone = self.config.model_copy(update={"stages": ("universality",)})
            return model_recipes(self._involved(), rotated, alone, study.n_groups)
        recipes = model_recipes(study.models, rotated, self.config, study.n_groups)
        for model in study.models:
            recipes += self._of_single_neurons(model)
        if study.reader.complete:
            recipes += [partial(LayerMoments, model.name, model.units) for model in study.models]
        if study.labelling is not None:
            recipes += study.labelling.recipes(study.labelling.source().width)
        return recipes

    def _of_single_neurons(self, model: Described) -> list[Recipe]:
        """Statistics of pre-activations and the examples, as far as they are asked for."""
        stages, n = self.config.stages, model.n_neurons
        pre, first = Key(model.name, What.PRE), Key(model.name, What.FIRST)
        recipes: list[Recipe] = []
        if "statistics" in stages or "labels" in stages:
            recipes += [partial(Moments, pre, n), partial(Moments, first, n)]
        if "statistics" in stages:
            examples = partial(
                TopExamples, model.name, n, k=self.config.examples, seed=self.config.seed, both_tails=model.gated
            )
            recipes += [partial(Histogram, pre, n), examples]
        return recipes

    def _pairs(self) -> list[tuple[str, str]]:
        """The (asker, other) pairs that its panels say something of."""
        panels = {frozenset((panel.left.name, panel.right.name)) for panel in self.panels}
        return [pair for pair in self.study.asked if frozenset(pair) in panels]

    def read_so_far(self, run: Pass) -> None:
        """Convergence: what the panels say of the shards (with lanes, the lanes) that are done."""
        accumulators = run.total or run.accumulators
        groups = groups_of(accumulators)
        if not groups or not self.study.askers:
            return
        evidence = Evidence(Statistics(accumulators), groups, blocks_of(self.config), self.outcome.signs)
        scope = Scope(tokens=evidence.count(next(iter(run.sources))))
        draws = min(DRAWS, self.config.draws)
        self.outcome.findings.take_in(scope, evidence, self._pairs(), draws=draws, k=1)

    def finish(self, run: Pass) -> None:
        """Reduce the panels to what was found; of the first pass keep all else."""
        if self.study.askers:
            statistics, of = Statistics(run.accumulators), blocks_of(self.config)
            z = None if self.screen is None else self.screen.z
            findings, pairs, signs = self.outcome.findings, self._pairs(), self.outcome.signs
            whole = Evidence(statistics, groups_of(run.accumulators), of, signs)
            findings.take_in(WHOLE, whole, pairs, z=z)
            if self.outcome.random_bases is not None:
                self.outcome.random_bases.take_in(whole, pairs)
            of_reference = [pair for pair in pairs if pair[0] == self.study.names[0]]
            for group, name in enumerate(self.study.subsets):
                findings.take_in(Scope(subset=name), Evidence(statistics, [group], of, signs), of_reference, z=z)
        if self.is_first:
            self.outcome.accumulators = run.accumulators[len(self.of_panels) :]
