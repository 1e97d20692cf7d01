"""Studies of dictionaries' latents: the neurons' own numbers, permutations, decoders against NumPy, refusals."""

import json
import pickle

import numpy as np
import polars as pl
import pytest
import torch
from conftest import save_tiny, settled, tiny_model
from polars.testing import assert_frame_equal
from test_correlation import some_tokens
from test_study import contents, quiet

import universal_neurons as un
from universal_neurons.errors import ConfigError, DictionaryError, StoreConflictError
from universal_neurons.explorer import TextReader, open_results, write_site
from universal_neurons.features import (
    Dictionary,
    NeuronSource,
    features_of,
    load_studied,
    save_dictionary,
    verify_latents,
)
from universal_neurons.features.dictionary_activations import Activation, TopK
from universal_neurons.models import Place, processed_weights, resolve_sources
from universal_neurons.passes import LaneJob, Pass
from universal_neurons.progress import Reporter
from universal_neurons.report import neuron_view, opening_sentences, study_figures
from universal_neurons.report.sources import LACKING, source_sentences
from universal_neurons.report.summary import plain_summary
from universal_neurons.statistics import CODES_BYTES, comoments, sparse_codes
from universal_neurons.storage import Pace, StoreWriter
from universal_neurons.study.estimate import WITHIN_SHARE, gemm_flops
from universal_neurons.study.memory import memory_plan
from universal_neurons.study.sparse_seconds import DENSE, Shares, product_shares
from universal_neurons.terminal import plain

pytestmark = pytest.mark.usefixtures("by_onednn")

PERMUTED = torch.randperm(24, generator=torch.Generator().manual_seed(0))
OF_VALUES = {"mean", "var", "skew", "kurt", "bos_mean"}  # of pre-activations, which latents have not
BEST = pl.col("rank") == 1


def written(folder, place, layer, encoder, **settings):
    """A dictionary of ReLU latents whose decoder is its encoder's transpose, in our own form."""
    at = Place(place, layer)
    d_in, width = encoder.shape
    made = Dictionary("d", at, at, encoder, torch.zeros(width), encoder.T.contiguous(), torch.zeros(d_in),
                      settings.pop("activation", Activation()), **settings)  # fmt: skip
    save_dictionary(made, folder)
    return str(folder)


@pytest.fixture(scope="module")
def models():
    return [tiny_model("gpt2", seed, f"relu-{seed}", activation_function="relu") for seed in (0, 1)]


