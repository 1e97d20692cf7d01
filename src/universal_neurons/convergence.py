"""Was the corpus large enough?  The answer so far at log-spaced numbers of tokens, within the same pass."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import torch
from torch import Tensor

from universal_neurons.compare import Comparison, Evidence, compare, groups_of
from universal_neurons.config import StudyConfig
from universal_neurons.stream import Pass

MOST_POINTS = 12
DRAWS = 2  # baseline draws at every point, the last included, so that points are comparable


def snapshot_points(shards: int) -> list[int]:
    """After how many shards to look: log-spaced, the last included."""
    points = min(MOST_POINTS, 1 + round(2 * np.log2(shards))) if shards > 1 else 1
    return sorted({round(point) for point in np.geomspace(1, shards, points)})


@dataclass
class Snapshots:
    """Best correlations, where they were found, and the excess, after some numbers of tokens.

    `taken` maps "tokens/asker" to tensors; it is part of the pass's checkpoints.
    """

    points: list[int]
    taken: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def look(self, run: Pass, askers: Sequence[str], models: Sequence[str], config: StudyConfig) -> None:
        """Take a snapshot if one is due after this shard."""
        if run.next_shard not in self.points:
            return
        seen = groups_of(run.accumulators)
        if not seen:
            return
        evidence = Evidence(run.accumulators, seen)
        for asker in askers:
            others = [model for model in models if model != asker]
            found = compare(evidence, asker, others, config, draws=min(DRAWS, config.n_draws), k=1)
            self.taken[f"{evidence.count(asker)}/{asker}"] = _kept(found)

    def state(self) -> dict[str, Tensor]:
        """As plain tensors."""
        return {f"snapshot/{key}/{name}": t for key, tensors in self.taken.items() for name, t in tensors.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over a state written by `state`."""
        for key, tensor in state.items():
            if key.startswith("snapshot/"):
                _, tokens, asker_and_name = key.split("/", 2)
                asker, _, name = asker_and_name.rpartition("/")
                self.taken.setdefault(f"{tokens}/{asker}", {})[name] = tensor

    def table(self, threshold: float) -> pl.DataFrame:
        """A row per asker and number of tokens; `same_match` compares with the last snapshot."""
        rows = []
        keys = sorted(self.taken, key=lambda key: int(key.split("/")[0]))
        last = {key.split("/", 1)[1]: self.taken[key] for key in keys}
        for key in keys:
            tokens, asker = key.split("/", 1)
            best, index, excess = (self.taken[key][name].numpy() for name in ("best", "index", "excess"))
            alive = np.isfinite(excess)
            same = (index == last[asker]["index"].numpy()).mean(0)
            rows.append(
                {
                    "asker": asker,
                    "tokens": int(tokens),
                    "corr_median": _quantile(best.mean(0)[alive], 0.5),
                    "corr_p90": _quantile(best.mean(0)[alive], 0.9),
                    "corr_p99": _quantile(best.mean(0)[alive], 0.99),
                    "excess_median": _quantile(excess[alive], 0.5),
                    "excess_p99": _quantile(excess[alive], 0.99),
                    "universal": int((excess[alive] > threshold).sum()),
                    "same_match": float(same[alive].mean()) if alive.any() else math.nan,
                }
            )
        return pl.DataFrame(rows)


def _quantile(values: np.ndarray, share: float) -> float:
    return float(np.quantile(values, share)) if len(values) else math.nan


def _kept(found: Comparison) -> dict[str, Tensor]:
    return {
        "best": torch.from_numpy(found.best).float(),
        "index": torch.from_numpy(found.best_index).int(),
        "excess": torch.from_numpy(found.excess).float(),
    }
