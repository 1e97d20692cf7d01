"""Training dynamics: planted truth (neurons copied between seeds from some step on), NumPy and sets, the command."""

import json
import shutil
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch
from conftest import exit_code, require_light, small_tokenizer, some_text, tiny_network
from described import require_described

import universal_neurons as un
from universal_neurons.cli.studies import DynamicsFlags
from universal_neurons.config import NOT_OF_DYNAMICS, DynamicsConfig
from universal_neurons.config_reading import make_dynamics_config
from universal_neurons.dynamics import run as dynamics
from universal_neurons.dynamics import self_correlation
from universal_neurons.dynamics.emergence import History, Kept, emergence, first_universal, persistence
from universal_neurons.dynamics.training_runs import find_training, step_of
from universal_neurons.errors import (
    CheckpointError,
    ConfigError,
    MissingFileError,
    NothingToCompareError,
    StepError,
    StoreConflictError,
    TextError,
    TokenizerError,
)
from universal_neurons.matching import PairedMoments
from universal_neurons.models import locations as checkpoints
from universal_neurons.models import quiet_transformers
from universal_neurons.report import course_view, write_dynamics_report
from universal_neurons.report.dynamics_summary import sentences
from universal_neurons.report.figures import StepAxis
from universal_neurons.statistics import Key

WIDTH, LAYERS, MLP = 64, 2, 16
FOLDERS = ("step-10", "step-20", "step-40", "")  # the last is the model in the seed's own folder
NAMES = ["10", "20", "40", "final"]
# Neurons of the reference, at which checkpoints the others have a copy of them, and so what must be found.
PLANTED = {(0, 3): (1, 2, 3), (0, 5): (0, 2, 3), (1, 2): (1,), (1, 7): (3,), (1, 9): (0, 1, 2, 3)}
STEADY = ((0, 1), (0, 8))  # neurons of the reference that do not change from checkpoint 2 to the last


def copy_of(seed: int, checkpoint: int, neuron: int) -> int:
    """Where another seed has its copy: in seed 1 it moves after the second checkpoint."""
    return (neuron + seed + (5 if seed == 1 and checkpoint >= 2 else 0)) % MLP


def network(seed: int, checkpoint: int):
    """A model whose neurons read the tokens alone, by directions of the seed and checkpoint."""
    made = tiny_network("gpt2", 0, n_embd=WIDTH, n_inner=MLP)
    chance = torch.Generator().manual_seed(100 * seed + checkpoint)
    with torch.no_grad():
        made.transformer.wpe.weight.zero_()
        for block in made.transformer.h:
            block.mlp.c_fc.weight.copy_(torch.randn(block.mlp.c_fc.weight.shape, generator=chance) * 0.3)
            block.mlp.c_fc.bias.copy_(torch.randn(MLP, generator=chance) * 0.3)
            block.mlp.c_proj.weight.zero_()
    return made


def give(neuron, to, source):
    """Copy a neuron's input weights and bias."""
    (layer, mine), (there, theirs) = neuron, to
    here = source.transformer.h[layer].mlp.c_fc
    target = there.transformer.h[layer].mlp.c_fc
    with torch.no_grad():
        target.weight[:, theirs] = here.weight[:, mine]
        target.bias[theirs] = here.bias[mine]


@pytest.fixture(scope="module")
def networks():
    """Three seeds at four checkpoints."""
    made = {(seed, t): network(seed, t) for seed in range(3) for t in range(4)}
    for layer, neuron in STEADY:
        give((layer, neuron), (made[0, 2], neuron), made[0, 3])
    for (layer, neuron), at in PLANTED.items():
        for t in at:
            for seed in (1, 2):
                give((layer, neuron), (made[seed, t], copy_of(seed, t, neuron)), made[0, t])
    return made


