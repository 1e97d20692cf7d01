"""The roles of a study that is finished: its models and text read again, its tables replaced all at once."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from universal_neurons.config import IN_MEMORY, StudyConfig
from universal_neurons.disk import full_disk, local_path
from universal_neurons.errors import ConfigError, StoreConflictError
from universal_neurons.explanations import renewed
from universal_neurons.labels import read_own_labels, require_named_again
from universal_neurons.models import Model, find_tokenizer
from universal_neurons.progress import Reporter
from universal_neurons.role_settings import RoleSettings
from universal_neurons.roles import ROLE_TABLES, Roles, vocabulary_of
from universal_neurons.storage import MANIFEST, Store, StoreWriter
from universal_neurons.study.masked_sinks import LEFT_OUT, positions_of
from universal_neurons.study.resolve import load_models, resolve
from universal_neurons.text import TokenDataset
from universal_neurons.torch_state import settled_torch


def study_roles(
    store: Store | str | Path,
    settings: RoleSettings | None = None,
    *,
    models: Sequence[Model] | None = None,
    tokens: TokenDataset | None = None,
    labels: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> Store:
    """Add the roles of its neurons to a finished study, or replace those that are there; returns the study.

    `models` and `tokens` are needed where the study was made of objects in memory, and `labels` where it names Python
    files of labels: those that may be run.  Raises `ConfigError` where the study lacks weights or statistics or such
    a file is not named, and `StoreConflictError` where its models or text have changed.
    """
    path = store.path if isinstance(store, Store) else local_path(store)
    with _writer(path) as writer, settled_torch(Store(path).config.threads):
        return _study_roles(Store(path), writer, settings, models, tokens, labels, reporter or Reporter())


def settings_of_roles(store: str | Path) -> RoleSettings:
    """The settings that a finished study has; roles that were half replaced are brought to their end first."""
    with _writer(local_path(store)) as writer:
        return Store(writer.path).config.roles


def _writer(path: Path) -> StoreWriter:
    """The writer of a study that must be there."""
    if not (path / MANIFEST).exists():
        Store(path)  # says that there is none
    return StoreWriter(path)


def _study_roles(
    study: Store,
    writer: StoreWriter,
    roles: RoleSettings | None,
    models: Sequence[Model] | None,
    tokens: TokenDataset | None,
    labels: Sequence[str],
    reporter: Reporter,
) -> Store:
    config = study.config
    if not {"weights", "statistics"} <= set(config.stages):
        raise ConfigError(
            f"{study.path}: roles need weights and statistics", given=", ".join(config.stages), fix="run it with them"
        )
    if config.pooling is not None:
        raise ConfigError(
            f"{study.path}: roles are of each model's own tokens, and its models' tokenizers differ",
            wanted="a study of one tokenizer",
            fix="study the roles of each model by itself: uneurons run --models ONE",
        )
    others = [model["name"] for model in study.manifest["models"] if "features" in model]
    if others:
        raise ConfigError(
            f"{study.path}: roles are of neurons, and not all of its units are",
            given=others[0],
            wanted="a study of neurons alone",
            fix="study the neurons by themselves: uneurons run --models ONE",
        )
    require_named_again(config.labels, labels, str(study.path))
    stages = (*(stage for stage in config.stages if stage != "roles"), "roles")
    config = config.model_copy(update={"roles": roles or config.roles, "stages": stages})
    if tokens is None and config.data == IN_MEMORY:
        raise ConfigError(f"{study.path}: its text was in memory", wanted="the same `tokens` again")
    named = models if models is not None else load_models(_on_this_machine(config))
    loaded = [model for model in named if isinstance(model, Model)]
    if [_weights(model.describe()) for model in loaded] != [_weights(model) for model in study.manifest["models"]]:
        raise StoreConflictError(
            f"{study.path}: its models have changed",
            given=", ".join(map(repr, loaded)),
            wanted="the study's own models",
        )
    settings = resolve(config, loaded)
    tokenizer = find_tokenizer(settings, loaded, required=False)
    with tempfile.TemporaryDirectory() as scratch:
        if tokens is None:
            with full_disk(Path(scratch)):
                tokens = TokenDataset.load(settings, tokenizer, context=settings.context, folder=Path(scratch))
        wanted = study.manifest["tokens"]["fingerprint"]
        if tokens.fingerprint != wanted:
            raise StoreConflictError(f"{study.path}: its text has changed", given=tokens.fingerprint, wanted=wanted)
        if "sinks" in settings.mask:
            tokens = tokens.without(positions_of(study.table(LEFT_OUT), tokens))
        _, stretches = tokens.split(settings.heldout_tokens)
        matches = study.matches if study.askers else None
        vocabulary = vocabulary_of(tokenizer, loaded)
        heldout = np.concatenate(stretches)
        token_sets = read_own_labels(settings.label_files, {}, vocabulary, tokens).tokens
        tables = Roles(settings, loaded, tokens, heldout, vocabulary, study.neurons, matches, token_sets).run(reporter)
    manifest = study.manifest | {
        "config": settings.stored(),
        "tables": {name: digest for name, digest in study.manifest["tables"].items() if name not in ROLE_TABLES},
        "timings": study.manifest["timings"] | {"roles": round(reporter.timings.get("roles", 0.0), 3)},
    }
    neurons = tables.pop("neurons")
    tables |= renewed(study, neurons, tables.get("effects")) | {"neurons": neurons}  # the neurons last
    return writer.replace(tables, manifest)


def _on_this_machine(config: StudyConfig) -> StudyConfig:
    """The configuration on this machine: a study made on a GPU that is not here goes on the CPU."""
    available = not config.device.startswith("cuda") or torch.cuda.is_available()
    return config if available else config.model_copy(update={"device": "cpu", "dtype": "float32"})


def _weights(described: dict[str, Any]) -> tuple[str, str]:
    return described["name"], described["sha256"]
