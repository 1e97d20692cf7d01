"""The stages of a study, in order: weights, labels, the pass, comparison, the detail pass, tables.

The pass is checkpointed; what follows it is cheap, or repeats from the last checkpoint.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import save

from universal_neurons.accumulators import BOS, PRE, Accumulator
from universal_neurons.compare import Comparison, Evidence, compare, groups_of
from universal_neurons.convergence import Snapshots, snapshot_points
from universal_neurons.detail import HeldOut, PairedMoments
from universal_neurons.examples import TopExamples
from universal_neurons.families import POSITION, POSITION_MI, Families, LabelEvidence, Scores, explain, family_of
from universal_neurons.inputs import Study
from universal_neurons.labelling import Labelling
from universal_neurons.models import DTYPES
from universal_neurons.moments import GroupedSums, Histogram, Moments
from universal_neurons.neurons import activation_statistics, duplicates, weight_statistics
from universal_neurons.progress import Reporter
from universal_neurons.shown import Details, choose_shown
from universal_neurons.store import StoreWriter
from universal_neurons.stream import NeuronSource, Pass, model_pairs, study_accumulators
from universal_neurons.tables import (
    Shape,
    examples_table,
    excess_columns,
    family_columns,
    labels_table,
    layers_table,
    matches_table,
    neurons_table,
    positions_table,
    subsets_table,
    tokens_table,
    universality_columns,
    vocabulary_table,
)
from universal_neurons.tokens import Shard
from universal_neurons.weights import processed_weights

CHECKPOINT_SHARE = 0.02
CHECKPOINT_SECONDS = 10.0
MOST_BY_POSITION = 50


class Stages:
    """A study on its way: each stage adds columns of the neuron table and further tables."""

    def __init__(self, study: Study, writer: StoreWriter, reporter: Reporter, checkpoint_seconds: float | None) -> None:
        self.study, self.writer, self.reporter = study, writer, reporter
        self.checkpoint_seconds = checkpoint_seconds
        self.config, self.models, self.names = study.config, study.models, study.names
        self.shapes = {model.name: Shape(model.n_layers, model.d_mlp) for model in self.models}
        self.columns: dict[str, dict[str, Any]] = {name: {} for name in self.names}
        self.hashes: dict[str, str] = {}
        self.counted = 0
        assert self.config.batch_tokens is not None
        self.batch_tokens = self.config.batch_tokens

    def run(self) -> dict[str, str]:
        """Everything that was asked for, written; returns the tables' hashes."""
        if "weights" in self.config.stages:
            with self.reporter.stage("weights"):
                for model in self.models:
                    self.columns[model.name] |= weight_statistics(processed_weights(model))
        if self.config.reads_tokens:
            self._read()
        with self.reporter.stage("tables"):
            self.write("neurons", neurons_table(self.shapes, self.columns))
        return self.hashes

    def write(self, name: str, table: pl.DataFrame) -> None:
        """Write a table and keep its hash."""
        self.hashes[name] = self.writer.write_table(name, table)

    def _asked(self, stage: str) -> bool:
        return stage in self.config.stages

    def _read(self) -> None:
        """What needs text."""
        pre = self._asked("statistics") or self._asked("labels")
        sources = [NeuronSource(model, DTYPES[self.config.gemm_dtype], pre=pre) for model in self.models]
        labelling = self.study.labelling
        if labelling is not None:
            with self.reporter.stage("labels"):
                labelling.build(self.reporter)
        with self.reporter.stage("pass"):
            run, snapshots = self._pass(sources, labelling)
        everything = Evidence(run.accumulators, groups_of(run.accumulators))
        self.counted = everything.count(self.names[0])
        with self.reporter.stage("statistics"):
            self._statistics(run, everything)
        with self.reporter.stage("compare"):
            comparisons = [self._compare(everything, asker) for asker in self.study.askers]
            for found in comparisons:
                self.columns[found.asker] |= excess_columns(found, self.config.threshold)
            by_subset = {
                name: self._compare(Evidence(run.accumulators, [group]), self.names[0])
                for group, name in enumerate(self.study.subsets if self.study.askers else ())
            }
        explainer = None
        if labelling is not None:
            with self.reporter.stage("labels"):
                explainer = Explainer(self, labelling, run, sources)
        run.accumulators.clear()
        del everything
        with self.reporter.stage("detail"):
            heldout = self._detail(sources, comparisons, explainer)
        with self.reporter.stage("tables"):
            if explainer is not None:
                explainer.write_tables()
            for asker, found in zip(self.study.askers, comparisons):
                self.columns[asker] |= universality_columns(found, heldout[asker], self.config.threshold)
            if comparisons:
                self.write("matches", matches_table(self.shapes, comparisons, heldout))
                self.write("layers", layers_table(self.shapes, comparisons))
                self.write("convergence", snapshots.table(self.config.threshold))
            if by_subset:
                self.write("subsets", subsets_table(self.shapes, by_subset, self.config.threshold))

    def _compare(self, evidence: Evidence, asker: str) -> Comparison:
        others = [name for name in self.names if name != asker]
        return compare(evidence, asker, others, self.config, k=self.config.top_k)

    def _statistics(self, run: Pass, everything: Evidence) -> None:
        """Columns of activation statistics, histograms and examples."""
        by_key = {(type(a), a.reads): a for a in run.accumulators if a.group is None}
        histograms: dict[str, torch.Tensor] = {}
        examples = []
        for name in self.names:
            dead = everything.dead(name)
            self.columns[name]["dead"] = dead.cpu().numpy()
            moments, bos = by_key.get((Moments, (name + PRE,))), by_key.get((Moments, (name + BOS,)))
            if isinstance(moments, Moments) and isinstance(bos, Moments):
                self.columns[name] |= activation_statistics(moments.result(), bos.result())
            if not self._asked("statistics"):
                continue
            self.columns[name] |= duplicates(everything.layers(name), ~dead)
            histogram, best = by_key[Histogram, (name + PRE,)], by_key[TopExamples, (name,)]
            assert isinstance(histogram, Histogram)
            assert isinstance(best, TopExamples)
            result = histogram.result()
            histograms |= {f"{name}/{part}": tensor.contiguous().cpu() for part, tensor in vars(result).items()}
            examples.append(examples_table(name, self.shapes[name], best.result(), self.study.tokens))
        if examples:
            self.hashes["histograms"] = self.writer.write_bytes("histograms.safetensors", save(histograms))
            self.write("examples", pl.concat(examples))

    def _pass(self, sources: list[NeuronSource], labelling: Labelling | None) -> tuple[Pass, Snapshots]:
        config, study = self.config, self.study
        pairs = model_pairs(self.models, config.pairs) if study.askers else []
        shuffles = config.n_draws if config.baseline == "permutation" and pairs else 0
        accumulators = (
            study_accumulators(self.models, pairs, groups=study.n_groups, shuffles=shuffles, seed=config.seed)
            + self._single_neurons()
        )
        annotations = []
        if labelling is not None:
            annotations.append(labelling.source())
            accumulators += labelling.accumulators(annotations[0].width)
        run = Pass(sources, accumulators, annotations)
        snapshots = Snapshots(snapshot_points(len(study.shards)))
        labels = {} if labelling is None else {"labels": labelling.fingerprint()}
        saved = self.writer.load_checkpoint()
        if saved is not None and labels and not torch.equal(saved[0]["labels"], labels["labels"]):
            self.reporter.note("the labels are not those of the checkpoint: the pass starts again")
            saved = None
        if saved is not None:
            run.restore(*saved)
            snapshots.restore(saved[0])
            self.reporter.note(f"resumed after shard {run.next_shard} of {len(study.shards)}")
        last, interval = time.perf_counter(), self.checkpoint_seconds

        def after_shard(shard: Shard) -> None:
            nonlocal last, interval
            snapshots.look(run, study.askers, self.names, config)
            now = time.perf_counter()
            due = interval if interval is not None else CHECKPOINT_SECONDS
            if now - last >= due or run.next_shard == len(study.shards):
                self.writer.save_checkpoint(run.state() | snapshots.state() | labels, run.next_shard)
                last = time.perf_counter()
                if self.checkpoint_seconds is None:
                    interval = max(CHECKPOINT_SECONDS, (last - now) / CHECKPOINT_SHARE)

        positions = [len(shard.rows) * study.tokens.context for shard in study.shards]
        with self.reporter.tokens("pass", sum(positions), sum(positions[: run.next_shard])) as meter:
            run.run(
                study.tokens,
                study.shards,
                batch_tokens=self.batch_tokens,
                after_batch=meter,
                after_shard=after_shard,
            )
        return run, snapshots

    def _single_neurons(self) -> list[Accumulator]:
        """Statistics of pre-activations and the examples, as far as they are asked for."""
        found: list[Accumulator] = []
        for model in self.models:
            name, n, device = model.name, model.n_neurons, model.device
            if self._asked("statistics") or self._asked("labels"):
                found.append(Moments.empty(name + PRE, n, device=device))
                found.append(Moments.empty(name + BOS, n, device=device))
            if self._asked("statistics"):
                found.append(Histogram.empty(name + PRE, n, device=device))
                k, seed = self.config.examples, self.config.seed
                found.append(TopExamples.empty(name, n, k=k, seed=seed, device=device))
        return found

    def _detail(
        self, sources: list[NeuronSource], comparisons: Sequence[Comparison], explainer: "Explainer | None"
    ) -> dict[str, list[HeldOut]]:
        device, stretches = self.models[0].device, self.study.stretches
        moments = {
            c.asker: [
                PairedMoments.empty(c.asker, other, torch.from_numpy(index).to(device), len(stretches))
                for other, index in zip(c.others, c.best_index)
            ]
            for c in comparisons
        }
        accumulators: list[Accumulator] = [paired for found in moments.values() for paired in found]
        annotations = []
        if explainer is not None:
            annotations = explainer.sources()
            accumulators += explainer.accumulators(annotations[0].width)
        if not accumulators:
            return {}
        run = Pass(sources, accumulators, annotations)
        shards = [Shard(index, np.asarray(rows)) for index, rows in enumerate(stretches)]
        total = sum(len(shard.rows) for shard in shards) * self.study.tokens.context
        with self.reporter.tokens("detail pass", total) as meter:
            run.run(self.study.tokens, shards, batch_tokens=self.batch_tokens, after_batch=meter)
        if explainer is not None:
            explainer.judge(run.accumulators)
        return {asker: [paired.result() for paired in found] for asker, found in moments.items()}


class Explainer:
    """From the labels' sums to families: chooses on the pass, judges on the detail pass."""

    def __init__(self, stages: Stages, labelling: Labelling, run: Pass, sources: Sequence[NeuronSource]) -> None:
        assert labelling.labels is not None
        self.stages, self.labelling, self.labels = stages, labelling, labelling.labels
        evidence = labelling.evidence(run.accumulators)
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

    def accumulators(self, width: int) -> list[Accumulator]:
        """What the detail pass needs."""
        if len(self.shown.neurons):
            study, dense = self.stages.study, self.labelling.dense
            positions = sum(map(len, study.stretches)) * study.tokens.context
            self.details = Details(self.stages.models[0], self.shown, self.labels, dense=dense, positions=positions)
        kept: list[Accumulator] = [] if self.details is None else [self.details]
        return [*self.labelling.accumulators(width, null=True), *kept]

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
