"""The bundled suite: whole, as its recipe says, and with the universal neurons that its card states."""

import hashlib
import json
import lzma
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoConfig

import universal_neurons as un
from universal_neurons.models import BUNDLED_FOLDER, bundled_models
from universal_neurons.report.facts import facts

TOLD = json.loads((BUNDLED_FOLDER / "suite.json").read_text(encoding="utf-8"))
MOST = 40_000_000


def test_every_file_is_the_one_that_was_made():
    files = {str(path.relative_to(BUNDLED_FOLDER)): path for path in BUNDLED_FOLDER.rglob("*") if path.is_file()}
    found = {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items() if name != "suite.json"
    }
    assert found == TOLD["sha256"]
    assert sum(path.stat().st_size for path in files.values()) <= MOST


def test_one_tokenizer_serves_all_models():
    assert [path.parent.name for path in BUNDLED_FOLDER.rglob("tokenizer.json")] == ["tokenizer"]
    words = [un.load_model(f"bundled/{name}").tokenizer.tokenize("one tokenizer") for name in ("seed-1", "wide-1")]
    assert words[0] == words[1] != []


def test_the_recipe_is_the_one_in_the_repository():
    assert TOLD["recipe"] == yaml.safe_load((Path(__file__).parents[2] / "suite/recipe.yaml").read_text())


def test_the_models_are_those_of_the_recipe():
    seeds = TOLD["recipe"]["seeds"]
    assert bundled_models() == [f"bundled/{s['name']}" for s in seeds if s["name"].startswith("seed-")]
    first = {}
    for seed in seeds:
        config = AutoConfig.from_pretrained(BUNDLED_FOLDER / seed["name"])
        for key, value in (TOLD["recipe"]["model"] | seed.get("model", {})).items():
            assert getattr(config, key) == value, (seed["name"], key)
        weights = load_file(BUNDLED_FOLDER / seed["name"] / "model.safetensors")
        assert all(tensor.dtype == torch.float16 and tensor.isfinite().all() for tensor in weights.values())
        first[seed["name"]] = weights["transformer.wte.weight"]
    assert len({tensor.numpy().tobytes() for tensor in first.values()}) == len(seeds)
    for name in TOLD["recipe"]["bundle"]["seeds"]:
        steps = {int(path.name[5:]) for path in (BUNDLED_FOLDER / name).glob("step-*")}
        assert steps == set(TOLD["recipe"]["bundle"]["steps"])


def test_held_out_text_is_held_out():
    with lzma.open(BUNDLED_FOLDER / "heldout.jsonl.xz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    assert len(texts) > 100
    assert all(int(hashlib.sha1(text.encode()).hexdigest(), 16) % 20 == 0 for text in texts)


@pytest.mark.slow
def test_the_suite_has_the_universal_neurons_that_its_card_says(tmp_path):
    """On two fifths of the card's tokens: 80 where it says 84 [43, 219]."""
    settings = {"stages": ("universality",), "max_tokens": 100_000, "draws": 5, "out": str(tmp_path / "bundled")}
    found = facts(un.run_study(un.StudyConfig(**settings), progress=False), "seed-1")
    told = TOLD["measured"]["sets"]["suite"]["seed-1"]
    assert told["universal"] == 84
    assert found.universal == pytest.approx(80, abs=3)
    assert told["universal_surely"] <= found.paper.heldout <= told["universal_possibly"]
    assert found.universal > 0.01 * found.neurons
