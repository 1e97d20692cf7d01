"""Where explanations are tried: on their own units, on these units' counterparts, on random units beside them."""

from collections.abc import Mapping, Sequence

import polars as pl

from universal_neurons.explanations.score_rows import COUNTERPART, RANDOM
from universal_neurons.explanations.scores import Trial, controls
from universal_neurons.explanations.sentences import PLACE
from universal_neurons.explanations.windows import UnitWindows
from universal_neurons.roles import counterparts
from universal_neurons.storage import Store
from universal_neurons.units import unit_name

Unit = tuple[str, int]  # a model, and a (flat) number of a unit there
PAIRS = pl.Schema(
    {"model": pl.String, "flat": pl.Int64, "match_model": pl.String, "match": pl.Int64, "random": pl.Int64}
)


def pairs_of(store: Store, units: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """The counterpart of each of some units (`model`, `flat`) in every other model, and a random unit of its layer.

    Columns `model`, `flat`, `match_model`, `match`, `random` (flat numbers; `random` is null where the layer has no
    other that lives).  None of units that the study did not ask about.
    """
    dead = {
        model: rows.sort(store.units[model].number_column())["dead"].to_numpy()
        for (model,), rows in store.neurons.group_by("model")
    }
    found = [pl.DataFrame(schema=PAIRS)]
    for asker in store.askers:
        numbers = units.filter(pl.col("model") == asker)["flat"].to_list()
        pairs = counterparts(store.matches, asker, numbers, store.units, dead, seed)
        found.append(pairs.select(pl.lit(asker).alias("model"), *list(PAIRS)[1:]).cast(PAIRS))
    return pl.concat(found)


def units_tried(units: pl.DataFrame, pairs: pl.DataFrame) -> dict[str, list[int]]:
    """All units, by model, that explanations of some are tried on, each once."""
    every = [
        units.select("model", number="flat"),
        pairs.select(model="match_model", number="match"),
        pairs.select(model="match_model", number="random"),
    ]
    rows = pl.concat([frame.cast({"number": pl.Int64}) for frame in every]).drop_nulls().unique()
    return {str(model): sorted(of["number"].to_list()) for (model,), of in rows.group_by("model", maintain_order=True)}


def trials_of(
    explanations: pl.DataFrame,
    pairs: pl.DataFrame,
    windows: Mapping[Unit, UnitWindows],
    seed: int = 0,
) -> list[Trial]:
    """All trials of some rows of `explanations` (with `flat`): own, controls, counterparts, random units."""
    own = [
        Trial(unit_name(layer, neuron, model), source, text, windows[model, flat])
        for model, layer, neuron, source, text, flat in explanations.select(
            *PLACE, "source", "explanation", "flat"
        ).iter_rows()
    ]
    there: dict[Unit, list[tuple[Unit, str]]] = {}
    for model, flat, match_model, match, random in pairs.select(*PAIRS).iter_rows():
        tried = there.setdefault((model, flat), [])
        tried.append(((match_model, match), COUNTERPART))
        if random is not None:
            tried.append(((match_model, random), RANDOM))
    units = explanations.select("model", "flat").rows()
    elsewhere = [
        Trial(trial.explanation, trial.source, trial.text, windows[place], use)
        for trial, unit in zip(own, units)
        for place, use in there.get(unit, ())
    ]
    return [*own, *controls(own, seed), *elsewhere]


def drawn_of(windows: int, whole: Sequence[int]) -> tuple[int, ...]:
    """How many windows of each stratum are drawn, where so many are asked for, in the proportions of `whole`."""
    return tuple(max(1, round(windows * part / sum(whole))) for part in whole)
