"""A unit's labels, position and logit effects as one plain sentence, by rule: no model writes it.

1. What it fires on: the label that its family rests on, in the words of `phrases`, and how strongly, by the share of
   the activation's variance that the label explains (on rows that did not choose it, where it can be judged there):
   at least `STRONG` *fires on*, at least `CLEAR` *fires more on*, else *fires somewhat more on*.
2. Then the best of its other labels that speaks of something else (the token, the one before, the position, the source
   of the text), where that explains more than `LEAST_SHARE`, a quarter of what the first does, and the unit's null.
3. What it does to the logits, where roles are known: its token class by the same two cuts, where it explains at least
   `LEAST_SHARE`, else the tokens that it moves most; then roles shown by intervention.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import polars as pl

from universal_neurons.explanations.phrases import PATTERNS, SYNTAX, TOKENS, WHOLE_POSITION, phrase_of, place_of, quoted
from universal_neurons.labels import ROLES_BY_WEIGHTS, SAID_OF_ROLES, UNEXPLAINED, explained
from universal_neurons.storage import Results

BY_LABELS = "labels"  # the source of these sentences, in the table `explanations`
STRONG, CLEAR = 0.5, 0.2  # shares of variance explained from which it is said plainly, and with some reserve
LEAST_SHARE = 0.05  # what a second label, or a token class, must explain to be said
OF_FIRST = 0.25  # and a second label's share of what the first explains
TOKENS_SAID = 3
PLACE = ("model", "layer", "neuron")
PREVIOUS = "previous token: "
DEAD = "Dead: its activation never changes"
NOTHING = "No label explains when it fires"
AT_BOS = "Fires most at the beginning of the text"
AT_POSITIONS = "Fires at some positions in the text more than at others"
FIRES = ("Fires", "Fires more", "Fires somewhat more")
IS_SILENT = ("Is silent", "Fires less", "Fires somewhat less")
BY_POSITION = ("Fires by", "Fires partly by", "Fires somewhat by")
RAISES = ("raises", "tends to raise", "tends slightly to raise")
LOWERS = ("lowers", "tends to lower", "tends slightly to lower")
GROUP_OF_FAMILY = {"unigram": "unigrams", "alphabet": "unigrams", "position": "position", "syntax": "syntax"}
MORPHOLOGY = re.compile(r"[A-Z][A-Za-z]+=.+", re.DOTALL)
Row = dict[str, Any]
Strings = Callable[[int], str]  # what a token is called


def first_clause(row: Row) -> str:
    """What a unit, a row of the neuron table, fires on, without a full stop; `group` may hold its label's group."""
    if row.get("dead"):
        return DEAD
    if row["family"] == UNEXPLAINED:
        return NOTHING
    if row["family"] == "bos":
        return AT_BOS
    if not explained(row["family"], row["label"]):
        return AT_POSITIONS
    share = row.get("variance_reduction_heldout")
    share = row["variance_reduction"] if share is None or math.isnan(share) else share
    if row["family"] == "position" and row["label"] == WHOLE_POSITION:
        return f"{_by_strength(BY_POSITION, share)} position in the text"
    previous = row["family"] == "previous_token"
    name = row["label"].removeprefix(PREVIOUS) if previous else row["label"]
    verb = _by_strength(IS_SILENT if row["label_sign"] == -1 else FIRES, share)
    return f"{verb} {place_of(name, _group_of(row, name), previous)}"


def fires_on(row: Row) -> str:
    """`first_clause` for a column that is headed `fires`: `on numbers up to 31`, `somewhat more after the comma`."""
    if row["family"] is None:
        return "–"
    if row["family"] == UNEXPLAINED:
        return UNEXPLAINED
    clause = first_clause(row)
    return clause.removeprefix("Fires ") if clause.startswith("Fires ") else f"not{clause.removeprefix('Is silent')}"


