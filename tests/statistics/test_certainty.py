"""The upper bound of a sketched ρ: every step that is proven against brute force, its solution against a search."""

import numpy as np
import pytest
import torch
from scipy import optimize

from universal_neurons.statistics import Certainty
from universal_neurons.statistics.certainty import upper_bound

SHARDS, POSITIONS, CHANCE = 4, 30, 0.1
KINDS = ("even", "heavy", "peaked", "flipped", "opposite")


def a_pair(kind, seed):
    """Two neurons of energy 1, of ρ ≥ 0."""
    draw = np.random.default_rng([KINDS.index(kind), seed])
    x, noise = draw.standard_normal((2, SHARDS, POSITIONS))
    if kind == "heavy":
        x, noise = np.exp(2 * x), np.exp(2 * noise)
    y = x + draw.uniform(0.2, 2) * noise
    if kind == "peaked":
        x[0, 3], y[0, 5] = 20, 20
    if kind in ("flipped", "opposite"):
        y = x.copy()
        y[:1, : POSITIONS if kind == "flipped" else 3] *= -1
    x, y = (part / np.linalg.norm(part) for part in (x, y))
    return (x, y) if (x * y).sum() > 0 else (x, -y)


def jumps(x, y, r):
    """J of every two positions of every shard."""
    p, m = (x + y) / np.sqrt(2), (x - y) / np.sqrt(2)
    of_pairs = (1 - r) * p[:, :, None] * p[:, None] - (1 + r) * m[:, :, None] * m[:, None]
    rows, columns = np.triu_indices(x.shape[1], 1)
    return of_pairs[:, rows, columns]


def tails_of(x):
    """v, g, k and a."""
    energy, fourth = (x**2).sum(1), (x**4).sum(1)
    return np.sqrt(CHANCE * (energy**2).sum()), CHANCE * energy.max(), np.sqrt(CHANCE * (fourth**2).sum()), (x**2).max()


def parts_of(x, y, r, rho):
    """The bounds of the variance, of K and of |J|, written out."""
    (v, g, k, a), (v_other, g_other, k_other, a_other) = tails_of(x), tails_of(y)
    variance = (1 - r) ** 2 * (v + v_other) ** 2 / 2 + 2 * r * (1 - rho) * (g + g_other)
    fourth = ((8 * k * k_other) ** 0.25 + r * 0.5**0.25 * (np.sqrt(k) + np.sqrt(k_other))) ** 4
    return variance, fourth, 2 * np.sqrt(a * a_other) + r * (a + a_other), g + g_other


@pytest.mark.parametrize("kind", KINDS)
def test_variance_and_jumps_are_within_their_bounds(kind):
    for seed in range(30):
        x, y = a_pair(kind, seed)
        rho = (x * y).sum()
        for r in np.linspace(0, rho, 4):
            variance, fourth, largest, _ = parts_of(x, y, r, rho)
            found = jumps(x, y, r)
            assert CHANCE * (found**2).sum() <= variance * (1 + 1e-9)
            assert CHANCE * (found**4).sum() <= fourth * (1 + 1e-9)
            assert np.abs(found).max() <= largest * (1 + 1e-9)


def test_the_variance_is_reached_where_shards_are_flipped():
    """In many even positions, where a position's own square counts little."""
    x = np.ones((SHARDS, 2000)) / np.sqrt(SHARDS * 2000)
    y = x.copy()
    y[0] *= -1
    rho = (x * y).sum()
    assert CHANCE * (jumps(x, y, rho) ** 2).sum() == pytest.approx(parts_of(x, y, rho, rho)[0], rel=2e-3)


def highest_of(rate, r, tails, z):
    """The ρ that solves the module's third step at one rate, by bisection; infinite where the rate is not allowed."""
    (v, g, k, a), (v_other, g_other, k_other, a_other) = (part.tolist() for part in tails)
    largest = g + g_other
    fourth = ((8 * k * k_other) ** 0.25 + r * 0.5**0.25 * (k**0.5 + k_other**0.5)) ** 4
    room = 1 - rate * (1 + r) * largest
    if rate * (2 * (a * a_other) ** 0.5 + r * (a + a_other)) > 3 * (1 + 1e-9) or room <= 0:
        return np.inf

    def spare(rho):
        variance = (1 - r) ** 2 * (v + v_other) ** 2 / 2 + 2 * r * (1 - rho) * largest
        needed = z * z / 2 + rate**2 * variance / 2 / room + rate**4 * fourth * (np.cosh(3) - 5.5) / 81
        return rate * (rho - r) - needed

    return optimize.brentq(spare, r, 1e9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("z", [2.0, 4.5])
def test_the_bound_solves_its_inequality_nearly_as_well_as_can_be(kind, z):
    """A search over rates finds hardly a lower one."""
    scale = torch.tensor([0.05, 0.05**2, 0.05**3, 0.05**2]).double()  # as of 400 times as many shards
    for seed in range(5):
        tails = [torch.tensor(tails_of(part)).double() * scale for part in a_pair(kind, seed)]
        for r in (0.0, 0.3, 0.9):
            found = float(upper_bound(torch.tensor(r).double(), *tails, z))
            best = min(highest_of(rate, r, tails, z) for rate in np.geomspace(1, 1e6, 400))
            assert best - r <= (found - r) * (1 + 1e-3)
            assert found - r <= 1.3 * (best - r)


def test_bounds_of_a_matrix_are_those_of_its_pairs(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    mine, theirs = (0.01 * torch.rand(4, n, generator=draw, dtype=torch.float64) for n in (7, 5))
    certainty = Certainty(mine[0], theirs[0], torch.tensor(1e-4).double(), mine, theirs)
    corr = 2 * torch.rand(4, 5, generator=draw, dtype=torch.float64) - 1
    expected = [[upper_bound(corr[i, j], mine[:, i + 2], theirs[:, j], 4.0) for j in range(5)] for i in range(4)]
    for at_once in (1, 11, 1 << 18):
        monkeypatch.setattr("universal_neurons.statistics.certainty.BOUNDED_AT_ONCE", at_once)
        torch.testing.assert_close(certainty.upper(corr, 4.0, slice(2, 6)), torch.tensor(expected), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        certainty.part(slice(2, 6), slice(0, 5)).upper(corr, 4.0, slice(0, 4)), torch.tensor(expected)
    )


def test_what_is_not_known_is_not_bounded():
    tails = torch.full((4, 1), 1e-3).double()
    overflown = tails.clone()
    overflown[2] = torch.inf
    assert torch.isinf(upper_bound(torch.zeros(1).double(), tails, overflown, 4.0)).all()
    assert torch.isinf(upper_bound(torch.zeros(1).double(), torch.full((4, 1), torch.nan).double(), tails, 4.0)).all()
    identical = upper_bound(torch.ones(1).double(), tails, tails, 4.0)
    assert torch.isfinite(identical).all()
    assert (identical >= 1 - 1e-9).all()
