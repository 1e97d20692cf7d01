"""Co-moments to correlations, matches and the layer profile (paper §4.1, eq 2).

ρ_ij = Σ(x_i−x̄_i)(y_j−ȳ_j) / √(Σ(x_i−x̄_i)² Σ(y_j−ȳ_j)²), in float64, in row panels, so that the correlation matrix is
never held whole.  Dead neurons have ρ = NaN and match nothing.

Matches of a pair of models of which either is gated are by size, |ρ|: negating w_up and w_out of a gated neuron leaves
the model the same, so that the sign of its activation, and of ρ, is nobody's choice.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from universal_neurons.statistics import CrossMoments
from universal_neurons.units import Units

PANEL_ELEMENTS = 1 << 21
BINS = 200  # of a histogram of ρ


@dataclass(frozen=True)
class Matches:
    """The k best matches of every neuron of one model in another, best first, and the most negative one.

    Neurons are given by number (`units`).  Dead askers, and askers of a model whose neurons are all dead, have NaN and
    −1.  `by_size`: the best are those of highest |ρ|, best back likewise; `corr` is signed all the same.  `best_back`
    is, for every neuron of the other model, its own best match among the askers, and `back_corr` what that was chosen
    by; `certified`, after a screened search, whether it is certain that no other neuron correlates more.  `histogram`
    counts all ρ, of living neurons, in bins of 0.01.
    """

    corr: Float[Tensor, "neurons k"]
    index: Int[Tensor, "neurons k"]
    lowest_corr: Float[Tensor, " neurons"]
    lowest_index: Int[Tensor, " neurons"]
    best_back: Int[Tensor, " others"]
    back_corr: Float[Tensor, " others"]
    certified: Bool[Tensor, " neurons"] | None = None
    histogram: Int[Tensor, " bins"] | None = None
    by_size: bool = False

    @property
    def strength(self) -> Float[Tensor, "neurons k"]:
        """What matches are ranked by: ρ, or |ρ|."""
        return self.corr.abs() if self.by_size else self.corr

    @property
    def mutual(self) -> Bool[Tensor, " neurons"]:
        """Whether each neuron and its best match are each other's best."""
        best = self.index[:, 0]
        return (self.best_back[best.clamp_min(0)] == torch.arange(len(best))) & (best >= 0)


def inverse_norms(squares: Float[Tensor, " neurons"], dead: Bool[Tensor, " neurons"]) -> Float[Tensor, " neurons"]:
    """1/√Σ(x−x̄)² of every neuron; NaN for dead ones."""
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
    cross: CrossMoments,
    left: Float[Tensor, " left"],
    right: Float[Tensor, " right"],
    k: int = 10,
    *,
    rows: int = 0,
    columns: int = 0,
    histogram: bool = False,
    by_size: bool = False,
) -> Matches:
    """The k best and the most negative match of every left neuron among the right ones; `by_size` ranks by |ρ|.

    The first of the left and right neurons are numbers `rows` and `columns` of their models.
    """
    counts = torch.zeros(BINS, dtype=torch.int64) if histogram else None
    k = max(1, min(k, int(torch.isfinite(right).sum())))
    corrs, indices, lows, low_indices = [], [], [], []
    best_back = torch.full((len(right),), -1, dtype=torch.int64)
    back_corr = torch.full((len(right),), -torch.inf, dtype=torch.float64, device=right.device)
    for panel_columns, panel in correlation_panels(cross, left, right):
        missing = torch.isnan(panel)
        if counts is not None:
            counts += torch.histc(panel, BINS, -1, 1).long().cpu()
        low, low_index = panel.masked_fill(missing, torch.inf).min(1)
        panel.masked_fill_(missing, -torch.inf)
        strength = panel.abs().masked_fill_(missing, -torch.inf) if by_size else panel
        corr, index = strength.topk(k, 1)
        corr = panel.gather(1, index) if by_size else corr
        highest, asker = strength.max(0)
        better = highest > back_corr
        back_corr = torch.where(better, highest, back_corr)
        best_back = torch.where(better.cpu(), asker.cpu() + panel_columns.start + rows, best_back)
        corrs.append(corr.cpu())
        indices.append(index.cpu() + columns)
        lows.append(low.cpu())
        low_indices.append(low_index.cpu() + columns)
    corr, index, low, low_index = map(torch.cat, (corrs, indices, lows, low_indices))
    found = _without_dead(corr, index, low, low_index, best_back, back_corr.cpu())
    return replace(found, histogram=counts, by_size=by_size)


def _without_dead(
    corr: Tensor, index: Tensor, low: Tensor, low_index: Tensor, back: Tensor, back_corr: Tensor
) -> Matches:
    none = ~torch.isfinite(corr)
    nothing = none[:, 0]
    return Matches(
        corr=corr.masked_fill(none, torch.nan),
        index=index.masked_fill(none, -1),
        lowest_corr=low.masked_fill(nothing, torch.nan),
        lowest_index=low_index.masked_fill(nothing, -1),
        best_back=back,
        back_corr=back_corr,
    )


def beside(first: Matches, second: Matches) -> Matches:
    """The matches of the same askers in two parts of the other model, as matches in both together: all of both."""
    strength = torch.cat([first.strength, second.strength], 1).nan_to_num(nan=-torch.inf)
    order = strength.argsort(dim=1, descending=True, stable=True)
    corr = torch.cat([first.corr, second.corr], 1).gather(1, order)
    index = torch.cat([first.index, second.index], 1).gather(1, order)
    lows = [m.lowest_corr.nan_to_num(nan=torch.inf) for m in (first, second)]
    lower = lows[1] < lows[0]
    matches = _without_dead(
        corr,
        index,
        torch.where(lower, lows[1], lows[0]),
        torch.where(lower, second.lowest_index, first.lowest_index),
        torch.cat([first.best_back, second.best_back]),
        torch.cat([first.back_corr, second.back_corr]),
    )
    return replace(matches, histogram=_added(first, second), by_size=first.by_size)


def _added(first: Matches, second: Matches) -> Int[Tensor, " bins"] | None:
    if first.histogram is None or second.histogram is None:
        return None
    return first.histogram + second.histogram


def below(first: Matches, second: Matches) -> Matches:
    """The matches of two parts of the askers, as matches of both."""
    better = second.back_corr > first.back_corr
    return Matches(
        corr=torch.cat([first.corr, second.corr]),
        index=torch.cat([first.index, second.index]),
        lowest_corr=torch.cat([first.lowest_corr, second.lowest_corr]),
        lowest_index=torch.cat([first.lowest_index, second.lowest_index]),
        best_back=torch.where(better, second.best_back, first.best_back),
        back_corr=torch.where(better, second.back_corr, first.back_corr),
        histogram=_added(first, second),
        by_size=first.by_size,
    )


def layer_profile(
    best: Int[Tensor, " neurons"], units: Units, match_units: Units
) -> Float[Tensor, "layers match_layers"]:
    """Fraction of each layer's living neurons whose best match lies in each layer of the other model (Fig 2c)."""
    counts = torch.zeros(units.layers, match_units.layers, dtype=torch.float64)
    for layer, matches in enumerate(best.split(units.widths)):
        layers = match_units.layer_of(matches[matches >= 0].cpu().numpy())
        counts[layer] = torch.bincount(torch.from_numpy(layers), minlength=match_units.layers).double()
    return counts / counts.sum(1, keepdim=True)
