"""Whole studies of tiny models: tables against NumPy, the same bytes, resuming, options, failures."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import psutil
import pytest
import torch
from conftest import save_tiny, some_text, tiny_model, tiny_network
from test_correlation import captured, some_tokens

from universal_neurons import Model, Store, StudyConfig, run_study
from universal_neurons.errors import (
    ArchitectureError,
    ConfigError,
    ContextError,
    DiskFullError,
    MemoryNeededError,
    NonFiniteActivationsError,
    NothingToCompareError,
    StoreConflictError,
    TextError,
    TokenizerError,
    TokenRangeError,
)
from universal_neurons.report import write_report
from universal_neurons.storage import StoreWriter
from universal_neurons.study import memory


def plain_config(folders, text, out) -> StudyConfig:
    return StudyConfig(models=tuple(map(str, folders)), data=str(text), out=str(out), draws=4, stages=("universality",))


@pytest.fixture
def config(folders, text_file, tmp_path):
    return plain_config(folders, text_file, tmp_path / "run")


def quiet(config, **more) -> Store:
    return run_study(config, progress=False, **more)


def contents(store):
    names = [p for p in sorted(store.path.rglob("*")) if p.is_file() and p.name != "study.json"]
    manifest = {key: value for key, value in store.manifest.items() if key != "timings"}
    return {str(p.relative_to(store.path)): p.read_bytes() for p in names} | {"study.json": json.dumps(manifest)}


def test_the_tables_are_what_numpy_computes(config, folders):
    store = quiet(config.model_copy(update={"pairs": "all"}))
    models = [tiny_model("gpt2", seed, f"m{seed}") for seed in range(3)]
    from universal_neurons.features import Networks
    from universal_neurons.study import Study, decide
    from universal_neurons.study.resolve import resolve
    from universal_neurons.text import TokenDataset

    resolved = resolve(decide(config), models)
    tokens = TokenDataset.load(resolved, models[0].tokenizer, context=resolved.context)
    study = Study(resolved, models, Networks(models), tokens, None)
    chosen = np.sort(np.concatenate([shard.rows for shard in study.shards]))
    subset = TokenDataset(
        **{
            **vars(tokens),
            "rows": tokens.rows[chosen],
            "lengths": tokens.lengths[chosen],
            "subsets": tokens.subsets[chosen],
        }
    )
    held = np.concatenate(study.stretches)
    heldout = TokenDataset(
        **{**vars(tokens), "rows": tokens.rows[held], "lengths": tokens.lengths[held], "subsets": tokens.subsets[held]}
    )
    acts = {m.name: captured(m, subset) for m in models}
    held_acts = {m.name: captured(m, heldout) for m in models}
    assert store.manifest["counted_tokens"] == len(acts["m0"])
    for asker in acts:
        best = []
        for other in [name for name in acts if name != asker]:
            rho = np.corrcoef(acts[asker].T, acts[other].T)[:48, 48:]
            best.append(rho.max(1))
            rows = store.matches.filter((pl.col("asker") == asker) & (pl.col("match_model") == other))
            first = rows.filter(pl.col("rank") == 1)
            found = first["match_layer"].to_numpy() * 24 + first["match_neuron"].to_numpy()
            np.testing.assert_array_equal(found, rho.argmax(1))
            np.testing.assert_allclose(first["corr"], rho.max(1), atol=1e-6)
            lowest = rows.filter(pl.col("rank") == -1)
            np.testing.assert_allclose(lowest["corr"], rho.min(1), atol=1e-6)
            again = np.corrcoef(held_acts[asker].T, held_acts[other].T)[:48, 48:][np.arange(48), found]
            np.testing.assert_allclose(first["corr_heldout"], again, atol=2e-6)
            assert ((first["corr_low"] <= first["corr_heldout"]) & (first["corr_heldout"] <= first["corr_high"])).all()
            profile = store.layers.filter((pl.col("asker") == asker) & (pl.col("match_model") == other))
            assert profile["fraction"].sum() == pytest.approx(2)
        table = store.neurons.filter(pl.col("model") == asker)
        np.testing.assert_allclose(table["max_corr"], np.max(best, 0), atol=1e-6)
        np.testing.assert_allclose(table["mean_corr"], np.mean(best, 0), atol=1e-6)
        np.testing.assert_allclose(table["min_corr"], np.min(best, 0), atol=1e-6)
        np.testing.assert_allclose(table["excess_corr"], table["mean_corr"] - table["mean_baseline"], atol=1e-12)
        assert (table["is_universal"] == (table["excess_corr"] > 0.5)).all()
        assert (
            (table["excess_low"] <= table["excess_heldout"]) & (table["excess_heldout"] <= table["excess_high"])
        ).all()


def test_only_the_reference_is_asked_by_default(config):
    store = quiet(config)
    assert store.askers == ["m0"]
    others = store.neurons.filter(pl.col("model") != "m0")
    assert others["excess_corr"].is_null().all()
    assert len(others) == 96
    assert store.matches["asker"].unique().to_list() == ["m0"]
    assert store.matches.group_by("layer", "neuron", "match_model").len()["len"].unique().to_list() == [11]


def test_the_same_study_gives_the_same_bytes(config, tmp_path):
    stores = []
    for name in ("one", "two"):
        store = quiet(config.model_copy(update={"out": str(tmp_path / name)}))
        write_report(store)
        stores.append(store)
    one, two = map(contents, stores)
    one.pop("report.html"), two.pop("report.html")  # it names its folder
    assert one == two
    assert {"neurons.parquet", "figures/convergence.svg", "figures/convergence.png"} <= one.keys()


LONG = {"max_tokens": 60_000}


def long_config(config, long_text, out):
    return config.model_copy(update={"data": str(long_text), "out": str(out), **LONG})


@pytest.fixture(scope="module")
def whole(folders, long_text, tmp_path_factory) -> dict:
    """What a study of the long text that nothing stops leaves behind."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return contents(quiet(plain_config(folders, long_text, out).model_copy(update=LONG)))


