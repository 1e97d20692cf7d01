"""A finished study, read: its tables, its neurons by name, and what is asked of them."""

import numpy as np
import polars as pl

from universal_neurons.config import Settings, StudyConfig
from universal_neurons.config_reading import make_config, replayed, stored_settings
from universal_neurons.errors import MissingFileError, StoreConflictError
from universal_neurons.models import is_signless
from universal_neurons.storage.manifest import HISTOGRAMS, MANIFEST, file_of
from universal_neurons.storage.neuron import Neuron
from universal_neurons.storage.of_label import neurons_of_label
from universal_neurons.storage.results import Results
from universal_neurons.units import Units


class Store(Results):
    """A finished study: its tables (`neurons`, `matches`, `labels`, …) as polars frames, and the manifest.

    Raises `MissingFileError` where there is none, and `StoreConflictError` where it is not finished.  Each table is
    checked against study.json when it is first read; `verify=False` leaves that out.
    """

    @property
    def config(self) -> StudyConfig:
        """The configuration that made the study."""
        return make_config(replayed(self.manifest["config"]), str(self.path / MANIFEST))

    @property
    def settings(self) -> Settings:
        """The configuration of a study of text with every setting decided, as its passes took them."""
        return stored_settings(self.manifest["config"], str(self.path / MANIFEST))

    @property
    def models(self) -> list[str]:
        """Names of its models, the reference first."""
        return [model["name"] for model in self.manifest["models"]]

    @property
    def gated(self) -> set[str]:
        """Models whose MLPs are gated, or of whose units nothing else settles the sign: their matches are by |ρ|."""
        return {model["name"] for model in self.manifest["models"] if is_signless(model, str(self.path))}

    @property
    def askers(self) -> list[str]:
        """Models whose neurons were asked about."""
        if "universality" not in self.config.stages:
            return []
        return self.models if self.config.pairs == "all" else self.models[:1]

    @property
    def has_roles(self) -> bool:
        """Whether its neurons' roles were looked for; a study of latents has logit effects (`effects`) without."""
        return self.has("interventions")

    @property
    def neurons(self) -> pl.DataFrame:
        """A row per neuron of every model."""
        return self.table("neurons")

    @property
    def matches(self) -> pl.DataFrame:
        """A row per living neuron that was asked about, other model and rank; rank −1 is the most negative match."""
        return self.table("matches")

    @property
    def layers(self) -> pl.DataFrame:
        """A row per asker, layer, other model and its layer: the share of best matches that lie there."""
        return self.table("layers")

    @property
    def convergence(self) -> pl.DataFrame:
        """Best correlations and universal counts at log-spaced numbers of tokens."""
        return self.table("convergence")

    @property
    def subsets(self) -> pl.DataFrame:
        """Universality within each subset that was asked for."""
        return self.table("subsets")

    @property
    def labels(self) -> pl.DataFrame:
        """A row per neuron and rank: the labels that explain most of its activation."""
        return self.table("labels")

    @property
    def examples(self) -> pl.DataFrame:
        """Where every neuron fires most, and spans from lower bands."""
        return self.table("examples")

    @property
    def side_by_side(self) -> pl.DataFrame:
        """Where neurons that were asked about fire on held-out rows, and what their matches do there.

        The table `counterparts`.
        """
        return self.table("counterparts")

    @property
    def units(self) -> dict[str, Units]:
        """Every model's neurons by layer."""
        return {facts["name"]: Units.of_facts(facts) for facts in self.manifest["models"]}

    @property
    def explanations(self) -> pl.DataFrame:
        """A row per neuron and source: what it fires on and does, in a sentence; of a neuron the best scored first.

        The source `labels` made its sentences by rule; others by `uneurons explain`.
        """
        return self.view("explanations")(self)

    @property
    def scores(self) -> pl.DataFrame:
        """How well explanations predict units on held-out text: a row per explanation, unit it was tried on, method,
        scorer; no row where none was scored (`uneurons explain`)."""
        return self.view("scores")(self)

    @property
    def best_explanations(self) -> pl.DataFrame:
        """A row per neuron that is explained: the best scored of its explanations, else the first, and its score.

        Columns: those of `explanations`; `method`, `scorer`, `score` (AUPRC; of simulation ρ), its 95 % interval `low`,
        `high`, and `chance`, null where it is not scored.
        """
        return self.view("best explanations")(self)

    @property
    def explanation_sources(self) -> pl.DataFrame:
        """A row per source of explanations, scorer and method: what they are worth on average, beside controls and on
        counterparts (`universal_neurons.explanations.sources_table`)."""
        return self.view("explanation sources")(self)

    @property
    def strings(self) -> list[str]:
        """The vocabulary as strings, by token id."""
        return self.table("vocabulary").sort("token")["string"].to_list()

    def neuron(self, name: str) -> Neuron:
        """One neuron, `L0.49` of the reference or `seed-1/L0.49`; raises `InputError` where there is none."""
        return Neuron.named(self, name, self.units)

    def counterparts(self, name: str | None = None) -> pl.DataFrame:
        """A row per neuron that was asked about, or of one (`L0.49`, `seed-1/L0.49`), and other model: its best match.

        Columns: `neuron` and `counterpart`, names that `store.neuron` takes; of `matches` `corr`, `corr_heldout`,
        `corr_low`, `corr_high`, `mutual`; of `neurons` the counterpart's `family`, and its `label` where
        that explains it.  No rows of a dead neuron,
        nor of one that was not asked about.  Raises `InputError` where there is no such neuron.
        """
        return self.view("counterparts")(self, None if name is None else self.neuron(name))

    def universal(self, model: str | None = None, threshold: float | None = None, by: str = "paper") -> pl.DataFrame:
        """A row per universal neuron of a model (the reference), by the study's threshold or another, best first.

        `by`: the excess that decides, the "paper"'s (`is_universal`), or "standardised" (`excess_standardised`: every
        neuron brought to variance 1), which the summary leads with.  Raises `InputError` where the study did not ask
        about the model's matches, or has no such excess.  Columns: docs/python.md.
        """
        return self.view("universal")(self, model, threshold, by)

    @property
    def families(self) -> pl.DataFrame:
        """A row per model and family that some of its neurons have, and how strong that is.

        Columns: `model`, `family`, `neurons`, `variance_reduction_median` (what their best labels explain, on the rows
        that chose them), `above_half` (for how many that is more than half), `tied` (for how many another label
        explains as much), `nearly_tied` (for how many one explains at most a tenth less); null where the family rests
        on no label.  Raises `InputError` where no labels were looked for.
        """
        return self.view("families")(self)

    def best_for(self, label: str, model: str | None = None) -> pl.DataFrame:
        """The neurons, of all models or one, that have a label among their best, the best explained first.

        Of a label of the user's own: all neurons (`own_labels`).  `label` is its name, whatever the case
        (`previous token: NAME` of the previous token), else a part of it (then of all that contain it).

        Columns: those of `labels` (the label's full name; `sign` −1 where the neuron is silent; `rank` 1 where no other
        explains it better), `family`, `is_universal`, `excess_corr`.  Raises `InputError` where no neuron has one.
        """
        return neurons_of_label(self, self.models, label, model)

    def histogram(self, model: str, neuron: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lower edges, upper edges and counts of a (flat) neuron's pre-activations; else `MissingFileError`."""
        from safetensors import SafetensorError, safe_open

        if HISTOGRAMS not in self.manifest["tables"]:
            raise MissingFileError(f"{self.path}: no histograms", wanted="a study with the stage statistics")
        sizes = {name: len(units) for name, units in self.units.items()}
        if not 0 <= neuron < sizes.get(model, 0):
            raise MissingFileError(
                f"{self.path}: no histogram of neuron {neuron} of {model!r}",
                wanted=", ".join(f"{name}: 0 to {size - 1}" for name, size in sizes.items()),
            )
        self.verified(HISTOGRAMS).close()
        with self.readable(HISTOGRAMS):
            try:
                with safe_open(self.path / file_of(HISTOGRAMS), "np") as tensors:
                    low, high = tensors.get_tensor(f"{model}/low"), tensors.get_tensor(f"{model}/high")
                    counts = tensors.get_slice(f"{model}/counts")[:, neuron]
            except (SafetensorError, IndexError) as error:
                raise ValueError(error) from None
        return low, high, counts

    def _read(self, name: str) -> pl.DataFrame:
        table = self.by_present_names(name, super()._read(name))
        if name != "neurons":
            return table
        with self.readable(name):
            named = table["model"].unique().sort().to_list()
        if named != sorted(self.models):
            raise StoreConflictError(
                f"{self.path}: {MANIFEST} and {file_of(name)} are not of one study",
                given=f"models {', '.join(map(str, named))[:200]}",
                wanted=f"models {', '.join(sorted(self.models))[:200]}",
            )
        return table