def sentence(row: Row, strings: Strings | None = None) -> str | None:
    """All that is said of a unit; None where no labels were looked for.

    `row` is one of the neuron table, with `group`, the columns of `effects`, and `second`, `second_group`,
    `second_previous`, `second_sign` of the second label, as far as they are known.
    """
    if row.get("dead"):
        return f"{DEAD}."
    if row["family"] is None:
        return None
    parts = [first_clause(row) + _second_clause(row), *_effects(row, strings)]
    return "; ".join(parts) + "."


def label_sentences(
    neurons: pl.DataFrame, labels: pl.DataFrame, effects: pl.DataFrame | None = None, strings: Strings | None = None
) -> list[str | None]:
    """The sentence of every row of a neuron table, by the rows of the tables `labels` and `effects` that are its own.

    Nothing is known of `model` where the tables lack it: all rows are then of one.
    """
    place = [name for name in PLACE if name in neurons.columns and name in labels.columns]
    group = labels.filter(pl.col("rank") == 1).select(*place, "group")
    known = neurons.join(group, on=place, how="left", maintain_order="left")
    known = known.join(_second_labels(neurons, labels, place), on=place, how="left", maintain_order="left")
    if effects is not None:
        of_class = ("role", "class", "class_group", "class_sign", "class_variance_reduction")
        lists = [pl.col(f"{side}_tokens").list.head(TOKENS_SAID) for side in ("top", "bottom")]
        known = known.join(effects.select(*place, *of_class, *lists), on=place, how="left", maintain_order="left")
    return [sentence(row, strings) for row in known.iter_rows(named=True)]


def _second_labels(neurons: pl.DataFrame, labels: pl.DataFrame, place: list[str]) -> pl.DataFrame:
    """Of every unit that has one, the best label that speaks of something else than the first, and explains enough."""
    known_null = "variance_reduction_null" in neurons.columns
    null = neurons.select(*place, null=pl.col("variance_reduction_null") if known_null else pl.lit(None, pl.Float64))
    axes = labels.with_columns(axis=_axis())
    first = axes.filter(pl.col("rank") == 1)
    first = first.select(*place, first_axis="axis", first_share="variance_reduction")
    least = pl.max_horizontal(pl.col("first_share") * OF_FIRST, pl.lit(LEAST_SHARE), pl.col("null").fill_nan(None))
    others = axes.filter(pl.col("rank") > 1).join(first, on=place).join(null, on=place)
    others = others.filter((pl.col("axis") != pl.col("first_axis")) & (pl.col("variance_reduction") > least))
    names = {"second": "label", "second_group": "group", "second_previous": "previous", "second_sign": "sign"}
    return others.sort("rank").unique(place, keep="first", maintain_order=True).select(*place, **names)


def explanations_table(
    neurons: pl.DataFrame, labels: pl.DataFrame, effects: pl.DataFrame | None, strings: Strings | None
) -> pl.DataFrame:
    """The table `explanations` of a study's neuron table: a row per unit, in its order, model by model."""
    frames = []
    for (model,), rows in neurons.group_by("model", maintain_order=True):
        own = [None if table is None else table.filter(pl.col("model") == model) for table in (labels, effects)]
        assert own[0] is not None
        said = pl.Series("explanation", label_sentences(rows, own[0], own[1], strings), dtype=pl.String)
        frames.append(rows.select(*PLACE, pl.lit(BY_LABELS).alias("source"), said).drop_nulls("explanation"))
    return pl.concat(frames)


def by_labels(store: Results, neurons: pl.DataFrame, effects: pl.DataFrame | None) -> pl.DataFrame | None:
    """The label sentences of a study with these neurons and effects, as rows of `explanations`; None without labels."""
    if not store.has("labels"):
        return None
    return explanations_table(neurons, store.table("labels"), effects, _strings(store))


def explanations_of(store: Results) -> pl.DataFrame:
    """The table `explanations` of a study; of one that was made without it, as its other tables say it now."""
    if store.has("explanations"):
        return store.table("explanations")
    effects = store.table("effects") if store.has("effects") else None
    made = by_labels(store, store.table("neurons"), effects)
    if made is not None:
        return made
    schema = {name: store.table("neurons").schema[name] for name in PLACE}
    return pl.DataFrame(schema=schema | {"source": pl.String, "explanation": pl.String})