@pytest.mark.parametrize("stop_after", [1, 3])
def test_an_interrupted_study_resumes_to_the_same_bytes(config, whole, long_text, tmp_path, monkeypatch, stop_after):
    save, saved = StoreWriter.save_snapshot, []

    def interrupted(self, tensors, shard):
        save(self, tensors, shard)
        saved.append(shard)
        if len(saved) == stop_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(StoreWriter, "save_snapshot", interrupted)
    parts = long_config(config, long_text, tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        quiet(parts, checkpoint_seconds=0.0)
    with pytest.raises(StoreConflictError, match="not finished"):
        Store(tmp_path / "parts")
    assert contents(quiet(parts, checkpoint_seconds=0.0)) == whole
    assert saved[0] == 1
    assert len(saved) == len(set(saved))
    assert not (tmp_path / "parts" / "work").exists()


def test_a_killed_process_resumes_to_the_same_bytes(config, whole, long_text, tmp_path):
    parts = long_config(config, long_text, tmp_path / "parts")
    code = (
        "import sys, json; from universal_neurons import StudyConfig, run_study\n"
        "run_study(StudyConfig(**json.loads(sys.argv[1])), checkpoint_seconds=0.0)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, parts.model_dump_json()], stderr=subprocess.DEVNULL)
    work = tmp_path / "parts" / "work"
    deadline = time.monotonic() + 400
    while not list(work.glob("checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not json.loads((tmp_path / "parts" / "study.json").read_text())["complete"]
    assert contents(quiet(parts, checkpoint_seconds=0.0)) == whole


def test_a_torn_checkpoint_is_passed_over(config, whole, long_text, tmp_path, monkeypatch):
    save = StoreWriter.save_snapshot

    def torn(self, tensors, shard):
        save(self, tensors, shard)
        if shard == 3:
            newest = sorted(self.work.glob("checkpoint-*"))[-1]
            part = newest / "0000.safetensors"
            part.write_bytes(part.read_bytes()[:-7])
            raise KeyboardInterrupt

    monkeypatch.setattr(StoreWriter, "save_snapshot", torn)
    parts = long_config(config, long_text, tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        quiet(parts, checkpoint_seconds=0.0)
    assert len(list((tmp_path / "parts" / "work").glob("checkpoint-*"))) == 2
    monkeypatch.setattr(StoreWriter, "save_snapshot", save)
    assert contents(quiet(parts, checkpoint_seconds=0.0)) == whole


def test_a_finished_study_is_not_run_again_and_another_is_refused(config):
    store = quiet(config)
    before = (store.path / "study.json").stat().st_mtime_ns
    assert quiet(config).manifest == store.manifest
    assert (store.path / "study.json").stat().st_mtime_ns == before
    with pytest.raises(StoreConflictError, match=r"config\.seed"):
        quiet(config.model_copy(update={"seed": 1}))
    with pytest.raises(StoreConflictError, match=r"models"):
        quiet(config.model_copy(update={"models": config.models[:2]}))
    assert contents(Store(store.path)) == contents(store)


def test_the_saved_configuration_replays_the_study(config, tmp_path):
    store = quiet(config)
    again = quiet(store.config.model_copy(update={"out": str(tmp_path / "again")}))
    assert contents(again) == contents(store)


def test_foreign_folders_and_second_writers_are_refused(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreConflictError, match="not a study"):
        quiet(config)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]
    busy = config.model_copy(update={"out": str(tmp_path / "busy")})
    with StoreWriter(tmp_path / "busy"), pytest.raises(StoreConflictError, match="another process"):
        quiet(busy)
    quiet(busy)


def test_bad_input_leaves_nothing_behind(config, tmp_path, folders):
    (tmp_path / "short.txt").write_text("short")
    alone = {"models": config.models[:1]}
    for error, changes in (
        (NothingToCompareError, alone),
        (ContextError, {"context": 65}),
        (ConfigError, {"device": "abacus"}),
        (Exception, {"data": str(tmp_path / "short.txt")}),
        (Exception, {"subset": ("nowhere",)}),
    ):
        with pytest.raises(error):
            quiet(config.model_copy(update=changes))
        assert not (tmp_path / "run").exists()


def test_models_that_do_not_share_the_tokenizer_are_studied_on_spans(config, tmp_path):
    other = save_tiny(tmp_path / "other", seed=5)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-1]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert quiet(config.model_copy(update={"models": (config.models[0], str(other))})).has("spans")
    with pytest.raises(TokenizerError, match=r"vocabulary or merges: merge \d+ is .*, not there"):
        quiet(config.model_copy(update={"tokenizer": str(other), "out": str(tmp_path / "another")}))
    config = config.model_copy(update={"out": str(tmp_path / "same")})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).unlink()
    assert not quiet(config.model_copy(update={"models": (config.models[0], str(other))})).has("spans")


def test_a_smaller_vocabulary_is_refused(config, tmp_path):
    small = save_tiny(tmp_path / "small", seed=5, vocab_size=100)
    with pytest.raises(TokenRangeError, match="small"):
        quiet(config.model_copy(update={"models": (config.models[0], str(small))}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_activations_stop_the_study(config, value):
    models = [tiny_model("gpt2", seed) for seed in (0, 1)]
    models[1].blocks[1].mlp.c_fc.register_forward_hook(  # not on the two rows of the check at the start
        lambda _m, _args, output: output.clone().fill_(value) if len(output) > 2 else output
    )
    with pytest.raises(NonFiniteActivationsError, match="model gpt2-1, layer 1, shard 0"):
        quiet(config, models=models, tokens=some_tokens(80))


def test_models_and_tokens_as_objects(config):
    models = [tiny_model("llama", seed) for seed in (0, 1)]
    for model in models:
        model.tokenizer = None
    store = quiet(config, models=models, tokens=some_tokens(80))
    assert store.models == ["llama-0", "llama-1"]
    with pytest.raises(ConfigError, match="same name"):
        quiet(config, models=[models[0], models[0]], tokens=some_tokens(80))


def test_a_full_disk_is_named_and_the_study_resumes(config, whole, long_text, tmp_path, monkeypatch):
    parts = long_config(config, long_text, tmp_path / "parts")
    real = os.fsync
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="same command again"):
        quiet(parts, checkpoint_seconds=0.0)
    assert not list((tmp_path / "parts").rglob(".*.partial"))
    monkeypatch.setattr(os, "fsync", real)
    assert contents(quiet(parts)) == whole


def test_too_little_memory_is_said_before_the_pass(config, monkeypatch):
    monkeypatch.setattr("universal_neurons.study.memory.available_memory", lambda config: 1 << 20)
    with pytest.raises(MemoryNeededError, match="GiB"):
        quiet(config)


def test_a_limit_of_the_address_space_counts_as_memory(config, monkeypatch):
    """`ulimit -v`: libraries that run into it end the process, so that is said before."""
    resource = pytest.importorskip("resource")
    used = psutil.Process().memory_info().vms
    assert memory.address_space() is None
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (used + (7 << 28), resource.RLIM_INFINITY))
    assert memory.address_space() == pytest.approx((7 << 28) - (3 << 29) - 2 * (72 << 20), abs=64 << 20)
    with pytest.raises(MemoryNeededError, match=r"free on cpu \(ulimit -v sets the limit\)"):
        quiet(config)


def test_subsets_are_studied_apart_and_add_up(config, tmp_path, svg_only):
    documents = [{"text": some_text(150, seed), "subset": ("prose", "code", "rest")[seed % 3]} for seed in range(60)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, documents)))
    apart = config.model_copy(update={"data": str(tmp_path / "c.jsonl"), "subset": ("prose", "code")})
    together = apart.model_copy(update={"subset": (), "out": str(tmp_path / "together")})
    store, plain = quiet(apart), quiet(together)
    assert store.subsets["subset"].unique().sort().to_list() == ["code", "prose"]
    np.testing.assert_allclose(store.neurons["mean_corr"][:48], plain.neurons["mean_corr"][:48], atol=1e-6)
    only = [d for d in documents if d["subset"] == "prose"]
    assert len(store.subsets) == 2 * 48
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, only)))
    alone = quiet(config.model_copy(update={"data": str(tmp_path / "p.jsonl"), "out": str(tmp_path / "alone")}))
    prose = store.subsets.filter(pl.col("subset") == "prose")
    assert np.corrcoef(prose["mean_corr"], alone.neurons["mean_corr"][:48])[0, 1] > 0.9
    every = quiet(apart.model_copy(update={"subset": ("all",), "out": str(tmp_path / "every")}))
    assert every.subsets["subset"].n_unique() == 3
    write_report(every)


