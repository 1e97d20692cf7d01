"""From the labels' sums to families and their tables: chosen on the pass, judged on the detail pass."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from universal_neurons.accumulators import PRE, Accumulator, Recipe
from universal_neurons.families import POSITION, POSITION_MI, Families, LabelEvidence, Scores, explain, family_of
from universal_neurons.labelling import Labelling
from universal_neurons.moments import GroupedSums
from universal_neurons.shown import Details, choose_shown
from universal_neurons.stream import NeuronSource
from universal_neurons.tables import (
    family_columns,
    labels_table,
    neurons_table,
    positions_table,
    tokens_table,
    vocabulary_table,
)

if TYPE_CHECKING:
    from universal_neurons.stages import Stages

MOST_BY_POSITION = 50


class Explainer:
    """From the labels' sums to families: chooses on the pass, judges on the detail pass."""

    def __init__(
        self,
        stages: "Stages",
        labelling: Labelling,
        accumulators: Sequence[Accumulator],
        sources: Iterable[NeuronSource],
    ) -> None:
        assert labelling.labels is not None
        self.stages, self.labelling, self.labels = stages, labelling, labelling.labels
        evidence = labelling.evidence(accumulators)
        self.best: dict[str, Scores] = {}
        self.position_mi: dict[str, np.ndarray | None] = {}
        self.by_position: dict[str, tuple[GroupedSums, GroupedSums] | None] = {}
        self.provisional: dict[str, np.ndarray] = {}
        self.families: dict[str, Families] = {}
        words = []
        for source in sources:
            name = source.model.name
            assert source.provisional is not None
            self.provisional[name] = source.provisional.mean.double().cpu().numpy()
            self.best[name] = evidence.best(name)
            self.position_mi[name] = evidence.position_information(name)
            positions, firing = evidence.grouped(name, "position"), evidence.grouped(name + PRE, "position", "firing")
            self.by_position[name] = (positions, firing) if positions and firing else None
            words.append(self._tokens(evidence, name))
        self.tokens = (
            pl.concat([table for table in words if table is not None], how="diagonal")
            if any(table is not None for table in words)
            else None
        )
        reference = stages.names[0]
        self.shown = choose_shown(self._before_judging(reference), self.best[reference].index[0],
                                  stages.shapes[reference].d_mlp)  # fmt: skip
        self.details: Details | None = None

    def _tokens(self, evidence: LabelEvidence, model: str) -> pl.DataFrame | None:
        words = evidence.grouped(model, "word")
        if words is None or self.labelling.vocabulary.special.all():
            return None
        codes = np.flatnonzero(self.labels.word_of < self.labels.n_words - 1)
        token_of = np.zeros(self.labels.n_words - 1, np.int64)
        token_of[self.labels.word_of[codes]] = codes // 4
        return tokens_table(
            model, self.stages.shapes[model], words, token_of, self.provisional[model], len(self.labelling.vocabulary)
        )

    def _before_judging(self, model: str) -> pl.DataFrame:
        """The neuron table as far as it goes, families by what the pass itself says."""
        stages, labels = self.stages, [*self.labels.all, POSITION]
        best = self.best[model]
        places = stages.columns[model]
        columns: dict[str, Any] = {
            "family": [
                family_of(labels[label]) if size > stages.config.unexplained else None
                for label, size in zip(best.index[0], best.variance_reduction[0])
            ],
            "label": [labels[label].name for label in best.index[0]],
            "variance_reduction": best.variance_reduction[0],
        }
        information = self.position_mi[model]
        for neuron, family in enumerate(columns["family"]):
            if family is None and information is not None and information[neuron] > POSITION_MI:
                columns["family"][neuron] = "position"
            elif family is None and places["is_bos"][neuron]:
                columns["family"][neuron] = "bos"
        known = {name: places[name] for name in ("excess_corr", "is_universal") if name in places}
        return neurons_table({model: stages.shapes[model]}, {model: columns | known})

    def sources(self) -> list[Any]:
        """The labels and their null, on held-out rows."""
        return [self.labelling.source(), self.labelling.source(np.concatenate(self.stages.study.stretches))]

    def recipes(self, width: int) -> list[Recipe]:
        """What the detail pass needs."""
        if len(self.shown.neurons):
            study, dense = self.stages.study, self.labelling.dense
            positions = sum(map(len, study.stretches)) * study.tokens.context
            self.details = Details(self.stages.models[0], self.shown, self.labels, dense=dense, positions=positions)
        details = self.details
        kept: list[Recipe] = [] if details is None else [lambda device: details]
        return [*self.labelling.recipes(width, null=True), *kept]

    def judge(self, accumulators: Sequence[Accumulator]) -> None:
        """Families, by what the held-out rows say."""
        heldout, null = self.labelling.evidence(accumulators), self.labelling.evidence(accumulators, "~")
        for name in self.stages.names:
            columns = self.stages.columns[name]
            found = explain(
                name,
                self.best[name],
                self.position_mi[name],
                heldout,
                null,
                columns["is_bos"],
                columns["dead"],
                self.stages.config.unexplained,
            )
            self.families[name] = found
            columns |= family_columns(self.labels, found)

    def write_tables(self) -> None:
        """Labels, tokens, positions, details and the vocabulary."""
        stages = self.stages
        stages.write("labels", labels_table(stages.shapes, self.labels, self.families))
        assert self.labels.counts is not None
        stages.write("vocabulary", vocabulary_table(self.labelling.vocabulary, self.labels.counts))
        if self.tokens is not None:
            stages.write("tokens", self.tokens)
        positions = [self._positions(name) for name in stages.names]
        if any(table is not None for table in positions):
            stages.write("positions", pl.concat([table for table in positions if table is not None]))
        if self.details is not None and self.details.parts:
            stages.write("details", self.details.table(stages.study.tokens))

    def _positions(self, model: str) -> pl.DataFrame | None:
        """Of the position neurons and those whose firing says most of position."""
        sums, information = self.by_position[model], self.position_mi[model]
        if sums is None or information is None:
            return None
        family = np.array([name == "position" for name in self.families[model].family])
        most = np.argsort(-np.nan_to_num(information, nan=-np.inf), kind="stable")[:MOST_BY_POSITION]
        chosen = np.union1d(np.flatnonzero(family), most)
        return positions_table(model, self.stages.shapes[model], *sums, chosen, self.provisional[model])
