"""Functional universality: do matched neurons do the same?

A neuron and its match fire together; whether they also act alike is asked in three ways: have they the same role, do
their logit effects agree over the vocabulary, and does the loss of the same tokens change alike when each is ablated in
its own model?  A neuron that fires alike need not be the match: beside every match stands the second best of the same
model, and a random living neuron of the match's layer.  Matched neurons act alike as far as they act more alike than
the second best do; ρ of loss changes less the second best's has a 95 % interval, of a jackknife over stretches of rows.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from universal_neurons.labels import ROLES_BY_WEIGHTS
from universal_neurons.models import Model
from universal_neurons.roles.gains import RANDOM, SECOND
from universal_neurons.statistics import Jackknifed, jackknife, seed_of
from universal_neurons.units import Units

KINDS = {"": "match", "_second": "second", "_random": "random"}  # columns of `functional`, and of its pairs
CONTROLS = {"_second": SECOND, "_random": RANDOM}
GAINS_SCHEMA: dict[str, Any] = {
    "asker": pl.String, "match_model": pl.String, "control": pl.String, "measure": pl.String, "pairs": pl.Int32,
    **dict.fromkeys(("match_corr", "control_corr", "gain", "gain_low", "gain_high", "better"), pl.Float64),
}  # fmt: skip


def counterparts(
    matches: pl.DataFrame,
    asker: str,
    chosen: Sequence[int],
    units: Mapping[str, Units],
    dead: Mapping[str, Bool[np.ndarray, " neurons"]],
    seed: int,
) -> pl.DataFrame:
    """The pairs asked about: every chosen (flat) neuron and its best match in every other model.

    Columns flat, match_model, match (flat), corr; second, second_corr: the second best of the same model, null where
    matches keep one alone; random: another living neuron of the match's layer, null where there is none.
    """
    rows = matches.filter((pl.col("asker") == asker) & pl.col("rank").is_in([1, 2])).with_columns(
        flat=units[asker].number_column(),
        match=pl.coalesce(
            pl.when(match_model=name).then(units_of_model.number_column("match_"))
            for name, units_of_model in units.items()
        ),
    )
    asked_about = pl.DataFrame({"flat": list(chosen)}, schema={"flat": pl.Int64})
    found = asked_about.join(rows, on="flat").select("flat", "match_model", "match", "corr", "rank")
    second = found.filter(rank=2).select("flat", "match_model", second="match", second_corr="corr")
    pairs = found.filter(rank=1).drop("rank").join(second, on=("flat", "match_model"), how="left")
    pairs = pairs.sort("flat", "match_model")
    partners = [
        random_partner(match, units[name], dead[name], seed, name)
        for name, match in pairs.select("match_model", "match").iter_rows()
    ]
    return pairs.with_columns(random=pl.Series(partners, dtype=pl.Int64))


def random_partner(match: int, units: Units, dead: Bool[np.ndarray, " neurons"], seed: int, model: str) -> int | None:
    """A random other living neuron of a match's layer; None where there is none."""
    columns = units.columns(units.layer_of(match))
    others = np.setdiff1d(columns.start + np.flatnonzero(~dead[columns]), [match])
    if not len(others):
        return None
    return int(others[np.random.default_rng(seed_of("partner", seed, model, match)).integers(len(others))])


def concerned(pairs: pl.DataFrame, model: str | None) -> list[int]:
    """The (flat) neurons of a model that pairs are about, each once; of the reference where `model` is None."""
    if model is None:
        return sorted(set(pairs["flat"].to_list()))
    of_model = pairs.filter(match_model=model)
    return sorted({number for column in KINDS.values() for number in of_model[column].drop_nulls().to_list()})


