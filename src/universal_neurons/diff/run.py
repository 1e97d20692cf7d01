"""A base and its fine-tune, unit by unit: what did training change?

1. Load both; refuse models whose units do not correspond by index (`correspondence`).
2. Held-out rows: each unit and itself in the other model (`selves`); on the second text; of every null.  Its weights
   before and after (`weight_changes`).
3. An ordinary study of the two, each asking the other, in OUT/study: matches, statistics, labels, roles, examples.
4. Where units went to (`places`), what kind of change it is (`kinds`), how unusual (`nulls`): the table `changes`.
5. What the units that changed most carry of the fine-tune's gain (`effect_stage`).

OUT/diff.json comes last.  Interrupted, the same command goes on.
"""

from collections.abc import Callable, Sequence
from typing import Any

import polars as pl
import torch

from universal_neurons.config import DIFF_FILE
from universal_neurons.diff.changes import changes_tables
from universal_neurons.diff.effect_stage import EffectStage, effects_note
from universal_neurons.diff.finished import STUDY, Diff
from universal_neurons.diff.inputs import Inputs
from universal_neurons.diff.selves import Columns, self_columns
from universal_neurons.diff.settings import DiffConfig
from universal_neurons.diff.weight_changes import own_weight_columns, weight_columns
from universal_neurons.errors import MissingFileError
from universal_neurons.models import Model
from universal_neurons.progress import Reporter
from universal_neurons.storage import Generations, Store, StoreWriter
from universal_neurons.study import run_folder, run_study
from universal_neurons.text import Rows
from universal_neurons.torch_state import settled_torch


def run_diff(
    config: DiffConfig,
    *,
    models: Sequence[Model] | None = None,
    nulls: Sequence[Model] = (),
    tokens: Rows | None = None,
    progress: bool = True,
    reporter: Reporter | None = None,
) -> Diff:
    """Compare a base and its fine-tune unit by unit, or go on with it, and return the diff.

    `models` (both, with `nulls`) and `tokens` may be given as objects in place of what `config` names.  Raises an
    `InputError` for what cannot be compared (`CorrespondenceError` where units do not correspond by index) and a
    `StudyError` for what went wrong on the way (run it again to resume).
    """
    reporter = reporter or Reporter(quiet=not progress)
    with settled_torch(config.threads):
        with reporter.stage("models"):
            inputs = Inputs(config, models, nulls, tokens)
        for note in inputs.notes:
            reporter.note(note)
        with StoreWriter(config.out or run_folder("-to-".join(inputs.names), inputs.config.data), DIFF_FILE) as writer:
            writer.claim({"config": inputs.config.stored()})
            text, second = inputs.text(writer.prepare()), inputs.second_text()
            manifest = _manifest(inputs, text, second)
            if _is_whole(writer, writer.require_same(manifest)):
                reporter.note(f"{writer.path} is complete already")
                return Diff(writer.path)
            writer.write_manifest({"complete": False} | manifest)
            passes = _Passes(inputs, writer, reporter)
            selves = passes.selves(inputs.tuned, text)
            on_tuned = None if second is None else passes.selves(inputs.tuned, second, " on the second text")
            of_nulls = {null.name: passes.null(null, text) for null in (load() for load in inputs.nulls)}
            with reporter.stage("weights"):
                weights = weight_columns(inputs.base, inputs.tuned)
            if inputs.config.effects:
                reporter.note(effects_note(inputs, [text] if second is None else [text, second]))
            del text, second
            study = _study(inputs, writer, reporter)
            tables = changes_tables(study, inputs.config, selves, weights, of_nulls, on_tuned)
            tables |= _effects(inputs, study, tables["changes"], writer, reporter)
            hashes = {name: writer.write_table(name, table) for name, table in tables.items()}
            of_study = {"environment": study.manifest["environment"], "study": study.manifest["tables"]}
            writer.write_manifest({"complete": True} | manifest | {"tables": hashes} | of_study)
            return Diff(writer.path)


def _manifest(inputs: Inputs, text: Rows, second: Rows | None) -> dict[str, Any]:
    """What tells one diff from another: configuration, models, texts."""
    nulls = [load().describe() for load in inputs.nulls]
    return {
        "config": inputs.config.stored(),
        "models": [inputs.base.describe(), inputs.tuned.describe(), *nulls],
        "tokens": _described(text, inputs) | ({} if second is None else {"second": _described(second, inputs)}),
    }


def _described(text: Rows, inputs: Inputs) -> dict[str, Any]:
    _, stretches = text.split(inputs.settings.heldout_tokens)
    facts = {"fingerprint": text.fingerprint, "rows": len(text), "tokens": text.n_tokens}
    return facts | {"heldout_rows": sum(map(len, stretches))}


def _is_whole(writer: StoreWriter, earlier: dict[str, Any] | None) -> bool:
    """Whether a diff is complete with all of its files, and its study is the one that it was made of."""
    if earlier is None or not earlier["complete"]:
        return False
    try:
        diff = Diff(writer.path)
        whole = not diff.missing_files() and not diff.study.missing_files()
    except MissingFileError:
        return False
    return whole and diff.study.manifest["tables"] == diff.manifest["study"]


def _study(inputs: Inputs, writer: StoreWriter, reporter: Reporter) -> Store:
    """The study of both models, each asking the other."""
    tokens, (models, config) = inputs.tokens, inputs.release()
    config = config.model_copy(update={"out": str(writer.path / STUDY)})
    quiet = Reporter(quiet=reporter.quiet, console=reporter.console)
    return run_study(config, models=models, tokens=tokens, reporter=quiet)


def _effects(
    inputs: Inputs, study: Store, changes: pl.DataFrame, writer: StoreWriter, reporter: Reporter
) -> dict[str, pl.DataFrame]:
    """The tables of effects, by the models that the study let go of; none where they are left out."""
    if not inputs.config.effects:
        return {}
    inputs.load_again()
    text, second = inputs.text(writer.prepare()), inputs.second_text()
    return EffectStage(inputs, study, changes, [text] if second is None else [text, second]).tables(writer, reporter)


class _Passes:
    """The passes over held-out rows; what is finished is kept in the scratch folder."""

    def __init__(self, inputs: Inputs, writer: StoreWriter, reporter: Reporter) -> None:
        self.inputs, self.writer, self.reporter = inputs, writer, reporter

    def selves(self, other: Model, text: Rows, where: str = "") -> Columns:
        """Each unit of the base and the same unit of another model on the held-out rows of a text."""
        inputs = self.inputs
        _, stretches = text.split(inputs.settings.heldout_tokens)
        total = sum(map(len, stretches)) * text.context

        def read() -> Columns:
            with self.reporter.tokens(f"{inputs.names[0]} and {other.name}{where}", total) as meter:
                return self_columns(inputs.base, other, text, inputs.settings, meter)

        parts = (inputs.base.digest, other.digest, text.fingerprint)
        return self._kept("-".join(["self", *(part[:16] for part in parts)]), read)

    def null(self, null: Model, text: Rows) -> Columns:
        """The same of another fine-tune, and what became of its weights."""
        text.require_vocabulary(null.vocab_size, null.name)
        return self.selves(null, text) | own_weight_columns(self.inputs.base, null)

    def _kept(self, name: str, make: Callable[[], Columns]) -> Columns:
        kept = Generations(self.writer.prepare() / name)
        saved = kept.load()
        if saved is None:
            saved = {column: torch.from_numpy(values) for column, values in make().items()}, 1
            kept.save(*saved)
        return {column: values.numpy() for column, values in saved[0].items()}
