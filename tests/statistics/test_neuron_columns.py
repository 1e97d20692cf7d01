"""The neuron table's columns against float64 NumPy and scipy."""

import numpy as np
import polars as pl
import pytest
import scipy.stats
import torch
from conftest import VOCABULARY, tiny_model

from universal_neurons import processed_weights
from universal_neurons.statistics import (
    RANKED,
    Batch,
    Block,
    Key,
    LayerCovariance,
    Moments,
    activation_statistics,
    duplicates,
    orientation_of,
    percentiles,
    weight_statistics,
)
from universal_neurons.statistics.neuron_columns import extreme_cosines, vocabulary_moments

LAYERS, WIDTH, TOKENS = 2, 24, 300


def flat(tensor):
    return tensor.double().flatten(0, 1).numpy()


def cosines(left, right):
    return (left @ right.T) / np.outer(np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1))


def by_numpy(weights):
    w_in, w_out, w_u = flat(weights.w_in), flat(weights.w_out), weights.w_u.double().numpy()
    norm_in, norm_out = np.linalg.norm(w_in, axis=1), np.linalg.norm(w_out, axis=1)
    expected = {
        "w_in_norm": norm_in,
        "w_out_norm": norm_out,
        "input_bias": weights.b_in.numpy().ravel(),
        "in_out_sim": np.diag(cosines(w_in, w_out)),
        "l2_penalty": norm_in**2 + norm_out**2,
    }
    if weights.w_up is not None:
        w_up = flat(weights.w_up)
        expected["w_up_norm"] = np.linalg.norm(w_up, axis=1)
        expected["l2_penalty"] = (w_in**2).sum(1) + (w_up**2).sum(1) + (w_out**2).sum(1)
        expected["in_up_sim"], expected["up_out_sim"] = np.diag(cosines(w_in, w_up)), np.diag(cosines(w_up, w_out))
    for side, matrix in (("in", w_in), ("out", w_out)):
        others = cosines(matrix, matrix)
        np.fill_diagonal(others, np.nan)
        expected[f"{side}_cos_max"], expected[f"{side}_cos_min"] = np.nanmax(others, 1), np.nanmin(others, 1)
    over_vocabulary = cosines(w_out, w_u)
    expected["vocab_mean"], expected["vocab_var"] = over_vocabulary.mean(1), over_vocabulary.var(1)
    expected["vocab_skew"] = scipy.stats.skew(over_vocabulary, axis=1)
    expected["vocab_kurt"] = scipy.stats.kurtosis(over_vocabulary, axis=1, fisher=False)
    return expected


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "gpt_neox", "llama", "qwen3", "opt", "bert"])
def test_weight_statistics_are_numpys(family):
    weights = processed_weights(tiny_model(family))
    found, expected = weight_statistics(weights), by_numpy(weights)
    assert set(found) == set(expected)
    for name, column in found.items():
        assert column.shape == (LAYERS * WIDTH,)
        np.testing.assert_allclose(column, expected[name], rtol=1e-5, atol=2e-6, err_msg=name)


def test_own_columns_are_exact():
    weights = processed_weights(tiny_model("llama"))
    found, expected = weight_statistics(weights), by_numpy(weights)
    for name in ("w_in_norm", "w_up_norm", "w_out_norm", "l2_penalty", "in_out_sim", "in_up_sim", "up_out_sim"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12, atol=1e-14)


def test_duplicate_and_antipodal_neurons_are_found_also_across_layers():
    model = tiny_model("gpt2")
    first, second = (block.mlp for block in model.blocks)
    with torch.no_grad():
        first.c_fc.weight[:, 5] = 3 * first.c_fc.weight[:, 7]
        first.c_fc.weight[:, 6] = -0.5 * first.c_fc.weight[:, 8]
        second.c_proj.weight[9] = 2 * first.c_proj.weight[2]
        second.c_proj.weight[10] = -4 * first.c_proj.weight[3]
    found = weight_statistics(processed_weights(model))
    planted = {"in_cos_max": {5, 7}, "in_cos_min": {6, 8}, "out_cos_max": {2, 33}, "out_cos_min": {3, 34}}
    for name, neurons in planted.items():
        assert set(np.flatnonzero(np.abs(found[name]) > 1 - 1e-6).tolist()) == neurons
        assert np.sign(found[name][list(neurons)]).tolist() == [1 if "max" in name else -1] * 2
    for name in ("in_cos_max", "in_cos_min", "out_cos_max", "out_cos_min"):
        assert np.abs(found[name]).max() <= 1


