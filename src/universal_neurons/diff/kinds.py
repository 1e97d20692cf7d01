"""What kind of change is it?  Rules on what held-out rows say of each unit and itself; the first that holds names it.

Each rule says that a quantity lies beyond a threshold, and holds where the nearer end of its 95 % interval does: a unit
whose quantity, on text like this, lies within the threshold is named by it with a chance of at most 2.5 %.  What
weights say (`w_out_cos`, `w_out_ratio`) is exact.  In this order:

- died, born: the standard deviation of the activation times the norm of w_out falls to, or was, less than 1 %; or the
  activation never changes after (before);
- moved, copied: it does what another unit of the base did (`places`), which does so no longer, or still;
- re-tuned: |ρ| with itself is below `same`: it fires on something else;
- redirected: the cosine of w_out before and after is below `redirected`: it does something else;
- shifted: the offset of its mean, or of how often it fires, exceeds `shifted`;
- re-scaled: its standard deviation, or the norm of w_out, changes by a factor above `rescaled`;
- unchanged: none of these.  `surely_unchanged` says that every interval lies within the thresholds.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

from universal_neurons.diff.places import Places
from universal_neurons.diff.settings import DiffConfig

KINDS = ("unchanged", "re-scaled", "shifted", "redirected", "re-tuned", "moved", "copied", "born", "died")
LEAST = 0.01  # a unit that contributes less than this share of what it did is dead
Columns = Mapping[str, np.ndarray]


def sign_of(c: Columns, gated: bool) -> Float[np.ndarray, " units"]:
    """−1 where the sign of a gated unit's activation turned, which is nobody's choice; else 1."""
    return np.where(gated & (c["self_corr"] < 0), -1.0, 1.0)


def self_ends(c: Columns, gated: bool) -> tuple[Float[np.ndarray, " units"], Float[np.ndarray, " units"]]:
    """The interval of ρ of each unit and itself, of gated ones of |ρ|."""
    turned = sign_of(c, gated) < 0
    low, high = c["self_corr_low"], c["self_corr_high"]
    return np.where(turned, -high, low), np.where(turned, -low, high)


def kinds_of(
    c: Columns, rules: DiffConfig, *, gated: bool, places: Places | None = None
) -> tuple[list[str | None], Bool[np.ndarray, " units"]]:
    """Each unit's kind, by the columns of `changes`, and whether it is surely unchanged.

    None where nothing can be said: on the held-out rows its activation never changes, elsewhere it does.  Without
    `places` no unit is moved or copied.
    """
    beyond = _beyond_rules(c, rules, places, gated=gated)
    both_dead = c["dead_before"] & c["dead_after"]
    silent = np.isnan(c["self_corr"]) & ~beyond["died"] & ~beyond["born"] & ~both_dead
    names: list[str | None] = [None, *beyond, "unchanged"]
    unchanged = len(names) - 1
    cases = [silent, both_dead, *beyond.values()]
    codes = np.select(cases, [0, unchanged, *range(1, unchanged)], unchanged)
    surely = both_dead | ((codes == unchanged) & _within_rules(c, rules, gated=gated))
    return [names[code] for code in codes], surely


def _beyond_rules(
    c: Columns, rules: DiffConfig, places: Places | None, *, gated: bool
) -> dict[str, Bool[np.ndarray, " units"]]:
    """Which units each rule names, by kind, in the order of the module."""
    none = np.zeros(len(c["self_corr"]), bool)
    return {
        "died": ~c["dead_before"] & (c["dead_after"] | (c["contribution_high"] < LEAST)),
        "born": ~c["dead_after"] & (c["dead_before"] | (c["contribution_low"] > 1 / LEAST)),
        "moved": none if places is None else places.moved,
        "copied": none if places is None else places.copied,
        "re-tuned": self_ends(c, gated)[1] < rules.same,
        "redirected": c["w_out_cos"] * sign_of(c, gated) < rules.redirected,
        "shifted": _beyond(c, "offset", rules.shifted) | _beyond(c, "firing_shift", rules.shifted),
        "re-scaled": _beyond_factor(c["scale_low"], c["scale_high"], rules.rescaled)
        | _beyond_factor(c["w_out_ratio"], c["w_out_ratio"], rules.rescaled),
    }


def _within_rules(c: Columns, rules: DiffConfig, *, gated: bool) -> Bool[np.ndarray, " units"]:
    """Whether every interval lies within the thresholds."""
    within = _within(c, "offset", rules.shifted) & _within(c, "firing_shift", rules.shifted)
    within &= self_ends(c, gated)[0] >= rules.same
    within &= c["w_out_cos"] * sign_of(c, gated) >= rules.redirected
    for ends in ("scale_low", "scale_high", "w_out_ratio"):
        within &= (c[ends] <= rules.rescaled) & (c[ends] >= 1 / rules.rescaled)
    return within


def _beyond(c: Columns, name: str, least: float) -> Bool[np.ndarray, " units"]:
    return (c[f"{name}_low"] > least) | (c[f"{name}_high"] < -least)


def _within(c: Columns, name: str, most: float) -> Bool[np.ndarray, " units"]:
    return (c[f"{name}_low"] >= -most) & (c[f"{name}_high"] <= most)


def _beyond_factor(low: np.ndarray, high: np.ndarray, factor: float) -> Bool[np.ndarray, " units"]:
    return (low > factor) | (high < 1 / factor)
