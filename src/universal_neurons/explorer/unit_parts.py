"""What tables say of single units, a block of them at a time: rows as dictionaries with the names that a site uses.

A `Part` names a table, whose units its rows are of, and what becomes of its columns.  A block's rows are worked on
together; only one block's are ever Python objects.  Null and NaN are left out, but for the neuron table's NaN, which
says that a unit has no answer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from universal_neurons.explanations import BY_LABELS
from universal_neurons.explorer.data_files import DIGITS, rounded, rounded_lists, without_nothing
from universal_neurons.explorer.explained_units import of_explained
from universal_neurons.explorer.studies import Strings
from universal_neurons.labels import explaining_label
from universal_neurons.units import NONE

Record = dict[str, Any]
FINE_DIGITS = 6  # of activations side by side, which are held against the models' own
BY_OTHERS = pl.when(pl.col("source") != BY_LABELS).then("source")
PLACES = ("model", "layer", "neuron", "unit")
MATCH_NUMBERS = {
    "corr": "corr", "corr_heldout": "heldout", "corr_low": "low", "corr_high": "high", "corr_ranks": "ranks",
    "corr_within_tokens": "within", "stretches": "stretches", "variance_ratio": "variance_ratio",
    "corr_without_sinks": "without_sinks",
}  # fmt: skip
MATCH_FACTS = {
    "rank": "rank", "match_layer": "layer", "match_neuron": "neuron", "mutual": "mutual", "certified": "certified",
}  # fmt: skip
COURSE_FACTS = {
    "checkpoint": "checkpoint", "step": "step", "is_universal": "universal", "family": "family", "label": "label",
    "label_sign": "label_sign", "same_match": "same_match", "final_match": "final_match",
}  # fmt: skip
COURSE_NUMBERS = {
    "excess_corr": "excess", "excess_heldout": "heldout", "excess_low": "low", "excess_high": "high",
    "variance_reduction": "variance_reduction", "self_corr": "self", "self_corr_low": "self_low",
    "self_corr_high": "self_high",
}  # fmt: skip


@dataclass(frozen=True)
class Context:
    """What rows are read with: the study's models, its tokens' strings, and whose units they are of."""

    models: Sequence[str]
    strings: Strings
    model: int

    def number(self, column: str) -> pl.Expr:
        """A column of models' names as their numbers."""
        return pl.col(column).replace_strict(list(self.models), range(len(self.models)), return_dtype=pl.Int64)


@dataclass(frozen=True)
class Part:
    """A key of a unit's content: from which table, by which column's units, and made how of a block's rows.

    `records` gives, in the order of the rows, what each becomes; `gather` makes one unit's content of its own.  Of a
    table that is not `ordered`, which is read whole, `whole` makes the rows.
    """

    key: str
    table: str
    records: Callable[[pl.DataFrame, Context], list[Record]]
    by: str = "model"
    ordered: bool = True
    gather: Callable[[list[Record]], Any] = list
    whole: Callable[[pl.DataFrame], pl.DataFrame] | None = None

    def of_units(self, rows: pl.DataFrame | None, start: int, stop: int, context: Context) -> list[Any]:
        """The content of every unit from `start` to before `stop`; None of those without rows."""
        found: list[Any] = [None] * (stop - start)
        if rows is None:
            return found
        units = rows["unit"].to_list()
        of_unit: dict[int, list[Record]] = {}
        for unit, record in zip(units, self.records(rows, context)):
            of_unit.setdefault(unit - start, []).append(record)
        for unit, records in of_unit.items():
            found[unit] = self.gather(records)
        return found


def records_of(table: pl.DataFrame) -> list[Record]:
    """Rows as dictionaries without nulls."""
    names = table.columns
    rows = zip(*(table[name].to_list() for name in names))
    return [{name: value for name, value in zip(names, row) if value is not None} for row in rows]


def plain(rows: pl.DataFrame, context: Context) -> list[Record]:
    """All columns but the unit's own place, numbers rounded, other models by number."""
    table = rows.drop("unit", "layer", "neuron")
    floats = [name for name, kind in table.schema.items() if kind.is_float()]
    models = [name for name in ("match_model",) if name in table.columns]
    digits = [rounded(pl.col(name)) for name in floats]
    return records_of(table.with_columns(*digits, *(context.number(name) for name in models)))


