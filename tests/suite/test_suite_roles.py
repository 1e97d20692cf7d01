"""The suite of roles: mixed activations, as many steps as fit a time, weights that travel in few files."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2] / "suite"))

import batched
import pack
import schedule
import speed
import tokens as token_files
import train as recipe_of
from corpus import recipe_at

SUITE = Path(__file__).parents[2] / "suite"
RELU2 = {"activation_function": "relu2"}
RECIPE = {
    "model": {
        "vocab_size": 50, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_inner": 20,
        "activation_function": "gelu_new", "resid_pdrop": 0.0,
    },
    "training": {
        "steps": 12, "measured": 0.1, "margin": 0.1, "rows": 3, "warmup": 5, "peak": 1e-2, "final": 0.1, "weight_decay": 0.1,
        "betas": [0.9, 0.95], "clip": 1.0, "dtype": "float32", "checkpoints": [0.25, 0.5], "checkpoint_seeds": ["a", "b"],
        "report_every": 4, "save_every": 4, "processes": 1,
    },
    "seeds": [
        {"name": "a", "weights": 1, "data": 1}, {"name": "b", "weights": 2, "data": 2},
        {"name": "c", "weights": 1, "data": 1, "model": RELU2},
    ],
}  # fmt: skip


def with_training(**given):
    return RECIPE | {"training": RECIPE["training"] | given}


@pytest.fixture(scope="module")
def tokens_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "tokens.npy"
    np.save(path, (np.cumsum(np.random.default_rng(0).integers(1, 3, 2000)) % 49 + 1).astype(np.uint16))
    return path


@pytest.fixture(scope="module")
def packed(tokens_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed")
    assert recipe_of.train(RECIPE, tokens_file, out, options=recipe_of.Options(results=out / "results"))
    return out


def weights_of(folder):
    return {str(path.parent.relative_to(folder)): load_file(path) for path in sorted(folder.rglob("model.safetensors"))}


def test_seeds_of_two_activations_in_a_batch_are_models_of_their_own():
    config = batched.model_config(RECIPE["model"])
    weights = {name: t + 0.1 * torch.randn_like(t) for name, t in batched.init(config, [1, 2, 3]).items()}
    names = ["relu2", "gelu_new", "gelu_new"]
    ids = torch.randint(0, 50, (3, 2, 17))
    found = batched.Forward.of(config, 3, activations=names)
    assert found.activations == (("relu2", 1), ("gelu_new", 2))
    with torch.no_grad():
        for seed, name in enumerate(names):
            model = batched.to_hugging_face(
                batched.model_config(RECIPE["model"] | {"activation_function": name}), weights, seed
            )
            logits = found.logits(weights, ids[:, :, :-1])[seed]
            torch.testing.assert_close(logits, model(ids[seed, :, :-1]).logits, rtol=1e-5, atol=1e-5)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[seed, :, 1:].flatten())
            torch.testing.assert_close(found.losses(weights, ids)[seed], loss, rtol=1e-5, atol=1e-5)


def test_a_seed_with_another_activation_is_trained_as_if_alone(tokens_file, tmp_path):
    assert [len(part["seeds"]) for part in recipe_of.parts(RECIPE)] == [3]
    recipe_of.train(RECIPE, tokens_file, tmp_path / "together")
    alone = RECIPE | {"model": RECIPE["model"] | RELU2, "seeds": [{"name": "c", "weights": 1, "data": 1}]}
    recipe_of.train(alone, tokens_file, tmp_path / "alone")
    one, other = (load_file(tmp_path / which / "models/c/model.safetensors") for which in ("together", "alone"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-5)
    models = {name: AutoModelForCausalLM.from_pretrained(tmp_path / "together/models" / name) for name in "ac"}
    assert [model.config.activation_function for model in models.values()] == ["gelu_new", "relu2"]


def test_seeds_with_a_weight_decay_of_their_own_are_trained_as_if_alone(tokens_file, tmp_path):
    """Each step is that of torch's own AdamW, which decays matrices alone."""
    seeds = [{"name": f"decay-{decay}", "weights": 1, "data": 1, "weight_decay": decay} for decay in (0.0, 0.5, 3.0)]
    training = recipe_of.Training(RECIPE | {"seeds": seeds}, np.load(tokens_file), tmp_path, "cpu")
    ids = training.rows.batch(0, 3)
    assert torch.equal(ids[0], ids[2])
    for place, seed in enumerate(seeds):
        model = batched.to_hugging_face(training.config, training.weights, place).train()
        matrices = [p for p in model.parameters() if p.dim() > 1]
        vectors = [p for p in model.parameters() if p.dim() == 1]
        groups = [{"params": matrices, "weight_decay": seed["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.95))
        for _ in range(3):
            logits = model(ids[place, :, :-1]).logits
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[place, :, 1:].flatten()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        seed["expected"] = {name.removeprefix("transformer."): p.detach() for name, p in model.named_parameters()}
    for _ in range(3):
        training.advance(ids, 0.02)
    for place, seed in enumerate(seeds):
        for name, expected in seed["expected"].items():
            torch.testing.assert_close(training.weights[name][place].detach(), expected, rtol=1e-3, atol=2e-4)
    apart = (training.weights["wte.weight"][0] - training.weights["wte.weight"][2]).abs().max()
    assert apart > 1e-3


def test_steps_are_settled_by_the_time_and_kept(tokens_file, tmp_path, capsys):
    fit = with_training(steps="fit")
    with pytest.raises(SystemExit, match="SECONDS"):
        recipe_of.train(fit, tokens_file, tmp_path / "none")
    assert recipe_of.train(fit, tokens_file, tmp_path / "one", 0.9)
    note = json.loads((tmp_path / "one/settled.json").read_text())
    assert note["steps"] == schedule.steps_that_fit(note["steps_per_second"], note["seconds_left"]) > 12
    trained = recipe_of.as_trained(fit, tmp_path / "one")
    assert trained["training"]["steps"] == note["steps"]
    assert recipe_of.train(trained, tokens_file, tmp_path / "plain")
    one, plain = weights_of(tmp_path / "one/models"), weights_of(tmp_path / "plain/models")
    last = json.loads((tmp_path / "one/models/a/trainer_state.json").read_text())["global_step"]
    if last == note["steps"]:  # not late
        assert all(torch.equal(one[seed][key], plain[seed][key]) for seed in one for key in one[seed])


def test_a_resumed_run_holds_the_settled_schedule(tokens_file, tmp_path, monkeypatch):
    fit = with_training(steps="fit", save_every=5)
    monkeypatch.setattr(recipe_of, "steps_that_fit", lambda rate, seconds: 17)
    assert recipe_of.train(fit, tokens_file, tmp_path / "whole", 60.0)
    report = recipe_of.Training._report

    def broken(self, losses, seconds):
        if self.step == 12:
            raise KeyboardInterrupt
        report(self, losses, seconds)

    monkeypatch.setattr(recipe_of.Training, "_report", broken)
    with pytest.raises(KeyboardInterrupt):
        recipe_of.train(fit, tokens_file, tmp_path / "stopped", 60.0)
    monkeypatch.setattr(recipe_of.Training, "_report", report)
    monkeypatch.setattr(recipe_of, "steps_that_fit", lambda rate, seconds: 99)
    assert recipe_of.train(fit, tokens_file, tmp_path / "stopped", 60.0)
    # the whole run took its state over at the same steps
    whole, stopped = weights_of(tmp_path / "whole/models"), weights_of(tmp_path / "stopped/models")
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[seed][key], stopped[seed][key]) for seed in whole for key in whole[seed])


def test_a_late_run_ends_with_the_weights_it_has(tokens_file, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe_of, "steps_that_fit", lambda rate, seconds: 10_000_000)
    recipe = with_training(steps="fit", checkpoints=[])
    assert recipe_of.train(recipe, tokens_file, tmp_path, 0.8, options=recipe_of.Options(results=tmp_path / "results"))
    told = json.loads((tmp_path / "results/results.json").read_text())
    assert told["late"]
    assert not told["finished"]
    assert 0 < told["step"] < 10_000_000
    assert told["tokens_per_seed"] == told["step"] * 3 * 16
    assert told["process_seconds"] > 0
    pack.unpack(tmp_path / "results", tmp_path)
    state = json.loads((tmp_path / "models/a/trainer_state.json").read_text())
    assert state == {"global_step": told["step"]}


def test_packed_weights_are_those_of_ordinary_folders_halved(packed, tokens_file, tmp_path):
    files = list((packed / "results").iterdir())
    assert {p.name for p in files} == {
        "results.json", "last-0.safetensors", "step-3-0.safetensors", "step-6-0.safetensors",
    }  # fmt: skip
    assert all(path.stat().st_size <= pack.MOST_BYTES for path in files)
    told = pack.unpack(packed / "results", tmp_path / "back")
    assert told["recipe"] == RECIPE
    assert told["finished"]
    assert told["losses"][-1][0] == told["step"] == 12
    recipe_of.train(RECIPE, tokens_file, tmp_path / "plain")
    plain, back = weights_of(tmp_path / "plain/models"), weights_of(tmp_path / "back/models")
    assert sorted(back) == sorted(plain) == ["a", "a/step-3", "a/step-6", "b", "b/step-3", "b/step-6", "c"]
    assert all(torch.equal(plain[seed][key].half().float(), back[seed][key]) for seed in plain for key in plain[seed])
    for folder in plain:
        for file in ("config.json", "trainer_state.json"):
            read = [json.loads((tmp_path / side / "models" / folder / file).read_text()) for side in ("plain", "back")]
            assert read[0] == read[1]


def test_more_files_than_come_back_are_refused_before_training(tmp_path):
    held = pack.Pack(tmp_path, ["a", "b", "c"], 6 * 2**20)
    held.check(3, ["a"])
    with pytest.raises(SystemExit, match="6 files"):
        held.check(2, ["a", "b", "c"])
    with pytest.raises(SystemExit, match="does not fit"):
        pack.Pack(tmp_path, ["a"], 16 * 2**20)


def test_the_recipe_fits_the_files_that_come_back(tmp_path):
    recipe = recipe_at(SUITE / "roles.yaml")
    shapes = batched.shapes(batched.model_config(recipe["model"])).values()
    names, given = [seed["name"] for seed in recipe["seeds"]], recipe["training"]
    seed = 2 * sum(int(np.prod(shape)) for shape in shapes)
    pack.Pack(tmp_path, names, seed).check(len(given["checkpoints"]), [])
    assert not given["checkpoints"]
    assert seed * len(names) < 58 * 2**20


def test_the_small_recipe_says_all_that_the_large_one_says():
    """What CI trains in small (below, and by `benchmarks/gpu.sh --dry`) is the recipe of the bundled models."""
    large, small = (recipe_at(SUITE / f"roles{of}.yaml") for of in ("", "-dry"))
    assert large["model"].keys() == small["model"].keys()
    assert large["training"].keys() <= small["training"].keys()
    activations = [
        {(r["model"] | s.get("model", {}))["activation_function"] for s in r["seeds"]} for r in (large, small)
    ]
    assert activations == [{"relu2", "gelu_new"}] * 2
    same = ("weight_decay", "final", "betas", "clip", "dtype", "processes")
    assert all(large["training"][name] == small["training"][name] for name in same)


def test_the_small_recipe_gives_the_same_weights_again_and_is_bundled_by_its_names(tokens_file, tmp_path):
    small = recipe_at(SUITE / "roles-dry.yaml")
    recipe = small | {"training": small["training"] | {"steps": 6, "save_every": 4}}
    for where in ("one", "again"):
        options = recipe_of.Options(results=tmp_path / where / "results")
        assert recipe_of.train(recipe, tokens_file, tmp_path / where, options=options)
    one, again = (list((tmp_path / where / "results").glob("last-*")) for where in ("one", "again"))
    digests = [[hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)] for files in (one, again)]
    assert digests[0] == digests[1]
    renamed = recipe | {"seeds": [seed | {"name": f"roles-{n}"} for n, seed in enumerate(reversed(recipe["seeds"]))]}
    pack.unpack(tmp_path / "one/results", tmp_path / "back", recipe=renamed)
    pack.unpack(tmp_path / "again/results", tmp_path / "own")
    own, back = weights_of(tmp_path / "own/models"), weights_of(tmp_path / "back/models")
    for number, seed in enumerate(reversed(recipe["seeds"])):
        held = back[f"roles-{number}"]
        assert all(torch.equal(held[key], own[seed["name"]][key]) for key in held)
    other = renamed | {"training": recipe["training"] | {"weight_decay": 0.5}}
    for wrong in (other, renamed | {"seeds": renamed["seeds"][1:]}):
        with pytest.raises(SystemExit, match="another recipe"):
            pack.unpack(tmp_path / "one/results", tmp_path / "back", recipe=wrong)