def some_rows(count=40, width=8):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_zero_rows_have_no_cosines_and_are_no_neighbours():
    rows = some_rows()
    rows[[3, 17]] = 0
    kept = [n for n in range(40) if n not in (3, 17)]
    for found, alone in zip(extreme_cosines(rows), extreme_cosines(rows[kept])):
        assert found[[3, 17]].isnan().all()
        torch.testing.assert_close(found[kept], alone, rtol=0, atol=1e-6)


def test_extreme_cosines_are_those_of_all_pairs(monkeypatch):
    monkeypatch.setattr("universal_neurons.statistics.neuron_columns.TILE", 13)
    rows = some_rows()
    rows[9] = 0
    single = (rows / rows.norm(dim=1, keepdim=True)).numpy()
    cosines = single @ single.T
    np.fill_diagonal(cosines, np.nan)
    cosines[9] = cosines[:, 9] = np.nan
    kept = [n for n in range(40) if n != 9]
    for found, wanted in zip(extreme_cosines(rows), (np.nanmax, np.nanmin)):
        np.testing.assert_allclose(found[kept], wanted(cosines[kept], 1), rtol=0, atol=1e-6)
        assert found[9].isnan()


def test_a_row_without_others_has_no_extreme_cosine():
    assert all(extreme.isnan().all() for extreme in extreme_cosines(some_rows(1)))


def test_one_neighbour_is_both_the_nearest_and_the_farthest():
    highest, lowest = extreme_cosines(some_rows(2))
    torch.testing.assert_close(highest, lowest)


def test_panels_do_not_matter(monkeypatch):
    rows, vocabulary = some_rows(), some_rows(100)
    whole = [*extreme_cosines(rows), *vocabulary_moments(rows, vocabulary).values()]
    for name, size in (("PANEL_ELEMENTS", 280), ("CACHED_ELEMENTS", 200), ("TILE", 13)):
        monkeypatch.setattr(f"universal_neurons.statistics.neuron_columns.{name}", size)
    split = [*extreme_cosines(rows), *vocabulary_moments(rows, vocabulary).values()]
    for one, other in zip(whole, split):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_tokens_without_an_unembedding_are_left_out_of_the_vocabulary():
    rows, vocabulary = some_rows(), some_rows(100)
    with_zeros = torch.cat([vocabulary[:50], torch.zeros(7, 8, dtype=torch.float64), vocabulary[50:]])
    for one, other in zip(vocabulary_moments(rows, vocabulary).values(), vocabulary_moments(rows, with_zeros).values()):
        torch.testing.assert_close(one, other)


def test_a_neuron_that_writes_nothing_has_no_vocabulary_moments():
    rows = some_rows()
    rows[4] = 0
    for column in vocabulary_moments(rows, some_rows(100)).values():
        assert torch.nonzero(column.isnan()).flatten().tolist() == [4]


def test_a_neuron_for_few_tokens_has_a_high_vocabulary_kurtosis():
    model = tiny_model("gpt_neox")
    with torch.no_grad():
        unembedding = model.hf.get_output_embeddings().weight
        unembedding[: VOCABULARY - 3] *= torch.tensor([1.0] * 15 + [0.01])
        unembedding[VOCABULARY - 3 :, 15] = 100
        model.blocks[1].mlp.dense_4h_to_h.weight[:, 6] = torch.tensor([0.0] * 15 + [1.0])
    found = weight_statistics(processed_weights(model))
    assert found["vocab_kurt"].argmax() == WIDTH + 6
    assert found["vocab_skew"].argmax() == WIDTH + 6