@pytest.fixture(scope="module")
def text():
    return some_tokens(60)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Dictionaries on the neurons of both layers, their own and permuted; one on the stream after the second block."""
    root = tmp_path_factory.mktemp("dictionaries")
    for layer in (0, 1):
        written(root / "same" / str(layer), "neurons", layer, torch.eye(24))
        written(root / "permuted" / str(layer), "neurons", layer, torch.eye(24)[:, PERMUTED])
    halves = torch.cat([torch.eye(16), -torch.eye(16)], 1)
    written(root / "halves", "residual_out", 1, halves)
    written(root / "scaled", "residual_out", 1, halves, normalisation="average_norm")
    return {path.name: str(path) for path in root.iterdir()}


def study(models, text, out, **settings):
    given = {"out": str(out), "draws": 2, "stages": ("statistics", "labels", "universality"), "pairs": "all"}
    given |= {"labels": ("position", "unigrams")}
    return quiet(un.StudyConfig(**given | settings), models=models, tokens=text)


def test_a_dictionary_that_is_the_identity_gives_the_neurons_bytes(models, text, folders, tmp_path):
    plainly = study(models, text, tmp_path / "plain")
    asked = [features_of(model, folders["same"], name=model.name) for model in models]
    latents = study(asked, text, tmp_path / "latents")
    assert latents.gated == set()
    for name, digest in plainly.manifest["tables"].items():
        if name in ("neurons", "details", "histograms"):  # these hold pre-activations
            continue
        assert latents.manifest["tables"][name] == digest, name
    columns = [c for c in plainly.neurons.columns if c.removesuffix("_percentile") not in OF_VALUES]
    assert_frame_equal(latents.neurons.select(columns), plainly.neurons.select(columns), check_exact=True)
    means = latents.neurons["mean"].to_numpy()
    np.testing.assert_allclose(means, plainly.neurons["activation_mean"], atol=1e-2)  # of other rows, or the same
    for told in latents.manifest["dictionaries"].values():
        assert [one["explained"] for one in told] == [1, 1]


def test_permuted_latents_match_under_the_permutation(models, text, folders, tmp_path):
    asked = [models[0], features_of(models[0], folders["permuted"])]
    store = study(asked, text, tmp_path / "run", stages=("universality",), labels=("default",))
    assert store.models == ["relu-0", "relu-0::permuted"]
    best = store.matches.filter(BEST & (pl.col("asker") == "relu-0"))
    assert best["mutual"].all()
    np.testing.assert_allclose(best["corr"], 1, atol=1e-6)
    assert PERMUTED.numpy()[best["match_neuron"].to_numpy()].tolist() == best["neuron"].to_list()
    assert (best["match_layer"] == best["layer"]).all()


@pytest.mark.parametrize("name", ["halves", "scaled"])
def test_decoders_say_what_latents_write(models, text, folders, tmp_path, name):
    """One layer of two has a dictionary; its columns of weights are those of its decoder, centred as later norms do."""
    asked = [features_of(models[0], folders[name]), features_of(models[1], folders[name])]
    store = study(asked, text, tmp_path / "run", stages=("weights", "statistics", "universality"), labels=("default",))
    mine = store.neurons.filter(model=f"relu-0::{name}")
    assert mine["layer"].to_list() == [1] * 32
    scale = store.manifest["dictionaries"][f"relu-0::{name}"][0]["scale"]
    assert (scale == 1) == (name == "halves")
    rows = np.concatenate([np.eye(16), -np.eye(16)]) / scale
    rows -= rows.mean(1, keepdims=True)
    np.testing.assert_allclose(mine["w_out_norm"], np.linalg.norm(rows, axis=1), rtol=1e-6)
    np.testing.assert_allclose(mine["out_cos_min"], -1, atol=1e-6)
    w_u = processed_weights(models[0]).w_u.numpy()
    cosines = rows @ w_u.T / np.linalg.norm(rows, axis=1)[:, None] / np.linalg.norm(w_u, axis=1)
    np.testing.assert_allclose(mine["vocab_var"], cosines.var(1), rtol=1e-4)
    assert mine.select("w_in_norm", "l2_penalty", "in_out_sim").null_count().row(0) == (32, 32, 32)


@pytest.mark.parametrize("how", [{"panels": 3}, {"search": "screened", "group_size": 4}, {"baseline": "permutation"},
                                 {"baseline": "gaussian"}])  # fmt: skip
def test_every_way_of_searching_finds_the_same(models, text, folders, tmp_path, how):
    asked = [features_of(models[0], folders["halves"]), models[1]]
    settings = {"stages": ("universality",), "labels": ("default",)}
    plainly = study(asked, text, tmp_path / "plain", **settings).matches
    other = study(asked, text, tmp_path / "other", **settings, **how)
    columns = ["asker", "layer", "neuron", "match_layer", "match_neuron", "corr"]
    assert_frame_equal(other.matches.filter(BEST).select(columns), plainly.filter(BEST).select(columns), abs_tol=1e-6)
    assert other.neurons.filter(~pl.col("dead"))["excess_corr"].is_finite().all()


@pytest.fixture(scope="module")
def few_active(models, tmp_path_factory):
    """Eight of 256 latents are active at most: either sign of a dimension, or the stream along a random direction."""
    root = tmp_path_factory.mktemp("few")
    for seed in (0, 1):
        directions = torch.randn(16, 224, generator=torch.Generator().manual_seed(seed))
        encoder = torch.cat([torch.eye(16), -torch.eye(16), 0.3 * torch.nn.functional.normalize(directions, dim=0)], 1)
        written(root / str(seed), "residual_out", 1, encoder, activation=TopK(8))
    return [features_of(model, str(root / str(seed))) for seed, model in enumerate(models)]


@pytest.mark.parametrize("how", [{"panels": 2, "lanes": 2}, {"baseline": "permutation"}])
def test_sparse_products_give_the_tables_of_dense_ones(models, few_active, text, tmp_path, how, monkeypatch):
    sparse = []
    told = comoments.add_sparse_product
    monkeypatch.setattr(comoments, "add_sparse_product", lambda *given: (sparse.append(1), told(*given)))
    asked, settings = [*few_active, models[1]], {"stages": ("universality",), "labels": ("default",), **how}
    found = study(asked, text, tmp_path / "sparse", **settings)
    assert sparse
    sparse.clear()
    monkeypatch.setattr(sparse_codes, "SPARSE_SHARE", 0)
    dense = study(asked, text, tmp_path / "dense", **settings)
    assert not sparse
    columns = ["max_corr", "mean_corr", "min_corr", "max_baseline", "excess_corr", "excess_standardised"]
    for one, other in (
        (found.neurons[columns], dense.neurons[columns]),
        (found.matches["corr"], dense.matches["corr"]),
    ):
        np.testing.assert_allclose(one.to_numpy(), other.to_numpy(), rtol=0, atol=2e-6)  # each is within 1e-6 of NumPy
    same = found.matches.filter(BEST)["match_neuron"].eq_missing(dense.matches.filter(BEST)["match_neuron"])
    assert same.mean() > 0.99  # some that are active once are tied


def test_what_sparse_products_take_is_timed_and_what_they_hold_is_planned(models, few_active):
    latents, other = few_active
    config = settled(stages=("universality", "statistics"), labels=("default",), batch_tokens=400, context=16)
    asked = [latents, other, models[1]]
    shares = product_shares(asked, config)
    assert [shares[each.name].is_sparse for each in asked] == [True, True, False]
    given = {each.name: Shares(0.5, 0.125) for each in few_active} | {models[1].name: DENSE}
    flops = [
        256 * 256 * 0.125,
        256 * 48 * 0.5,
        2 * 256**2 * 0.125,
        2 * 24**2 * WITHIN_SHARE,
    ]  # two pairs, within layers
    assert gemm_flops(asked, config, given) == pytest.approx(2 * sum(flops))
    one, none = (memory_plan(config, [latents, *rest]).blocks for rest in ([other], [models[1]]))
    assert one - none == 400 * ((256 - 48) * 4 * 2 + CODES_BYTES * 256)  # activations, pre-activations, codes


def test_named_by_paths_sketched_and_changed(tmp_path, text_file):
    """A changed dictionary is another study; a sketch of latents stands for them."""
    folder = save_tiny(tmp_path / "m", activation_function="relu")
    made = written(tmp_path / "mine", "residual_out", 0, torch.cat([torch.eye(16), -torch.eye(16)], 1))
    names = (str(folder), f"{folder}::{made}")
    text = {"data": str(text_file), "max_tokens": 6000, "context": 32}
    config = un.StudyConfig(models=names, stages=("universality",), out=str(tmp_path / "run"), **text)
    store = quiet(config)
    assert store.models == ["m", "m::mine"]
    assert str(tmp_path) not in json.dumps(store.manifest["dictionaries"])
    sketches = [str(tmp_path / f"{number}.safetensors") for number in (0, 1)]
    for name, sketch in zip(names, sketches):
        of_one = un.StudyConfig(models=name, out=sketch, search="sketch", group_size=4, **text)
        un.make_sketch(of_one, reporter=Reporter(quiet=True))
    sketched = quiet(un.StudyConfig(models=sketches, search="screened", out=str(tmp_path / "sketched")))
    columns = ["layer", "neuron", "match_layer", "match_neuron"]
    assert_frame_equal(sketched.matches.filter(BEST).select(columns), store.matches.filter(BEST).select(columns))
    written(tmp_path / "mine", "residual_out", 0, 2 * torch.cat([torch.eye(16), -torch.eye(16)], 1))
    with pytest.raises((StoreConflictError, DictionaryError)):
        quiet(config)


def test_refusals(models, text, folders, tmp_path):
    torch.manual_seed(0)
    bad = written(tmp_path / "bad", "residual_out", 0, torch.randn(16, 8) * 3)
    with pytest.raises(DictionaryError, match="of the variance"):
        study([models[1], features_of(models[0], bad)], text, tmp_path / "run")
    assert not (tmp_path / "run" / "study.json").exists()
    with pytest.raises(ConfigError, match="dictionaries are of the network"):
        study([models[1], features_of(models[0], folders["same"])], text, tmp_path / "run", null="untrained")
    with pytest.raises(ConfigError, match="no such features"):
        features_of(models[0], "nowhere")


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    """Bundled dictionaries, the same model's neurons, and heads of another."""
    out = tmp_path_factory.mktemp("bundled") / "run"
    names = ("bundled/seed-1::bundled", "bundled/seed-1", "bundled/seed-2::attention")
    return quiet(
        un.StudyConfig(
            models=names, out=str(out), max_tokens=3000, context=32, draws=2, labels=("unigrams", "position")
        )
    )


