"""A LoRA folder as the fine-tune: the changes are those of the model that `peft` merges."""

import shutil

import numpy as np
import polars as pl
import pytest
import torch
from conftest import exit_code, save_tiny
from transformers import AutoModelForCausalLM

import universal_neurons as un
from universal_neurons.models import quiet_transformers

peft = pytest.importorskip("peft", reason="the extra test has peft, the oracle of adapters")
MLP = ["mlp.c_fc", "mlp.c_proj"]


def adapted(root, **settings):
    """Folders of a base, an adapter of its, and the model that `peft` makes of both."""
    base, adapter, merged = (root / name for name in ("base", "tuned", "merged"))
    with quiet_transformers():
        save_tiny(base, "gpt2")
        network = AutoModelForCausalLM.from_pretrained(base)
        model = peft.get_peft_model(
            network, peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": MLP} | settings)
        )
        model.peft_config["default"].base_model_name_or_path = "../base"
        chance = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=chance))
        model.save_pretrained(adapter)
        model.merge_and_unload().save_pretrained(merged)
    for file in base.glob("tokenizer*"):
        shutil.copyfile(file, merged / file.name)
    return base, adapter, merged


@pytest.mark.parametrize(
    "settings", [{}, {"use_dora": True}, {"target_modules": ["c_attn"], "modules_to_save": ["mlp"]}]
)
def test_the_changes_are_those_of_the_merged_model(tmp_path, text_file, settings):
    base, adapter, merged = adapted(tmp_path, **settings)
    common = {"data": str(text_file), "context": 32, "max_tokens": 2048, "draws": 2, "stages": ("universality",)}
    tables = []
    for number, tuned in enumerate((adapter, merged)):
        config = un.DiffConfig(models=(str(base), str(tuned)), out=str(tmp_path / f"run-{number}"), **common)
        tables.append(un.run_diff(config, progress=False).changes)
    assert (tables[0]["weights"] == "different").all()
    for name, kind in tables[1].schema.items():
        found, wanted = (table[name] for table in tables)
        if kind == pl.Float64:
            np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=1e-4, err_msg=name)
        elif not name.startswith(("raised", "lowered")):  # of near ties another may come first
            assert found.equals(wanted, null_equal=True), name


def test_an_adapter_of_another_model_than_the_base_is_noted(tmp_path, text_file, capsys):
    base, adapter, _ = adapted(tmp_path)
    other = save_tiny(tmp_path / "elsewhere", seed=5)
    flags = ("--data", text_file, "--context", 32, "--max-tokens", 1024, "--draws", 2, "--stages", "universality")
    assert exit_code("diff", other, adapter, *flags, "--out", tmp_path / "run") == 0
    assert "tuned: an adapter of ../base, which is not elsewhere" in " ".join(capsys.readouterr().err.split())
    assert exit_code("diff", base, adapter, *flags, "--out", tmp_path / "own") == 0
    assert "which is not" not in capsys.readouterr().err
