"""A base and its fine-tune: planted changes are found and named, numbers are NumPy's, a null keeps its word."""

import copy
import json
import re
import shutil
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch
from conftest import exit_code, require_light, save_tiny, settled, small_tokenizer, tiny_model
from described import require_described
from planted import LAYER, NEGATED, PLANTED, WIDTH, Unit, drifted, named, network, planted_pair, some_tokens
from scipy import stats

import universal_neurons as un
from universal_neurons.diff import KINDS, MEASURES, NOT_OF_DIFF, estimate_diff, make_diff_config
from universal_neurons.diff.paired_firing import PairedFiring
from universal_neurons.diff.selves import self_columns
from universal_neurons.diff.weight_changes import weight_columns
from universal_neurons.errors import ConfigError, CorrespondenceError, StoreConflictError, TokenizerError
from universal_neurons.models import bundled_models
from universal_neurons.statistics import Batch, Block, Key

TOKENS = some_tokens()


def settings(out, **more):
    given = {"stages": ("universality",), "draws": 2, "top_k": 2, "max_tokens": 5120, "effects": 0} | more
    return un.DiffConfig(models=("base", "tuned"), out=str(out), **given)


def of(base, tuned, out, nulls=(), tokens=TOKENS, **more):
    return un.run_diff(settings(out, **more), models=[base, tuned], nulls=nulls, tokens=tokens, progress=False)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pair(request):
    return planted_pair(request.param)


@pytest.fixture(scope="module")
def diff(pair, tmp_path_factory):
    return of(*pair, tmp_path_factory.mktemp("diff") / "run", threshold=0.4)


def last(diff):
    return diff.changes.filter(pl.col("layer") == LAYER)


def planted_kinds(gated):
    names = {unit: kind for kind, units in PLANTED.items() for unit in units if not (gated and kind == "shifted")}
    return [names.get(unit, "unchanged") for unit in range(WIDTH)]


def test_planted_changes_are_named_and_nothing_else(pair, diff):
    gated = pair[0].gated
    found, wanted = last(diff)["kind"].to_list(), planted_kinds(gated)
    if not gated:  # GELU's shape is another at twice its pre-activation
        wanted = [w if w != "re-scaled" else f for w, f in zip(wanted, found)]
    assert found == wanted
    assert set(found) <= set(KINDS)
    others = diff.changes.filter(pl.col("layer") != LAYER)
    assert (others["kind"] == "unchanged").all()
    assert others["surely_unchanged"].all()
    assert set(last(diff).filter("surely_unchanged")["kind"]) == {"unchanged"}
    assert diff.models == ["base", "tuned"]


def test_planted_changes_of_relu_units_are_named(tmp_path):
    """ReLU is the same at any scale, and has a bias: every kind can be planted."""
    rows = last(of(*planted_pair("opt"), tmp_path / "run"))
    always_dead = (rows["dead_before"] & rows["dead_after"]).to_list()
    wanted = ["unchanged" if dead else kind for kind, dead in zip(planted_kinds(gated=False), always_dead)]
    assert rows["kind"].to_list() == wanted
    assert len({*wanted}) == len(KINDS)


def test_where_units_went_and_came_from(diff):
    rows = last(diff)
    swapped = rows[list(PLANTED["moved"])]
    assert swapped["place"].to_list() == ["moved"] * 4
    for column in ("moved_to_neuron", "came_from_neuron", "tuned_match_neuron", "base_match_neuron"):
        assert swapped[column].to_list() == [5, 4, 7, 6], column
    copied = rows[list(PLANTED["copied"])]
    assert copied["came_from_neuron"].to_list() == [18, 20]
    sources = rows[[18, 20]]
    assert sources["place"].to_list() == ["split", "split"]
    assert sources["heirs"].to_list() == [1, 1]
    assert (sources["kind"] == "unchanged").all()
    untouched = rows[[33, 34, 35]]
    assert untouched["place"].to_list() == ["stays"] * 3
    assert (untouched["moved_to_layer"] == -1).all()
    assert (untouched["tuned_other_neuron"] != untouched["neuron"]).all()
    assert (rows.filter(pl.col("kind") == "re-tuned")["place"] != "stays").any()


