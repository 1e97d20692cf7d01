"""Fine-tunes of a bundled seed: text that is not held out, adapters that `peft` reads, the same bits after a break."""

import hashlib
import json
import lzma
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import universal_neurons as un
from universal_neurons.models import BUNDLED_FOLDER, ROLES_FOLDER, bundled_folder

sys.path.insert(0, str(Path(__file__).parents[2] / "suite"))

import batched
import fine_tune as tuning
from pack import write_model

MODEL = {
    "vocab_size": 50, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_inner": 20,
    "activation_function": "relu2", "resid_pdrop": 0.0,
}  # fmt: skip
RECIPE = {
    "of": "base", "base": "../base", "model": MODEL, "seeds": [{"name": "tuned", "weights": 1, "data": 1}],
    "lora": {"r": 2, "lora_alpha": 4, "target_modules": ["attn.c_attn", "mlp.c_fc", "mlp.c_proj"]},
    "training": {
        "steps": 12, "rows": 3, "warmup": 2, "peak": 1e-2, "final": 0.1, "weight_decay": 0.0, "betas": [0.9, 0.95],
        "clip": 1.0, "dtype": "float32", "checkpoints": [], "report_every": 6, "save_every": 4, "processes": 1,
    },
}  # fmt: skip
TOKENS = (np.cumsum(np.random.default_rng(0).integers(1, 3, 2000)) % 49 + 1).astype(np.uint16)
FOLDERS = ("seed-1-german", "seed-1-python", "roles-1-german", "roles-1-python")


@pytest.fixture
def base(tmp_path):
    config = batched.model_config(MODEL)
    write_model(tmp_path / "base", config, batched.init(config, [1]), 0, 0)
    return tmp_path / "base"


def tuned(base, out, seconds=float("inf")):
    out.mkdir(exist_ok=True)
    training = tuning.FineTune(RECIPE, base, TOKENS, out)
    if training.state_file.exists():
        training.restore()
    return training, training.run(seconds)


def test_an_adapter_is_what_was_trained_and_a_break_changes_no_bit(base, tmp_path):
    training, done = tuned(base, tmp_path / "tuned")
    assert done
    folder = tmp_path / "tuned"
    ids = torch.arange(1, 17).view(1, 16)
    merged = un.load_model(str(folder)).logits(ids)
    weights = dict(training.base)
    for name in (name for name in weights if f"{name.removesuffix('.weight')}.A" in training.weights):
        a, b = (training.weights[f"{name.removesuffix('.weight')}.{part}"].half().float() for part in "AB")
        weights[name] = weights[name] + 2 * torch.einsum("sri,sor->sio", a, b)
    network = batched.to_hugging_face(training.config, weights, 0)
    with torch.no_grad():
        torch.testing.assert_close(merged, network(ids).logits, rtol=1e-5, atol=1e-5)
        assert (merged - un.load_model(str(base)).logits(ids)).abs().max() > 1e-3
    again = tmp_path / "again"
    assert not tuned(base, again, 0.0)[1]
    assert tuned(base, again)[1]
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (again / file).read_bytes() == (folder / file).read_bytes()
    with pytest.raises(SystemExit, match="another recipe"):
        tuning.FineTune(RECIPE | {"lora": RECIPE["lora"] | {"lora_alpha": 8}}, base, TOKENS, again).restore()


def test_only_text_that_is_not_nearly_held_out_is_read(tmp_path):
    def packed(name, texts):
        with lzma.open(tmp_path / name, "wt") as file:
            file.writelines(json.dumps({"text": text, "subset": subset}) + "\n" for subset, text in texts)
        return tmp_path / name

    lines = [f"a line of its own that is quite long, number {n}" for n in range(200)]
    documents = ["\n".join(lines[start : start + 10]) for start in range(0, 200, 10)]
    known = documents[0]
    copied, similar = known + "\nand some more", "\n".join([lines[0], *lines[11:20], "x" * 50])
    given = [("german", text) for text in [*documents[1:], copied, similar]] + [("python", "another subset")]
    found = list(tuning.training_texts(packed("c.xz", given), packed("h.xz", [("german", known)]), "german", 0.1))
    held_out = {text for _, text in given if int(hashlib.sha1(text.encode()).hexdigest(), 16) % 20 == 0}
    assert found == [text for text in [*documents[1:], similar] if text not in held_out]


def test_a_bundle_tells_of_its_fine_tunes_and_nothing_twice(base, tmp_path):
    tuned(base, tmp_path / "tuned")
    recipe = RECIPE | {"fine_tunes": [{"name": "tuned", "subset": "german"}], "shared": 0.1}
    bundled = tmp_path / "bundled"
    bundled.mkdir()
    (bundled / "README.md").write_text("# A card\n")
    (bundled / "suite.json").write_text(json.dumps({"recipe": {}, "sha256": {"README.md": "", "z": ""}}))
    measured = {"base": {"german": 3.0, "all": 4.0}, "tuned": {"german": 2.0, "all": 5.0}}
    for _ in range(2):
        tuning.bundle(recipe, tmp_path, bundled, {"losses": measured}, tuning.card(recipe, measured, {"tuned": 5}, 16))
    told = json.loads((bundled / "suite.json").read_text())
    assert list(told["sha256"]) == ["README.md", "tuned/adapter_config.json", "tuned/adapter_model.safetensors", "z"]
    assert told["fine_tunes"] == {"losses": measured}
    readme = (bundled / "README.md").read_text()
    assert readme.count("## Fine-tunes") == 1
    assert "| tuned | german | 0.0 | 3.000 | 2.000 | 4.000 | 5.000 |" in readme
    digest = hashlib.sha256((bundled / "tuned/adapter_model.safetensors").read_bytes()).hexdigest()
    assert told["sha256"]["tuned/adapter_model.safetensors"] == digest


@pytest.mark.parametrize(
    ("suite", "recipe"), [(BUNDLED_FOLDER, "fine_tunes.yaml"), (ROLES_FOLDER, "roles-fine_tunes.yaml")]
)
def test_the_bundled_fine_tunes_are_of_the_recipe_and_learned_their_subset(suite, recipe):
    told = json.loads((suite / "suite.json").read_text(encoding="utf-8"))["fine_tunes"]
    assert told["recipe"] == yaml.safe_load((Path(tuning.__file__).parent / recipe).read_text())
    assert {tune["name"] for tune in told["recipe"]["fine_tunes"]} == {
        name for name in FOLDERS if (suite / name).is_dir()
    }
    for tune in told["recipe"]["fine_tunes"]:
        before, after = (told["losses"][name][tune["subset"]] for name in (told["recipe"]["of"], tune["name"]))
        assert after < before - 0.05
        assert (suite / tune["name"] / "adapter_model.safetensors").stat().st_size < 2**17


@pytest.mark.parametrize("name", FOLDERS)
def test_peft_reads_the_bundled_fine_tunes_as_we_do(name, tmp_path):
    peft = pytest.importorskip("peft", reason="the extra test has peft, the oracle of adapters")
    adapter = shutil.copytree(bundled_folder(name), tmp_path / name)
    base = bundled_folder(name).parent / name.rpartition("-")[0]
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    oracle = peft.PeftModel.from_pretrained(network, adapter).eval()
    ids = torch.arange(1, 65).view(1, 64)
    with torch.no_grad():
        wanted = oracle(input_ids=ids).logits
    torch.testing.assert_close(un.load_model(f"bundled/{name}").logits(ids), wanted, rtol=1e-4, atol=1e-4)
    assert all(tensor.dtype == torch.float16 for tensor in load_file(adapter / "adapter_model.safetensors").values())
