"""The roles of a study that is finished: its models and text read again, its tables replaced all at once."""

from collections.abc import Sequence
from pathlib import Path

from universal_neurons.disk import local_path
from universal_neurons.errors import ConfigError
from universal_neurons.explanations import renewed
from universal_neurons.labels import read_own_labels, require_named_again
from universal_neurons.models import Model, find_tokenizer
from universal_neurons.progress import Reporter
from universal_neurons.role_settings import RoleSettings
from universal_neurons.roles import ROLE_TABLES, Roles, vocabulary_of
from universal_neurons.storage import Store, StoreWriter
from universal_neurons.study.read_again import read_again, writer_of
from universal_neurons.text import TokenDataset, frequencies_of
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
    with writer_of(path) as writer, settled_torch(Store(path).config.threads):
        return _study_roles(Store(path), writer, settings, models, tokens, labels, reporter or Reporter())


def settings_of_roles(store: str | Path) -> RoleSettings:
    """The settings that a finished study has; roles that were half replaced are brought to their end first."""
    with writer_of(local_path(store)) as writer:
        return Store(writer.path).config.roles


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
    with read_again(study, config, models, tokens) as again:
        settings, networks, text = again.settings, again.reader.networks, again.text
        assert isinstance(text, TokenDataset)
        matches = study.matches if study.askers else None
        vocabulary = vocabulary_of(find_tokenizer(settings, networks, required=False), networks)
        token_sets = read_own_labels(settings.label_files, {}, vocabulary, text).tokens
        counts = frequencies_of(settings, len(vocabulary))
        roles_of = Roles(
            settings, networks, text, again.heldout, vocabulary, study.neurons, matches, token_sets, counts
        )
        tables = roles_of.run(reporter)
    before = {name: value for name, value in study.manifest.items() if name != "frequencies"}
    manifest = before | {
        "config": settings.stored(),
        "tables": {name: digest for name, digest in study.manifest["tables"].items() if name not in ROLE_TABLES},
        "timings": study.manifest["timings"] | {"roles": round(reporter.timings.get("roles", 0.0), 3)},
        **({"frequencies": counts.describe()} if counts else {}),
    }
    neurons = tables.pop("neurons")
    tables |= renewed(study, neurons, tables.get("effects")) | {"neurons": neurons}  # the neurons last
    return writer.replace(tables, manifest)
