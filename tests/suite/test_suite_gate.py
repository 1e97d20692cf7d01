"""The gates of trained models: measured by hand on one of the bundled."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import universal_neurons as un
from universal_neurons.models import ROLES_FOLDER, bundled_folder

sys.path.insert(0, str(Path(__file__).parents[2] / "suite"))

import gate
from evaluate import losses

HELDOUT, TOKENIZER = ROLES_FOLDER / "heldout.jsonl.xz", ROLES_FOLDER / "tokenizer"
FOLDERS = [str(bundled_folder(name)) for name in ("roles-2-gelu", "roles-2")]


@pytest.fixture(scope="module")
def found():
    return gate.gate(FOLDERS, HELDOUT, TOKENIZER, 2_000)


def test_loss_and_attention_are_those_of_the_model(found):
    rows = gate.held_out_rows(HELDOUT, TOKENIZER, 256, 2_000)
    assert rows.shape == (2_000 // 255, 256)
    assert (rows[:, 0] == 0).all()
    expected = losses(Path(FOLDERS[0]), {"text": rows[:, 1:].flatten()}, 256)["all"]
    assert found[FOLDERS[0]]["loss"] == pytest.approx(expected, rel=1e-3)  # that one in float16
    network = un.load_model(FOLDERS[0]).hf
    network.set_attn_implementation("eager")
    with torch.no_grad():
        seen = network(torch.from_numpy(rows), output_attentions=True).attentions
    by_head = [float(layer[:, head, 1:, 0].mean()) for layer in seen for head in range(layer.shape[1])]
    assert found[FOLDERS[0]]["attention_to_bos"] == pytest.approx(max(by_head), rel=1e-5)


def test_roles_are_those_that_a_study_finds(found, tmp_path):
    config = un.StudyConfig(
        models=(FOLDERS[1],), data=str(HELDOUT), tokenizer=str(TOKENIZER), out=str(tmp_path / "study"),
        max_tokens=3_000, stages=("weights", "statistics", "roles"), roles={"tokens": 256},
    )  # fmt: skip
    effects = un.run_study(config).table("effects")
    for role in ("prediction", "suppression", "partition"):
        assert found[FOLDERS[1]]["roles"].get(role, 0) == (effects["role"] == role).sum()
    assert found[FOLDERS[1]]["roles"]["prediction"] >= 10


def test_gates_are_said(found):
    assert found[FOLDERS[1]]["gates"]["10 prediction neurons"]
    assert not any(found[FOLDERS[0]]["gates"].values())
    assert all(np.all(np.diff(one["tail"]) <= 0) for one in found.values())
    assert all(0 < one["tail"][-1] < 1 for one in found.values())
    shown = gate.table(found)
    assert shown.row_count == 2
