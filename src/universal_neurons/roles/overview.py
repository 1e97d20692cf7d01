"""The roles of a study in a few lines: how many neurons have each, the best one, or the nearest candidate."""

import math
from typing import Any

import polars as pl

from universal_neurons.labels import ROLES
from universal_neurons.role_settings import OFTEN
from universal_neurons.roles.costs import Worth
from universal_neurons.roles.gains import gains_sentence
from universal_neurons.roles.nearest import role_candidates
from universal_neurons.roles.preconditions import cannot_be_shown
from universal_neurons.storage import Store
from universal_neurons.units import unit_name

NEAREST = "nearest "  # stands before whom a role names that no neuron has
NEAREST_CLASS = "nearest token class: "
TAIL = 6  # singular values shown


def role_rows(store: Store) -> list[tuple[str, list[int], str]]:
    """Every role: its neurons in each model, and the reference model's best, or the nearest where none has it.

    Whom it names is `role_candidates`' choice.  Where the model can show no such role that is said (`cannot_be_shown`).
    """
    neurons = store.neurons.filter(pl.col("roles").is_not_null())
    rows = []
    for role in ROLES:
        holders = neurons.filter(pl.col("roles").list.contains(role))
        counts = [len(holders.filter(pl.col("model") == name)) for name in store.models]
        named = role_candidates(store, store.models[0], role)
        text = _role_line(named.row(0, named=True), role) if len(named) else ""
        rows.append((role.replace("_", " "), counts, text if counts[0] else _without(store, role, text)))
    return rows


def unembedding_lines(store: Store) -> list[str]:
    """What each model's unembedding allows, a line each: how strongly it reads the last directions of its spectrum, and
    the kurtosis of its tokens' own directions; none of an older version's study."""
    if not store.has("spectrum"):
        return []
    lines = []
    for row in store.table("unembeddings").iter_rows(named=True):
        values = store.table("spectrum").filter(model=row["model"])["over_median"].tail(TAIL)
        tail = " ".join(f"{value:.2f}" for value in values)
        null = f"{row['null_tail']:.2f} over the last {row['null_directions']}"
        lines.append(
            f"W_U of {row['model']}: its spectrum ends with {tail} of its median ({null}); tokens' own directions "
            f"have a kurtosis of {row['token_kurt']:.1f}, random ones {row['random_kurt']:.1f}."
        )
    return lines


def frequency_line(store: Store) -> str:
    """By which text token frequency neurons are told: whose counts, or the study's own; empty where none were tried."""
    if not store.has("ablations"):
        return ""
    counts = store.manifest.get("frequencies")
    if counts is None:
        return "Token frequencies are those of the study's own text."
    return f"Token frequencies are those of {counts['tokens']:,} tokens, counted in {counts['of']}."


def _without(store: Store, role: str, nearest: str) -> str:
    """What is said of a role that the reference has no neuron of: that, or why it can have none; and the nearest."""
    why = cannot_be_shown(store, store.models[0], role)
    return "; ".join(part for part in (why or (nearest and "none"), nearest and NEAREST + nearest) if part)


def relative_rows(store: Store) -> list[tuple[str, list[int], str]]:
    """As `role_rows`: prediction and suppression by a kurtosis that is high among those that each model's own
    unembedding allows (`reach`); no rows of a study of an older version."""
    if not store.has("unembeddings"):
        return []
    places = ["model", "layer", "neuron"]
    kurtoses = store.neurons.select(*places, "vocab_kurt")
    effects = store.table("effects").join(kurtoses, on=places, how="left", maintain_order="left")
    cuts = dict(store.table("unembeddings").select("model", "relative_cut").rows())
    rows = []
    for role in ("prediction", "suppression"):
        holders = effects.filter(role_relative=role).sort("vocab_kurt", descending=True, maintain_order=True)
        counts = [len(holders.filter(model=name)) for name in store.models]
        best = holders.filter(model=store.models[0]).head(1).to_dicts()
        name = f"{role}, relative"
        found = [f"{_role_line(row, role)}; cut {cuts[row['model']]:.1f}" for row in best]
        rows.append((name, counts, "".join(found) or _without(store, name, "")))
    return rows


def together_sentences(store: Store) -> list[str]:
    """What the universal neurons are worth together, and whether matches act alike, against their controls; those that
    the study can say."""
    worth = [Worth.of(store.table("costs")).sentence] if store.has("costs") else []
    gains = [gains_sentence(store.table("functional_gains"))] if store.has("functional_gains") else []
    return [sentence for sentence in worth + gains if sentence]


