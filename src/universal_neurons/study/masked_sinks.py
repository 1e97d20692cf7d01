"""`--mask sinks`: positions that are sinks of any model of a study, found by a pass of their own before all others.

1. Every model reads all rows once; a position is left out where the residual norm of any of them exceeds the factor.
2. The pass is snapshotted as the others are; what it found waits in the work folder until the study is complete.
3. A finished study has it as a table, `left_out`: so one that is run again, or whose roles are, needs no such pass.
"""

import json
import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import polars as pl
from jaxtyping import Bool

from universal_neurons.config import Settings
from universal_neurons.features import Reader
from universal_neurons.models import Described
from universal_neurons.passes import Pass, provisional_state, settle_from, under
from universal_neurons.progress import Reporter
from universal_neurons.statistics import Key, SinkPositions, Statistics, What
from universal_neurons.storage import Generations, Pace, Store, StoreWriter
from universal_neurons.study.resolve import identity
from universal_neurons.study.run_passes import SNAPSHOT_SECONDS, SNAPSHOT_SHARE
from universal_neurons.text import Rows, Shard

LEFT_OUT = "left_out"  # the table


class MaskedSinks:
    """The sinks of a study's models in its text: `leave_out` finds them, or takes them as they were found."""

    def __init__(
        self, settings: Settings, models: Sequence[Described], reader: Reader, writer: StoreWriter, reporter: Reporter
    ) -> None:
        self.settings, self.models, self.reader = settings, models, reader
        self.writer, self.reporter = writer, reporter

    def leave_out(self, text: Rows, checkpoint_seconds: float | None) -> Rows:
        """The text without them."""
        found = self._of_finished(text)
        if found is None:
            found = self._find(text, checkpoint_seconds)
        self.reporter.note(f"{int(found.sum()):,} of {text.counted:,} positions are sinks, and left out")
        return text.without(found)

    def _of_finished(self, text: Rows) -> Bool[np.ndarray, "rows context"] | None:
        """As a finished study of the same models and text has them; None where there is none, or its table is gone."""
        about = identity(self.settings, self.models)
        earlier = self.writer.require_same(about)
        if not earlier or not earlier["complete"] or earlier["tokens"]["fingerprint"] != text.fingerprint:
            return None
        store = Store(self.writer.path)
        return None if store.missing_files() else positions_of(store.table(LEFT_OUT), text)

    def _find(self, text: Rows, checkpoint_seconds: float | None) -> Bool[np.ndarray, "rows context"]:
        """Those that a pass over all rows finds; it goes on where it was interrupted."""
        for model in self.models:
            text.require_vocabulary(model.vocab_size, model.name)
        rows, names = np.arange(len(text)), [model.name for model in self.models]
        sources = [self.reader.source(model, self.settings.gemm_dtype) for model in self.models]
        for source in sources:
            source.streams = True
        run = Pass(sources, [partial(SinkPositions, names, rows, text.context, self.settings.sink_factor)])
        of = json.dumps([identity(self.settings, self.models), text.fingerprint], sort_keys=True)
        kept = Generations(self.writer.prepare() / "sinks", of=of)
        saved = kept.load(self.reporter.note)
        if saved is not None:
            state, step = saved
            settle_from(state, sources)
            run.restore(under(state, "run/"), step)
        shards = text.shards(rows)
        pace = Pace(checkpoint_seconds, SNAPSHOT_SECONDS, SNAPSHOT_SHARE)

        def after_shard(_shard: Shard) -> None:
            if pace.due or run.next_shard == len(shards):
                started = time.perf_counter()
                of_pass = {f"run/{name}": tensor for name, tensor in run.state().items()}
                kept.save(provisional_state(sources) | of_pass, run.next_shard)
                pace.written(time.perf_counter() - started)

        positions = [len(shard.rows) * text.context for shard in shards]
        with self.reporter.tokens("sinks", sum(positions), sum(positions[: run.next_shard])) as meter:
            run.run(text, shards, batch_tokens=self.settings.batch_tokens, after_batch=meter, after_shard=after_shard)
        keys = [Key(name, What.STREAM) for name in names]
        return Statistics(run.accumulators).get(SinkPositions, *keys).result()


def left_out_table(text: Rows) -> pl.DataFrame:
    """The positions that a text leaves out: row and position of each."""
    assert text.left_out is not None
    row, position = np.nonzero(np.unpackbits(text.left_out, axis=1, count=text.context))
    return pl.DataFrame({"row": row.astype(np.int32), "position": position.astype(np.int32)})


def positions_of(table: pl.DataFrame, text: Rows) -> Bool[np.ndarray, "rows context"]:
    """The positions in such a table, as a mask over the text's."""
    found = np.zeros((len(text), text.context), bool)
    found[table["row"].to_numpy(), table["position"].to_numpy()] = True
    return found
