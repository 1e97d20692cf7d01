"""Studies of what is no neuron: the residual stream and the heads, alone, mixed, sketched; against NumPy on plain hooks."""

import copy

import numpy as np
import polars as pl
import pytest
import torch
from conftest import alike_models, tiny_model
from polars.testing import assert_frame_equal
from test_correlation import some_tokens
from test_studies_of_spans import renumbered, with_rows_moved
from test_study import contents, quiet

import universal_neurons as un
from universal_neurons.config_reading import make_config
from universal_neurons.errors import ConfigError, StoreConflictError
from universal_neurons.features import NeuronSource, features_of
from universal_neurons.models import Model, names_of, resolve_sources, split_features
from universal_neurons.passes import Pass
from universal_neurons.progress import Reporter

UNIVERSALITY = ("universality",)
WITHOUT_LABELS = ("statistics", "universality")


@pytest.fixture(scope="module")
def models():
    """Two networks that are alike."""
    return alike_models(("a", "b"))


@pytest.fixture(scope="module")
def text():
    return some_tokens(60)


def study(models, text, out, **settings):
    return quiet(un.StudyConfig(**{"out": str(out), "draws": 2, "stages": WITHOUT_LABELS} | settings),
                 models=models, tokens=text)  # fmt: skip


def read_plainly(model, text, features):
    """float64 values at the counted positions of the chosen rows, from plain hooks on the network."""
    blocks, taken = model.hf.transformer.h, []
    rows, _ = text.split(None)
    handles = [
        block.register_forward_hook(lambda _m, _args, output: taken.append(first(output).double()))
        if features == "residual"
        else block.attn.c_proj.register_forward_pre_hook(lambda _m, args: taken.append(args[0].double()))
        for block in blocks
    ]
    with torch.inference_mode():
        model.hf(torch.from_numpy(text.ids(rows)))
    for handle in handles:
        handle.remove()
    return torch.cat(taken, -1).numpy()[text.mask(rows)]