def _role_line(row: dict[str, Any], role: str) -> str:
    name = unit_name(row["layer"], row["neuron"])
    if role in ("prediction", "suppression"):
        label = "" if row["class"] is None else f", {row['class']} {row['class_variance_reduction']:.2f}"
        return f"{name} kurtosis {row['vocab_kurt']:.1f}{label}"
    if role == "partition":
        label = "" if row["class"] is None else f", {row['class']} {row['class_variance_reduction']:.2f}"
        return f"{name} variance {row['vocab_var']:.4f}{label}"
    if role == "entropy":
        return f"{name} {row['mediated']:.2f}{_reach(row, 'mediated')} through the norm"
    if role == "token_frequency":
        return f"{name} {row['frequency_share']:.2f}{_reach(row, 'frequency_share')} along token frequency"
    place = f"{name} on L{row['head_layer']}.H{row['head']}"
    effect = f", attention to BOS {signed(row['bos_effect'], 3)}" if "bos_effect" in row else ""
    return f"{place}: z {row['z']:+.1f}, r {signed(row['pearson_activation_bos'], 2)}{effect}"


def _reach(row: dict[str, Any], measure: str) -> str:
    """The 95 % interval of a share; nothing where there is none, as of few rows and in older studies."""
    low, high = row.get(f"{measure}_low"), row.get(f"{measure}_high")
    return "" if low is None or high is None or not math.isfinite(low) else f" [{low:.2f} {high:.2f}]"


def signed(value: float | None, digits: int) -> str:
    """A number with its sign; – where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:+.{digits}f}"


def left_out(row: dict[str, Any]) -> str:
    """Which tokens the lists of a row of `effects` are drawn from: those that hardly occur are no evidence."""
    number = row.get("tokens_left_out")
    if number is None:
        return "(of all tokens, also such as hardly occur in the study's text; `uneurons roles` leaves those out)"
    if number == 0:
        return f"(of all tokens: too few occur {OFTEN} times in the study's text, or all do)"
    return f"(left out: {number:,} tokens that occur fewer than {OFTEN} times in the study's text)"


def _class_line(row: dict[str, Any]) -> str:
    """What a neuron does to its token class; of one without a role by weights, that the class is only the nearest."""
    said = _class_said(row)
    if row["role"] is None and row.get("role_relative"):
        measured = f"kurtosis {row['kurtosis_share']:.2f} of the way to a token's own unembedding"
        return f"{row['role_relative']}, relative ({measured}): {said}"
    return f"no role by its weights; {NEAREST_CLASS}{said}" if row["role"] is None else f"{row['role']}: {said}"


def _class_said(row: dict[str, Any]) -> str:
    does = f"{'raises' if row['class_sign'] > 0 else 'lowers'} {row['class']}"
    return f"{does} (explains {row['class_variance_reduction']:.2f} of its logit effects)"


def neuron_lines(store: Store, model: str, layer: int, neuron: int, strings: list[str] | None) -> list[str]:
    """One neuron's logit effects, ablation and attention, a line each; none where the tables lack it."""
    this_neuron = (pl.col("model") == model) & (pl.col("layer") == layer) & (pl.col("neuron") == neuron)
    lines = []

    def unless_it_can(role: str, row: dict[str, Any]) -> str:
        why = cannot_be_shown(store, model, role)
        return f"; {role.replace('_', ' ')} {why}" if why and row["role"] is None else ""

    for row in store.table("effects").filter(this_neuron, pl.col("top_tokens").is_not_null()).iter_rows(named=True):
        if row["class"] is not None:
            role = "prediction" if row["class_sign"] > 0 else "suppression"
            has_role = _class_line(row) + unless_it_can(role, row) if store.has_roles else ""
            lines.append(has_role or NEAREST_CLASS + _class_said(row))
        for which in ("top", "bottom"):
            if strings is None:
                break
            tokens = " ".join(f"{strings[token]!r}" for token in row[f"{which}_tokens"][:8])
            lines.append(f"{'most raised' if which == 'top' else 'most lowered'}: {tokens}")
        lines += [] if strings is None else [left_out(row)]
    ablations = store.table("ablations").filter(this_neuron) if store.has("ablations") else pl.DataFrame()
    for row in ablations.iter_rows(named=True):
        share = (
            f"{row['mediated']:.0%} of its effect on the loss ({row['total_effect']:.2g} nats) through the final norm"
        )
        why = unless_it_can("entropy", row) if row["kind"] == "entropy" else ""
        lines.append(f"ablated ({row['kind']}): {share}, null fraction {row['null_fraction']:.2f}{why}")
    if store.has("attention"):
        for row in store.table("attention").filter(this_neuron).iter_rows(named=True):
            name = (row["role"] or "attention").replace("_", " ")
            where = " where it fires" if row.get("bos_effect") is not None else ""
            mean = f"mean over all positions {signed(row['delta_bos'], 3)}"
            why = unless_it_can(f"attention_{'de' if row['z'] > 0 else ''}activation", row)
            lines.append(f"{name}: {_role_line(row, 'attention')}{where}, {mean}{why}")
    return lines