def heldout_activations(model, tokens, **kind):
    """By stretch, in float64: (positions, units)."""
    parts = []
    for rows in tokens.split()[1]:
        values = model.activations(torch.from_numpy(tokens.ids(rows)), **kind).double().numpy()
        parts.append(values[tokens.mask(rows)])
    return parts


def jackknife(estimate, parts):
    """The estimate of lists of pairs, and half its interval."""
    value = estimate(*(np.concatenate(side) for side in zip(*parts)))
    without = np.stack(
        [estimate(*(np.concatenate(side) for side in zip(*(parts[:g] + parts[g + 1 :])))) for g in range(len(parts))]
    )
    n = len(parts)
    error = np.sqrt((n - 1) / n * ((without - without.mean(0)) ** 2).sum(0))
    return value, stats.t.ppf(0.975, n - 1) * error


def corr(a, b):
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))


def test_numbers_are_numpys(pair, diff):
    """The unit and itself, in float64 on activations captured apart; the jackknife is written out."""
    base, _ = pair
    parts = list(zip(*(heldout_activations(model, TOKENS) for model in pair)))
    before, after = (np.concatenate(side) for side in zip(*parts))
    with np.errstate(all="ignore"):
        sign = np.where(base.gated & (corr(before, after) < 0), -1.0, 1.0)
        signed = [(a, b * sign) for a, b in parts]
        estimates = {
            "mean_shift": lambda a, b: np.where(b.std(0) > 0, (b.mean(0) - a.mean(0)) / a.std(0), np.nan),
            "scale": lambda a, b: np.log(b.std(0) / a.std(0)),
            "offset": lambda a, b: (b.mean(0) - a.mean(0) * b.std(0) / a.std(0)) / b.std(0),
        }
        checked = np.isfinite(corr(before, after))
        assert checked.sum() > 0.9 * len(checked)
        columns = {name: diff.changes[name].to_numpy() for name in diff.changes.columns if name not in ("kind",)}

        def near(name, values, tolerance=2e-4):
            np.testing.assert_allclose(columns[name][checked], values[checked], atol=tolerance, err_msg=name)

        value, reach = jackknife(lambda a, b: np.arctanh(np.clip(corr(a, b), -1 + 1e-12, 1 - 1e-12)), parts)
        near("self_corr", corr(before, after), 1e-5)
        near("self_corr_low", np.tanh(value - reach))
        near("self_corr_high", np.tanh(value + reach))
        for name, estimate in estimates.items():
            value, reach = jackknife(estimate, signed)
            ends = (value, value - reach, value + reach)
            for end, number in zip(("", "_low", "_high"), map(np.exp, ends) if name == "scale" else ends):
                near(name + end, number)
        for name, q in (("q01", 0.01), ("q10", 0.1), ("q50", 0.5), ("q90", 0.9), ("q99", 0.99)):
            rank = int(q * len(before))
            gap = np.sort(after * sign, 0)[rank] - np.sort(before, 0)[rank]
            near(f"{name}_shift", gap / before.std(0))
    fires = [[part > 0 for part in heldout_activations(m, TOKENS, pre_activations=True)] for m in pair]
    one, other = (np.concatenate(side) for side in fires)
    np.testing.assert_allclose(columns["firing_before"], one.mean(0))
    np.testing.assert_allclose(columns["firing_after"], other.mean(0))
    with np.errstate(all="ignore"):
        value, reach = jackknife(
            lambda a, b: np.where(a.mean(0) == b.mean(0), 0, (b.mean(0) - a.mean(0)) / a.std(0)), list(zip(*fires))
        )
        for end, number in zip(("", "_low", "_high"), (value, value - reach, value + reach)):
            near(f"firing_shift{end}", number)
        near("firing_overlap", (one & other).sum(0) / (one | other).sum(0))


