"""Entropy neurons: they set how sure a prediction is, by way of the final norm's scale (paper §5.2; arXiv 2406.16254).

Such a neuron writes with a large norm into directions that the unembedding hardly reads: the residual grows, the norm
divides by more, all logits shrink.  Candidates are found by their weights, shown by fixing their activation to a row
of values (quantiles of their own) beside random controls, and judged by what share of their effect goes through the
norm: with the scale frozen, it is gone.  How little the unembedding reads at the least is its `Spectrum`: without such
directions there are no entropy neurons.  The same ablations judge token frequency neurons (`frequency`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from universal_neurons.interventions import Edit, Metrics, Trial
from universal_neurons.models import Model, ProcessedWeights
from universal_neurons.role_settings import QUANTILES, RoleSettings
from universal_neurons.roles.frequency import Frequency
from universal_neurons.statistics import jackknife, seed_of, unit

NULL_SHARE = 0.01  # of d_model: how many bottom singular directions make the null space
LATE_SHARE = 6  # the last sixth of the layers is late
SHARE = ("frequency_share", "frequency_share_low", "frequency_share_high")
CUTS: dict[str, dict[str, float]] = {  # the paper's notebooks
    "GPT2-small": {"layers": 2, "l2_penalty": 3, "vocab_kurt": 10, "kurt": 10, "vocab_var": float("inf")},
    "GPT2-medium": {"layers": 2, "l2_penalty": 1, "vocab_kurt": 8, "kurt": 10, "vocab_var": 0.001},
}


@dataclass(frozen=True)
class Spectrum:
    """How strongly a processed unembedding reads the directions of the residual stream: its singular `values`, the
    largest first, and V₀, the bottom k = max(1, round(0.01 d)) singular directions, its `null` space if it has one.

    Of models that are centred, within the mean-free subspace: the all-ones direction is in their null space trivially.
    """

    values: Float[Tensor, " directions"]
    null: Float[Tensor, "d_model k"]

    @property
    def over_median(self) -> Float[np.ndarray, " directions"]:
        """The singular values in units of their median; NaN where that is 0."""
        values = self.values.cpu().numpy()
        return values / (np.median(values) or np.nan)

    @property
    def null_tail(self) -> float:
        """Root mean square of V₀'s singular values over the median of all: how strongly V₀ is read after all."""
        return float(np.sqrt(np.square(self.over_median[-self.null.shape[1] :]).mean()))

    def null_fraction(self, w_out: Float[Tensor, "neurons d_model"]) -> Float[Tensor, " neurons"]:
        """‖V₀ᵀ w_out‖ / ‖w_out‖: the share of a neuron's output that the unembedding hardly reads."""
        return (unit(w_out) @ self.null).norm(dim=1)

    def table(self, model: str) -> pl.DataFrame:
        """A row per direction: `model`, `place` (1: the largest), `singular_value`, `over_median`, `null`."""
        count = len(self.values)
        return pl.DataFrame(
            {
                "model": [model] * count,
                "place": pl.Series(range(1, count + 1), dtype=pl.Int32),
                "singular_value": self.values.cpu().numpy(),
                "over_median": self.over_median,
                "null": [place >= count - self.null.shape[1] for place in range(count)],
            }
        )


def spectrum_of(w_u: Float[Tensor, "vocabulary d_model"], centred: bool) -> Spectrum:
    """The spectrum of a processed unembedding, with `centred` within the mean-free subspace."""
    width = w_u.shape[1]
    basis = torch.eye(width, dtype=torch.float64, device=w_u.device)
    if centred:
        basis = torch.linalg.qr(torch.cat([torch.ones_like(basis[:, :1]), basis[:, 1:]], 1)).Q[:, 1:]
    read = w_u @ basis
    found = torch.linalg.eigh(read.T @ read)
    values = found.eigenvalues.clamp_min(0).sqrt().flip(0)
    return Spectrum(values, basis @ found.eigenvectors[:, : max(1, round(NULL_SHARE * width))])


