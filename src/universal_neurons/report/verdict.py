"""What is to be said of one neuron in a sentence or two: is it universal, do its counterparts do the same, what does it
fire on."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import polars as pl

from universal_neurons.explanations import sentences_of
from universal_neurons.labels import UNEXPLAINED, explained, null_level
from universal_neurons.report.facts import finite
from universal_neurons.report.numbers import number
from universal_neurons.report.sources import unit_kind
from universal_neurons.report.summary import label_of
from universal_neurons.storage import Store

ALIKE = 0.5  # the least ρ of effects, or of loss changes, at which counterparts are said to act alike
BEYOND = 0.2  # and by how much it must exceed that of the second best match
MEASURES = ("effect_corr", "loss_corr")


@dataclass(frozen=True)
class Alike:
    """Medians over the other models of how alike a neuron and its counterparts act; NaN where that is not known.

    `effect` is ρ of their logit effects over the vocabulary, `loss` ρ of the changes of the loss over tokens when
    each is ablated; the other two are those of what is `beside`: the second best match of the same model, or a random
    neuron of the counterpart's layer where no second best was asked about.
    """

    models: int
    effect: float
    loss: float
    effect_beside: float
    loss_beside: float
    beside: str

    @property
    def sentence(self) -> str:
        """What its counterparts do, with the numbers that say so; as the rest of a sentence."""
        asked = {
            "ρ of effects": (self.effect, self.effect_beside),
            "of loss changes": (self.loss, self.loss_beside),
        }
        known = {
            f"{what} {number(own)}, {self.beside} {number(beside)}": beyond_another(own, beside)
            for what, (own, beside) in asked.items()
            if math.isfinite(own)
        }
        if not known:
            return "what its counterparts do is not known"
        said = "do" if all(known.values()) else "do partly" if any(known.values()) else "are not seen to do"
        return f"its counterparts {said} the same ({'; '.join(known)})"


def beyond_another(corr: float, beside: float) -> bool:
    """Whether a pair acts alike: by ρ itself, and beyond another neuron's where that is known."""
    return corr >= ALIKE and not corr < beside + BEYOND


def alike(store: Store, row: dict[str, Any]) -> Alike | None:
    """How alike a neuron, a row of the neuron table, and its counterparts act; None where the study did not ask."""
    if not store.has("functional"):
        return None
    place = {name: row[name] for name in ("model", "layer", "neuron")}
    return alike_of(store.table("functional").filter(**place))


def alike_of(rows: pl.DataFrame) -> Alike | None:
    """How alike they act by one neuron's rows of the table `functional`; None where there are none."""
    if rows.is_empty():
        return None
    second = "loss_corr_second" in rows.columns and rows["second_corr"].null_count() < len(rows)
    kind, beside = ("_second", "second best") if second else ("_random", "random")
    own, other = ([_median(rows[f"{measure}{of}"]) for measure in MEASURES] for of in ("", kind))
    return Alike(len(rows), own[0], own[1], other[0], other[1], beside)


def _median(values: Iterable[float | None]) -> float:
    middle = pl.Series(values, dtype=pl.Float64).fill_nan(None).median()
    return math.nan if middle is None else float(middle)  # type: ignore[arg-type]


def verdict(store: Store, row: dict[str, Any], threshold: float | None = None, *, said: str | None = None) -> list[str]:
    """One or two things to say of a neuron, a row of the neuron table; universal by the study's threshold or another.

    `said` is its sentence (`explanations`), where that is known already.
    """
    if row["dead"]:
        return ["Dead: its activation never changes, so it correlates with nothing."]
    first = _of_matches(store, row, store.config.threshold if threshold is None else threshold)
    if said is None:
        this_neuron = {name: row[name] for name in ("model", "layer", "neuron")}
        said = sentences_of(store, store.neurons.filter(**this_neuron))[0]
    second = "" if said is None else f"{said} {what_says_so(store, row)}".rstrip()
    return [sentence for sentence in (first, second) if sentence]


def neuron_sentence(store: Store, name: str) -> str:
    """The verdict on a neuron by its name, as one string."""
    return " ".join(verdict(store, store.neuron(name).row))


def _of_matches(store: Store, row: dict[str, Any], threshold: float) -> str:
    if row["model"] not in store.askers:
        return f"The study did not ask about {row['model']}'s matches (--pairs all does)." if store.askers else ""
    found = alike(store, row)
    parts = [universality(row, threshold)]
    if row.get("carried_by_few"):
        parts.append("its matches rest on little text")
    if found is not None:
        parts.append(found.sentence)
    return "; ".join(parts) + "."


