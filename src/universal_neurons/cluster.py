"""The lanes of a pass on a Ray cluster: the same bits whatever the number of workers, and whatever dies.

1. A lane is an even stretch of the pass's shards, in order.  A worker adds them up one by one; the lane's state holds a
   ledger of the shards it counted, and both are written together to the lane's folder, so that a shard counts once.
2. The driver hands lanes to workers (actors) and asks each to go on for a while.  A worker or node that dies is
   replaced, and its lane goes on from its last generation on any other.
3. When all lanes are done the workers end, and the driver merges the lanes in order, as a pass on one machine does.

Two workers may hold one lane, where one was thought dead: they write the same bits, each whole or not at all.
"""

import contextlib
import copy
import hashlib
import math
import os
import shutil
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from universal_neurons import __version__
from universal_neurons.accumulators import Recipe
from universal_neurons.config import StudyConfig
from universal_neurons.errors import (
    ClusterAddressError,
    ClusterError,
    ConfigError,
    MissingExtraError,
    StoreConflictError,
    UniversalNeuronsError,
)
from universal_neurons.generations import Generations, Pace
from universal_neurons.labels import LabelSource
from universal_neurons.models import Model, load_model
from universal_neurons.plan import IN_MEMORY
from universal_neurons.sketch import Signs
from universal_neurons.stream import Annotations, NeuronSource, Pass, provisional_state, restore, settle_from, state_of
from universal_neurons.tokens import Shard, TokenDataset

STEP_SECONDS = 2.0  # a worker answers so often
PATIENCE_SECONDS = 300.0  # without a single worker
MOST_LOSSES = 5  # of workers in a row, without a new generation of their lane
CONNECT_SECONDS = 10.0


@dataclass
class LaneJob:
    """What a worker needs to add up any lane of a pass: plain data, nothing on a device.

    `models` are (name, place, digest); `ends` are the numbers of shards at which lanes end; `folder` is where the lanes'
    generations go, on storage that all nodes see.
    """

    config: StudyConfig
    models: list[tuple[str, str, str]]
    pre: bool
    rounding: str
    provisional: dict[str, Tensor]
    recipes: list[Recipe]
    annotations: list[Annotations]
    signs: Signs | None
    tokens: TokenDataset
    shards: list[Shard]
    ends: list[int]
    pace: Pace
    folder: Path

    @classmethod
    def of(
        cls, run: Pass, config: StudyConfig, tokens: TokenDataset, shards: Sequence[Shard], pace: Pace, folder: Path
    ) -> "LaneJob":
        """The job of a pass whose provisional means are settled; its lanes are kept in a folder of its own there."""
        if isinstance(tokens.rows, Path):
            tokens.rows = tokens.rows.resolve()
        sources = list(run.sources.values())
        named = dict(zip((source.model.digest for source in sources), sources))
        assert len(named) <= len(sources)
        job = cls(
            config=config.model_copy(update={"device": config.device.split(":")[0]}),
            models=[(source.model.name, place_of(source.model, config), source.model.digest) for source in sources],
            pre=any(source.pre for source in sources),
            rounding=sources[0].rounding,
            provisional={name: tensor.cpu() for name, tensor in provisional_state(sources).items()},
            recipes=run.recipes,
            annotations=[_on(annotation, "cpu") for annotation in run.annotations],
            signs=run.signs,
            tokens=tokens,
            shards=list(shards),
            ends=run.lanes or [len(shards)],
            pace=pace,
            folder=folder,
        )
        job.folder = (folder / job.identity).resolve()
        return job