def test_weights_are_numpys(pair, diff):
    """Cosines and norms of processed weights, and logit effects, unit by unit."""
    before, after = (un.processed_weights(model) for model in pair)
    for unit in (0, 9, 14, 24, 33):
        row = last(diff).row(unit, named=True)
        for role in ("w_in", "w_out", *(["w_up"] if pair[0].gated else [])):
            a, b = (getattr(w, role)[LAYER, unit].numpy() for w in (before, after))
            assert row[f"{role}_ratio"] == pytest.approx(np.linalg.norm(b) / np.linalg.norm(a), abs=1e-12)
            if np.linalg.norm(b):
                assert row[f"{role}_cos"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-9)
        effects = [w.w_u.numpy() @ w.w_out[LAYER, unit].numpy() for w in (before, after)]
        change = effects[1] - effects[0]
        if unit in (9, 24):
            assert row["logit_cos"] == pytest.approx(np.corrcoef(effects)[0, 1], abs=1e-5)
            assert row["raised_tokens"] == np.argsort(-change)[:5].tolist()
            assert row["lowered_tokens"] == np.argsort(change)[:5].tolist()
            np.testing.assert_allclose(row["raised_by"], np.sort(change)[::-1][:5], rtol=1e-4)
        if unit == 33:
            assert row["raised_tokens"] is None
            assert row["weights"] == "identical"
        else:
            assert row["weights"] == "different"
    if not pair[0].gated:
        assert last(diff)["w_up_cos"].is_null().all()


def test_a_model_and_itself_are_unchanged(pair, tmp_path):
    base = pair[0]
    diff = of(base, named(copy.deepcopy(base.hf), "tuned"), tmp_path / "run")
    assert set(diff.changes["kind"]) == {"unchanged"}
    assert diff.changes["surely_unchanged"].all()
    assert set(diff.changes["weights"]) == {"identical"}
    assert set(diff.changes.filter(~pl.col("dead_before"))["place"]) == {"stays"}
    assert diff.changes.filter("dead_before")["place"].is_null().all()


@pytest.mark.parametrize("pair", ["llama"], indirect=True, scope="module")
def test_a_negated_gated_unit_is_the_same(diff):
    rows = last(diff)[list(NEGATED)]
    np.testing.assert_allclose(rows["self_corr"], -1)
    assert rows["surely_unchanged"].all()


def test_rounding_is_told_from_change(pair):
    base, tuned = (named(copy.deepcopy(pair[0].hf), name) for name in ("base", "tuned"))
    tuned.hf.to(torch.bfloat16).float()
    values = Unit(tuned, 7).get()
    Unit(tuned, 7).set([values[0] * 1.01, *values[1:]])
    equal = np.array(weight_columns(base, tuned)["weights"])
    assert equal[WIDTH + 7] == "different"
    assert set(np.delete(equal, WIDTH + 7)) == {"rounding"}


def test_a_model_rounded_to_bfloat16_is_equal_up_to_rounding(pair, tmp_path):
    rounded = named(copy.deepcopy(pair[0].hf).to(torch.bfloat16).float(), "rounded")
    diff = of(pair[0], rounded, tmp_path / "run")
    assert set(diff.changes["kind"]) == {"unchanged"}
    assert diff.changes["surely_unchanged"].all()
    assert set(diff.changes.filter(~pl.col("dead_before"))["weights"]) == {"rounding"}
    assert "are equal up to rounding to bfloat16" in repr(diff)


@pytest.fixture(scope="module")
def under_null(tmp_path_factory):
    """A fine-tune that drifted as eight others did, with six units that were given other weights besides."""
    base = named(network("gpt2", 96), "base")
    tuned = drifted(base, "tuned", 1)
    chance = torch.Generator().manual_seed(5)
    for unit in range(6):
        values = Unit(tuned, unit).get()
        Unit(tuned, unit).set([torch.randn(t.shape, generator=chance) * 0.3 for t in values])
    nulls = [drifted(base, f"null-{seed}", seed) for seed in range(2, 10)]
    return of(base, tuned, tmp_path_factory.mktemp("null") / "run", nulls=nulls)


def test_a_null_names_what_is_unusual_and_flags_the_rest_as_it_says(under_null):
    changes = under_null.changes
    is_planted = (pl.col("layer") == LAYER) & (pl.col("neuron") < 6)
    planted, untouched = changes.filter(is_planted), changes.filter(~is_planted)
    assert (planted["kind"] == "re-tuned").all()
    assert (planted["q_change"] <= 0.05).all()
    assert (untouched["q_change"].fill_nan(None) <= 0.05).sum() <= 0.05 * len(untouched)
    for measure in MEASURES:
        p = untouched[f"p_{measure}"].drop_nans()
        assert (p <= 0.05).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(p)), measure
        assert p.min() >= 1 / 769
    np.testing.assert_allclose(changes["p_least"], 1 / (1 + 8 * 96))
    assert under_null.nulls == [f"null-{seed}" for seed in range(2, 10)]