def universality(row: dict[str, Any], threshold: float) -> str:
    """Whether a neuron is universal on the text that chose its matches, and on text that did not; no full stop."""
    excess, low, high = row["excess_corr"], row["excess_low"], row["excess_high"]
    interval = f"95 % interval {number(low)} to {number(high)}"
    if not finite(excess):
        return "Not known to be universal: it has no excess correlation"
    if excess <= threshold:
        said = f"Not universal: {number(excess)} better matched than by chance, {threshold:g} is the threshold"
        standardised = row.get("excess_standardised")
        if standardised is not None and standardised > threshold:
            said = (
                f"Universal only with every neuron brought to variance 1 ({number(standardised)}, above "
                f"{threshold:g}), not as the paper counts ({number(excess)})"
            )
        return said + (f" (on text that did not choose it {interval})" if finite(low) else "")
    if not (finite(low) and finite(high)):
        return "Universal on the text that chose its matches; how sure that is was not asked"
    if low > threshold:
        return f"Universal on this text and on text that did not choose it ({interval}, above {threshold:g})"
    on_other_text = "reaches below" if high >= threshold else "lies below"
    return f"Universal on this text only: on text that did not choose it the {interval} {on_other_text} {threshold:g}"


def what_says_so(store: Store, row: dict[str, Any]) -> str:
    """By which label, and how surely, it is said what a neuron fires on; of one that no label explains the nearest."""
    if row["family"] == UNEXPLAINED:
        return nearest_label(store, row)
    if row["family"] == "bos":
        return "No label explains when else it fires."
    if not explained(row["family"], row["label"]):
        return f"Firing and position share {row['position_mi']:.2f} nats of information."
    label, family = label_of(row | {"label_sign": 1}), row["family"].replace("_", " ")
    return f"The label {label} ({family}) explains {row['variance_reduction']:.0%} of its variance."


def label_level(store: Store, row: dict[str, Any]) -> float:
    """The share of a neuron's variance that a label must exceed to explain it (docs/labels.md)."""
    of_model = store.neurons.filter(pl.col("model") == row["model"])["variance_reduction_null"]
    own = row["variance_reduction_null"]
    return max(store.config.unexplained, null_level(of_model.to_numpy()), own if finite(own) else 0.0)


def nearest_label(store: Store, row: dict[str, Any]) -> str:
    """Which label comes nearest to explaining a neuron that none does: that is not what it fires on."""
    heldout = finite(row["variance_reduction_heldout"])
    judged = row["variance_reduction_heldout" if heldout else "variance_reduction"]
    if row["label"] is None or not finite(judged):
        return ""
    where = " on text that did not choose it" if heldout else ""
    found = f"The nearest, {label_of(row)}, explains {number(judged)} of its variance{where}"
    return f"{found}, and only above {number(label_level(store, row))} counts."


def main_numbers(store: Store, row: dict[str, Any]) -> list[tuple[str, str]]:
    """The ten numbers of a neuron that matter, or those of them that the study has: what each says, and it as text."""
    kind = unit_kind(store, row["model"])
    lines = [] if kind is None else [("what it is", kind)]
    lines += [*_match_numbers(store, row), *_act_numbers(alike(store, row))]
    if finite(row["variance_reduction"]):
        heldout = finite(row["variance_reduction_heldout"])
        column = "variance_reduction_heldout" if heldout else "variance_reduction"
        text = ", on other text" if heldout else ""
        which = "its best label" if explained(row["family"], row["label"]) else "the nearest label"
        lines.append((f"share of its variance that {which} explains{text}", number(row[column])))
    if finite(row["sparsity"]):
        what = "pre-activation" if kind is None else "value"
        lines.append((f"share of positions where its {what} is above 0", number(row["sparsity"])))
    if finite(row["w_out_norm"]):
        what = "output weights" if kind is None else "decoder's row"
        lines.append((f"length of its {what}", f"{row['w_out_norm']:.2f}"))
    return lines


def _match_numbers(store: Store, row: dict[str, Any]) -> list[tuple[str, str]]:
    if not finite(row["excess_corr"]):
        return []
    reach = f"{number(row['min_corr'])} to {number(row['max_corr'])}"
    excess = f"{number(row['excess_corr'])} (universal above {store.config.threshold:g})"
    lines = [
        ("ρ with its counterparts, mean over models", f"{number(row['mean_corr'])} ({reach})"),
        ("ρ that chance finds", number(row["mean_baseline"])),
        ("better than chance by", excess),
    ]
    if finite(row["excess_heldout"]):
        interval = f"{number(row['excess_low'])} to {number(row['excess_high'])}"
        lines.append(
            ("the same on text that did not choose it (95 %)", f"{number(row['excess_heldout'])} ({interval})")
        )
    if row.get("mutual_all") is not None:
        lines.append(("each other's best match in every model", "yes" if row["mutual_all"] else "no"))
    return lines


def _act_numbers(found: Alike | None) -> list[tuple[str, str]]:
    """How alike the counterparts act, beside the second best matches."""
    if found is None:
        return []
    pairs = (
        ("effects on the logits", found.effect, found.effect_beside),
        ("changes of the loss", found.loss, found.loss_beside),
    )
    return [
        (f"its counterparts' {what}: ρ, median over models", f"{number(own)} ({found.beside} {number(beside)})")
        for what, own, beside in pairs
    ]
