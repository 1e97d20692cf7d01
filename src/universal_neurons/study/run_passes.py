"""The passes over the rows that choose: in panels as memory demands, in lanes, with snapshots, or on a cluster.

The first pass keeps all statistics; every pass makes panels of the co-moments and reduces them to what was found.  A
screened search ends with a pass over the candidates.  After any shard the whole state is plain tensors: the passes
go on from the last snapshot and end with the same bits.
"""

import shutil
import time

from torch import Tensor

from universal_neurons.matching import DRAWS, reading_points
from universal_neurons.passes import LaneJob, Pass, run_lanes, under
from universal_neurons.progress import Reporter
from universal_neurons.storage import Pace, StoreWriter
from universal_neurons.study.candidates_pass import CandidatesPass
from universal_neurons.study.inputs import Study
from universal_neurons.study.outcome import Outcome
from universal_neurons.study.panel_pass import PanelPass
from universal_neurons.study.screen import Screen
from universal_neurons.text import Shard

SNAPSHOT_SHARE = 0.02
SNAPSHOT_SECONDS = 10.0
READING_FLOP = 4000  # what finding one ρ's place among the best costs, in FLOP of a product


def lane_ends(shards: int, lanes: int) -> list[int]:
    """The numbers of shards after which lanes end: even parts, in order; none where there is one lane."""
    lanes = min(lanes, shards)
    return [shards * (lane + 1) // lanes for lane in range(lanes)] if lanes > 1 else []


class Passes:
    """A study's passes in their order: `run` them, then ask the `outcome`.

    Those of a null (`bare`) are not read on the way and look for nothing in random bases.
    """

    def __init__(
        self,
        study: Study,
        writer: StoreWriter,
        reporter: Reporter,
        checkpoint_seconds: float | None,
        *,
        bare: bool = False,
    ) -> None:
        self.study, self.writer, self.reporter = study, writer, reporter
        self.checkpoint_seconds = checkpoint_seconds
        self.outcome = Outcome(study)
        if bare:
            self.outcome.random_bases = None
        screen = Screen(study, self.outcome.findings) if study.config.search == "screened" and study.askers else None
        panels = [PanelPass(study, self.outcome, screen, number) for number in range(len(study.panels))]
        self.first = panels[0]
        self.each: list[PanelPass | CandidatesPass] = [*panels]
        if screen is not None:
            self.each.append(CandidatesPass(study, self.outcome, screen, writer.prepare()))
        self.shards = study.shards
        self.lanes = lane_ends(len(self.shards), study.config.lanes)
        self.points = [] if bare else self._points()

    def _points(self) -> list[int]:
        """After which shards the statistics so far are read."""
        points = reading_points(len(self.lanes) or len(self.shards), *self._work())
        if self.study.reader.complete:
            points = points[-1:]
        return [self.lanes[point - 1] for point in points] if self.lanes else points

    def _work(self) -> tuple[float, float]:
        """FLOP of the passes' products, and roughly of reading once what they say so far."""
        config = self.study.config
        entries = float(sum(panel.entries for panels in self.study.panels for panel in panels))
        width = max(model.d_mlp for model in self.study.models)
        share = 1 if config.search == "exact" else config.group_size
        return 2 * entries * self.study.tokens.counted / share, max(entries, 1.0) * (2 * DRAWS * width + READING_FLOP)

    def run(self) -> None:
        """All passes that are not done yet."""
        state, step = self._saved()
        for number, one in enumerate(self.each):
            begun = number * len(self.shards)
            if step > begun + len(self.shards):  # it was done before the snapshot
                continue
            run = one.begin(self.lanes)
            if step > begun:
                run.restore(under(state, "run/"), step - begun)
                self.reporter.note(f"resumed after shard {run.next_shard} of {len(self.shards)} of {one.name}")
            state = {}
            if self.study.config.cluster is None:
                self._go(one, run, begun)
            elif run.next_shard < len(self.shards):
                self._go_on_cluster(one, run, begun)
            one.finish(run)

    def _saved(self) -> tuple[dict[str, Tensor], int]:
        """The last snapshot and how many shards it is past, over all passes."""
        saved = self.writer.load_snapshot(self.reporter.note)
        if saved is None:
            return {}, 0
        state, step = saved
        if self.outcome.of_other_labels(state):
            self.reporter.note("the labels are not those of the snapshot: the pass starts again")
            return {}, 0
        self.outcome.restore(state, self.first.other_recipes() if step > len(self.shards) else [])
        return state, step

    def _go(self, one: PanelPass | CandidatesPass, run: Pass, begun: int) -> None:
        """On to the end of the pass."""
        pace = self._pace()

        def after_shard(shard: Shard) -> None:
            self._read_so_far(one, run)
            if pace.due or run.next_shard == len(self.shards):
                started = time.perf_counter()
                self._save(run, begun + run.next_shard)
                pace.written(time.perf_counter() - started)

        positions = [len(shard.rows) * one.tokens.context for shard in self.shards]
        with self.reporter.tokens(one.name, sum(positions), sum(positions[: run.next_shard])) as meter:
            run.run(
                one.tokens,
                self.shards,
                batch_tokens=self.study.config.batch_tokens,
                after_batch=meter,
                after_shard=after_shard,
            )

    def _go_on_cluster(self, one: PanelPass | CandidatesPass, run: Pass, begun: int) -> None:
        """On to the end of the pass: its lanes on the cluster, then merged in order as `Pass.run` merges them.

        A lane that a run without the cluster left half done starts again.
        """
        run.settle_means(one.tokens, self.shards)
        if begun + run.next_shard == 0:  # lanes belong to these provisional means
            self.writer.save_snapshot(self.outcome.state(), 0)
        run.accumulators.clear()  # the device may be a worker's too
        job = self._lane_job(one, run, begun)
        job.prepare()
        todo = [lane for lane, end in enumerate(job.ends) if end > run.next_shard]
        total = sum(len(shard.rows) for shard in job.shards) * job.tokens.context
        left = sum(job.positions(lane) - job.positions(lane, job.done(lane)) for lane in todo)
        if left < total:
            self.reporter.note(f"resumed: {1 - left / total:.0%} of {one.name} is done")
        with self.reporter.tokens(one.name, total, total - left) as meter:
            run_lanes(job, todo, meter)
        self._merge(one, run, job, todo)
        self._save(run, begun + len(self.shards))
        shutil.rmtree(job.folder.parent, ignore_errors=True)

    def _lane_job(self, one: PanelPass | CandidatesPass, run: Pass, begun: int) -> LaneJob:
        folder = self.writer.prepare().resolve() / "lanes" / str(begun // len(self.shards))
        models = self.study.reader.studied
        return LaneJob.of(run, models, self.study.config, one.tokens, self.shards, self._pace(), folder)

    def _merge(self, one: PanelPass | CandidatesPass, run: Pass, job: LaneJob, lanes: list[int]) -> None:
        """Add up what the cluster made of some lanes."""
        run.accumulators = run.fresh()
        for lane in lanes:
            run.take_over(job.state(lane), job.ends[lane])
            self._read_so_far(one, run)

    def _pace(self) -> Pace:
        return Pace(self.checkpoint_seconds, SNAPSHOT_SECONDS, SNAPSHOT_SHARE)

    def _save(self, run: Pass, step: int) -> None:
        """Write a snapshot."""
        of_pass = {f"run/{name}": tensor for name, tensor in run.state().items()}
        self.writer.save_snapshot(self.outcome.state() | of_pass, step)

    def _read_so_far(self, one: PanelPass | CandidatesPass, run: Pass) -> None:
        if run.next_shard in self.points:
            one.read_so_far(run)