def test_bundled_dictionaries(bundled):
    assert bundled.models == ["seed-1::bundled", "seed-1", "seed-2::attention"]
    told = bundled.manifest["dictionaries"]["seed-1::bundled"]
    assert len(told) == 3
    assert all(one["explained"] > 0.5 for one in told)
    by_model = {name: bundled.neurons.filter(model=name) for name in bundled.models}
    assert by_model["seed-1::bundled"]["vocab_kurt"].is_finite().any()
    assert by_model["seed-1"]["w_in_norm"].null_count() == 0
    assert by_model["seed-2::attention"]["vocab_kurt"].null_count() == len(by_model["seed-2::attention"])


def test_a_text_of_ones_own(bundled):
    """The models are read again, and the dictionaries with them."""
    read = TextReader(bundled).read("It was the best of times, it was the worst of times.")
    assert len(read["models"]) == 3
    assert read["models"][0]["units"]


def test_pages_say_what_units_are(bundled, tmp_path):
    summary = " ".join(plain_summary(bundled).split())
    (first, second, lacking) = source_sentences(bundled)
    assert "latents of 3 dictionaries, which explain" in first
    assert "negative control" in second
    assert "no roles" in lacking
    for sentence in (first, second, lacking):
        assert sentence in summary
        assert sentence in opening_sentences(bundled)
    shown = plain(neuron_view(bundled, "seed-2::attention/L0.3"), 110)
    assert "a dimension of a head (a negative control" in shown
    assert "Value (log counts)" in shown
    shown = plain(neuron_view(bundled, "L1.3"), 110)
    assert "a latent of a dictionary" in shown
    assert "length of its decoder's row" in shown
    assert "most raised: " in shown
    assert bundled.neuron("L1.3").plot.logit_effects() is not None
    said = bundled.explanations.filter(pl.col("explanation").str.contains("raises"))
    assert set(said["model"]) == {"seed-1::bundled"}
    site = write_site([open_results(bundled.path)], tmp_path / "site")
    data = "".join(path.read_text() for path in (site.parent / "data").rglob("study*.js"))
    assert "Roles are of neurons" in data
    assert "No logit effects" not in data
    units = [next((site.parent / "data").rglob(f"unit/{model}/0.js")).read_text() for model in range(3)]
    assert ['"effects":' in unit for unit in units] == [True, False, False]
    assert "GPT-2, dictionaries" in data


