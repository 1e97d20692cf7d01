"""Mutual pairs, anchors and those of a random basis: against rotating the activations themselves, in NumPy."""

from functools import partial

import numpy as np
import pytest
import torch
from conftest import settled, tiny_model
from test_candidates import DEAD_LEFT, GROUP_SIZE, N_LEFT, N_RIGHT, by_shard, fed, planted
from test_cliques import permuted
from test_correlation import captured, run_pass, some_tokens

from universal_neurons.features import NeuronSource
from universal_neurons.matching import WHOLE, Evidence, Findings, mutual_pairs, rotated_mutual_pairs
from universal_neurons.matching.baselines import rotation
from universal_neurons.matching.comparison import compare, pieces_of, together
from universal_neurons.matching.rotated_pairs import RotatedPairs
from universal_neurons.passes import Pass, cut, model_pairs, panel_recipes
from universal_neurons.passes.panels import model_recipes
from universal_neurons.statistics import (
    CoMoments,
    Extremes,
    Key,
    LayerMoments,
    ShardEnergies,
    Signs,
    Statistics,
    SumSquares,
    What,
)
from universal_neurons.study.counts import LEVELS, anchors_table
from universal_neurons.units import Units

NAMES = ("b", "a", "c")  # not in the order of the alphabet
DEAD = 30


def pairs_by_numpy(rho, by_size):
    """Whether each row and its best column are each other's best, by looking at all of them; and the best's size."""
    strength = np.where(np.isnan(rho), -np.inf, np.abs(rho) if by_size else rho)
    best = strength.argmax(1)
    mutual = [
        np.isfinite(strength[row, at]) and (strength[:, at] <= strength[row, at]).all() for row, at in enumerate(best)
    ]
    return np.array(mutual), np.abs(np.take_along_axis(rho, best[:, None], 1)[:, 0]), best


def correlations(one, other):
    with np.errstate(invalid="ignore"):
        return np.corrcoef(one.T, other.T)[: one.shape[1], one.shape[1] :]


def turned(acts, config, signs):
    basis = rotation(config.baseline, 24, config.seed, 0).numpy()
    return np.concatenate([layer @ basis.T for layer in np.split(acts * signs, 2, 1)], 1)


def in_panels(models, tokens, config, panels):
    """The statistics of a pass over co-moments cut as a study's are."""
    parts = [p for some in cut(model_pairs(models, config.pairs), panels, by_layer=config.pairs == "all") for p in some]
    made = model_recipes(models, NAMES, config) + panel_recipes(parts, config)
    run = Pass([NeuronSource(model) for model in models], made)
    run.run(tokens, tokens.shards(np.arange(len(tokens))), batch_tokens=400)
    return Evidence(Statistics(run.accumulators), [0])


def kill_one(model):
    with torch.no_grad():
        mlp = model.blocks[1].mlp
        if model.gated:
            mlp.up_proj.weight[DEAD - 24] = 0
        else:
            mlp.c_fc.weight[:, DEAD - 24] = 0


