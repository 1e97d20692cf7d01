"""A study whose inputs are all there: models that belong together, text cut into shards, labels of one's own read."""

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from universal_neurons import __version__
from universal_neurons.config import Settings
from universal_neurons.errors import ConfigError, TextError
from universal_neurons.features import Reader
from universal_neurons.labels import Labelling
from universal_neurons.models import Described, find_tokenizer, require_initialiser
from universal_neurons.passes import Layout, Panel
from universal_neurons.processor import onednn_is_faster
from universal_neurons.roles import require_roles
from universal_neurons.statistics import Signs
from universal_neurons.storage import sum_rows
from universal_neurons.study.memory import passes_of
from universal_neurons.study.resolve import identity
from universal_neurons.text import Passages, Rows, Shard, TokenCounts, TokenDataset, frequencies_of

FEWEST_SUMS = 16
FINGERPRINTED = ("torch", "transformers", "tokenizers", "polars", "numpy", "scipy", "scikit-learn")


class Study:
    """A study whose inputs are all there; without tokens, one of weights alone."""

    def __init__(
        self,
        config: Settings,
        models: Sequence[Described],
        reader: Reader,
        tokens: Rows | None,
        digest: str | None,
        functions: Mapping[str, Callable[[str], bool]] | None = None,
        verified: Mapping[str, Any] | None = None,
    ) -> None:
        self.verified = verified
        self.products: dict[str, Any] | None = None  # how exact they are, where not in float32
        self.config, self.models, self.reader = config, models, reader
        self.text, self.tokenizer_digest = tokens, digest
        self.names = [model.name for model in models]
        self.gated = frozenset(model.name for model in models if model.gated)
        asked = self.names if config.pairs == "all" else self.names[:1]
        self.askers = asked if "universality" in config.stages else []
        self.asked = [(asker, other) for asker in self.askers for other in self.names if other != asker]
        self.lay_out(Layout())
        self.notes: list[str] = []
        self.shards: list[Shard] = []
        self.stretches: list[np.ndarray] = []
        self.subsets: list[str] = []
        self.n_groups = 1
        self.labelling: Labelling | None = None
        self.trained_on: TokenCounts | None = None
        if tokens is None:
            return
        if config.subset and not self.askers:
            raise ConfigError("--subset is for universality", wanted="the stage universality, or no --subset")
        for model in models:
            tokens.require_vocabulary(model.vocab_size, model.name)
        self._require_mask()
        chosen, self.stretches = tokens.split(config.heldout_tokens)
        self.subsets, self.notes = self._subsets(chosen)
        if isinstance(tokens, Passages):
            self.notes.append("tokenizers differ: no roles and no logit effects, which are of each model's own tokens")
        elif not all(model.of_neurons for model in models):
            self.notes.append("not all units are neurons: no roles")
        self.n_groups = len(self.subsets) + (len(self.subsets) < len(tokens.subset_names))
        self.shards = tokens.shards(chosen, self.subsets)
        assert all(shard.group < self.n_groups for shard in self.shards)
        self._require_sums(tokens.context)
        for network in reader.networks if config.null else ():
            require_initialiser(network)
        if "roles" in config.stages:
            assert isinstance(tokens, TokenDataset)
            require_roles(config, reader.networks, tokens, np.concatenate(self.stretches))
            self.trained_on = frequencies_of(config, min(model.vocab_size for model in models))
        if "labels" in config.stages:
            tokenizer = find_tokenizer(config, models, required=False)
            self.labelling = Labelling(config, reader.studied, tokens, tokenizer, functions or {})
            self.notes += self.labelling.notes

    def _require_sums(self, context: int) -> None:
        """Refuse a sketch of so few sums that any two neurons correlate in them."""
        if self.config.search != "sketch":
            return
        _, sums = sum_rows(self.shards, Signs(self.config.group_size, self.config.seed), context)
        if sums < FEWEST_SUMS:
            raise ConfigError(
                "too few sums for a sketch: any two neurons correlate in them",
                given=f"{sums:,}, each of at most {self.config.group_size:,} positions (--group-size)",
                wanted=f"{FEWEST_SUMS} or more: the standard error of a small ρ is 1/√sums",
                fix="a smaller --group-size, or more text",
            )

    def lay_out(self, layout: Layout) -> None:
        """Settle how the co-moments are made."""
        self.layout = layout
        self.panels: list[list[Panel]] = passes_of(self.config, self.models, layout)

    @property
    def tokens(self) -> Rows:
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
        chosen_from = {self.tokens.subset_names[n] for n in set(self.tokens.subsets[chosen].tolist())}
        without = [name for name in names if name not in chosen_from]
        if without and tuple(self.config.subset) != ("all",):
            raise TextError(
                f"subset {without[0]!r} has no rows besides the held-out ones",
                wanted="a subset of more rows",
                fix="give more text of it, or leave it out",
            )
        notes = [f"subset {name}: too small to be studied apart" for name in without]
        return [name for name in names if name in chosen_from], notes

    def _of_sinks(self) -> dict[str, Any]:
        """Where sinks are masked: by which factor they are, how many positions, and which, as a hash."""
        bits = self.tokens.left_out
        if bits is None:
            return {}
        of_positions = hashlib.sha256(bits.tobytes()).hexdigest()
        count = int(np.unpackbits(bits).sum())
        return {"sinks": {"factor": self.config.sink_factor, "left_out": count, "sha256": of_positions}}

    def _of_spans(self) -> dict[str, Any]:
        """Where positions are spans: the digests of the tokenizers that they are of."""
        if not isinstance(self.text, Passages):
            return {}
        digests = [reading.digest for reading in self.text.readings]
        return {"tokenizers": {model: digests[place] for model, place in self.text.tokenizers.items()}}

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
                **self._of_spans(),
                **self._of_sinks(),
                "rows": len(self.tokens),
                "tokens": self.tokens.n_tokens,
                "heldout_rows": int(sum(map(len, self.stretches))),
                "subsets": list(self.tokens.subset_names),
            },
            **({"frequencies": self.trained_on.describe()} if self.trained_on else {}),
            **({"dictionaries": self.verified} if self.verified else {}),
            **({"products": self.products} if self.products else {}),
            "layout": asdict(self.layout),
            "environment": {
                "universal_neurons": __version__,
                **{name: version(name) for name in (*FINGERPRINTED, *(["spacy"] if self.config.nlp else []))},
                "python": platform.python_version(),
                "machine": platform.machine(),
                "device": torch.cuda.get_device_name(self.config.device)
                if self.config.device.startswith("cuda")
                else "cpu",
                "float32_products": "oneDNN" if self.config.device == "cpu" and onednn_is_faster() else "torch",
                "threads": torch.get_num_threads(),
            },
        }
