"""Folders of dictionaries: sparsify's, Gemma Scope's, our own; one per layer; and files that are broken or dangerous."""

import io
import json
import os
import zipfile

import numpy as np
import pytest
import torch
from dictionary_formulas import latents_of, reconstruction_of
from huggingface_hub import snapshot_download
from safetensors.torch import save_file

from universal_neurons.errors import CheckpointError, DictionaryError, MissingFileError
from universal_neurons.features import load_dictionaries, save_dictionary
from universal_neurons.features.dictionary import Dictionary
from universal_neurons.features.dictionary_activations import Activation, Gated, GroupMax, JumpReLU, TopK
from universal_neurons.features.hook_names import place_of_hook, place_of_module
from universal_neurons.models import Place, features_at, names_of, resolve_sources

D, WIDTH = 8, 12
STREAM = Place("residual_out", 3)


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X = 2 * numbers(40, D, seed=20) + 0.5
W_ENC, B_ENC, W_DEC, B_DEC, THRESHOLD, SKIP = (
    numbers(*shape, seed=seed)
    for seed, shape in enumerate([(D, WIDTH), (WIDTH,), (WIDTH, D), (D,), (WIDTH,), (D, D)], start=1)
)


def plain(**more) -> Dictionary:
    given = {"name": "", "read": STREAM, "write": STREAM, "W_enc": W_ENC, "b_enc": B_ENC, "W_dec": W_DEC,
             "b_dec": B_DEC, "activation": Activation()}  # fmt: skip
    return Dictionary(**given | more)


def agrees(dictionary, **settings) -> None:
    """Latents and reconstruction are those of the formulas."""
    of = {"W_enc": W_ENC, "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC, **settings}
    of = {name: v.double().numpy() if isinstance(v, torch.Tensor) else v for name, v in of.items()}
    x = X.double().numpy()
    np.testing.assert_allclose(dictionary.encode(X).numpy(), latents_of(x, of), atol=1e-4)
    skip = x @ of["skip"] if "skip" in of else 0
    np.testing.assert_allclose(dictionary.reconstruction(X).numpy(), reconstruction_of(x, of) + skip, atol=1e-4)


def save_sparsify(folder, config, **more):
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps({"d_in": D, "num_latents": 0, "k": 4, **config}))
    tensors = {"encoder.weight": W_ENC.T.contiguous(), "encoder.bias": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC, **more}
    save_file(tensors, folder / "sae.safetensors")
    return folder


