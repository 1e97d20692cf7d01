"""From the labels' sums to families and their tables: chosen on the pass, judged on the detail pass."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl

from universal_neurons.features import Source
from universal_neurons.labels import (
    POSITION,
    POSITION_MI,
    Families,
    LabelEvidence,
    Labelling,
    Scores,
    explain,
    family_of,
)
from universal_neurons.statistics import (
    BY_POSITION,
    BY_WORD,
    GroupedSums,
    Key,
    Recipe,
    Statistics,
    What,
    orientation_of,
)
from universal_neurons.study.inputs import Study
from universal_neurons.study.label_counts import label_counts_table
from universal_neurons.study.shown import Details, choose_shown
from universal_neurons.study.tables import (
    family_columns,
    labels_table,
    neurons_table,
    own_labels_table,
    positions_table,
    tokens_table,
)
from universal_neurons.text import token_of
from universal_neurons.units import Units

MOST_BY_POSITION = 50


class Explainer:
    """From the labels' sums to families: chooses on the pass, judges on the detail pass.

    `columns` are those of the neuron table that are known by then: `dead`, `is_bos`, `activation_mean` and, where it
    was asked about, `excess_corr` and `is_universal`.
    """

    def __init__(
        self,
        study: Study,
        units: Mapping[str, Units],
        columns: Mapping[str, Mapping[str, Any]],
        labelling: Labelling,
        statistics: Statistics,
        sources: Iterable[Source],
    ) -> None:
        self.study, self.units, self.columns = study, units, columns
        self.labelling, self.labels = labelling, labelling.labels
        self.orientation = {name: orientation_of(columns[name]["activation_mean"]) for name in study.gated}
        evidence = labelling.evidence(statistics, orientation=self.orientation)
        counts, _ = evidence.sums(study.names[0], slice(0, 1))
        self.label_counts = label_counts_table(self.labels.all, counts.cpu().numpy())
        self.best: dict[str, Scores] = {}
        self.position_mi: dict[str, np.ndarray | None] = {}
        self.by_position: dict[str, tuple[GroupedSums, GroupedSums] | None] = {}
        self.provisional: dict[str, np.ndarray] = {}
        self.families: dict[str, Families] = {}
        words = []
        for source in sources:
            name = source.name
            assert source.provisional is not None
            self.provisional[name] = source.provisional.mean.double().cpu().numpy()
            self.best[name] = evidence.best(name, with_own=True)
            self.position_mi[name] = evidence.position_information(name)
            positions = evidence.grouped(name, BY_POSITION)
            firing = evidence.grouped(Key(name, What.PRE), BY_POSITION, "firing")
            self.by_position[name] = (positions, firing) if positions and firing else None
            words.append(self._tokens(evidence, name))
        self.tokens = (
            pl.concat([table for table in words if table is not None], how="diagonal")
            if any(table is not None for table in words)
            else None
        )
        reference = study.names[0]
        self.shown = choose_shown(self._before_judging(reference), self.best[reference].index[0], units[reference])
        self.details: Details | None = None

    def _tokens(self, evidence: LabelEvidence, model: str) -> pl.DataFrame | None:
        words = evidence.grouped(model, BY_WORD)
        if words is None or self.labelling.vocabulary.special.all():
            return None
        codes = np.flatnonzero(self.labels.word_of < self.labels.n_words - 1)
        tokens = np.zeros(self.labels.n_words - 1, np.int64)
        tokens[self.labels.word_of[codes]] = token_of(codes)
        return tokens_table(
            model,
            self.units[model],
            words,
            tokens,
            self.provisional[model],
            len(self.labelling.vocabulary),
            by_size=model in self.study.gated,
        )

    def _before_judging(self, model: str) -> pl.DataFrame:
        """The neuron table as far as it goes, families by what the pass itself says."""
        labels = [*self.labels.all, POSITION]
        best = self.best[model]
        places = self.columns[model]
        columns: dict[str, Any] = {
            "family": [
                family_of(labels[label]) if size > self.study.config.unexplained else None
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
        return neurons_table({model: self.units[model]}, {model: columns | known})

    def sources(self) -> list[Any]:
        """The labels and their null, on held-out rows."""
        return [self.labelling.source(), self.labelling.source(np.concatenate(self.study.stretches))]

    def recipes(self, width: int) -> list[Recipe]:
        """What the detail pass needs."""
        if len(self.shown.neurons):
            study, dense = self.study, self.labelling.dense
            positions = sum(map(len, study.stretches)) * study.tokens.context
            self.details = Details(study.reader.studied[0], self.shown, self.labels, dense=dense, positions=positions)
        details = self.details
        kept: list[Recipe] = [] if details is None else [lambda device: details]
        return [*self.labelling.recipes(width, null=True), *kept]

    def judge(self, statistics: Statistics) -> dict[str, dict[str, Any]]:
        """Families, by what the held-out rows say: columns of every model's neuron table."""
        heldout, null = (
            self.labelling.evidence(statistics, null=null, orientation=self.orientation) for null in (False, True)
        )
        for name in self.study.names:
            columns = self.columns[name]
            self.families[name] = explain(
                name,
                self.best[name],
                self.position_mi[name],
                heldout,
                null,
                columns["is_bos"],
                columns["dead"],
                self.study.config.unexplained,
            )
        return {name: family_columns(self.labels, families) for name, families in self.families.items()}

    def tables(self) -> dict[str, pl.DataFrame]:
        """Labels, how often they hold, vocabulary, tokens, positions and details, as far as there are any."""
        assert self.labels.counts is not None
        tables = {
            "labels": labels_table(self.units, self.labels, self.families),
            "label_counts": self.label_counts,
            "vocabulary": self.labelling.vocabulary.table(self.labels.counts),
        }
        if self.labels.own and len(own := own_labels_table(self.units, self.labels, self.families)):
            tables["own_labels"] = own
        if self.tokens is not None:
            tables["tokens"] = self.tokens
        positions = [self._positions(name) for name in self.study.names]
        if any(table is not None for table in positions):
            tables["positions"] = pl.concat([table for table in positions if table is not None])
        if self.details is not None and self.details.parts:
            tables["details"] = self.details.table(self.study.tokens)
        return tables

    def _positions(self, model: str) -> pl.DataFrame | None:
        """Of the position neurons and those whose firing says most of position."""
        sums, information = self.by_position[model], self.position_mi[model]
        if sums is None or information is None:
            return None
        family = np.array([name == "position" for name in self.families[model].family])
        most = np.argsort(-np.nan_to_num(information, nan=-np.inf), kind="stable")[:MOST_BY_POSITION]
        chosen = np.union1d(np.flatnonzero(family), most)
        return positions_table(model, self.units[model], *sums, chosen, self.provisional[model])
