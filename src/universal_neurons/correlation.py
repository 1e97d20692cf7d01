"""Co-moments to correlations, matches and the layer profile (paper §4.1, eq 2).

ρ_ij = Σ(x_i−x̄_i)(y_j−ȳ_j) / √(Σ(x_i−x̄_i)² Σ(y_j−ȳ_j)²), in float64, in row panels, so that the correlation matrix is
never held whole.  Dead neurons have ρ = NaN and match nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from universal_neurons.accumulators import CrossMoments, LayerCovariance

PANEL_ELEMENTS = 1 << 21


@dataclass(frozen=True)
class Matches:
    """The k best matches of every neuron of one model in another, best first, and the most negative one.

    Neurons are flat indices (layer · d_mlp + neuron).  Dead askers, and askers of a model
    whose neurons are all dead, have NaN and −1.  `best_back` is, for every neuron
    of the other model, its own best match among the askers.
    """

    corr: Float[Tensor, "neurons k"]
    index: Int[Tensor, "neurons k"]
    lowest_corr: Float[Tensor, " neurons"]
    lowest_index: Int[Tensor, " neurons"]
    best_back: Int[Tensor, " others"]

    @property
    def mutual(self) -> Bool[Tensor, " neurons"]:
        """Whether each neuron and its best match are each other's best."""
        best = self.index[:, 0]
        return (self.best_back[best.clamp_min(0)] == torch.arange(len(best))) & (best >= 0)


def inverse_norms(covariance: LayerCovariance, dead: Bool[Tensor, " neurons"]) -> Float[Tensor, " neurons"]:
    """1/√Σ(x−x̄)² of every neuron; NaN for dead ones."""
    squares = covariance.squares
    return torch.where(dead | (squares <= 0), torch.nan, squares.rsqrt())


def correlation_panels(
    cross: CrossMoments, left: Float[Tensor, " left"], right: Float[Tensor, " right"]
) -> Iterator[tuple[slice, Float[Tensor, "panel right"]]]:
    """ρ in row panels; `left` and `right` are inverse norms (see `inverse_norms`)."""
    height = max(1, PANEL_ELEMENTS // len(right))
    for start in range(0, len(left), height):
        rows = slice(start, min(start + height, len(left)))
        panel = cross.centred(rows)
        panel *= left[rows, None]
        panel *= right[None, :]
        yield rows, panel.clamp_(-1, 1)


def find_matches(
    cross: CrossMoments, left: Float[Tensor, " left"], right: Float[Tensor, " right"], k: int = 10
) -> Matches:
    """The k best and the most negative match of every left neuron among the right ones."""
    k = max(1, min(k, int(torch.isfinite(right).sum())))
    corrs, indices, lows, low_indices = [], [], [], []
    best_back = torch.full((len(right),), -1, dtype=torch.int64)
    back_corr = torch.full((len(right),), -torch.inf, dtype=torch.float64, device=right.device)
    for rows, panel in correlation_panels(cross, left, right):
        missing = torch.isnan(panel)
        low, low_index = panel.masked_fill(missing, torch.inf).min(1)
        panel.masked_fill_(missing, -torch.inf)
        corr, index = panel.topk(k, 1)
        highest, asker = panel.max(0)
        better = highest > back_corr
        back_corr = torch.where(better, highest, back_corr)
        best_back = torch.where(better.cpu(), asker.cpu() + rows.start, best_back)
        corrs.append(corr.cpu())
        indices.append(index.cpu())
        lows.append(low.cpu())
        low_indices.append(low_index.cpu())
    corr, index, low, low_index = map(torch.cat, (corrs, indices, lows, low_indices))
    none = ~torch.isfinite(corr[:, 0])
    return Matches(
        corr=corr.masked_fill(none[:, None], torch.nan),
        index=index.masked_fill(none[:, None], -1),
        lowest_corr=low.masked_fill(none, torch.nan),
        lowest_index=low_index.masked_fill(none, -1),
        best_back=best_back,
    )


def layer_profile(
    best: Int[Tensor, " neurons"], layers: int, match_layers: int, match_width: int
) -> Float[Tensor, "layers match_layers"]:
    """Fraction of each layer's living neurons whose best match lies in each layer of the other model (Fig 2c)."""
    counts = torch.zeros(layers, match_layers, dtype=torch.float64)
    width = len(best) // layers
    for layer, found in enumerate(best.split(width)):
        alive = found[found >= 0]
        counts[layer] = torch.bincount(alive // match_width, minlength=match_layers).double()
    return counts / counts.sum(1, keepdim=True)
