"""How unusual is a change?  Held against those of other fine-tunes of the same base, pooled over the units of a layer.

With N changes of the layer's units in all of them, p = (1 + #{theirs ≥ its own}) / (1 + N); `p_least` = 1 / (1 + N) is
the smallest that can come out.  q is Benjamini and Hochberg's rate over all units.  A change that is usual may be as
large as any: p says that other data make as large ones.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from universal_neurons.diff.kinds import sign_of
from universal_neurons.matching import discovery_rates, p_values
from universal_neurons.units import Units

LARGEST = 1e6  # of a logarithm: a unit that died or was born changed by more than any other
MEASURES = ("self_corr", "mean_shift", "scale", "offset", "firing_shift", "contribution", "w_in_cos", "w_out_cos")
BY_KIND = {  # the measures that speak of a kind
    "re-scaled": ("scale", "contribution"),
    "shifted": ("offset", "firing_shift"),
    "redirected": ("w_out_cos",),
    "re-tuned": ("self_corr",),
    "moved": ("self_corr",),
    "copied": ("self_corr",),
    "born": ("contribution",),
    "died": ("contribution",),
}
Columns = Mapping[str, np.ndarray]


def sizes_of(c: Columns, gated: bool) -> dict[str, Float[np.ndarray, " units"]]:
    """The size of every measure's change, 0 where nothing changed; NaN where it cannot be told."""
    sign = sign_of(c, gated)
    sizes = {
        "self_corr": 1 - c["self_corr"] * sign,
        "w_in_cos": 1 - c["w_in_cos"],
        "w_out_cos": 1 - c["w_out_cos"] * sign,
    }
    sizes |= {name: np.abs(c[name]) for name in ("mean_shift", "offset", "firing_shift")}
    with np.errstate(divide="ignore"):
        sizes |= {name: np.abs(np.log(c[name])).clip(max=LARGEST) for name in ("scale", "contribution")}
    return {name: sizes[name] for name in MEASURES}


def null_columns(units: Units, sizes: Columns, nulls: Sequence[Columns], kinds: Sequence[str | None]) -> Columns:
    """`p_` and `q_` of every measure, `p_least`, and `q_change`: of the measures that speak of the unit's kind.

    Where several do, `q_change` is the smallest q times their number.
    """
    columns: dict[str, np.ndarray] = {}
    for measure in MEASURES:
        p = np.full(len(units), np.nan)
        for layer in range(units.layers):
            place = units.columns(layer)
            pooled = np.concatenate([null[measure][place] for null in nulls])
            p[place] = p_values(sizes[measure][place], pooled)
        columns |= {f"p_{measure}": p, f"q_{measure}": discovery_rates(p)}
    pooled_units = np.repeat(units.widths, units.widths) * len(nulls)
    columns["p_least"] = 1 / (1 + pooled_units)
    columns["q_change"] = np.array([_q_of(kind, columns, unit) for unit, kind in enumerate(kinds)])
    return columns


def _q_of(kind: str | None, columns: Columns, unit: int) -> float:
    measures = BY_KIND.get(kind or "", ())
    rates = [rate for name in measures if np.isfinite(rate := columns[f"q_{name}"][unit])]
    return min(1.0, min(rates) * len(rates)) if rates else np.nan