def save_gemma(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"W_enc": W_ENC, "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC, "threshold": THRESHOLD}
    np.savez(folder / "params.npz", **{name: array.numpy() for name, array in (arrays | changes).items()})
    return folder


def test_sparsify_autoencoders_and_transcoders(tmp_path):
    (one,) = load_dictionaries(save_sparsify(tmp_path / "layers.3", {"expansion_factor": 32, "transcode": False}))
    agrees(one, activation="topk", k=4, b_in=B_DEC)
    assert (one.read, one.write, one.kind) == (STREAM, STREAM, "sparsify")
    config = {"transcode": True, "skip_connection": True, "activation": "groupmax"}
    (two,) = load_dictionaries(save_sparsify(tmp_path / "h.5.mlp", config, W_skip=SKIP))
    agrees(two, activation="groupmax", k=4, b_in=None, skip=SKIP.T)
    assert (two.read, two.write) == (Place("mlp_in", 5), Place("mlp_out", 5))
    (three,) = load_dictionaries(save_sparsify(tmp_path / "layers.2.attention" / "seed1", {}))
    assert three.read == Place("attention_out", 2)
    for config, words in (({"signed": True}, "signed"), ({"activation": "jump"}, "activation is not read")):
        with pytest.raises(DictionaryError, match=words):
            load_dictionaries(save_sparsify(tmp_path / words / "layers.3", config))
    for config, words in (({"k": 0}, "k is no"), ({"num_latents": 13}, "another shape"), ({"transcode": 1}, "truth")):
        with pytest.raises(CheckpointError, match=words):
            load_dictionaries(save_sparsify(tmp_path / words / "layers.3", config))
    with pytest.raises(DictionaryError, match="place that is not known"):
        load_dictionaries(save_sparsify(tmp_path / "embed_tokens", {}))


GEMMA = {
    "gemma-scope-2b-pt-res": ("residual_out", "residual_out"),
    "models--google--gemma-scope-9b-it-mlp": ("mlp_out", "mlp_out"),
    "gemma-scope-9b-pt-att-canonical": ("attention_heads", "attention_heads"),
    "gemma-scope-2b-pt-transcoders": ("mlp_normed", "mlp_out"),
}


@pytest.mark.parametrize("repository", GEMMA)
def test_gemma_scopes_path_tells_its_place(tmp_path, repository):
    folder = save_gemma(tmp_path / repository / "layer_20" / "width_16k" / "average_l0_71")
    (dictionary,) = load_dictionaries(folder)
    assert (dictionary.read, dictionary.write) == tuple(Place(kind, 20) for kind in GEMMA[repository])
    agrees(dictionary, activation="jumprelu", threshold=THRESHOLD, b_in=None)
    assert dictionary.bos is True


def test_gemma_scopes_place_is_told_beside_it_or_refused(tmp_path):
    folder = save_gemma(tmp_path / "width_16k")
    with pytest.raises(DictionaryError, match="what it was trained on") as refusal:
        load_dictionaries(folder)
    assert "cfg.json beside params.npz" in refusal.value.fix
    (folder / "cfg.json").write_text('{"hook_name": "blocks.2.hook_resid_mid"}')
    assert load_dictionaries(folder)[0].read == Place("residual_mid", 2)
    (folder / "cfg.json").write_text('{"hook": "blocks.2.hook_resid_mid"}')
    with pytest.raises(CheckpointError, match="names no place"):
        load_dictionaries(folder)


def test_gemma_scope_2(tmp_path):
    tensors = {"w_enc": W_ENC, "b_enc": B_ENC, "w_dec": W_DEC, "b_dec": B_DEC, "threshold": THRESHOLD}
    config = {"architecture": "jump_relu", "hf_hook_point_in": "model.layers.4.pre_feedforward_layernorm.output",
              "hf_hook_point_out": "model.layers.4.post_feedforward_layernorm.output"}  # fmt: skip
    save_file(tensors | {"affine_skip_connection": SKIP}, tmp_path / "params.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (dictionary,) = load_dictionaries(tmp_path)
    assert (dictionary.read, dictionary.write) == (Place("mlp_in", 4), Place("mlp_out", 4))
    agrees(dictionary, activation="jumprelu", threshold=THRESHOLD, b_in=None, skip=SKIP)
    (tmp_path / "config.json").write_text(json.dumps(config | {"architecture": "topk"}))
    with pytest.raises(DictionaryError, match="no dictionary of Gemma Scope 2"):
        load_dictionaries(tmp_path)


OWN = {
    "relu": plain(),
    "topk": plain(activation=TopK(3), b_in=B_DEC, bos=True, scale=0.5),
    "groupmax": plain(activation=GroupMax(6), normalisation="layer_norm"),
    "jumprelu": plain(activation=JumpReLU(THRESHOLD), write=Place("mlp_out", 3), read=Place("mlp_in", 3), W_skip=SKIP),
    "gated": plain(activation=Gated(r_mag=THRESHOLD / 4, b_mag=B_ENC), centred=True, bos=False),
}


@pytest.mark.parametrize("name", OWN)
def test_our_own_form_is_what_was_written(tmp_path, name):
    wanted = OWN[name]
    save_dictionary(wanted, tmp_path / name)
    (dictionary,) = load_dictionaries(tmp_path / name)
    assert torch.equal(dictionary.encode(X), wanted.encode(X))
    assert torch.equal(dictionary.reconstruction(X), wanted.reconstruction(X))
    facts = ("read", "write", "normalisation", "scale", "centred", "bos", "width")
    assert {fact: getattr(dictionary, fact) for fact in facts} == {fact: getattr(wanted, fact) for fact in facts}
    assert (dictionary.name, dictionary.kind, len(dictionary.digest)) == (name, "plain", 64)


def test_our_own_form_in_half_precision(tmp_path):
    save_dictionary(plain(), tmp_path, torch.float16)
    torch.testing.assert_close(load_dictionaries(tmp_path)[0].W_enc, W_ENC, rtol=2**-10, atol=1e-6)


WRONG = {
    "format": "universal-neurons dictionary 9", "read": {"kind": "somewhere", "layer": 0}, "activation": "gelu",
    "scale": -1, "centred": 1, "bos": "yes", "normalisation": "none at all", "k": 13, "pickle": "x",
    "write": {"kind": "mlp_out", "layer": -1},
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_our_own_form_with_a_wrong_setting_is_refused(tmp_path, name):
    save_dictionary(plain(activation=TopK(3)), tmp_path)
    config = json.loads((tmp_path / "dictionary.json").read_text())
    (tmp_path / "dictionary.json").write_text(json.dumps(config | {name: WRONG[name]}))
    with pytest.raises(CheckpointError, match="not of this form") as refusal:
        load_dictionaries(tmp_path)
    assert name in refusal.value.given


def test_one_per_layer_by_number_and_several_are_refused(tmp_path):
    for layer in (10, 2, 0):
        save_dictionary(plain(read=Place("mlp_out", layer), write=Place("mlp_out", layer)), tmp_path / f"of/{layer}")
    dictionaries = load_dictionaries(tmp_path)
    assert [(each.read.layer, each.name) for each in dictionaries] == [(0, "of/0"), (2, "of/2"), (10, "of/10")]
    save_dictionary(plain(read=Place("neurons", 2), write=Place("neurons", 2)), tmp_path / "again")
    with pytest.raises(DictionaryError, match="several dictionaries of one layer") as refusal:
        load_dictionaries(tmp_path)
    assert "again" in refusal.value.given
    assert "of/2" in refusal.value.given


def test_what_holds_no_dictionary_says_what_it_holds(tmp_path):
    with pytest.raises(MissingFileError, match="no such folder"):
        load_dictionaries(tmp_path / "nowhere")
    with pytest.raises(DictionaryError, match="no dictionary") as refusal:
        load_dictionaries(tmp_path)
    assert refusal.value.given == "an empty folder"
    (tmp_path / "ae.pt").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="only pickled"):
        load_dictionaries(tmp_path)
    save_dictionary(plain(), tmp_path)
    save_gemma(tmp_path)
    with pytest.raises(DictionaryError, match="several formats"):
        load_dictionaries(tmp_path)


def refused_crosscoder(folder) -> str:
    """What the refusal of a crosscoder says was given."""
    with pytest.raises(DictionaryError, match="several places at once") as refusal:
        load_dictionaries(folder)
    assert type(refusal.value) is DictionaryError
    assert str(folder) in refusal.value.what
    assert "one place of one model" in refusal.value.wanted
    assert "single layers" in refusal.value.fix
    return refusal.value.given


def test_crosscoders_are_known_by_what_their_configurations_say(tmp_path):
    layers = {"n_targets": 3, "transcode": True}
    assert refused_crosscoder(save_sparsify(tmp_path / "h.5.mlp", layers)) == "n_targets: 3"
    two = torch.stack([W_DEC, W_DEC], 1)
    assert refused_crosscoder(save_sparsify(tmp_path / "layers.3", {}, W_dec=two)) == f"W_dec {[WIDTH, 2, D]}"
    gemma = tmp_path / "gemma-scope-2b-pt-res" / "layer_3"
    save_gemma(gemma, W_enc=torch.stack([W_ENC, W_ENC]))
    assert refused_crosscoder(gemma) == f"W_enc {[2, D, WIDTH]}"
    save_dictionary(plain(), tmp_path / "own")
    config = json.loads((tmp_path / "own" / "dictionary.json").read_text())
    config["read"] = [config["read"], {"kind": "residual_out", "layer": 4}]
    (tmp_path / "own" / "dictionary.json").write_text(json.dumps(config))
    assert refused_crosscoder(tmp_path / "own").startswith("read: ")
    second = tmp_path / "second"
    second.mkdir()
    places = {"architecture": "jump_relu", "hf_hook_point_in": ["model.layers.3.output", "model.layers.4.output"]}
    (second / "config.json").write_text(json.dumps(places))
    save_file({"w_enc": W_ENC}, second / "params.safetensors")
    assert refused_crosscoder(second).startswith("hf_hook_point_in: model.layers.3.output, ")


@pytest.mark.parametrize(
    ("config", "given"),
    [
        ({"trainer": {"dict_class": "BatchTopKCrossCoder"}}, "dict_class: BatchTopKCrossCoder"),
        ({"activation_dim": 8, "dict_size": 12, "num_layers": 2}, "num_layers: 2"),
        ({"model_kind": "cross_layer_transcoder"}, "model_kind: cross_layer_transcoder"),
    ],
)
def test_crosscoders_in_files_of_no_format_here(tmp_path, config, given):
    below = tmp_path / "run"
    below.mkdir()
    (below / "config.json").write_text(json.dumps(config))
    (below / "ae.pt").write_bytes(b"\x80\x04.")
    with pytest.raises(DictionaryError, match="several places at once") as refusal:
        load_dictionaries(tmp_path)
    assert refusal.value.given == given


def test_a_configuration_of_one_place_is_no_crosscoder(tmp_path):
    """A model's number of layers, the counts of one and lists of one are those of ordinary dictionaries."""
    ordinary = {"num_layers": 12, "n_targets": 0, "n_sources": 1, "n_models": 1, "hook_names": ["h.5"]}
    assert len(load_dictionaries(save_sparsify(tmp_path / "h.5", ordinary))) == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("no object")
    (tmp_path / "other" / "W_enc_0.safetensors").write_bytes(b"")
    with pytest.raises(DictionaryError, match="several places at once"):
        load_dictionaries(tmp_path / "other")


def broken_ways(folder):
    """Ways in which a folder of our own form comes to be broken, and a word of each error."""
    weights, config = folder / "dictionary.safetensors", folder / "dictionary.json"
    whole, text = weights.read_bytes(), config.read_text()
    nan = {"W_enc": W_ENC.clone().fill_(float("nan")), "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC}
    yield "truncated", lambda: weights.write_bytes(whole[:-5]), "cannot be read"
    yield "a header of another size", lambda: weights.write_bytes(b"\xff" * 8 + whole[8:]), "cannot be read"
    yield "empty", lambda: weights.write_bytes(b""), "cannot be read"
    yield "git-lfs", lambda: weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "git-lfs"
    yield "not finite", lambda: save_file(nan, weights), "no numbers"
    yield "numbers of another kind", lambda: save_file(nan | {"W_enc": W_ENC.int()}, weights), "no floating-point"
    yield "missing", lambda: save_file({"W_enc": W_ENC}, weights), "it has no W_dec"
    yield "of another shape", lambda: save_file(nan | {"W_enc": W_ENC, "W_dec": W_DEC[:5]}, weights), "another shape"
    yield "no JSON", lambda: config.write_text(text[:-9]), "unreadable"
    yield "no object", lambda: config.write_text("[1]"), "unreadable"
    yield "without settings", lambda: config.unlink(), "dictionary.json is missing"


@pytest.mark.parametrize("number", range(11))
def test_broken_files_are_named(tmp_path, number):
    save_dictionary(plain(), tmp_path)
    _, break_it, words = list(broken_ways(tmp_path))[number]
    break_it()
    with pytest.raises(CheckpointError) as refusal:
        load_dictionaries(tmp_path)
    assert words in str(refusal.value) or "unreadable weights" in str(refusal.value)
    assert str(tmp_path) in refusal.value.what


def array_file(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def test_archives_that_are_broken_or_dangerous_are_named(tmp_path):
    folder = save_gemma(tmp_path / "gemma-scope-2b-pt-res" / "layer_1")
    path = folder / "params.npz"
    whole = path.read_bytes()

    def packed(content: bytes, how=zipfile.ZIP_STORED) -> None:
        with zipfile.ZipFile(path, "w", how) as archive:
            archive.writestr("W_enc.npy", content)

    plain_array = array_file(W_ENC.numpy())
    header = plain_array[:128].replace(b"(8, 12)", b"(8,99999)".ljust(7)[:9])
    for break_it, words in (
        (lambda: path.write_bytes(whole[:-30]), "cannot be read"),
        (lambda: path.write_bytes(whole[:300] + b"\0" * 40 + whole[340:]), "cannot be read"),
        (lambda: path.write_bytes(b"PK"), "cannot be read"),
        (lambda: packed(array_file(np.array([{"a": 1}], dtype=object))), "not the array|cannot be read"),
        (lambda: packed(array_file(np.zeros((4000, 4000), dtype=np.float32)), zipfile.ZIP_DEFLATED), "unpacks to far more"),
        (lambda: packed(header + plain_array[128:]), "not the array|cannot be read"),
        (lambda: packed(array_file(np.array(["a"]))), "no numbers|cannot be read"),
        (lambda: save_gemma(folder, W_dec=W_DEC[:, :5]), "W_dec is of another shape"),
        (lambda: save_gemma(folder, b_enc=B_ENC * float("inf")), "b_enc holds what are no numbers"),
        (lambda: save_gemma(folder, more=B_ENC), "no place for"),
    ):  # fmt: skip
        break_it()
        with pytest.raises(CheckpointError, match=words):
            load_dictionaries(folder)


def test_links_out_of_the_folder_are_refused_and_those_of_the_hubs_cache_are_not(tmp_path):
    save_dictionary(plain(), tmp_path / "elsewhere")
    inside = tmp_path / "inside"
    save_dictionary(plain(), inside)
    (inside / "dictionary.safetensors").unlink()
    (inside / "dictionary.safetensors").symlink_to(tmp_path / "elsewhere" / "dictionary.safetensors")
    with pytest.raises(CheckpointError, match="a link out of its folder"):
        load_dictionaries(inside)
    (inside / "dictionary.safetensors").unlink()
    (inside / "dictionary.safetensors").symlink_to(inside / "nothing")
    with pytest.raises(CheckpointError, match="a link out of its folder"):
        load_dictionaries(inside)
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "one").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="a link out of the folder"):
        load_dictionaries(tmp_path / "many")
    snapshot, blobs = (tmp_path / "models--a--b" / part for part in ("snapshots/0", "blobs"))
    save_dictionary(plain(), snapshot)
    blobs.mkdir()
    (snapshot / "dictionary.safetensors").rename(blobs / "x")
    (snapshot / "dictionary.safetensors").symlink_to("../../blobs/x")
    assert len(load_dictionaries(snapshot)) == 1


def test_names_of_places():
    for name, place in {
        "blocks.0.hook_resid_pre": Place("residual_in", 0),
        "blocks.11.mlp.hook_in": Place("mlp_in", 11),
        "transformer.h.3": STREAM,
        "gpt_neox.layers.3.output": STREAM,
        "model.layers.2.self_attn.o_proj.input": Place("attention_heads", 2),
        "layers.2.mlp": Place("mlp_out", 2),
    }.items():
        assert place_of_hook(name, "it") == place
    assert place_of_module("layers.2", "it", "input") == Place("residual_in", 2)
    for name in ("ln_final.hook_normalized", "blocks.1.hook_q", "layers.x", "model.layers.2.input_layernorm.output"):
        with pytest.raises(DictionaryError, match="not known"):
            place_of_hook(name, "it")


def test_dictionaries_of_the_hubs_cache(tmp_path, monkeypatch):
    """A stand-in of the hub's cache: an id, a folder of it, a revision; weights are links into the cache, npz too."""
    asked = []

    def snapshot(repository, *, revision, allow_patterns, local_files_only):
        asked.append((repository, revision, allow_patterns, local_files_only))
        return snapshot_download(repository, revision=revision, cache_dir=tmp_path, local_files_only=True)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    repository = tmp_path / "models--org--gemma-scope-2b-pt-res"
    (repository / "refs").mkdir(parents=True)
    for revision, commit, layer in (("main", "a" * 40, 3), ("second", "b" * 40, 4)):
        (repository / "refs" / revision).write_text(commit)
        folder = repository / "snapshots" / commit / f"layer_{layer}" / "width_1"
        save_gemma(folder)
        (repository / "blobs").mkdir(exist_ok=True)
        arrays = (folder / "params.npz").rename(repository / "blobs" / commit)
        (folder / "params.npz").symlink_to(os.path.relpath(arrays, folder))
    whole = "org/gemma-scope-2b-pt-res"
    (one,) = load_dictionaries(features_at(whole))
    agrees(one, activation="jumprelu", threshold=THRESHOLD, b_in=None)
    assert (one.read, one.name) == (Place("residual_out", 3), "layer_3/width_1")
    (two,) = load_dictionaries(features_at(f"{whole}/layer_4@second", download=False))
    assert (two.read, two.name) == (Place("residual_out", 4), "width_1")
    (source,) = resolve_sources([f"bundled/seed-1::{whole}"])
    assert (source.name, source.features) == ("seed-1::gemma-scope-2b-pt-res", features_at(whole))
    every = ["*.json", "*.safetensors", "*.npz"]
    assert asked[:2] == [(whole, None, every, False), (whole, "second", [f"layer_4/{each}" for each in every], True)]
    names = [f"m::{whole}", f"m::{whole}/layer_4@second", "m::residual", "m"]
    assert names_of(names) == ["m::gemma-scope-2b-pt-res", "m::layer_4", "m::residual", "m"]
    for missing in (f"{whole}/layer_9", f"{whole}/../layer_3", f"{whole}@third", "org/other"):
        with pytest.raises(MissingFileError):
            features_at(missing)
    save_dictionary(plain(), repository / "snapshots" / ("a" * 40))
    assert load_dictionaries(features_at(whole))[0].name == "gemma-scope-2b-pt-res"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "gemma-scope-2b-pt-res").mkdir(parents=True)
    assert features_at(whole) == whole  # a folder that is here comes first
    with pytest.raises(MissingFileError, match="no revisions"):
        features_at(f"{whole}@second")