def entropy_candidates(neurons: pl.DataFrame, settings: RoleSettings) -> list[int]:
    """Flat numbers of a model's likeliest entropy neurons, best first; `neurons` are its rows of the neuron table.

    Late layers, large L2 penalty, neither kurtosis large, and of these the lowest variance of cos(W_U, w_out).  By
    percentiles among the neurons of the late layers (L2 penalty above the 75th, kurtoses below the 90th: other layers
    may have larger or smaller weights throughout), or by the paper's cuts.
    """
    layers = int(neurons["layer"].max()) + 1  # type: ignore[arg-type]
    table = neurons.with_row_index("flat").filter(~pl.col("dead") & pl.col("vocab_var").is_finite())
    cuts = CUTS.get(settings.entropy_cuts)
    if cuts is None:
        late = max(1, round(layers / LATE_SHARE))
        kept = pl.col("l2_penalty") >= pl.col("l2_penalty").quantile(0.75)
        for name in ("vocab_kurt", "kurt"):
            kept &= pl.col(name) <= pl.col(name).quantile(0.9)
    else:
        late = int(cuts["layers"])
        kept = pl.col("l2_penalty") >= cuts["l2_penalty"]
        for name in ("vocab_kurt", "kurt", "vocab_var"):
            kept &= pl.col(name) <= cuts[name]
    chosen = table.filter(pl.col("layer") >= layers - late).filter(kept).sort("vocab_var", "flat")
    return chosen["flat"].head(settings.entropy_neurons).to_list()


def controls(neurons: pl.DataFrame, settings: RoleSettings, seed: int, without: Sequence[int]) -> list[int]:
    """Random neurons of the last two layers, L2 penalty below the 90th and variance of cos(W_U, w_out) above the 10th
    percentile (paper §5.2), as flat numbers in order."""
    layers = int(neurons["layer"].max()) + 1  # type: ignore[arg-type]
    table = neurons.with_row_index("flat").filter(
        (pl.col("layer") >= layers - 2)
        & ~pl.col("dead")
        & pl.col("vocab_var").is_finite()
        & ~pl.col("flat").is_in(list(without))
    )
    plain = table.filter(
        (pl.col("l2_penalty") < pl.col("l2_penalty").quantile(0.9))
        & (pl.col("vocab_var") > pl.col("vocab_var").quantile(0.1))
    )["flat"].to_numpy()
    draw = np.random.default_rng(seed_of("controls", seed))
    return sorted(draw.choice(plain, min(settings.controls, len(plain)), replace=False).tolist())


@dataclass
class Effects:
    """Per token, of one neuron's mean ablation: change of the loss, the same with the norm's scale frozen and with the
    logits' part along token frequency put back, and change of KL(prediction ‖ unigram)."""

    total: list[Tensor]
    direct: list[Tensor]
    restored: list[Tensor]
    unigram: list[Tensor]
    rows: list[Tensor]

    def carriers(self, frequency_cos: float) -> dict[str, float]:
        """Means of |Δ loss|, and the shares of it that go through the final norm and along token frequency."""
        change = torch.cat(self.total)
        total = change.abs().numpy()
        direct = torch.cat(self.direct).abs().numpy()
        row_of = torch.cat(self.rows).numpy()
        mediated, low, high = _share(total, direct, row_of)
        columns = {
            "loss_change": float(change.double().mean()),
            "total_effect": float(total.mean(dtype=float)),
            "direct_effect": float(direct.mean(dtype=float)),
            "mediated": mediated,
            "mediated_low": low,
            "mediated_high": high,
            "frequency_cos": frequency_cos,
        }
        if self.restored:
            restored = torch.cat(self.restored).abs().numpy()
            columns |= dict(zip(SHARE, _share(total, restored, row_of), strict=True))
            columns["unigram_change"] = float(torch.cat(self.unigram).double().mean())
        return columns