def sentences_of(store: Results, rows: pl.DataFrame) -> list[str | None]:
    """The sentence of some rows of a study's neuron table; None of each where the study has no labels."""
    if store.has("explanations"):
        said = store.table("explanations").filter(pl.col("source") == BY_LABELS).select(*PLACE, "explanation")
        return rows.select(PLACE).join(said, on=PLACE, how="left", maintain_order="left")["explanation"].to_list()
    if not store.has("labels"):
        return [None] * len(rows)
    place = rows.select(PLACE)
    labels, effects = (
        store.table(name).join(place, on=PLACE, how="semi") if store.has(name) else None
        for name in ("labels", "effects")
    )
    assert labels is not None
    return label_sentences(rows, labels, effects, _strings(store))


def _strings(store: Results) -> Strings | None:
    return store.table("vocabulary").sort("token")["string"].to_list().__getitem__ if store.has("vocabulary") else None


def _by_strength(words: Sequence[str], share: float) -> str:
    return words[0 if share >= STRONG else 1 if share >= CLEAR else 2]


def _group_of(row: Row, name: str) -> str:
    """The group of a unit's label; where its row does not say it, the group that its family and its name tell of."""
    family = row["family"]
    if row.get("group"):
        return row["group"]
    if family in GROUP_OF_FAMILY:
        return GROUP_OF_FAMILY[family]
    if name in TOKENS:
        return "tokens"
    if name.startswith("topic "):
        return "topics"
    if family != "previous_token":
        return "subsets" if family == "context" else "own"
    is_syntax = name in SYNTAX or name.startswith(tuple(PATTERNS)) or MORPHOLOGY.fullmatch(name)
    return "syntax" if is_syntax else "unigrams"


def _axis() -> pl.Expr:
    """What a label speaks of: the previous token, the token, the position or the source of the text."""
    group = pl.col("group").cast(pl.String)
    of_text = pl.when(group.is_in(["position", "subsets"])).then(group).otherwise(pl.lit("token"))
    return pl.when(pl.col("previous")).then(pl.lit("previous")).otherwise(of_text)


def _second_clause(row: Row) -> str:
    """What else a unit fires on, as the rest of the clause; empty where nothing else counts, or the first does not."""
    if row.get("second") is None or not explained(row["family"], row["label"]):
        return ""
    if row["second"] == WHOLE_POSITION and row["second_group"] == "position":
        return " and, more weakly, by position in the text"
    place, sign = place_of(row["second"], row["second_group"], row["second_previous"]), row["second_sign"]
    by_position = row["family"] == "position" and row["label"] == WHOLE_POSITION  # has no sign
    if sign == row["label_sign"] and not by_position:
        return f" and, more weakly, {place}"
    return f", {'less' if sign < 0 else 'more'} {place}"


def _effects(row: Row, strings: Strings | None) -> list[str]:
    """What a unit does to the logits, and what else it does."""
    others = [SAID_OF_ROLES[role] for role in row.get("roles") or () if role not in ROLES_BY_WEIGHTS]
    share = row.get("class_variance_reduction")
    if row.get("class") is not None and share is not None and share >= LEAST_SHARE:
        return [_of_class(row, share), *others]
    lowers = row.get("role") == "suppression"
    moved = row.get("bottom_tokens" if lowers else "top_tokens")
    if strings is None or not moved:
        return others
    said = [quoted(strings(token)) for token in moved]
    listed = said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"
    return [f"of all tokens {'lowers' if lowers else 'raises'} {listed} most", *others]


def _of_class(row: Row, share: float) -> str:
    raises = row["class_sign"] > 0
    said = f"{_by_strength(RAISES if raises else LOWERS, share)} {phrase_of(row['class'], row['class_group'])}"
    if row.get("role") == "partition" and share >= CLEAR:
        return f"{said} and {'lower' if raises else 'raise'}{'s' if share >= STRONG else ''} other tokens"
    return said