def functional_tables(
    models: Sequence[Model],
    pairs: pl.DataFrame,
    changes: Mapping[str, Mapping[int, Float[np.ndarray, " tokens"]]],
    row_of: Int[np.ndarray, " tokens"],
    effects: Mapping[str, Mapping[int, Float[np.ndarray, " vocabulary"]]],
    roles: Mapping[str, Sequence[Sequence[str]]],
    orientation: Mapping[str, Float[np.ndarray, " neurons"]] | None = None,
) -> dict[str, pl.DataFrame]:
    """`functional`, a row per chosen neuron of the first model and other model, and `functional_gains`, what they say
    together.

    `pairs` are those of `counterparts`.  By model and flat number, of all neurons concerned: `changes` of the loss at
    every token, whose rows of text are `row_of`, and logit `effects`, times the neurons' `orientation` where it is
    given.  `roles` are those of all neurons.  Of a pair with a gated side the effect of a match, and of a second best,
    counts by the sign of the pair's ρ: those that fire together by opposite signs act alike if their effects are
    opposite too.
    """
    acts = _Acts(models, changes, jackknife.stretch_of(row_of), effects, roles, orientation)
    every = pairs.to_dicts()
    resampled = [acts.resampled(pair) for pair in every]
    rows = [acts.row(pair) | _gain(found) for pair, found in zip(every, resampled)]
    table = pl.DataFrame(rows, schema_overrides=_KINDS_OF_COLUMNS, infer_schema_length=None)
    return {"functional": table, "functional_gains": _gains(table, resampled)}


@dataclass(frozen=True)
class _Acts:
    """What the neurons of pairs do, as `functional_tables` is given it."""

    models: Sequence[Model]
    changes: Mapping[str, Mapping[int, Float[np.ndarray, " tokens"]]]
    stretch: Int[np.ndarray, " tokens"]
    effects: Mapping[str, Mapping[int, Float[np.ndarray, " vocabulary"]]]
    roles: Mapping[str, Sequence[Sequence[str]]]
    orientation: Mapping[str, Float[np.ndarray, " neurons"]] | None

    @cached_property
    def by_name(self) -> dict[str, Model]:
        return {model.name: model for model in self.models}

    def row(self, pair: dict[str, Any]) -> dict[str, Any]:
        """A pair's row of `functional`, but for the gain."""
        asker, other = self.models[0], self.by_name[pair["match_model"]]
        row: dict[str, Any] = {"asker": asker.name, "model": asker.name} | _place("", asker.units, pair["flat"])
        row |= {"match_model": other.name} | _place("match_", other.units, pair["match"]) | {"corr": pair["corr"]}
        for kind in KINDS:
            row |= self._alike(pair, kind)
        row["roles"] = list(self.roles[asker.name][pair["flat"]])
        row["match_roles"] = list(self.roles[other.name][pair["match"]])
        return row | _place("second_", other.units, pair["second"]) | {"second_corr": pair["second_corr"]}

    def _alike(self, pair: dict[str, Any], kind: str) -> dict[str, Any]:
        """How alike the neuron and one that is held beside it act; nothing is known of one that is not there."""
        flat, number, name, asker = pair["flat"], pair[KINDS[kind]], pair["match_model"], self.models[0].name
        alike: dict[str, Any] = {"effect_corr": math.nan, "loss_corr": math.nan, "same_roles": None}
        if number is not None:
            alike["effect_corr"] = self._sign(pair, kind) * _corr(self.effects[asker][flat], self.effects[name][number])
            alike["loss_corr"] = _corr(self.changes[asker][flat], self.changes[name][number])
            alike["same_roles"] = _same_roles(self.roles[asker][flat], self.roles[name][number])
        return {f"{measure}{kind}": value for measure, value in alike.items()}

    def _sign(self, pair: dict[str, Any], kind: str) -> float:
        """1, or −1 where two that fire together are of opposite signs."""
        flat, number, name, asker = pair["flat"], pair[KINDS[kind]], pair["match_model"], self.models[0]
        if kind == "_random" or self.orientation is None or not (asker.gated or self.by_name[name].gated):
            return 1.0
        together = pair["second_corr" if kind else "corr"]
        return float(np.copysign(1.0, together * self.orientation[asker.name][flat] * self.orientation[name][number]))

    def resampled(self, pair: dict[str, Any]) -> dict[str, Jackknifed]:
        """ρ of the loss changes of the neuron and each that is held beside it, by kind."""
        change, others = self.changes[self.models[0].name][pair["flat"]], self.changes[pair["match_model"]]
        numbers = {kind: pair[column] for kind, column in KINDS.items()}
        return {kind: _resampled(change, others[n], self.stretch) for kind, n in numbers.items() if n is not None}


_KINDS_OF_COLUMNS: dict[str, Any] = {
    **{f"{of}{part}": pl.Int32 for of in ("", "match_", "second_") for part in ("layer", "neuron")},
    **dict.fromkeys(("roles", "match_roles"), pl.List(pl.String)),
    **{f"same_roles{kind}": pl.Boolean for kind in KINDS},
    **dict.fromkeys(("second_corr", "loss_gain", "loss_gain_low", "loss_gain_high"), pl.Float64),
}