@pytest.mark.parametrize("baseline", ["gaussian", "permutation"])
def test_other_baselines(config, baseline):
    store = quiet(config.model_copy(update={"baseline": baseline, "draws": None}))
    table = store.neurons.filter(pl.col("model") == "m0")
    assert table["q_value"].is_finite().all()
    assert (table["mean_baseline"] > 0).all()
    assert store.config.draws == (2 if baseline == "permutation" else 20)


def test_convergence_ends_at_the_whole_corpus(config, long_text, tmp_path):
    longer = long_config(config, long_text, tmp_path / "long").model_copy(update={"max_tokens": 120_000})
    store = quiet(longer)
    table = store.convergence
    assert table["tokens"].is_sorted()
    assert table["tokens"][-1] == store.manifest["counted_tokens"]
    assert table["same_match"][-1] == 1
    assert len(table) >= 4
    final = store.neurons.filter(pl.col("model") == "m0")["mean_corr"].median()
    assert table["corr_median"][-1] == pytest.approx(final, abs=1e-6)


def test_dead_neurons_are_counted_and_not_matched(config, svg_only):
    models = [tiny_model("gpt2", seed) for seed in (0, 1)]
    with torch.no_grad():
        models[0].blocks[0].mlp.c_fc.weight[:, 4] = 0
    store = quiet(config, models=models, tokens=some_tokens(80))
    dead = store.neurons.filter("dead")
    assert dead.select("model", "layer", "neuron").rows() == [("gpt2-0", 0, 4)]
    assert dead["excess_corr"].is_nan().all()
    assert not dead["is_universal"].any()
    assert not len(store.matches.filter((pl.col("layer") == 0) & (pl.col("neuron") == 4)))
    write_report(store)
    assert "1 dead" in repr(store)


