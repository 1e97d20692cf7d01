"""The rules of kinds by themselves: how often they err, which comes first, what is not known."""

import numpy as np
import pytest

from universal_neurons.diff.kinds import kinds_of
from universal_neurons.diff.places import BestMatches, Places
from universal_neurons.diff.selves import firing_columns, shift_columns
from universal_neurons.diff.settings import DiffConfig
from universal_neurons.matching import HeldOut, corr_interval
from universal_neurons.matching.heldout import rho
from universal_neurons.statistics import Jackknifed

RULES = DiffConfig(models=("base", "tuned"))
UNCHANGED = {
    "dead_before": False, "dead_after": False, "self_corr": 1.0, "self_corr_low": 1.0, "self_corr_high": 1.0,
    "scale_low": 1.0, "scale_high": 1.0, "offset_low": 0.0, "offset_high": 0.0, "firing_shift_low": 0.0,
    "firing_shift_high": 0.0, "contribution_low": 1.0, "contribution_high": 1.0, "w_out_cos": 1.0, "w_out_ratio": 1.0,
}  # fmt: skip


def kind_of(gated=False, **changes):
    """The kind of one unit, and whether it is surely unchanged."""
    columns = {name: np.array([value]) for name, value in (UNCHANGED | changes).items()}
    (kind,), (surely,) = kinds_of(columns, RULES, gated=gated)
    return kind, bool(surely)


NAN = {name: np.nan for name in UNCHANGED if name.startswith(("self", "scale", "offset", "firing", "contribution"))}
LOW = {"self_corr": 0.3, "self_corr_low": 0.2, "self_corr_high": 0.4}


@pytest.mark.parametrize(
    ("changes", "kind", "surely"),
    [
        ({}, "unchanged", True),
        (LOW, "re-tuned", False),
        (LOW | {"self_corr_high": 0.95}, "unchanged", False),  # not surely below
        ({"self_corr": -1.0, "self_corr_low": -1.0, "self_corr_high": -1.0}, "re-tuned", False),
        ({"w_out_cos": 0.5}, "redirected", False),
        ({"w_out_cos": 0.5} | LOW, "re-tuned", False),
        ({"offset_low": 0.11, "offset_high": 0.3}, "shifted", False),
        ({"offset_low": 0.05, "offset_high": 0.3}, "unchanged", False),
        ({"firing_shift_low": -0.4, "firing_shift_high": -0.2, "scale_low": 2.0, "scale_high": 3.0}, "shifted", False),
        ({"scale_low": 2.0, "scale_high": 3.0}, "re-scaled", False),
        ({"scale_low": 0.5, "scale_high": 0.6}, "re-scaled", False),
        ({"w_out_ratio": 0.5}, "re-scaled", False),
        ({"contribution_high": 0.0}, "died", False),
        (NAN | {"dead_after": True}, "died", False),
        (NAN | {"dead_before": True}, "born", False),
        ({"contribution_low": 200.0}, "born", False),
        (NAN | {"dead_before": True, "dead_after": True, "w_out_cos": 0.1}, "unchanged", True),
        (NAN, None, False),
    ],
)
def test_the_first_rule_that_holds_names_the_kind(changes, kind, surely):
    assert kind_of(**changes) == (kind, surely)


def test_a_gated_unit_may_turn_its_sign():
    turned = {"self_corr": -1.0, "self_corr_low": -1.0, "self_corr_high": -1.0, "w_out_cos": -1.0}
    assert kind_of(gated=True, **turned) == ("unchanged", True)
    assert kind_of(gated=True, **turned | {"w_out_cos": 1.0}) == ("redirected", False)


def test_units_at_the_threshold_are_named_as_seldom_as_the_rules_say():
    """2 000 units whose true ρ, offset, scale or firing stands at the threshold: each rule names at most 2.5 %."""
    chance = np.random.default_rng(0)
    stretches, positions, units = 20, 100, 2000
    a, noise = chance.standard_normal((2, stretches, positions, units))

    def named(b):
        sums = np.stack([x.sum(1) for x in (a, b, a * a, b * b, a * b)], 1)
        counts = np.full(stretches, positions)
        corr = Jackknifed.of(rho, counts, sums)
        low, high = corr_interval(HeldOut(corr, corr.value, np.zeros((2, units))))
        columns = shift_columns(counts, sums, np.zeros((2, units)), np.ones(units))
        fires = np.stack([(x > 0).sum(1) for x in (a, b, np.minimum(a, b))], 1)
        columns |= firing_columns(counts, fires)
        fixed = {"w_out_cos": np.ones(units), "w_out_ratio": np.ones(units)}
        fixed |= dict.fromkeys(("dead_before", "dead_after"), np.zeros(units, bool))
        fixed |= {f"contribution{end}": columns[f"scale{end}"] for end in ("_low", "_high")}
        own = {"self_corr": corr.value, "self_corr_low": low, "self_corr_high": high}
        return np.array(kinds_of(columns | fixed | own, RULES, gated=False)[0])

    most = 0.025 + 3 * np.sqrt(0.025 * 0.975 / units)
    for kind, b in {
        "re-tuned": 0.9 * a + np.sqrt(1 - 0.81) * noise,
        "re-scaled": 1.1 * (0.95 * a + np.sqrt(1 - 0.95**2) * noise),
    }.items():
        assert (named(b) == kind).mean() <= most, kind
    shifted = 0.95 * a + np.sqrt(1 - 0.95**2) * noise + 0.1
    assert (named(shifted) == "shifted").mean() <= 2 * most  # it has two rules


def matches_of(match, low, other=None):
    match, low = np.array(match), np.array(low, float)
    return BestMatches(match, low, low, np.minimum(low + 0.02, 1), match if other is None else other, low)


def test_places_by_hand():
    """0 stays and is copied to 1; 2 and 3 change places; 4 goes into 5, which goes on; 6 is lost; 7 was dead; 8 may
    have gone to 0."""
    forth = matches_of([0, 0, 3, 2, 5, 5, 2, -1, 0], [1, 0.6, 0.97, 0.97, 0.95, 0.97, 0.3, np.nan, 0.89])
    back = matches_of([0, 0, 3, 2, 1, 5, 6, 7, 8], [1, 0.97, 0.97, 0.97, 0.4, 0.97, 0.5, np.nan, 0.2])
    low = np.array([1, 0.1, 0.1, 0.1, 0.1, 0.96, 0.3, np.nan, 0.2])
    dead = np.arange(9) == 7
    places = Places.of(forth, back, low + 0.02, 0.9, dead=dead)
    assert places.place == ["split", "lost", "moved", "moved", "merged", "stays", "lost", None, "unclear"]
    assert places.moved_to.tolist() == [-1, -1, 3, 2, 5, -1, -1, -1, -1]
    assert places.came_from.tolist() == [-1, 0, 3, 2, -1, -1, -1, -1, -1]
    assert places.heirs.tolist() == [1, 0, 1, 1, 0, 0, 0, 0, 0]
    assert places.copied.tolist() == [False, True, *[False] * 7]
    assert places.moved.tolist() == [False, False, True, True, *[False] * 5]
