"""Losses and ablations by a study, against Hugging Face's own loss and forward passes written out in float64."""

import copy
import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from conftest import alike_models, some_text, tiny_model, tiny_network
from hand_written import run

import universal_neurons as un
from universal_neurons.errors import (
    ArchitectureError,
    ConfigError,
    ContextError,
    MissingFileError,
    StoreConflictError,
    TextError,
)
from universal_neurons.text import TokenDataset

TEXT = "The miller had three sons."
NEURONS = ["L0.7", "L1.3", "L1.20"]
ROWS = torch.randint(1, 1024, (3, 12), generator=torch.Generator().manual_seed(0))
RECIPE = re.search(
    r"```python\n(store = [^\n]*\nmodel = .*?)```",
    (Path(__file__).parents[2] / "docs/python.md").read_text(encoding="utf-8"),
    re.DOTALL,
)


@pytest.fixture(scope="module")
def models():
    return alike_models(["a", "b"])


@pytest.fixture(scope="module")
def tokens():
    chooser = np.random.default_rng(0)
    pieces = [("", chooser.integers(1, 1024, 31)) for _ in range(60)]
    return TokenDataset.from_pieces(pieces, context=32, bos=0, masked={0, 5})


@pytest.fixture(scope="module")
def store(models, tokens, tmp_path_factory):
    config = un.StudyConfig(
        out=str(tmp_path_factory.mktemp("ablation") / "run"), context=32, draws=2, stages=("statistics", "universality")
    )
    return un.run_study(config, models=models, tokens=tokens, progress=False)


def losses_by_hand(model, ids, change=None):
    log_p = run(model.hf, ids, change).logits.log_softmax(-1)[:, :-1]
    return -log_p.gather(-1, ids[:, 1:, None])[..., 0]


def held_at(values):
    def change(layer, activation):
        changed = activation.clone()
        for name, value in values.items():
            own, neuron = (int(part) for part in name[1:].split("."))
            if own == layer:
                changed[..., neuron] = value
        return changed

    return change


@pytest.fixture(scope="module")
def means(models, tokens):
    """Of the reference's neurons, in float64, over the counted positions of the rows that choose."""
    rows, _ = tokens.split()
    by_layer = run(models[0].hf, torch.from_numpy(tokens.ids(rows)).long()).activations
    return {
        f"L{layer}.{neuron}": float(
            activation[torch.from_numpy(tokens.mask(rows)).view(len(rows), -1)][:, neuron].mean()
        )
        for layer, activation in enumerate(by_layer)
        for neuron in range(24)
    }


def test_the_loss_is_hugging_faces_and_that_of_the_pass_written_by_hand(models):
    model = models[0]
    found = un.loss(model, ROWS)
    assert found.mean == pytest.approx(float(model.hf(input_ids=ROWS, labels=ROWS).loss), rel=1e-6)
    torch.testing.assert_close(found.per_token.double(), losses_by_hand(model, ROWS), rtol=1e-5, atol=1e-5)
    assert torch.equal(found.ids, ROWS)


def test_the_loss_of_a_string_counts_its_first_token(models):
    model = models[0]
    found = un.loss(model, TEXT)
    ids = torch.tensor([[0, *model.tokenizer(TEXT)["input_ids"]]])
    torch.testing.assert_close(found.per_token.double(), losses_by_hand(model, ids), rtol=1e-5, atol=1e-5)
    frame = found.to_frame()
    assert "".join(frame["string"]) == TEXT
    assert frame["token"].to_list() == ids[0, 1:].tolist()
    assert frame["position"].to_list() == list(range(1, ids.shape[1]))
    np.testing.assert_allclose(frame["loss"], found.per_token[0])
    assert f"{found.mean:.4f} nats over {len(frame)} tokens" in repr(found)


def test_rows_and_a_model_without_a_tokenizer(models):
    bare = un.Model(tiny_network("gpt2"), "bare")
    found = un.loss(bare, ROWS)
    assert found.strings is None
    assert found.to_frame().columns == ["row", "position", "token", "loss"]
    assert found.to_frame()["row"].to_list() == [row for row in range(3) for _ in range(11)]
    assert found.to_frame()["token"].to_list() == ROWS[:, 1:].flatten().tolist()
    np.testing.assert_allclose(found.to_frame()["loss"], un.loss(models[0], ROWS).per_token.flatten(), rtol=1e-6)


def test_what_has_no_next_token_is_refused(models):
    with pytest.raises(TextError, match="no token to predict"):
        un.loss(models[0], "")
    with pytest.raises(ContextError):
        un.loss(models[0], "word " * 200)
    with pytest.raises(ArchitectureError, match="predicts no next token"):
        un.loss(tiny_model("bert"), ROWS)