def matches(rows: pl.DataFrame, context: Context) -> list[Record]:
    """The matches of every rank."""
    has = rows.columns
    facts = [pl.col(name).alias(key) for name, key in MATCH_FACTS.items() if name in has]
    numbers = [rounded(pl.col(name)).alias(key) for name, key in MATCH_NUMBERS.items() if name in has]
    return records_of(rows.select(context.number("match_model").alias("model"), *facts, *numbers))


def windows(rows: pl.DataFrame, context: Context, digits: int = DIGITS) -> list[Record]:
    """Windows of text; `at` is the place of their own token."""
    place = (pl.col("position") - pl.col("start")).alias("at")
    numbers = rounded(pl.col("activation"), digits), rounded_lists("activations", digits)
    records = records_of(rows.select("band", "rank", "row", place, "tokens", *numbers))
    if rows.schema["tokens"] == pl.List(pl.String):
        return records
    string = context.strings.__getitem__
    for record in records:
        record["tokens"] = list(map(string, record["tokens"]))
    return records


def counterparts(rows: pl.DataFrame, context: Context) -> list[Record]:
    """Windows of held-out text, with the activations of the unit's best matches at the same tokens, by model."""
    records = windows(rows, context, FINE_DIGITS)
    fine = rounded(pl.element(), FINE_DIGITS)
    lists = rows["match_activations"].list.eval(pl.element().list.eval(fine)).to_list()
    others = [number for number in range(len(context.models)) if number != context.model]
    for record, of_models in zip(records, lists):
        record["others"] = {
            str(number): values
            for number, values in zip(others, of_models or [])
            if values is not None and any(value is not None for value in values)
        }
    return records


def tokens(rows: pl.DataFrame, context: Context) -> list[Record]:
    """The tokens of highest mean activation, as strings."""
    table = rows.select(token="token", mean=rounded(pl.col("mean_activation")), count="count")
    return [{"string": context.strings[record.pop("token")]} | record for record in records_of(table)]


def effects(rows: pl.DataFrame, context: Context) -> list[Record]:
    """What a unit does to the logits: its role and class, and the tokens that it raises and lowers most."""
    asked = ("role", "class", "class_group", "class_sign", "orientation", "tokens_left_out", "role_relative")
    shown = [name for name in asked if name in rows.columns]
    table = rows.select(*shown, rounded(pl.col("class_variance_reduction")))
    records = records_of(table)
    for side in ("top", "bottom"):
        pairs = rows.select(f"{side}_tokens", rounded_lists(f"{side}_effects"))
        for record, (ids, values) in zip(records, pairs.iter_rows()):
            record[side] = [[context.strings[token], value] for token, value in zip(ids or [], values or [])]
    return records


def explanations(rows: pl.DataFrame, context: Context) -> list[Record]:
    """What a unit fires on and does, in a sentence; `by` whom, where labels did not say it.  The best scored first."""
    return records_of(rows.select(text="explanation", by=BY_OTHERS))


def scores(rows: pl.DataFrame, context: Context) -> list[Record]:
    """What a unit's explanations are worth: on itself, beside controls, on other models' units (`model`, …)."""
    numbers = [rounded(pl.col(name)) for name in ("score", "low", "high", "chance")]
    place = {"model": context.number("at_model"), "layer": pl.col("at_layer"), "neuron": pl.col("at_neuron")}
    facts = "use", "method", "scorer", "n_windows", "missing"
    return records_of(rows.select(*facts, *numbers, by=BY_OTHERS, **place))


def positions(rows: pl.DataFrame, context: Context) -> list[Record]:
    """Mean activation and firing at each position."""
    return records_of(
        rows.select("position", mean=rounded(pl.col("mean_activation")), firing=rounded(pl.col("firing")))
    )


def by_column(records: list[Record]) -> dict[str, list[Any]]:
    """Records of the same keys, turned into a list for each key."""
    names = list(dict.fromkeys(name for record in records for name in record))
    return {name: [record.get(name) for record in records] for name in names}


