"""Diff: what `run_diff` leaves, and the words in its tables."""

from typing import ClassVar

import polars as pl

from universal_neurons.config import DIFF_FILE
from universal_neurons.diff.settings import DiffConfig, make_diff_config
from universal_neurons.storage import Facts, FinishedDiff, Results, Store

STUDY = "study"  # the folder of the study of both models
FIRST, SECOND = "first", "second"  # the text that is studied, and the second one
CHANGED, OTHERS = "changed", "others"  # units, in the tables of effects


class Diff(Results):
    """A finished diff: its tables as polars frames, the study of both models, and the manifest.

    Raises `MissingFileError` where there is none, and `StoreConflictError` where it is not finished.
    """

    FILE = DIFF_FILE
    WHAT = "diff"
    COMMAND = "uneurons diff"
    FACTS: ClassVar[type[Facts]] = FinishedDiff

    @property
    def config(self) -> DiffConfig:
        """The configuration that made it."""
        return make_diff_config(self.manifest["config"], str(self.path / DIFF_FILE))

    @property
    def models(self) -> list[str]:
        """Names of the base and its fine-tune."""
        return [model["name"] for model in self.manifest["models"]][:2]

    @property
    def nulls(self) -> list[str]:
        """Names of the other fine-tunes."""
        return [model["name"] for model in self.manifest["models"]][2:]

    @property
    def changes(self) -> pl.DataFrame:
        """A row per unit: what changed, of which kind, and how sure and how unusual that is."""
        return self.table("changes")

    @property
    def study(self) -> Store:
        """The study of both models."""
        return Store(self.path / STUDY, verify=self.verify)
