"""A finished study read again: its models, checked to be the same, and its text as its passes took it."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from universal_neurons.config import IN_MEMORY, Settings, StudyConfig
from universal_neurons.disk import full_disk
from universal_neurons.errors import ConfigError, StoreConflictError
from universal_neurons.features import Networks, Studied, verify_latents
from universal_neurons.storage import MANIFEST, Store, StoreWriter
from universal_neurons.study.masked_sinks import LEFT_OUT, positions_of
from universal_neurons.study.resolve import load_models, resolve
from universal_neurons.text import Rows


@dataclass(frozen=True)
class Reread:
    """The models of a study (and what else of them it studied), its text, and which rows choose and are held out."""

    settings: Settings
    reader: Networks
    text: Rows
    chosen: Int[np.ndarray, " chosen"]
    heldout: Int[np.ndarray, " heldout"]


@contextmanager
def read_again(
    study: Store, config: StudyConfig, models: Sequence[Studied] | None = None, tokens: Rows | None = None
) -> Iterator[Reread]:
    """While open, a study's models and text; `models` and `tokens` are needed where it was made of objects in memory.

    `config` is the study's configuration, or another that its models and text are the same under.  Raises
    `ConfigError` where they were in memory and are not given, `StoreConflictError` where they have changed.
    """
    if tokens is None and config.data == IN_MEMORY:
        raise ConfigError(f"{study.path}: its text was in memory", wanted="the same `tokens` again")
    loaded = list(models) if models is not None else load_models(on_this_machine(config))
    if [_weights(model.describe()) for model in loaded] != [_weights(model) for model in study.manifest["models"]]:
        raise StoreConflictError(
            f"{study.path}: its models have changed",
            given=", ".join(map(repr, loaded)),
            wanted="the study's own models",
        )
    settings, reader = resolve(config, loaded), Networks(loaded)
    with tempfile.TemporaryDirectory() as scratch:
        text = tokens
        if text is None:
            with full_disk(Path(scratch)):
                text = reader.text(settings, Path(scratch))
        assert text is not None, "a study of weights alone is refused before"
        wanted = study.manifest["tokens"]["fingerprint"]
        if text.fingerprint != wanted:
            raise StoreConflictError(f"{study.path}: its text has changed", given=text.fingerprint, wanted=wanted)
        verify_latents(reader.studied, text)
        if "sinks" in settings.mask:
            text = text.without(positions_of(study.table(LEFT_OUT), text))
        chosen, stretches = text.split(settings.heldout_tokens)
        yield Reread(settings, reader, text, chosen, np.concatenate(stretches))


def writer_of(path: Path) -> StoreWriter:
    """The writer of a study that must be there."""
    if not (path / MANIFEST).exists():
        Store(path)  # says that there is none
    return StoreWriter(path)


def on_this_machine(config: StudyConfig) -> StudyConfig:
    """The configuration on this machine: a study made on a GPU that is not here goes on the CPU."""
    available = not config.device.startswith("cuda") or torch.cuda.is_available()
    return config if available else config.model_copy(update={"device": "cpu", "dtype": "float32"})


def _weights(described: dict[str, Any]) -> tuple[str, str]:
    return described["name"], described["sha256"]
