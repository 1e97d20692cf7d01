"""The roles of one model's neurons: weights say who is a candidate, one reading of the sample tries them all out.

The sign of a gated neuron is arbitrary (`orientation_of`): its activation and its w_out are taken times its
orientation here, so that what it raises is what it raises by its mean activation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from universal_neurons.interventions import Readout, Trial, contributions, trials
from universal_neurons.labels import ROLES
from universal_neurons.models import Model, ProcessedWeights, processed_weights
from universal_neurons.role_settings import QUANTILES, RoleSettings
from universal_neurons.roles.attention import at_bos, attention_table, bos_scores, heads_table, scores_histogram
from universal_neurons.roles.ensembles import ensemble_histograms, ensembles_of, ensembles_table, same_class
from universal_neurons.roles.entropy import EntropyTrial, Spectrum, controls, entropy_candidates, spectrum_of
from universal_neurons.roles.frequency import FREQUENCY_CANDIDATES, Frequency
from universal_neurons.roles.loss_changes import LossChanges
from universal_neurons.roles.preconditions import preconditions
from universal_neurons.roles.prediction import (
    ClassLabels,
    class_labels,
    effect_histograms,
    effects_table,
    often_used,
    role_examples,
    used_tokens,
    with_nearest,
)
from universal_neurons.roles.reach import Reach, kurtosis_reach
from universal_neurons.roles.worth import Costs
from universal_neurons.statistics import orientation_of
from universal_neurons.text import TokenCounts, TokenDataset, Vocabulary

ROLE_TABLES = (
    "unembeddings", "spectrum", "preconditions", "effects", "ensembles", "interventions", "ablations", "heads",
    "attention", "functional", "functional_gains", "costs", "effect_histograms", "class_histograms", "head_scores",
    "attention_samples",
)  # fmt: skip
NEAREST = 10  # neurons of each role that figures show, where so many come near it


@dataclass(frozen=True)
class Sample:
    """The text that roles are tried out on: some rows of a corpus, its vocabulary, the reference's embedding of that,
    sets of tokens of one's own; how often tokens occur in what models were trained on, where that is known."""

    tokens: TokenDataset
    rows: np.ndarray
    vocabulary: Vocabulary
    embedding: Float[Tensor, "tokens width"] | None = None
    token_sets: Mapping[str, np.ndarray] = field(default_factory=dict)
    trained_on: TokenCounts | None = None

    @cached_property
    def labels(self) -> ClassLabels:
        """The labels that speak of tokens alone."""
        return class_labels(self.vocabulary, self.embedding, own=self.token_sets)

    @cached_property
    def counts(self) -> np.ndarray:
        """How often each token stands in the whole text, position 0 and padding left out, whatever is masked."""
        counts = np.zeros(len(self.vocabulary), np.int64)
        for start in range(0, len(self.tokens), 512):
            rows = np.arange(start, min(start + 512, len(self.tokens)))
            real = np.arange(self.tokens.context)[None] < self.tokens.lengths[rows][:, None]
            real[:, 0] = False
            counts += np.bincount(self.tokens.ids(rows)[real], minlength=len(counts))[: len(counts)]
        return counts

    def frequency(self, size: int) -> Frequency:
        """How frequent each of so many tokens is: in what the models were trained on, else in the whole text."""
        counts = self.counts if self.trained_on is None else self.trained_on.counts
        return Frequency.of(np.pad(counts, (0, max(0, size - len(counts))))[:size])

    @property
    def positions(self) -> int:
        """Token positions of its rows."""
        return len(self.rows) * self.tokens.context


