"""What the units of a study are called where text speaks of neurons: latents, dimensions, or units where it is a mix.

Captions, titles and facts are written of neurons.  Of a study of other units the words are put in their place, and
values in that of pre-activations, which such units have not; names that hold such a word stay as they are.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

NEURON = "neuron"
NOUNS = {None: NEURON, "dictionaries": "latent", "residual": "dimension", "attention": "dimension"}
APART = r"(?<![\w/:.@-])", r"(?![\w/@-]|:\S)"  # from what makes it a part of a name
WORD = re.compile(rf"{APART[0]}(neuron|pre-activation)(s?){APART[1]}", re.IGNORECASE)
Spoken = Callable[[str], str]


def noun_of(manifest: Mapping[str, Any]) -> str:
    """What one unit of a study is called, by its study.json."""
    nouns = {NOUNS[model.get("features")] for model in manifest.get("models") or () if isinstance(model, dict)}
    return nouns.pop() if len(nouns) == 1 else "unit" if nouns else NEURON


def spoken_of(manifest: Mapping[str, Any]) -> Spoken:
    """What makes text on neurons text on the units of a study; text on neurons stays as it is."""
    noun = noun_of(manifest)
    if noun == NEURON:
        return str

    def replaced(found: re.Match[str]) -> str:
        word = noun if found[1].lower() == NEURON else "value"
        return (word.capitalize() if found[1][0].isupper() else word) + found[2]

    return lambda text: WORD.sub(replaced, text)