def test_interrupted_between_snapshots_it_goes_on_to_the_same_bytes(models, folders, tmp_path, monkeypatch):
    """Latents beside the neurons of their model, whose factor is of the text; and in lanes of their own."""
    monkeypatch.setattr("universal_neurons.text.tokens.SHARD_POSITIONS", 1024)
    tokens, save = some_tokens(120), StoreWriter.save_snapshot
    settings = {"stages": ("statistics", "universality"), "labels": ("default",)}

    def again(out):
        asked = [features_of(models[0], folders["scaled"]), models[0]]
        config = un.StudyConfig(out=str(tmp_path / out), draws=2, **settings)
        return un.run_study(config, models=asked, tokens=tokens, progress=False, checkpoint_seconds=0.0)

    whole = contents(again("whole"))

    def interrupted(self, tensors, shard):
        save(self, tensors, shard)
        if shard == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StoreWriter, "save_snapshot", interrupted)
        with pytest.raises(KeyboardInterrupt):
            again("parts")
    assert contents(again("parts")) == whole


def test_a_worker_of_a_cluster_reads_the_dictionaries_as_the_driver_does(folders, text, tmp_path):
    """A lane's own sources give the blocks of the study's: the same factor, one model for latents and neurons."""
    folder = save_tiny(tmp_path / "m", activation_function="relu")
    names = (f"{folder}::{folders['scaled']}", str(folder))
    config = settled(models=names, cluster="auto", lanes=2)
    asked = load_studied(resolve_sources(names))
    assert asked[0].network is asked[1]
    verify_latents(asked, text)
    shards = text.shards(np.arange(len(text)))
    run = Pass([NeuronSource(each) for each in asked], [])
    run.settle_means(text, shards)
    job = LaneJob.of(run, asked, config, text, shards, Pace(0.0, 10.0, 0.02), tmp_path / "lanes")
    worker = pickle.loads(pickle.dumps(job))
    of_worker = worker.lane_pass(worker.load(worker.models))
    for (_, mine), (_, its) in zip(run.batches(text, shards[0], 512), of_worker.batches(text, shards[0], 512)):
        for key, block in mine.blocks.items():
            assert torch.equal(block.values, its.blocks[key].values)