def test_p_and_q_are_counted_by_hand(under_null):
    changes, null = under_null.changes, under_null.table("null_changes")
    assert len(null) == 8 * len(changes)
    row = changes.row(100, named=True)
    theirs = null.filter(pl.col("layer") == row["layer"])
    sizes = {
        "self_corr": 1 - row["self_corr"],
        "mean_shift": abs(row["mean_shift"]),
        "scale": abs(np.log(row["scale"])),
    }
    for measure, size in sizes.items():
        reached = int((theirs[measure] >= size).sum())
        assert row[f"p_{measure}"] == pytest.approx((1 + reached) / (1 + len(theirs)))
        p = changes[f"p_{measure}"].to_numpy()
        rates = stats.false_discovery_control(p)
        np.testing.assert_allclose(changes[f"q_{measure}"], rates)


def test_without_a_null_no_change_has_a_p(diff):
    assert diff.changes["p_self_corr"].is_null().all()
    assert not diff.has("null_changes")
    assert diff.nulls == []


def test_counts_of_firing_add_up_however_they_are_split():
    chance = torch.Generator().manual_seed(0)
    values = [torch.randn(60, 3, generator=chance) for _ in range(2)]

    def added(cuts):
        made = PairedFiring("a", "b", 3, 2)
        for start, end in pairwise(cuts):
            for shard in range(2):
                rows = slice(30 * shard + start, 30 * shard + end)
                made.update(Batch({Key(n): Block(v[rows]) for n, v in zip("ab", values)}, shard=shard))
        return made

    whole, parts = added([0, 30]), added([0, 7, 30])
    merged, restored = added([0, 7]), PairedFiring("a", "b", 3, 2)
    merged.merge(added([7, 30]))
    restored.restore(merged.state())
    fires = [(v > 0).numpy().reshape(2, 30, 3) for v in values]
    for one in (whole, parts, merged, restored):
        counts, firing = (tensor.numpy() for tensor in one.result())
        assert counts.tolist() == [30, 30]
        for place, mask in enumerate((fires[0], fires[1], fires[0] & fires[1])):
            assert (firing[:, place] == mask.sum(1)).all()


@pytest.mark.parametrize("other", ["gpt2", "opt"])
def test_models_of_other_shapes_are_refused(other, tmp_path):
    shapes = {"gpt2": {"n_inner": 32}, "opt": {}}
    base = tiny_model("gpt2", 0, "base")
    with pytest.raises(CorrespondenceError, match="units of tuned and base do not correspond"):
        of(base, tiny_model(other, 0, "tuned", **shapes[other]), tmp_path / "run")
    with pytest.raises(CorrespondenceError, match="units of null and base"):
        of(
            base,
            tiny_model("gpt2", 1, "tuned"),
            tmp_path / "run",
            nulls=[tiny_model(other, 0, "null", **shapes[other])],
        )
    assert not (tmp_path / "run").exists()


def test_added_tokens_are_noted_and_other_tokenizers_refused(tmp_path, capsys):
    base = tiny_model("gpt2", 0, "base")
    tuned = tiny_model("gpt2", 1, "tuned", vocab_size=1026)
    tuned.tokenizer.add_tokens(["<|user|>", "<|model|>"])
    diff = of(base, tuned, tmp_path / "run")
    assert len(diff.changes) == 48
    most = max(max(tokens) for tokens in diff.changes["raised_tokens"].drop_nulls())
    assert most < 1024
    renumbered = small_tokenizer()
    state = json.loads(renumbered.backend_tokenizer.to_str())
    state["model"]["merges"] = state["model"]["merges"][:-1]
    tuned.tokenizer = type(renumbered)(tokenizer_object=type(renumbered.backend_tokenizer).from_str(json.dumps(state)))
    with pytest.raises(TokenizerError, match="tokenizers of base and tuned differ"):
        of(base, tuned, tmp_path / "other")