def test_a_model_without_a_living_neuron_does_not_break_the_study(config, svg_only):
    models = [tiny_model("gpt2", seed) for seed in (0, 1)]
    with torch.no_grad():
        for block in models[1].blocks:
            block.mlp.c_fc.weight.zero_()
    store = quiet(config.model_copy(update={"pairs": "all"}), models=models, tokens=some_tokens(80))
    assert store.neurons["dead"].sum() == 48
    assert not store.neurons["is_universal"].any()
    assert len(store.matches) == 0
    write_report(store)
    assert "48 dead" in repr(store)


def test_a_subset_named_twice_counts_once(config, tmp_path):
    documents = [{"text": some_text(150, seed), "subset": "ab"[seed % 2]} for seed in range(40)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, documents)))
    plain = config.model_copy(update={"data": str(tmp_path / "c.jsonl")})
    whole = quiet(plain)
    twice = quiet(plain.model_copy(update={"subset": ("a", "a"), "out": str(tmp_path / "twice")}))
    assert twice.manifest["counted_tokens"] == whole.manifest["counted_tokens"]
    assert twice.subsets["subset"].unique().to_list() == ["a"]


def test_a_subset_is_what_numpy_computes_on_its_rows(config, tmp_path):
    from universal_neurons.features import Networks
    from universal_neurons.study import Study, decide
    from universal_neurons.study.resolve import resolve
    from universal_neurons.text import TokenDataset

    documents = [{"text": some_text(150, seed), "subset": "ab"[seed % 2]} for seed in range(60)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, documents)))
    config = config.model_copy(update={"data": str(tmp_path / "c.jsonl"), "subset": ("b",)})
    store = quiet(config)
    models = [tiny_model("gpt2", seed, f"m{seed}") for seed in range(3)]
    resolved = resolve(decide(config), models)
    tokens = TokenDataset.load(resolved, models[0].tokenizer, context=resolved.context)
    rows = np.concatenate(
        [s.rows for s in Study(resolved, models, Networks(models), tokens, None).shards if s.group == 0]
    )
    part = TokenDataset(
        **{**vars(tokens), "rows": tokens.rows[rows], "lengths": tokens.lengths[rows], "subsets": tokens.subsets[rows]}
    )
    assert {tokens.subset_names[n] for n in tokens.subsets[rows]} == {"b"}
    a, *others = (captured(model, part) for model in models)
    best = [np.corrcoef(a.T, b.T)[:48, 48:].max(1) for b in others]
    np.testing.assert_allclose(store.subsets["mean_corr"], np.mean(best, 0), atol=1e-6)