EFFECT_SETTINGS = {"stages": ("weights", "statistics", "labels"), "labels": ("unigrams",), "pairs": "reference"}
OF_DECODERS = ["layer", "neuron", "class", "class_group", "class_sign", "class_variance_reduction", "top_tokens",
               "top_effects", "bottom_tokens", "bottom_effects", "tokens_left_out", "kurtosis_share"]  # fmt: skip


def writing_as_neurons(folder, model):
    """Dictionaries that read what the MLPs read and compute and write what they do: latents are the neurons."""
    for layer, block in enumerate(model.blocks):
        w_in, w_out = block.mlp.c_fc, block.mlp.c_proj
        made = Dictionary("d", Place("mlp_in", layer), Place("mlp_out", layer), w_in.weight.detach(),
                          w_in.bias.detach(), w_out.weight.detach(), w_out.bias.detach(), Activation())  # fmt: skip
        save_dictionary(made, folder / str(layer))
    return str(folder)


def test_decoders_that_are_w_out_have_the_neurons_effects(models, text, tmp_path):
    plainly = study(models[:1], text, tmp_path / "plain", **EFFECT_SETTINGS | {"stages": (*EFFECT_SETTINGS["stages"], "roles")})  # fmt: skip
    asked = features_of(models[0], writing_as_neurons(tmp_path / "own", models[0]), name=models[0].name)
    store = study([asked], text, tmp_path / "run", **EFFECT_SETTINGS)
    mine, theirs = store.table("effects"), plainly.table("effects")
    assert mine.columns == theirs.columns
    assert mine.schema == theirs.schema
    assert theirs["class"].null_count() == 0
    assert_frame_equal(mine.select(OF_DECODERS), theirs.select(OF_DECODERS), rel_tol=1e-6)
    assert mine.select("role", "role_relative").null_count().row(0) == (48, 48)
    assert set(mine["orientation"]) == {1}
    vocab = [f"vocab_{name}" for name in ("mean", "var", "skew", "kurt")]
    assert_frame_equal(store.neurons.select(vocab), plainly.neurons.select(vocab), rel_tol=1e-6)
    assert not store.has_roles
    assert plainly.has_roles


