"""Searches of models of random weights, timed stage by stage: what benchmarks/scale.py measures."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from measure import timed
from transformers import GPT2Config, GPT2LMHeadModel

import universal_neurons as un
from universal_neurons.config import Settings
from universal_neurons.features import NeuronSource
from universal_neurons.matching import WHOLE, Evidence, Findings
from universal_neurons.models import Model
from universal_neurons.models.loading import in_one_kernel
from universal_neurons.passes import (
    Pass,
    blocks_of,
    model_pairs,
    provisional_state,
    settle_from,
    signs_of,
)
from universal_neurons.passes.panels import study_recipes
from universal_neurons.statistics import Statistics
from universal_neurons.study import decide
from universal_neurons.study.product_units import with_units
from universal_neurons.study.resolve import resolve
from universal_neurons.study.screen import Screen
from universal_neurons.torch_state import settled_torch

torch.set_grad_enabled(False)
SHAPES = {
    "toy": {"n_layer": 2, "n_embd": 32, "n_inner": 64, "n_head": 2},
    "reduced": {"n_layer": 12, "n_embd": 192, "n_inner": 768, "n_head": 3},
    "small": {"n_layer": 12, "n_embd": 768, "n_inner": 3072, "n_head": 12},
    "medium": {"n_layer": 24, "n_embd": 1024, "n_inner": 4096, "n_head": 16},
}
CONTEXT = 512


def random_model(shape: str, seed: int, device: str, layers: int | None = None) -> Model:
    """A GPT-2 of random weights and GPT-2's vocabulary, in bfloat16 on a GPU."""
    torch.manual_seed(seed)
    shape_of = SHAPES[shape] | ({"n_layer": layers} if layers else {})
    with torch.device(device):
        network = GPT2LMHeadModel(GPT2Config(n_positions=CONTEXT, initializer_range=0.1, **shape_of))
    network = network.to(torch.bfloat16 if device.startswith("cuda") else torch.float32).eval().requires_grad_(False)
    in_one_kernel(network)  # as `load_model` does
    name = f"{shape}-{seed}"
    return Model(network, name, digest=name)


def random_tokens(count: int) -> un.TokenDataset:
    """Rows of random tokens; positions 0 are not counted."""
    draw = np.random.default_rng(0)
    ids = (draw.integers(1, 50_257, CONTEXT - 1) for _ in range(count // CONTEXT))
    return un.TokenDataset.from_pieces((("", row) for row in ids), context=CONTEXT, bos=0, masked={0})


@dataclass
class Run:
    """One search from beginning to end, its stages timed."""

    models: Sequence[Model]
    tokens: un.TokenDataset
    config: Settings
    compensated: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    def stage(self, name: str, work: Callable[[], Any]) -> Any:
        """Do and time a stage."""
        seconds, result = timed(work)
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        print(f"{self.config.search}, {name}: {seconds:.2f} s", file=sys.stderr, flush=True)
        return result

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    @settled_torch()
    def go(self) -> Any:
        """Pass, answer and, of a screened search, the second pass."""
        config = self.config
        models = self.models
        names = [model.name for model in models]
        shards = self.tokens.shards(np.arange(len(self.tokens)))
        asked = [(names[0], other) for other in names[1:]]
        sources = [NeuronSource(model, config.gemm_dtype) for model in models]
        pairs = model_pairs(models, "reference")
        recipes = study_recipes(models, pairs, config, compensated=self.compensated)
        run = Pass(sources, recipes, signs=signs_of(config))
        read = partial(run.run, self.tokens, shards, batch_tokens=config.batch_tokens)
        self.stage("pass", read)
        findings = Findings(config)
        study = SimpleNamespace(models=models, asked=asked, names=names, config=config, n_groups=1, subsets=[])
        screen = Screen(study, findings)
        evidence = Evidence(Statistics(run.accumulators), [0], blocks_of(config))
        z = screen.z if config.search == "screened" else None
        self.stage("answer", lambda: findings.take_in(WHOLE, evidence, asked, draws=1, z=z))
        if z is not None:
            again = [NeuronSource(model, config.gemm_dtype) for model in models]
            settle_from(provisional_state(sources), again)
            second = self.stage("candidates", lambda: Pass(again, screen.recipes()))
            self.stage("second pass", partial(second.run, self.tokens, shards, batch_tokens=config.batch_tokens))
            self.stage("candidates", lambda: screen.settle(second.accumulators, run.accumulators))
        self.doubts = findings.doubts(asked)
        return self.stage("answer", lambda: findings.comparison(WHOLE, names[0], names[1:]))


def settings_of(models: Sequence[Model], search: str, **settings: Any) -> Settings:
    """The settings of one search of these models."""
    device = str(models[0].device)
    study = un.StudyConfig(search=search, device=device, stages=("universality",), **settings)
    return with_units(study, resolve(decide(study, len(models)), models), models)


@settled_torch()
def forwards(models: Sequence[Model], tokens: un.TokenDataset, batch_tokens: int) -> None:
    """Run every model over all rows and keep nothing."""
    rows = batch_tokens // CONTEXT
    for start in range(0, len(tokens), rows):
        ids = torch.from_numpy(tokens.ids(np.arange(start, min(start + rows, len(tokens)))))
        for model in models:
            model.forward(ids)
