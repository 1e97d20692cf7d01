"""Mutual pairs and anchors: neurons whose best match is mutual, in a model, and in every other model.

How many there are is told beside how many the other models' rotated layers give (`rotated_pairs`).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from universal_neurons.matching.comparison import Comparison


@dataclass(frozen=True)
class MutualPairs:
    """Whether an asker's neurons and their best matches in each other model are each other's best, and their |ρ|."""

    mutual: Bool[np.ndarray, "models neurons"]
    size: Float[np.ndarray, "models neurons"]

    @property
    def anchors(self) -> Bool[np.ndarray, " neurons"]:
        """Which neurons are mutual in every other model."""
        return np.asarray(self.mutual.all(0))

    def pairs_from(self, level: float) -> int:
        """How many pairs, of all models, are mutual and have at least this |ρ|."""
        return int((self.mutual & (self.size >= level)).sum())

    def anchors_from(self, level: float) -> Bool[np.ndarray, " neurons"]:
        """Which anchors have at least this |ρ| in every other model."""
        return self.anchors & (self.size >= level).all(0)


def mutual_pairs(comparison: Comparison) -> MutualPairs:
    """Those that a comparison found."""
    return MutualPairs(np.stack([m.mutual.numpy() for m in comparison.matches]), np.abs(comparison.best))


def rotated_mutual_pairs(comparison: Comparison) -> MutualPairs | None:
    """Those of the other models' rotated neurons; None where nobody rotated them."""
    if not comparison.rotated:
        return None
    mutual, corr = ([getattr(pairs, name).numpy() for pairs in comparison.rotated] for name in ("mutual", "corr"))
    return MutualPairs(np.stack(mutual), np.abs(np.stack(corr)))