def test_effects_of_latents_against_numpy(models, folders, tmp_path):
    """Of latents that write into the stream, in a mixed study; by the factor of what was normalised on average."""
    pieces = np.random.default_rng(0).integers(300, 400, (60, 31))
    pieces[:, 1] = 500  # often; and two that hardly occur
    pieces[0, 2], pieces[1, 2] = 501, 502
    tokens = un.TokenDataset.from_pieces([("", row) for row in pieces], context=32, bos=0, masked=(0,))
    asked = [features_of(models[0], folders["scaled"]), models[0], features_of(models[0], "residual"),
             features_of(models[0], folders["same"])]  # fmt: skip
    store = study(asked, tokens, tmp_path / "run", stages=("weights", "statistics"), labels=("default",))
    effects = store.table("effects")
    assert set(effects["model"]) == {"relu-0::scaled"}
    assert effects["layer"].to_list() == [1] * 32
    scale = store.manifest["dictionaries"]["relu-0::scaled"][0]["scale"]
    rows = np.concatenate([np.eye(16), -np.eye(16)]) / scale
    rows -= rows.mean(1, keepdims=True)
    network = models[0].hf
    w_u = (network.lm_head.weight * network.transformer.ln_f.weight).detach().numpy().astype(float)
    w_u -= w_u.mean(1, keepdims=True)
    w_u -= w_u.mean(0)
    often = np.array([*range(300, 400), 500])
    logits = rows @ w_u[often].T
    for side, order in (("top", -logits), ("bottom", logits)):
        best = np.argsort(order, axis=1)[:, :10]
        assert effects[f"{side}_tokens"].to_list() == often[best].tolist()
        values = np.stack(effects[f"{side}_effects"].to_list())
        np.testing.assert_allclose(values, np.take_along_axis(logits, best, 1), rtol=1e-5, atol=1e-7)
    assert store.strings[500]
    shown = plain(neuron_view(store, "relu-0::scaled/L1.3"), 110)
    assert f"most raised: {store.strings[effects['top_tokens'][3][0]]!r}" in shown
    assert "What it does nearest token class: " in " ".join(shown.split())
    assert "no role" not in shown
    assert "What it does" not in plain(neuron_view(store, "relu-0::residual/L1.3"), 110)


SHARED, LATENTS = 0.6, 240


def topk_folders(root, width):
    """TopK dictionaries of random directions on one stream: `second` has 60 % of `first`'s, in another order; `other`
    has none.  By their names, and where in `second` the directions of `first` are."""
    chooser = np.random.default_rng(0)
    first, second, other = chooser.normal(size=(3, LATENTS, width))
    same = int(SHARED * LATENTS)
    second[:same] = first[:same]
    order = chooser.permutation(LATENTS)
    folders = {}
    for name, rows in {"first": first, "second": second[order], "other": other}.items():
        rows = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).float()
        place = Place("residual_out", 0)
        made = Dictionary(name, place, place, rows.T.contiguous(), torch.zeros(LATENTS), 0.6 * rows, torch.zeros(width),
                          TopK(8))  # fmt: skip
        save_dictionary(made, root / name)
        folders[name] = str(root / name)
    return folders, np.argsort(order)[:same]


