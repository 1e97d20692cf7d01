"""Every line of the export is one that Neuronpedia takes, and says what the tables say."""

import numpy as np
import polars as pl
import pytest
from neuronpedia_schema import require_export

import universal_neurons as un
from universal_neurons.errors import MissingFileError, StoreConflictError
from universal_neurons.explorer import neuronpedia, write_neuronpedia
from universal_neurons.explorer.neuronpedia import model_ids

pytest_plugins = ["explored"]

HOSTILE = [
    "\0",
    "</script><script>alert(1)</script>",
    '"',
    "\\u0000",
    "\ud800",
    "\n{",
    "\u2028",
    "\U0001f600",
    "'; DROP TABLE",
]


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_line_is_valid_and_says_what_the_tables_say(study, tmp_path, monkeypatch):
    monkeypatch.setattr(neuronpedia, "BATCH", 10)
    exported = require_export(write_neuronpedia(study, tmp_path / "out"))
    assert set(exported) == {(model, f"{layer}-mlp") for model in study.models for layer in range(2)}
    strings = study.strings
    effects, labelled = study.table("effects"), 0
    for (model, source), lines in exported.items():
        assert len(list((tmp_path / "out" / model / source / "features").iterdir())) == 3
        layer = int(source.split("-")[0])
        of_layer = (pl.col("model") == model) & (pl.col("layer") == layer)
        for feature in lines["features"]:
            neuron = int(feature["index"])
            of_neuron = of_layer & (pl.col("neuron") == neuron)
            row = study.neurons.row(by_predicate=of_neuron, named=True)
            effect = effects.row(by_predicate=of_neuron, named=True)
            examples = study.examples.filter(of_neuron)
            assert feature["frac_nonzero"] == pytest.approx(row["sparsity"], rel=1e-5)
            assert feature["pos_str"] == [strings[token] for token in effect["top_tokens"]]
            assert feature["neg_str"] == [strings[token] for token in effect["bottom_tokens"]]
            np.testing.assert_allclose(feature["pos_values"], effect["top_effects"], rtol=1e-5)
            np.testing.assert_allclose(feature["neg_values"], effect["bottom_effects"], rtol=1e-5)
            assert sum(feature["freq_hist_data_bar_heights"]) == study.histogram(model, layer * 24 + neuron)[2].sum()
            shown = [line for line in lines["activations"] if line["index"] == feature["index"]]
            assert len(shown) == len(examples)
            top = examples.filter((pl.col("band") == "top") & (pl.col("rank") == 1))["activation"].item()
            assert feature["maxActApprox"] == pytest.approx(top, rel=1e-5)
            for line, example in zip(shown, examples.iter_rows(named=True)):
                assert line["tokens"] == [strings[token] for token in example["tokens"]]
                np.testing.assert_allclose(line["values"], np.nan_to_num(example["activations"]), rtol=1e-3, atol=1e-6)
                at = example["position"] - example["start"]
                assert line["values"][at] == pytest.approx(example["activation"], rel=1e-5)
            said = [line["description"] for line in lines["explanations"] if line["index"] == feature["index"]]
            if row["family"] in (None, "unexplained"):
                assert said == []
            else:
                wanted = study.explanations.filter(model=model, layer=layer, neuron=neuron)
                assert said == wanted["explanation"].to_list()
                labelled += 1
    assert labelled > 10


def test_names_and_strings_that_files_and_databases_take_badly(odd_store, tmp_path, monkeypatch):
    strings = [HOSTILE[token % len(HOSTILE)] for token in range(1024)]
    monkeypatch.setattr(neuronpedia, "strings_of", lambda store: strings)
    exported = require_export(write_neuronpedia(odd_store, tmp_path / "out"))
    tokens = {token for lines in exported.values() for line in lines["activations"] for token in line["tokens"]}
    assert tokens == {*HOSTILE[1:4], *HOSTILE[5:], "\u2400", "?"}
    shown = {lines["model"][0]["displayName"] for lines in exported.values()}
    assert shown == {name.replace("\0", "\u2400") for name in odd_store.models}


def test_ids_of_models():
    assert model_ids(["seed-1", "Seed-1", "gpt2/α β", "", "--", "a" * 300, "a" * 300]) == [
        "seed-1", "seed-1-2", "gpt2", "model", "model-2", "a" * 128, "a" * 120 + "-2",
    ]  # fmt: skip


def test_the_same_study_is_the_same_bytes(study, tmp_path):
    first, again = (files_of(write_neuronpedia(study, tmp_path / name)) for name in "ab")
    assert first == again
    assert any(path.suffix == ".gz" for path in first)


def test_a_study_without_vocabulary_labels_and_roles(tmp_path, folders, text_file):
    store = un.run_study(
        un.StudyConfig(models=(str(folders[0]),), data=str(text_file), out=str(tmp_path / "s"), stages=("statistics",)),
        progress=False,
    )
    exported = require_export(write_neuronpedia(store, tmp_path / "out"))
    for lines in exported.values():
        assert not lines["explanations"]
        assert lines["activations"][0]["tokens"][0].strip().isdecimal()
        assert lines["features"][0]["pos_str"] == []


def test_what_cannot_be_exported_and_where(study, tmp_path, folders, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("kept")
    (tmp_path / "file").write_text("kept")
    for place in ("full", "file"):
        with pytest.raises(StoreConflictError):
            write_neuronpedia(study, tmp_path / place)
    assert (tmp_path / "full" / "kept").read_text() == (tmp_path / "file").read_text() == "kept"
    bare = un.run_study(
        un.StudyConfig(models=(str(folders[0]),), out=str(tmp_path / "w"), stages=("weights",)), progress=False
    )
    with pytest.raises(MissingFileError, match="no examples"):
        write_neuronpedia(bare, tmp_path / "out")
    monkeypatch.setattr(neuronpedia, "_explanations", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_neuronpedia(study, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "w"]