@pytest.mark.parametrize("name", NOT_OF_DIFF)
def test_settings_of_run_alone_are_refused(name):
    given = {"pairs": "all", "null": "untrained", "null_draws": 1, "pooling": "mean"}
    given |= {"published": {"source": "x", "neurons": 1, "universal": 1}}
    given |= {"device_map": "auto", "max_memory": ("cpu=1GiB",), "names": ("x", "y")}
    with pytest.raises(ConfigError, match=name):
        make_diff_config({"models": ("a", "b"), name: given[name]})


@pytest.mark.parametrize("given", [{"models": ("a",)}, {"models": ("a", "b", "c")}, {"models": ("bundled", "b")},
                                   {"models": ("a", "b"), "stages": ("weights",)}])  # fmt: skip
def test_what_is_no_diff_is_refused(given):
    with pytest.raises(ConfigError):
        make_diff_config(given)


@pytest.fixture(scope="module")
def by_name(tmp_path_factory, text_file):
    """A diff of folders, all stages but roles, with a second text and a null."""
    root = tmp_path_factory.mktemp("folders")
    folders = [save_tiny(root / name, seed=seed) for name, seed in (("base", 0), ("tuned", 1), ("other", 2))]
    second = root / "second.txt"
    second.write_text(text_file.read_text()[:8_000])
    config = un.DiffConfig(
        models=tuple(map(str, folders[:2])), nulls=(str(folders[2]),), data=str(text_file), data_tuned=str(second),
        out=str(root / "run"), draws=2, context=32, max_tokens=2048, labels=("tokens",), nlp=None,
        stages=("weights", "statistics", "labels", "universality"), effects=2,
    )  # fmt: skip
    return un.run_diff(config, progress=False)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


def test_the_study_within_is_the_one_that_run_makes(by_name, tmp_path):
    config = by_name.config.study(out=str(tmp_path / "study"))
    study = un.run_study(config, progress=False)
    assert contents(study.path) == contents(by_name.study.path)
    neurons = study.neurons
    for model, when in zip(by_name.models, ("before", "after")):
        for column in ("family", "label", "label_sign"):
            wanted = neurons.filter(pl.col("model") == model)[column]
            assert by_name.changes[f"{column}_{when}"].equals(wanted, null_equal=True)