def neuron_columns(neurons: pl.DataFrame) -> list[Record]:
    """Every column of the neuron table that is not null, but for the place; None where a number is NaN."""
    table = neurons.drop(*(name for name in PLACES if name in neurons.columns))
    floats = [name for name, kind in table.schema.items() if kind.is_float()]
    digits = [
        pl.when(pl.col(name).is_finite()).then(rounded(pl.col(name))).otherwise(pl.col(name)).alias(name)
        for name in floats
    ]
    records = records_of(table.with_columns(digits))
    for record in records:
        for name, value in record.items():
            if isinstance(value, float) and not math.isfinite(value):
                record[name] = None
    return records


def neighbours(columns: Record, ablation: Record | None, layer: int) -> list[Record]:
    """Other units of the same model that a unit is like, or the opposite of, as far as tables name them."""
    found = []
    nearest = columns.get("layer_corr_neuron")
    if nearest is not None and nearest >= 0:
        value = columns.get("layer_corr_max")
        found.append({"kind": "correlated", "layer": layer, "neuron": nearest, "value": value})
    if ablation and "antipode_layer" in ablation:
        place = {"layer": ablation["antipode_layer"], "neuron": ablation["antipode_neuron"]}
        found.append({"kind": "opposite w_out"} | place | {"value": ablation.get("antipode_cos")})
    return [without_nothing(record) for record in found]


def course(rows: pl.DataFrame, context: Context) -> list[Record]:
    """A unit at every checkpoint of its training."""
    if "label" in rows.columns:
        rows = rows.with_columns(explaining_label())
    facts = [pl.col(name).alias(key) for name, key in COURSE_FACTS.items() if name in rows.columns]
    numbers = [rounded(pl.col(name)).alias(key) for name, key in COURSE_NUMBERS.items() if name in rows.columns]
    return records_of(rows.select(*facts, *numbers))


def before_and_after(changes: pl.DataFrame) -> pl.DataFrame:
    """A diff's rows with `label_before` and `label_after` only where the label explains the unit."""
    sides = {when: changes.select(family=f"family_{when}", label=f"label_{when}") for when in ("before", "after")}
    return changes.with_columns(
        side.select(explaining_label()).to_series().alias(f"label_{when}") for when, side in sides.items()
    )


def change(changes: pl.DataFrame, strings: Strings) -> list[Record]:
    """What training changed of units, from a diff's rows: every column that says something, tokens as strings."""
    tokens = [f"{side}_{part}" for side in ("raised", "lowered") for part in ("tokens", "by")]
    table = before_and_after(changes).drop("layer", "neuron", *tokens)
    floats = [name for name, kind in table.schema.items() if kind.is_float()]
    places = [name for name in table.columns if name.endswith(("_layer", "_neuron"))]
    somewhere = [pl.when(pl.col(name) != NONE).then(name).alias(name) for name in places]
    records = records_of(table.with_columns(*(rounded(pl.col(name)) for name in floats), *somewhere))
    for side in ("raised", "lowered"):
        pairs = changes.select(f"{side}_tokens", rounded_lists(f"{side}_by"))
        for record, (ids, values) in zip(records, pairs.iter_rows()):
            if ids:
                record[side] = [[strings[token], value] for token, value in zip(ids, values)]
    return records


def _first(records: list[Record]) -> Record:
    return records[0]


PARTS = (
    Part("matches", "matches", matches, by="asker"),
    Part("one_to_one", "one_to_one", plain, by="asker"),
    Part("examples", "examples", windows),
    Part("counterparts", "counterparts", counterparts, by="asker"),
    Part("labels", "labels", plain),
    Part("explanations", "explanations", explanations),
    Part("scores", "scores", scores, ordered=False, whole=of_explained),
    Part("tokens", "tokens", tokens),
    Part("effects", "effects", effects, gather=_first),
    Part("positions", "positions", positions, gather=by_column),
    Part("interventions", "interventions", plain, ordered=False),
    Part("ablations", "ablations", plain, ordered=False, gather=_first),
    Part("attention", "attention", plain, ordered=False),
    Part("functional", "functional", plain, by="asker", ordered=False),
)
