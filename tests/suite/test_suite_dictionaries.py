"""Dictionaries of bundled seeds: what is written is what was trained, the same bits after a break, of the recipe."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import tiny_model

from universal_neurons.errors import MissingFileError
from universal_neurons.features import bundled_dictionaries, load_dictionaries, save_dictionary, verified
from universal_neurons.models import BUNDLED_FOLDER, ROLES_FOLDER, load_model

sys.path.insert(0, str(Path(__file__).parents[2] / "suite"))

import dictionaries as training_of
from bundle import with_section

RECIPE = {
    "place": "residual_out", "dictionary": {"width": 40, "k": 4},
    "training": {
        "steps": 30, "rows": 4, "warmup": 5, "peak": 1e-2, "final": 0.1, "betas": [0.9, 0.99], "dead_after": 3,
        "k_dead": 8, "dead_weight": 0.1, "save_every": 10,
    },
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(1, 1000, 20_000).astype(np.uint16)


def trained(out, seconds=float("inf"), model=None, **changes):
    out.mkdir(exist_ok=True)
    training = training_of.Training(RECIPE | changes, model or tiny_model("gpt2"), 1, TOKENS, out)
    if training.state_file.exists():
        training.restore()
    return training, training.run(seconds)


def test_what_is_written_is_what_was_trained_and_a_break_changes_no_bit(tmp_path):
    training, done = trained(tmp_path / "one")
    assert done
    x = training.read(3)
    with torch.no_grad():
        left = training.losses(x)
    for layer, dictionary in enumerate(training.dictionaries()):
        y = x[layer]
        error = (y - dictionary.reconstruction(y)).square().sum() / (y - y.mean(0)).square().sum()
        assert float(error) == pytest.approx(float(left[layer]), rel=0.2)  # and what silent latents leave, times 0.1
        assert float(error) < 0.6
        torch.testing.assert_close(dictionary.decoder.norm(dim=1), torch.ones(40))
        assert int((dictionary.encode(y) > 0).sum(1).max()) == 4
    assert not trained(tmp_path / "two", 0.0)[1]
    again, done = trained(tmp_path / "two")
    while not done:
        again, done = trained(tmp_path / "two")
    for name, tensor in training.weights.items():
        assert torch.equal(again.weights[name], tensor), name
    with pytest.raises(SystemExit, match="another recipe"):
        trained(tmp_path / "two", dictionary={"width": 40, "k": 5})


def test_it_measures_what_it_wrote(tmp_path):
    model = load_model("bundled/seed-1")
    training, _ = trained(tmp_path / "one", model=model, training=RECIPE["training"] | {"steps": 10})
    for dictionary in training.dictionaries():
        save_dictionary(dictionary, tmp_path / "made" / dictionary.name, torch.float16)
    ids = torch.from_numpy(TOKENS[:1280].astype(np.int64)).view(-1, 128)
    keep = torch.ones_like(ids, dtype=torch.bool)
    results = [each.describe() for each in verified(load_dictionaries(tmp_path / "made"), model, ids, keep, floor=-9.0)]
    section = training_of.card(RECIPE, {"seed-1": results}, model.context)
    assert f"| seed-1 | 1 | {results[1]['explained']:.3f} | 4.0 |" in section


def test_a_section_takes_the_place_of_its_own_and_leaves_others():
    card = with_section(with_section("# A card\n", "One", "\na\n"), "Two", "\nb\n")
    assert with_section(card, "One", "\nc\n") == "# A card\n\n## One\n\nc\n\n## Two\n\nb\n"


@pytest.mark.parametrize(
    ("suite", "recipe", "names", "width", "least", "floor"),
    [
        (BUNDLED_FOLDER, "dictionaries.yaml", ("seed-1", "seed-2"), 512, 0.8, 0.3),
        (ROLES_FOLDER, "roles-dictionaries.yaml", ("roles-1", "roles-2"), 256, 0.6, 0.0),
    ],
)
def test_the_bundled_dictionaries_are_of_the_recipe_and_explain_what_it_says(suite, recipe, names, width, least, floor):
    told = json.loads((suite / "suite.json").read_text(encoding="utf-8"))["dictionaries"]
    recipe = yaml.safe_load((Path(training_of.__file__).parent / recipe).read_text())
    assert told["recipe"] == recipe
    assert tuple(each["name"] for each in recipe["of"]) == names
    size = sum(path.stat().st_size for name in names for path in bundled_dictionaries(name).rglob("*"))
    assert size < 2**20
    model = load_model(f"bundled/{names[0]}")
    text = np.random.default_rng(0).integers(1, 1000, (4, 128))
    dictionaries = load_dictionaries(bundled_dictionaries(f"bundled/{names[0]}"))
    assert [(str(each.read), each.width) for each in dictionaries] == [
        (f"residual_out of block {n}", width) for n in range(3)
    ]
    for each, of in zip(dictionaries, told["measured"][names[0]], strict=True):
        assert each.digest == of["sha256"]
        assert of["explained"] > least
    keep = torch.ones(4, 128, dtype=torch.bool)
    keep[:, 0] = False
    assert all(result.l0 <= 16 for result in verified(dictionaries, model, torch.from_numpy(text), keep, floor=floor))


def test_a_model_without_dictionaries_is_named():
    with pytest.raises(MissingFileError, match="no dictionaries come with it"):
        bundled_dictionaries("bundled/seed-3")
