"""The passes over the rows that choose: in panels as memory demands, in lanes, with checkpoints, or on a cluster.

The first pass keeps all statistics; every pass makes a panel of the co-moments and reduces it to what was found.  A
screened search ends with a pass over the candidates.  After any shard the whole state is plain tensors: the passes
go on from the last checkpoint and end with the same bits.
"""

import shutil
import time
from functools import partial

import torch
from torch import Tensor

from universal_neurons.accumulators import Accumulator, Recipe
from universal_neurons.cluster import run_lanes
from universal_neurons.comoments import LayerMoments
from universal_neurons.compare import Comparison, Evidence, groups_of
from universal_neurons.convergence import DRAWS, snapshot_points
from universal_neurons.examples import TopExamples
from universal_neurons.findings import WHOLE, Findings, Scope
from universal_neurons.generations import Pace
from universal_neurons.inputs import Study
from universal_neurons.keys import Key, What
from universal_neurons.lanes import LaneJob
from universal_neurons.moments import Histogram, Moments
from universal_neurons.neuron_source import NeuronSource
from universal_neurons.panels import blocks_of, model_recipes, panel_recipes, signs_of
from universal_neurons.progress import Reporter
from universal_neurons.screen import Screen
from universal_neurons.sketched import SketchedModel, filled, original_tokens, source_of
from universal_neurons.statistics import Statistics
from universal_neurons.store import StoreWriter
from universal_neurons.stream import Annotations, Pass, provisional_state, restore, settle_from, state_of, under
from universal_neurons.tokens import Shard

CHECKPOINT_SHARE = 0.02
CHECKPOINT_SECONDS = 10.0
LOOK_FLOP = 4000  # what finding one ρ's place among the best costs, in FLOP of a product


