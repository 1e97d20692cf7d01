"""What changes in training: from the studies of all checkpoints to tables.

With U_t the universal neurons of the reference at checkpoint t (arXiv 2508.00903):

- persistence |U_{t−1} ∩ U_t| / |U_{t−1}|;
- emergence: the first checkpoint from which a neuron stays universal to the end;
- partners: a neuron's best match in another seed is the same neuron as at the checkpoint before, or as at the last;
- families: how many neurons of each there are, and how many of them had it before.

Matches count where a neuron has one at both checkpoints.  Shares among universal neurons are of those that were
universal at the earlier of the two.  What has no answer (a share of nothing) is NaN, what was not asked (what comes
before the first checkpoint) null.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from universal_neurons.dynamics.self_correlation import SelfCorrelations
from universal_neurons.dynamics.training_runs import Checkpoint
from universal_neurons.labels import FAMILIES
from universal_neurons.units import Units

NEVER = -1


@dataclass(frozen=True)
class CheckpointStudy:
    """What one checkpoint's study says: rows of `neurons`, and of `matches` of rank 1, and the seeds' units; all by the
    names of the seeds."""

    checkpoint: Checkpoint
    neurons: pl.DataFrame
    matches: pl.DataFrame
    units: Mapping[str, Units]

    def of(self, seed: str) -> pl.DataFrame:
        """One seed's rows of `neurons`, in the order of the table."""
        return self.neurons.filter(pl.col("model") == seed)


@dataclass(frozen=True)
class History:
    """The reference's neurons at every checkpoint: which are universal, and their best match in each other seed.

    A partner is a neuron's number in the other seed, −1 where there is none.
    """

    universal: Bool[np.ndarray, "checkpoints neurons"]
    partners: Int[np.ndarray, "checkpoints others neurons"]


def history(studies: Sequence[CheckpointStudy], reference: str, others: Sequence[str]) -> History:
    """Which of the reference's neurons were universal, and which their partners were, from the studies in order."""
    universal, partners = [], []
    for study in studies:
        neurons = study.of(reference).select("layer", "neuron", "is_universal")
        universal.append(neurons["is_universal"].fill_null(False).to_numpy())
        numbers = []
        for other in others:
            matches = study.matches.filter(pl.col("match_model") == other)
            number = study.units[other].number_column("match_")
            matches = matches.select("layer", "neuron", number.alias("partner"))
            both = neurons.join(matches, on=["layer", "neuron"], how="left", maintain_order="left")
            numbers.append(both["partner"].fill_null(-1).to_numpy())
        partners.append(np.stack(numbers))
    return History(np.stack(universal), np.stack(partners))


def persistence(universal: Bool[np.ndarray, "checkpoints neurons"]) -> Float[np.ndarray, " later"]:
    """|U_{t−1} ∩ U_t| / |U_{t−1}| of every checkpoint but the first; NaN where nothing was universal."""
    before, now = universal[:-1], universal[1:]
    stayed, were = (before & now).sum(1), before.sum(1)
    return np.where(were > 0, stayed / np.maximum(were, 1), np.nan)


def first_universal(universal: Bool[np.ndarray, "checkpoints neurons"]) -> Int[np.ndarray, " neurons"]:
    """The first checkpoint at which a neuron is universal, by its number from 0; −1 where it never is."""
    return np.where(universal.any(0), universal.argmax(0), NEVER)


def emergence(universal: Bool[np.ndarray, "checkpoints neurons"]) -> Int[np.ndarray, " neurons"]:
    """The first checkpoint from which a neuron stays universal to the end; −1 where it is not so at the end."""
    stays = np.logical_and.accumulate(universal[::-1], 0)[::-1]
    return first_universal(stays)


@dataclass(frozen=True)
class Kept:
    """Which matches are the same at an earlier and a later checkpoint, of those that are there at both."""

    same: Bool[np.ndarray, "others neurons"]
    both: Bool[np.ndarray, "others neurons"]

    @classmethod
    def of(cls, earlier: Int[np.ndarray, "others neurons"], later: Int[np.ndarray, "others neurons"]) -> "Kept":
        """Compare the partners (others, neurons) of two checkpoints."""
        both = (earlier >= 0) & (later >= 0)
        return cls(both & (earlier == later), both)

    def share(self, neurons: Bool[np.ndarray, " neurons"] | None = None) -> float:
        """Share of all matches that are the same, or of those of some neurons; NaN of none."""
        columns = slice(None) if neurons is None else neurons
        matched = int(self.both[:, columns].sum())
        return int(self.same[:, columns].sum()) / matched if matched else math.nan


