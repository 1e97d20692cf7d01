"""The command's frame: the app, every setting as a flag, settings from a file and flags."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from pydantic import Field, create_model

from universal_neurons.cli.overview import SETUP
from universal_neurons.config import StudyConfig
from universal_neurons.config_reading import make_config, read_config
from universal_neurons.labels import require_given_again

app = App(**SETUP)


SECTIONS = ("published", "roles")  # in a file of settings only


def flags_of(kind: type[StudyConfig] = StudyConfig, without: Sequence[str] = SECTIONS) -> dict[str, Any]:
    """Every setting as an optional flag."""
    settings: dict[str, Any] = {name: f for name, f in kind.model_fields.items() if name not in without}
    return {name: (f.annotation | None, Field(None, description=f.description)) for name, f in settings.items()}


StudyFlags: Any = create_model("StudyFlags", **flags_of())
Flags = Annotated[StudyFlags | None, Parameter(name="*", consume_multiple=True)]  # of commands without other arguments
ConfigFile = Annotated[Path | None, Parameter(name=["--config", "-c"])]


def settings_from(config: Path | None, flags: Any) -> StudyConfig:
    """The settings that a file and flags make.  Raises `ConfigError`."""
    return make_config(*unchecked_settings(config, flags))


def unchecked_settings(config: Path | None, flags: Any) -> tuple[dict[str, Any], str]:
    """Settings of a file and of flags, unchecked, and where they are from."""
    settings, stored = read_config(config) if config else ({}, False)
    named = {} if flags is None else {k: v for k, v in flags.model_dump().items() if v is not None}
    if stored:
        require_given_again(settings, named, str(config))
    return settings | named, str(config) if config else "command line"
