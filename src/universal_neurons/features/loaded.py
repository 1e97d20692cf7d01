"""The models that a study names, and which features of them: a model is loaded once, whatever is asked of it."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from universal_neurons.config import BUNDLED
from universal_neurons.disk import local_path
from universal_neurons.errors import ConfigError
from universal_neurons.features.dictionary_formats import bundled_dictionaries, load_dictionaries
from universal_neurons.features.latents import Latents
from universal_neurons.features.model_features import PLACES, ModelFeatures, place_features
from universal_neurons.models import NEURONS, OF, Model, Source, behind_name, features_at, load_model

Studied = Model | ModelFeatures


def features_of(model: Model, features: str, *, name: str = "") -> ModelFeatures:
    """Other units of a model than its neurons, for a study: `residual`, `attention`, or dictionaries: a folder, or
    of the hub `org/name[/FOLDER][@REVISION]`.

    `bundled` are the dictionaries that come with a bundled model.

    Raises `ArchitectureError` where its blocks have no such place that is known, and of a folder what
    `load_dictionaries` and `Dictionary.on` raise.
    """
    if features in PLACES:
        return place_features(model, features, name)
    if features == BUNDLED:
        return Latents(model, load_dictionaries(bundled_dictionaries(model.name)), name or model.name + OF + BUNDLED)
    if features == NEURONS or not (os.sep in features or local_path(features).exists()):
        raise ConfigError(
            f"{model.name}{OF}{features}: no such features beside its neurons",
            given=features,
            wanted=", ".join(PLACES) + f", {BUNDLED}, a folder of dictionaries, or a hub id (org/name)",
            fix="check the spelling",
        )
    dictionaries = load_dictionaries(features_at(features))
    return Latents(model, dictionaries, name or model.name + behind_name(features))


def load_studied(sources: Sequence[Source], **how: Any) -> list[Studied]:
    """Every source, loaded as `load_model` is told to; features are of the model whose neurons are studied too, if any.

    Raises what `load_model` and `features_of` raise.
    """
    models = {number: load_model(source, **how) for number, source in enumerate(sources) if source.features == NEURONS}
    networks = {_place(sources[number]): model for number, model in reversed(models.items())}
    studied: list[Studied] = []
    for number, source in enumerate(sources):
        if number in models:
            studied.append(models[number])
            continue
        if _place(source) not in networks:
            whole = replace(source, features=NEURONS, name=source.name.rpartition(OF)[0])
            networks[_place(source)] = load_model(whole, **how)
        features = source.features if source.features != BUNDLED else str(bundled_dictionaries(source.folder.name))
        studied.append(features_of(networks[_place(source)], features, name=source.name))
    return studied


def _place(source: Source) -> Any:
    """What tells the files of one model from those of another."""
    return source.folder, source.gguf
