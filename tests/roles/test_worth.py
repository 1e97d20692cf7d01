"""What neurons are worth together: sets ablated by hand, controls matched one to one, planted ones that differ in the role
alone; others of equal contribution by brute force."""

from itertools import permutations

import numpy as np
import polars as pl
import pytest
import torch
from conftest import tiny_network
from hand_written import jackknife_reach, predictions, run
from test_functional import (
    CHOSEN,
    CONTEXT,
    D_MLP,
    NONE_DEAD,
    ROWS,
    UNITS,
    VOCABULARY,
    added,
    after,
    ids,
    means_of,
    original,
)

from universal_neurons.interventions import contributions, largest_others, nearest_others
from universal_neurons.models import Model
from universal_neurons.roles import DRAWS, EQUAL, LARGEST, RANDOM, Worth
from universal_neurons.roles.worth import Costs
from universal_neurons.units import NONE, Units

NAMES = ["universal", EQUAL, LARGEST, *[RANDOM] * DRAWS]


def table_of(model: Model) -> pl.DataFrame:
    """The columns of the neuron table that contributions come from."""
    return pl.DataFrame({"activation_sd": model.activations(ids()).double().flatten(0, 1).std(0, correction=0).numpy()})


def costs_of(model: Model, chosen: list[int], dead=NONE_DEAD, seed: int = 0) -> Costs:
    return Costs(model, chosen, means_of(model), dead, seed, contributions(model, table_of(model)))


def test_contributions_are_deviations_times_norms():
    model = original()
    parameters = model.hf.state_dict()
    written = np.concatenate([parameters[f"transformer.h.{n}.mlp.c_proj.weight"].double().numpy() for n in (0, 1)])
    deviations = table_of(model).with_columns(pl.when(pl.int_range(48) != 5).then("activation_sd"))
    wanted = deviations["activation_sd"].fill_null(0).to_numpy() * np.sqrt((written**2).sum(1))
    np.testing.assert_allclose(contributions(model, deviations), wanted)


@pytest.mark.parametrize("seed", range(20))
def test_others_of_equal_contribution_are_the_nearest_one_to_one(seed):
    draw = np.random.default_rng(seed)
    units = Units(tuple(int(width) for width in draw.integers(1, 30, 3)))
    contributed = np.exp(draw.normal(size=len(units)))
    free = draw.random(len(units)) < 0.8
    chosen = draw.permutation(len(units))[: int(draw.integers(1, len(units) + 1))].tolist()
    beside = nearest_others(chosen, units, contributed, free)
    taken: set[int] = set()
    for number, other in zip(chosen, beside):
        left = [
            n for n in range(len(units))
            if free[n] and n not in chosen and n not in taken and units.layer_of(n) == units.layer_of(number)
        ]  # fmt: skip
        gaps = {n: abs(np.log(contributed[n] / contributed[number])) for n in left}
        assert other == (min(gaps, key=gaps.get) if gaps else NONE)
        assert (other == NONE) == (not left)
        taken |= {other} - {NONE}
    there = [other for other in beside if other != NONE]
    assert len(set(there)) == len(there)
    assert not set(there) & set(chosen)
    for layer, numbers in units.by_layer(chosen).items():
        columns = units.columns(layer)
        left = [n for n in range(columns.start, columns.stop) if free[n] and n not in chosen]
        wanted = sorted(left, key=lambda n: -contributed[n])[: len(numbers)]
        assert sorted(
            n for n in largest_others(chosen, units, contributed, free) if n in columns_of(columns)
        ) == sorted(wanted)


def columns_of(columns: slice) -> range:
    return range(columns.start, columns.stop)


def test_with_the_largest_first_no_pairing_is_nearer_than_by_much():
    """Against every pairing there is: the mean of |log ratio| is at most a tenth more than the least."""
    draw = np.random.default_rng(0)
    for _ in range(20):
        contributed = np.exp(draw.normal(size=10) * 0.5)
        contributed[:4] *= 1.5
        order = sorted(range(4), key=lambda n: -contributed[n])
        beside = nearest_others(order, Units((10,)), contributed, np.ones(10, bool))
        size = np.log(contributed)
        least = min(np.abs(size[order] - size[list(some)]).mean() for some in permutations(range(4, 10), 4))
        assert np.abs(size[order] - size[beside]).mean() <= 1.1 * least + 0.05


def sets(costs: Costs, *kinds: str) -> list[list[int]]:
    return [one.numbers for one in costs.sets if not kinds or one.kind in kinds]


