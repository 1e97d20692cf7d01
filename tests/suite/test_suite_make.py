"""The recipe's CPU twin, from text to a bundle: everything `suite/make.py` does, small."""

import hashlib
import json
import lzma
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import universal_neurons as un
from universal_neurons.models import BUNDLED_FOLDER, load_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "suite"))

import make as recipe_to_suite
import text
from bundle import bundle
from evaluate import losses

RECIPE = yaml.safe_load((Path(__file__).parents[2] / "suite/twin.yaml").read_text())
SOURCE = {"subset": "prose", "registry": "none", "package": "made-up", "version": "1", "licence": "MIT"}


def some_documents(most=60):
    """Documents of real text, enough of them for some to be held out."""
    documents = list(text.read(BUNDLED_FOLDER / "heldout.jsonl.xz"))
    pieces = [
        {"text": d["text"][s : s + 900], "subset": d["subset"]} for d in documents[:most] for s in range(0, 9000, 900)
    ]
    return [piece for piece in pieces if len(piece["text"]) > 200]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("twin")
    with lzma.open(out / "corpus.jsonl.xz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(document) + "\n" for document in some_documents())
    (out / "sources.json").write_text(json.dumps([SOURCE | {"documents": 1, "characters": 1}]))
    interrupted = recipe_to_suite.make(RECIPE, out, seconds=0.0)
    assert not interrupted
    assert recipe_to_suite.make(RECIPE, out)
    return out


def test_training_text_and_held_out_text_are_apart(made):
    everything = [d["text"] for d in text.read(made / "corpus.jsonl.xz")]
    heldout = [d["text"] for d in text.read(made / "heldout.jsonl.xz")]
    assert 0 < len(heldout) < len(everything) / 10
    assert all(int(hashlib.sha1(t.encode()).hexdigest(), 16) % 20 == 0 for t in heldout)
    tokenizer = AutoTokenizer.from_pretrained(made / "tokenizer")
    trained_on = "".join(tokenizer.decode(np.load(made / "tokens.npy").astype(int)).split("<|endoftext|>"))
    assert not any(t in trained_on for t in heldout)
    assert all(t in trained_on for t in everything if t not in heldout)


def test_the_models_learned_and_their_losses_are_those_of_their_own_forward_pass(made):
    measured = json.loads((made / "evaluation.json").read_text())
    untrained = losses(made / "models/seed-1/step-1", {"text": np.load(made / "tokens.npy")[:3000]}, 32)["all"]
    trained = losses(made / "models/seed-1", {"text": np.load(made / "tokens.npy")[:3000]}, 32)["all"]
    assert trained < untrained - 1.5
    tokenizer, model = (
        AutoTokenizer.from_pretrained(made / "tokenizer"),
        AutoModelForCausalLM.from_pretrained(made / "models/seed-2"),
    )
    subset = "bible"
    ids = [
        i
        for d in text.read(made / "heldout.jsonl.xz")
        if d["subset"] == subset
        for i in [0, *tokenizer(d["text"]).input_ids]
    ]
    rows = [[0, *ids[start : start + 31]] for start in range(0, len(ids[:2000]) - 30, 31)]
    each = [
        -torch.log_softmax(model(torch.tensor([row])).logits[0, :-1], -1)[range(31), row[1:]].mean().item()
        for row in rows
    ]
    assert measured["losses"]["seed-2"][subset] == pytest.approx(np.mean(each), abs=1e-4)


def test_what_was_measured_is_what_the_studies_hold(made):
    measured = json.loads((made / "evaluation.json").read_text())
    assert list(measured["sets"]) == ["suite", "equal weights"]
    for name, found in measured["sets"].items():
        neurons = un.Store(made / "studies" / name).neurons
        for model, one in found.items():
            own = neurons.filter(neurons["model"] == model)
            assert one["universal"] == sum(excess > 0.5 for excess in own["excess_corr"])
            assert one["neurons"] == len(own) == 64
    assert [g["step"] for g in measured["growth"]] == [1, 7, 54]
    card = (made / "README.md").read_text()
    assert "(0.2 M tokens a model)" in card
    assert f"{measured['losses']['seed-1']['all']:.3f}" in card


def test_a_bundle_holds_halved_weights_with_hashes_and_the_recipe(made, tmp_path):
    target = tmp_path / "bundled"
    (target / "seed-9").mkdir(parents=True)
    (target / "others").mkdir()
    (target / "others/suite.json").write_text("{}")
    bundle(RECIPE | {"bundle": RECIPE["bundle"] | {"characters": 5_000}}, made, target)
    texts, whole_text = (list(text.read(folder / "heldout.jsonl.xz")) for folder in (target, made))
    assert texts == whole_text[: len(texts)] != whole_text
    assert sum(len(d["text"]) for d in texts[:-1]) < 5_000 <= sum(len(d["text"]) for d in texts)
    assert [p.name for p in (target / "others").iterdir()] == ["suite.json"]
    shutil.rmtree(target / "others")
    told = json.loads((target / "suite.json").read_text())
    assert told["recipe"]["model"] == RECIPE["model"]
    assert told["trained"] == {}
    files = {str(p.relative_to(target)) for p in target.rglob("*") if p.is_file()} - {"suite.json"}
    assert files == set(told["sha256"])
    assert "seed-2/step-54/model.safetensors" in files
    assert not (target / "seed-9").exists()
    counted = Counter(np.load(made / "tokens.npy").tolist())
    lines = (target / "token_counts.csv").read_text().splitlines()
    assert lines == ["token,count", *(f"{token},{counted[token]}" for token in range(RECIPE["model"]["vocab_size"]))]
    for name, digest in told["sha256"].items():
        assert hashlib.sha256((target / name).read_bytes()).hexdigest() == digest
    whole, halved = load_file(made / "models/seed-1/model.safetensors"), load_file(target / "seed-1/model.safetensors")
    assert all(torch.equal(whole[name].half(), halved[name]) for name in whole)
    assert un.load_model(str(target / "seed-1")).n_neurons
    assert load_tokenizer(target / "tokenizer").get_vocab() == load_tokenizer(made / "tokenizer").get_vocab()
