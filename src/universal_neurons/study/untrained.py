"""The untrained null: is a neuron more universal than one of a network that never learned anything?

1. A draw replaces every model of the study by a network of its class and configuration with weights by its own
   initialiser, under a seed from the study's, the draw's number and the model's name.
2. The passes over the rows that choose are made once more: the same tokens, mask, search and baseline.
3. The null is the excess of every living neuron of the askers' untrained networks, of all draws.

A draw is a store of its own in the study's work folder: a killed study goes on where it was, and ends with the same
bytes; when the study is complete they are gone.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl

from universal_neurons.features import Networks, Studied
from universal_neurons.matching import WHOLE, discovery_rates, p_values
from universal_neurons.models import Model, untrained_model
from universal_neurons.progress import Reporter
from universal_neurons.statistics import seed_of
from universal_neurons.storage import Store, StoreWriter
from universal_neurons.study.inputs import Study
from universal_neurons.study.resolve import settings_of_null
from universal_neurons.study.run_passes import Passes
from universal_neurons.study.tables import excess_columns
from universal_neurons.text import Passages

NULLED = {  # which excess is held against the null, and how its p and FDR are called
    "excess_corr": "untrained",
    "excess_standardised": "untrained_standardised",
}
PLACE = ("asker", "draw", "layer", "neuron")


class UntrainedNull:
    """All draws: `run` them, then ask for the `table`, the neurons' `columns` and what the manifest tells."""

    def __init__(self, study: Study, writer: StoreWriter, reporter: Reporter, checkpoint_seconds: float | None) -> None:
        assert study.config.null_draws is not None
        self.study, self.writer, self.reporter = study, writer, reporter
        self.checkpoint_seconds = checkpoint_seconds
        self.draws = study.config.null_draws
        self.networks: list[dict[str, Any]] = []
        self.table = pl.DataFrame()

    def run(self) -> None:
        """Make every draw that is not made yet."""
        self.table = pl.concat([self._draw(draw) for draw in range(self.draws)])

    def columns(self, asker: str, columns: dict[str, Any]) -> dict[str, Any]:
        """p and false-discovery rate of an asker's neurons, from their own columns."""
        told: dict[str, Any] = {}
        for excess, name in NULLED.items():
            p = p_values(np.asarray(columns[excess]), self._sample(asker)[excess].to_numpy())
            told |= {f"p_{name}": p, f"fdr_{name}": discovery_rates(p)}
        return told

    def _sample(self, asker: str) -> pl.DataFrame:
        return self.table.filter(pl.col("asker") == asker)

    def describe(self) -> dict[str, Any]:
        """What the manifest keeps: the networks with their seeds and digests."""
        return {"kind": self.study.config.null, "draws": self.draws, "networks": self.networks}

    def _draw(self, draw: int) -> pl.DataFrame:
        """The living neurons' excess in one draw."""
        self.reporter.note(f"untrained networks, draw {draw + 1} of {self.draws}")
        networks = {model.name: self._network(model, draw) for model in self.study.reader.networks}
        models = [each.like(networks[each.network.name]) for each in self.study.reader.studied]
        trained = dict(zip([model.name for model in models], self.study.names))
        found = self._store(draw, models).neurons.with_columns(pl.col("model").replace_strict(trained).alias("asker"))
        return found.with_columns(draw=pl.lit(draw, pl.Int32)).select(*PLACE, *NULLED).filter(_alive(NULLED))

    def _network(self, model: Model, draw: int) -> Model:
        seed = seed_of("untrained", self.study.config.seed, draw, model.name)
        network = untrained_model(model, seed)
        told = {"draw": draw, "model": model.name, "seed": seed, "sha256": network.digest}
        self.networks.append(told)
        return network

    def _store(self, draw: int, models: Sequence[Studied]) -> Store:
        """The store of a draw, made where it is not whole yet."""
        text = self.study.tokens
        if isinstance(text, Passages):
            text = text.read_by(dict(zip([model.name for model in models], self.study.names)))
        study = Study(settings_of_null(self.study.config), models, Networks(models), text, None)
        study.lay_out(self.study.layout)
        manifest = study.manifest()
        with StoreWriter(self.writer.prepare() / f"untrained-{draw}") as writer:
            if writer.begin(manifest):
                if not Store(writer.path).missing_files():
                    return Store(writer.path)
                writer.write_manifest({"complete": False} | manifest)
            table, search = self._excess(study, writer)
            facts = {"counted_tokens": study.tokens.counted, "search": search, "timings": {}}
            return writer.finish(manifest | facts | {"tables": {"neurons": writer.write_table("neurons", table)}})

    def _excess(self, study: Study, writer: StoreWriter) -> tuple[pl.DataFrame, dict[str, Any]]:
        """The excess of all neurons (null where nobody asked), and how sure the search is."""
        passes = Passes(study, writer, self.reporter, self.checkpoint_seconds, bare=True)
        passes.run()
        findings, frames = passes.outcome.findings, []
        for model in study.models:
            columns: dict[str, Any] = dict.fromkeys(NULLED)
            if model.name in study.askers:
                others = [name for name in study.names if name != model.name]
                found = findings.comparison(WHOLE, model.name, others)
                columns = excess_columns(found, study.config.threshold)
            places = {"model": [model.name] * model.n_neurons} | model.units.table_columns()
            excesses = {name: columns[name] for name in NULLED}
            frames.append(pl.DataFrame(places | excesses, schema_overrides=dict.fromkeys(NULLED, pl.Float64)))
        return pl.concat(frames), {"search": study.config.search, **findings.doubts(study.asked)}


def _alive(excesses: Iterable[str]) -> pl.Expr:
    """Whether a neuron was asked about and lives."""
    return pl.all_horizontal(pl.col(name).is_finite().fill_null(False) for name in excesses)