def test_controls_are_as_many_other_living_neurons_of_the_same_layers():
    model = original()
    means = means_of(model)
    costs = costs_of(model, CHOSEN)
    assert sets(costs)[0] == CHOSEN
    assert [one.kind for one in costs.sets] == ["chosen", *NAMES[1:]]
    assert len({tuple(numbers) for numbers in sets(costs, RANDOM)}) == DRAWS
    for numbers in sets(costs)[1:]:
        assert np.bincount(np.array(numbers) // D_MLP).tolist() == [3, 2]
        assert len(set(numbers)) == 5
        assert not set(numbers) & set(CHOSEN)
    assert sets(costs_of(model, CHOSEN[::-1])) == sets(costs)
    again = costs_of(model, CHOSEN, seed=1)
    assert sets(again, EQUAL, LARGEST) == sets(costs, EQUAL, LARGEST)
    assert sets(again, RANDOM) != sets(costs, RANDOM)
    dead = np.random.default_rng(0).random(2 * D_MLP) < 0.5
    assert not any(dead[some].any() for some in sets(costs_of(model, CHOSEN, dead))[1:])
    assert sets(costs_of(model, list(range(20))))[1:] == [[20, 21, 22, 23]] * (2 + DRAWS)
    assert sets(Costs(model, CHOSEN, means, NONE_DEAD, 0)) == [CHOSEN, *sets(costs, RANDOM)]


def test_where_all_neurons_are_chosen_there_are_no_controls():
    model = original()
    every = list(range(2 * D_MLP))
    costs = added(costs_of(model, every), model, ROWS)
    assert sets(costs) == [every]
    table = costs.table("universal")
    assert table["neurons"].to_list() == [2 * D_MLP]
    assert Worth.of(table).sentence.endswith("nats together (no others are left).")
    dead = np.isin(np.arange(2 * D_MLP), CHOSEN)
    assert sets(costs_of(model, np.flatnonzero(~dead).tolist(), dead)) == [np.flatnonzero(~dead).tolist()]


@pytest.mark.parametrize("rows", [ROWS, 7])
def test_costs_are_those_of_runs_of_their_own(rows):
    model = original()
    means = means_of(model)
    costs = added(costs_of(model, CHOSEN), model, rows)
    table = costs.table("universal")
    assert table["set"].to_list() == NAMES
    assert table["draw"].to_list() == [0, 0, *range(DRAWS + 1)]
    row_of = np.repeat(np.arange(rows), CONTEXT - 2)
    contributed = contributions(model, table_of(model))
    whole = after(model, CHOSEN, means[CHOSEN], rows)["change"]
    for numbers, row in zip(sets(costs), table.iter_rows(named=True)):
        assert (row["neurons"], row["tokens"]) == (5, rows * 10)
        assert row["contributed"] == pytest.approx(contributed[numbers].mean())
        expected = after(model, numbers, means[numbers], rows)
        for name, values in (("loss_change", expected["change"]), ("divergence", expected["divergence"])):
            reach = jackknife_reach(lambda which, values=values: values[which].mean(), row_of)
            np.testing.assert_allclose(row[name], values.mean(), rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(row[f"{name}_low"], values.mean() - reach, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(row[f"{name}_high"], values.mean() + reach, rtol=1e-3, atol=1e-4)
        told = row["set"] != "universal" and row["loss_change_low"] > 0
        assert (row["loss_ratio"] is not None) == told
        if told:
            times = whole.mean() / expected["change"].mean()
            assert row["loss_ratio"] == pytest.approx(times, rel=0.01)
    equal = table.row(1, named=True)
    pairs = nearest_others(sorted(CHOSEN, key=lambda n: -contributed[n]), UNITS, contributed, ~NONE_DEAD)
    ratios = contributed[pairs] / contributed[sorted(CHOSEN, key=lambda n: -contributed[n])]
    assert equal["contributed_ratio"] == pytest.approx(np.median(ratios))
    assert equal["contributed_ratio_worst"] == pytest.approx(max(ratios, key=lambda ratio: abs(np.log(ratio))))
    assert table["contributed_ratio"].null_count() == len(table) - 1


def test_one_row_gives_no_interval():
    model = original()
    table = added(costs_of(model, CHOSEN), model, 1).table("universal")
    assert table["loss_change"].is_finite().all()
    assert table["loss_change_low"].is_nan().all()
    assert table["divergence_high"].is_nan().all()
    assert "not to be told from 0" in Worth.of(table).sentence


PLANTED = [D_MLP + n for n in (0, 1, 2, 3)]
TWINS = [D_MLP + n for n in (10, 11, 12, 13)]


def planted(same: bool) -> Model:
    """Of the last layer four neurons that speak for tokens, and four that fire alike and write as much: the same, or
    what the final norm takes away, the same to every dimension."""
    network = tiny_network("gpt2", vocab_size=VOCABULARY)
    with torch.no_grad():
        mlp = network.transformer.h[1].mlp
        for neuron, twin in zip(PLANTED, TWINS):
            neuron, twin = neuron - D_MLP, twin - D_MLP
            mlp.c_fc.weight[:, twin] = mlp.c_fc.weight[:, neuron]
            mlp.c_fc.bias[twin] = mlp.c_fc.bias[neuron]
            out = network.lm_head.weight[7 + neuron]
            out = (out - out.mean()) * 40 / (out - out.mean()).norm()
            mlp.c_proj.weight[neuron] = out
            mlp.c_proj.weight[twin] = out if same else torch.ones_like(out) * 40 / len(out) ** 0.5
    return Model(network, "planted")


def by_hand(model: Model, numbers: list[int], means: torch.Tensor) -> np.ndarray:
    """How the loss changes when some neurons are at their means, in float64 and without the package."""
    text = ids()

    def change(layer: int, activation: torch.Tensor) -> torch.Tensor:
        changed = activation.clone()
        for number in numbers:
            if number // D_MLP == layer:
                changed[..., number % D_MLP] = means[number].double()
        return changed

    logits = [run(model.hf, text, edit).logits[:, 1:-1].flatten(0, 1) for edit in (change, None)]
    ablated, clean = (predictions(part, text[:, 2:].flatten(), logits[1])["loss"] for part in logits)
    return ablated - clean


def test_controls_that_differ_in_the_role_alone_cost_nothing():
    model = planted(same=False)
    costs = added(costs_of(model, PLANTED), model)
    assert sets(costs, EQUAL) == sets(costs, LARGEST) == [TWINS]
    table = costs.table("universal")
    chosen, equal = table.rows(named=True)[:2]
    means = means_of(model)
    assert chosen["divergence"] > 0.01
    assert equal["divergence"] == pytest.approx(0, abs=1e-6)
    assert chosen["loss_change"] == pytest.approx(by_hand(model, PLANTED, means).mean(), abs=1e-5)
    assert equal["loss_change"] == pytest.approx(0, abs=1e-5)
    assert by_hand(model, TWINS, means).mean() == pytest.approx(0, abs=1e-9)
    assert equal["contributed"] == pytest.approx(chosen["contributed"], rel=1e-5)
    for column in ("contributed_ratio", "contributed_ratio_worst"):
        assert equal[column] == pytest.approx(1, rel=1e-5)


def test_neurons_that_do_what_their_controls_do_are_worth_no_more():
    """However much less random ones are worth: the claim goes with equal contribution."""
    model = planted(same=True)
    table = added(costs_of(model, PLANTED), model).table("universal")
    chosen, equal = table.rows(named=True)[:2]
    assert equal["loss_change"] == pytest.approx(chosen["loss_change"], rel=1e-4)
    if equal["loss_change_low"] > 0:
        for end in ("", "_low", "_high"):
            assert equal[f"loss_ratio{end}"] == pytest.approx(1, abs=1e-3)
    assert equal["divergence"] == pytest.approx(chosen["divergence"], rel=1e-4)
    assert table.filter(set=RANDOM)["divergence"].min() < chosen["divergence"] / 4


def row(kind: str, change: float, **more) -> dict:
    return {"set": kind, "neurons": 84, "loss_change": change} | more


def test_the_sentence_leads_with_the_controls_of_equal_contribution():
    ratio = {"loss_ratio": 1.646, "loss_ratio_low": 1.5, "loss_ratio_high": 1.79}
    near = {"contributed_ratio": 0.981, "contributed_ratio_worst": 0.6}
    equal, chosen = row(EQUAL, 0.48, **ratio, **near), row("universal", 0.79)
    random = [row(RANDOM, 0.24), row(RANDOM, 0.33)]
    assert Worth(chosen, equal, row(LARGEST, 0.58), random).sentence == (
        "The 84 universal neurons are worth 0.79 nats together, 1.65 [1.50 1.79] times others of equal contribution, "
        "0.48 nats (contribution over theirs 0.98 in the median, 0.60 at worst); the largest others 0.58; random "
        "others 0.24 to 0.33."
    )
    few = Worth(row("top 1 % by excess", 0.79), equal | {"neurons": 3}, row(LARGEST, 0.58), random).sentence
    assert few.startswith("The 84 neurons (top 1 % by excess) are worth")
    assert "at worst, only 3)" in few
    without = Worth(chosen, None, None, random).sentence
    assert without.endswith("(others of equal contribution were not asked about; random others 0.24 to 0.33).")


def test_tables_of_earlier_versions_are_read():
    older = pl.DataFrame([row("universal", 0.8), row(RANDOM, 0.3)])
    found = Worth.of(older)
    assert (found.equal, found.largest) == (None, None)
    assert found.chosen["loss_change"] == 0.8
    assert [one["loss_change"] for one in found.random] == [0.3]
