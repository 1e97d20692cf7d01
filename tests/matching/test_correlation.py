"""Correlations of real activations against float64 NumPy, matches, dead neurons, the layer profile."""

import numpy as np
import pytest
import torch
from conftest import settled, tiny_model

from universal_neurons import TokenDataset
from universal_neurons.features import NeuronSource
from universal_neurons.matching import Evidence, layer_profile
from universal_neurons.matching.correlation import below, beside, correlation_panels, find_matches
from universal_neurons.passes import Pass, model_pairs
from universal_neurons.passes.panels import study_recipes
from universal_neurons.statistics import CrossMoments, Statistics
from universal_neurons.units import Units

pytestmark = pytest.mark.usefixtures("by_onednn")

CONTEXT = 40


def some_tokens(rows=60, seed=0, masked=(0, 7)):
    chooser = np.random.default_rng(seed)
    pieces = [("", chooser.integers(1, 1024, CONTEXT - 1 - (r % 5) * (r % 3))) for r in range(rows)]
    return TokenDataset.from_pieces(pieces, context=CONTEXT, bos=0, masked=masked)


def recipes(models, pairs="all", groups=1, **settings):
    config = settled(pairs=pairs, stages=("universality",), **settings)
    return study_recipes(models, model_pairs(models, pairs), config, groups)


def run_pass(models, tokens, dtype="float32", batch_tokens=400, pairs="all", **settings):
    run = Pass([NeuronSource(m, dtype) for m in models], recipes(models, pairs, **settings))
    run.run(tokens, tokens.shards(np.arange(len(tokens))), batch_tokens=batch_tokens)
    return Evidence(Statistics(run.accumulators), [0])


def captured(model, tokens):
    """float64 activations at counted positions, from plain hooks on the output projections."""
    every = np.arange(len(tokens))
    layers, handles = [], []
    for block in model.blocks:
        mlp = block.mlp
        out = getattr(mlp, "c_proj", None) or getattr(mlp, "dense_4h_to_h", None) or mlp.down_proj
        handles.append(out.register_forward_pre_hook(lambda _m, args: layers.append(args[0].double())))
    with torch.inference_mode():
        model.hf(torch.from_numpy(tokens.ids(every)))
    for handle in handles:
        handle.remove()
    keep = tokens.mask(every)
    return torch.cat(layers, -1).numpy()[keep]


def correlation(evidence, left, right):
    panels = correlation_panels(evidence.cross(left, right), evidence.norms(left), evidence.norms(right))
    return torch.cat([panel for _, panel in panels]).numpy()


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("tf32", 1e-3), ("bfloat16", 1e-3)])
def test_against_float64_numpy(family, dtype, tolerance, monkeypatch):
    """Of rounded activations, by exact products: those that round too are in tests/statistics/test_products.py."""
    monkeypatch.setattr("universal_neurons.statistics.products.processor_flags", frozenset)
    models = [tiny_model(family), tiny_model(family, name="perturbed")]
    with torch.no_grad():
        for parameter in models[1].hf.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    tokens = some_tokens()
    rho = correlation(run_pass(models, tokens, dtype), models[0].name, models[1].name)
    a, b = (captured(model, tokens) for model in models)
    expected = np.corrcoef(a.T, b.T)[: a.shape[1], a.shape[1] :]
    assert np.abs(rho).max() <= 1
    assert np.abs(rho - expected).max() <= tolerance
    assert np.abs(expected).max() > 0.3


@pytest.mark.parametrize("families", [("gpt2", "llama"), ("gpt_neox", "opt")])
def test_families_can_be_compared_with_each_other(families):
    models = [tiny_model(family) for family in families]
    rho = correlation(run_pass(models, some_tokens()), models[0].name, models[1].name)
    assert rho.shape == (48, 48)
    assert np.isfinite(rho).all()


def test_encoders_do_not_see_padding():
    model = tiny_model("bert")
    tokens = some_tokens()
    evidence = run_pass([model, tiny_model("bert", 1)], tokens)
    every = np.arange(len(tokens))
    alone = []
    for row in every:
        length = tokens.lengths[row]
        activation = model.activations(torch.from_numpy(tokens.ids(np.array([row]))[:, :length]))[0]
        alone.append(activation.double().numpy()[tokens.mask(np.array([row]))[0, :length]])
    squares = np.concatenate(alone).var(0) * evidence.count(model.name)
    np.testing.assert_allclose(evidence.layers(model.name).squares.numpy(), squares, rtol=1e-4)