def some_activations(layers=LAYERS, width=WIDTH):
    """With a planted duplicate (0.5), an antipode (0.7) and a dead neuron (1.3)."""
    values = np.random.default_rng(0).normal(size=(TOKENS, layers, width))
    values[:, 0, 5] = 2 * values[:, 0, 9] + 3
    values[:, 0, 7] = -values[:, 0, 11]
    values[:, 1, 8] = values[:, 0, 9]  # of another layer: does not count
    values[:, 1, 3] = 0.25
    return values


def duplicates_of(values):
    centred = values - values.mean(0)
    products = torch.from_numpy(np.einsum("tla,tlb->lab", centred, centred))
    alive = torch.from_numpy(values.min(0) < values.max(0)).flatten()
    return duplicates(LayerCovariance(len(values), products), alive)


def test_duplicates_are_corrcoefs():
    values = some_activations()
    found = duplicates_of(values)
    for layer in range(LAYERS):
        columns = slice(layer * WIDTH, (layer + 1) * WIDTH)
        with np.errstate(invalid="ignore"):
            rho = np.corrcoef(values[:, layer].T)
        np.fill_diagonal(rho, np.nan)
        alive = ~np.isnan(rho).all(1)
        np.testing.assert_allclose(found["layer_corr_max"][columns][alive], np.nanmax(rho[alive], 1), rtol=1e-12)
        np.testing.assert_array_equal(found["layer_corr_neuron"][columns][alive], np.nanargmax(rho[alive], 1))


def test_by_size_a_negated_duplicate_is_one_too():
    values = some_activations()
    values[:, 0, 2] *= -1
    values[:, 0, 9] *= -1
    centred = values - values.mean(0)
    layers = LayerCovariance(len(values), torch.from_numpy(np.einsum("tla,tlb->lab", centred, centred)))
    alive = torch.from_numpy(values.min(0) < values.max(0)).flatten()
    found = duplicates(layers, alive, by_size=True)
    expected = duplicates_of(some_activations())
    assert np.flatnonzero(duplicates(layers, alive)["layer_corr_max"] > 0.9).tolist() == []
    assert found["layer_corr_neuron"][[5, 9]].tolist() == [9, 5]
    assert (found["layer_corr_max"] >= expected["layer_corr_max"] - 1e-9)[alive].all()
    rho = np.abs(np.corrcoef(values[:, 0].T))
    np.fill_diagonal(rho, np.nan)
    np.testing.assert_allclose(found["layer_corr_max"][:WIDTH], np.nanmax(rho, 1), rtol=1e-12)


def test_orientation_is_the_sign_of_the_mean():
    np.testing.assert_array_equal(orientation_of(np.array([0.2, -0.1, 0.0, -0.0, np.nan])), [1, -1, 1, 1, 1])


def test_a_planted_duplicate_is_found_within_its_layer_only():
    found = duplicates_of(some_activations())
    assert np.flatnonzero(found["layer_corr_max"] > 0.9).tolist() == [5, 9]
    assert found["layer_corr_neuron"][[5, 9]].tolist() == [9, 5]
    assert found["layer_corr_max"][[5, 9]] == pytest.approx(1)
    assert np.nanmax(found["layer_corr_max"]) <= 1


def test_dead_neurons_have_no_duplicate_and_are_nobodys():
    found = duplicates_of(some_activations())
    assert np.flatnonzero(np.isnan(found["layer_corr_max"])).tolist() == [WIDTH + 3]
    assert np.flatnonzero(found["layer_corr_neuron"] == -1).tolist() == [WIDTH + 3]
    assert 3 not in found["layer_corr_neuron"][WIDTH:]