def save(made, folder):
    with quiet_transformers():
        made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def seeds(networks, tmp_path_factory):
    """The seeds' folders: only the first has a tokenizer, and only the second a checkpoint at 30."""
    root = tmp_path_factory.mktemp("seeds")
    for (seed, t), made in networks.items():
        save(made, root / f"seed-{'abc'[seed]}" / FOLDERS[t])
    small_tokenizer().save_pretrained(root / "seed-a")
    shutil.copytree(root / "seed-b" / "step-20", root / "seed-b" / "step-30")
    return [str(root / f"seed-{letter}") for letter in "abc"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    chooser = np.random.default_rng(0)
    rows = [{"tokens": chooser.integers(1, 1024, 63).tolist()} for _ in range(80)]
    path = tmp_path_factory.mktemp("text") / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def config(seeds, corpus, out, **more) -> DynamicsConfig:
    settings = {"draws": 4, "threshold": 0.3, "heldout_tokens": 256, "batch_tokens": 8192} | more
    return un.DynamicsConfig(models=tuple(map(str, seeds)), data=str(corpus), out=str(out), **settings)


@pytest.fixture(scope="module")
def found(seeds, corpus, tmp_path_factory):
    """Finished dynamics of the planted seeds."""
    out = tmp_path_factory.mktemp("runs") / "found"
    return un.run_dynamics(config(seeds, corpus, out, labels=("position", "subsets")), progress=False)


def universal_sets():
    return [{neuron for neuron, at in PLANTED.items() if t in at} for t in range(4)]


def test_the_universal_set_of_every_checkpoint(found):
    assert found.seeds == ["seed-a", "seed-b", "seed-c"]
    assert found.names == NAMES
    assert found.steps == [10, 20, 40, None]
    for name, planted in zip(NAMES, universal_sets()):
        mine = found.neurons.filter((pl.col("model") == "seed-a") & (pl.col("checkpoint") == name))
        assert set(mine.filter("is_universal").select("layer", "neuron").rows()) == planted
        own = found.study(name).neurons.head(LAYERS * MLP)
        for column in ("excess_corr", "excess_low", "excess_high", "dead"):
            assert mine[column].equals(own[column], null_equal=True)
    table = found.checkpoints
    sets = universal_sets()
    assert table["universal"].to_list() == [len(s) for s in sets]
    np.testing.assert_allclose(table["fraction"], np.array([len(s) for s in sets]) / 32)
    assert table["joined"].to_list() == [None] + [len(now - before) for before, now in pairwise(sets)]
    assert table["left"].to_list() == [None] + [len(before - now) for before, now in pairwise(sets)]
    assert table["persistence"].to_list() == [None, 1 / 2, 2 / 3, 1.0]
    assert table["step"].to_list() == [10, 20, 40, None]
    for row, name in zip(table.iter_rows(named=True), NAMES):
        own = found.study(name).neurons.head(32)
        excess = own["excess_corr"].to_numpy()
        for column, share in (("median", 50), ("p90", 90), ("p99", 99), ("max", 100)):
            assert row[f"excess_{column}"] == pytest.approx(np.percentile(excess, share))
        assert row["universal_surely"] == (own["excess_low"].to_numpy() > 0.3).sum()
        assert row["universal_possibly"] == (own["excess_high"].to_numpy() > 0.3).sum()
        assert row["universal_heldout"] == (own["excess_heldout"].to_numpy() > 0.3).sum()
        assert row["neurons"] == 32
        assert row["dead"] == 0


def test_emergence_is_as_planted(found):
    table = {(r["layer"], r["neuron"]): r for r in found.emergence.iter_rows(named=True)}
    assert len(table) == 32
    first = {(0, 3): "20", (0, 5): "10", (1, 2): "20", (1, 7): "final", (1, 9): "10"}
    stays = {(0, 3): "20", (0, 5): "40", (1, 7): "final", (1, 9): "10"}
    for neuron, row in table.items():
        assert row["first"] == first.get(neuron)
        assert row["emergence"] == stays.get(neuron)
        assert row["first_step"] == (int(first[neuron]) if first.get(neuron, "final") != "final" else None)
        assert row["emergence_step"] == (int(stays[neuron]) if stays.get(neuron, "final") != "final" else None)
        assert row["checkpoints"] == len(PLANTED.get(neuron, ()))
        assert row["left"] == {(0, 5): 1, (1, 2): 1}.get(neuron, 0)
    told = sentences(found)["dynamics-emergence"]
    assert told.startswith(
        "4 neurons are universal at the end: 1 since 10, 1 since 20, 1 since 40, 1 since final; 1 more"
    )


def partners_by_hand(found):
    """Every best match, by checkpoint: (layer, neuron, number of the other seed) to its place."""
    told = []
    for name in NAMES:
        study = found.study(name)
        numbers = {model: number for number, model in enumerate(study.models)}
        best = study.matches.filter(pl.col("rank") == 1)
        told.append(
            {
                (r["layer"], r["neuron"], numbers[r["match_model"]]): (r["match_layer"], r["match_neuron"])
                for r in best.iter_rows(named=True)
            }
        )
    return told


def test_partners_are_the_planted_copies_and_change_when_they_move(found):
    told = partners_by_hand(found)
    for (layer, neuron), at in PLANTED.items():
        for t in at:
            for seed in (1, 2):
                assert told[t][layer, neuron, seed] == (layer, copy_of(seed, t, neuron))
    rows = {
        (r["checkpoint"], r["layer"], r["neuron"]): (r["same_match"], r["final_match"])
        for r in found.neurons.filter(pl.col("model") == "seed-a").iter_rows(named=True)
    }
    assert [rows[name, 1, 9] for name in NAMES] == [(None, 1), (2, 1), (1, 2), (2, 2)]
    for t, name in enumerate(NAMES):
        for layer in range(LAYERS):
            for neuron in range(MLP):
                keys = [(layer, neuron, seed) for seed in (1, 2)]
                same = None if t == 0 else sum(told[t][k] == told[t - 1][k] for k in keys)
                assert rows[name, layer, neuron] == (same, sum(told[t][k] == told[3][k] for k in keys))
    table = found.checkpoints
    for t, (row, now) in enumerate(zip(table.iter_rows(named=True), universal_sets())):
        assert row["final_match"] == pytest.approx(np.mean([told[t][k] == told[3][k] for k in told[t]]))
        of = [told[t][k] == told[3][k] for k in told[t] if k[:2] in now]
        assert row["final_match_universal"] == pytest.approx(np.mean(of))
        if t:
            before = universal_sets()[t - 1]
            assert row["same_match"] == pytest.approx(np.mean([told[t][k] == told[t - 1][k] for k in told[t]]))
            of = [told[t][k] == told[t - 1][k] for k in told[t] if k[:2] in before]
            assert row["same_match_universal"] == pytest.approx(np.mean(of))
    assert table["same_match"][0] is None


def test_correlations_with_the_final_self_against_numpy(found, networks):
    """Activations of the held-out rows by plain hooks, in float64; at the end every neuron is itself."""
    study = found.study("final")
    tokens = un.TokenDataset.load(study.config, small_tokenizer(), context=study.config.context)
    rows = np.concatenate(tokens.split(256)[1])
    keep = tokens.mask(rows).ravel()

    def activations(made):
        layers = []
        handles = [
            block.mlp.c_proj.register_forward_pre_hook(lambda _m, args: layers.append(args[0].double()))
            for block in made.transformer.h
        ]
        with torch.inference_mode():
            made(torch.from_numpy(tokens.ids(rows)))
        for handle in handles:
            handle.remove()
        return torch.cat(layers, -1).flatten(0, 1).numpy()[keep]

    for seed, name in enumerate(found.seeds):
        final = activations(networks[seed, 3])
        for t, checkpoint in enumerate(NAMES):
            mine = found.neurons.filter((pl.col("model") == name) & (pl.col("checkpoint") == checkpoint))
            here = activations(networks[seed, t])
            expected = [np.corrcoef(here[:, n], final[:, n])[0, 1] for n in range(LAYERS * MLP)]
            np.testing.assert_allclose(mine["self_corr"], expected, atol=2e-6)
            assert (mine["self_corr_low"] <= mine["self_corr"] + 1e-9).all()
            assert (mine["self_corr"] <= mine["self_corr_high"] + 1e-9).all()
    steady = found.neurons.filter((pl.col("model") == "seed-a") & (pl.col("checkpoint") == "40"))
    ones = steady.filter(pl.col("self_corr") > 1 - 1e-6).select("layer", "neuron").rows()
    assert ones == list(STEADY)


def test_families_are_counts_of_the_studies(found):
    before = {}
    for name in NAMES:
        study = found.study(name)
        for seed, model in zip(found.seeds, study.models):
            mine = study.neurons.filter(pl.col("model") == model).to_dicts()
            rows = found.families.filter((pl.col("checkpoint") == name) & (pl.col("model") == seed))
            assert rows["neurons"].sum() == 32
            for row in rows.iter_rows(named=True):
                of = [n for n in range(32) if mine[n]["family"] == row["family"]]
                assert row["neurons"] == len(of)
                universal = None if seed != "seed-a" else sum(bool(mine[n]["is_universal"]) for n in of)
                assert row["universal"] == universal
                known = before.get(seed)
                same = None if known is None else sum(known[n] == row["family"] for n in of)
                assert row["same_family"] == same
            before[seed] = [row["family"] for row in mine]


@pytest.mark.parametrize("seed", range(5))
def test_sets_by_hand(seed):
    """Persistence, emergence and kept partners against plain sets and loops."""
    chance = np.random.default_rng(seed)
    universal = chance.random((6, 30)) < 0.4
    universal[seed % 3] = False
    sets = [{n for n in range(30) if row[n]} for row in universal]
    expected = [len(a & b) / len(a) if a else np.nan for a, b in pairwise(sets)]
    np.testing.assert_allclose(persistence(universal), expected)
    for n in range(30):
        at = [t for t in range(6) if n in sets[t]]
        assert first_universal(universal)[n] == (at[0] if at else -1)
        stays = 6
        while stays and n in sets[stays - 1]:
            stays -= 1
        assert emergence(universal)[n] == (stays if stays < 6 else -1)
    partners = chance.integers(-1, 3, (6, 2, 30))
    told = History(universal, partners)
    kept = Kept.of(told.partners[1], told.partners[2])
    pairs = [(a, b) for a, b in zip(partners[1].ravel(), partners[2].ravel()) if a >= 0 and b >= 0]
    assert kept.share() == pytest.approx(np.mean([a == b for a, b in pairs]))
    assert np.isnan(kept.share(np.zeros(30, bool)))


def test_every_column_is_described(found):
    for name in ("checkpoints", "neurons", "emergence", "families"):
        assert found.manifest["tables"][name]
        require_described(found.table(name), name, "dynamics")


def test_pages_and_views(found, capsys):
    page = write_dynamics_report(found).read_text()
    for words in (
        "Emergence",
        "Persistence",
        "Partners",
        "Families",
        "final self",
        "50% at 20, 67% at 40, 100% at final",
    ):
        assert words in page
    assert page.count("data:image/svg+xml;base64,") == 6
    drawn = {path.name for path in (found.path / "figures").iterdir()}
    assert {f"dynamics-{n}.{k}" for n in ("universal", "emergence", "persistence", "partners", "families", "self")
            for k in ("svg", "png")} == drawn  # fmt: skip
    assert exit_code("show", found.path) == 0
    assert "seed-a in training" in capsys.readouterr().out
    assert exit_code("show", found.path, "L1.9") == 0
    shown = capsys.readouterr().out
    assert "1 of 2" in shown
    assert "universal" in shown
    assert exit_code("show", found.path, "seed-b/L1.9") == 0
    for wrong in ("L9.1", "seed-z/L0.0", "nine"):
        assert exit_code("show", found.path, wrong) == 2
    assert exit_code("show", found.path / "steps" / "20") == 0
    assert course_view(found, "L0.0")
    assert repr(found).count("%") > 5
    code = f"import universal_neurons as un\nprint(un.Dynamics({str(found.path)!r}))\n"
    assert "seed-a in training" in require_light(("show", found.path), ("show", found.path, "L1.9"), code=code)


def test_the_step_axis():
    axis = StepAxis.of(["0", "1", "100", "1000", "final"], [0, 1, 100, 1000, None])
    np.testing.assert_allclose(axis.x, [-0.3, 0, 2, 3, 3.3])
    np.testing.assert_allclose(StepAxis.of(["0", "final"], [0, None]).x, [-0.5, 0.5])


def contents(path):
    files = {p.relative_to(path): p.read_bytes() for p in path.rglob("*.parquet")}
    manifest = json.loads((path / "dynamics.json").read_text())
    return files, manifest


def test_interrupted_it_goes_on_where_it_was(seeds, corpus, tmp_path, monkeypatch):
    settings = {"stages": ("universality",), "max_tokens": 1600, "revisions": FOLDERS[:3]}
    few = config(seeds[:2], corpus, tmp_path / "whole", **settings)
    whole = un.run_dynamics(few, progress=False)
    assert whole.names == ["10", "20", "40"]
    assert not whole.has("families")
    asked = few.model_copy(update={"out": str(tmp_path / "parts")})
    real, begun = dynamics.run_study, []

    def interrupted(study, **more):
        begun.append(study.out)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return real(study, **more)

    with monkeypatch.context() as patched:
        patched.setattr(dynamics, "run_study", interrupted)
        with pytest.raises(KeyboardInterrupt):
            un.run_dynamics(asked, progress=False)
    with pytest.raises(StoreConflictError, match="not finished"):
        un.Dynamics(tmp_path / "parts")
    finished = tmp_path / "parts" / "steps" / "10" / "neurons.parquet"
    written = finished.stat().st_mtime_ns
    correlate, correlated = self_correlation.correlation_of, []

    def one_more(*given):
        correlated.append(given[0].name)
        if len(correlated) == 3:
            raise KeyboardInterrupt
        return correlate(*given)

    monkeypatch.setattr(self_correlation, "correlation_of", one_more)
    with pytest.raises(KeyboardInterrupt):
        un.run_dynamics(asked, progress=False)
    parts = un.run_dynamics(asked, progress=False)
    assert len(correlated) == 2 * 2 + 1  # the third was begun twice
    assert finished.stat().st_mtime_ns == written
    assert contents(parts.path)[0] == contents(whole.path)[0]
    assert parts.manifest["tables"] == whole.manifest["tables"]
    assert not (parts.path / "work").exists()
    un.run_dynamics(asked, progress=False)
    assert len(correlated) == 5
    with pytest.raises(StoreConflictError, match="threshold"):
        un.run_dynamics(asked.model_copy(update={"threshold": 0.4}), progress=False)


def test_the_command_adds_new_checkpoints_and_replays(seeds, corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = [tmp_path / f"seed-{letter}" for letter in "xy"]
    for target, source in zip(mine, seeds):
        for step in FOLDERS[:2]:
            shutil.copytree(f"{source}/{step}", target / step.replace("step", "checkpoint"))
    shutil.copy(f"{seeds[0]}/tokenizer.json", mine[0])
    shutil.copy(f"{seeds[0]}/tokenizer_config.json", mine[0])
    monkeypatch.setattr(
        "universal_neurons.report.pages.write_dynamics_report", lambda found: found.path / "report.html"
    )
    rest = ("--data", corpus, "--draws", 3, "--stages", "universality", "--max-tokens", 1600, "--heldout-tokens", 256)
    assert exit_code("dynamics", *mine, *rest) == 0
    out = tmp_path / "runs" / "seed-x-vs-seed-y-dynamics-on-rows"
    assert str(out / "report.html") in capsys.readouterr().out.replace("\n", "")
    assert un.Dynamics(out).names == ["10", "20"]
    for target, source in zip(mine, seeds):
        shutil.copytree(f"{source}/step-40", target / "checkpoint-40")
    assert exit_code("dynamics", *mine, *rest) == 0
    told = un.Dynamics(out)
    assert told.names == ["10", "20", "40"]
    assert told.neurons.filter(pl.col("checkpoint") == "40")["self_corr"].unique().to_list() == [1.0]
    assert (
        exit_code(
            "dynamics", "-c", out / "dynamics.json", "--out", "again", "--revisions", "checkpoint-10", "checkpoint-40"
        )
        == 0
    )
    assert un.Dynamics("again").steps == [10, 40]
    assert un.Dynamics("again").config.revisions == ("checkpoint-10", "checkpoint-40")
    capsys.readouterr()
    for wrong, words in (
        ((mine[0], *rest), "NothingToCompareError"),
        ((*mine, "--revisions", "checkpoint-10", *rest), "StepError"),
        ((*mine, "--revisions", "checkpoint-11", *rest), "MissingFileError"),
        ((*mine, "--final-step", 99, *rest), "--final-step"),
        ((*mine, "--stages", "weights"), "stages"),
        ((*mine, "--pairs", "all"), "--pairs"),
        (("./nowhere", mine[0], *rest), "MissingFileError"),
        (("org/a", "org/b", *rest), "--revisions"),
    ):
        assert exit_code("dynamics", *wrong, "--out", "wrong") == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "wrong").exists()


def test_what_cannot_be_studied_leaves_nothing_behind(seeds, corpus, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(seeds[1], broken)
    (broken / "step-20" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="step-20"):
        un.run_dynamics(config([seeds[0], broken], corpus, tmp_path / "out"), progress=False)
    short = tmp_path / "short.txt"
    short.write_text(some_text(20))
    with pytest.raises(TextError):
        un.run_dynamics(config(seeds, short, tmp_path / "out"), progress=False)
    other = tmp_path / "other"
    shutil.copytree(seeds[1], other)
    small_tokenizer().save_pretrained(other)
    words = json.loads((other / "tokenizer.json").read_text())
    words["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(TokenizerError, match="differ"):
        un.run_dynamics(config([seeds[0], other], corpus, tmp_path / "out"), progress=False)
    assert not (tmp_path / "out").exists()


def test_a_refusal_on_the_way_keeps_what_was_found(seeds, corpus, tmp_path):
    """A checkpoint of another shape: the studies before it stay, and the folder stays resumable."""
    grown = tmp_path / "grown"
    shutil.copytree(seeds[1], grown)
    shutil.rmtree(grown / "step-40")
    save(tiny_network("gpt2", 1, n_embd=WIDTH, n_inner=20), grown / "step-40")
    settings = {"stages": ("universality",), "max_tokens": 1600, "draws": 2}
    asked = config([seeds[0], grown], corpus, tmp_path / "out", **settings)
    with pytest.raises(CheckpointError, match="another kind of model"):
        un.run_dynamics(asked, progress=False)
    assert (
        un.Store(tmp_path / "out" / "steps" / "10").complete if False else un.Store(tmp_path / "out" / "steps" / "10")
    )
    with pytest.raises(CheckpointError, match="another kind of model"):
        un.run_dynamics(asked, progress=False)


def fake(root, *names):
    """Folders that look like models."""
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "config.json").write_text("{}")
    return root


def steps(given, *more):
    return [(c.name, c.step) for c in find_training(list(map(str, given)), *more).checkpoints]


def test_checkpoints_by_every_name(tmp_path):
    a = fake(tmp_path / "a", "step-1", "step2", "checkpoint-30", "400", "logs", "")
    b = fake(tmp_path / "b", "1", "step_2", "checkpoint-30", "step-400", "step-7", "step1000")
    (b / "step-9").mkdir()
    found = find_training([str(a), str(b)])
    assert [c.name for c in found.checkpoints] == ["1", "2", "30", "400"]
    assert found.checkpoints[1].models == (f"{a}/step2", f"{b}/step_2")
    assert found.notes == (
        "b: step-9 holds no model: left out",
        "a: left out, as not every seed has them: final",
        "b: left out, as not every seed has them: 7, 1000",
    )
    fake(b, "")
    assert steps([a, b])[-1] == ("final", None)
    for folder in (a, b):
        (folder / "trainer_state.json").write_text('{"global_step": 1000}')
    both = find_training([str(a), str(b)])  # b has two of this step: its subfolder counts
    assert both.checkpoints[-1].models == (str(a), f"{b}/step1000")
    assert "b: the folder's own model is of step 1000, which a subfolder has: left out" in both.notes


def test_the_final_models_step(tmp_path):
    a, b = (fake(tmp_path / name, "step-1", "step-20", "") for name in "ab")
    assert steps([a, b]) == [("1", 1), ("20", 20), ("final", None)]
    assert steps([a, b], (), 300)[-1] == ("300", 300)
    for folder in (a, b):
        (folder / "trainer_state.json").write_text('{"global_step": 40}')
    assert steps([a, b])[-1] == ("40", 40)
    assert find_training([str(a), str(b)]).checkpoints[-1].models == (str(a), str(b))
    assert steps([a, b], (), 300)[-1] == ("300", 300)
    assert steps([a, b], (), 20) == [("1", 1), ("20", 20)]
    with pytest.raises(StepError, match="order of training"):
        steps([a, b], (), 19)
    (a / "trainer_state.json").write_text("{}")
    with pytest.raises(StepError, match="global_step"):
        steps([a, b])


def test_revisions(tmp_path):
    hub = find_training(["org/a", "org/b"], ["step1", "stage1-step512-tokens4B", "main"])
    assert [(c.name, c.step) for c in hub.checkpoints] == [("1", 1), ("512", 512), ("main", None)]
    assert hub.checkpoints[0].models == ("org/a@step1", "org/b@step1")
    assert hub.folders == (None, None)
    assert steps(["org/a", "org/b"], ["step1", "main"], 99) == [("1", 1), ("99", 99)]
    a, b = (fake(tmp_path / name, "early", "v3") for name in "ab")
    assert steps([a, b], ["v3", "early"]) == [("3", 3), ("early", None)]
    for wrong in (["step5", "step5"], ["step5", "step1"], ["main", "step5"], ["main", "other"]):
        with pytest.raises(StepError, match="order of training"):
            find_training(["org/a", "org/b"], wrong)
    with pytest.raises(ConfigError, match="twice over"):
        find_training(["org/a@main", "org/b"], ["step1", "step2"])
    with pytest.raises(ConfigError, match="every checkpoint has its number"):
        find_training(["org/a", "org/b"], ["step1", "step2"], 2)
    with pytest.raises(MissingFileError, match="'v4'"):
        steps([a, b], ["v3", "v4"])
    assert [step_of(n) for n in ("step-5", "checkpoint_7", "a2-step30", "x", "12")] == [5, 7, 30, None, 12]


def test_too_little_in_common(tmp_path):
    a, b = fake(tmp_path / "a", "step-1", "step-2"), fake(tmp_path / "b", "step-2", "step-3")
    with pytest.raises(StepError, match="a: 1, 2; b: 2, 3"):
        steps([a, b])
    with pytest.raises(NothingToCompareError):
        steps([a])
    with pytest.raises(StepError, match="order of training"):
        steps([fake(tmp_path / "c", "step-1", "step1", "2"), b])
    with pytest.raises(MissingFileError):
        steps([a, tmp_path / "nowhere"])


def test_bundled_seeds_that_have_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SUITES", (tmp_path,))
    fake(tmp_path, "seed-1", "seed-2", "seed-3")
    with pytest.raises(MissingFileError, match="without checkpoints"):
        find_training(["bundled"])
    fake(tmp_path, "seed-1/step-5", "seed-3/step-5")
    found = find_training(["bundled"])
    assert found.seeds == ("seed-1", "seed-3")
    assert found.checkpoints[0].models == ("bundled/seed-1/step-5", "bundled/seed-3/step-5")
    assert found.checkpoints[1].models == ("bundled/seed-1", "bundled/seed-3")


def test_settings():
    assert set(DynamicsFlags.model_fields) == set(DynamicsConfig.model_fields) - {
        *NOT_OF_DYNAMICS,
        "models",
        "revisions",
    }
    for wrong in ({"pairs": "all"}, {"subset": ("a",)}, {"stages": ("labels",)}, {"stages": ("universality", "roles")},
                  {"examples": 3}, {"colour": 1}, {"stages": ("labels",), "published": None}):  # fmt: skip
        with pytest.raises(ConfigError):
            make_dynamics_config(wrong)
    assert make_dynamics_config({"revisions": "step1"}).revisions == ("step1",)
    study = make_dynamics_config({"final_step": 3, "draws": 5}).study(models=("a", "b"))
    assert type(study) is un.StudyConfig
    assert (study.models, study.draws, study.stages) == (("a", "b"), 5, ("labels", "universality"))


def test_a_dead_neuron_is_not_itself_either():
    """Nothing correlates with what never changes."""
    from universal_neurons.statistics import Batch, Block

    moments = PairedMoments("then", "now", torch.arange(2), 2)
    values = torch.randn(50, 2)
    values[:, 1] = 0
    for stretch in range(2):
        moments.update(Batch({Key("then"): Block(values), Key("now"): Block(values)}, shard=stretch))
    assert moments.result().corr.value[0] == pytest.approx(1)
    assert np.isnan(moments.result().corr.value[1])
