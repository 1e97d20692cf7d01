"""Dynamics: what `run_dynamics` leaves."""

from functools import cached_property
from pathlib import Path
from typing import ClassVar

import polars as pl

from universal_neurons.config import DYNAMICS_FILE, DynamicsConfig
from universal_neurons.config_reading import make_dynamics_config
from universal_neurons.storage import Facts, FinishedDynamics, Results, Store


class Dynamics(Results):
    """Finished training dynamics: their tables as polars frames, the study of every checkpoint, and the manifest.

    Raises `MissingFileError` where there are none, and `StoreConflictError` where they are not finished.
    """

    FILE = DYNAMICS_FILE
    WHAT = "training dynamics"
    COMMAND = "uneurons dynamics"
    FACTS: ClassVar[type[Facts]] = FinishedDynamics

    @property
    def config(self) -> DynamicsConfig:
        """The configuration that made them."""
        return make_dynamics_config(self.manifest["config"], str(self.path / DYNAMICS_FILE))

    @property
    def seeds(self) -> list[str]:
        """Names of the seeds, the reference first."""
        return list(self.manifest["seeds"])

    @property
    def names(self) -> list[str]:
        """Names of the checkpoints, in the order of training."""
        return [checkpoint["name"] for checkpoint in self.manifest["checkpoints"]]

    @property
    def steps(self) -> list[int | None]:
        """Their steps; None where nobody says."""
        return [checkpoint["step"] for checkpoint in self.manifest["checkpoints"]]

    @property
    def checkpoints(self) -> pl.DataFrame:
        """A row per checkpoint: the universal set, persistence, partners."""
        return self.table("checkpoints")

    @cached_property
    def neurons(self) -> pl.DataFrame:
        """A row per checkpoint and neuron of every seed."""
        return self.table("neurons")

    @property
    def emergence(self) -> pl.DataFrame:
        """A row per neuron of the reference: from when on it is universal."""
        return self.table("emergence")

    @property
    def families(self) -> pl.DataFrame:
        """A row per checkpoint, seed and family."""
        return self.table("families")

    def study(self, checkpoint: str) -> Store:
        """The study of one checkpoint, by its name."""
        return Store(step_folder(self.path, checkpoint), verify=self.verify)


def step_folder(path: Path, checkpoint: str) -> Path:
    """Where the study of a checkpoint is."""
    return path / "steps" / checkpoint
