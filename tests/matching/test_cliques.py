"""Mutual cliques against brute force, and those of random bases against rotating the activations themselves."""

from itertools import combinations, permutations, product

import numpy as np
import pytest
import torch
from conftest import settled, tiny_model
from test_correlation import captured, run_pass, some_tokens

from universal_neurons.matching import RandomBases, best_of, can_be_rotated, mutual_cliques
from universal_neurons.matching.baselines import rotation
from universal_neurons.matching.cliques import Best
from universal_neurons.matching.comparison import compare
from universal_neurons.statistics import seed_of

NAMES = ("b", "a", "c")  # not in the order of the alphabet


def bests_of(rho):
    """Best matches in matrices of ρ, by pair of models."""
    found = {}
    for (one, other), matrix in rho.items():
        for pair, of in (((one, other), matrix), ((other, one), matrix.T)):
            found[pair] = Best(torch.from_numpy(of.argmax(1)), torch.from_numpy(of.max(1)))
    return found


def brute_force(sizes, rho):
    """All tuples of a unit of each model, tried one by one."""
    matrix = dict(rho) | {pair[::-1]: m.T for pair, m in rho.items()}
    cliques = {}
    for units in product(*map(range, sizes)):
        if all(matrix[p, q][units[i], :].argmax() == units[j] for (i, p), (j, q) in permutations(enumerate(NAMES), 2)):
            pairs = [abs(matrix[p, q][units[i], units[j]]) for (i, p), (j, q) in combinations(enumerate(NAMES), 2)]
            cliques[units] = min(pairs), np.mean(pairs)
    return cliques


@pytest.mark.parametrize("seed", range(3))
def test_cliques_are_all_tuples_of_best_matches(seed):
    chooser, sizes = np.random.default_rng(seed), (9, 7, 8)
    shared = chooser.standard_normal((4, 300))
    acts = [
        np.vstack([shared + 0.7 * chooser.standard_normal((4, 300)), chooser.standard_normal((n - 4, 300))])
        for n in sizes
    ]
    acts = [chooser.permutation(a) for a in acts]
    rho = {
        (NAMES[i], NAMES[j]): np.corrcoef(acts[i], acts[j])[: sizes[i], sizes[i] :]
        for i, j in combinations(range(3), 2)
    }
    found, expected = mutual_cliques(NAMES, bests_of(rho)), brute_force(sizes, rho)
    assert 2 <= len(expected) <= 7
    assert {tuple(m) for m in found.members.tolist()} == set(expected)
    for members, smallest, mean in zip(found.members.tolist(), found.min_corr, found.mean_corr):
        np.testing.assert_allclose((smallest, mean), expected[tuple(members)])
    assert (np.diff(found.min_corr) <= 0).all()


def test_dead_units_are_in_none():
    index, corr = torch.tensor([-1, 1]), torch.tensor([torch.nan, 0.8])
    found = mutual_cliques("ab", {("a", "b"): Best(index, corr), ("b", "a"): Best(index, corr)})
    assert found.members.tolist() == [[1, 1]]


def permuted(model, name, seed):
    """The same network with the neurons of every layer in another order."""
    copy = tiny_model("gpt2", 0, name)
    copy.hf.load_state_dict(model.hf.state_dict())
    for block in copy.blocks:
        order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            for part, dim in ((block.mlp.c_fc.weight, 1), (block.mlp.c_fc.bias, 0), (block.mlp.c_proj.weight, 0)):
                part.copy_(part.index_select(dim, order))
    return copy


@pytest.fixture(scope="module")
def copies():
    first = tiny_model("gpt2", 0, "b")
    return [first, permuted(first, "a", 1), permuted(first, "c", 2)]


@pytest.fixture(scope="module")
def config():
    return settled(pairs="all", stages=("universality",), seed=5)


def everybody(evidence, config):
    return [compare(evidence, asker, [n for n in NAMES if n != asker], config, draws=2) for asker in NAMES]


def turned(acts, name, config):
    basis = rotation("rotation", 24, seed_of("random basis", config.seed, name), 0).numpy()
    return np.concatenate([layer @ basis.T for layer in np.split(acts, 2, 1)], 1)


def test_of_permuted_copies_every_neuron_is_in_a_clique_and_few_random_units(copies, config):
    tokens = some_tokens(200)
    evidence = run_pass(copies, tokens)
    found = mutual_cliques(NAMES, best_of(everybody(evidence, config)))
    assert len(found.members) == 48
    assert (found.min_corr > 1 - 1e-6).all()
    bases = RandomBases(config)
    bases.take_in(evidence, [(a, b) for a in NAMES for b in NAMES if a != b])
    random = bases.cliques(NAMES)
    assert len(random.members) < 24
    assert (random.min_corr < 0.99).all()


def test_random_bases_are_rotating_the_activations_of_every_model(config):
    models, tokens = [tiny_model("gpt2", seed, name) for seed, name in enumerate(NAMES)], some_tokens()
    bases = RandomBases(config)
    evidence = run_pass(models, tokens)
    bases.take_in(evidence, [("b", "a"), ("a", "b"), ("c", "a"), ("b", "c")])
    acts = {model.name: turned(captured(model, tokens), model.name, config) for model in models}
    rho = {(one, other): np.corrcoef(acts[one].T, acts[other].T)[:48, 48:] for one, other in combinations(NAMES, 2)}
    for (asker, other), best in bests_of(rho).items():
        np.testing.assert_allclose(bases.bests[asker, other].corr.numpy(), best.corr.numpy(), atol=2e-6)
        np.testing.assert_array_equal(bases.bests[asker, other].index.numpy(), best.index.numpy())
    assert {tuple(m) for m in bases.cliques(NAMES).members.tolist()} == set(brute_force((48, 48, 48), rho))
    again = RandomBases(config)
    again.restore(bases.state())
    np.testing.assert_array_equal(again.cliques(NAMES).members, bases.cliques(NAMES).members)
    assert list(again.bests) == list(bases.bests)


def test_a_basis_is_a_models_own(copies, config):
    """One rotation for all models would make of identical ones a clique for every random unit."""
    same = [copies[0], tiny_model("gpt2", 0, "a"), tiny_model("gpt2", 0, "c")]
    for model in same[1:]:
        model.hf.load_state_dict(copies[0].hf.state_dict())
    bases = RandomBases(config)
    bases.take_in(run_pass(same, some_tokens(200)), [("b", "a"), ("b", "c"), ("a", "c")])
    assert len(bases.cliques(NAMES).members) < 24


def test_dead_neurons_are_no_units_of_random_bases(config):
    models = [tiny_model("gpt2", seed, name) for seed, name in enumerate(NAMES)]
    with torch.no_grad():
        models[1].blocks[0].mlp.c_fc.weight.zero_()
    bases = RandomBases(config)
    bases.take_in(run_pass(models, some_tokens()), [("b", "a"), ("b", "c"), ("a", "c")])
    assert (bases.bests["a", "b"].index[:24] == -1).all()
    assert (bases.bests["a", "b"].index[24:] >= 0).all()
    assert (bases.bests["b", "a"].index >= 24).all()


@pytest.mark.parametrize(
    ("settings", "able"),
    [
        ({"pairs": "all"}, True),
        ({}, False),
        ({"pairs": "all", "search": "sketch"}, False),
        ({"pairs": "all", "baseline": "permutation"}, False),
        ({"pairs": "all", "stages": ("weights",)}, False),
    ],
)
def test_what_random_bases_need(settings, able):
    assert can_be_rotated(settled(**settings)) == able
