"""A `StudyConfig` to a store, in order: models, tokens, weights, labels, the pass, comparison, the detail pass, tables.

Interrupted and started again, a study goes on from the last checkpoint of its pass and ends with the same bytes.
"""

from collections.abc import Callable, Mapping, Sequence

import torch

from universal_neurons.cluster import connected
from universal_neurons.config import IN_MEMORY, StudyConfig
from universal_neurons.disk import full_disk
from universal_neurons.errors import ConfigError
from universal_neurons.estimate import plan_layout, require_memory
from universal_neurons.inputs import Study
from universal_neurons.models import Model
from universal_neurons.panels import Layout
from universal_neurons.plan import (
    default_out,
    find_tokenizer,
    from_objects,
    identity,
    load_models,
    require_kin,
    resolve,
    with_context,
)
from universal_neurons.progress import Reporter, clock
from universal_neurons.sketched import are_sketches, open_sketches, settings_of, text_of_sketches
from universal_neurons.stages import Stages
from universal_neurons.store import Store, StoreWriter
from universal_neurons.tokens import TokenDataset


def run_study(
    config: StudyConfig,
    *,
    models: Sequence[Model] | None = None,
    tokens: TokenDataset | None = None,
    labels: Mapping[str, Callable[[str], bool]] | None = None,
    progress: bool = True,
    checkpoint_seconds: float | None = None,
    reporter: Reporter | None = None,
) -> Store:
    """Run (or resume) a study and return its store.

    `models` and `tokens` may be given as objects in place of what `config` names; `labels` adds labels of your own, by
    name, as functions of a token's string (with its leading space).  Checkpoints are written at most
    every `checkpoint_seconds`; by default so that they cost about 2 % of the pass.  Raises an `InputError` for what
    cannot be studied (nothing is written) and a `StudyError` for what went wrong on the way (run it again to resume).
    """
    reporter = reporter or Reporter(quiet=not progress)
    sketched = models is None and are_sketches(config.models)
    if sketched:
        config = settings_of(config)
    config = resolve(config, None if models is None else len(models))
    if config.threads:
        torch.set_num_threads(config.threads)
    if labels and "labels" not in config.stages:
        raise ConfigError("labels are given, but not looked for", wanted="the stage labels", fix="add it to stages")
    with reporter.stage("models"):
        loaded: list[Model]
        if sketched:
            config, loaded = open_sketches(config)
        else:
            loaded = list(models) if models is not None else load_models(config)
        if models is not None:
            config = from_objects(config, loaded)
        digest = require_kin(loaded, config)
    if tokens is not None:
        config = config.model_copy(update={"data": IN_MEMORY, "context": tokens.context})
    if config.reads_tokens:
        config = with_context(config, loaded)
    reporter.note(f"{', '.join(m.name for m in loaded)}: {', '.join(config.stages)}; {config.device}, {config.dtype}")
    for text in (f"{model.name}: {note}" for model in loaded for note in model.notes):
        reporter.note(text)
    with connected(config), StoreWriter(config.out or default_out(config, loaded)) as writer:
        writer.claim(identity(config, loaded))
        packed = tokens
        with reporter.stage("tokens"):
            if sketched:
                packed = text_of_sketches(loaded)
            elif packed is None and config.reads_tokens:
                packed = _tokens(config, loaded, writer)
            study = Study(config, loaded, packed, digest, labels)
        saved = writer.under_way("layout")
        study.lay_out(plan_layout(config, loaded, groups=study.n_groups) if saved is None else Layout(**saved))
        require_memory(config, loaded, study.layout, groups=study.n_groups)
        if writer.begin(study.manifest()):
            complete = Store(writer.path)
            missing = complete.missing_files()
            if not missing:
                reporter.note(f"{writer.path} is complete already")
                return complete
            reporter.note(f"{writer.path}: {', '.join(missing)} missing; the study is made anew")
            writer.write_manifest({"complete": False} | study.manifest())
        for text in (*([] if packed is None else [repr(packed), *packed.notes]), *study.notes):
            reporter.note(text)
        stages = Stages(study, writer, reporter, checkpoint_seconds)
        tables = stages.run()
        manifest = study.manifest() | {
            "counted_tokens": stages.counted,
            "search": {"search": config.search, **stages.doubts},
            "tables": tables,
            "timings": {name: round(seconds, 3) for name, seconds in reporter.timings.items()},
        }
        store = writer.finish(manifest)
        reporter.note("all stages: " + ", ".join(f"{name} {clock(s)}" for name, s in reporter.timings.items()))
        return store


def _tokens(config: StudyConfig, models: Sequence[Model], writer: StoreWriter) -> TokenDataset:
    assert config.context is not None
    with full_disk(writer.path):
        return TokenDataset.load(
            config, find_tokenizer(config, models), context=config.context, folder=writer.prepare()
        )
