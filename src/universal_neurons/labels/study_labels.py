"""The labels of a study: from its configuration and corpus to sources and statistics of the pass."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from universal_neurons.config import Settings
from universal_neurons.errors import LabelError, TokenizerError
from universal_neurons.features import Studied
from universal_neurons.labels.families import LabelEvidence, label_recipes
from universal_neurons.labels.label_set import LabelSet, LabelSource, build_labels, partner_rows
from universal_neurons.labels.own_labels import OwnLabels, read_own_labels
from universal_neurons.labels.syntax import annotate
from universal_neurons.labels.topics import find_topics
from universal_neurons.progress import Reporter
from universal_neurons.statistics import Recipe, Statistics
from universal_neurons.text import Passages, Rows, Vocabulary, read_vocabulary

STRINGLESS = ("subsets", "position")  # groups that need no strings of tokens
SUMS_BYTES = 1 << 31
STATE_BYTES = 8 + 4


class Labelling:
    """What the labels stage of a study works with.

    `notes` say what is left out.  Raises `TokenizerError` where token labels are asked for by name and no model has a
    tokenizer, and what `own_labels.read_own_labels` raises.
    """

    def __init__(
        self,
        config: Settings,
        models: Sequence[Studied],
        tokens: Rows,
        tokenizer: Any,
        functions: Mapping[str, Callable[[str], bool]],
    ) -> None:
        self.config, self.models, self.tokens = config, models, tokens
        self.groups = config.label_groups
        self.notes: list[str] = []
        size = min(model.vocab_size for model in models)
        self.of_spans = isinstance(tokens, Passages)
        if isinstance(tokens, Passages):
            self.vocabulary = Vocabulary(tokens.strings, np.zeros(len(tokens.strings), bool))
        elif tokenizer is not None:
            self.vocabulary = read_vocabulary(tokenizer, size)
        else:
            named = sorted(set(config.labels) - {"default", *STRINGLESS}) + sorted(functions)
            if named:
                raise TokenizerError(f"labels {named[0]}: no tokenizer", wanted="strings of tokens", fix="--tokenizer")
            self.vocabulary = Vocabulary(("",) * size, np.ones(size, bool))
            self.groups = tuple(group for group in self.groups if group in STRINGLESS)
            self.notes.append("no tokenizer: only subsets and positions are labels")
        if "syntax" in self.groups and config.nlp is None:
            self.notes.append("no syntax labels: no spaCy pipeline (pip install 'universal-neurons[nlp]')")
        self.own: OwnLabels = read_own_labels(config.label_files, functions, self.vocabulary, tokens)
        self._labels: LabelSet | None = None
        self.dense = False

    @property
    def labels(self) -> LabelSet:
        """All labels, once they are built."""
        assert self._labels is not None, "labels that nobody has built"
        return self._labels

    def describe(self) -> dict[str, Any]:
        """What the manifest keeps: which labels of one's own there are, and what they say."""
        digest = hashlib.sha256()
        for name, values in (*self.own.tokens.items(), *self.own.spans.items()):
            digest.update(name.encode() + values.tobytes())
        return {"groups": list(self.groups), "own": [*self.own.tokens, *self.own.spans], "sha256": digest.hexdigest()}

    def build(self, reporter: Reporter) -> LabelSet:
        """Find the topics and the syntax (cached), and build all labels."""
        topics, syntax = {}, None
        if "topics" in self.groups and self.config.topics:
            topics = find_topics(self.tokens, self.vocabulary, self.config.topics, self.config.seed)
        if "syntax" in self.groups and self.config.nlp is not None:
            positions = len(self.tokens) * self.tokens.context
            with reporter.tokens("syntax", positions) as meter:
                syntax = annotate(
                    self.tokens,
                    self.vocabulary,
                    self.config.nlp,
                    after_rows=lambda rows: meter(rows * self.tokens.context),
                )
        embedding = None if self.of_spans else self.models[0].network.embedding[: len(self.vocabulary)]
        self._labels = build_labels(
            self.groups, self.tokens, self.vocabulary, embedding=embedding, syntax=syntax, topics=topics, own=self.own
        )
        if not self._labels.all:
            raise LabelError(
                "no label of these groups exists in this text",
                given=", ".join(self.config.labels),
                wanted="at least one",
                fix="give more text, or other --labels",
            )
        groups = self.labels.n_words + self.labels.previous_table.shape[1]
        self.dense = groups * sum(model.n_neurons for model in self.models) * STATE_BYTES > SUMS_BYTES
        return self.labels

    def fingerprint(self) -> torch.Tensor:
        """What all labels say, as bytes."""
        return torch.frombuffer(bytearray.fromhex(self.labels.digest()), dtype=torch.uint8)

    def source(self, heldout: np.ndarray | None = None) -> LabelSource:
        """The labels as a source; with held-out rows, those of the null."""
        seed = self.config.seed
        native = self.models[0].device.type == "cuda"
        return LabelSource(
            self.labels,
            self.tokens,
            dense=self.dense,
            partner=None if heldout is None else partner_rows(heldout, len(self.tokens), seed),
            seed=seed,
            device=self.models[0].device,
            dtype=torch.bfloat16 if native and self.config.gemm_dtype == "bfloat16" else torch.float32,
        )

    def recipes(self, width: int, *, null: bool = False) -> list[Recipe]:
        """Sums of all labels with all neurons."""
        return label_recipes(self.labels, self.models, dense=self.dense, width=width, null=null)

    def evidence(
        self, statistics: Statistics, *, null: bool = False, orientation: Mapping[str, np.ndarray] | None = None
    ) -> LabelEvidence:
        """What the statistics of a pass say of the labels, or of the null's; `orientation` as of `LabelEvidence`."""
        return LabelEvidence(self.labels, statistics, dense=self.dense, null=null, orientation=orientation)
