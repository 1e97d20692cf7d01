"""One-to-one matches and similarity of layers in a study: against NumPy and SciPy on the models' own activations."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from conftest import exit_code, tiny_model
from scipy.optimize import linear_sum_assignment
from test_correlation import captured, some_tokens
from test_similarity import by_numpy
from test_studies_of_spans import renumbered, text, with_rows_moved  # noqa: F401  a fixture
from test_study import contents, quiet

from universal_neurons import Model, StudyConfig
from universal_neurons.errors import InputError, MissingFileError, NothingToCompareError
from universal_neurons.explorer import Consistency, write_consistency
from universal_neurons.matching import MEASURES, pw_mcc
from universal_neurons.models import Decoder
from universal_neurons.report import study_view, write_page
from universal_neurons.storage import Store
from universal_neurons.study import decide
from universal_neurons.study.resolve import resolve
from universal_neurons.study.similarity_rows import layer_groups, rows_compared
from universal_neurons.terminal import plain
from universal_neurons.units import Units

STAGES = ("universality", "similarity")
FEW = 3


def three_models():
    """Of unequal depth and width, one gated; a dead neuron."""
    models = [
        tiny_model("gpt2", 0, "m0"), tiny_model("llama", 0, "gated"),
        tiny_model("gpt2", 1, "deep", n_layer=3, n_inner=20),
    ]  # fmt: skip
    with torch.no_grad():
        models[0].blocks[1].mlp.c_fc.weight[:, 4] = 0
    return models


@pytest.fixture(scope="module")
def tokens():
    return some_tokens(120)


def study(folder, tokens, models=None, **settings):
    given = {"stages": STAGES, "draws": 2, "top_k": FEW} | settings
    return quiet(StudyConfig(out=str(folder / "run"), **given), models=models or three_models(), tokens=tokens)


@pytest.fixture(scope="module")
def whole(tokens, tmp_path_factory) -> Store:
    return study(tmp_path_factory.mktemp("whole"), tokens, pairs="all")


def layers_by_numpy(model, tokens, rows):
    """Activations of every layer at the counted positions of some rows, in their order."""
    row_of = np.repeat(np.arange(len(tokens)), tokens.mask(np.arange(len(tokens))).sum(1))
    values = np.concatenate([captured(model, tokens)[row_of == row] for row in rows])
    return np.split(values, model.units.starts[1:-1], 1)


def test_every_two_layers_have_the_measures_of_numpy(whole, tokens):
    about = whole.manifest["similarity"]
    rows = np.concatenate(tokens.split()[1])
    assert about["positions"] == tokens.mask(rows).sum()
    assert (about["stretches"], len(about["shifts"])) == (20, 3)
    acts = {model.name: layers_by_numpy(model, tokens, rows) for model in three_models()}
    table = whole.table("similarity")
    pairs = [(a, b) for a in acts for b in acts if a != b]
    assert len(table) == len(MEASURES) * sum(len(acts[a]) * len(acts[b]) for a, b in pairs)
    assert table["asker"].unique(maintain_order=True).to_list() == list(acts)
    assert table["asker"].equals(table["model"].alias("asker"))
    found = dict(table.group_by("asker", "layer", "match_model", "match_layer"))
    for asker, other in (("m0", "gated"), ("deep", "m0")):
        for layer, x in enumerate(acts[asker]):
            for match_layer, y in enumerate(acts[other]):
                part = found[asker, layer, other, match_layer].sort("measure")
                names = part["measure"].to_list()
                expected = dict(zip(MEASURES, by_numpy(x, y)))
                np.testing.assert_allclose(part["value"], [expected[name] for name in names], atol=1e-6)
                assert (part["calibrated_low"] < part["calibrated"]).all()
                chance = part["chance"].to_numpy()
                np.testing.assert_allclose(part["calibrated"], (part["value"].to_numpy() - chance) / (1 - chance))
    shifted = [by_numpy(acts["m0"][1], np.roll(acts["gated"][0], -shift, 0)) for shift in about["shifts"]]
    chance = dict(zip(MEASURES, np.mean(shifted, 0)))
    part = found["m0", 1, "gated", 0]
    np.testing.assert_allclose(part["chance"], [chance[name] for name in part["measure"]], atol=1e-6)


def test_layers_held_a_few_at_a_time_give_the_same_bytes(whole, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr("universal_neurons.study.similarity_rows.GROUP_BYTES", 1)
    apart = study(tmp_path, tokens, pairs="all")
    for name in ("similarity", "one_to_one", "consistency", "consistency_levels"):
        assert contents(apart)[f"{name}.parquet"] == contents(whole)[f"{name}.parquet"]


def dense_assignment(best, n, others):
    """The largest total |ρ| or ρ of some matches, by SciPy's dense assignment in which every row may have none."""
    worth = np.full((n, others + n), -1e6)
    worth[:, others:][np.diag_indices(n)] = 0
    worth[best["unit"], best["match"]] = best["strength"]
    rows, columns = linear_sum_assignment(worth, maximize=True)
    return worth[rows, columns].sum()


