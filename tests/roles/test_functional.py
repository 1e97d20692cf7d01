"""Do matched neurons do the same: a model and its copy with permuted neurons agree, whose second best do not;
ablations against runs of their own."""

import functools

import numpy as np
import polars as pl
import pytest
import torch
from conftest import tiny_network
from hand_written import jackknife_reach, predictions

from universal_neurons.interventions import Edit, Readout, Trial, intervene
from universal_neurons.models import Model
from universal_neurons.roles.functional import (
    concerned,
    counterparts,
    functional_tables,
    random_partner,
)
from universal_neurons.roles.gains import gains_sentence
from universal_neurons.roles.loss_changes import LossChanges
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


def second_of(number: int) -> int:
    """Of the copy, the counterpart of the neuron after."""
    layer, neuron = divmod(number, D_MLP)
    return match_of(layer * D_MLP + (neuron + 1) % D_MLP)


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
        rows.append(("original", layer, neuron, "permuted", 2, *divmod(second_of(number), D_MLP), 0.5))
        rows.append(("original", layer, neuron, "permuted", 3, 0, 0, 0.4))
        rows.append(("permuted", layer, neuron, "original", 1, 1, 1, 0.8))
    names = ["asker", "layer", "neuron", "match_model", "rank", "match_layer", "match_neuron", "corr"]
    integers = dict.fromkeys(("layer", "neuron", "rank", "match_layer", "match_neuron"), pl.Int32)
    return pl.DataFrame(rows, schema=names, orient="row").cast(integers)


def asked(matches: pl.DataFrame, chosen: list[int] = CHOSEN, seed: int = 4, **other: Units) -> pl.DataFrame:
    units = {"original": UNITS, "permuted": UNITS} | other
    return counterparts(
        matches, "original", chosen, units, {name: np.zeros(len(u), bool) for name, u in units.items()}, seed
    )


def test_counterparts_are_the_best_and_second_best_matches_in_every_other_model():
    more = best_matches().with_columns(match_model=pl.lit("wider")).filter(pl.col("asker") == "original")
    wider = Units((40, 30))
    found = asked(pl.concat([more, best_matches()]), [30, 2], wider=wider)

    def there(number: int) -> int:
        return number if number < D_MLP else number - D_MLP + 40

    expected = [
        (2, "permuted", match_of(2), 0.9, second_of(2), 0.5),
        (2, "wider", there(match_of(2)), 0.9, there(second_of(2)), 0.5),
        (30, "permuted", match_of(30), 0.9, second_of(30), 0.5),
        (30, "wider", there(match_of(30)), 0.9, there(second_of(30)), 0.5),
    ]
    assert found.columns == ["flat", "match_model", "match", "corr", "second", "second_corr", "random"]
    assert found.drop("random").rows() == expected
    assert (found["second"] != found["match"]).all()
    for name, units in (("permuted", UNITS), ("wider", wider)):
        of_model = found.filter(match_model=name)
        for match, drawn in of_model.select("match", "random").iter_rows():
            assert drawn == random_partner(match, units, np.zeros(len(units), bool), 4, name)
        every = {*of_model["match"], *of_model["second"], *of_model["random"]}
        assert concerned(found, name) == sorted(every)
    assert concerned(found, None) == [2, 30]
    alone = asked(best_matches().filter(rank=1), [30, 2])
    assert alone["second"].null_count() == alone["second_corr"].null_count() == 2


