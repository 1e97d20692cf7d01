"""How often would a neuron that learned nothing reach this excess?  p-values and false-discovery rates.

The null is a sample of N excesses, those of the neurons of untrained networks: p = (1 + #{null ≥ excess}) / (1 + N), so
no p is 0.  The false-discovery rate is Benjamini and Hochberg's; neurons of one network are not independent, and it
holds where their dependence is positive.
"""

import numpy as np
from jaxtyping import Float


def p_values(excess: Float[np.ndarray, " neurons"], null: Float[np.ndarray, " draws"]) -> Float[np.ndarray, " neurons"]:
    """p of every neuron under a sample of null excesses (living ones); dead neurons: NaN."""
    ordered = np.sort(null[np.isfinite(null)])
    reached = len(ordered) - np.searchsorted(ordered, excess, side="left")
    return np.where(np.isfinite(excess), (1 + reached) / (1 + len(ordered)), np.nan)


def discovery_rates(p: Float[np.ndarray, " neurons"]) -> Float[np.ndarray, " neurons"]:
    """The false-discovery rate at which each neuron is just called (Benjamini–Hochberg over living neurons)."""
    rates, alive = np.full(len(p), np.nan), np.isfinite(p)
    if alive.any():
        from scipy.stats import false_discovery_control  # late: half a second

        rates[alive] = false_discovery_control(p[alive])
    return rates