def lane_ends(shards: int, lanes: int) -> list[int]:
    """The numbers of shards after which lanes end: even parts, in order; none where there is one lane."""
    lanes = min(lanes, shards)
    return [shards * (lane + 1) // lanes for lane in range(lanes)] if lanes > 1 else []


class Passes:
    """A study's passes: `run` them, then ask for `accumulators` (the first pass's, without co-moments) and findings."""

    def __init__(self, study: Study, writer: StoreWriter, reporter: Reporter, checkpoint_seconds: float | None) -> None:
        self.study, self.writer, self.reporter = study, writer, reporter
        self.config, self.models = study.config, study.models
        self.checkpoint_seconds = checkpoint_seconds
        self.findings = Findings(self.config)
        self.accumulators: list[Accumulator] = []
        pre = bool({"statistics", "labels"} & set(self.config.stages))
        self.sources = {m.name: source_of(m, self.config.gemm_dtype, pre=pre) for m in self.models}
        self.tokens = study.tokens
        self.n_shards = len(study.shards)
        self.lanes = lane_ends(self.n_shards, self.config.lanes)
        self.panels = study.panels
        points = snapshot_points(len(self.lanes) or self.n_shards, *self._work())
        self.sketched = any(isinstance(model, SketchedModel) for model in self.models)
        if self.sketched:
            points = points[-1:]  # their moments are of all tokens
        self.points = [self.lanes[point - 1] for point in points] if self.lanes else points
        self.screen = Screen(study, self.findings) if self.config.search == "screened" and study.askers else None
        self.labels: dict[str, Tensor] = {}
        if study.labelling is not None:
            self.labels = {"labels": study.labelling.fingerprint()}

    def run(self) -> None:
        """All passes that are not done yet."""
        state, step = self._saved()
        for number in range(len(self.panels) + (self.screen is not None)):
            begun = number * self.n_shards
            if step > begun + self.n_shards:  # it was done before the checkpoint
                continue
            run, own = self._pass(number)
            if step > begun:
                run.restore(under(state, "run/"), step - begun)
                self.reporter.note(f"resumed after shard {run.next_shard} of {self.n_shards} of {self._name(number)}")
            state = {}
            if self.config.cluster is None:
                self._go(run, number)
            elif run.next_shard < self.n_shards:
                self._go_on_cluster(run, number)
            self._finish(run, own, number)

    def _work(self) -> tuple[float, float]:
        """FLOP of the passes' products, and roughly of one look at what they say so far."""
        entries = float(sum(panel.entries for panels in self.panels for panel in panels))
        width = max(model.d_mlp for model in self.models)
        share = 1 if self.config.search == "exact" else self.config.group_size
        return 2 * entries * self.tokens.counted / share, max(entries, 1.0) * (2 * DRAWS * width + LOOK_FLOP)

    def comparison(self, asker: str, scope: Scope = WHOLE) -> Comparison:
        """What an asker's neurons found: in the whole text, or in a subset."""
        return self.findings.comparison(scope, asker, [name for name in self.study.names if name != asker])

    def _name(self, number: int) -> str:
        if number == len(self.panels):
            return "the candidates' pass"
        return "the pass" if len(self.panels) == 1 else f"pass {number + 1} of {len(self.panels)}"

    def _saved(self) -> tuple[dict[str, Tensor], int]:
        """The last checkpoint and how many shards it is past, over all passes."""
        saved = self.writer.load_checkpoint(self.reporter.note)
        if saved is None:
            return {}, 0
        state, step = saved
        if self.labels and not torch.equal(state["labels"], self.labels["labels"]):
            self.reporter.note("the labels are not those of the checkpoint: the pass starts again")
            return {}, 0
        self.findings.restore(state)
        settle_from(state, self.sources.values())
        if step > self.n_shards:
            self.accumulators = [recipe(device=self.models[0].device) for recipe in self._recipes(0)]
            restore(self.accumulators, state, "kept/")
        return state, step

    def _pass(self, number: int) -> tuple[Pass, int]:
        """A pass at its beginning, and how many of its statistics (the first ones) are its panel's own."""
        if number == len(self.panels):
            return self._second_pass()
        panels, study = self.panels[number], self.study
        own = panel_recipes(panels, self.config, study.n_groups, compensated=study.layout.compensated)
        sources, annotations = list(self.sources.values()), list[Annotations]()
        if number:
            involved = {m.name for panel in panels for m in (panel.left, panel.right)}
            sources = [source_of(m, self.config.gemm_dtype) for m in self.models if m.name in involved]
            settle_from(provisional_state(self.sources.values()), sources)
        elif study.labelling is not None:
            annotations = [study.labelling.source()]
        signs = signs_of(self.config) if study.askers else None
        recipes = filled([*own, *self._recipes(number)], self.models)
        return Pass(sources, recipes, annotations, signs=signs, lanes=self.lanes), len(own)

    def _second_pass(self) -> tuple[Pass, int]:
        """The pass over the candidates; of sketches, it reads the models and the text again."""
        assert self.screen is not None
        rounding, models = self.config.gemm_dtype, self.models
        sketched = [model for model in models if isinstance(model, SketchedModel)]
        if sketched:
            rounding, models = sketched[0].file.about["rounding"], [model.original() for model in sketched]
            self.tokens = original_tokens(self.config, models, self.tokens, self.writer.prepare())
        sources = [NeuronSource(model, rounding) for model in models]
        settle_from(provisional_state(self.sources.values()), sources)
        recipes = self.screen.recipes()
        return Pass(sources, recipes, lanes=self.lanes), len(recipes)

    def _recipes(self, number: int) -> list[Recipe]:
        """What a pass keeps besides its panel."""
        rotated = {other for _, other in self.study.asked}
        if number:
            involved = {m.name: m for panel in self.panels[number] for m in (panel.left, panel.right)}
            plain = self.config.model_copy(update={"stages": ("universality",)})
            return model_recipes(list(involved.values()), rotated, plain, self.study.n_groups)
        found = model_recipes(self.models, rotated, self.config, self.study.n_groups) + self._single_neurons()
        if self.sketched:
            found += [partial(LayerMoments, m.name, m.units) for m in self.models]
        labelling = self.study.labelling
        return found if labelling is None else found + labelling.recipes(labelling.source().width)

    def _single_neurons(self) -> list[Recipe]:
        """Statistics of pre-activations and the examples, as far as they are asked for."""
        found: list[Recipe] = []
        stages = self.config.stages
        for model in self.models:
            name, n = model.name, model.n_neurons
            if "statistics" in stages or "labels" in stages:
                found.append(partial(Moments, Key(name, What.PRE), n))
                found.append(partial(Moments, Key(name, What.FIRST), n))
            if "statistics" in stages:
                found.append(partial(Histogram, Key(name, What.PRE), n))
                found.append(partial(TopExamples, name, n, k=self.config.examples, seed=self.config.seed))
        return found

    def _go(self, run: Pass, number: int) -> None:
        """On to the end of the pass."""
        tokens, shards, pace = self.tokens, self.study.shards, self._pace()

        def after_shard(shard: Shard) -> None:
            self._look_back(run, number)
            if pace.due or run.next_shard == self.n_shards:
                begun = time.perf_counter()
                self.writer.save_checkpoint(self._state(run), number * self.n_shards + run.next_shard)
                pace.written(time.perf_counter() - begun)

        positions = [len(shard.rows) * tokens.context for shard in shards]
        with self.reporter.tokens(self._name(number), sum(positions), sum(positions[: run.next_shard])) as meter:
            run.run(
                tokens,
                shards,
                batch_tokens=self.config.batch_tokens,
                after_batch=meter,
                after_shard=after_shard,
            )

    def _go_on_cluster(self, run: Pass, number: int) -> None:
        """On to the end of the pass: its lanes on the cluster, then merged in order as `Pass.run` merges them.

        A lane that a run without the cluster left half done starts again.
        """
        run.look(self.tokens, self.study.shards)
        if number == 0 and run.next_shard == 0:  # lanes belong to these provisional means
            self.writer.save_checkpoint(self._kept(), 0)
        run.accumulators.clear()  # the device may be a worker's too
        lanes = self.writer.prepare().resolve() / "lanes" / str(number)
        job = LaneJob.of(run, self.models, self.config, self.tokens, self.study.shards, self._pace(), lanes)
        job.prepare()
        todo = [lane for lane, end in enumerate(job.ends) if end > run.next_shard]
        total = sum(len(shard.rows) for shard in job.shards) * job.tokens.context
        left = sum(job.positions(lane) - job.positions(lane, job.done(lane)) for lane in todo)
        if left < total:
            self.reporter.note(f"resumed: {1 - left / total:.0%} of {self._name(number)} is done")
        with self.reporter.tokens(self._name(number), total, total - left) as meter:
            run_lanes(job, todo, meter)
        run.accumulators = run.fresh()
        for lane in todo:
            restore(run.accumulators, job.state(lane), "")
            run.next_shard = job.ends[lane]
            if run.lanes:
                run.close_lane()
            self._look_back(run, number)
        self.writer.save_checkpoint(self._state(run), (number + 1) * self.n_shards)
        shutil.rmtree(lanes, ignore_errors=True)

    def _pace(self) -> Pace:
        return Pace(self.checkpoint_seconds, CHECKPOINT_SECONDS, CHECKPOINT_SHARE)

    def _state(self, run: Pass) -> dict[str, Tensor]:
        return self._kept() | {f"run/{name}": tensor for name, tensor in run.state().items()}

    def _kept(self) -> dict[str, Tensor]:
        """What outlives a pass."""
        kept = state_of(self.accumulators, "kept/") | self.labels | provisional_state(self.sources.values())
        return kept | self.findings.state()

    def _look_back(self, run: Pass, number: int) -> None:
        """Convergence: what the panel says after some shards (with lanes, after some of these)."""
        if run.next_shard not in self.points or number == len(self.panels):
            return
        accumulators = run.total or run.accumulators
        seen = groups_of(accumulators)
        if seen and self.study.askers:
            evidence = Evidence(Statistics(accumulators), seen, blocks_of(self.config))
            tokens = evidence.count(next(iter(run.sources)))
            draws = min(DRAWS, self.config.draws)
            self.findings.look(Scope(tokens=tokens), evidence, self._asked(number), draws=draws, k=1)

    def _asked(self, number: int) -> list[tuple[str, str]]:
        """The (asker, other) pairs that a panel says something of."""
        there = {frozenset((panel.left.name, panel.right.name)) for panel in self.panels[number]}
        return [pair for pair in self.study.asked if frozenset(pair) in there]

    def _finish(self, run: Pass, own: int, number: int) -> None:
        """Reduce the pass's panel to what was found; of the first pass keep all else."""
        if number == len(self.panels):
            assert self.screen is not None
            self.screen.settle(run.accumulators, self.accumulators)
            return
        if self.study.askers:
            every, statistics, of = groups_of(run.accumulators), Statistics(run.accumulators), blocks_of(self.config)
            whole = Evidence(statistics, every, of)
            z = None if self.screen is None else self.screen.z
            self.findings.look(WHOLE, whole, self._asked(number), z=z)
            for group, name in enumerate(self.study.subsets):
                pairs = [pair for pair in self._asked(number) if pair[0] == self.study.names[0]]
                self.findings.look(Scope(subset=name), Evidence(statistics, [group], of), pairs, z=z)
        if number == 0:
            self.accumulators = run.accumulators[own:]
