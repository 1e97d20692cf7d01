"""A `StudyConfig` to a store, in order: models, tokens, weights, labels, the pass, comparison, the detail pass, tables.

Interrupted and started again, a study goes on from the last checkpoint of its pass and ends with the same bytes.
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from universal_neurons import __version__
from universal_neurons.config import StudyConfig
from universal_neurons.errors import ConfigError, TextError
from universal_neurons.estimate import require_memory
from universal_neurons.labelling import Labelling
from universal_neurons.models import Model
from universal_neurons.plan import (
    IN_MEMORY,
    default_out,
    find_tokenizer,
    from_objects,
    identity,
    load_models,
    require_kin,
    resolve,
    with_context,
)
from universal_neurons.progress import Reporter, clock
from universal_neurons.stages import Stages
from universal_neurons.store import Store, StoreWriter, disk_errors
from universal_neurons.tokens import TokenDataset

FINGERPRINTED = ("torch", "transformers", "tokenizers", "polars", "numpy", "scipy", "scikit-learn")


def run_study(
    config: StudyConfig,
    *,
    models: Sequence[Model] | None = None,
    tokens: TokenDataset | None = None,
    labels: Mapping[str, Callable[[str], bool]] | None = None,
    progress: bool = True,
    checkpoint_seconds: float | None = None,
    reporter: Reporter | None = None,
) -> Store:
    """Run (or resume) a study and return its store.

    `models` and `tokens` may be given as objects in place of what `config` names; `labels` adds labels of your own, by
    name, as functions of a token's string (with its leading space).  Checkpoints are written at most
    every `checkpoint_seconds`; by default so that they cost about 2 % of the pass.  Raises an `InputError` for what
    cannot be studied (nothing is written) and a `StudyError` for what went wrong on the way (run it again to resume).
    """
    reporter = reporter or Reporter(quiet=not progress)
    config = resolve(config, None if models is None else len(models))
    if config.threads:
        torch.set_num_threads(config.threads)
    if labels and "labels" not in config.stages:
        raise ConfigError("labels are given, but not looked for", wanted="the stage labels", fix="add it to stages")
    with reporter.stage("models"):
        loaded = list(models) if models is not None else load_models(config)
        if models is not None:
            config = from_objects(config, loaded)
        digest = require_kin(loaded, config)
    if tokens is not None:
        config = config.model_copy(update={"data": IN_MEMORY, "context": tokens.context})
    if config.reads_tokens:
        config = with_context(config, loaded)
    reporter.note(f"{', '.join(m.name for m in loaded)}: {', '.join(config.stages)}; {config.device}, {config.dtype}")
    with StoreWriter(config.out or default_out(config, loaded)) as writer:
        writer.claim(identity(config, loaded))
        packed = tokens
        with reporter.stage("tokens"):
            if packed is None and config.reads_tokens:
                packed = _tokens(config, loaded, writer)
            study = Study(config, loaded, packed, digest, labels or {})
        if packed is not None:
            require_memory(config, loaded, groups=study.n_groups)
        if writer.begin(study.manifest()):
            reporter.note(f"{writer.path} is complete already")
            return Store(writer.path)
        for text in (*([] if packed is None else [repr(packed), *packed.notes]), *study.notes):
            reporter.note(text)
        stages = Stages(study, writer, reporter, checkpoint_seconds)
        tables = stages.run()
        manifest = study.manifest() | {
            "counted_tokens": stages.counted,
            "tables": tables,
            "timings": {name: round(seconds, 3) for name, seconds in reporter.timings.items()},
        }
        store = writer.finish(manifest)
        reporter.note("all stages: " + ", ".join(f"{name} {clock(s)}" for name, s in reporter.timings.items()))
        return store


def _tokens(config: StudyConfig, models: Sequence[Model], writer: StoreWriter) -> TokenDataset:
    assert config.context is not None
    with disk_errors(writer.path):
        return TokenDataset.load(
            config, find_tokenizer(config, models), context=config.context, folder=writer.prepare()
        )


class Study:
    """A study whose inputs are all there; without tokens, one of weights alone."""

    def __init__(
        self,
        config: StudyConfig,
        models: Sequence[Model],
        tokens: TokenDataset | None,
        digest: str | None,
        functions: Mapping[str, Callable[[str], bool]],
    ) -> None:
        self.config, self.models, self.text, self.tokenizer_digest = config, models, tokens, digest
        self.names = [model.name for model in models]
        asked = self.names if config.pairs == "all" else self.names[:1]
        self.askers = asked if "universality" in config.stages else []
        self.notes: list[str] = []
        self.labelling: Labelling | None = None
        if tokens is None:
            return
        for model in models:
            tokens.require_vocabulary(model.vocab_size, model.name)
        self._require_mask()
        chosen, self.stretches = tokens.split(config.heldout_tokens)
        self.subsets, self.notes = self._subsets(chosen)
        self.n_groups = len(self.subsets) + (len(self.subsets) < len(tokens.subset_names))
        self.shards = tokens.shards(chosen, self.subsets)
        assert all(shard.group < self.n_groups for shard in self.shards)
        if "labels" in config.stages:
            tokenizer = find_tokenizer(config, models, required=False)
            self.labelling = Labelling(config, models, tokens, tokenizer, functions)
            self.notes += self.labelling.notes

    @property
    def tokens(self) -> TokenDataset:
        """The text; a study of weights alone has none and does not ask."""
        assert self.text is not None
        return self.text

    def _require_mask(self) -> None:
        smallest = min(model.vocab_size for model in self.models)
        outside = [rule for rule in self.config.mask if isinstance(rule, int) and rule >= smallest]
        if outside:
            raise ConfigError(f"mask names token {outside[0]}", wanted=f"an id < {smallest}", fix="remove it")

    def _subsets(self, chosen: np.ndarray) -> tuple[list[str], list[str]]:
        """Subsets to study apart; one whose rows are all held out has nothing to choose from."""
        names = self.tokens.groups(self.config.subset)
        there = {self.tokens.subset_names[n] for n in set(self.tokens.subsets[chosen].tolist())}
        without = [name for name in names if name not in there]
        if without and tuple(self.config.subset) != ("all",):
            raise TextError(
                f"subset {without[0]!r} has no rows besides the held-out ones",
                wanted="a subset of more rows",
                fix="give more text of it, or leave it out",
            )
        notes = [f"subset {name}: too small to be studied apart" for name in without]
        return [name for name in names if name in there], notes

    def manifest(self) -> dict[str, Any]:
        """The study's identity and the environment it runs in."""
        return {
            **identity(self.config, self.models),
            "labels": None if self.labelling is None else self.labelling.describe(),
            "tokens": None
            if self.text is None
            else {
                "fingerprint": self.tokens.fingerprint,
                "tokenizer": self.tokenizer_digest,
                "rows": len(self.tokens),
                "tokens": self.tokens.n_tokens,
                "heldout_rows": int(sum(map(len, self.stretches))),
                "subsets": list(self.tokens.subset_names),
            },
            "environment": {
                "universal_neurons": __version__,
                **{name: version(name) for name in (*FINGERPRINTED, *(["spacy"] if self.config.nlp else []))},
                "python": platform.python_version(),
                "machine": platform.machine(),
                "device": torch.cuda.get_device_name(self.config.device)
                if self.config.device.startswith("cuda")
                else "cpu",
                "threads": torch.get_num_threads(),
            },
        }