def test_a_random_partner_is_another_living_neuron_of_the_layer():
    drawn = [random_partner(30, UNITS, NONE_DEAD, seed, "b") for seed in range(400)]
    assert set(drawn) == set(range(24, 48)) - {30}
    assert drawn == [random_partner(30, UNITS, NONE_DEAD, seed, "b") for seed in range(400)]
    assert drawn != [random_partner(30, UNITS, NONE_DEAD, seed, "c") for seed in range(400)]
    dead = np.isin(np.arange(48), [24, 25, 40])
    assert {random_partner(30, UNITS, dead, seed, "b") for seed in range(400)} == set(range(26, 48)) - {30, 40}
    for match in (24, 47, 0):
        others = {random_partner(match, UNITS, NONE_DEAD, seed, "b") for seed in range(100)}
        assert match not in others
        assert {other // D_MLP for other in others} == {match // D_MLP}


def test_the_only_living_neuron_of_a_layer_has_no_random_partner():
    assert random_partner(3, Units((3, 1)), np.zeros(4, bool), 0, "m") is None
    assert random_partner(0, Units((3, 1)), np.array([False, True, True, False]), 0, "m") is None


def acting(models: list[Model], pairs: pl.DataFrame) -> tuple[dict, np.ndarray]:
    """The loss changes of all neurons that pairs are about, and the rows they are on."""
    readings = {}
    for model in models:
        numbers = concerned(pairs, None if model is models[0] else model.name)
        readings[model.name] = added(LossChanges(model, numbers, means_of(model)), model)
    return {name: one.by_number() for name, one in readings.items()}, readings[models[0].name].row_of


def test_matched_neurons_of_a_permuted_copy_do_the_same():
    models = [original(), permuted()]
    torch.testing.assert_close(models[1].logits(ids()), models[0].logits(ids()), rtol=1e-4, atol=1e-4)
    pairs = asked(best_matches())
    matches = pairs["match"].to_list()
    changes, row_of = acting(models, pairs)
    roles = {"original": [[ROLES[n % 3], *(["entropy"] if n % 2 else [])] for n in range(2 * D_MLP)]}
    roles["permuted"] = [[] for _ in range(2 * D_MLP)]
    for number in range(2 * D_MLP):
        roles["permuted"][match_of(number)] = roles["original"][number][::-1]
    roles["permuted"][matches[-1]] = []
    effects = {m.name: logit_effects(m) for m in models}
    tables = functional_tables(models, pairs, changes, row_of, effects, roles)
    table = tables["functional"]
    assert len(table) == len(CHOSEN)
    np.testing.assert_allclose(table["effect_corr"].to_numpy(), 1, atol=1e-6)
    np.testing.assert_allclose(table["loss_corr"].to_numpy(), 1, atol=1e-4)
    assert table["same_roles"].to_list() == [True] * 4 + [False]
    assert not any(table["same_roles_second"])
    assert table["match_roles"].to_list() == [roles["permuted"][match] for match in matches]
    losses = {m.name: {} for m in models}
    gains = {kind: [] for kind in ("second", "random")}
    for row, number, pair in zip(table.iter_rows(named=True), CHOSEN, pairs.iter_rows(named=True)):
        assert (row["asker"], row["model"], row["match_model"]) == ("original", "original", "permuted")
        assert (row["layer"], row["neuron"]) == divmod(number, D_MLP)
        assert (row["match_layer"], row["match_neuron"]) == divmod(match_of(number), D_MLP)
        assert (row["second_layer"], row["second_neuron"]) == divmod(second_of(number), D_MLP)
        assert (row["second_corr"], pair["second"]) == (0.5, second_of(number))
        for m, n in ((models[0], number), *((models[1], pair[kind]) for kind in ("match", "second", "random"))):
            losses[m.name][n] = after(m, [n], means_of(m)[[n]])["change"]
        one, best = losses["original"][number], losses["permuted"][pair["match"]]
        for kind in ("second", "random"):
            expected = np.corrcoef(effects["original"][number], effects["permuted"][pair[kind]])[0, 1]
            np.testing.assert_allclose(row[f"effect_corr_{kind}"], expected, atol=1e-5)
            other = losses["permuted"][pair[kind]]
            np.testing.assert_allclose(row[f"loss_corr_{kind}"], np.corrcoef(one, other)[0, 1], atol=1e-3)
            gains[kind].append(gain_of(one, best, other))
        value, reach = gains["second"][-1](slice(None)), jackknife_reach(gains["second"][-1], row_of)
        found = [row[f"loss_gain{end}"] for end in ("", "_low", "_high")]
        np.testing.assert_allclose(found, [value, value - reach, value + reach], atol=2e-3)
    assert table["effect_corr_random"].abs().max() < 0.9
    assert table["loss_corr_second"].abs().mean() < 0.5
    assert table["loss_gain_low"].min() > 0
    together = tables["functional_gains"]
    assert together.select("match_model", "control", "measure", "pairs").rows() == [
        (name, control, measure, 5)
        for name in (None, "permuted")
        for control in ("second best match", "random")
        for measure in ("effect_corr", "loss_corr")
    ]
    for kind, control in (("second", "second best match"), ("random", "random")):
        row = together.filter(pl.col("match_model").is_null(), control=control, measure="loss_corr").row(0, named=True)
        value, reach = mean_gain(gains[kind])(slice(None)), jackknife_reach(mean_gain(gains[kind]), row_of)
        found = [row[f"gain{end}"] for end in ("", "_low", "_high")]
        np.testing.assert_allclose(found, [value, value - reach, value + reach], atol=2e-3)
        np.testing.assert_allclose(row["control_corr"], np.median(table[f"loss_corr_{kind}"]))
        assert row["better"] == 1
    said = gains_sentence(together)
    assert f"second best match by {mean_gain(gains['second'])(slice(None)):+.2f} [" in said
    assert "is higher in 100% of 5 pairs (medians: 1.00, with the second best" in said
    assert gains_sentence(together.filter(control="random")) == ""
    effect = together.filter(pl.col("match_model").is_null(), control="random", measure="effect_corr")
    expected = (table["effect_corr"] - table["effect_corr_random"]).mean()
    np.testing.assert_allclose(effect["gain"], expected)
    assert effect["gain_low"].null_count() == 1


def gain_of(one: np.ndarray, best: np.ndarray, other: np.ndarray):
    return lambda which: np.corrcoef(one[which], best[which])[0, 1] - np.corrcoef(one[which], other[which])[0, 1]


def mean_gain(gains: list):
    return lambda which: np.mean([gain(which) for gain in gains])


def test_a_match_that_acts_as_its_second_best_does_gains_nothing():
    """The second best is a twin of the match: whoever fires alike acts alike, and no claim is left of the match."""
    network = tiny_network("gpt2", vocab_size=VOCABULARY)
    with torch.no_grad():
        mlp = network.transformer.h[1].mlp
        mlp.c_fc.weight[:, 9] = mlp.c_fc.weight[:, 3]
        mlp.c_fc.bias[9] = mlp.c_fc.bias[3]
        mlp.c_proj.weight[9] = mlp.c_proj.weight[3]
    models = [Model(network, "twins"), Model(network, "other")]
    pairs = pl.DataFrame({"flat": [27], "match_model": ["other"], "match": [27], "corr": [1.0]}).with_columns(
        second=pl.lit(33, pl.Int64), second_corr=1.0, random=pl.lit(40, pl.Int64)
    )
    changes, row_of = acting(models, pairs)
    effects = {m.name: logit_effects(m) for m in models}
    nothing = {m.name: [[] for _ in range(48)] for m in models}
    row = functional_tables(models, pairs, changes, row_of, effects, nothing)["functional"].row(0, named=True)
    for column in ("loss_gain", "loss_gain_low", "loss_gain_high"):
        assert abs(row[column]) < 1e-5
    assert row["effect_corr_second"] == pytest.approx(1)
    assert abs(row["effect_corr_random"]) < 0.9


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
    changes["other"] = added(LossChanges(other, [3, 5], means_of(model)), other).by_number()
    effects = logit_effects(model)
    padded = {number: np.append(effect, np.zeros(5, np.float32)) for number, effect in effects.items()}
    pairs = pl.DataFrame({"flat": [3], "match_model": ["other"], "match": [3], "corr": [1.0], "random": [5]})
    pairs = pairs.with_columns(second=pl.lit(None, pl.Int64), second_corr=pl.lit(None, pl.Float64))
    nothing = {name: [[] for _ in range(48)] for name in ("original", "other")}
    row_of = np.repeat(np.arange(ROWS), CONTEXT - 2)
    tables = functional_tables([model, other], pairs, changes, row_of, {"original": effects, "other": padded}, nothing)
    table = tables["functional"]
    np.testing.assert_allclose(table["effect_corr"].to_numpy(), 1, atol=1e-6)
    assert table["same_roles"].to_list() == [None]  # neither has a role
    unknown = ("second_layer", "second_neuron", "second_corr", "loss_gain", "loss_gain_low", "same_roles_second")
    assert table.select(unknown).row(0) == (None,) * 6
    assert table.select(pl.col("effect_corr_second", "loss_corr_second").is_nan()).row(0) == (True, True)
    assert set(tables["functional_gains"]["control"]) == {"random"}
