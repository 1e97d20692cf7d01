"""Functional universality: a model and its copy with permuted neurons agree; ablations against runs of their own."""

import functools

import numpy as np
import polars as pl
import pytest
import torch
from conftest import tiny_network
from hand_written import jackknife_reach, predictions

from universal_neurons.interventions import Edit, Readout, Trial, intervene
from universal_neurons.models import Model
from universal_neurons.roles import DRAWS
from universal_neurons.roles.functional import Costs, LossChanges, counterparts, functional_table, random_partner
from universal_neurons.text import TokenDataset
from universal_neurons.units import Units

VOCABULARY, CONTEXT, D_MLP, ROWS = 97, 12, 24, 45
UNITS = Units.equal(2, D_MLP)
NONE_DEAD = np.zeros(2 * D_MLP, bool)
PERMUTATIONS = [np.random.default_rng(layer).permutation(D_MLP) for layer in range(2)]
CHOSEN = [3, 7, 11, 24 + 2, 24 + 20]
ROLES = ("prediction", "suppression", "partition")


@functools.cache
def original() -> Model:
    return Model(tiny_network("gpt2", vocab_size=VOCABULARY), "original")


@functools.cache
def permuted() -> Model:
    """Neuron n of the copy is neuron PERMUTATIONS[layer][n] of the original."""
    network = tiny_network("gpt2", vocab_size=VOCABULARY)
    with torch.no_grad():
        for block, order in zip(network.transformer.h, PERMUTATIONS):
            block.mlp.c_fc.weight.copy_(block.mlp.c_fc.weight[:, order])
            block.mlp.c_fc.bias.copy_(block.mlp.c_fc.bias[order])
            block.mlp.c_proj.weight.copy_(block.mlp.c_proj.weight[order])
    return Model(network, "permuted")


def match_of(number: int) -> int:
    layer, neuron = divmod(number, D_MLP)
    return layer * D_MLP + PERMUTATIONS[layer].tolist().index(neuron)


@functools.cache
def tokens() -> TokenDataset:
    """Full rows in which only BOS is masked: all positions count but the first and the last."""
    draw = np.random.default_rng(0)
    pieces = (("a", draw.integers(1, VOCABULARY, CONTEXT - 1)) for _ in range(ROWS))
    return TokenDataset.from_pieces(pieces, context=CONTEXT, bos=0, masked=(0,))


def ids() -> torch.Tensor:
    return torch.from_numpy(tokens().ids(np.arange(ROWS)))


def means_of(model: Model) -> torch.Tensor:
    return model.activations(ids()).mean((0, 1))


