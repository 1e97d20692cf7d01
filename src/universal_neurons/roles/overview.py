"""The roles of a study in a few lines: how many neurons have each, the best one, or the nearest candidate."""

import math
from typing import Any

import polars as pl

from universal_neurons.labels import ROLES
from universal_neurons.roles.prediction import OFTEN
from universal_neurons.storage import Store
from universal_neurons.units import unit_name


def role_rows(store: Store) -> list[tuple[str, list[int], str]]:
    """Every role: its neurons in each model, and the reference model's best, or the nearest where none has it."""
    neurons = store.neurons.filter(pl.col("roles").is_not_null())
    rows = []
    for role in ROLES:
        holders = neurons.filter(pl.col("roles").list.contains(role))
        counts = [len(holders.filter(pl.col("model") == name)) for name in store.models]
        best = _best(store, store.models[0], role)
        text = "" if best is None else _role_line(best, role)
        rows.append((role.replace("_", " "), counts, text if counts[0] or not text else f"none; nearest {text}"))
    return rows


def _best(store: Store, model: str, role: str) -> dict[str, Any] | None:
    """What the tables say of the model's neuron that has a role most, whether or not enough."""
    of_model = pl.col("model") == model
    if role in ("prediction", "suppression", "partition"):
        places = ("model", "layer", "neuron")
        moments = with_oriented_skew(store).select(*places, "vocab_kurt", "vocab_skew", "vocab_var")
        table = store.table("effects").filter(of_model).join(moments, on=places)
        side = {"prediction": pl.col("vocab_skew") > 0, "suppression": pl.col("vocab_skew") < 0}
        table = table.filter(side.get(role, pl.lit(True)))
        by = pl.col("vocab_var" if role == "partition" else "vocab_kurt")
    elif role in ("entropy", "token_frequency"):
        table = store.table("ablations").filter(of_model & (pl.col("kind") != "control"))
        by = pl.col("mediated" if role == "entropy" else "frequency_share")
    else:
        if not store.has("attention"):
            return None
        sign = 1 if role == "attention_deactivation" else -1
        table = store.table("attention").filter(of_model & (pl.col("z") * sign > 0))
        by = pl.col("z").abs()
    ranked = table.filter(by.is_finite()).sort(
        (pl.col("role") == role).fill_null(False), by, descending=True, nulls_last=True
    )
    return ranked.row(0, named=True) if len(ranked) else None


def with_oriented_skew(store: Store) -> pl.DataFrame:
    """The neuron table, `vocab_skew` times the neuron's orientation: the skew of what it adds on average.

    As it is where the study is without roles, or of a version that knew no orientation.
    """
    neurons = store.neurons
    if not store.has("effects") or "orientation" not in store.table("effects").columns:
        return neurons
    places = ["model", "layer", "neuron"]
    signs = store.table("effects").select(*places, "orientation")
    joined = neurons.join(signs, on=places, how="left", maintain_order="left")
    skew = pl.col("vocab_skew") * pl.col("orientation").fill_null(1)
    return joined.with_columns(vocab_skew=skew).drop("orientation")


def _role_line(row: dict[str, Any], role: str) -> str:
    name = unit_name(row["layer"], row["neuron"])
    if role in ("prediction", "suppression"):
        label = "" if row["class"] is None else f", {row['class']} {row['class_variance_reduction']:.2f}"
        return f"{name} kurtosis {row['vocab_kurt']:.1f}{label}"
    if role == "partition":
        label = "" if row["class"] is None else f", {row['class']} {row['class_variance_reduction']:.2f}"
        return f"{name} variance {row['vocab_var']:.4f}{label}"
    if role == "entropy":
        reach = f" [{row['mediated_low']:.2f} {row['mediated_high']:.2f}]" if math.isfinite(row["mediated_low"]) else ""
        return f"{name} {row['mediated']:.2f}{reach} through the norm"
    if role == "token_frequency":
        return f"{name} {row['frequency_share']:.2f} along token frequency"
    place = f"{name} on L{row['head_layer']}.H{row['head']}"
    return f"{place}: z {row['z']:+.1f}, r {signed(row['pearson_activation_bos'], 2)}"


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


def neuron_lines(store: Store, model: str, layer: int, neuron: int, strings: list[str] | None) -> list[str]:
    """One neuron's logit effects, ablation and attention, a line each; none where the tables lack it."""
    this_neuron = (pl.col("model") == model) & (pl.col("layer") == layer) & (pl.col("neuron") == neuron)
    lines = []
    for row in store.table("effects").filter(this_neuron).iter_rows(named=True):
        if row["class"] is not None:
            sign = "raises" if row["class_sign"] > 0 else "lowers"
            lines.append(f"{sign} {row['class']} (explains {row['class_variance_reduction']:.2f} of its logit effects)")
        for which in ("top", "bottom"):
            if strings is None:
                break
            tokens = " ".join(f"{strings[token]!r}" for token in row[f"{which}_tokens"][:8])
            lines.append(f"{'most raised' if which == 'top' else 'most lowered'}: {tokens}")
        lines += [] if strings is None else [left_out(row)]
    for row in store.table("ablations").filter(this_neuron).iter_rows(named=True):
        share = (
            f"{row['mediated']:.0%} of its effect on the loss ({row['total_effect']:.2g} nats) through the final norm"
        )
        lines.append(f"ablated ({row['kind']}): {share}, null fraction {row['null_fraction']:.2f}")
    if store.has("attention"):
        for row in store.table("attention").filter(this_neuron).iter_rows(named=True):
            name = (row["role"] or "attention").replace("_", " ")
            lines.append(
                f"{name}: {_role_line(row, 'attention')}, mean change of attention to BOS {signed(row['delta_bos'], 3)}"
            )
    return lines