def test_the_tokenizer_that_is_named_must_be_the_models_own(config, tmp_path):
    other = save_tiny(tmp_path / "other", seed=5)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-1]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(TokenizerError, match="--tokenizer"):
        quiet(config.model_copy(update={"tokenizer": str(other)}))
    store = quiet(config.model_copy(update={"tokenizer": config.models[1]}))
    assert store.manifest["tokens"]["tokenizer"]


def test_a_study_killed_while_it_tokenises_can_be_resumed(config, tmp_path, monkeypatch):
    from universal_neurons.text import TokenDataset

    with monkeypatch.context() as patched:
        patched.setattr(TokenDataset, "load", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            quiet(config)
    (tmp_path / "run" / "work" / "rows.partial").write_bytes(b"half a row")
    quiet(config)


def test_too_little_memory_leaves_nothing_behind(config, tmp_path, monkeypatch):
    monkeypatch.setattr("universal_neurons.study.memory.available_memory", lambda config: 1 << 20)
    deep = config.model_copy(update={"out": str(tmp_path / "a" / "b" / "run")})
    with pytest.raises(MemoryNeededError):
        quiet(deep)
    assert not (tmp_path / "a").exists()


def test_a_disk_that_fills_while_rows_are_written(config, tmp_path, monkeypatch):
    from universal_neurons.text import TokenDataset

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(TokenDataset, "from_pieces", full)
        with pytest.raises(DiskFullError):
            quiet(config)
    quiet(config)


def scaled(seed) -> Model:
    """A model that its row of the table does not describe: a block scales what its MLP adds."""
    model = tiny_model("gpt2", seed)
    model.blocks[1].mlp.register_forward_hook(lambda _m, _args, output: output * 1.05)
    return model


def test_objects_are_checked_and_recorded(config, tmp_path, svg_only):
    tokens = some_tokens(80)
    with pytest.raises(ArchitectureError, match="residual stream"):
        quiet(config, models=[scaled(n) for n in (0, 1)], tokens=tokens)
    models = [tiny_model("gpt2", seed, f"org/m{seed}") for seed in (0, 1)]
    store = quiet(config, models=models, tokens=tokens)
    write_report(store)
    assert (store.config.context, store.config.dtype) == (40, "float32")
    assert store.config.data == "in-memory"
    with pytest.raises(ConfigError, match="in memory"):
        quiet(store.config.model_copy(update={"out": str(tmp_path / "again")}))
    for changes, error in (
        ({"models": [tiny_model("gpt2", n, n_positions=32) for n in (0, 1)]}, ContextError),
        ({"models": models, "tokens": some_tokens(4)}, TextError),
        ({"models": models, "tokens": some_tokens(80, masked=range(1024))}, TextError),
        ({"models": [models[0], Model(tiny_network("gpt2", 3).bfloat16(), "half")]}, ConfigError),
        ({"models": [models[0], tiny_model("gpt2", 3, "half a character \ud83d")]}, ConfigError),
    ):
        with pytest.raises(error):
            quiet(config.model_copy(update={"out": str(tmp_path / "bad")}), **{"tokens": tokens} | changes)
        assert not (tmp_path / "bad").exists()


def test_any_seed_will_do(config):
    assert quiet(config.model_copy(update={"seed": 2**70})).config.seed == 2**70


def test_activations_too_small_to_square_are_dead(config):
    models = [tiny_model("gpt2", seed) for seed in (0, 1)]
    with torch.no_grad():
        models[0].blocks[1].mlp.c_fc.weight[:, 5] *= 1e-30
        models[0].blocks[1].mlp.c_fc.bias[5] = 0
    store = quiet(config, models=models, tokens=some_tokens(80))
    assert store.neurons.filter("dead").select("layer", "neuron").rows() == [(1, 5)]


def test_a_mask_outside_the_vocabulary_is_refused(config):
    with pytest.raises(ConfigError, match="mask"):
        quiet(config.model_copy(update={"mask": (5000,)}))


def test_another_configuration_of_the_same_weights_is_another_study(config, tmp_path):
    changed = save_tiny(tmp_path / "changed", seed=9)
    both = config.model_copy(update={"models": (config.models[0], str(changed))})
    quiet(both)
    settings = json.loads((changed / "config.json").read_text()) | {"activation_function": "relu"}
    (changed / "config.json").write_text(json.dumps(settings))
    with pytest.raises(StoreConflictError, match=r"models"):
        quiet(both)