def added(statistic, model: Model, rows: int = ROWS):
    """A statistic after two batches of rows."""
    readout = Readout(model)
    for part in np.split(np.arange(rows), [rows // 3] if rows > 2 else []):
        statistic.add(Trial(model, readout, tokens(), part))
    return statistic


def after(model: Model, numbers: list[int], values: torch.Tensor, rows: int = ROWS) -> dict[str, np.ndarray]:
    """Predictions at the counted positions with these neurons ablated, and how the loss changed."""
    text = ids()[:rows]
    clean = model.logits(text)[:, 1:-1].flatten(0, 1)
    with intervene(model, numbers, Edit("fix", values)):
        logits = model.logits(text)[:, 1:-1].flatten(0, 1)
    found = predictions(logits, text[:, 2:].flatten(), clean)
    found["change"] = found["loss"] - predictions(clean, text[:, 2:].flatten(), clean)["loss"]
    return found


def logit_effects(model: Model) -> dict[int, np.ndarray]:
    p = {name: value.double().numpy() for name, value in model.hf.state_dict().items()}
    read = p["lm_head.weight"] * p["transformer.ln_f.weight"]
    written = np.concatenate([p[f"transformer.h.{layer}.mlp.c_proj.weight"] for layer in (0, 1)])
    effects = (written - written.mean(1, keepdims=True)) @ read.T
    return dict(enumerate(effects.astype(np.float32)))


def best_matches() -> pl.DataFrame:
    rows = []
    for number in range(2 * D_MLP):
        layer, neuron = divmod(number, D_MLP)
        rows.append(("original", layer, neuron, "permuted", 1, *divmod(match_of(number), D_MLP), 0.9))
        rows.append(("original", layer, neuron, "permuted", 2, 0, 0, 0.5))
        rows.append(("permuted", layer, neuron, "original", 1, 1, 1, 0.8))
    names = ["asker", "layer", "neuron", "match_model", "rank", "match_layer", "match_neuron", "corr"]
    integers = dict.fromkeys(("layer", "neuron", "rank", "match_layer", "match_neuron"), pl.Int32)
    return pl.DataFrame(rows, schema=names, orient="row").cast(integers)


def test_counterparts_are_the_best_matches_in_every_other_model():
    more = best_matches().with_columns(match_model=pl.lit("wider")).filter(pl.col("asker") == "original")
    matches = pl.concat([more, best_matches()])
    found = counterparts(matches, "original", [30, 2], {"original": UNITS, "permuted": UNITS, "wider": Units((40, 30))})
    layer, neuron = divmod(match_of(30), D_MLP)
    expected = [
        (2, "permuted", match_of(2), 0.9),
        (2, "wider", match_of(2), 0.9),
        (30, "permuted", match_of(30), 0.9),
        (30, "wider", layer * 40 + neuron, 0.9),
    ]
    assert found.columns == ["flat", "match_model", "match", "corr"]
    assert found.rows() == expected


def test_a_random_partner_is_another_neuron_of_the_layer():
    drawn = [random_partner(30, UNITS, seed, "b") for seed in range(400)]
    assert set(drawn) == set(range(24, 48)) - {30}
    assert drawn == [random_partner(30, UNITS, seed, "b") for seed in range(400)]
    assert drawn != [random_partner(30, UNITS, seed, "c") for seed in range(400)]
    for match in (24, 47, 0):
        assert all(random_partner(match, UNITS, seed, "b") // D_MLP == match // D_MLP for seed in range(100))
        assert all(random_partner(match, UNITS, seed, "b") != match for seed in range(100))


def test_the_only_neuron_of_a_layer_has_no_random_partner():
    assert random_partner(3, Units((3, 1)), 0, "m") is None


def test_matched_neurons_of_a_permuted_copy_do_the_same():
    models, seed = [original(), permuted()], 4
    torch.testing.assert_close(models[1].logits(ids()), models[0].logits(ids()), rtol=1e-4, atol=1e-4)
    pairs = counterparts(best_matches(), "original", CHOSEN, {"original": UNITS, "permuted": UNITS})
    matches = pairs["match"].to_list()
    asked = {"original": CHOSEN, "permuted": matches + [random_partner(m, UNITS, seed, "permuted") for m in matches]}
    changes = {m.name: added(LossChanges(m, asked[m.name], means_of(m)), m).by_number() for m in models}
    roles = {"original": [[ROLES[n % 3], *(["entropy"] if n % 2 else [])] for n in range(2 * D_MLP)]}
    roles["permuted"] = [[] for _ in range(2 * D_MLP)]
    for number in range(2 * D_MLP):
        roles["permuted"][match_of(number)] = roles["original"][number][::-1]
    roles["permuted"][matches[-1]] = []
    effects = {m.name: logit_effects(m) for m in models}
    table = functional_table(models, pairs, changes, effects, roles, seed)
    assert len(table) == len(CHOSEN)
    np.testing.assert_allclose(table["effect_corr"].to_numpy(), 1, atol=1e-6)
    np.testing.assert_allclose(table["loss_corr"].to_numpy(), 1, atol=1e-4)
    assert table["same_roles"].to_list() == [True] * 4 + [False]
    assert table["match_roles"].to_list() == [roles["permuted"][match] for match in matches]
    for row, number, match in zip(table.iter_rows(named=True), CHOSEN, matches):
        assert (row["asker"], row["model"], row["match_model"]) == ("original", "original", "permuted")
        assert (row["layer"], row["neuron"]) == divmod(number, D_MLP)
        assert (row["match_layer"], row["match_neuron"]) == divmod(match, D_MLP)
        partner = random_partner(match, UNITS, seed, "permuted")
        expected = np.corrcoef(effects["original"][number], effects["permuted"][partner])[0, 1]
        np.testing.assert_allclose(row["effect_corr_random"], expected, atol=1e-5)
        one, other = (after(m, [n], means_of(m)[[n]])["change"] for m, n in zip(models, (number, partner)))
        np.testing.assert_allclose(row["loss_corr_random"], np.corrcoef(one, other)[0, 1], atol=1e-3)
    assert table["effect_corr_random"].abs().max() < 0.9
    assert table["loss_corr_random"].abs().mean() < 0.5


def test_loss_changes_are_those_of_runs_of_their_own():
    model = original()
    means = means_of(model)
    changes = added(LossChanges(model, [*CHOSEN, 7], means), model)
    assert changes.first == 0
    assert LossChanges(model, [30, 40], means).first == 1
    for number in CHOSEN:
        expected = after(model, [number], means[[number]])["change"]
        np.testing.assert_allclose(changes.by_number()[number], expected, atol=1e-4)


def test_effects_over_vocabularies_that_are_padded_differently():
    model = original()
    changes = {"original": added(LossChanges(model, [3], means_of(model)), model).by_number()}
    other = Model(model.hf, "other")
    partner = random_partner(3, UNITS, 0, "other")
    changes["other"] = added(LossChanges(other, [3, partner], means_of(model)), other).by_number()
    effects = logit_effects(model)
    padded = {number: np.append(effect, np.zeros(5, np.float32)) for number, effect in effects.items()}
    pairs = pl.DataFrame({"flat": [3], "match_model": ["other"], "match": [3], "corr": [1.0]})
    nothing = {name: [[] for _ in range(48)] for name in ("original", "other")}
    table = functional_table([model, other], pairs, changes, {"original": effects, "other": padded}, nothing, 0)
    np.testing.assert_allclose(table["effect_corr"].to_numpy(), 1, atol=1e-6)
    assert table["same_roles"].to_list() == [None]  # neither has a role


def test_random_sets_are_as_many_other_neurons_of_the_same_layers():
    model = original()
    means = means_of(model)
    costs = Costs(model, CHOSEN, means, NONE_DEAD, 0)
    assert costs.sets[0] == CHOSEN
    assert len(costs.sets) == 1 + DRAWS
    assert len({tuple(numbers) for numbers in costs.sets}) == 1 + DRAWS
    for numbers in costs.sets[1:]:
        assert np.bincount(np.array(numbers) // D_MLP).tolist() == [3, 2]
        assert len(set(numbers)) == 5
        assert not set(numbers) & set(CHOSEN)
    assert Costs(model, CHOSEN[::-1], means, NONE_DEAD, 0).sets == costs.sets
    assert Costs(model, CHOSEN, means, NONE_DEAD, 1).sets[1:] != costs.sets[1:]
    dead = np.random.default_rng(0).random(2 * D_MLP) < 0.5
    assert not any(dead[some].any() for some in Costs(model, CHOSEN, means, dead, 0).sets[1:])
    most = Costs(model, list(range(20)), means, NONE_DEAD, 0)
    assert most.sets[1] == [20, 21, 22, 23]


def test_where_all_neurons_are_chosen_none_are_random():
    model = original()
    means = means_of(model)
    every = list(range(2 * D_MLP))
    costs = added(Costs(model, every, means, NONE_DEAD, 0), model, ROWS)
    assert costs.sets == [every]
    assert costs.table("universal")["neurons"].to_list() == [2 * D_MLP]
    dead = np.isin(np.arange(2 * D_MLP), CHOSEN)
    assert Costs(model, np.flatnonzero(~dead).tolist(), means, dead, 0).sets == [np.flatnonzero(~dead).tolist()]


@pytest.mark.parametrize("rows", [ROWS, 7])
def test_costs_are_those_of_runs_of_their_own(rows):
    model = original()
    means = means_of(model)
    costs = added(Costs(model, CHOSEN, means, NONE_DEAD, 0), model, rows)
    table = costs.table("universal")
    assert table["set"].to_list() == ["universal"] + ["random"] * DRAWS
    assert table["draw"].to_list() == list(range(DRAWS + 1))
    row_of = np.repeat(np.arange(rows), 10)
    for numbers, row in zip(costs.sets, table.iter_rows(named=True)):
        assert (row["neurons"], row["tokens"]) == (5, rows * 10)
        expected = after(model, numbers, means[numbers], rows)
        for name, values in (("loss_change", expected["change"]), ("divergence", expected["divergence"])):
            reach = jackknife_reach(lambda which, values=values: values[which].mean(), row_of)
            np.testing.assert_allclose(row[name], values.mean(), rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(row[f"{name}_low"], values.mean() - reach, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(row[f"{name}_high"], values.mean() + reach, rtol=1e-3, atol=1e-4)


def test_one_row_gives_no_interval():
    model = original()
    table = added(Costs(model, CHOSEN, means_of(model), NONE_DEAD, 0), model, 1).table("universal")
    assert table["loss_change"].is_finite().all()
    assert table["loss_change_low"].is_nan().all()
    assert table["divergence_high"].is_nan().all()
