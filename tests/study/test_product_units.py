"""Which products `auto` takes, what is recorded of them, and a study that goes on as it was begun."""

import numpy as np
import pytest
import torch
from conftest import settled, tiny_model
from test_correlation import some_tokens
from test_study import contents, quiet

from universal_neurons import StudyConfig
from universal_neurons.errors import ConfigError
from universal_neurons.report.facts import certainty
from universal_neurons.statistics import products
from universal_neurons.study import decide, product_units, run_passes
from universal_neurons.study.memory import memory_plan
from universal_neurons.study.product_units import errors_of, with_units

VNNI = frozenset({"avx512_vnni"})


@pytest.fixture
def large(monkeypatch):
    """A processor with units for int8 alone, on which even the smallest models are large."""
    monkeypatch.setattr(products, "processor_flags", lambda: VNNI)
    monkeypatch.setattr(product_units, "onednn_is_faster", lambda: False)
    monkeypatch.setattr(product_units, "FEWEST_UNITS", 1)


@pytest.fixture(scope="module")
def tokens():
    return some_tokens(600)


def study(folder, tokens, **settings):
    given = {"stages": ("universality",), "draws": 2, "max_tokens": 16_384} | settings
    models = [tiny_model("gpt2", seed, f"m{seed}") for seed in (0, 1)]
    return quiet(StudyConfig(out=str(folder), **given), models=models, tokens=tokens)


def test_auto_takes_int8_of_exact_searches_of_large_models_where_there_are_units(monkeypatch):
    models = [tiny_model("gpt2", seed, f"m{seed}") for seed in (0, 1)]

    def chosen(**given):
        config = StudyConfig(models=("a", "b"), device="cpu", **given)
        settings = with_units(config, settled(**given, device="cpu"), models)
        return settings.gemm_dtype, settings.batch_tokens

    monkeypatch.setattr(products, "processor_flags", lambda: VNNI)
    monkeypatch.setattr(product_units, "onednn_is_faster", lambda: False)
    assert chosen() == ("float32", 2048), "small models"
    monkeypatch.setattr(product_units, "FEWEST_UNITS", models[0].n_neurons)
    assert chosen() == ("int8", 8192)
    monkeypatch.setattr(product_units, "INT8_ENTRIES", 8192 * 2 * models[0].n_neurons - 1)
    assert chosen() == ("int8", 4096), "of more units a long batch takes much memory"
    assert chosen(batch_tokens=512) == ("int8", 512)
    assert chosen(max_tokens=16_383)[0] == "float32"
    assert chosen(search="sketch")[0] == chosen(baseline="permutation")[0] == "float32"
    assert chosen(gemm_dtype="float32")[0] == "float32"
    monkeypatch.setattr(product_units, "onednn_is_faster", lambda: True)
    assert chosen()[0] == "float32", "as fast, and exact"
    assert chosen(gemm_dtype="int8")[0] == "int8"
    monkeypatch.setattr(product_units, "onednn_is_faster", lambda: False)
    monkeypatch.setattr(products, "processor_flags", lambda: frozenset({"avx2"}))
    assert chosen()[0] == "float32"


def test_a_study_in_int8_says_so_and_how_exact_it_is(large, tokens, tmp_path):
    plain = study(tmp_path / "plain", tokens, gemm_dtype="float32")
    store = study(tmp_path / "int8", tokens)
    facts = store.manifest["products"]
    assert (store.config.gemm_dtype, facts["gemm_dtype"], facts["units"]) == ("int8", "int8", ["avx512_vnni"])
    assert 0 < facts["largest_error"] < 1e-4
    assert facts["correlations"] == 48 * 48
    assert "products" not in plain.manifest
    assert f"int8 by avx512_vnni: ρ at most {facts['largest_error']:.1e} off" in certainty(store)
    assert "products" not in certainty(plain)
    both = plain.matches.join(store.matches, on=["asker", "layer", "neuron", "match_model", "rank"])
    assert np.nanmax(np.abs(both["corr"] - both["corr_right"]).to_numpy()) < 1e-4


def test_where_int8_is_not_exact_enough_auto_falls_back_and_says_why(large, tokens, tmp_path, monkeypatch):
    plain = study(tmp_path / "plain", tokens, gemm_dtype="float32", batch_tokens=8192)
    monkeypatch.setattr(product_units, "MOST_ERROR", 0.0)
    store = study(tmp_path / "auto", tokens)
    facts = store.manifest["products"]
    assert (store.config.gemm_dtype, facts["gemm_dtype"], facts["refused"]) == ("float32", "float32", "int8")
    assert facts["largest_error"] > 0
    assert "products in float32: in int8 ρ is up to" in certainty(store)
    again, whole = contents(store), contents(plain)
    assert again["matches.parquet"] == whole["matches.parquet"]
    assert study(tmp_path / "auto", tokens).manifest == store.manifest, "complete already"
    asked = study(tmp_path / "asked", tokens, gemm_dtype="int8")
    assert (asked.config.gemm_dtype, "refused" in asked.manifest["products"]) == ("int8", False)


def test_a_study_that_was_begun_in_int8_goes_on_so_on_any_processor(large, tokens, tmp_path, monkeypatch):
    undisturbed = study(tmp_path / "once", tokens)
    monkeypatch.setattr("universal_neurons.text.tokens.SHARD_POSITIONS", 4096)
    whole = study(tmp_path / "whole", tokens)
    save = run_passes.Passes._save

    def interrupted(self, run, step):
        save(self, run, step)
        raise KeyboardInterrupt

    monkeypatch.setattr(run_passes.Passes, "_save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path / "again", tokens)
    monkeypatch.setattr(run_passes.Passes, "_save", save)
    monkeypatch.setattr(products, "processor_flags", frozenset)
    resumed = study(tmp_path / "again", tokens)
    assert resumed.manifest["products"] == undisturbed.manifest["products"]
    assert contents(resumed)["matches.parquet"] == contents(whole)["matches.parquet"]


def test_int8_is_of_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="int8 is for a CPU"):
        decide(StudyConfig(models=("a", "b"), device="cuda", gemm_dtype="int8"))


def test_packed_blocks_are_counted_as_memory():
    models = [tiny_model("gpt2", seed, f"m{seed}") for seed in (0, 1)]
    plain = settled(device="cpu", stages=("universality",))
    sizes = [memory_plan(plain.model_copy(update={"gemm_dtype": kind}), models).blocks for kind in ("float32", "int8")]
    assert sizes[1] - sizes[0] >= 3 * plain.batch_tokens * sum(model.n_neurons for model in models)


@pytest.mark.parametrize(
    ("rounding", "least", "most"), [("float32", 0, 1e-6), ("int8", 1e-8, 1e-4), ("bfloat16", 1e-6, 0.05)]
)
def test_errors_are_held_against_float64(rounding, least, most):
    draw = np.random.default_rng(0)
    left = draw.standard_normal((4096, 6)).astype(np.float32)
    right = (left[:, :5] + draw.standard_normal((4096, 5))).astype(np.float32) ** 5
    left[:, 3] = 2.5
    errors = errors_of(torch.from_numpy(left), torch.from_numpy(right), rounding).numpy()
    assert np.isnan(errors[3]).all()
    rest = np.delete(errors, 3, 0)
    assert least <= rest.max() <= most
