"""What the neurons of a study do: the roles of every model's, and whether matched neurons do the same."""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import torch

from universal_neurons.config import Settings
from universal_neurons.errors import TextError
from universal_neurons.interventions import Readout
from universal_neurons.matching import singled_out
from universal_neurons.models import Model
from universal_neurons.progress import Reporter
from universal_neurons.roles.functional import concerned, counterparts, functional_tables
from universal_neurons.roles.latent_effects import why_no_effects
from universal_neurons.roles.one_model import OneModel, Sample
from universal_neurons.roles.side_by_side import models_at_once, side_by_side
from universal_neurons.text import TokenCounts, TokenDataset, Vocabulary, read_vocabulary


class Roles:
    """The roles of a study's neurons.

    `neurons` and `matches` are the study's tables (no matches where universality was not asked about), `rows` the
    held-out rows, `token_sets` the user's own sets of tokens, `trained_on` the token counts of what the models were
    trained on, where these are known.
    """

    def __init__(
        self,
        config: Settings,
        models: Sequence[Model],
        tokens: TokenDataset,
        rows: np.ndarray,
        vocabulary: Vocabulary,
        neurons: pl.DataFrame,
        matches: pl.DataFrame | None,
        token_sets: Mapping[str, np.ndarray] | None = None,
        trained_on: TokenCounts | None = None,
    ) -> None:
        self.config = config
        self.models = list(models)
        self.neurons = neurons
        embedding = self.models[0].embedding
        rows = sample_rows(config, tokens, rows)
        self.sample = Sample(tokens, rows, vocabulary, embedding, token_sets or {}, trained_on)
        self.chosen, self.chosen_as = self._chosen() if matches is not None else ([], "")
        self.pairs: pl.DataFrame | None = None
        if matches is not None:
            units = {model.name: model.units for model in self.models}
            dead = {model.name: self._neurons_of(model)["dead"].to_numpy() for model in self.models}
            tried = self.chosen[: config.roles.ablated]
            self.pairs = counterparts(matches, self.models[0].name, tried, units, dead, config.seed)

    def _neurons_of(self, model: Model) -> pl.DataFrame:
        return self.neurons.filter(pl.col("model") == model.name).sort("layer", "neuron")

    def _chosen(self) -> tuple[list[int], str]:
        """The reference's universal neurons (flat, best first), or the top 1 % by excess where none is."""
        chosen, universal = singled_out(self._neurons_of(self.models[0]).with_row_index("flat"))
        return chosen["flat"].to_list(), "universal" if universal else "top 1 % by excess"

    def run(self, reporter: Reporter) -> dict[str, pl.DataFrame]:
        """All tables, by name; `neurons` among them, with the columns `roles` and `null_fraction`."""
        by_model = {model.name: self._one_model(model) for model in self.models}
        with reporter.stage("roles"):
            tables = self._tried_out([by_model[model.name] for model in self._with_roles(reporter)], reporter)
        pairs = self.pairs
        if pairs is not None and len(pairs) and all(one.effects for one in by_model.values()):
            tables |= functional_tables(
                self.models,
                pairs,
                {name: one.changes for name, one in by_model.items()},
                by_model[self.models[0].name].row_of,
                {name: one.effects for name, one in by_model.items()},
                {name: one.roles for name, one in by_model.items()},
                {name: one.orientation for name, one in by_model.items()},
            )
        if "labels" not in self.config.stages and any(self.sample.vocabulary.strings):
            tables["vocabulary"] = self.sample.vocabulary.table(self.sample.counts[:, None])
        tables["neurons"] = self._columns(by_model)
        return tables

    def _with_roles(self, reporter: Reporter) -> list[Model]:
        """The models whose roles can be told; it is said of the others why not, and of heads that are not read."""
        told = []
        for model in self.models:
            if why := why_no_roles(model):
                reporter.note(f"{model.name}: no roles, {why}")
                continue
            if model.architecture.attention is None:
                reporter.note(f"{model.name}: no attention roles, {model.architecture.name}'s heads are not read here")
            told.append(model)
        return told

    def _tried_out(self, ones: Sequence[OneModel], reporter: Reporter) -> dict[str, pl.DataFrame]:
        """The tables of some models, by name: small models are tried out one beside the other."""
        if not ones:
            return {}
        at_once = models_at_once([one.model for one in ones], self.config.device)
        read = self.sample.positions
        whose = ones[0].model.name if len(ones) == 1 else f"{len(ones)} models"
        with reporter.tokens(f"roles of {whose}", read * len(ones)) as meter:
            tasks = [partial(one.run, batch_tokens=self.config.batch_tokens) for one in ones]
            of_each = side_by_side(tasks, at_once, meter)
        parts: dict[str, list[pl.DataFrame]] = {}
        for name, table in (item for tables in of_each for item in tables.items()):
            parts.setdefault(name, []).append(table)
        return {name: pl.concat(frames, how="diagonal_relaxed") for name, frames in parts.items()}

    def _one_model(self, model: Model) -> OneModel:
        first = model is self.models[0]
        return OneModel(
            in_float32(model),
            self._neurons_of(model),
            self.sample,
            self.config.roles,
            seed=self.config.seed,
            concerned=() if self.pairs is None else concerned(self.pairs, None if first else model.name),
            chosen=self.chosen if first else None,
            chosen_as=self.chosen_as,
        )

    def _columns(self, by_model: Mapping[str, OneModel]) -> pl.DataFrame:
        """The neuron table with the columns of this stage."""
        frames = []
        for model in self.models:
            one = by_model[model.name]
            roles = pl.Series(one.roles, dtype=pl.List(pl.String))
            frames.append(self._neurons_of(model).with_columns(null_fraction=pl.Series(one.null_fraction), roles=roles))
        return pl.concat(frames)


