"""What an explainer is shown of units: examples of all bands, from rows that choose, with strengths; logit effects."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int

from universal_neurons.errors import MissingFileError
from universal_neurons.explanations.backends import Prompt
from universal_neurons.explanations.prompts import Example, Templates, explaining_prompt
from universal_neurons.explanations.sentences import PLACE
from universal_neurons.explanations.windows import require_apart
from universal_neurons.statistics import BANDS, BOTTOM
from universal_neurons.storage import Store

OF_TAILS, OF_BANDS = 5, 2  # examples shown of the highest (and lowest) activations, and of each other band
TOKENS = 8  # that a unit raises most, and lowers
SAID = {BANDS[0]: "the highest", BOTTOM: "the lowest"}


def evidence_prompts(
    store: Store,
    units: pl.DataFrame,
    strings: Sequence[str],
    heldout: Int[np.ndarray, " heldout"],
    templates: Templates,
) -> list[Prompt]:
    """What is asked of an explainer about each of some units (`model`, `layer`, `neuron`), in their order.

    `strings` are the vocabulary's.  Raises `MissingFileError` where the study has no examples.
    """
    if not store.has("examples"):
        raise MissingFileError(
            f"{store.path}: no examples to explain units by",
            wanted="a study with the stage statistics",
            fix="run it with that stage",
        )
    place = units.select(PLACE)
    most = pl.when(pl.col("band").is_in(list(SAID))).then(OF_TAILS).otherwise(OF_BANDS)
    shown = store.table("examples").join(place, on=PLACE, how="semi").filter(pl.col("rank") <= most)
    require_apart(shown["row"].to_numpy(), heldout)
    examples = shown.partition_by(PLACE, as_dict=True, include_key=False)
    effects = _effects(store, place, strings)
    prompts = []
    for unit in place.rows():
        of_unit = examples[unit].iter_rows(named=True) if unit in examples else ()
        seen = [_example(row, strings, unit[0] in store.gated) for row in of_unit]
        prompts.append(explaining_prompt(seen, *effects.get(unit, ([], [])), templates))
    return prompts


def _example(row: dict[str, Any], strings: Sequence[str], by_size: bool) -> Example:
    """A window of text; what is not counted has no strength, and of units whose sign is arbitrary the size counts."""
    values = np.nan_to_num(np.array(row["activations"], np.float64))
    strengths = np.abs(values) if by_size else values
    tokens = tuple(strings[token] for token in row["tokens"])
    return Example(tokens, tuple(strengths.tolist()), SAID.get(row["band"], f"quantiles {row['band']}"))


def _effects(
    store: Store, place: pl.DataFrame, strings: Sequence[str]
) -> dict[tuple[Any, ...], tuple[list[str], list[str]]]:
    """The tokens that each unit raises and lowers most, where the study has roles."""
    if not store.has("effects"):
        return {}
    sides = [pl.col(f"{side}_tokens").list.head(TOKENS) for side in ("top", "bottom")]
    rows = store.table("effects").join(place, on=PLACE, how="semi").select(*PLACE, *sides).iter_rows()
    return {
        tuple(unit): ([strings[token] for token in raised or ()], [strings[token] for token in lowered or ()])
        for *unit, raised, lowered in rows
    }
