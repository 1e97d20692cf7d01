"""The untrained null, counts over thresholds and cliques in whole studies: against ordinary studies of untrained networks
and NumPy, resumed to the same bytes, refused where they cannot be."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
from conftest import alike_models, exit_code, tiny_model
from crashes import watched
from scipy import stats
from test_correlation import some_tokens
from test_study import contents, quiet

from universal_neurons import StudyConfig, run_study
from universal_neurons.config_reading import make_config, make_dynamics_config, read_config
from universal_neurons.errors import ArchitectureError, ConfigError, MemoryNeededError
from universal_neurons.matching import thresholds_with
from universal_neurons.models import untrained_model
from universal_neurons.report import study_view, write_report
from universal_neurons.statistics import seed_of
from universal_neurons.study import make_sketch
from universal_neurons.study.memory import memory_plan
from universal_neurons.study.resolve import decide, resolve
from universal_neurons.study.run_passes import Passes
from universal_neurons.terminal import plain

NAMES = ("m0", "m1", "m2")


@pytest.fixture(scope="module")
def models():
    """One network, and two that are like it."""
    return alike_models(NAMES)


@pytest.fixture(scope="module")
def text():
    return some_tokens(120)


def settings(out, **more):
    return StudyConfig(
        **{"out": str(out), "draws": 3, "stages": ("universality",), "null": "untrained", "null_draws": 2} | more
    )


@pytest.fixture(scope="module")
def store(models, text, tmp_path_factory):
    """Every model asked about."""
    return quiet(settings(tmp_path_factory.mktemp("null") / "run", pairs="all"), models=models, tokens=text)


def null_of(store, asker):
    return store.table("null").filter(pl.col("asker") == asker)


def test_a_draw_is_the_study_of_the_untrained_networks(store, models, text, tmp_path):
    """An ordinary study of them finds the same excess; study.json says which they were."""
    told = store.manifest["null"]
    assert (told["kind"], told["draws"], len(told["networks"])) == ("untrained", 2, 6)
    for draw in range(2):
        networks = [untrained_model(m, seed_of("untrained", 0, draw, m.name)) for m in models]
        of_draw = [n for n in told["networks"] if n["draw"] == draw]
        assert [n["sha256"] for n in of_draw] == [n.digest for n in networks]
        alone = StudyConfig(out=str(tmp_path / str(draw)), draws=3, stages=("universality",), pairs="all")
        plainly = quiet(alone, models=networks, tokens=text)
        for network, name in zip(networks, NAMES):
            ours = null_of(store, name).filter(pl.col("draw") == draw)
            theirs = plainly.neurons.filter((pl.col("model") == network.name) & pl.col("excess_corr").is_finite())
            assert ours.select("layer", "neuron").equals(theirs.select("layer", "neuron"))
            np.testing.assert_array_equal(ours["excess_corr"], theirs["excess_corr"])


def test_p_and_false_discovery_rate_are_those_of_the_table(store):
    for asker in NAMES:
        null = null_of(store, asker)["excess_corr"].to_numpy()
        rows = store.neurons.filter(pl.col("model") == asker)
        p = np.array([(1 + (null >= excess).sum()) / (1 + len(null)) for excess in rows["excess_corr"]])
        np.testing.assert_array_equal(rows["p_untrained"], p)
        np.testing.assert_allclose(rows["fdr_untrained"], stats.false_discovery_control(p))


def test_thresholds_are_counted_from_the_neurons(store, models):
    table = store.table("thresholds")
    assert table["asker"].unique(maintain_order=True).to_list() == list(NAMES)
    for asker in NAMES:
        rows, neurons = table.filter(pl.col("asker") == asker), store.neurons.filter(pl.col("model") == asker)
        assert rows["threshold"].to_list() == thresholds_with(0.5)
        null = null_of(store, asker)
        for row in rows.iter_rows(named=True):
            t = row["threshold"]
            for name, column in (("universal", "excess_corr"), ("universal_heldout", "excess_heldout"),
                                 ("surely", "excess_low"), ("possibly", "excess_high")):  # fmt: skip
                assert row[name] == (neurons[column].to_numpy() > t).sum()
            assert row["untrained"] == pytest.approx((null["excess_corr"].to_numpy() > t).sum() / 2)
        assert rows.filter(pl.col("threshold") == 0.5)["universal"].item() == neurons["is_universal"].sum()


def test_a_study_without_the_null_has_its_counts_and_the_same_answers(store, models, text, tmp_path):
    bare = quiet(settings(tmp_path / "bare", pairs="all", null=None, null_draws=None), models=models, tokens=text)
    assert not bare.has("null")
    assert "null" not in bare.manifest
    assert bare.neurons["p_untrained"].is_null().all()
    beside = pl.selectors.contains("untrained")
    assert bare.neurons.drop(beside).equals(store.neurons.drop(beside))
    for name in ("untrained", "untrained_standardised"):
        assert bare.table("thresholds")[name].is_null().all()
        assert store.table("thresholds")[name].is_not_null().all()
        assert store.neurons[f"p_{name}"].is_finite().any()
    assert bare.table("thresholds").drop(beside).equals(store.table("thresholds").drop(beside))
    assert bare.table("cliques").equals(store.table("cliques"))


def test_of_untrained_networks_p_is_about_uniform(models, tmp_path):
    """They are as universal as others of their kind: no more small p than there should be, and hardly a discovery."""
    p, rates, few = [], [], some_tokens(40)
    for number in range(4):
        learned_nothing = [untrained_model(model, 1000 + 3 * number + n) for n, model in enumerate(models)]
        config = settings(tmp_path / str(number), null_draws=3, seed=number)
        asked = quiet(config, models=learned_nothing, tokens=few).neurons[:48]
        p += asked["p_untrained"].to_list()
        rates += asked["fdr_untrained"].to_list()
    assert len(p) == 192
    for level in (0.05, 0.1, 0.25, 0.5, 0.75):
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=0.1)
    assert np.mean(np.array(rates) <= 0.05) < 0.03


def test_what_was_trained_has_the_least_p_there_can_be(tmp_path, svg_only):
    """Two bundled models on few tokens: the most universal neurons exceed every untrained one."""
    config = StudyConfig(
        models=("bundled/seed-1", "bundled/seed-2"), max_tokens=12_000, out=str(tmp_path / "run"), draws=2,
        stages=("universality",), null="untrained", null_draws=1,
    )  # fmt: skip
    store = quiet(config)
    asked = store.neurons.filter(pl.col("model") == "seed-1").filter(pl.col("excess_corr").is_finite())
    universal = asked.filter("is_universal")
    assert len(universal) > 20
    assert universal["p_untrained"].unique().to_list() == [1 / (1 + len(store.table("null")))]
    assert (asked["fdr_untrained"] <= 0.05).sum() >= len(universal)
    assert store.table("null")["excess_corr"].max() < 0.5
    write_report(store)
    page = (store.path / "report.html").read_text()
    assert "beside untrained networks" in page
    assert (store.path / "figures/thresholds-seed-1.svg").exists()


@pytest.mark.parametrize(
    "more", [{"search": "screened"}, {"search": "sketch"}, {"baseline": "permutation", "draws": 2}, {"lanes": 2}]
)
def test_every_search_baseline_and_lanes_have_the_null(models, text, tmp_path, more):
    store = quiet(settings(tmp_path / "run", **more), models=models, tokens=text)
    assert len(store.table("null")) == 96
    assert store.neurons.filter(pl.col("model") == "m0")["p_untrained"].is_between(1 / 97, 1).all()
    assert store.neurons.filter(pl.col("model") != "m0")["p_untrained"].is_null().all()


def test_panels_change_the_null_within_rounding_and_cliques_not_at_all(store, models, text, tmp_path):
    cut = quiet(settings(tmp_path / "run", pairs="all", panels=3), models=models, tokens=text)
    np.testing.assert_allclose(cut.table("null")["excess_corr"], store.table("null")["excess_corr"], atol=1e-6)
    assert cut.table("clique_levels").equals(store.table("clique_levels"))
    ids = ["clique", "model", "layer", "neuron", "universal"]
    assert cut.table("cliques").select(ids).equals(store.table("cliques").select(ids))


def test_cliques_are_the_mutual_matches_of_the_matches_table(store):
    """Tuples that each pair's rows of rank 1 close, found by following the matches table."""
    best = {
        (r["asker"], r["layer"], r["neuron"], r["match_model"]): (r["match_layer"], r["match_neuron"], r["corr"])
        for r in store.matches.filter(pl.col("rank") == 1).iter_rows(named=True)
    }
    expected = set()
    assert 3 <= store.table("clique_levels")["cliques"][0] < 48
    for layer, neuron in {key[1:3] for key in best if key[0] == "m0"}:
        units = {"m0": (layer, neuron)} | {name: best["m0", layer, neuron, name][:2] for name in NAMES[1:]}
        if all(best[a, *units[a], b][:2] == units[b] for a in NAMES for b in NAMES if a != b):
            expected.add(tuple(units.values()))
    table = store.table("cliques")
    found = table.group_by("clique", maintain_order=True).agg("layer", "neuron", "model")
    assert {tuple(zip(r["layer"], r["neuron"])) for r in found.iter_rows(named=True)} == expected
    assert all(names == list(NAMES) for names in found["model"].to_list())
    universal = table.join(store.neurons, on=["model", "layer", "neuron"], how="left", maintain_order="left")
    assert universal["universal"].to_list() == universal["is_universal"].to_list()
    for row in table.filter(pl.col("model") == "m0").iter_rows(named=True):
        units = {
            r["model"]: (r["layer"], r["neuron"]) for r in table.filter(pl.col("clique") == row["clique"]).to_dicts()
        }
        sizes = [abs(best[a, *units[a], b][2]) for a, b in (("m0", "m1"), ("m0", "m2"), ("m1", "m2"))]
        assert (row["min_corr"], row["mean_corr"]) == pytest.approx((min(sizes), np.mean(sizes)))
    levels = store.table("clique_levels")
    firsts = table.filter(pl.col("model") == "m0")
    for row in levels.iter_rows(named=True):
        above = firsts.filter(pl.col("min_corr") >= row["level"])
        assert (row["cliques"], row["universal"]) == (len(above), above["universal"].sum())