def sample_rows(config: Settings, tokens: TokenDataset, heldout: np.ndarray) -> np.ndarray:
    """The held-out rows that roles are tried on, evenly spread; `TextError` where no two tokens in a row count."""
    most = max(1, config.roles.tokens // tokens.context)
    spread = np.unique(np.linspace(0, len(heldout) - 1, min(most, len(heldout))).astype(int))
    rows = np.sort(heldout)[spread]
    counted = tokens.mask(rows)
    if not (counted[:, :-1] & counted[:, 1:]).any():
        raise TextError(
            "no two counted tokens in a row to try roles on",
            given=f"{len(rows)} held-out rows of {tokens.context} tokens",
            wanted="more text, or fewer masked tokens",
            fix="leave out the stage roles, or raise `tokens` of the section roles",
        )
    return rows


def require_roles(config: Settings, models: Sequence[Model], tokens: TokenDataset, heldout: np.ndarray) -> None:
    """Refuse before anything is computed what could not be tried out: no text for it, or logits read in another way."""
    sample_rows(config, tokens, heldout)
    for model in models:
        if not why_no_roles(model):
            Readout(model)


def why_no_roles(model: Model) -> str:
    """Why roles cannot be told, empty where they can: logits that neurons change in a way that can be followed."""
    if why := why_no_effects(model):
        return why
    if not model.architecture.causal:
        return "it is an encoder"
    return "" if model.logit_cap is None else "its logits are capped by a tanh"


def in_float32(model: Model) -> Model:
    """The model, or a copy in float32: one neuron's effect is lost in the rounding of a residual stream in bfloat16."""
    if model.dtype == torch.float32:
        return model
    return Model(
        copy.deepcopy(model.hf).float(),
        model.name,
        tokenizer=model.tokenizer,
        digest=model.digest,
        architecture=model.architecture,
    )


def vocabulary_of(tokenizer: Any, models: Sequence[Model]) -> Vocabulary:
    """The strings of the models' tokens; empty ones where there is no tokenizer."""
    size = min(model.vocab_size for model in models)
    return read_vocabulary(tokenizer, size) if tokenizer is not None else Vocabulary(("",) * size, np.ones(size, bool))