def test_a_compiler_that_fails_is_named_and_done_without(packed, tokens_file, tmp_path, monkeypatch):
    def none(function):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(batched, "compiled", none)
    recipe_of.train(RECIPE, tokens_file, tmp_path, options=recipe_of.Options(True, tmp_path / "results"))
    told = json.loads((tmp_path / "results/results.json").read_text())
    assert told["compilation"] == "failed: RuntimeError: no compiler here"
    one, other = (load_file(folder / "results/last-0.safetensors") for folder in (packed, tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_products_are_counted_as_torch_counts_them():
    config = batched.model_config(RECIPE["model"])
    weights = {name: t.requires_grad_() for name, t in batched.init(config, [1, 2]).items()}
    ids = torch.randint(0, 50, (2, 3, 17))
    backend = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, backend:
        batched.Forward.of(config, len(ids)).losses(weights, ids).sum().backward()
    assert counter.get_total_flops() == batched.product_flops(config, 16) * 2 * 3 * 16


def test_a_profile_says_where_time_goes_and_leaves_the_training_as_it_was(packed, tokens_file, tmp_path):
    options = recipe_of.Options(results=tmp_path / "results", profile=tmp_path / "profile.json")
    recipe_of.train(RECIPE, tokens_file, tmp_path, options=options)
    told = json.loads((tmp_path / "profile.json").read_text())
    assert sum(told["share_of_time"].values()) == pytest.approx(1)
    assert told["share_of_time"]["products"] > 0
    assert told["share_of_time"]["attention"] > 0
    a_seed = told["tokens_a_seed_in_300_s"]
    assert a_seed["100 TFLOP/s"] == pytest.approx(300 * 100e12 / 3 / told["product_flops_a_token"])
    one, other = (load_file(folder / "results/last-0.safetensors") for folder in (packed, tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT", "products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "products"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<>", "attention"),
        ("triton_per_fused_add_bmm_native_layer_norm_0", "rest"),
        ("aten::baddbmm", "products"),
    ],
)
def test_kernels_are_told_apart_by_their_names(kernel, kind):
    assert speed.kind_of(kernel) == kind


def test_checkpoints_are_log_spaced_or_shares():
    assert schedule.checkpoint_steps(10_000, 5) == [1, 10, 100, 1000]
    assert schedule.checkpoint_steps(1000, [0.25, 0.03125]) == [31, 250]
    assert schedule.checkpoint_steps(2, [0.001, 1.0]) == [1]


def test_token_ids_come_back_from_their_file(tmp_path):
    ids = np.random.default_rng(0).integers(0, 1024, 5000).astype(np.uint16)
    (tmp_path / "tokens.u16.xz").write_bytes(token_files.packed(ids))
    assert (token_files.read_tokens(tmp_path / "tokens.u16.xz") == ids).all()
    np.save(tmp_path / "tokens.npy", ids)
    assert (token_files.read_tokens(tmp_path / "tokens.npy") == ids).all()