def test_a_search_that_keeps_no_exact_moments_has_no_random_bases(models, text, tmp_path):
    sketched = quiet(
        settings(tmp_path / "run", pairs="all", search="sketch", null=None, null_draws=None), models=models, tokens=text
    )
    assert sketched.table("clique_levels")["rotated"].is_null().all()
    assert "in random bases" in plain(study_view(sketched), 100)


def test_the_terminal_and_the_page_say_the_counts(store, models):
    shown = plain(study_view(store), 120)
    assert "at thresholds 0.45 0.50 0.55" in shown
    largest = null_of(store, "m0")["excess_corr"].max()
    assert f"their largest excess is {largest:.3f} (2 draws)" in shown
    every = store.table("clique_levels").row(0, named=True)
    lines = [line.split("│") for line in shown.splitlines() if line.startswith("│")]
    told = {cells[1].strip(): cells[2].strip() for cells in lines if len(cells) > 2}
    assert told["mutual cliques"] == str(every["cliques"])
    assert told["in random bases"].split(",")[0] == str(every["rotated"])


def test_the_networks_are_new_with_every_seed_draw_and_model(store, models, text, tmp_path):
    other = quiet(settings(tmp_path / "run", seed=1), models=models, tokens=text)
    digests = [n["sha256"] for s in (store, other) for n in s.manifest["null"]["networks"]]
    assert len(set(digests)) == 12


