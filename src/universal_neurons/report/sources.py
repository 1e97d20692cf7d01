"""What the units of a study are, where they are no neurons: a sentence of each source, and what none of them has."""

from collections.abc import Sequence
from typing import Any

from universal_neurons.storage import Store

DIMENSIONS = {
    "residual": "dimensions of the residual stream after each block, compared by |ρ|: nothing settles their signs.",
    "attention": "dimensions of heads, as attention's output projection reads them: a negative control. A head's basis "
    "is nobody's choice, since rotations cancel between W_V and W_O: a match there is no sign that it means something.",
}
LACKING = "They have no weights of an MLP, no pre-activations (what is said of these is of their values) and no roles."


def source_sentences(store: Store) -> list[str]:
    """What the units of every source are that is not a model's neurons; nothing in a study of neurons alone."""
    others = [model for model in store.manifest["models"] if model.get("features")]
    lines = [f"The units of {model['name']} are {_what(store, model)}" for model in others]
    return [*lines, LACKING] if lines else []


def unit_kind(store: Store, model: str) -> str | None:
    """What one unit of a source is; None of neurons."""
    described = next(each for each in store.manifest["models"] if each["name"] == model)
    kinds = {
        "residual": "a dimension of the residual stream",
        "attention": "a dimension of a head (a negative control: docs/features.md)",
        "dictionaries": "a latent of a dictionary",
    }
    return kinds.get(described.get("features"))


def kind_said(described: dict[str, Any]) -> str:
    """A model's architecture, and which features of it are studied."""
    features = described.get("features")
    return str(described["architecture"]) + (f", {features}" if features else "")


def _what(store: Store, described: dict[str, Any]) -> str:
    features = described["features"]
    if features in DIMENSIONS:
        return DIMENSIONS[features]
    told = store.manifest.get("dictionaries", {}).get(described["name"])
    if not told:
        return "latents of dictionaries."
    count = "a dictionary, which explains" if len(told) == 1 else f"{len(told)} dictionaries, which explain"
    explained, active = (_range([each[key] for each in told], f) for key, f in (("explained", ".0%"), ("l0", ".1f")))
    return f"latents of {count} {explained} of the variance on the study's text, by {active} active latents a position."


def _range(values: Sequence[float], spelled: str) -> str:
    low, high = format(min(values), spelled), format(max(values), spelled)
    return low if low == high else f"{low} to {high}"