def test_batches_shards_and_merges_do_not_matter():
    models = [tiny_model("gpt2", seed) for seed in (0, 1)]
    tokens = some_tokens(120)
    names = models[0].name, models[1].name
    expected = correlation(run_pass(models, tokens), *names)
    for batch_tokens in (1, 100, 10**6):
        np.testing.assert_allclose(
            correlation(run_pass(models, tokens, batch_tokens=batch_tokens), *names), expected, atol=1e-6
        )
    run = Pass([NeuronSource(m) for m in models], recipes(models, groups=2))
    shards = tokens.shards(np.arange(120))
    parts = [shard.rows[start::3] for shard in shards for start in range(3)]
    from universal_neurons.text import Shard

    run.run(tokens, [Shard(n, rows, n % 2) for n, rows in enumerate(parts)], batch_tokens=400)
    np.testing.assert_allclose(correlation(Evidence(Statistics(run.accumulators), [1, 0]), *names), expected, atol=1e-6)


def test_matches_are_numpys():
    models = [tiny_model("gpt2", seed) for seed in (0, 1)]
    tokens = some_tokens()
    evidence = run_pass(models, tokens)
    rho = correlation(evidence, *(m.name for m in models))
    found = find_matches(evidence.cross("gpt2-0", "gpt2-1"), evidence.norms("gpt2-0"), evidence.norms("gpt2-1"), 5)
    order = np.argsort(-rho, 1)[:, :5]
    np.testing.assert_array_equal(found.index.numpy(), order)
    np.testing.assert_allclose(found.corr.numpy(), np.take_along_axis(rho, order, 1))
    np.testing.assert_array_equal(found.lowest_index.numpy(), rho.argmin(1))
    np.testing.assert_array_equal(found.mutual.numpy(), rho.argmax(0)[rho.argmax(1)] == np.arange(len(rho)))
    back = find_matches(evidence.cross("gpt2-1", "gpt2-0"), evidence.norms("gpt2-1"), evidence.norms("gpt2-0"), 5)
    np.testing.assert_array_equal(back.index[:, 0].numpy(), rho.argmax(0))


def test_matches_do_not_depend_on_panels(monkeypatch):
    models = [tiny_model("gpt2", seed) for seed in (0, 1)]
    evidence = run_pass(models, some_tokens())
    arguments = evidence.cross("gpt2-0", "gpt2-1"), evidence.norms("gpt2-0"), evidence.norms("gpt2-1")
    whole = find_matches(*arguments)
    monkeypatch.setattr("universal_neurons.matching.correlation.PANEL_ELEMENTS", 100)
    split = find_matches(*arguments)
    for name in ("corr", "index", "lowest_corr", "best_back"):
        torch.testing.assert_close(getattr(whole, name), getattr(split, name), rtol=0, atol=0)


def test_a_permuted_model_is_matched_to_itself():
    original, permuted = tiny_model("gpt2", 0, "a"), tiny_model("gpt2", 0, "b")
    orders = []
    for block in permuted.blocks:
        order = torch.randperm(24, generator=torch.Generator().manual_seed(len(orders)))
        with torch.no_grad():
            block.mlp.c_fc.weight.copy_(block.mlp.c_fc.weight[:, order])
            block.mlp.c_fc.bias.copy_(block.mlp.c_fc.bias[order])
            block.mlp.c_proj.weight.copy_(block.mlp.c_proj.weight[order])
        orders.append(order)
    ids = torch.arange(60).view(2, 30)
    torch.testing.assert_close(original.logits(ids), permuted.logits(ids), rtol=1e-4, atol=1e-4)
    evidence = run_pass([original, permuted], some_tokens())
    found = find_matches(evidence.cross("a", "b"), evidence.norms("a"), evidence.norms("b"), 3)
    expected = torch.cat([torch.argsort(order) + 24 * layer for layer, order in enumerate(orders)])
    torch.testing.assert_close(found.index[:, 0], expected)
    torch.testing.assert_close(found.corr[:, 0], torch.ones(48, dtype=torch.float64), rtol=0, atol=1e-6)
    assert found.mutual.all()