class Together:
    """Activations of some (flat) neurons, times orientation, at every counted position, with next token and row."""

    def __init__(self, model: Model, numbers: Sequence[int], orientation: Float[np.ndarray, " neurons"]) -> None:
        self.numbers = list(numbers)
        self.signs = torch.from_numpy(orientation[self.numbers]).float()
        self.units = model.units
        self.first = self.units.layer_of(min(self.numbers, default=0))
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, trial: Trial) -> None:
        """Keep a batch's activations, next tokens and rows."""
        layers, within = map(self.units.layer_of, self.numbers), self.units.within_layers(self.numbers)
        columns = [trial.activations[layer][trial.counted, column] for layer, column in zip(layers, within)]
        row_of = torch.from_numpy(trial.rows)[trial.counted.cpu() // trial.shape[1]]
        following = trial.following[trial.counted].cpu()
        self.parts.append((torch.stack(columns, 1).cpu() * self.signs, following, row_of))

    def joined(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Activations (positions, neurons), next tokens, rows."""
        activations, following, rows = (torch.cat(part).numpy() for part in zip(*self.parts))
        return activations, following, rows


def _oriented(weights: ProcessedWeights, orientation: Float[np.ndarray, " neurons"]) -> ProcessedWeights:
    """The weights, each w_out times its neuron's orientation."""
    if (orientation > 0).all():
        return weights
    signs = torch.from_numpy(orientation).to(weights.w_out).view(weights.w_out.shape[:-1])
    return replace(weights, w_out=weights.w_out * signs[..., None])


class OneModel:
    """One model's roles; `run` gives its tables, `roles` and `null_fraction` speak of every neuron.

    `neurons` are its rows of the neuron table.  `concerned` are neurons whose ablation functional universality asks
    about: `changes` (at tokens of the rows `row_of`) and `effects` (logit effects) are theirs.  Of the reference
    `chosen` are its universal neurons, ablated together; the tables call them `chosen_as`.  `orientation` is every
    neuron's.
    """

    def __init__(
        self,
        model: Model,
        neurons: pl.DataFrame,
        sample: Sample,
        settings: RoleSettings,
        *,
        seed: int,
        concerned: Sequence[int] = (),
        chosen: Sequence[int] | None = None,
        chosen_as: str = "",
    ) -> None:
        self.model = model
        self.neurons = neurons
        self.sample = sample
        self.settings = settings
        self.seed = seed
        self.concerned = concerned
        self.chosen = chosen
        self.chosen_as = chosen_as
        self.tables: dict[str, pl.DataFrame] = {}
        self.null_fraction = np.full(model.n_neurons, np.nan)
        self.orientation = np.ones(model.n_neurons)
        self.roles: list[list[str]] = [[] for _ in range(model.n_neurons)]
        self.effects: dict[int, np.ndarray] = {}
        self.changes: dict[int, np.ndarray] = {}
        self.row_of = np.zeros(0, np.int64)

    def run(self, count: Callable[[int], None], batch_tokens: int) -> dict[str, pl.DataFrame]:
        """Try the model's neurons out, counting tokens that were read; returns the tables that have rows, by name."""
        model = self.model
        weights = processed_weights(model)
        frequency = self.sample.frequency(len(weights.w_u))
        kinds = self._candidates(weights, frequency)
        means, activations = self._read_plainly(batch_tokens, list(kinds))
        orientation = self.orientation = self._orientation(means)
        weights = _oriented(weights, orientation)
        stats = self.neurons.with_columns(vocab_skew=pl.col("vocab_skew") * pl.Series(orientation))
        flat = weights.w_out.flatten(0, -2)
        spectrum = spectrum_of(weights.w_u, model.architecture.norm == "layer")
        self.null_fraction = spectrum.null_fraction(flat).cpu().numpy()
        self.tables["spectrum"] = spectrum.table(model.name)
        self.effects = {n: (weights.w_u @ flat[n]).float().cpu().numpy() for n in self.concerned}
        labels, counts = self.sample.labels, self.sample.counts
        reach = self._reach(weights, spectrum)
        effects = effects_table(
            model.name, weights, stats, self.sample.vocabulary, counts, labels, self.settings, reach
        )
        effects = self.tables["effects"] = effects.with_columns(orientation=pl.Series(orientation, dtype=pl.Int8))
        own = np.quantile(activations * orientation[list(kinds)], QUANTILES, axis=0).T
        trial = EntropyTrial(model, kinds, means, self.settings, frequency, orientation, own)
        changes = LossChanges(model, self.concerned, means)
        nearest = with_nearest(effects, stats, NEAREST)
        numbers, ensembles = ensembles_of(same_class(nearest), weights, self.sample.vocabulary, labels)
        together = Together(model, numbers.tolist(), orientation) if ensembles else None
        costs = self._costs(means)
        self._read([trial, changes, together, costs], count)
        self.changes, self.row_of = changes.by_number(), changes.row_of
        self.tables["interventions"] = trial.interventions()
        self.tables["ablations"] = trial.ablations(self.neurons, weights, self.null_fraction)
        if costs is not None:
            self.tables["costs"] = costs.table(self.chosen_as)
        shown = self._shown(nearest)
        self.tables["effect_histograms"] = effect_histograms(shown, weights, self.sample.vocabulary, labels)
        if together is not None and together.parts:
            activations, following, rows = together.joined()
            self.tables["ensembles"] = ensembles_table(model.name, ensembles, activations, following, rows)
            self.tables["class_histograms"] = ensemble_histograms(
                model.name, ensembles[:1], weights, self.sample.vocabulary, activations, following
            )
        self._attention(weights, orientation)
        unembedding = self.tables["unembeddings"].row(0, named=True)
        self.tables["preconditions"] = preconditions(model.name, unembedding, self.tables.get("heads"), self.settings)
        self._name_roles()
        return {name: table for name, table in self.tables.items() if len(table)}

    def _costs(self, means: Float[Tensor, " neurons"]) -> Costs | None:
        """What the chosen neurons cost together; studies of earlier versions do not say what each contributes."""
        if not self.chosen:
            return None
        known = "activation_sd" in self.neurons.columns
        contributed = contributions(self.model, self.neurons) if known else None
        return Costs(self.model, self.chosen, means, self.neurons["dead"].to_numpy(), self.seed, contributed)

    def _reach(self, weights: ProcessedWeights, spectrum: Spectrum) -> Reach:
        """What kurtosis the unembedding allows, by tokens that the text often has; its row of `unembeddings`."""
        tokens = often_used(used_tokens(weights, self.sample.vocabulary), self.sample.counts)
        centred = self.model.architecture.norm == "layer"
        reach = kurtosis_reach(weights.w_u, tokens, centred=centred, seed=self.seed)
        cut = reach.cut(self.settings.kurtosis_share)
        row = {"model": self.model.name, "vocabulary": len(weights.w_u), **vars(reach), "relative_cut": cut}
        row |= {"null_directions": spectrum.null.shape[1], "null_tail": spectrum.null_tail}
        self.tables["unembeddings"] = pl.DataFrame([row])
        return reach

    def _shown(self, nearest: pl.DataFrame) -> pl.DataFrame:
        """The neurons whose logit effects figures draw: examples of every role, and the entropy candidates."""
        candidates = self.tables["ablations"].filter(pl.col("kind") == "entropy").select("layer", "neuron")
        tried = nearest.join(candidates, on=("layer", "neuron")).filter(pl.col("class").is_not_null())
        every = pl.concat([role_examples(nearest), tried])
        return every.unique(("layer", "neuron"), keep="first", maintain_order=True)

    def _candidates(self, weights: ProcessedWeights, frequency: Frequency) -> dict[int, str]:
        """The neurons whose interventions are tried out, and as what."""
        kinds = dict.fromkeys(entropy_candidates(self.neurons, self.settings), "entropy")
        dead = self.neurons["dead"].to_numpy()
        for number in frequency.candidates(self.model, weights, FREQUENCY_CANDIDATES, dead):
            kinds.setdefault(number, "frequency")
        return kinds | dict.fromkeys(controls(self.neurons, self.settings, self.seed, list(kinds)), "control")

    def _read(
        self, takers: Sequence[EntropyTrial | LossChanges | Together | Costs | None], count: Callable[[int], None]
    ) -> None:
        """Run the sample once, and from each clean run what was changed."""
        readout = Readout(self.model)
        most = self.settings.positions_read(len(self.sample.vocabulary))
        first = min((taker.first for taker in takers if taker is not None), default=0)
        for trial in trials(self.model, readout, self.sample.tokens, self.sample.rows, first, most):
            for taker in takers:
                if taker is not None:
                    taker.add(trial)
            count(trial.ids.numel())

    @torch.inference_mode()
    def _read_plainly(
        self, batch_tokens: int, numbers: Sequence[int]
    ) -> tuple[Float[Tensor, " neurons"], Float[np.ndarray, "positions numbers"]]:
        """Mean activations over the counted positions of the sample, and all activations there of some neurons."""
        model = self.model
        tokens = self.sample.tokens
        rows = self.sample.rows
        total = torch.zeros(model.n_neurons, dtype=torch.float64, device=model.device)
        places = {number: place for place, number in enumerate(numbers)}
        by_layer = model.units.by_layer(numbers)
        kept: list[np.ndarray] = []
        step = max(1, batch_tokens // tokens.context)
        for start in range(0, len(rows), step):
            batch = rows[start : start + step]
            keep = torch.from_numpy(np.flatnonzero(tokens.mask(batch))).to(model.device)
            kept.append(np.empty((len(keep), len(numbers)), np.float32))

            def take(layer: int, activation: Tensor, keep: Tensor = keep, part: np.ndarray = kept[-1]) -> None:
                counted = activation[keep].float()
                total[model.units.columns(layer)] += counted.sum(0)
                if own := by_layer.get(layer):
                    within = model.units.within_layers(own)
                    part[:, [places[number] for number in own]] = counted[:, within].cpu().numpy()

            with model.capturing(take):
                model.forward(torch.from_numpy(tokens.ids(batch)))
        return (total / max(sum(map(len, kept)), 1)).float(), np.concatenate(kept)

    def _orientation(self, means: Float[Tensor, " neurons"]) -> Float[np.ndarray, " neurons"]:
        """Every neuron's orientation, 1 where the model is not gated; of an older study by `means`, the sample's."""
        if not self.model.gated:
            return np.ones(self.model.n_neurons)
        if "activation_mean" in self.neurons.columns:
            return orientation_of(self.neurons["activation_mean"].to_numpy())
        return orientation_of(means.cpu().numpy())

    def _attention(self, weights: ProcessedWeights, orientation: Float[np.ndarray, " neurons"]) -> None:
        if self.model.architecture.attention is None or self.model.n_layers < 2:
            return
        tokens, rows = self.sample.tokens, self.sample.rows
        ids = torch.from_numpy(tokens.ids(rows))
        counted = torch.from_numpy(tokens.mask(rows))
        scores = bos_scores(self.model, weights, tokens.bos, self.settings.distances, seed=self.seed)
        seen = at_bos(self.model, ids.to(self.model.device), counted)
        self.tables["heads"] = heads_table(scores, seen)
        self.tables["head_scores"] = scores_histogram(scores)
        pair_tables = attention_table(
            self.model,
            ids.to(self.model.device),
            self.settings,
            scores,
            counted=counted,
            bos_attention=seen["bos_attention"],
            seed=self.seed,
            orientation=orientation,
        )
        self.tables["attention"], self.tables["attention_samples"] = pair_tables

    def _name_roles(self) -> None:
        for name in ("effects", "ablations", "attention"):
            if name not in self.tables:
                continue
            named = self.tables[name].filter(pl.col("role").is_not_null())
            for layer, neuron, role in named.select("layer", "neuron", "role").iter_rows():
                roles = self.roles[self.model.units.number_of(layer, neuron)]
                roles[:] = sorted({*roles, role}, key=ROLES.index)