def _place(before: str, units: Units, number: int | None) -> dict[str, int | None]:
    layer, neuron = (None, None) if number is None else units.place_of(number)
    return {f"{before}layer": layer, f"{before}neuron": neuron}


def _same_roles(one: Iterable[str], other: Iterable[str]) -> bool | None:
    """Whether two neurons have the same role by their weights, which say of every neuron what it does (the other roles
    are tried out on candidates alone); None where neither has one."""
    roles, other_roles = set(one) & set(ROLES_BY_WEIGHTS), set(other) & set(ROLES_BY_WEIGHTS)
    return roles == other_roles if roles | other_roles else None


def _corr(one: np.ndarray, other: np.ndarray) -> float:
    size = min(len(one), len(other))  # vocabularies may be padded differently
    one, other = one[:size] - one[:size].mean(), other[:size] - other[:size].mean()
    spread = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / spread if spread > 0 else float("nan")


def _resampled(one: np.ndarray, other: np.ndarray, stretch: Int[np.ndarray, " tokens"]) -> Jackknifed:
    """ρ over tokens, and with each stretch of rows left out."""
    one, other = one - one.mean(), other - other.mean()
    moments = (one, other, one * one, other * other, one * other)
    sums = np.stack([np.bincount(stretch, values, jackknife.STRETCHES) for values in moments], 1)
    return Jackknifed.of(_rho, np.bincount(stretch, minlength=jackknife.STRETCHES), sums)


def _rho(count: float, sums: Float[np.ndarray, " moments"]) -> Float[np.ndarray, " 1"]:
    x, y, xx, yy, xy = sums
    spread = max(xx - x * x / count, 0.0) * max(yy - y * y / count, 0.0)
    return np.array([(xy - x * y / count) / math.sqrt(spread) if spread > 0 else math.nan])


def _less(match: Jackknifed, control: Jackknifed) -> Jackknifed:
    return match.map(lambda one, other: one - other, control)


def _gain(found: Mapping[str, Jackknifed]) -> dict[str, float | None]:
    """By how much a match's loss changes are more alike than those of the second best."""
    names = ("loss_gain", "loss_gain_low", "loss_gain_high")
    if "_second" not in found:
        return dict.fromkeys(names)
    gain = _less(found[""], found["_second"])
    return dict(zip(names, (value.item() for value in (gain.value, *gain.interval()))))


def _gains(table: pl.DataFrame, resampled: Sequence[Mapping[str, Jackknifed]]) -> pl.DataFrame:
    """By how much matched neurons act more alike than controls do, on average: of all other models (null), and each."""
    models = table["match_model"].to_list()
    rows = []
    for name in (None, *dict.fromkeys(models)):
        of_model = [place for place, model in enumerate(models) if name in (None, model)]
        for kind, control in CONTROLS.items():
            for measure in ("effect_corr", "loss_corr"):
                row = {"asker": table["asker"][0], "match_model": name, "control": control, "measure": measure}
                rows.append(row | _gain_of(table[of_model], [resampled[place] for place in of_model], measure, kind))
    return pl.DataFrame(rows, schema=GAINS_SCHEMA).filter(pl.col("pairs") > 0)


def _gain_of(
    table: pl.DataFrame, resampled: Sequence[Mapping[str, Jackknifed]], measure: str, kind: str
) -> dict[str, Any]:
    """Of some rows of `functional`; pairs of which either ρ is not known are left out."""
    both = table.select(measure, f"{measure}{kind}").to_numpy()
    known = np.isfinite(both).all(1)
    if not known.any():
        return {"pairs": 0}
    match, control = both[known].T
    gain = float((match - control).mean())
    row = {"pairs": len(match), "match_corr": np.median(match), "control_corr": np.median(control)}
    row |= {"gain": gain, "better": float((match > control).mean())}
    if measure == "effect_corr":
        return row
    reach = _mean_reach([_less(found[""], found[kind]) for found, asked in zip(resampled, known) if asked])
    return row | {"gain_low": gain - reach, "gain_high": gain + reach}


def _mean_reach(gains: Sequence[Jackknifed]) -> float:
    """Half the interval of a mean over pairs, of those that are known whichever stretch is left out."""
    without = [gain.without for gain in gains if np.isfinite(gain.without).all()]
    return jackknife.reach(np.mean(without, 0)).item() if without else math.nan