def test_dead_neurons_match_nothing():
    models = [tiny_model("gpt2", seed) for seed in (0, 1)]
    for model, neuron in zip(models, (3, 8)):
        with torch.no_grad():
            model.blocks[1].mlp.c_fc.weight[:, neuron] = 0
            model.blocks[1].mlp.c_fc.bias[neuron] = 0.7
    evidence = run_pass(models, some_tokens())
    assert torch.nonzero(evidence.dead("gpt2-0")).flatten().tolist() == [27]
    found = find_matches(evidence.cross("gpt2-0", "gpt2-1"), evidence.norms("gpt2-0"), evidence.norms("gpt2-1"), 48)
    assert found.index.shape == (48, 47)
    assert torch.isnan(found.corr[27]).all()
    assert (found.index[27] == -1).all()
    assert not found.mutual[27]
    alive = [n for n in range(48) if n != 27]
    assert torch.isfinite(found.corr[alive]).all()
    assert not (found.index[alive] == 32).any()
    assert found.best_back[32] == -1
    profile = layer_profile(found.index[:, 0], Units.equal(2, 24), Units.equal(2, 24))
    counts = np.array([[((found.index[a, 0] // 24 == m) & (found.index[a, 0] >= 0)).sum() for m in (0, 1)]
                       for a in (slice(0, 24), slice(24, 48))])  # fmt: skip
    np.testing.assert_allclose(profile.numpy(), counts / counts.sum(1, keepdims=True))
    assert counts.sum() == 47


def test_a_model_whose_neurons_are_all_dead_is_matched_by_none():
    models = [tiny_model("gpt2", seed) for seed in (0, 1)]
    with torch.no_grad():
        for block in models[1].blocks:
            block.mlp.c_fc.weight.zero_()
    evidence = run_pass(models, some_tokens())
    assert evidence.dead("gpt2-1").all()
    found = find_matches(evidence.cross("gpt2-0", "gpt2-1"), evidence.norms("gpt2-0"), evidence.norms("gpt2-1"))
    assert torch.isnan(found.corr).all()
    assert (found.index == -1).all()
    assert not found.mutual.any()


def test_the_histogram_counts_all_correlations_whatever_the_panels():
    models = [tiny_model("gpt2", seed) for seed in (0, 1)]
    with torch.no_grad():
        models[0].blocks[0].mlp.c_fc.weight[:, 2] = 0
    tokens = some_tokens()
    evidence = run_pass(models, tokens)
    cross, left, right = evidence.cross("gpt2-0", "gpt2-1"), evidence.norms("gpt2-0"), evidence.norms("gpt2-1")
    a, b = (captured(model, tokens) for model in models)
    expected = np.corrcoef(np.delete(a, 2, 1).T, b.T)[:47, 47:]
    found = find_matches(cross, left, right, histogram=True).histogram.numpy()
    assert np.abs(np.histogram(expected, 200, (-1, 1))[0] - found).sum() <= 2
    parts = [
        CrossMoments(cross.count, cross.left_sum[rows], cross.right_sum, cross.cross[rows])
        for rows in (slice(0, 20), slice(20, 48))
    ]
    upper, lower = (
        find_matches(part, left[rows], right, histogram=True, rows=rows.start)
        for part, rows in zip(parts, (slice(0, 20), slice(20, 48)))
    )
    whole = find_matches(cross, left, right)
    np.testing.assert_array_equal(below(upper, lower).histogram, found)
    np.testing.assert_array_equal(below(upper, lower).mutual, whole.mutual)
    sides = [
        find_matches(
            CrossMoments(cross.count, cross.left_sum, cross.right_sum[c], cross.cross[:, c]),
            left,
            right[c],
            columns=c.start,
        )
        for c in (slice(0, 24), slice(24, 48))
    ]
    np.testing.assert_array_equal(beside(*sides).index[:, :10], whole.index)
    np.testing.assert_array_equal(beside(*sides).mutual, whole.mutual)
    np.testing.assert_array_equal(beside(*sides).lowest_index, whole.lowest_index)