def test_a_study_killed_at_any_operation_goes_on_to_the_same_bytes(models, tmp_path):
    """Some states of a study of all pairs in two panels, and of its null; nothing of that is left at the end."""
    config, few = settings(tmp_path / "run" / "a", pairs="all", panels=2, null_draws=1, draws=2), some_tokens(24)

    def study(folder):
        return run_study(config.model_copy(update={"out": str(folder)}), models=models, tokens=few, progress=False,
                         checkpoint_seconds=0.0)  # fmt: skip

    with watched(tmp_path / "run", tmp_path / "states") as watch:
        whole = contents(study(tmp_path / "run" / "a"))
    assert watch.unsafe == []
    assert not any("untrained" in name for name in whole)
    begun = [state for state in watch.states if list(state.glob("a/work/checkpoint-*"))]
    under_way = [state for state in begun if (state / "a" / "work" / "untrained-0").exists()]
    assert 20 < len(under_way) < len(begun) - 5
    for number, state in enumerate([*begun[:10:5], *under_way[:: max(1, len(under_way) // 4)]]):
        folder = shutil.copytree(state / "a", tmp_path / str(number))
        assert contents(study(folder)) == whole, number


def test_a_draw_that_is_done_is_not_made_again(models, text, tmp_path, monkeypatch):
    """Stopped in the second draw, the same study makes only that."""
    made, run = [], Passes.run

    def counted(self):
        made.append(self.writer.path.name)
        if len(made) == 3:
            raise KeyboardInterrupt
        run(self)

    monkeypatch.setattr(Passes, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        quiet(settings(tmp_path / "run"), models=models, tokens=text)
    quiet(settings(tmp_path / "run"), models=models, tokens=text)
    assert made == ["run", "untrained-0", "untrained-1", "run", "untrained-1"]


def test_settings_that_would_be_ignored_are_refused(tmp_path, folders):
    for given, words in (
        ({"null_draws": 5}, "null_draws without null"),
        ({"null": "untrained", "cluster": "auto"}, "not on a cluster"),
        ({"null": "trained"}, "null cannot be this"),
        ({"null": "untrained", "null_draws": 0}, "null_draws cannot be this"),
    ):
        with pytest.raises(ConfigError, match=words):
            make_config(given)
    with pytest.raises(ConfigError, match="null is for universality"):
        decide(StudyConfig(null="untrained", stages=("weights",)))
    for given in ({"null": "untrained"}, {"null": "untrained", "null_draws": 5}):
        with pytest.raises(ConfigError, match="null is not a setting of dynamics"):
            make_dynamics_config(given)
    assert decide(StudyConfig(null="untrained")).null_draws == 5
    assert decide(StudyConfig()).null_draws is None


def test_yaml_reads_the_key_null_as_it_stands(tmp_path):
    for text in (
        "null: untrained\nnull_draws: 3\n",
        '"null": untrained\nnull_draws: 3\n',
        '{"null": "untrained", "null_draws": 3}',
    ):
        path = tmp_path / "study.yaml"
        path.write_text(text)
        config = make_config(read_config(path)[0])
        assert (config.null, config.null_draws) == ("untrained", 3)
    path.write_text('null: untrained\n"null": untrained\n')
    with pytest.raises(ConfigError, match="not a mapping of names"):
        read_config(path)


def test_a_stored_study_replays_its_null(store):
    config = make_config(read_config(store.path / "study.json")[0])
    assert (config.null, config.null_draws) == ("untrained", 2)


def test_sketches_have_no_untrained_networks(folders, text_file, tmp_path):
    sketches = []
    for number, folder in enumerate(folders[:2]):
        path = tmp_path / f"{number}.safetensors"
        make_sketch(StudyConfig(models=(str(folder),), data=str(text_file), search="sketch", out=str(path)))
        sketches.append(str(path))
    with pytest.raises(ConfigError, match="--null untrained needs models"):
        quiet(StudyConfig(models=tuple(sketches), null="untrained", out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_built_anew_is_refused_before_anything_is_read(models, text, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.PreTrainedModel", dict)
    with pytest.raises(ArchitectureError, match="no untrained network"):
        quiet(settings(tmp_path / "run"), models=models, tokens=text)
    assert not (tmp_path / "run").exists()


def test_the_plan_counts_the_networks(models, text, monkeypatch, tmp_path):
    config = decide(settings(tmp_path / "run"), 3).model_copy(update={"context": text.context})
    with_null = resolve(config, models)
    without = resolve(config.model_copy(update={"null": None, "null_draws": None}), models)
    weights = sum(p.numel() * 4 for m in models for p in m.hf.parameters())
    assert sum(m.n_bytes for m in models) >= weights
    plan, bare = memory_plan(with_null, models), memory_plan(without, models)
    assert plan.null >= weights + bare.statistics
    assert plan.total == max(bare.total, plan.null)
    room = (bare.total + plan.null) // 2
    monkeypatch.setattr("universal_neurons.study.memory.PAGES_BYTES", 0)
    monkeypatch.setattr("universal_neurons.study.memory.available_memory", lambda config: room)
    if plan.null > bare.total:
        with pytest.raises(MemoryNeededError):
            quiet(settings(tmp_path / "run"), models=models, tokens=text)


def test_the_estimate_knows_the_nulls_passes(tmp_path, folders, text_file, capsys):
    common = ["estimate", "--stages", "universality", "--data", text_file, "--json"]
    common += [a for folder in folders[:2] for a in ("--models", folder)]
    needs = []
    for more in ([], ["--null", "untrained", "--null-draws", "20"]):
        assert exit_code(*common, *more) == 0
        needs.append(json.loads(capsys.readouterr().out))
    assert needs[0]["seconds_null"] == 0
    assert needs[1]["seconds"] > needs[1]["seconds_null"] > 4 * needs[1]["seconds_pass"]
    assert needs[1]["disk_peak"] > needs[0]["disk_peak"]


def test_a_dead_neuron_has_no_p_and_adds_nothing_to_the_null(text, tmp_path):
    models = [tiny_model("gpt2", seed, f"d{seed}") for seed in (0, 1)]
    models[0].part(0, "w_in").weight.data[:, 3] = 0
    models[0].digest = "0" * 64
    store = quiet(settings(tmp_path / "run", null_draws=1), models=models, tokens=text)
    rows = store.neurons.filter(pl.col("model") == "d0")
    assert np.isnan(rows["p_untrained"][3])
    assert np.isnan(rows["fdr_untrained"][3])
    assert np.isfinite(rows["fdr_untrained"].to_numpy()).sum() == 47
    assert len(store.table("null")) == 48