@pytest.mark.parametrize(
    ("family", "pairs", "panels", "baseline"),
    [
        ("gpt2", "reference", 1, "rotation"),
        ("gpt2", "reference", 3, "rotation"),
        ("gpt2", "all", 5, "rotation"),
        ("llama", "all", 1, "rotation"),
        ("llama", "all", 5, "gaussian"),
        ("llama", "reference", 3, "rotation"),
    ],
)
def test_pairs_are_those_of_numpys_whole_matrices(family, pairs, panels, baseline):
    """Observed and rotated; by |ρ| of gated models, rotated about activations times signs; with a dead neuron each."""
    models, tokens = [tiny_model(family, seed, name) for seed, name in enumerate(NAMES)], some_tokens()
    for model in models:
        kill_one(model)
    config = settled(pairs=pairs, stages=("universality",), seed=5, draws=2, baseline=baseline)
    evidence = in_panels(models, tokens, config, panels)
    acts = {model.name: captured(model, tokens) for model in models}
    signs, by_size = dict.fromkeys(NAMES, np.ones(48)), family == "llama"
    if by_size:
        signs = {name: np.where(values.mean(0) < 0, -1.0, 1.0) for name, values in acts.items()}
        evidence.signs = {name: torch.from_numpy(some) for name, some in signs.items()}
    found = Findings(config)
    for asker in NAMES if pairs == "all" else NAMES[:1]:
        others = [name for name in NAMES if name != asker]
        found.take_in(WHOLE, evidence, [(asker, other) for other in others])
        again = Findings(config)
        again.restore(found.state())
        comparison = again.comparison(WHOLE, asker, others)
        plain = [pairs_by_numpy(correlations(acts[asker], acts[o]), by_size) for o in others]
        rotated = [
            pairs_by_numpy(correlations(acts[asker], turned(acts[o], config, signs[o])), by_size) for o in others
        ]
        alive = np.arange(48) != DEAD
        for of, expected in ((mutual_pairs(comparison), plain), (rotated_mutual_pairs(comparison), rotated)):
            np.testing.assert_array_equal(of.mutual, [mutual for mutual, _, _ in expected])
            np.testing.assert_allclose(of.size[:, alive], [size[alive] for _, size, _ in expected], atol=2e-6)
            assert not of.mutual[:, DEAD].any()
            assert 2 * len(others) < of.mutual.sum() < 40 * len(others)
        for pairs_with, (_, _, best) in zip(comparison.rotated, rotated):
            np.testing.assert_array_equal(pairs_with.unit[alive], best[alive])
        for place, pairs_with in enumerate(comparison.rotated):
            np.testing.assert_array_equal(pairs_with.unit.numpy(), comparison.raw.units[0, place])
            np.testing.assert_array_equal(np.abs(pairs_with.corr), comparison.maxima[0, place])
        check_table(comparison, plain, rotated)


def check_table(comparison, plain, rotated):
    """Counted once more, neuron by neuron."""
    universal = np.arange(48) % 3 == 0
    table = anchors_table([comparison], {comparison.asker: {"is_universal": universal}})
    assert table["level"].to_list() == list(LEVELS)
    for row in table.iter_rows(named=True):
        for ending, of in (("", plain), ("_rotated", rotated)):
            above = [mutual & (size >= row["level"]) for mutual, size, _ in of]
            anchors = {n for n in range(48) if all(mutual[n] for mutual in above)}
            assert row[f"pairs{ending}"] == sum(int(mutual.sum()) for mutual in above)
            assert row[f"anchors{ending}"] == len(anchors)
            if not ending:
                assert row["universal"] == sum(bool(universal[n]) for n in anchors)


def test_of_permuted_copies_every_neuron_is_an_anchor_and_few_of_a_random_basis():
    first = tiny_model("gpt2", 0, "b")
    models = [first, permuted(first, "a", 1), permuted(first, "c", 2)]
    evidence = run_pass(models, some_tokens(200))
    comparison = compare(evidence, "b", ["a", "c"], settled(seed=5), draws=2)
    found, rotated = mutual_pairs(comparison), rotated_mutual_pairs(comparison)
    assert found.anchors_from(0.999).sum() == found.anchors.sum() == 48
    assert found.pairs_from(0.999) == 96
    assert rotated.anchors.sum() < 24
    assert rotated.anchors_from(0.99).sum() == 0


def test_a_reading_on_the_way_and_permutation_have_no_rotated_pairs():
    models = [tiny_model("gpt2", seed, name) for seed, name in enumerate("ab")]
    for settings, k in (({}, 1), ({"baseline": "permutation"}, None)):
        evidence = run_pass(models, some_tokens(), **settings)
        comparison = compare(evidence, "a", ["b"], settled(**settings), draws=2, k=k)
        assert rotated_mutual_pairs(comparison) is None
    table = anchors_table([comparison], {"a": {"is_universal": np.zeros(48, bool)}})
    assert table["pairs_rotated"].is_null().all()
    assert table["anchors_rotated"].is_null().all()
    assert table["pairs"][0] > 0


