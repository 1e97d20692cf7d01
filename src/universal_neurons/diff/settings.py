"""What a diff is made of and by: a study's settings, the null, the second text, and from where on a change counts."""

from os import PathLike
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from universal_neurons.config import BUNDLED, NO_LABELS, Stage, StudyConfig
from universal_neurons.config_reading import as_config_error

NOT_OF_DIFF = (  # settings of `run` alone
    "pairs", "null", "null_draws", "published", "pooling", "device_map", "max_memory", "names",
)  # fmt: skip
RULES = ("same", "redirected", "shifted", "rescaled")  # from where on a change counts
OF_DIFF = ("nulls", "data_tuned", "effects", "effect_tokens", *RULES)
EFFECTS = 20
DEMO = {  # what is compared where no models are named
    "models": (f"{BUNDLED}/seed-1", f"{BUNDLED}/seed-1-german"),
    "nulls": (f"{BUNDLED}/seed-1-python",),
}


class DiffConfig(StudyConfig):
    """What a diff compares, on what, and from where on a change counts: `models` are the base and its fine-tune."""

    models: tuple[str, ...] = Field(
        (), description="The base and its fine-tune: folders, hub ids or id@revision; else bundled ones."
    )
    stages: tuple[Stage, ...] = Field(
        (), description="What to find out of both models: universality among it; else all that `run` does."
    )
    nulls: tuple[str, ...] = Field(
        (), description="Fine-tunes of the same base on other data: how large is a change among theirs?"
    )
    data_tuned: str | None = Field(
        None, min_length=1, description="A second text, such as the fine-tune's: each unit and itself on it too."
    )
    effects: int | None = Field(
        None, ge=0, le=10_000,
        description="What do so many of the units that changed most carry of the gain? Else 20; 0: leave it out.",
    )  # fmt: skip
    effect_tokens: int = Field(
        8192, ge=1, le=10**9, description="Held-out tokens of each text that effects are measured on."
    )
    same: float = Field(
        0.9, gt=0, lt=1, description="Units of a higher |ρ| do the same; one surely below it with itself is re-tuned."
    )
    redirected: float = Field(0.9, gt=0, lt=1, description="One whose w_out has a lower cosine is redirected.")
    shifted: float = Field(0.1, gt=0, le=10, description="One whose offset or firing surely exceeds this is shifted.")
    rescaled: float = Field(1.1, gt=1, le=100, description="One whose scale surely changes by more is re-scaled.")

    @model_validator(mode="before")
    @classmethod
    def _the_bundled_pair(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values.get("models"):
            return values
        return values | DEMO | ({"nulls": values["nulls"]} if values.get("nulls") else {})

    @field_validator("nulls", mode="before")
    @classmethod
    def _one_null_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (str, PathLike)) else value

    @model_validator(mode="after")
    def _a_study_of_two(self) -> "DiffConfig":
        if len(self.models) != 2 or BUNDLED in self.models:
            raise ValueError("models are a base and its fine-tune")
        if self.stages and "universality" not in self.stages:
            raise ValueError("stages have universality among them")
        if not self.labels:
            raise ValueError(NO_LABELS)
        for name in NOT_OF_DIFF:
            if getattr(self, name) != StudyConfig.model_fields[name].default:
                raise ValueError(f"{name} is not a setting of a diff: use `uneurons run`")
        return self

    def study(self, **changes: Any) -> StudyConfig:
        """The configuration of the study of both models, with these changes."""
        settings = {name: getattr(self, name) for name in StudyConfig.model_fields}
        return StudyConfig(**settings | {"pairs": "all"} | changes)


def make_diff_config(settings: dict[str, Any], source: str = "configuration") -> DiffConfig:
    """A `DiffConfig` from plain values; every unknown key and impossible value is a `ConfigError`."""
    try:
        return DiffConfig(**settings)
    except ValidationError as error:
        raise as_config_error(error, source, DiffConfig) from None
