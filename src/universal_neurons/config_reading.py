"""Configurations from plain values and from files; whatever is wrong with one is a named error."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from universal_neurons.config import CONFIG_BYTES, DynamicsConfig, Settings, StudyConfig
from universal_neurons.disk import local_path
from universal_neurons.errors import ConfigError
from universal_neurons.legible import brief_repr, shortened
from universal_neurons.plain_values import read_values


def make_config(settings: dict[str, Any], source: str = "configuration") -> StudyConfig:
    """A `StudyConfig` from plain values; every unknown key and impossible value is a `ConfigError`."""
    try:
        return StudyConfig(**settings)
    except ValidationError as error:
        raise as_config_error(error, source) from None


def stored_settings(stored: dict[str, Any], source: str) -> Settings:
    """The settings that a study kept; what is missing, or cannot be, is a `ConfigError`."""
    try:
        return Settings(**stored)
    except ValidationError as error:
        raise as_config_error(error, source, Settings) from None


def replayed(stored: dict[str, Any]) -> dict[str, Any]:
    """What study.json keeps of a configuration, as one would give it: an exact search is given no group size."""
    return {key: value for key, value in stored.items() if key != "group_size" or stored.get("search") != "exact"}


def make_dynamics_config(settings: dict[str, Any], source: str = "configuration") -> DynamicsConfig:
    """A `DynamicsConfig` from plain values; every unknown key and impossible value is a `ConfigError`."""
    try:
        return DynamicsConfig(**settings)
    except ValidationError as error:
        raise as_config_error(error, source, DynamicsConfig) from None


def as_config_error(error: ValidationError, source: str, kind: type[BaseModel] = StudyConfig) -> ConfigError:
    """What pydantic refused, as an error of ours."""
    problem, *others = error.errors(include_url=False)
    key = shortened(".".join(str(part) for part in problem["loc"] if "[" not in str(part)) or "settings", 200)
    if problem["type"] == "extra_forbidden":
        return ConfigError(
            f"{source}: unknown key {key!r}", wanted=", ".join(kind.model_fields), fix="remove or rename it"
        )
    wanted = [problem["msg"], *(other["msg"] for other in others if other["loc"][:-1] == problem["loc"][:-1] != ())]
    return ConfigError(
        f"{source}: {key} cannot be this", given=brief_repr(problem["input"]), wanted="; or: ".join(wanted)
    )


def read_config(path: str | Path) -> tuple[dict[str, Any], bool]:
    """The settings in a YAML file or a study.json, unchecked (see `make_config`), and whether a study stored them."""
    wanted = "a YAML or JSON file with keys of StudyConfig"
    settings = read_values(local_path(path), most_bytes=CONFIG_BYTES, refused=ConfigError, wanted=wanted)
    settings = {} if settings is None else settings
    stored = isinstance(settings, dict) and {"complete", "config"} <= settings.keys()
    if stored:
        settings = settings["config"]
        settings = replayed(settings) if isinstance(settings, dict) else settings
    if isinstance(settings, dict) and None in settings and "null" not in settings:  # how YAML reads the key `null`
        settings = {"null" if key is None else key: value for key, value in settings.items()}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ConfigError(f"{path}: not a mapping of names", given=brief_repr(settings), wanted="keys of StudyConfig")
    return settings, stored
