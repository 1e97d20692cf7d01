"""Top and sampled examples against brute force over plain NumPy arrays."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from universal_neurons.errors import MergeError
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
)
from universal_neurons.statistics.examples import NOWHERE

CONTEXT, NEURONS, K = 50, 7, 3
CHOOSER = np.random.default_rng(0)
ROWS = sorted(CHOOSER.choice(500, 60, replace=False).tolist())  # not contiguous
LENGTHS = {row: int(CHOOSER.integers(1, CONTEXT + 1)) for row in ROWS}
COUNTED = {row: np.flatnonzero((CHOOSER.random(n) < 0.8) | (np.arange(n) == n // 2)) for row, n in LENGTHS.items()}
MEAN = np.round(CHOOSER.normal(size=NEURONS) * 8) / 8
VALUES = np.round(CHOOSER.normal(size=(500, CONTEXT, NEURONS)) * 4) / 4 + MEAN  # exact in float32, with many ties
BOUNDS = np.quantile(VALUES.reshape(-1, NEURONS), QUANTILES, axis=0) - MEAN
HASHES = {row: int(CHOOSER.integers(0, 2**63)) for row in ROWS}


@pytest.fixture(autouse=True)
def known_hashes(monkeypatch):
    """The hash of a row is looked up, so that brute force knows it."""
    monkeypatch.setattr("universal_neurons.statistics.examples.seed_of", lambda *parts: HASHES[parts[-1]])


def batch_of(rows, values=VALUES, basis="shift"):
    numbers = np.repeat(rows, [len(COUNTED[row]) for row in rows])
    positions = np.concatenate([COUNTED[row] for row in rows])
    block = Block(
        torch.from_numpy(values[numbers, positions] - MEAN).float(),
        basis,
        torch.from_numpy(MEAN).float(),
        torch.from_numpy(BOUNDS).float(),
    )
    return Batch({Key("a"): block}, index={BY_ROW: torch.from_numpy(numbers), BY_POSITION: torch.from_numpy(positions)})


def feed(rows, per_batch=8, examples=None):
    examples = examples or TopExamples("a", NEURONS, k=K)
    for start in range(0, len(rows), per_batch):
        examples.update(batch_of(rows[start : start + per_batch]))
    return examples


def candidates(rows, band, neuron):
    """Those of a band, best first, as (row, position)."""
    found = []
    for row in rows:
        where = COUNTED[row]
        values = VALUES[row, where, neuron]
        if band == 0:
            found.append((-values.max(), row, where[values.argmax()]))
        else:
            chosen = HASHES[row] % len(where)
            if BOUNDS[band - 1, neuron] <= values[chosen] - MEAN[neuron] < BOUNDS[band, neuron]:
                found.append((HASHES[row] >> 24, row, where[chosen]))
    return [(row, position) for _, row, position in sorted(found)]


def by_force(rows):
    row, position = (np.full((len(BANDS), K, NEURONS), NOWHERE) for _ in range(2))
    window = np.full((WINDOW, len(BANDS), K, NEURONS), np.nan)
    for band in range(len(BANDS)):
        for neuron in range(NEURONS):
            for rank, (r, p) in enumerate(candidates(rows, band, neuron)[:K]):
                row[band, rank, neuron], position[band, rank, neuron] = r, p
                for step in range(WINDOW):
                    if p - BEFORE + step in COUNTED[r]:
                        window[step, band, rank, neuron] = VALUES[r, p - BEFORE + step, neuron]
    return row, position, window


def same(examples, expected):
    found = examples.result()
    for one, other in zip((found.row, found.position, found.window), expected):
        np.testing.assert_array_equal(one.numpy(), other)


def test_bands_and_windows_are_as_documented():
    assert BANDS == ("top", "0.5–0.75", "0.75–0.9", "0.9–0.97", "0.97–0.995")
    assert (BEFORE, AFTER, WINDOW) == (16, 7, 24)


def test_examples_are_those_of_brute_force():
    examples = feed(ROWS)
    expected = by_force(ROWS)
    same(examples, expected)
    assert examples.count == sum(len(where) for where in COUNTED.values())
    assert (expected[0] >= 0).mean() > 0.6
    assert np.isnan(expected[2]).any()


@pytest.mark.parametrize("per_batch", [1, 3, 17, 60])
def test_batches_do_not_matter(per_batch):
    same(feed(ROWS, per_batch), by_force(ROWS))


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rows_does_not_matter(seed):
    same(feed(np.random.default_rng(seed).permutation(ROWS).tolist(), 7), by_force(ROWS))


@pytest.mark.parametrize("seed", range(3))
def test_any_merge_tree_gives_the_same(seed):
    chooser = np.random.default_rng(seed)
    cuts = [0, *np.sort(chooser.choice(np.arange(1, 60), 6, replace=False)).tolist(), 60]
    rows = chooser.permutation(ROWS).tolist()
    parts = [feed(rows[start:stop], 5) for start, stop in pairwise(cuts)]
    while len(parts) > 1:
        one, other = (parts.pop(int(chooser.integers(len(parts)))) for _ in range(2))
        one.merge(other)
        parts.append(one)
    same(parts[0], by_force(ROWS))
    assert parts[0].count == sum(len(where) for where in COUNTED.values())


def test_merging_with_nothing_changes_nothing():
    merged = TopExamples("a", NEURONS, k=K)
    merged.merge(feed(ROWS))
    merged.merge(TopExamples("a", NEURONS, k=K))
    same(merged, by_force(ROWS))


def test_a_row_enters_the_top_once():
    rows = feed(ROWS).result().row[0]
    assert all(len(set(column.tolist())) == K for column in rows.T)


def test_among_equals_the_lower_row_and_the_earlier_position_come_first():
    values = np.broadcast_to(MEAN + 1.0, VALUES.shape)
    examples = TopExamples("a", NEURONS, k=K)
    for row in ROWS[::-1]:
        examples.update(batch_of([row], values))
    expected = [[row] * NEURONS for row in ROWS[:K]]
    assert examples.result().row[0].tolist() == expected
    assert examples.result().position[0].tolist() == [[COUNTED[row][0]] * NEURONS for row in ROWS[:K]]


def test_without_enough_rows_the_last_places_stay_empty():
    found = feed(ROWS[:2]).result()
    assert (found.row[0, :2] >= 0).all()
    assert (found.row[0, 2:] == NOWHERE).all()
    assert (found.position[0, 2:] == NOWHERE).all()
    assert found.window[:, found.row < 0].isnan().all()
    same(feed(ROWS[:2]), by_force(ROWS[:2]))


def test_a_band_holds_only_values_within_its_bounds():
    found = feed(ROWS).result()
    centre = found.window[BEFORE].numpy() - MEAN
    for band, (low, high) in enumerate(pairwise(BOUNDS), 1):
        there = found.row[band].numpy() >= 0
        inside = (centre[band] >= low) & (centre[band] < high)
        assert there.any()
        assert inside[there].all()


def test_a_band_between_equal_bounds_is_empty():
    examples = TopExamples("a", NEURONS, k=K)
    batch = batch_of(ROWS)
    batch.blocks[Key("a")].bounds = torch.zeros(len(QUANTILES), NEURONS)
    examples.update(batch)
    assert (examples.result().row[1:] == NOWHERE).all()
    assert (examples.result().row[0] >= 0).all()


def test_every_neurons_sampled_position_of_a_row_is_the_same_counted_one():
    found = feed(ROWS).result()
    for row in ROWS:
        positions = set(found.position[1:][found.row[1:] == row].tolist())
        assert positions <= {int(COUNTED[row][HASHES[row] % len(COUNTED[row])])}


def test_windows_are_activations_and_missing_where_nothing_is_counted():
    found = feed(ROWS).result()
    for band, rank, neuron in np.argwhere(found.row.numpy() >= 0):
        row, position = (int(t[band, rank, neuron]) for t in (found.row, found.position))
        around = np.arange(position - BEFORE, position + AFTER + 1)
        counted = np.isin(around, COUNTED[row])
        window = found.window[:, band, rank, neuron].numpy()
        assert (np.isnan(window) == ~counted).all()
        np.testing.assert_array_equal(window[counted], VALUES[row, around[counted], neuron])


def test_state_and_restore_go_on_to_the_same():
    first, second = feed(ROWS[:30]), feed(ROWS[50:])
    second.restore({key: tensor.clone() for key, tensor in first.state().items()})
    for examples in (first, second):
        same(feed(ROWS[30:], examples=examples), by_force(ROWS))
    assert first.count == second.count


def test_the_hash_depends_on_seed_and_row_alone(monkeypatch):
    monkeypatch.undo()
    one, again, other = (feed(ROWS, 60, TopExamples("a", NEURONS, k=K, seed=seed)).result() for seed in (0, 0, 1))
    torch.testing.assert_close(one.row, again.row)
    torch.testing.assert_close(one.row[0], other.row[0])
    assert not torch.equal(one.row[1:], other.row[1:])


def test_merge_refuses_what_does_not_belong_together():
    with pytest.raises(MergeError):
        feed(ROWS).merge(TopExamples("b", NEURONS, k=K))
    with pytest.raises(MergeError):
        feed(ROWS).merge(TopExamples("a", NEURONS, k=K + 1))
    another = TopExamples("a", NEURONS, k=K)
    another.update(batch_of(ROWS[:5], basis="another"))
    with pytest.raises(MergeError, match="provisional means"):
        feed(ROWS[5:]).merge(another)


def of_negated(examples, rows=ROWS, per_batch=8):
    """Fed with the negated values."""
    for start in range(0, len(rows), per_batch):
        batch = batch_of(rows[start : start + per_batch])
        block = batch.blocks[Key("a")]
        negated = Block(-block.values, "shift", -block.mean, block.bounds)
        examples.update(Batch({Key("a"): negated}, index=batch.index))
    return examples


def test_the_lowest_of_both_tails_are_the_highest_of_the_negated():
    found = feed(ROWS, 7, TopExamples("a", NEURONS, k=K, both_tails=True)).result()
    mirrored = of_negated(TopExamples("a", NEURONS, k=K)).result()
    assert len(found.row) == len(BANDS) + 1
    np.testing.assert_array_equal(found.row[-1], mirrored.row[0])
    np.testing.assert_array_equal(found.position[-1], mirrored.position[0])
    np.testing.assert_array_equal(found.window[:, -1], -mirrored.window[:, 0])
    for band in range(len(BANDS)):
        np.testing.assert_array_equal(found.row[band], by_force(ROWS)[0][band])


def test_both_tails_merge():
    one, other = (feed(rows, 5, TopExamples("a", NEURONS, k=K, both_tails=True)) for rows in (ROWS[:20], ROWS[20:]))
    one.merge(other)
    whole = feed(ROWS, 8, TopExamples("a", NEURONS, k=K, both_tails=True)).result()
    same(one, (whole.row.numpy(), whole.position.numpy(), whole.window.numpy()))
    with pytest.raises(MergeError):
        feed(ROWS).merge(other)
