"""The roles of a study that is finished: its models and text read again."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from universal_neurons.config import RoleSettings
from universal_neurons.errors import ConfigError, StoreConflictError
from universal_neurons.models import Model
from universal_neurons.own_labels import read_own_labels
from universal_neurons.plan import find_tokenizer, load_models
from universal_neurons.progress import Reporter
from universal_neurons.roles.stage import Roles, vocabulary_of
from universal_neurons.store import Store, StoreWriter
from universal_neurons.tokens import TokenDataset


def study_roles(
    store: Store | str | Path,
    settings: RoleSettings | None = None,
    *,
    models: Sequence[Model] | None = None,
    tokens: TokenDataset | None = None,
    reporter: Reporter | None = None,
) -> Store:
    """Add the roles of its neurons to a finished study, or replace those that are there; returns the study.

    `models` and `tokens` are needed where the study was made of objects in memory.  Raises `ConfigError` where the
    study lacks weights or statistics, and `StoreConflictError` where its text has changed.
    """
    study = store if isinstance(store, Store) else Store(store)
    reporter = reporter or Reporter()
    config = study.config
    if not {"weights", "statistics"} <= set(config.stages):
        raise ConfigError(
            f"{study.path}: roles need weights and statistics", given=", ".join(config.stages), fix="run it with them"
        )
    stages = (*(stage for stage in config.stages if stage != "roles"), "roles")
    config = config.model_copy(update={"roles": settings or config.roles, "stages": stages})
    loaded = list(models) if models is not None else load_models(config)
    tokenizer = find_tokenizer(config, loaded, required=False)
    with tempfile.TemporaryDirectory() as scratch:
        if tokens is None:
            assert config.context is not None
            tokens = TokenDataset.load(config, tokenizer, context=config.context, folder=Path(scratch))
        wanted = study.manifest["tokens"]["fingerprint"]
        if tokens.fingerprint != wanted:
            raise StoreConflictError(f"{study.path}: its text has changed", given=tokens.fingerprint, wanted=wanted)
        _, stretches = tokens.split(config.heldout_tokens)
        matches = study.matches if study.askers else None
        vocabulary, heldout = vocabulary_of(tokenizer, loaded), np.concatenate(stretches)
        own = read_own_labels(config.label_files, {}, vocabulary, tokens).tokens
        tables = Roles(config, loaded, tokens, heldout, vocabulary, study.neurons, matches, own).run(reporter)
    with StoreWriter(study.path) as writer:
        neurons = tables.pop("neurons")
        hashes = {name: writer.write_table(name, table) for name, table in tables.items()}
        hashes["neurons"] = writer.write_table("neurons", neurons)
        manifest = study.manifest | {
            "config": config.model_dump(mode="json", exclude={"out", "cluster"}),
            "tables": study.manifest["tables"] | hashes,
            "timings": study.manifest["timings"] | {"roles": round(reporter.timings["roles"], 3)},
        }
        return writer.finish(manifest)
