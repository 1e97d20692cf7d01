"""What is shown of a reader's own text is what the models do on it, measured by what the study found."""

import shutil

import numpy as np
import polars as pl
import pytest
import torch
from conftest import ODD, save_tiny, some_text

import universal_neurons as un
from universal_neurons.errors import MissingFileError, StoreConflictError
from universal_neurons.explorer.own_text import SHOWN, TextReader
from universal_neurons.models import load_model

pytest_plugins = ["explored"]


def study_of(folders, text_file, out, **settings):
    return un.run_study(
        un.StudyConfig(
            models=tuple(map(str, folders)), data=str(text_file), out=str(out), draws=2, max_tokens=4000,
            stages=("statistics", "universality"), **settings,
        ),
        progress=False,
    )  # fmt: skip


def expected(store, folder, name, text):
    """Tokens, which are counted, all activations, and each neuron's extremes: by NumPy, from the tables and the model."""
    model = load_model(str(folder))
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    size = store.settings.context - 1
    rows = [ids[at : at + size] for at in range(0, len(ids), size)]
    made = np.concatenate([model.activations(torch.tensor([[0, *row]]))[0, 1:].numpy() for row in rows])
    newline = model.tokenizer("\n", add_special_tokens=False)["input_ids"]
    counted = np.array([token not in (0, *newline) for token in ids])
    examples = store.examples.filter(pl.col("model") == name)
    extremes = np.full((2, made.shape[1]), np.nan)
    for unit in range(made.shape[1]):
        layer, neuron = divmod(unit, 24)
        own = examples.filter((pl.col("layer") == layer) & (pl.col("neuron") == neuron))
        top = own.filter(pl.col("band") == "top")["activation"].max()
        bottom = own.filter(pl.col("band") == "bottom")["activation"].min()
        extremes[0, unit] = top if top is not None and top > 0 else np.nan
        extremes[1, unit] = bottom if bottom is not None and bottom < 0 else np.nan
    return ids, counted, made, extremes


def require_true(store, folders, text):
    read = TextReader(store).read(text)
    assert read["quantile"] == 1.0
    assert [model["model"] for model in read["models"]] == list(range(len(folders)))
    for model, folder, name in zip(read["models"], folders, store.models):
        ids, counted, made, extremes = expected(store, folder, name, text)
        assert "".join(model["tokens"]) == text or "\ufffd" in model["tokens"]  # part of a character
        assert len(model["tokens"]) == len(ids)
        with np.errstate(invalid="ignore"):
            shares = np.nan_to_num(np.fmax(*(made[counted][None] / extremes[:, None]))).max(0)
        best = np.argsort(-shares, kind="stable")[:SHOWN]
        assert [unit["unit"] for unit in model["units"]] == [n for n in best if shares[n] > 0]
        for unit in model["units"]:
            number = unit["unit"]
            assert unit["name"] == f"L{number // 24}.{number % 24}"
            assert [value is not None for value in unit["activations"]] == counted.tolist()
            shown = np.array(unit["activations"], float)[counted]
            np.testing.assert_allclose(shown, made[counted][:, number], rtol=1e-5)
            share = np.nanmax(shown / unit["highest"])
            assert share == pytest.approx(shares[number], rel=2e-5)
            assert unit["highest"] == pytest.approx(np.float64(extremes[int(unit["highest"] < 0), number]), rel=1e-5)


def test_a_short_text(study, folders):
    require_true(study, folders[:2], "The man was here,\nand that is it. éé \U0001f600")


def test_a_text_of_several_rows(study, folders):
    text = some_text(300, 5)
    assert len(load_model(str(folders[0])).tokenizer(text)["input_ids"]) > 3 * study.settings.context
    require_true(study, folders[:2], text)


@pytest.mark.parametrize(
    "text",
    ["<script>alert(1)</script>", ODD, "\n\n\n", "\0", "\u202e" * 50, "a" * 3000],
    ids=["markup", "odd", "newlines", "nul", "marks", "long"],
)
def test_odd_texts_are_read_as_they_stand(study, folders, text):
    require_true(study, folders[:2], text)


def test_gated_neurons_are_measured_by_both_tails(tmp_path, text_file):
    folders = [save_tiny(tmp_path / f"g{seed}", "llama", seed) for seed in range(2)]
    store = study_of(folders, text_file, tmp_path / "s")
    require_true(store, folders, "It was, as they had it, one for all.")
    units = [u for model in TextReader(store).read(some_text(200, 3))["models"] for u in model["units"]]
    assert {unit["highest"] > 0 for unit in units} == {True, False}


def test_spans_are_read_by_each_models_own_tokenizer(tmp_path, folders, text_file):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    other = save_tiny(tmp_path / "bytes")
    bytes_only = Tokenizer(
        models.BPE({c: i for i, c in enumerate(["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}, [])
    )
    bytes_only.pre_tokenizer, bytes_only.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (other / name).unlink(missing_ok=True)
    PreTrainedTokenizerFast(tokenizer_object=bytes_only, bos_token="<|end|>", eos_token="<|end|>").save_pretrained(
        other
    )
    store = study_of([folders[0], other], text_file, tmp_path / "s")
    assert store.has("spans")
    read = TextReader(store).read("that is")
    assert read["models"][0]["tokens"] != list("that is")
    assert read["models"][1]["tokens"] == list("that is")


def test_what_is_not_there_is_said(tmp_path, folders, text_file, monkeypatch):
    moved = [shutil.copytree(folder, tmp_path / folder.name) for folder in folders[:2]]
    store = study_of(moved, text_file, tmp_path / "s")
    shutil.rmtree(moved[1])
    with pytest.raises(MissingFileError, match="no such folder"):
        TextReader(store)
    shutil.copytree(folders[2], moved[1])
    with pytest.raises(StoreConflictError, match="another model is now in the place of the study's"):
        TextReader(store)
    bare = un.run_study(
        un.StudyConfig(models=tuple(map(str, folders[:2])), out=str(tmp_path / "w"), stages=("weights",)),
        progress=False,
    )
    with pytest.raises(MissingFileError, match="no examples"):
        TextReader(bare)


def test_nothing_is_downloaded(monkeypatch, study):
    asked = []

    def snapshot(repository, **settings):
        asked.append(settings["local_files_only"])
        raise OSError("not in the cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    config = study.config.model_copy(update={"models": ("someone/model", "someone/other")})
    monkeypatch.setattr(type(study), "config", config)
    with pytest.raises(MissingFileError, match="neither a local folder nor found on the hub"):
        TextReader(study)
    assert asked == [True]
