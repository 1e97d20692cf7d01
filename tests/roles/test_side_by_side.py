"""Small models tried out one beside the other: the same tables, in order; an error ends the others too."""

import threading

import polars as pl
import pytest
import torch
from conftest import FEW_ROLES, tiny_model
from test_correlation import some_tokens

from universal_neurons import StudyConfig, run_study
from universal_neurons.roles import models_at_once, threads_of_each
from universal_neurons.roles.side_by_side import SMALL, side_by_side


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_as_many_small_models_as_threads_on_a_cpu(two_threads):
    models = [tiny_model(seed=seed) for seed in range(3)]
    assert models_at_once(models, "cpu") == 3  # none is left for a round with a thread idle
    assert models_at_once(models[:2], "cpu") == models_at_once(models[:2] * 2, "cpu") == 2
    assert models_at_once(models[:2] * 2 + models[:1], "cpu") == 3
    assert models_at_once(models[:1], "cpu") == 1
    assert models_at_once(models, "cuda") == 1
    models[1].vocab_size = SMALL
    assert models_at_once(models, "cpu") == 1
    assert models_at_once([], "cpu") == 1


def test_threads_are_shared_and_given_back(two_threads):
    with threads_of_each(2):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with pytest.raises(RuntimeError, match="why"), threads_of_each(3):
        raise RuntimeError("why")
    assert torch.get_num_threads() == 2


def test_results_come_in_order_and_every_token_counts(two_threads):
    counted, met = [], threading.Barrier(2, timeout=60)

    def task(number):
        def run(count):
            met.wait()  # two of them at a time
            assert torch.get_num_threads() == 1
            count(number)
            return number

        return run

    assert side_by_side([task(number) for number in (4, 3, 2, 1)], 2, counted.append) == [4, 3, 2, 1]
    assert sorted(counted) == [1, 2, 3, 4]


def test_an_error_ends_the_others_at_their_next_count(two_threads):
    begun, after = threading.Event(), []

    def fails(count):
        begun.wait(60)
        raise ValueError("of the first")

    def goes_on(count):
        begun.set()
        for number in range(10_000_000):
            count(1)
            after.append(number)

    with pytest.raises(ValueError, match="of the first"):
        side_by_side([fails, goes_on, goes_on], 2, lambda tokens: None)
    assert len(after) < 10_000_000


def test_a_study_has_the_same_roles_one_by_one_and_side_by_side(tmp_path):
    found = []
    for threads in (1, 2):
        stages = ("weights", "statistics", "universality", "roles")
        models = [tiny_model(seed=seed) for seed in range(3)]
        config = StudyConfig(out=str(tmp_path / str(threads)), threads=threads, stages=stages, draws=2, roles=FEW_ROLES)
        found.append(run_study(config, models=models, tokens=some_tokens(60), progress=False))
    one, two = found
    for name in ("effects", "ablations", "interventions", "heads", "attention", "functional"):
        ours, theirs = one.table(name), two.table(name)
        assert ours.select(pl.col(pl.String)).equals(theirs.select(pl.col(pl.String))), name
        for column in ours.select(pl.col(pl.Float32, pl.Float64)).columns:
            difference = (ours[column].fill_nan(0).fill_null(0) - theirs[column].fill_nan(0).fill_null(0)).abs().max()
            assert difference < 1e-4, (name, column)