def test_partners_are_those_of_a_dense_assignment_of_the_matches(whole):
    for row in whole.table("consistency").iter_rows(named=True):
        asker, other = row["asker"], row["match_model"]
        units, by_size = whole.units, "gated" in (asker, other)
        of_pair = (pl.col("asker") == asker) & (pl.col("match_model") == other)
        best = whole.matches.filter(of_pair & (pl.col("rank") > 0)).select(
            "layer", "neuron", "match_layer", "match_neuron", "rank", "corr", "mutual",
            units[asker].number_column().alias("unit"), units[other].number_column("match_").alias("match"),
            (pl.col("corr").abs() if by_size else pl.col("corr")).alias("strength"),
        )  # fmt: skip
        found = whole.table("one_to_one").filter(of_pair)
        paired = found.filter(pl.col("corr").is_not_null())
        strength = (paired["corr"].abs() if by_size else paired["corr"]).to_numpy()
        total = dense_assignment(best, len(units[asker]), len(units[other]))
        assert strength.sum() == pytest.approx(total, abs=1e-9)
        assert not paired.select("match_layer", "match_neuron").is_duplicated().any()
        place = ["layer", "neuron", "match_layer", "match_neuron", "rank", "corr"]
        assert paired.join(best, on=place, how="semi").equals(paired)
        first = best.filter(pl.col("rank") == 1)
        cost = found.join(first, on=["layer", "neuron"], validate="1:1", suffix="_best")
        worth = (cost["corr"].abs() if by_size else cost["corr"]).fill_null(0)
        np.testing.assert_allclose(cost["cost"], cost["strength"].clip(0) - worth, atol=1e-12)
        assert (found["cost"] >= 0).all()
        assert row["units"] == len(found) == len(first)
        assert row["candidates"] == FEW
        assert row["matched"] == len(paired)
        assert row["moved"] == (found["rank"].fill_null(-1) != 1).sum()
        assert row["cost"] == pytest.approx(found["cost"].mean())
        assert row["mean_best"] == pytest.approx(first["strength"].mean())
        assert row["mean_corr"] == pytest.approx(strength.mean())
        assert row["mutual"] == first["mutual"].sum()
        assert 0 < row["mean_corr_rotated"] < 1
        for level in whole.table("consistency_levels").filter(of_pair).iter_rows(named=True):
            assert level["matched"] == (strength >= level["level"]).sum()
            assert level["mutual"] == first.filter("mutual", pl.col("strength") >= level["level"]).height
            assert level["matched_rotated"] <= row["matched_rotated"]
    of_levels = (
        whole.table("consistency_levels").group_by("asker", "level").agg(pl.col("mutual", "mutual_rotated").sum())
    )
    anchors = whole.table("anchors").join(of_levels, on=["asker", "level"])
    assert anchors["pairs"].equals(anchors["mutual"].alias("pairs"))
    assert anchors["pairs_rotated"].equals(anchors["mutual_rotated"].alias("pairs_rotated"))


def test_decoders_of_one_stream_have_pw_mcc(tokens, tmp_path, monkeypatch):
    chooser = torch.Generator().manual_seed(0)
    shared = torch.randn(60, 8, generator=chooser)
    directions = {"m0": shared[:48], "gated": shared.flip(0)[:48], "deep": shared}
    streams = {"m0": "one", "gated": "one", "deep": "another"}
    monkeypatch.setattr(Model, "decoder", property(lambda m: Decoder(streams[m.name], directions[m.name])))
    table = study(tmp_path, tokens, stages=("universality",), baseline="permutation").table("consistency")
    there, none = table.row(0, named=True), table.row(1, named=True)
    expected = pw_mcc(directions["m0"], directions["gated"])
    assert (there["match_model"], none["match_model"]) == ("gated", "deep")
    assert there["pw_mcc"] == expected.mean
    assert there["pw_mcc_rotated"] == expected.rotated
    assert (there["pw_mcc_calibrated"], there["pw_mcc_low"], there["pw_mcc_high"]) == expected.calibrated
    assert there["pw_mcc_shared"] == expected.shared.count
    assert none["pw_mcc"] is none["pw_mcc_shared"] is None
    assert there["mean_corr_rotated"] is there["shared"] is there["mutual_rotated"] is None  # nobody rotated anything