def test_a_sketchs_pairs_are_those_of_its_noisy_correlations_and_counted_without_the_noise():
    left, right = planted()
    units, signs = Units.equal(2, N_RIGHT // 2), Signs(GROUP_SIZE, 0)
    parts = [CoMoments(Key("a", What.SUMS), Key("b", What.SUMS), N_LEFT, N_RIGHT)]
    for name, n in (("a", N_LEFT), ("b", N_RIGHT)):
        parts += [Extremes(name, n), SumSquares(name, n, group=0), SumSquares(Key(name, What.SUMS), n, group=0)]
        parts.append(ShardEnergies(name, n, signs))
    parts.append(LayerMoments(Key("b", What.SUMS), units))
    evidence = fed(parts, by_shard(left, right, 0))
    config = settled(search="sketch", seed=3)
    pairs = together(pieces_of(evidence, "a", "b", config, draws=2)).rotated
    basis, width = rotation("rotation", units.width, 3, 0).numpy(), units.width
    covariance = [basis @ layer.numpy() @ basis.T for layer in evidence.layers("b", What.SUMS).centred]
    cross = evidence.cross("a", "b").centred().numpy()
    norms = np.sqrt(evidence.spread("a", What.SUMS).centred.numpy())
    norms[DEAD_LEFT] = np.nan
    rho = np.concatenate(
        [cross[:, n * width : (n + 1) * width] @ basis.T / norms[:, None] / np.sqrt(c.diagonal()) for n, c in enumerate(covariance)], 1
    )  # fmt: skip
    mutual, size, best = pairs_by_numpy(rho, by_size=False)
    alive = np.arange(N_LEFT) != DEAD_LEFT
    np.testing.assert_array_equal(pairs.mutual, mutual)
    np.testing.assert_array_equal(pairs.unit[alive], best[alive])
    noise = float(evidence.certainty("a", "b").even)
    of_layer = [np.square(np.split(rho, 2, 1)[at // width][row]).mean() for row, at in enumerate(best)]
    lowered = size * np.sqrt(np.clip(1 - noise / np.array(of_layer), 0, None))
    np.testing.assert_allclose(pairs.corr[alive], lowered[alive], atol=1e-5)
    assert (lowered[alive] < size[alive]).all()
    assert pairs.corr[DEAD_LEFT].isnan()


def test_parts_of_either_model_make_the_same_whole():
    """What is better is taken over, wherever it was seen; ties stay with the first."""
    rho = torch.randn(11, 9, generator=torch.Generator().manual_seed(0))
    rho[4], rho[:, 2] = -torch.inf, -torch.inf

    def seen(rows, columns):
        part = rho[rows, columns]
        pairs = RotatedPairs.nothing(*part.shape, rho.device)
        for start in range(0, len(part), 3):
            some = slice(start, start + 3)
            pairs.see(some, slice(0, part.shape[1]), part[some], 0.5)
        return pairs.numbered(rows.start, columns.start)

    make = partial(slice, 0)
    whole = seen(make(11), make(9))
    above, left = slice(5, 11), slice(3, 9)
    apart = seen(make(5), make(3)).beside(seen(make(5), left)).below(seen(above, make(3)).beside(seen(above, left)))
    for name, part in vars(whole).items():
        torch.testing.assert_close(getattr(apart, name), part, rtol=0, atol=0, equal_nan=True, msg=name)
    assert whole.unit[4] == whole.back[2] == -1
    assert not whole.mutual[4]
    mutual, _, _ = pairs_by_numpy(np.where(np.isinf(rho), np.nan, rho), by_size=False)
    np.testing.assert_array_equal(whole.mutual, mutual)
