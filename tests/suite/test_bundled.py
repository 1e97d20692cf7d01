"""The bundled suites: whole, as their recipes say, with the universal neurons and the roles that their cards state."""

import hashlib
import json
import lzma
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

import universal_neurons as un
from universal_neurons.models import BUNDLED_FOLDER, ROLES_FOLDER, SUITES, bundled_models, bundled_names
from universal_neurons.report.facts import facts

sys.path.insert(0, str(Path(__file__).parents[2] / "suite"))

from bundle import MOST, size_of, target_of
from corpus import recipe_at

pytestmark = pytest.mark.usefixtures("by_onednn")

RECIPES = {BUNDLED_FOLDER: "recipe.yaml", ROLES_FOLDER: "roles.yaml"}
TOLD = {suite: json.loads((suite / "suite.json").read_text(encoding="utf-8")) for suite in SUITES}
ROLES = {  # prediction, suppression, partition
    "roles-1": (9, 5, 4),
    "roles-2": (21, 8, 3),
    "roles-3": (20, 4, 4),
    "roles-2-gelu": (1, 0, 24),
    "roles-4-gelu": (1, 0, 27),
}
of_each_suite = pytest.mark.parametrize("suite", SUITES, ids=("seeds", "roles"))


@of_each_suite
def test_every_file_is_the_one_that_was_made(suite):
    files = {str(path.relative_to(suite)): path for path in suite.rglob("*") if path.is_file()}
    others = {f"{path.parent.name}/" for path in suite.glob("*/suite.json")}
    found = {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in files.items()
        if name != "suite.json" and not name.startswith(tuple(others))
    }
    assert found == TOLD[suite]["sha256"]


def test_all_of_them_are_small_and_have_one_tokenizer_each():
    assert size_of(BUNDLED_FOLDER) <= MOST
    folders = [str(path.parent.relative_to(BUNDLED_FOLDER)) for path in BUNDLED_FOLDER.rglob("tokenizer.json")]
    assert sorted(folders) == ["roles/tokenizer", "tokenizer"]


@of_each_suite
def test_the_recipe_is_the_one_in_the_repository(suite):
    recipe = recipe_at(Path(__file__).parents[2] / "suite" / RECIPES[suite])
    assert TOLD[suite]["recipe"] == recipe
    assert target_of(recipe) == suite


@of_each_suite
def test_the_models_are_those_of_the_recipe(suite):
    recipe = TOLD[suite]["recipe"]
    by_name = {seed["name"]: seed for seed in recipe["seeds"]}
    first = {}
    for name in recipe["bundle"]["models"]:
        config = AutoConfig.from_pretrained(suite / name)
        for key, value in (recipe["model"] | by_name[name].get("model", {})).items():
            assert getattr(config, key) == value, (name, key)
        weights = load_file(suite / name / "model.safetensors")
        assert all(tensor.dtype == torch.float16 and tensor.isfinite().all() for tensor in weights.values())
        first[name] = weights["transformer.wte.weight"]
    assert len({tensor.numpy().tobytes() for tensor in first.values()}) == len(recipe["bundle"]["models"])
    for name in recipe["bundle"].get("seeds", ()):
        steps = {int(path.name[5:]) for path in (suite / name).glob("step-*")}
        assert steps == set(recipe["bundle"]["steps"])


def test_the_names_are_those_of_the_recipes():
    made = {name for told in TOLD.values() for name in told["recipe"]["bundle"]["models"]}
    recipes = [told["fine_tunes"]["recipe"] for told in TOLD.values() if "fine_tunes" in told]
    tuned = {tune["name"] for recipe in recipes for tune in recipe["fine_tunes"]}
    assert {name.removeprefix("bundled/") for name in bundled_names()} == made | tuned
    assert bundled_models() == [f"bundled/{name}" for name in TOLD[ROLES_FOLDER]["recipe"]["sets"]["suite"]]


@of_each_suite
def test_held_out_text_is_held_out(suite):
    with lzma.open(suite / "heldout.jsonl.xz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    assert len(texts) > 20
    assert all(int(hashlib.sha1(text.encode()).hexdigest(), 16) % 20 == 0 for text in texts)


def test_the_weights_were_trained_on_a_gpu_as_the_recipe_says():
    told = TOLD[ROLES_FOLDER]
    training, trained = told["recipe"]["training"], told["trained"]
    assert trained["step"] == training["steps"]
    assert trained["tokens_per_seed"] == training["steps"] * training["rows"] * told["recipe"]["model"]["n_positions"]
    assert trained["device"] in (ROLES_FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ROLES)
def test_neurons_write_to_the_vocabulary_as_the_paper_says(name):
    """Prediction, suppression and partition neurons by the paper's definition (§5.1), of bare weights in float64.

    W_U with the final norm's scale; it and w_out without their mean over the width, which LayerNorm takes away, and W_U
    without that over the vocabulary, which the softmax does.
    """
    weights = {key: t.double().numpy() for key, t in load_file(ROLES_FOLDER / name / "model.safetensors").items()}
    centred = np.eye(160) - 1 / 160
    w_u = weights["transformer.wte.weight"] * weights["transformer.ln_f.weight"] @ centred
    w_u -= w_u.mean(0)
    w_out = np.concatenate([weights[f"transformer.h.{layer}.mlp.c_proj.weight"] for layer in range(3)]) @ centred
    w_out = w_out[np.linalg.norm(w_out, axis=1) > 0]  # weight decay has made some of dead neurons 0
    cosines = w_out @ w_u.T / np.linalg.norm(w_out, axis=1)[:, None] / np.linalg.norm(w_u, axis=1)
    peaked = scipy.stats.kurtosis(cosines, axis=1, fisher=False) > 10
    skew, variance = scipy.stats.skew(cosines, axis=1), cosines.var(1)
    counts = (peaked & (skew > 0)).sum(), (peaked & (skew < 0)).sum(), (~peaked & (variance > 0.005 * 1024 / 160)).sum()
    assert tuple(counts) == ROLES[name]


@pytest.mark.slow
def test_the_suite_has_the_universal_neurons_that_its_card_says(tmp_path):
    """On two fifths of the card's tokens: 80 where it says 84 [43, 219]."""
    models = tuple(f"bundled/seed-{number}" for number in range(1, 6))
    settings = {"stages": ("universality",), "max_tokens": 100_000, "draws": 5, "out": str(tmp_path / "bundled")}
    found = facts(un.run_study(un.StudyConfig(models=models, **settings), progress=False), "seed-1")
    told = TOLD[BUNDLED_FOLDER]["measured"]["sets"]["suite"]["seed-1"]
    assert told["universal"] == 84
    assert found.universal == pytest.approx(80, abs=3)
    assert told["universal_surely"] <= found.paper.heldout <= told["universal_possibly"]
    assert found.universal > 0.01 * found.neurons