def test_layers_alone_and_what_cannot_be_compared(tokens, tmp_path):
    alone = study(tmp_path, tokens, stages=("similarity",))
    assert alone.table("similarity")["asker"].unique().to_list() == ["m0"]
    assert not alone.has("consistency")
    assert "Layers as wholes: m0" in plain(study_view(alone), 200)
    page = write_page(alone, tmp_path / "page.html").read_text()
    assert "How alike layers are as wholes" in page
    with pytest.raises(NothingToCompareError):
        study(tmp_path / "one", tokens, models=three_models()[:1], stages=("similarity",))
    nothing = study(tmp_path / "two", tokens, stages=("statistics",))
    with pytest.raises(InputError, match="nothing to draw similarity of"):
        nothing.plot.similarity()
    with pytest.raises(MissingFileError, match="no one-to-one matches"):
        write_consistency(nothing, tmp_path / "c.json")


def test_of_spans_a_copy_under_a_renumbered_vocabulary_has_the_same_layers(text, tmp_path):  # noqa: F811
    order = np.random.default_rng(0).permutation(1024)
    first = tiny_model("gpt2", 0, "plain")
    other = Model(
        with_rows_moved(tiny_model("gpt2", 0).hf, order), "renumbered", tokenizer=renumbered(order), digest="1" * 64
    )
    config = StudyConfig(
        data=str(text), out=str(tmp_path / "run"), context=32, draws=2, max_tokens=12_000, stages=STAGES, mask=()
    )
    store = quiet(config, models=[first, other])
    table = store.table("similarity").filter(pl.col("layer") == pl.col("match_layer"))
    np.testing.assert_allclose(table.filter(pl.col("measure").is_in(["cka", "cca"]))["calibrated"], 1, atol=1e-6)
    assert store.table("consistency")["mean_corr"][0] == pytest.approx(1, abs=1e-6)


def test_a_small_share_of_the_text_is_read_and_few_layers_are_held():
    models = three_models()
    for tokens, heldout, wanted in (
        (250_000, None, 3906),
        (10**8, None, 65_536),
        (30_000, None, 20 * 64),
        (10**7, 2000, 2000),
    ):
        config = resolve(decide(StudyConfig(max_tokens=tokens, heldout_tokens=heldout, context=64), 3), models)
        assert rows_compared(config) == wanted // 64
    units = Units((4096, 2048, 2048, 16_384, 1))
    assert layer_groups(units, 65_536) == [range(1), range(1, 3), range(3, 4), range(4, 5)]
    assert layer_groups(units, 100) == [range(5)]


def test_the_exported_file_says_what_the_tables_say(whole, tmp_path, capsys):
    target = tmp_path / "new" / "c.json"
    assert exit_code("export", whole.path, "--consistency", "--out", target) == 0
    assert capsys.readouterr().out.strip() == str(target)
    file = Consistency.model_validate_json(target.read_bytes())
    told = json.loads(target.read_text())  # plain JSON: no NaN
    assert json.dumps(told, allow_nan=False)
    assert (told["format"], told["version"], told["study"]) == ("universal-neurons consistency", 1, "run")
    assert [(m.name, m.widths) for m in file.models] == [("m0", (24, 24)), ("gated", (24, 24)), ("deep", (20, 20, 20))]
    assert len(file.layers) == len(whole.table("similarity"))
    first = told["layers"][5]
    assert first == whole.table("similarity").drop("model").row(5, named=True)
    for pair, row in zip(told["pairs"], whole.table("consistency").drop("model").iter_rows(named=True)):
        assert {name: pair[name] for name in row} == row
        partners = pair["partners"]
        assert len({len(values) for values in partners.values()}) == 1
        assert len(partners["unit"]) == row["units"]
        assert sum(partners["mutual"]) == row["mutual"]
        named = [name for name in partners["match"] if name is not None]
        assert len(set(named)) == len(named) == row["matched"]
        chosen = whole.neuron(f"{pair['asker']}/{partners['unit'][3]}")
        assert chosen.layer == int(partners["unit"][3][1])
    schema = Consistency.model_json_schema()
    assert schema["properties"].keys() == told.keys()
    assert write_consistency(whole, target).read_bytes() == target.read_bytes()
    (tmp_path / "mine.txt").write_text("mine")
    for out, said in ((tmp_path / "mine.txt", "file of another kind"), (tmp_path, "is a folder")):
        assert exit_code("export", whole.path, "--consistency", "--out", out) == 2
        assert said in capsys.readouterr().err
    assert exit_code("export", whole.path, "--consistency", "--hf", "--out", target) == 2
    assert "four exports" in capsys.readouterr().err


def test_a_terminal_shows_them(whole):
    shown = plain(study_view(whole), 220)
    for said in ("One to one: gated", "beyond chance", "Layers as wholes: deep"):
        assert said in shown
