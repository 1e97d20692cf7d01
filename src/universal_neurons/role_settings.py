"""When a neuron has a role, and on how much text that is tried: the section `roles` of a study's configuration."""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

MOST = 10**12  # tokens or neurons: more than anybody has, and far from what overflows
MOST_ROWS = 10**6  # of a table that is kept per neuron or model
LOGITS_READ, FEWEST_READ = 1 << 26, 1024  # of a change that roles try: logits, and positions
QUANTILES = (0.0, 0.5, 0.9, 0.99, 0.999, 1.0)  # of a neuron's activations, that it is fixed to
OFTEN = 5  # times in the text: tokens that occur less often are not listed as raised or lowered most
PAPER_VALUES = (-0.17, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)


class RoleSettings(BaseModel):
    """When a neuron has a role (paper §5, its values), and on how much text that is tried (`docs/roles.md`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tokens: int = Field(
        4096, ge=2, lt=MOST, description="Held-out token positions that interventions are tried on, at most."
    )
    readings: int | None = Field(
        None,
        ge=2,
        lt=MOST,
        description="Of these the positions whose changed predictions are read, at most; else all, or 2^26 logits, "
        "but 1024.",
    )
    kurtosis: float = Field(10.0, description="Of cos(w_out, W_U), above: prediction (skew > 0) or suppression.")
    kurtosis_share: float = Field(
        0.5,
        gt=0,
        description="The same relative to W_U: so far from random directions to the median token's unembedding.",
    )
    partition_variance: float = Field(0.005, description="Of cos(w_out, W_U) · d_model / 1024, above: partition.")
    entropy_cuts: Literal["percentiles", "GPT2-small", "GPT2-medium"] = Field(
        "percentiles", description="Candidates for entropy neurons: percentiles within the model, or the paper's cuts."
    )
    entropy_neurons: int = Field(
        6, ge=1, le=MOST_ROWS, description="Candidates for entropy neurons, the likeliest, per model."
    )
    controls: int = Field(20, ge=2, le=MOST_ROWS, description="Random neurons beside them.")
    values: Literal["quantiles", "paper"] | tuple[float, ...] = Field(
        "quantiles",
        description="What the candidates are fixed to: quantiles of each one's own activations, the paper's -0.17 … 6, "
        "or numbers.",
    )

    @field_validator("values")
    @classmethod
    def _some_values(cls, value: str | tuple[float, ...]) -> str | tuple[float, ...]:
        if isinstance(value, str):
            return value
        if not value or len(set(value)) < len(value) or not all(math.isfinite(v) for v in value):
            raise ValueError("some numbers, each once")
        return value

    @property
    def fixed_values(self) -> tuple[float, ...]:
        """The numbers that activations are fixed to; none where they are `QUANTILES` of each neuron's own."""
        if self.values == "quantiles":
            return ()
        return PAPER_VALUES if isinstance(self.values, str) else self.values

    null_space: float = Field(
        0.25, gt=0, description="W_U has a null space where it reads it at most so strongly as its median direction."
    )
    mediated: float = Field(0.5, description="Share of an effect through the norm's scale, above: entropy neuron.")
    frequency: float = Field(0.5, description="Share of an effect along token frequency, above: token frequency.")
    frequencies: str | None = Field(
        None,
        description="A Parquet, CSV or JSON table of `token` and `count`: how often tokens occur in what the models "
        "were trained on; else what a bundled suite says of its own, or the study's text.",
    )
    distances: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(
        (16, 32, 64, 128, 256), description="From BOS, that q·k is averaged over where positions are rotary."
    )
    attention_deviations: float = Field(
        5.0, description="BOS scores further out than random directions by so many deviations are candidates."
    )
    attention_pairs: int = Field(
        6, ge=1, le=MOST_ROWS, description="Neuron and head pairs whose path is ablated, per model."
    )
    attention_corr: float = Field(
        0.5, description="Of activation with the change of attention to BOS, above in size: attention neuron."
    )
    attention_effect: float = Field(
        0.01, ge=0, description="Change of attention to BOS where the neuron fires, at least: attention neuron."
    )
    attention_sink: float = Field(
        0.1, gt=0, lt=1, description="Mean attention to BOS of a head, at least, for neurons to switch it by."
    )
    ablated: int = Field(
        32, ge=1, le=MOST_ROWS, description="Universal neurons whose matches are ablated too, at most."
    )

    def positions_read(self, vocabulary: int) -> int:
        """At how many positions changed predictions are read, at most: each is a product with the vocabulary."""
        return self.readings or min(self.tokens, max(FEWEST_READ, LOGITS_READ // vocabulary))
