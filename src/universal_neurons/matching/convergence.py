"""Was the corpus large enough?  The answer so far at log-spaced numbers of tokens, within the same pass."""

import math
from collections.abc import Sequence

import numpy as np
import polars as pl

from universal_neurons.matching.pieces import Findings, Scope

MOST_POINTS = 12
READINGS_SHARE, READINGS_LEAST = 0.05, 1e12  # of the pass's FLOP, and FLOP that nobody waits for
DRAWS = 2  # baseline draws at every point, the last included, so that points are comparable


def reading_points(shards: int, work: float = 0.0, reading: float = 1.0) -> list[int]:
    """After how many shards (or lanes) to read the answer: log-spaced, the last included.

    Of a pass of `work` FLOP, readings of `reading` each may take a twentieth, or a few seconds.
    """
    points = min(MOST_POINTS, 1 + round(2 * np.log2(shards))) if shards > 1 else 1
    points = max(1, min(points, int((READINGS_SHARE * work + READINGS_LEAST) / reading)))
    return sorted({round(point) for point in np.geomspace(1, shards, points)})


def convergence_table(
    findings: Findings, askers: Sequence[str], models: Sequence[str], threshold: float
) -> pl.DataFrame:
    """A row per asker and number of tokens; `same_match` compares with the last point."""
    points = sorted({scope.tokens for scope, _, _ in findings.of if scope.tokens is not None})
    rows = []
    for asker in askers:
        others = [model for model in models if model != asker]
        comparisons = [findings.comparison(Scope(tokens=tokens), asker, others, k=1) for tokens in points]
        for tokens, at in zip(points, comparisons):
            best, excess = at.best.astype(np.float32), at.excess.astype(np.float32)
            alive = np.isfinite(excess)
            same = (at.best_index == comparisons[-1].best_index).mean(0)
            rows.append(
                {
                    "asker": asker,
                    "tokens": tokens,
                    "corr_median": _quantile(best.mean(0)[alive], 0.5),
                    "corr_p90": _quantile(best.mean(0)[alive], 0.9),
                    "corr_p99": _quantile(best.mean(0)[alive], 0.99),
                    "excess_median": _quantile(excess[alive], 0.5),
                    "excess_p99": _quantile(excess[alive], 0.99),
                    "universal": int((excess[alive] > threshold).sum()),
                    "same_match": float(same[alive].mean()) if alive.any() else math.nan,
                }
            )
    return pl.DataFrame(rows).sort("tokens", maintain_order=True)


def _quantile(values: np.ndarray, share: float) -> float:
    return float(np.quantile(values, share)) if len(values) else math.nan
