"""The stages of a study, in order: weights, labels, the pass, comparison, the detail pass, tables.

The pass is checkpointed; what follows it is cheap, or repeats from the last checkpoint.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import save

from universal_neurons.explanations import beside, explanations_table
from universal_neurons.features import Latents, Source, Studied
from universal_neurons.matching import (
    WHOLE,
    Comparison,
    Evidence,
    FrequentTokens,
    Scope,
    best_of,
    convergence_table,
    groups_of,
    mutual_cliques,
)
from universal_neurons.models import find_tokenizer, processed_weights, written_directions
from universal_neurons.passes import Pass
from universal_neurons.progress import Reporter
from universal_neurons.roles import Roles, Sample, latent_effect_tables, vocabulary_of
from universal_neurons.statistics import (
    Histogram,
    Key,
    Moments,
    Statistics,
    TopExamples,
    What,
    activation_statistics,
    decoder_statistics,
    duplicates,
    weight_statistics,
)
from universal_neurons.storage import StoreWriter
from universal_neurons.study.counts import anchors_table, clique_levels_table, cliques_table, thresholds_table
from universal_neurons.study.detail import Detail, DetailPass
from universal_neurons.study.example_tables import counterparts_table, examples_table
from universal_neurons.study.family_tables import Explainer
from universal_neurons.study.inputs import Study
from universal_neurons.study.label_counts import rare_label_notes
from universal_neurons.study.layer_similarity import LayerSimilarity
from universal_neurons.study.masked_sinks import LEFT_OUT, left_out_table
from universal_neurons.study.one_to_one_tables import (
    consistency_levels_table,
    consistency_table,
    one_to_one_table,
    pairings,
)
from universal_neurons.study.outcome import Outcome
from universal_neurons.study.run_passes import Passes
from universal_neurons.study.sinks import FoundSinks
from universal_neurons.study.tables import (
    correlations_table,
    excess_columns,
    heldout_columns,
    layers_table,
    matches_table,
    neurons_table,
    subsets_table,
)
from universal_neurons.study.untrained import UntrainedNull
from universal_neurons.text import Passages, Shard, TokenDataset, Vocabulary

EXPLAINED = "explained"  # the key of a study that is made anew: tables that are not its own alone


class Stages:
    """A study on its way: each stage adds columns of the neuron table and further tables."""

    def __init__(self, study: Study, writer: StoreWriter, reporter: Reporter, checkpoint_seconds: float | None) -> None:
        self.study, self.writer, self.reporter = study, writer, reporter
        self.checkpoint_seconds = checkpoint_seconds
        self.config, self.models, self.names = study.config, study.models, study.names
        self.units = {model.name: model.units for model in self.models}
        self.columns: dict[str, dict[str, Any]] = {name: {} for name in self.names}
        self.hashes: dict[str, str] = {}
        self.matches: pl.DataFrame | None = None
        self.effects: pl.DataFrame | None = None
        self.null: UntrainedNull | None = None
        self.frequent: FrequentTokens | None = None
        self.sinks: dict[str, float | int] | None = None
        self.similarity: dict[str, Any] | None = None
        self.counted = 0
        self.warnings: list[str] = []
        self.counted_by_subset: dict[str, int] = {}
        self.doubts: dict[str, float | int] = {}
        self.batch_tokens = self.config.batch_tokens

    def run(self) -> dict[str, str]:
        """Everything that was asked for, written; returns the tables' hashes."""
        if "weights" in self.config.stages:
            with self.reporter.stage("weights"):
                for each in (each for each in self.study.reader.studied if each.has_weights):
                    self.columns[each.name] |= _weight_columns(each)
        if self.config.reads_tokens:
            self._read()
        with self.reporter.stage("tables"):
            neurons = neurons_table(self.units, self.columns)
        if "roles" in self.config.stages:
            neurons = self._roles(neurons)
        self._latent_effects(neurons)
        self.write("neurons", neurons)
        if self.study.labelling is not None:
            with self.reporter.stage("labels"):
                self._explain(neurons, self.study.labelling.vocabulary.strings.__getitem__)
        else:
            for name, table in self._explained_before().items():
                self.write(name, table)
        return self.hashes

    def _explain(self, neurons: pl.DataFrame, strings: Callable[[int], str]) -> None:
        """The table of sentences: what labels, and roles where they are known, say of every unit."""
        labels = pl.read_parquet(self.writer.path / "labels.parquet")  # not held in memory while roles are looked for
        made = explanations_table(neurons, labels, self.effects, strings)
        earlier = self._explained_before()
        tables = {"explanations": made}
        if "explanations" in earlier:
            tables = beside(made, earlier["explanations"], earlier.get("scores"), neurons)
        for name, table in tables.items():
            self.write(name, table)

    def _explained_before(self) -> dict[str, pl.DataFrame]:
        """What others than labels have said of the units, and its scores, where a study is made anew."""
        names = self.writer.under_way(EXPLAINED) or ()
        return {name: pl.read_parquet(self.writer.path / f"{name}.parquet") for name in names}

    def _latent_effects(self, neurons: pl.DataFrame) -> None:
        """The table of what latents do to the logits, where they write into the residual stream."""
        study = self.study
        writing = [each for each in study.reader.studied if isinstance(each, Latents) and each.has_weights]
        if not (writing and self._asked("weights") and isinstance(study.text, TokenDataset)):
            return
        with self.reporter.stage("weights"):
            embedding = study.reader.networks[0].embedding
            sample = Sample(study.text, np.zeros(0, int), self._vocabulary(), embedding, self._token_sets())
            tables = latent_effect_tables(writing, neurons, sample, self.config, self.reporter.note)
        self.effects = tables.get("effects")
        for name, table in tables.items():
            self.write(name, table)

    def _vocabulary(self) -> Vocabulary:
        networks = self.study.reader.networks
        return vocabulary_of(find_tokenizer(self.config, networks, required=False), networks)

    def _token_sets(self) -> Mapping[str, np.ndarray]:
        """The user's own sets of tokens."""
        return {} if self.study.labelling is None else self.study.labelling.own.tokens

    def _roles(self, neurons: pl.DataFrame) -> pl.DataFrame:
        """The tables of the roles written; returns the neuron table with its further columns."""
        study = self.study
        networks = study.reader.networks  # of neurons all: see `resolve`
        heldout, token_sets = np.concatenate(study.stretches), self._token_sets()
        assert isinstance(study.tokens, TokenDataset)
        roles = Roles(
            self.config,
            networks,
            study.tokens,
            heldout,
            self._vocabulary(),
            neurons,
            self.matches,
            token_sets,
            study.trained_on,
        )
        tables = roles.run(self.reporter)
        neurons, self.effects = tables.pop("neurons"), tables.get("effects")
        for name, table in tables.items():
            self.write(name, table)
        return neurons

    def write(self, name: str, table: pl.DataFrame) -> None:
        """Write a table and keep its hash."""
        self.hashes[name] = self.writer.write_table(name, table)

    def _comparison(self, outcome: Outcome, asker: str, scope: Scope = WHOLE) -> Comparison:
        return outcome.findings.comparison(scope, asker, [name for name in self.names if name != asker])

    def _asked(self, stage: str) -> bool:
        return stage in self.config.stages

    def _read(self) -> None:
        """What needs text."""
        labelling = self.study.labelling
        if labelling is not None:
            with self.reporter.stage("labels"):
                labelling.build(self.reporter)
        with self.reporter.stage("pass"):
            passes = Passes(self.study, self.writer, self.reporter, self.checkpoint_seconds)
            passes.run()
        outcome = passes.outcome
        if "sinks" in self.config.mask:
            self.write(LEFT_OUT, left_out_table(self.study.tokens))
        if isinstance(self.study.tokens, Passages):
            self.write("spans", self.study.tokens.fit_table())
        statistics = Statistics(outcome.accumulators)
        everything = Evidence(statistics, groups_of(outcome.accumulators), signs=outcome.signs)
        self.counted = everything.count(self.names[0])
        for group, name in enumerate(self.study.subsets if self.study.askers else ()):
            self.counted_by_subset[name] = Evidence(statistics, [group], signs=outcome.signs).count(self.names[0])
        with self.reporter.stage("statistics"):
            self._statistics(statistics, everything)
            self._activation_moments(everything, outcome)
        with self.reporter.stage("compare"):
            self.doubts = outcome.findings.doubts(self.study.asked)
            comparisons = [self._comparison(outcome, asker) for asker in self.study.askers]
            for comparison in comparisons:
                self.columns[comparison.asker] |= excess_columns(comparison, self.config.threshold)
            for name in self.names:
                self.columns[name]["position_share"] = everything.position_share(name).cpu().numpy()
            variances = {name: everything.variances(name).cpu().numpy() for name in self.names}
            deviations = {name: everything.norms(name).nan_to_num(nan=0).cpu() for name in self.names}
            subsets = self.study.subsets if self.study.askers else []
            by_subset = {name: self._comparison(outcome, self.names[0], Scope(subset=name)) for name in subsets}
        explainer = None
        if labelling is not None:
            with self.reporter.stage("labels"):
                explainer = Explainer(
                    self.study, self.units, self.columns, labelling, statistics, outcome.sources.values()
                )
        outcome.accumulators.clear()
        del everything, statistics
        with self.reporter.stage("detail"):
            sources = list(outcome.sources.values())
            details = self._detail(
                sources, DetailPass(self.study, sources, comparisons, deviations, outcome.signs), explainer
            )
        if self._asked("similarity"):
            with self.reporter.stage("similarity"):
                layers = LayerSimilarity(outcome)
                self.write("similarity", layers.table())
                self.similarity = layers.describe()
        if self.config.null is not None:
            with self.reporter.stage("null"):
                self._untrained()
        with self.reporter.stage("tables"):
            if explainer is not None:
                self.warnings += rare_label_notes(explainer.label_counts)
                for name, table in explainer.tables().items():
                    self.write(name, table)
            shares = {name: self.columns[name]["position_share"] for name in self.names}
            for comparison in comparisons:
                detail = details[comparison.asker]
                self.columns[comparison.asker] |= heldout_columns(comparison, detail, shares, variances)
            if comparisons:
                self.matches = matches_table(self.units, comparisons, details, variances)
                self.write("matches", self.matches)
                self.write("layers", layers_table(self.units, comparisons))
                self.write("correlations", correlations_table(comparisons))
                table = convergence_table(outcome.findings, self.study.askers, self.names, self.config.threshold)
                self.write("convergence", table)
                self._counts(outcome, comparisons)
                self._one_to_one(comparisons)
            if by_subset:
                self.write("subsets", subsets_table(self.units, by_subset, self.config.threshold))

    def _untrained(self) -> None:
        """The untrained null's passes, its table, and what it says of the neurons that were asked about."""
        self.null = UntrainedNull(self.study, self.writer, self.reporter, self.checkpoint_seconds)
        self.null.run()
        self.write("null", self.null.table)
        for asker in self.study.askers:
            self.columns[asker] |= self.null.columns(asker, self.columns[asker])

    def _counts(self, outcome: Outcome, comparisons: Sequence[Comparison]) -> None:
        """The tables of counts: over thresholds, of anchors, and of mutual cliques where every model is asked about."""
        null, draws = (None, 0) if self.null is None else (self.null.table, self.null.draws)
        self.write("thresholds", thresholds_table(comparisons, self.columns, self.config.threshold, null, draws))
        self.write("anchors", anchors_table(comparisons, self.columns))
        if self.config.pairs == "all":
            universal = {name: self.columns[name]["is_universal"] for name in self.names}
            table = cliques_table(mutual_cliques(self.names, best_of(comparisons)), self.units, universal)
            random = None if outcome.random_bases is None else outcome.random_bases.cliques(self.names)
            self.write("cliques", table)
            self.write("clique_levels", clique_levels_table(table, random))

    def _one_to_one(self, comparisons: Sequence[Comparison]) -> None:
        """The tables of one-to-one matching."""
        decoders = {model.name: model.decoder for model in self.study.models if model.decoder is not None}
        made = [(comparison, pairings(comparison, decoders, self.config.seed)) for comparison in comparisons]
        self.write("one_to_one", one_to_one_table([one for _, some in made for one in some], self.units))
        self.write("consistency", pl.concat([consistency_table(*one) for one in made]))
        self.write("consistency_levels", pl.concat([consistency_levels_table(*one) for one in made]))

    def _statistics(self, statistics: Statistics, everything: Evidence) -> None:
        """Columns of activation statistics, histograms and examples."""
        histograms: dict[str, torch.Tensor] = {}
        examples = []
        for name in self.names:
            dead = everything.dead(name)
            self.columns[name]["dead"] = dead.cpu().numpy()
            pre = Key(name, What.PRE)
            if self._asked("statistics") or self._asked("labels"):
                moments, first = (statistics.get(Moments, key) for key in (pre, Key(name, What.FIRST)))
                self.columns[name] |= activation_statistics(moments.result(), first.result())
            if self._asked("statistics") or self.study.reader.complete:
                by_size = everything.by_size(name)
                self.columns[name] |= duplicates(everything.layers(name), ~dead, self.units[name], by_size=by_size)
            if not self._asked("statistics"):
                continue
            result, best = statistics.get(Histogram, pre).result(), statistics.get(TopExamples, name)
            histograms |= {f"{name}/{part}": tensor.contiguous().cpu() for part, tensor in vars(result).items()}
            examples.append(examples_table(name, self.units[name], best.result(), self.study.tokens))
        if examples:
            self.hashes["histograms"] = self.writer.write_bytes("histograms.safetensors", save(histograms))
            self.write("examples", pl.concat(examples))

    def _activation_moments(self, everything: Evidence, outcome: Outcome) -> None:
        """The columns of the activation's mean and population standard deviation, on the rows that choose."""
        for name, source in outcome.sources.items():
            assert source.provisional is not None
            spread = everything.spread(name)
            mean = source.provisional.mean.double() + spread.sum / max(spread.count, 1)
            sd = everything.variances(name).sqrt().masked_fill(everything.dead(name), 0)
            self.columns[name] |= {"activation_mean": mean.cpu().numpy(), "activation_sd": sd.cpu().numpy()}

    def _detail(self, sources: list[Source], of_matches: DetailPass, explainer: Explainer | None) -> dict[str, Detail]:
        """Held-out rows read once more; the labels' columns of it, and what it says of the matches."""
        recipes, annotations = of_matches.recipes(), of_matches.annotations()
        self.frequent = of_matches.frequent
        if explainer is not None:
            of_labels = explainer.sources()
            recipes += explainer.recipes(of_labels[0].width)
            annotations += of_labels
        if not recipes:
            return {}
        run = Pass(sources, recipes, annotations)
        shards = [Shard(index, np.asarray(rows)) for index, rows in enumerate(self.study.stretches)]
        total = sum(len(shard.rows) for shard in shards) * self.study.tokens.context
        with self.reporter.tokens("detail pass", total) as meter:
            run.run(self.study.tokens, shards, batch_tokens=self.batch_tokens, after_batch=meter)
        statistics = Statistics(run.accumulators)
        if explainer is not None:
            for name, columns in explainer.judge(statistics).items():
                self.columns[name] |= columns
        self._side_by_side(of_matches, statistics)
        self._sinks(of_matches.sinks(statistics))
        return of_matches.read(statistics)

    def _sinks(self, found: FoundSinks | None) -> None:
        """The table of the sinks, and what the manifest keeps of them; nothing where no model ran."""
        if found is not None:
            tokenizer = find_tokenizer(self.config, self.study.reader.networks, required=False)
            self.sinks = found.describe(self.config.sink_factor)
            self.write("sinks", found.table(tokenizer))

    def _side_by_side(self, of_matches: DetailPass, statistics: Statistics) -> None:
        """The table of where the asked neurons that have a match fire, and what the matches do there."""
        shown = of_matches.side_by_side(statistics)
        frames = []
        for comparison in of_matches.comparisons if shown else ():
            asker = comparison.asker
            matched = np.flatnonzero((comparison.best_index >= 0).any(0))
            frames.append(counterparts_table(asker, self.units[asker], shown[asker], matched, self.study.tokens))
        if frames:
            self.write("counterparts", pl.concat(frames))


def _weight_columns(studied: Studied) -> dict[str, Any]:
    """What the weights of neurons say of them; of latents, what those of their decoders do."""
    if isinstance(studied, Latents):
        return decoder_statistics(*written_directions(studied.network, studied.decoders()))
    assert studied.of_neurons
    return weight_statistics(processed_weights(studied.network))