def test_an_ablation_takes_the_mean_activation_and_says_so(models, store, means):
    model = models[0]
    with un.ablate(model, store, NEURONS) as taken:
        found = un.loss(model, ROWS)
    expected = {name: means[name] for name in NEURONS}
    assert taken["model"].to_list() == ["a"] * 3
    assert taken.select(name=pl.format("L{}.{}", "layer", "neuron"))["name"].to_list() == NEURONS
    np.testing.assert_allclose(taken["value"], list(expected.values()), atol=1e-6)
    by_hand = losses_by_hand(model, ROWS, held_at(expected))
    torch.testing.assert_close(found.per_token.double(), by_hand, rtol=1e-5, atol=1e-5)
    assert float((by_hand - losses_by_hand(model, ROWS)).abs().max()) > 1e-3
    wrong = store.neurons.filter(pl.col("model") == "a", pl.col("layer") == 0, pl.col("neuron") == 7)
    assert abs(wrong["mean"][0] - expected["L0.7"]) > 0.05  # the pre-activation's: what was taken by mistake


@pytest.mark.parametrize("edit", ["mean", un.Edit("mean"), "zero", un.Edit("zero")], ids=str)
def test_an_ablation_is_of_any_names_and_where_it_is_asked_for(models, store, means, edit):
    model = models[0]
    mask = torch.arange(12) % 3 == 1
    value = 0.0 if "zero" in str(edit) else means["L1.3"]
    with un.intervene(model, ["L1.3"], un.Edit("fix", value), mask):
        expected = model.logits(ROWS)
    for neurons in ("a/L1.3", ["L1.3"], [27], torch.tensor([27])):
        with un.ablate(model, store, neurons, edit, mask) as taken:
            torch.testing.assert_close(model.logits(ROWS), expected, rtol=1e-5, atol=1e-5)
        assert taken["value"].to_list() == pytest.approx([value], abs=1e-6)


def test_other_edits_models_and_neurons_are_refused(models, store):
    cases = {
        "an ablation by a study": (models[0], ["L0.1"], un.Edit("fix", 1.0)),
        "another model than a": (models[0], ["b/L0.1"], "mean"),
        "no such neuron": (models[0], ["L0.99"], "mean"),
    }
    for said, (model, neurons, edit) in cases.items():
        with pytest.raises(ConfigError, match=said), un.ablate(model, store, neurons, edit):
            pass
    with pytest.raises(ConfigError, match="mean with a value"), un.ablate(models[0], store, [0], un.Edit("mean", 0.1)):
        pass
    other = tiny_model("gpt2", 7, "a")
    with pytest.raises(StoreConflictError, match="not a study of this a"), un.ablate(other, store, [0]):
        pass


def test_a_study_that_knows_no_means_of_tokens_says_so(models, store, monkeypatch):
    without = un.Store(store.path)
    without._tables["neurons"] = store.neurons.with_columns(activation_mean=pl.lit(None, pl.Float64))
    for frame in (without.neurons, store.neurons.drop("activation_mean")):
        without._tables["neurons"] = frame
        with pytest.raises(MissingFileError, match="no mean activations"), un.ablate(models[0], without, [0]):
            pass
    of_spans = un.Store(store.path)
    of_spans.manifest = json.loads(json.dumps(store.manifest))
    of_spans.manifest["config"]["pooling"] = "mean"
    with pytest.raises(StoreConflictError, match="of spans"), un.ablate(models[0], of_spans, [0]):
        pass


def losses_of_hugging_face(model, ids, layer=0, neuron=0, value=None):
    """Of a float64 copy, one neuron of whose output projections is held at a value by a hook of torch's own."""
    network = copy.deepcopy(model.hf).double()

    def hold(_module, inputs):
        held = inputs[0].clone()
        held[..., neuron] = value
        return (held,)

    if value is not None:
        network.transformer.h[layer].mlp.c_proj.register_forward_pre_hook(hold)
    with torch.no_grad():
        log_p = network(input_ids=ids).logits.log_softmax(-1)[0, :-1]
    return -log_p[torch.arange(len(log_p)), ids[0, 1:]].numpy()


def test_the_recipe_of_the_documentation_runs(tmp_path, monkeypatch, capsys):
    assert RECIPE is not None
    data = tmp_path / "text.txt"
    data.write_text("\n\n".join(some_text(150, seed) for seed in range(12)))
    monkeypatch.chdir(tmp_path)
    un.run_study(
        un.StudyConfig(
            models=("bundled/seed-1", "bundled/seed-2"), data=str(data), out="runs/two", draws=2, max_tokens=4096,
            stages=("universality",),
        ),
        progress=False,
    )  # fmt: skip
    names: dict = {"un": un}
    exec(RECIPE[1], names)
    model, text, change = names["model"], names["text"], names["change"]
    ids = model.ids_of(text)
    rows = names["store"].neurons.filter(pl.col("model") == "seed-1").sort("layer", "neuron")
    assert len(names["neurons"]) == 3
    before, said = losses_of_hugging_face(model, ids), capsys.readouterr().out
    for name in names["neurons"]:
        layer, neuron = (int(part) for part in name[1:].split("."))
        mean = rows["activation_mean"][layer * 256 + neuron]
        expected = losses_of_hugging_face(model, ids, layer, neuron, mean) - before
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(change[name], expected, atol=2e-5)
        assert f"{name} held at {mean}" in said