def first(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("features", ["residual", "attention"])
def test_the_tables_are_what_numpy_computes(models, text, tmp_path, features):
    store = study([features_of(model, features) for model in models], text, tmp_path / "run", pairs="all")
    values = {model.name: read_plainly(model, text, features) for model in models}
    rho = np.corrcoef(values["a"].T, values["b"].T)[:32, 32:]
    for asker, size in ((f"a::{features}", np.abs(rho)), (f"b::{features}", np.abs(rho).T)):
        best = store.matches.filter((pl.col("asker") == asker) & (pl.col("rank") == 1)).sort("layer", "neuron")
        np.testing.assert_allclose(best["corr"].abs(), size.max(1), atol=1e-5)
        assert (best["match_layer"] * 16 + best["match_neuron"]).to_list() == size.argmax(1).tolist()
    mine = store.neurons.filter(model=f"a::{features}").sort("layer", "neuron")
    np.testing.assert_allclose(mine["mean"], values["a"].mean(0), atol=1e-5)
    np.testing.assert_allclose(mine["sparsity"], (values["a"] > 0).mean(0), atol=1e-9)
    assert mine.select("w_in_norm", "vocab_kurt", "roles").null_count().row(0) == (32, 32, 32)
    assert store.gated == {f"a::{features}", f"b::{features}"}
    assert [model["features"] for model in store.manifest["models"]] == [features] * 2
    assert set(store.table("examples")["band"]) >= {"top", "bottom"}  # nothing settles which tail it is


def test_a_model_runs_once_for_all_that_is_asked_of_it(models, text, monkeypatch):
    asked = [models[0], features_of(models[0], "residual"), features_of(models[0], "attention")]
    run = Pass([NeuronSource(each, pre=True) for each in asked], [])
    shards = text.shards(np.arange(len(text)))
    run.settle_means(text, shards)
    alone = Pass(list(run.sources.values())[:1], [])
    passes, forward = [], Model.forward
    monkeypatch.setattr(Model, "forward", lambda self, *args: passes.append(self) or forward(self, *args))
    for one in (run, alone):
        passes.clear()
        one.run(text, shards, batch_tokens=512)
        assert len(passes) == sum(-(-len(shard.rows) // (512 // text.context)) for shard in shards)


def test_neurons_are_what_they_are_without_other_features(models, text, tmp_path):
    """A study of neurons beside the same model's stream says of neurons what one of neurons alone says."""
    alone = study(models, text, tmp_path / "alone", stages=("weights", *WITHOUT_LABELS))
    asked = [*models, features_of(models[0], "residual")]
    mixed = study(asked, text, tmp_path / "mixed", stages=("weights", *WITHOUT_LABELS))
    of_neurons = mixed.matches.filter(pl.col("match_model") == "b")
    assert_frame_equal(of_neurons, alone.matches)
    unmatched = [c for c in alone.neurons.columns if c.startswith(("w_", "vocab", "mean", "var", "sparsity", "l2"))
                 and "corr" not in c and "baseline" not in c]  # fmt: skip
    names = pl.col("model").is_in(["a", "b"])
    assert_frame_equal(mixed.neurons.filter(names).select(unmatched), alone.neurons.select(unmatched))
    assert mixed.neurons.filter(~names)["w_in_norm"].null_count() == 32


@pytest.mark.parametrize("how", [{"panels": 3}, {"search": "screened", "group_size": 4}, {"lanes": 2}])
def test_every_way_of_searching_finds_the_same(models, text, tmp_path, how):
    asked = [features_of(models[0], "residual"), models[1]]
    plainly = study(asked, text, tmp_path / "plain", stages=UNIVERSALITY, pairs="all").matches
    other = study(asked, text, tmp_path / "other", stages=UNIVERSALITY, pairs="all", **how).matches
    columns = ["asker", "layer", "neuron", "rank", "match_layer", "match_neuron", "corr"]
    best = pl.col("rank") == 1
    assert_frame_equal(other.filter(best).select(columns), plainly.filter(best).select(columns), abs_tol=1e-6)


def test_named_by_paths_and_sketched(tmp_path, folders, text_file):
    names = [f"{folder}::residual" for folder in folders[:2]]
    text = {"data": str(text_file), "max_tokens": 6000, "context": 32}
    store = quiet(un.StudyConfig(models=names, stages=UNIVERSALITY, out=str(tmp_path / "run"), **text))
    assert store.models == ["m0::residual", "m1::residual"]
    before = contents(store)
    assert contents(quiet(store.config.model_copy(update={"out": str(tmp_path / "run")}))) == before
    sketches = [str(tmp_path / f"s{seed}.safetensors") for seed in (0, 1)]
    for name, sketch in zip(names, sketches):
        of_one = un.StudyConfig(models=name, out=sketch, search="sketch", group_size=4, **text)
        un.make_sketch(of_one, reporter=Reporter(quiet=True))
    sketched = quiet(un.StudyConfig(models=sketches, search="screened", out=str(tmp_path / "sketched")))
    assert sketched.models == store.models
    assert sketched.gated == store.gated
    columns, best = ["layer", "neuron", "match_layer", "match_neuron"], pl.col("rank") == 1
    assert_frame_equal(sketched.matches.filter(best).select(columns), store.matches.filter(best).select(columns))


def test_beside_untrained_networks(models, text, tmp_path):
    asked = [models[0], features_of(models[1], "residual")]
    store = study(asked, text, tmp_path / "run", stages=UNIVERSALITY, null="untrained", null_draws=1)
    assert store.neurons.filter(model="a")["p_untrained"].is_not_nan().any()


def test_of_spans(tmp_path, text_file):
    """Two tokenizers: the same network under another numbering has the same residual stream."""
    order = np.random.default_rng(0).permutation(1024)
    plain = tiny_model("gpt2", 0, "plain")
    copy = Model(with_rows_moved(tiny_model("gpt2", 0).hf, order), "copy", tokenizer=renumbered(order))
    asked = [features_of(model, "residual") for model in (plain, copy)]
    config = un.StudyConfig(data=str(text_file), out=str(tmp_path / "run"), context=32, draws=2, stages=UNIVERSALITY,
                            max_tokens=6000)  # fmt: skip
    best = un.run_study(config, models=asked, progress=False).matches.filter(pl.col("rank") == 1)
    assert (best["match_neuron"] == best["neuron"]).all()
    np.testing.assert_allclose(best["corr"], 1, atol=1e-6)


def test_names():
    assert names_of(["a/m", "a/m::residual", "a/m::attention"]) == ["m", "m::residual", "m::attention"]
    assert names_of(["a/m::neurons", "a/m"]) == names_of(["a/m", "a/m"])
    assert names_of(["a/m", "b/m::residual"]) == ["a-m", "b-m::residual"]
    assert [n[-14:] for n in names_of(["m@r::attention", "m@s::attention"])] == ["m@r::attention", "m@s::attention"]
    assert names_of(["m::./saes/first", "m::saes/second/"]) == ["m::first", "m::second"]
    assert split_features("m@main::residual") == ("m@main", "residual")
    assert [s.features for s in resolve_sources(["bundled/seed-1", "bundled/seed-1::residual"])] == [
        "neurons",
        "residual",
    ]


def test_parts_in_files():
    parts = [{"model": "m", "revision": "r", "features": "residual", "name": "mine"}, "n", {"model": "o"}]
    config = make_config({"models": parts})
    assert config.models == ("m@r::residual", "n", "o")
    assert config.names == ("mine", "", "")
    assert make_config(config.stored()).names == config.names
    assert "names" not in make_config({"models": ["m"]}).stored()
    for wrong in ({"models": [{"model": "m", "layer": 3}]}, {"models": [{"features": "residual"}]},
                  {"models": parts, "names": ["x"]}):  # fmt: skip
        with pytest.raises(ConfigError):
            make_config(wrong)


def test_names_of_ones_own(tmp_path, folders, text_file):
    asked = ({"model": str(folders[0]), "name": "first"}, {"model": str(folders[0]), "features": "residual"})
    config = un.StudyConfig(models=asked, data=str(text_file), out=str(tmp_path / "run"), stages=UNIVERSALITY, draws=2)
    assert un.run_study(config, progress=False).models == ["first", "m0::residual"]


def test_refusals(tmp_path, folders, models, text):
    odd = tmp_path / "a::b"
    odd.mkdir()
    for name in (str(odd), f"{odd}::residual", "m::", "::residual"):
        with pytest.raises(ConfigError, match="not a model and its features"):
            split_features(name)
    with pytest.raises(ConfigError, match="no such features"):
        features_of(models[0], "gradients")
    with pytest.raises(ConfigError, match="features_of"):
        un.load_model(f"{folders[0]}::residual")
    asked = [features_of(model, "residual") for model in models]
    for stages in (("weights", "statistics"), ("weights", "statistics", "roles")):
        with pytest.raises(ConfigError, match="these are of neurons"):
            study(asked, text, tmp_path / "run", stages=stages)
    store = study([*models, asked[0]], text, tmp_path / "run", stages=("weights", *WITHOUT_LABELS))
    with pytest.raises(ConfigError, match="roles are of neurons"):
        un.study_roles(store, models=models, tokens=text)
    streams = study(asked, text, tmp_path / "streams")
    with (
        pytest.raises(StoreConflictError, match="not a study of this a's neurons"),
        un.ablate(models[0], streams, ["L0.3"]),
    ):
        pass
    no_neurons = copy.copy(models[0])
    no_neurons.of_neurons = False
    with pytest.raises(ConfigError, match="its units are no neurons"), un.intervene(no_neurons, ["L0.3"], "zero"):
        pass
    with pytest.raises(ConfigError, match="a diff is of neurons"):
        un.run_diff(un.DiffConfig(models=(f"{folders[0]}::residual", str(folders[1]))))
    with pytest.raises(ConfigError, match="training dynamics is of neurons"):
        un.run_dynamics(un.DynamicsConfig(models=(f"{folders[0]}::residual", str(folders[1]))))
    with pytest.raises(ConfigError, match="models in memory have names"):
        study(models, text, tmp_path / "named", names=("x", "y"))
    with pytest.raises(ConfigError, match="names are of all models"):
        un.run_study(un.StudyConfig(models=tuple(map(str, folders)), names=("x",)))