def test_an_interrupted_diff_ends_with_the_same_bytes(by_name, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    config = by_name.config.model_copy(update={"out": str(tmp_path / "run")})
    for place in ("universal_neurons.study.stages.Stages.write", "universal_neurons.diff.run.changes_tables"):
        with monkeypatch.context() as patched:
            patched.setattr(place, interrupted)
            with pytest.raises(KeyboardInterrupt):
                un.run_diff(config, progress=False)
    with monkeypatch.context() as patched:
        patched.setattr("universal_neurons.diff.run.self_columns", interrupted)  # what is finished is not read again
        un.run_diff(config, progress=False)
    assert contents(tmp_path / "run") == contents(by_name.path)
    assert not (tmp_path / "run" / "work").exists()
    with monkeypatch.context() as patched:
        patched.setattr("universal_neurons.diff.run.run_study", interrupted)
        assert un.run_diff(config, progress=False).changes.equals(by_name.changes)
    (tmp_path / "run" / "changes.parquet").unlink()
    assert un.run_diff(config, progress=False).changes.equals(by_name.changes)
    with pytest.raises(StoreConflictError, match="holds another study"):
        un.run_diff(config.model_copy(update={"shifted": 0.3}), progress=False)


def test_the_second_text_is_measured_by_the_same_rules(by_name, tmp_path):
    second = by_name.config.data_tuned
    here = {"data": second, "data_tuned": None, "nulls": (), "out": str(tmp_path / "run")}
    stages = {"stages": ("universality",), "labels": ("default",), "nlp": "auto"}
    alone = by_name.config.model_copy(update=here | stages)
    wanted, found = un.run_diff(alone, progress=False).changes, by_name.table("changes_tuned_text")
    for column in found.columns[4:]:
        np.testing.assert_array_equal(found[column], wanted[column], err_msg=column)
    assert set(found["kind"]) <= set(KINDS)


def test_every_column_of_a_diff_is_described(by_name):
    assert set(by_name.manifest["tables"]) == {
        "changes", "changes_tuned_text", "null_changes", "unit_effects", "joint_effects",
    }  # fmt: skip
    for table in by_name.manifest["tables"]:
        require_described(by_name.table(table), table, "diff")


def test_the_command_and_what_it_shows(by_name, tmp_path, capsys):
    config = by_name.config
    out = tmp_path / "run"
    settings = ["--data", config.data, "--draws", 2, "--context", 32, "--max-tokens", 2048, "--stages", "universality"]
    assert (
        exit_code(
            "diff", *config.models, "--null", *config.nulls, *settings, "--top-k", 3, "--effects", 2, "--out", out
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "base → tuned: 48 units" in said
    assert "Changed most" in said
    assert "the smallest p that can come out is 0.04" in said  # 1 / 25
    assert exit_code("diff", "-c", out / "diff.json", "--out", out) == 0
    assert "complete already" in capsys.readouterr().err
    assert exit_code("check", out) == 0
    files = len(un.Diff(out).manifest["tables"]) + len(un.Diff(out).study.manifest["tables"])
    assert f"whole; {files} files" in " ".join(capsys.readouterr().out.split())
    assert exit_code("show", out) == 0
    assert "base → tuned: 48 units" in capsys.readouterr().out
    assert "Changed most" in repr(un.Diff(out))
    page = (out / "report.html").read_bytes()
    assert b"What did training change?" in page
    assert {path.name for path in (out / "figures").iterdir()} == {
        f"{name}.{kind}" for name in ("changes", "effects") for kind in ("svg", "png")
    }
    (out / "report.html").unlink()
    assert exit_code("report", out) == 0
    assert (out / "report.html").read_bytes() == page


def test_the_estimate_counts_the_study_and_what_is_read_beside_it(by_name, capsys):
    needs = estimate_diff(by_name.config)
    parts = {name: value for name, value in needs.as_dict().items() if name.startswith("seconds_")}
    assert parts.pop("seconds_effects") >= 0  # apart
    assert needs.seconds == pytest.approx(needs.study.seconds + sum(parts.values()))
    assert all(value > 0 for value in parts.values())
    assert needs.memory_peak >= needs.study.memory_peak
    assert needs.disk_final >= sum(path.stat().st_size for path in by_name.path.rglob("*.parquet"))
    alone = estimate_diff(by_name.config.model_copy(update={"nulls": (), "data_tuned": None}))
    assert [alone.seconds_nulls, alone.seconds_second_text] == [0, 0]
    models, data = by_name.config.models, by_name.config.data
    assert exit_code("diff", *models, "--data", data, "--estimate", "--max-tokens", 1024) == 0
    assert "units and themselves" in capsys.readouterr().out
    assert exit_code("diff", *models, "--data", data, "--json") == 2
    assert "--json goes with --estimate" in capsys.readouterr().err


def test_one_unit_is_shown_before_and_after(by_name, capsys):
    assert exit_code("show", by_name.path, "L1.3") == 0
    said = capsys.readouterr().out
    row = by_name.changes.row(27, named=True)
    for words in ("base → tuned", row["kind"], "Before: base", "After: tuned", "Effects on logits rose for"):
        assert words in said
    assert f"{row['self_corr']:.3f}".replace("-", "−") in said
    assert "on the second text" in repr(by_name)
    counts = [
        dict(by_name.changes[f"family_{when}"].drop_nulls().value_counts().iter_rows()) for when in ("before", "after")
    ]
    family = max(
        counts[0].keys() | counts[1].keys(), key=lambda name: abs(counts[1].get(name, 0) - counts[0].get(name, 0))
    )
    told = f"{family.replace('_', ' ')} {counts[0].get(family, 0)} → {counts[1].get(family, 0)}"
    assert told in " ".join(repr(by_name).split())
    assert exit_code("show", by_name.path, "L9.3") == 2
    assert "no unit of this diff" in capsys.readouterr().err
    code = f"import universal_neurons as un\nprint(un.Diff({str(by_name.path)!r}))\n"
    assert "base → tuned" in require_light(("show", by_name.path), ("show", by_name.path, "L1.3"), code=code)


@pytest.mark.parametrize("flags", [["--anchors"], ["--label", "x"], ["--threshold", 0.4], ["L0.1", "--all"]])
def test_flags_of_a_study_are_refused_of_a_diff(by_name, flags, capsys):
    assert exit_code("show", by_name.path, *flags) == 2
    assert "a diff" in capsys.readouterr().err


def test_a_diff_whose_study_is_another_is_told(by_name, tmp_path, capsys):
    folder = shutil.copytree(by_name.path, tmp_path / "run")
    manifest = json.loads((folder / "study" / "study.json").read_text())
    del manifest["tables"]["matches"]
    (folder / "study" / "study.json").write_text(json.dumps(manifest))
    assert exit_code("check", folder) == 2
    assert "not the study that diff.json was made of" in capsys.readouterr().err


@pytest.mark.parametrize(("key", "value"), [("models", []), ("tokens", None), ("study", None), ("tables", {})])
def test_a_manifest_of_another_kind_is_named(by_name, tmp_path, key, value):
    manifest = by_name.manifest | {key: value}
    (tmp_path / "diff.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreConflictError, match=r"diff\.json: not readable"):
        un.Diff(tmp_path)


@pytest.mark.parametrize("place", ["study", "work"])
def test_links_are_refused_by_name(by_name, tmp_path, place):
    folder, elsewhere = shutil.copytree(by_name.path, tmp_path / "run"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    if (folder / place).exists():
        shutil.rmtree(folder / place)
    (folder / place).symlink_to(elsewhere)
    with pytest.raises(StoreConflictError, match="is a symbolic link"):
        un.run_diff(by_name.config.model_copy(update={"out": str(folder)}), progress=False)
    assert not any(elsewhere.iterdir())


def test_without_models_it_is_the_bundled_pair():
    assert make_diff_config({}) == un.DiffConfig()
    assert un.DiffConfig().models == ("bundled/seed-1", "bundled/seed-1-german")
    assert un.DiffConfig(max_tokens=5).nulls == ("bundled/seed-1-python",)
    assert un.DiffConfig(nulls=("x",)).nulls == ("x",)
    assert un.DiffConfig(models=("a", "b")).nulls == ()
    assert not {*un.DiffConfig().nulls, un.DiffConfig().models[1]} & {*bundled_models()}


def test_objects_and_names_are_not_mixed(tmp_path):
    one = [tiny_model("gpt2", seed, f"m{seed}") for seed in range(3)]
    with pytest.raises(ConfigError, match="the same name"):
        of(*one[:2], tmp_path / "run", nulls=[one[2], one[0]])
    with pytest.raises(ConfigError, match="two ways"):
        un.run_diff(settings(tmp_path / "run"), nulls=one[:1], tokens=TOKENS, progress=False)
    with pytest.raises(ConfigError, match="two ways"):
        un.run_diff(settings(tmp_path / "run", nulls=("x",)), models=one[:2], tokens=TOKENS, progress=False)


@pytest.mark.parametrize("more", [{"panels": 3}, {"search": "screened", "group_size": 8}, {"lanes": 3}])
def test_other_ways_of_the_search_name_the_same_changes(more, tmp_path_factory):
    pair = planted_pair("llama")
    found = of(*pair, tmp_path_factory.mktemp("other") / "run", **more)
    assert last(found)["kind"].to_list() == planted_kinds(gated=True)
    assert last(found)[list(PLANTED["moved"])]["moved_to_neuron"].to_list() == [5, 4, 7, 6]


@pytest.mark.cuda
def test_a_device_says_what_the_processor_says(device):
    """Each unit and itself, and the weights, to what rounding of sums in another order leaves."""
    pairs = {place: planted_pair("llama") for place in ("cpu", device)}
    found = {}
    for place, (base, tuned) in pairs.items():
        for model in (base, tuned):
            model.hf.to(place)
        config = settled(context=64, heldout_tokens=None, device=place)
        found[place] = self_columns(base, tuned, TOKENS, config) | weight_columns(base, tuned)
    for name, wanted in found["cpu"].items():
        if name.endswith(("tokens", "_by")) or name == "weights":
            continue
        # A quantile's bin is an eighth of its value wide: rounding may move a value over its edge.
        atol = 0.05 if re.fullmatch(r"q\d+_shift", name) else 2e-3
        np.testing.assert_allclose(found[device][name], wanted, atol=atol, err_msg=name)
    assert found[device]["weights"] == found["cpu"]["weights"]
