"""Examples with their matches' activations, against a loop over plain NumPy arrays."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from universal_neurons.errors import MergeError
from universal_neurons.matching import Counterparts
from universal_neurons.statistics import (
    AFTER,
    BANDS,
    BEFORE,
    BY_POSITION,
    BY_ROW,
    QUANTILES,
    WINDOW,
    Batch,
    Block,
    Key,
    TopExamples,
    seed_of,
)

CONTEXT, K, SEED = 40, 3, 5
NEURONS = {"a": 7, "b": 5, "c": 9}
KEYS = [Key(name) for name in NEURONS]
CHOOSER = np.random.default_rng(0)
ROWS = sorted(CHOOSER.choice(900, 90, replace=False).tolist())
LENGTHS = {row: int(CHOOSER.integers(1, CONTEXT + 1)) for row in ROWS}
COUNTED = {row: np.flatnonzero((CHOOSER.random(n) < 0.8) | (np.arange(n) == n // 2)) for row, n in LENGTHS.items()}
MEANS = {name: np.round(CHOOSER.normal(size=n) * 8) / 8 for name, n in NEURONS.items()}
VALUES = {  # exact in float32, with many ties
    name: np.round(CHOOSER.normal(size=(900, CONTEXT, n)) * 4) / 4 + MEANS[name] for name, n in NEURONS.items()
}
BOUNDS = np.quantile(VALUES["a"].reshape(-1, 7), QUANTILES, axis=0) - MEANS["a"]
MATCH = torch.tensor([[4, 0, 1, -1, 2, 2, 3], [8, 1, -1, -1, 0, 5, 5]])


def empty(**how):
    return Counterparts(KEYS[0], KEYS[1:], MATCH, k=K, seed=SEED, **how)


def batch_of(rows):
    numbers = np.repeat(rows, [len(COUNTED[row]) for row in rows])
    positions = np.concatenate([COUNTED[row] for row in rows])
    blocks = {
        Key(name): Block(
            torch.from_numpy(VALUES[name][numbers, positions] - MEANS[name]).float(),
            "shift",
            torch.from_numpy(MEANS[name]).float(),
            torch.from_numpy(BOUNDS).float() if name == "a" else None,
        )
        for name in NEURONS
    }
    return Batch(blocks, index={BY_ROW: torch.from_numpy(numbers), BY_POSITION: torch.from_numpy(positions)})


def feed(rows, per_batch=8, counterparts=None):
    counterparts = counterparts or empty()
    for start in range(0, len(rows), per_batch):
        counterparts.update(batch_of(rows[start : start + per_batch]))
    return counterparts


def candidates(rows, band, neuron):
    """Those of a band, best first, as (row, position)."""
    found = []
    for row in rows:
        where, hashed = COUNTED[row], seed_of("example", SEED, row)
        values = VALUES["a"][row, where, neuron]
        if band == 0:
            found.append((-values.max(), row, where[values.argmax()]))
        elif band == len(BANDS):
            found.append((values.min(), row, where[values.argmin()]))
        else:
            chosen = hashed % len(where)
            if BOUNDS[band - 1, neuron] <= values[chosen] - MEANS["a"][neuron] < BOUNDS[band, neuron]:
                found.append((hashed >> 24, row, where[chosen]))
    return [(row, position) for _, row, position in sorted(found)]


def by_force(*, both_tails=False):
    bands = len(BANDS) + both_tails
    row, position = (np.full((bands, K, 7), -1) for _ in range(2))
    window, matched = np.full((WINDOW, bands, K, 7), np.nan), np.full((2, WINDOW, bands, K, 7), np.nan)
    for band, neuron in np.ndindex(bands, 7):
        for rank, (r, p) in enumerate(candidates(ROWS, band, neuron)[:K]):
            at = band, rank, neuron
            row[at], position[at] = r, p
            for step, place in enumerate(range(p - BEFORE, p + AFTER + 1)):
                if place in COUNTED[r]:
                    window[(step, *at)] = VALUES["a"][r, place, neuron]
                    for other, name in enumerate("bc"):
                        if MATCH[other, neuron] >= 0:
                            matched[(other, step, *at)] = VALUES[name][r, place, MATCH[other, neuron]]
    return row, position, window, matched


def same(counterparts, expected):
    found = counterparts.result()
    for one, other in zip((found.row, found.position, found.window, found.matched), expected):
        np.testing.assert_array_equal(one.numpy(), other)


@pytest.mark.parametrize("per_batch", [1, 7, 90])
def test_windows_and_matches_are_those_of_brute_force_whatever_the_batches(per_batch):
    expected = by_force()
    same(feed(ROWS, per_batch), expected)
    assert np.isfinite(expected[3]).mean() > 0.3


def test_of_gated_neurons_the_lowest_too_and_any_order_of_rows():
    expected = by_force(both_tails=True)
    assert (expected[0][-1] >= 0).all()
    shuffled = np.random.default_rng(1).permutation(ROWS).tolist()
    for rows, per_batch in ((ROWS, 13), (shuffled, 5), (shuffled, 90)):
        same(feed(rows, per_batch, empty(both_tails=True)), expected)


def test_they_choose_as_the_examples_of_single_models_do():
    plain = TopExamples("a", 7, k=K, seed=SEED)
    for start in range(0, len(ROWS), 9):
        plain.update(batch_of(ROWS[start : start + 9]))
    found = feed(ROWS, 20)
    for name in TopExamples.TENSORS:
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))


@pytest.mark.parametrize("seed", range(3))
def test_any_merge_tree_gives_the_same(seed):
    chooser = np.random.default_rng(seed)
    cuts = [0, *np.sort(chooser.choice(np.arange(1, 90), 5, replace=False)).tolist(), 90]
    parts = [feed(ROWS[start:stop], 4) for start, stop in pairwise(cuts)]
    while len(parts) > 1:
        one, other = (parts.pop(int(chooser.integers(len(parts)))) for _ in range(2))
        one.merge(other)
        parts.append(one)
    same(parts[0], by_force())


def test_a_state_is_taken_over():
    half = {name: tensor.clone() for name, tensor in feed(ROWS[:40]).state().items()}
    again = Counterparts(KEYS[0], KEYS[1:], torch.zeros_like(MATCH), k=K, seed=SEED)
    again.restore(half)
    same(feed(ROWS[40:], 8, again), by_force())


def test_those_of_other_matches_do_not_merge():
    other = Counterparts(KEYS[0], KEYS[1:], MATCH.clamp_min(0), k=K, seed=SEED)
    with pytest.raises(MergeError, match="other matches"):
        feed(ROWS[:5]).merge(feed(ROWS[5:], 8, other))