def test_planted_dictionaries_of_one_model_share_what_was_planted(tmp_path):
    """Two of three in ten directions are the same: matches, one-to-one and decoders find them; of others there is none."""
    model = tiny_model("gpt2", 0, "m", n_embd=64, n_layer=1)
    folders, places = topk_folders(tmp_path, 64)
    asked = [features_of(model, folder) for folder in folders.values()]
    settings = {"stages": ("universality",), "labels": ("default",), "pairs": "reference"}
    store = study(asked, some_tokens(100), tmp_path / "run", **settings)
    alike, unlike = store.table("consistency").iter_rows(named=True)
    assert (alike["match_model"], unlike["match_model"]) == ("m::second", "m::other")
    assert alike["shared_low"] <= SHARED <= alike["shared_high"] < 0.7
    assert alike["pw_mcc_low"] <= SHARED <= alike["pw_mcc_high"] < 0.7
    assert abs(alike["pw_mcc_shared"] - SHARED * LATENTS) <= 3
    pairs = store.table("one_to_one").filter(pl.col("neuron") < len(places), match_model="m::second")
    assert len(pairs) > 0.9 * len(places)  # the others never fire
    assert (places[pairs["neuron"].to_numpy()] == pairs["match_neuron"].to_numpy()).mean() > 0.98
    assert (unlike["shared"], unlike["pw_mcc_shared"]) == (0, 0)
    assert (unlike["level"], unlike["pw_mcc_level"]) == (None, None)
    assert unlike["pw_mcc_low"] <= 0 <= unlike["pw_mcc_high"]


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_layers_without_units_are_skipped_everywhere(tmp_path):
    """Dictionaries at the middle layer of one model and the first of another, three layers each, in several panels."""
    halves = torch.cat([torch.eye(16), -torch.eye(16)], 1)
    layers = {"middle": 1, "first": 0}
    models = [tiny_model("gpt2", seed, f"m{seed}", n_layer=3) for seed in (0, 1)]
    asked = [
        features_of(model, written(tmp_path / name, "residual_out", layer, halves))
        for model, (name, layer) in zip(models, layers.items())
    ]
    stages = ("statistics", "universality", "similarity")
    store = study(asked, some_tokens(60), tmp_path / "run", stages=stages, labels=("default",), panels=3)
    of = {"m0::middle": 1, "m1::first": 0}
    for name, columns in {"neurons": ("model",), "matches": ("asker", "match_model"), "similarity": ("asker", "match_model"),
                          "one_to_one": ("asker", "match_model"), "layers": ("asker",)}.items():  # fmt: skip
        table = store.table(name)
        assert len(table) > 0
        for whose, layer in zip(columns, ("layer", "match_layer")):
            told = table.filter(pl.col(layer) >= 0)
            assert set(told.select(whose, layer).rows()) == set(of.items()), (name, layer)
    assert store.layers["fraction"].is_finite().all()
    assert store.layers.filter(asker="m0::middle").select("match_layer", "fraction").rows() == [(0, 1), (1, 0), (2, 0)]
    assert len(store.table("similarity")) == 2 * 4
    drawn = study_figures(store)
    assert {"universality-m0::middle", "similarity-m1::first"} <= set(drawn)
    assert not [name for name, figure in drawn.items() if "nan" in str(figure.caption).lower().split()]
    (heat,) = (axes for axes in drawn["universality-m0::middle"].figure.axes if axes.images)
    grid = np.ma.filled(heat.images[0].get_array().astype(float), np.nan)
    np.testing.assert_array_equal(grid, [[np.nan] * 3, [100, 0, 0]])
    summary = " ".join(plain_summary(store).split())
    assert "per layer – 0 –" in summary
    spoken = [summary, *opening_sentences(store)[:2], *(f"{each.title} {each.caption}" for each in drawn.values())]
    spoken += [each.get_ylabel() for each in drawn["universality-m0::middle"].figure.axes]
    assert not [text for text in spoken if "neuron" in text.lower() or "pre-activation" in text.replace(LACKING, "")]
    assert "which of its latents does every model find again?" in summary
