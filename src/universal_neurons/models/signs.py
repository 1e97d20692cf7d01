"""Are the signs of a model's units nobody's choice?  Those of gated neurons are, and those of dimensions."""

from collections.abc import Mapping
from typing import Any

from universal_neurons.models.architecture_table import is_gated

SIGNLESS = ("residual", "attention")  # features whose signs are nobody's choice


def is_signless(facts: Mapping[str, Any], source: str) -> bool:
    """Whether the signs of a model's units are nobody's choice, by what a manifest or sketch, `source`, says of it."""
    features = facts.get("features")
    return is_gated(facts["architecture"], source) if features is None else features in SIGNLESS