def test_a_neuron_counts_as_dead_whatever_rounding_left_of_its_variance():
    layer = torch.tensor([[1.0, 1e-15, 0.4], [1e-15, 1e-30, 1e-17], [0.4, 1e-17, 1.0]], dtype=torch.float64)
    found = duplicates(LayerCovariance(10, layer[None]), torch.tensor([True, False, True]))
    assert found["layer_corr_neuron"].tolist() == [2, -1, 0]
    np.testing.assert_allclose(found["layer_corr_max"], [0.4, np.nan, 0.4])


def test_a_layer_with_one_living_neuron_has_no_duplicates():
    values = some_activations()
    values[:, 1, 1:] = 0
    found = duplicates_of(values)
    assert np.isnan(found["layer_corr_max"][WIDTH:]).all()
    assert (found["layer_corr_neuron"][WIDTH:] == -1).all()


def neuron_table():
    chooser = np.random.default_rng(0)
    keys = {"model": ["a"] * 60 + ["b"] * 40, "layer": [0] * 30 + [1] * 30 + [0] * 40, "neuron": list(range(100))}
    columns = {name: chooser.normal(size=100) for name in RANKED}
    columns["mean"] = chooser.integers(0, 6, 100) / 2  # ties
    columns["skew"][[0, 3, 31, 99]] = np.nan
    columns["kurt"][30:60] = np.nan  # all of a layer
    return pl.DataFrame(keys | columns)


def test_percentiles_are_scipys_within_the_layer():
    table = percentiles(neuron_table())
    for (_, _), layer in table.group_by("model", "layer"):
        for name in RANKED:
            values, found = layer[name].to_numpy(), layer[f"{name}_percentile"].to_numpy()
            finite = values[~np.isnan(values)]
            for value, percentile in zip(values, found):
                expected = np.nan if np.isnan(value) else scipy.stats.percentileofscore(finite, value, kind="mean")
                assert percentile == pytest.approx(expected, nan_ok=True)


def test_neurons_without_a_value_have_no_percentile():
    table = percentiles(neuron_table())
    missing = table["skew_percentile"].is_null() | table["skew_percentile"].is_nan()
    assert missing.arg_true().to_list() == [0, 3, 31, 99]
    assert table["kurt_percentile"][30:60].is_null().all()


def test_percentiles_change_nothing_else():
    before = neuron_table().drop("vocab_kurt", "l2_penalty")
    table = percentiles(before)
    assert table.select(before.columns).equals(before, null_equal=True)
    assert set(table.columns) - set(before.columns) == {f"{n}_percentile" for n in RANKED if n in before.columns}


def moments_of(values):
    moments = Moments("a", values.shape[1])
    moments.update(Batch({Key("a"): Block(values)}))
    return moments.result()


def test_activation_statistics_are_the_moments():
    values = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    moments = moments_of(values)
    columns = activation_statistics(moments, moments_of(values[:9] + 1))
    for name in ("mean", "var", "skew", "kurt"):
        np.testing.assert_array_equal(columns[name], getattr(moments, name).numpy())
    np.testing.assert_array_equal(columns["sparsity"], (values.numpy() > 0).mean(0))
    np.testing.assert_allclose(columns["bos_mean"], (values[:9].double().numpy() + 1).mean(0), rtol=1e-6)


def test_a_neuron_is_bos_if_its_mean_at_position_0_is_above_all_that_is_counted():
    counted = torch.tensor([[1.0, 1.0, -3.0], [2.0, 5.0, -2.0]])
    bos = torch.tensor([[2.5, 0.5, -1.0], [2.75, 6.0, -1.0]])
    assert activation_statistics(moments_of(counted), moments_of(bos))["is_bos"].tolist() == [True, False, True]


def test_where_position_0_is_counted_too_a_neuron_that_is_highest_there_is_bos():
    """Position 0 reads the same in every row, and the mean of equal numbers may round to more or less than each."""
    bos = torch.linspace(-3, 3, 100).expand(1000, 100)
    lower, higher = torch.cat([bos, bos - 1]), torch.cat([bos, bos + 1])
    assert activation_statistics(moments_of(lower), moments_of(bos))["is_bos"].all()
    assert not activation_statistics(moments_of(higher), moments_of(bos))["is_bos"].any()
