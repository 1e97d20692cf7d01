"""What a correlation would be by chance: rotated, Gaussian and permutation baselines; excess and error rate.

The rotated baseline needs no second pass.  With R a random orthogonal matrix and V_ℓ the activations of layer ℓ of
the other model, Cov(A, R V_ℓ) = Cov(A, V_ℓ) Rᵀ and Var(R V_ℓ) = diag(R Cov(V_ℓ, V_ℓ) Rᵀ).  One R per draw serves every
layer and model of equal width.  `gaussian` takes the authors' matrix instead: Gaussian, its rows of unit norm.
`permutation` shuffles token positions during the pass (`comoments.ShuffledCoMoments`).

Excess correlation (eq 3): mean over models of [best ρ − mean over draws of the best baseline ρ]; |ρ| in both where
either model is gated (`correlation`).
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from universal_neurons.statistics import CrossMoments, LayerCovariance, seed_of

PANEL_ROWS = 4096


def rotation(kind: str, width: int, seed: int, draw: int) -> Float[Tensor, "width width"]:
    """A random orthogonal matrix (Haar), or one with Gaussian rows of unit norm, in float64."""
    generator = torch.Generator().manual_seed(seed_of("rotation", seed, draw, width))
    gaussian = torch.randn(width, width, dtype=torch.float64, generator=generator)
    if kind == "gaussian":
        return gaussian / gaussian.norm(dim=1, keepdim=True)
    assert kind == "rotation", kind
    q, r = torch.linalg.qr(gaussian)
    return q * r.diagonal().sign()


def rotated_best(
    cross: CrossMoments,
    left: Float[Tensor, " left"],
    right: LayerCovariance,
    rotated: Float[Tensor, "width width"],
    noise: float = 0.0,
    by_size: bool = False,
    signs: Float[Tensor, " right"] | None = None,
) -> Float[Tensor, " left"]:
    """Every left neuron's highest ρ (`by_size`: |ρ|) with the rotated neurons of the other model, over all its layers.

    `left` holds inverse norms; NaN (dead) stays NaN.  `noise` is the error variance of a sketch's ρ: the ρ with a
    layer's rotated neurons are near Gaussian, so their maximum shrinks with their spread, √(1 − noise / mean ρ²).
    `signs` (1 or −1) are what the other model's neurons are taken times before they are rotated.
    """
    rotated = rotated.to(left.device)
    best = torch.full_like(left, -torch.inf, dtype=torch.float32)
    for layer, covariance in enumerate(right.centred):
        columns = right.units.columns(layer)
        turned = rotated if signs is None else rotated * signs[columns]
        single = turned.float()
        variance = ((turned @ covariance) * turned).sum(1)
        scale = torch.where(variance > 0, variance.rsqrt(), torch.nan).float()
        for start in range(0, len(left), PANEL_ROWS):
            rows = slice(start, start + PANEL_ROWS)
            standardised = (cross.centred(rows, columns) * left[rows, None]).float()
            rho = (standardised @ single.T).mul_(scale)
            if by_size:
                rho.abs_()
            highest = rho.nan_to_num(nan=-torch.inf).amax(1)
            if noise:
                highest *= (1 - noise / rho.square_().nanmean(1)).clamp_min(0).sqrt()
            best[rows] = torch.maximum(best[rows], highest)
    best = torch.where(torch.isfinite(best), best.clamp(-1, 1), torch.nan)
    return torch.where(torch.isnan(left), torch.nan, best.double())


def excess_correlation(
    best: Float[np.ndarray, "models neurons"], maxima: Float[np.ndarray, "draws models neurons"]
) -> Float[np.ndarray, " neurons"]:
    """Eq 3, the baseline averaged over its draws."""
    return (best - maxima.mean(0)).mean(0)


def q_values(
    best: Float[np.ndarray, "models neurons"], maxima: Float[np.ndarray, "draws models neurons"]
) -> Float[np.ndarray, " neurons"]:
    """False-discovery rate of calling every neuron with at least this excess a discovery.

    A draw's null excess is its maximum minus the mean of the other draws' maxima, averaged over models; the observed
    excess is measured against the same other draws.  At a threshold t the rate is the mean over draws of
    #{null ≥ t} / #{observed ≥ t}; a neuron's q-value is the lowest rate at any t up to its own excess.  It tests
    whether the neuron basis is privileged over a random one, not whether a neuron is universal.  Dead neurons: NaN.
    """
    alive = np.isfinite(best).all(0) & np.isfinite(maxima).all((0, 1))
    best, maxima = best[:, alive], maxima[:, :, alive]
    n_draws = len(maxima)
    excess = excess_correlation(best, maxima)
    rates = np.zeros_like(excess)
    total = maxima.sum(0)
    for draw in maxima:
        others = (total - draw) / (n_draws - 1)
        null = np.sort((draw - others).mean(0))
        observed = np.sort((best - others).mean(0))
        n_null = len(null) - np.searchsorted(null, excess, side="left")
        n_observed = len(observed) - np.searchsorted(observed, excess, side="left")
        rates += np.minimum(n_null / np.maximum(n_observed, 1), 1.0) / n_draws
    order = np.argsort(excess, kind="stable")
    lowest = np.empty_like(rates)
    lowest[order] = np.minimum.accumulate(rates[order])
    result = np.full(len(alive), np.nan)
    result[alive] = lowest
    return result
