"""What a study's explanations are asked of whom: settings of `explain`, and the units that they name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from universal_neurons.errors import ConfigError
from universal_neurons.explanations import AT_ONCE, DRAWN, SERVER, Backend, Kind, Prices
from universal_neurons.storage import Store

UNIVERSAL, ALL = "universal", "all"
PLACE = ["model", "layer", "neuron"]
KINDS = (Kind.DETECTION, Kind.FUZZING)
WINDOWS: int = sum(DRAWN)
FEWEST_WINDOWS = 65  # of which 20 fire, 10 where all fire strongly
LANGUAGE_MODEL = f"a model's folder, a hub id or {SERVER}URL#NAME"


@dataclass(frozen=True)
class Explaining:
    """What is asked of whom: see `explain`."""

    units: tuple[str, ...] = ()
    explainer: str | Backend | None = None
    scorer: str | Backend | None = None
    imported: str | Path | None = None
    kinds: tuple[Kind, ...] = KINDS
    windows: int = WINDOWS
    transfer: bool = True
    prompt: str | Path | None = None
    prices: Prices | None = None
    concurrency: int = AT_ONCE
    seed: int = 0
    estimate: bool = False

    def __post_init__(self) -> None:
        if self.explainer is None and self.scorer is None and self.imported is None:
            raise ConfigError(
                "nobody explains or scores, and nothing is imported",
                wanted=f"an explainer, a scorer, or a file of explanations; explainer and scorer: {LANGUAGE_MODEL}",
                fix="name a scorer: label sentences can be scored without an explainer",
            )
        if self.windows < FEWEST_WINDOWS:
            raise ConfigError("too few windows to score by", given=self.windows, wanted=f"{FEWEST_WINDOWS} or more")
        if not self.kinds:
            raise ConfigError("no kind of question", wanted=", ".join(Kind))
        self._refuse_ignored()

    def _refuse_ignored(self) -> None:
        """Raise `ConfigError` for a setting that nobody would go by."""
        of_scorer = {"kinds": self.kinds != KINDS, "windows": self.windows != WINDOWS, "transfer": not self.transfer}
        of_both = {"units": self.units, "prompt": self.prompt, "prices": self.prices, "estimate": self.estimate}
        lacking = [
            *(() if self.scorer else (name for name, given in of_scorer.items() if given)),
            *(() if self.scorer or self.explainer else (name for name, given in of_both.items() if given)),
        ]
        if lacking:
            wanted = "a scorer" if lacking[0] in of_scorer else "an explainer or a scorer"
            raise ConfigError(
                f"{lacking[0]} without {wanted}", wanted=f"{wanted}: {LANGUAGE_MODEL}", fix="leave it out"
            )


def kinds_of(named: Sequence[str]) -> tuple[Kind, ...]:
    """Kinds of questions by name, each once.  Raises `ConfigError` for an unknown one."""
    named = (named,) if isinstance(named, str) else named
    try:
        return tuple(dict.fromkeys(Kind(name) for name in named))
    except ValueError:
        raise ConfigError("an unknown kind of question", given=", ".join(named), wanted=", ".join(Kind)) from None


def chosen_units(study: Store, named: Sequence[str], taken: pl.DataFrame | None = None) -> pl.DataFrame:
    """The units that are asked about: `model`, `layer`, `neuron`, `flat`; `taken` are explanations just imported.

    Raises `ConfigError` where there are none such, and for a dead one by name, `InputError` for an unknown one.
    """
    living = study.neurons.filter(~pl.col("dead")).select(*PLACE, _flat(study))
    if not named and taken is not None:
        return _some(living.join(taken, on=PLACE, how="semi"), "a living unit that the file explains")
    if named in ((), (UNIVERSAL,)):
        if not study.askers:
            raise ConfigError(
                f"{study.path}: it did not ask which units are universal", wanted="units", fix="name them, or all"
            )
        universal = study.neurons.filter(model=study.askers[0], is_universal=True)
        return _some(living.join(universal, on=PLACE, how="semi"), "a universal unit; name units, or all")
    if named == (ALL,):
        return _some(living, "a living unit")
    if {UNIVERSAL, ALL} & set(named):
        raise ConfigError("units by name and a word for several", given=", ".join(named), wanted="one or the other")
    found = [study.neuron(name) for name in named]
    dead = [neuron.name for neuron in found if neuron.row["dead"]]
    if dead:
        raise ConfigError(f"{dead[0]}: never changes, so nothing predicts it", wanted="living units")
    places = pl.DataFrame([(n.model, n.layer, n.neuron) for n in found], living.select(PLACE).schema, orient="row")
    return living.join(places, on=PLACE, how="semi")


def _some(units: pl.DataFrame, wanted: str) -> pl.DataFrame:
    if units.is_empty():
        raise ConfigError("no units to explain", wanted=wanted)
    return units


def _flat(study: Store) -> pl.Expr:
    """The (flat) number of each row's unit in its model."""
    numbers = (pl.when(pl.col("model") == name).then(units.number_column()) for name, units in study.units.items())
    return pl.coalesce(list(numbers)).alias("flat")
