"""The suite's recipe: seeds in a batch are models of their own, and an interrupted training ends with the same bits."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2] / "suite"))

import batched
import train as recipe_of
from schedule import log_spaced

RECIPE = {
    "model": {
        "vocab_size": 50, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_inner": 20,
        "activation_function": "gelu_new", "resid_pdrop": 0.1,
    },
    "training": {
        "steps": 24, "rows": 3, "warmup": 5, "peak": 1e-2, "final": 0.1, "weight_decay": 0.1, "betas": [0.9, 0.95],
        "clip": 1.0, "dtype": "float32", "checkpoints": 4, "report_every": 8, "save_every": 8,
        "processes": 1,
    },
    "seeds": [{"name": "a", "weights": 1, "data": 1}, {"name": "b", "weights": 2, "data": 1}, {"name": "c", "weights": 1, "data": 2}],
}  # fmt: skip


@pytest.fixture(scope="module")
def tokens_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "tokens.npy"
    np.save(path, tokens())
    return path


def tokens(count=2000):
    """Text in which each token mostly follows from the one before."""
    draw = np.random.default_rng(0)
    steps = draw.integers(1, 3, count)
    return (np.cumsum(steps) % 49 + 1).astype(np.uint16)


def weights_of(folder):
    return {path.parent.name: load_file(path) for path in sorted(folder.glob("*/model.safetensors"))}


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name][key], other[name][key]) for name in one for key in one[name])


@pytest.mark.parametrize("activation", ["gelu_new", "relu", "relu2"])
def test_a_batch_of_seeds_is_models_of_their_own(activation):
    recipe = RECIPE | {"model": RECIPE["model"] | {"activation_function": activation}}
    config = recipe_of.model_config(recipe)
    weights = batched.init(config, [1, 2])
    weights = {name: t + 0.1 * torch.randn_like(t) for name, t in weights.items()}
    ids = torch.randint(0, 50, (2, 3, 16))
    with torch.no_grad():
        config.resid_pdrop = 0.0
        found = batched.Forward.of(config, len(ids)).logits(weights, ids)
        for seed in range(2):
            model = batched.to_hugging_face(config, weights, seed)
            torch.testing.assert_close(found[seed], model(ids[seed]).logits, rtol=1e-5, atol=1e-5)
            loss = model(ids[seed], labels=ids[seed]).loss
            torch.testing.assert_close(
                batched.Forward.of(config, len(ids)).losses(weights, ids)[seed], loss, rtol=1e-5, atol=1e-5
            )


def test_initial_weights_depend_on_their_own_seed_alone():
    config = recipe_of.model_config(RECIPE)
    both, alone = batched.init(config, [1, 2]), batched.init(config, [2])
    assert all(torch.equal(both[name][1], alone[name][0]) for name in both)
    assert not torch.equal(both["wte.weight"][0], both["wte.weight"][1])
    assert both["h.0.mlp.c_proj.weight"].std() == pytest.approx(0.02 / 2, rel=0.2)


def test_rows_are_each_seeds_own_permutation_and_every_row_is_read_once_an_epoch():
    rows = recipe_of.Rows(tokens(), 16, [1, 2])
    batches = torch.cat([rows.batch(step, 4) for step in range(rows.count // 4)], 1)
    assert (batches[:, :, 0] == 0).all()
    text = tokens()[: rows.count * 15].reshape(-1, 15)
    for seed in range(2):
        read = {tuple(row) for row in batches[seed, :, 1:].tolist()}
        assert len(read) == rows.count // 4 * 4
        assert read <= {tuple(row) for row in text.tolist()}
    assert not torch.equal(batches[0], batches[1])


def test_every_position_is_trained(tokens_file, tmp_path):
    training = recipe_of.Training(RECIPE, np.load(tokens_file), tmp_path, "cpu")
    training.forward.losses(training.weights, training.rows.batch(0, 3)).sum().backward()
    assert (training.weights["wpe.weight"].grad.abs().amax((0, 2)) > 0).all()


def test_training_learns_is_the_same_again_and_after_interruptions(tokens_file, tmp_path):
    assert recipe_of.train(RECIPE, tokens_file, tmp_path / "whole")
    whole = weights_of(tmp_path / "whole/models")
    assert list(whole) == ["a", "b", "c"]
    lines = (tmp_path / "whole/losses-0.csv").read_text().splitlines()
    first, last = ([float(x) for x in line.split(",")[2:]] for line in (lines[0], lines[-1]))
    assert all(after < before - 0.2 for before, after in zip(first, last))
    for seed in whole:
        assert {p.name for p in (tmp_path / "whole/models" / seed).iterdir() if p.is_dir()} == {
            "step-1",
            "step-3",
            "step-8",
        }
    recipe_of.train(RECIPE, tokens_file, tmp_path / "again")
    assert same(whole, weights_of(tmp_path / "again/models"))
    done = [recipe_of.train(RECIPE, tokens_file, tmp_path / "stopped", seconds=0.0) for _ in range(4)]
    assert done == [False, False, False, True]
    assert same(whole, weights_of(tmp_path / "stopped/models"))
    assert (tmp_path / "stopped/state-0.safetensors").stat().st_size < 9 * 3 * 6_000
    with pytest.raises(SystemExit, match="another recipe"):
        recipe_of.train(RECIPE | {"seeds": RECIPE["seeds"][:2]}, tokens_file, tmp_path / "stopped")


def test_seeds_in_several_processes_are_the_same_seeds(tokens_file, tmp_path):
    recipe = RECIPE | {"model": RECIPE["model"] | {"resid_pdrop": 0.0}, "training": RECIPE["training"] | {"steps": 6}}
    both = recipe | {"training": recipe["training"] | {"processes": 2}}
    assert [[seed["name"] for seed in part["seeds"]] for part in recipe_of.parts(both)] == [["a"], ["b", "c"]]
    assert recipe_of.train(recipe, tokens_file, tmp_path / "one")
    assert recipe_of.train(both, tokens_file, tmp_path / "two")
    one, two = weights_of(tmp_path / "one/models"), weights_of(tmp_path / "two/models")
    assert one.keys() == two.keys()
    for name, weights in one.items():
        for key, tensor in weights.items():
            torch.testing.assert_close(two[name][key], tensor, rtol=1e-4, atol=1e-5)


def test_a_seed_with_a_model_of_its_own_is_trained_apart(tokens_file, tmp_path):
    wide = {"name": "wide", "weights": 4, "data": 4, "model": {"n_embd": 24, "n_inner": 40}}
    recipe = RECIPE | {"training": RECIPE["training"] | {"steps": 2}, "seeds": [*RECIPE["seeds"], wide]}
    assert [len(part["seeds"]) for part in recipe_of.parts(recipe)] == [3, 1]
    assert recipe_of.train(recipe, tokens_file, tmp_path)
    configs = [AutoModelForCausalLM.from_pretrained(tmp_path / "models" / name).config for name in ("a", "wide")]
    assert [(config.n_embd, config.n_inner, config.n_layer) for config in configs] == [(12, 20, 2), (24, 40, 2)]


def test_what_is_trained_is_an_ordinary_model(tokens_file, tmp_path):
    recipe_of.train(RECIPE | {"training": RECIPE["training"] | {"steps": 2}}, tokens_file, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "models/a")
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert model.config.n_inner == 20


def test_the_learning_rate_and_the_checkpoints():
    given = RECIPE["training"]
    rates = [recipe_of.learning_rate(step, given) for step in range(1, 25)]
    assert rates[0] == pytest.approx(2e-3)
    assert max(rates) == rates[4] == 1e-2
    assert rates[-1] == pytest.approx(1e-3)
    assert all(before > after for before, after in pairwise(rates[4:]))
    assert log_spaced(10_000, 5) == [1, 10, 100, 1000, 10_000]