class EntropyTrial:
    """One model's candidates and controls, tried out on one batch of rows after the other."""

    def __init__(
        self,
        model: Model,
        kinds: Mapping[int, str],
        means: Float[Tensor, " neurons"],
        settings: RoleSettings,
        frequency: Frequency,
        orientation: Float[np.ndarray, " neurons"] | None = None,
        own: Float[np.ndarray, "kinds quantiles"] | None = None,
    ) -> None:
        """`kinds` says of each flat neuron what it is tried as; `means` are all neurons' mean activations.

        What is edited is an activation times its `orientation` (1 or −1), if given.  It is fixed to the settings'
        numbers, or where they ask for quantiles to each neuron's `own`, in the order of `kinds`.
        """
        self.model = model
        self.kinds = kinds
        self.means = means
        self.orientation = torch.ones(len(means)) if orientation is None else torch.from_numpy(orientation).float()
        self.settings = settings
        self.own = None if own is None else dict(zip(kinds, own, strict=True))
        self.frequency = frequency.to(model.device)
        self.sums: dict[tuple[int | None, str, float | None, float | None], np.ndarray] = {}
        self.tokens = 0
        self.effects = {number: Effects([], [], [], [], []) for number in kinds}

    @property
    def first(self) -> int:
        """The earliest layer with a neuron to try; 0 where there is none."""
        return self.model.units.layer_of(min(self.kinds, default=0))

    def _edits(self, numbers: Sequence[int]) -> list[tuple[Edit, float | None]]:
        """Edits of neurons of one kind, with the quantile that they are fixed to, if any.

        Controls are fixed likewise; the paper's other interventions are for candidates.
        """
        fixed: list[tuple[Edit, float | None]] = [(Edit("fix", value), None) for value in self.settings.fixed_values]
        if not fixed:
            assert self.own is not None, "quantiles are asked for, and none given"
            values = torch.tensor(np.stack([self.own[number] for number in numbers]), dtype=torch.float32)
            fixed = [(Edit("fix", column), quantile) for column, quantile in zip(values.T, QUANTILES, strict=True)]
        others = [Edit("zero"), Edit("relu"), Edit("threshold", 0.0), Edit("multiply", 2.0)]
        return fixed if self.kinds[numbers[0]] == "control" else [*fixed, *((edit, None) for edit in others)]

    def add(self, trial: Trial) -> None:
        """Sweep every neuron over its edits and mean-ablate it, on a batch of rows."""
        self.tokens += len(trial.kept)
        self._sum((None, "none", None, None), trial.clean.metrics)
        for layer, numbers in self.model.units.by_layer(self.kinds).items():
            plain = [number for number in numbers if self.kinds[number] == "control"]
            self._sweep(trial, layer, plain)
            self._sweep(trial, layer, [number for number in numbers if number not in plain])
            self._ablate(trial, layer, numbers)

    def _sweep(self, trial: Trial, layer: int, numbers: list[int]) -> None:
        if not numbers:
            return
        edits = self._edits(numbers)
        oriented = [replace(edit, orientation=self.orientation[numbers]) for edit, _ in edits]
        metrics = trial.try_out(layer, self.model.units.within_layers(numbers), oriented)
        for place, number in enumerate(numbers):
            for which, (edit, quantile) in enumerate(edits):
                part = Metrics(*(values[place, which] for values in vars(metrics).values()))
                value = edit.of([place]).value if quantile is not None else edit.value
                self._sum((number, edit.kind, None if value is None else float(value), quantile), part)

    def _sum(self, key: tuple[int | None, str, float | None, float | None], metrics: Metrics) -> None:
        values = [
            metrics.loss,
            metrics.entropy,
            metrics.rank,
            metrics.reciprocal_rank,
            metrics.scale,
            metrics.divergence,
        ]
        sums = torch.stack([value.double().sum() for value in values]).cpu().numpy()
        self.sums[key] = self.sums.get(key, 0.0) + sums

    @torch.inference_mode()
    def _ablate(self, trial: Trial, layer: int, numbers: list[int]) -> None:
        """Mean ablation: total, direct, and without what goes along token frequency."""
        within = self.model.units.within_layers(numbers)
        edit = Edit("mean", self.means[numbers])
        clean = trial.clean.metrics
        total, direct = trial.total_and_direct(layer, within, [edit])
        change = trial.changes(layer, within, edit)
        directions = trial.written(layer, within)
        for place, number in enumerate(numbers):
            effect = self.effects[number]
            effect.total.append((total.loss[place, 0] - clean.loss).cpu())
            effect.direct.append((direct.loss[place, 0] - clean.loss).cpu())
            effect.rows.append(trial.row_of)
            if self.kinds[number] == "control":
                continue
            residual = trial.after(layer, trial.added(layer, change[place, None], directions[place, None]))[0]
            restored, unigram = self.frequency.restored(trial, residual)
            effect.restored.append((restored - clean.loss).cpu())
            effect.unigram.append(unigram.cpu())

    def interventions(self) -> pl.DataFrame:
        """Means of the metrics after every edit of every neuron, and (kind `none`) of the clean run."""
        names = ("loss", "entropy", "rank", "reciprocal_rank", "norm_scale", "divergence")
        rows: list[dict[str, Any]] = []
        for (number, edit, value, quantile), sums in self.sums.items():
            layer, neuron = (None, None) if number is None else self.model.units.place_of(number)
            kind = "none" if number is None else self.kinds[number]
            rows.append(
                {"model": self.model.name, "layer": layer, "neuron": neuron, "kind": kind, "edit": edit}
                | {"value": value, "tokens": self.tokens}
                | dict(zip(names, (sums / max(self.tokens, 1)).tolist()))
                | {"quantile": quantile}
            )
        numbers = {"layer": pl.Int32, "neuron": pl.Int32, "value": pl.Float64, "quantile": pl.Float64}
        return pl.DataFrame(rows, schema_overrides=numbers)

    def ablations(self, neurons: pl.DataFrame, weights: ProcessedWeights, fraction: np.ndarray) -> pl.DataFrame:
        """A row per neuron that was tried: effects of its mean ablation, what carries them, and its role."""
        rows: list[dict[str, Any]] = []
        flat = weights.w_out.flatten(0, -2)
        tried = list(self.kinds)
        along_frequency = self.frequency.cosines(flat[tried], weights)
        for (number, kind), cosines, along in zip(
            self.kinds.items(), unit(flat[tried]) @ unit(flat).T, along_frequency
        ):
            layer, neuron = self.model.units.place_of(number)
            row = {
                "model": self.model.name,
                "layer": layer,
                "neuron": neuron,
                "kind": kind,
                "l2_penalty": neurons["l2_penalty"][number],
                "vocab_var": neurons["vocab_var"][number],
                "null_fraction": float(fraction[number]),
                "tokens": self.tokens,
                **self.effects[number].carriers(float(along)),
            }
            antipode = int(cosines.nan_to_num(nan=1.0).argmin())
            row["antipode_layer"], row["antipode_neuron"] = self.model.units.place_of(antipode)
            row["antipode_cos"] = float(cosines[antipode])
            row["role"] = self._role(kind, row)
            rows.append(row)
        integers = dict.fromkeys(("layer", "neuron", "antipode_layer", "antipode_neuron"), pl.Int32)
        numbers = dict.fromkeys((*SHARE, "unigram_change"), pl.Float64)
        table = pl.DataFrame(rows, schema_overrides=integers | numbers | {"role": pl.String}, infer_schema_length=None)
        missing = [pl.lit(None, kind).alias(name) for name, kind in numbers.items() if name not in table.columns]
        return table.with_columns(missing)

    def _role(self, kind: str, row: Mapping[str, Any]) -> str | None:
        """Roles are for candidates: controls show what a neuron like any other does."""
        if kind == "control":
            return None
        if row["mediated"] > self.settings.mediated:
            return "entropy"
        return "token_frequency" if row.get("frequency_share", 0.0) > self.settings.frequency else None


def _share(total: np.ndarray, rest: np.ndarray, rows: np.ndarray) -> tuple[float, float, float]:
    """1 − Σ rest / Σ total, and its 95 % interval: a jackknife over at most 20 stretches of rows."""
    whole, left = float(total.sum(dtype=float)), float(rest.sum(dtype=float))
    if not whole > 0:
        return (float("nan"),) * 3
    stretch = jackknife.stretch_of(rows)
    totals, rests = (np.bincount(stretch, values, jackknife.STRETCHES) for values in (total, rest))
    used = totals > 0
    without = 1 - (left - rests[used]) / np.maximum(whole - totals[used], 1e-300)
    share, reach = 1 - left / whole, float(jackknife.reach(without))
    return share, share - reach, share + reach