def checkpoints_table(
    studies: Sequence[CheckpointStudy], course: History, reference: str, threshold: float
) -> pl.DataFrame:
    """A row per checkpoint, of the reference's neurons."""
    persisted = [None, *persistence(course.universal).tolist()]
    rows = []
    for t, study in enumerate(studies):
        neurons = study.of(reference)
        excess = neurons["excess_corr"].fill_nan(None)
        before = course.universal[t - 1] if t else None
        earlier = None if before is None else Kept.of(course.partners[t - 1], course.partners[t])
        final = Kept.of(course.partners[t], course.partners[-1])
        now = course.universal[t]
        rows.append(
            {
                "checkpoint": study.checkpoint.name,
                "step": study.checkpoint.step,
                "asker": reference,
                "neurons": len(neurons),
                "dead": int(neurons["dead"].sum()),
                "universal": int(now.sum()),
                "fraction": float(now.mean()),
                **{f"universal_{word}": _above(neurons[column], threshold) for word, column in SURENESS.items()},
                **{f"excess_{name}": excess.quantile(q, "linear") for name, q in QUANTILES.items()},
                "joined": None if before is None else int((now & ~before).sum()),
                "left": None if before is None else int((before & ~now).sum()),
                "persistence": persisted[t],
                "same_match": None if earlier is None else earlier.share(),
                "same_match_universal": None if earlier is None else earlier.share(before),
                "final_match": final.share(),
                "final_match_universal": final.share(now),
            }
        )
    whole = dict.fromkeys(("step", "neurons", "dead", "universal", "joined", "left"), pl.Int64)
    shares = ("fraction", "persistence", "same_match", "same_match_universal", "final_match", "final_match_universal")
    numbers = dict.fromkeys((*shares, *(f"excess_{name}" for name in QUANTILES)), pl.Float64)
    sure = {f"universal_{word}": pl.Int64 for word in SURENESS}
    return pl.DataFrame(rows, schema_overrides={**whole, **numbers, **sure})


SURENESS = {"heldout": "excess_heldout", "surely": "excess_low", "possibly": "excess_high"}
QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def _above(values: pl.Series, threshold: float) -> int:
    return int((values.fill_nan(None) > threshold).sum())


COPIED = (
    "model", "layer", "neuron", "dead", "excess_corr", "excess_heldout", "excess_low", "excess_high", "is_universal",
    "family", "label", "label_sign", "variance_reduction", "position_mi",
)  # fmt: skip


def neurons_table(
    studies: Sequence[CheckpointStudy],
    course: History,
    reference: str,
    self_corr: SelfCorrelations,
) -> pl.DataFrame:
    """A row per checkpoint and neuron of every seed; `self_corr` holds further columns."""
    frames = []
    for t, study in enumerate(studies):
        kept = [
            None if t == 0 else Kept.of(course.partners[t - 1], course.partners[t]).same.sum(0),
            Kept.of(course.partners[t], course.partners[-1]).same.sum(0),
        ]
        for seed in study.neurons["model"].unique(maintain_order=True):
            table = study.of(seed).select(COPIED)
            kept_columns = {
                name: pl.Series(name, [None] * len(table) if seed != reference or same is None else same, pl.Int32)
                for name, same in zip(("same_match", "final_match"), kept)
            }
            self_columns = self_corr[study.checkpoint.name, seed]
            frames.append(
                table.select(
                    pl.lit(study.checkpoint.name).alias("checkpoint"),
                    pl.lit(study.checkpoint.step, pl.Int64).alias("step"),
                    pl.all(),
                )
                .with_columns(**kept_columns)
                .hstack(self_columns)
            )
    return pl.concat(frames)


def families_table(studies: Sequence[CheckpointStudy]) -> pl.DataFrame:
    """A row per checkpoint, seed and family: its neurons, the universal ones, and those that were of it before."""
    rows = []
    before: dict[str, pl.Series] = {}
    for study in studies:
        for seed in study.neurons["model"].unique(maintain_order=True):
            neurons = study.of(seed)
            family, universal = neurons["family"], neurons["is_universal"]
            for name in FAMILIES:
                members = family == name
                known = before.get(seed)
                rows.append(
                    (
                        study.checkpoint.name,
                        study.checkpoint.step,
                        seed,
                        name,
                        int(members.sum()),
                        None if universal.is_null().all() else int((members & universal).sum()),
                        None if known is None else int((members & (known == name)).sum()),
                    )
                )
            before[seed] = family
    schema = {
        "checkpoint": pl.String, "step": pl.Int64, "model": pl.String, "family": pl.String, "neurons": pl.Int64,
        "universal": pl.Int64, "same_family": pl.Int64,
    }  # fmt: skip
    return pl.DataFrame(rows, schema=schema, orient="row")


def emergence_table(studies: Sequence[CheckpointStudy], course: History, reference: str) -> pl.DataFrame:
    """A row per neuron of the reference: when it is first universal, when for good, at how many checkpoints."""
    places = studies[0].of(reference).select("model", "layer", "neuron")
    known = [study.checkpoint for study in studies]
    columns = []
    for name, at in (("first", first_universal(course.universal)), ("emergence", emergence(course.universal))):
        columns.append(pl.Series(name, [None if t == NEVER else known[t].name for t in at], pl.String))
        columns.append(pl.Series(f"{name}_step", [None if t == NEVER else known[t].step for t in at], pl.Int64))
    columns.append(pl.Series("checkpoints", course.universal.sum(0), pl.Int64))
    columns.append(pl.Series("left", (course.universal[:-1] & ~course.universal[1:]).sum(0), pl.Int64))
    return places.with_columns(columns)
