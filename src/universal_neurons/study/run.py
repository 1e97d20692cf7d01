"""A `StudyConfig` to a store, in order: models, tokens, weights, labels, the pass, comparison, the detail pass, tables.

Interrupted and started again, a study goes on from the last checkpoint of its pass and ends with the same bytes.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence

from universal_neurons.config import IN_MEMORY, Settings, StudyConfig
from universal_neurons.disk import full_disk, local_path
from universal_neurons.errors import ConfigError, InputError
from universal_neurons.features import (
    Networks,
    Reader,
    Sketches,
    Studied,
    are_sketches,
    open_sketches,
    settings_of,
    verify_latents,
)
from universal_neurons.models import Described
from universal_neurons.passes import Layout, connected
from universal_neurons.progress import Reporter, clock
from universal_neurons.storage import MANIFEST, Store, StoreWriter, read_manifest
from universal_neurons.study.inputs import Study
from universal_neurons.study.masked_sinks import MaskedSinks
from universal_neurons.study.memory import plan_layout, require_memory
from universal_neurons.study.product_units import as_begun, hold_against_float64, with_units
from universal_neurons.study.resolve import (
    decide,
    default_out,
    from_objects,
    identity,
    load_models,
    require_kin,
    resolve,
)
from universal_neurons.study.stages import EXPLAINED, Stages
from universal_neurons.text import Rows
from universal_neurons.torch_state import settled_torch


def run_study(
    config: StudyConfig,
    *,
    models: Sequence[Studied] | None = None,
    tokens: Rows | None = None,
    labels: Mapping[str, Callable[[str], bool]] | None = None,
    progress: bool = True,
    checkpoint_seconds: float | None = None,
    reporter: Reporter | None = None,
) -> Store:
    """Run (or resume) a study and return its store.

    `models` (or features of them, see `features_of`) and `tokens` may be given as objects in place of what `config`
    names; `labels` adds labels of your own, by
    name, as functions of a token's string (with its leading space); where the configuration's `labels` are `()`, there
    are no others.  Checkpoints are written at most every `checkpoint_seconds`; by default so that they cost about 2 %
    of the pass.  Raises an `InputError` for what
    cannot be studied (nothing is written) and a `StudyError` for what went wrong on the way (run it again to resume).
    """
    reporter = reporter or Reporter(quiet=not progress)
    given = config
    if models is None and are_sketches(config.models):
        config = settings_of(config)
    config = decide(config, None if models is None else len(models))
    if labels and "labels" not in config.stages:
        raise ConfigError("labels are given, but not looked for", wanted="the stage labels", fix="add it to stages")
    if "labels" in config.stages and not (labels or config.labels):
        raise ConfigError(
            "no labels to look for",
            given="labels=() and no functions",
            wanted="labels of the configuration, or functions of your own",
            fix='run_study(config, labels={"name": function}), or labels=("default",) in the configuration',
        )
    _say_finished(config.out, reporter)
    with settled_torch(config.threads):
        with reporter.stage("models"):
            settings, loaded, reader = _models(config, models, tokens)
            settings = with_units(given, settings, loaded)
            digest = require_kin(loaded, settings, several=settings.pooling is not None)
        _say_what_is_studied(settings, loaded, reporter)
        with connected(settings), StoreWriter(settings.out or default_out(settings, loaded)) as writer:
            settings = as_begun(given, settings, writer)
            writer.claim(identity(settings, loaded))
            with reporter.stage("tokens"):
                text = _text(settings, reader, writer) if tokens is None else tokens
            verified = {} if text is None else verify_latents(reader.studied, text)
            if "sinks" in settings.mask and text is not None:
                with reporter.stage("sinks"):
                    text = MaskedSinks(settings, loaded, reader, writer, reporter).leave_out(text, checkpoint_seconds)
            with reporter.stage("tokens"):
                study = Study(settings, loaded, reader, text, digest, labels, verified)
            hold_against_float64(given, study, writer, reporter)
            _lay_out(study, writer)
            if writer.begin(study.manifest()) and _is_whole(study, writer, reporter):
                return Store(writer.path)
            for note in (*([] if text is None else [repr(text), *text.notes]), *study.notes):
                reporter.note(note)
            stages = Stages(study, writer, reporter, checkpoint_seconds)
            tables = stages.run()
            return _finish(study, stages, tables, writer, reporter)


def _models(
    config: StudyConfig, models: Sequence[Studied] | None, tokens: Rows | None
) -> tuple[Settings, Sequence[Described], Reader]:
    """The settings that models, and text in memory, make of a configuration; the models, and how they are read."""
    described: Sequence[Described]
    reader: Reader
    if models is not None:
        config, reader = from_objects(config, models), Networks(models)
        described = reader.studied
    elif are_sketches(config.models):
        config, described = open_sketches(config)
        reader = Sketches(described)
    else:
        reader = Networks(load_models(config))
        described = reader.studied
    if tokens is not None:
        if config.only_subset:
            raise ConfigError(
                "only_subset is of a text that is read, and tokens are given",
                given=", ".join(config.only_subset),
                wanted="tokens of these subsets alone",
                fix="leave only_subset out",
            )
        config = config.model_copy(update={"data": IN_MEMORY, "context": tokens.context})
    return resolve(config, described), described, reader


def _say_what_is_studied(config: Settings, models: Sequence[Described], reporter: Reporter) -> None:
    reporter.note(f"{', '.join(m.name for m in models)}: {', '.join(config.stages)}; {config.device}, {config.dtype}")
    for note in (f"{model.name}: {note}" for model in models for note in model.notes):
        reporter.note(note)


def _say_finished(out: str | None, reporter: Reporter) -> None:
    """Say at once that a finished study is there, before what it was made of is read."""
    with contextlib.suppress(InputError):  # which the writer raises again
        earlier = None if out is None else read_manifest(local_path(out) / MANIFEST)
        if earlier is not None and earlier["complete"]:
            reporter.note(f"{out} holds a finished study: is it this one?")


def _text(settings: Settings, reader: Reader, writer: StoreWriter) -> Rows | None:
    """The text that the configuration names; of sketches the one they are of."""
    with full_disk(writer.path):
        return reader.text(settings, writer.prepare())


def _lay_out(study: Study, writer: StoreWriter) -> None:
    """Settle in how many passes the co-moments are made: as the study was begun, or as memory allows."""
    begun = writer.under_way("layout")
    planned = plan_layout(study.config, study.models, groups=study.n_groups) if begun is None else Layout(**begun)
    study.lay_out(planned)
    require_memory(study.config, study.models, study.layout, groups=study.n_groups)


def _is_whole(study: Study, writer: StoreWriter, reporter: Reporter) -> bool:
    """Whether a study that is complete has all of its files; else it is begun anew."""
    store = Store(writer.path)
    missing = store.missing_files()
    if not missing:
        reporter.note(f"{writer.path} is complete already: nothing is computed again")
        return True
    reporter.note(f"{writer.path}: {', '.join(missing)} missing; the study is made anew")
    explained = [name for name in ("explanations", "scores") if store.has(name) and f"{name}.parquet" not in missing]
    writer.write_manifest({"complete": False} | study.manifest() | {EXPLAINED: explained})
    return False


def _finish(study: Study, stages: Stages, tables: dict[str, str], writer: StoreWriter, reporter: Reporter) -> Store:
    """Declare the study complete."""
    manifest = study.manifest() | {
        "counted_tokens": stages.counted,
        **({"counted_by_subset": stages.counted_by_subset} if stages.counted_by_subset else {}),
        "search": {"search": study.config.search, **stages.doubts},
        **({} if stages.null is None else {"null": stages.null.describe()}),
        **({} if stages.frequent is None else {"within_tokens": stages.frequent.describe()}),
        **({} if stages.sinks is None else {"sinks": stages.sinks}),
        **({} if stages.similarity is None else {"similarity": stages.similarity}),
        "tables": tables,
        "timings": {name: round(seconds, 3) for name, seconds in reporter.timings.items()},
    }
    store = writer.finish(manifest)
    for warning in stages.warnings:
        reporter.note(warning)
    reporter.note("all stages: " + ", ".join(f"{name} {clock(s)}" for name, s in reporter.timings.items()))
    return store
