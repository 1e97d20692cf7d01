"""Anchors in whole studies: the column and the table against the table of matches, and what is shown of them."""

import json
import re
import shutil

import numpy as np
import polars as pl
import pytest
from conftest import alike_models, exit_code, tiny_model
from test_correlation import some_tokens
from test_study import quiet

from universal_neurons import Store, StudyConfig, TokenDataset
from universal_neurons.errors import InputError
from universal_neurons.report import anchors_view, study_view, write_report
from universal_neurons.report.facts import asker_lines
from universal_neurons.terminal import plain

NAMES = ("m0", "m1", "m2")
DEAD = (0, 5)


@pytest.fixture(scope="module")
def models():
    """One network, and two that are like it; a neuron of the first is dead."""
    made = alike_models(NAMES)
    made[0].blocks[0].mlp.c_fc.weight[:, DEAD[1]] = 0
    return made


def study(models, out, **more):
    settings = {"out": str(out), "draws": 2, "stages": ("universality",)} | more
    return quiet(StudyConfig(**settings), models=models, tokens=some_tokens(80))


@pytest.fixture(scope="module")
def store(models, tmp_path_factory):
    return study(models, tmp_path_factory.mktemp("anchors") / "run", stages=("universality", "labels"))


def least_of(store, asker):
    """The least |ρ| of the neurons that the table of matches says are mutual in every other model."""
    best = {}
    for row in store.matches.filter((pl.col("asker") == asker) & (pl.col("rank") == 1)).iter_rows(named=True):
        best.setdefault((row["layer"], row["neuron"]), []).append((row["mutual"], abs(row["corr"])))
    return {at: min(size for _, size in rows) for at, rows in best.items() if all(mutual for mutual, _ in rows)}


def test_the_column_and_the_counts_are_those_of_the_table_of_matches(store, models, tmp_path):
    for of, askers in ((store, NAMES[:1]), (study(models, tmp_path / "all", pairs="all"), NAMES)):
        assert of.table("anchors")["asker"].unique(maintain_order=True).to_list() == list(askers)
        for name in NAMES:
            rows = of.neurons.filter(pl.col("model") == name)
            if name not in askers:
                assert rows["mutual_all"].is_null().all()
                continue
            least = least_of(of, name)
            assert 3 < len(least) < 47
            found = rows.filter("mutual_all").select("layer", "neuron").rows()
            assert set(found) == least.keys()
            assert rows["mutual_all"].null_count() == 0
            universal = set(rows.filter("is_universal").select("layer", "neuron").rows())
            best = of.matches.filter((pl.col("asker") == name) & (pl.col("rank") == 1) & pl.col("mutual"))
            for row in of.table("anchors").filter(pl.col("asker") == name).iter_rows(named=True):
                above = {at for at, size in least.items() if size >= row["level"]}
                assert (row["anchors"], row["universal"]) == (len(above), len(above & universal))
                assert row["pairs"] == (best["corr"].abs() >= row["level"]).sum()
                assert 0 <= row["anchors_rotated"] <= row["pairs_rotated"] <= 96
    assert DEAD not in least_of(store, "m0")
    assert store.neurons.filter((pl.col("model") == "m0") & pl.col("dead"))["mutual_all"].to_list() == [False]


def test_of_a_subset_they_are_those_of_its_text(models, tmp_path):
    """The text is one subset: its matches are the whole's."""
    draw = np.random.default_rng(0)
    tokens = TokenDataset.from_pieces(
        [("prose", draw.integers(1, 1024, 39)) for _ in range(60)], context=40, bos=0, masked=(0,)
    )
    config = StudyConfig(out=str(tmp_path / "run"), draws=2, stages=("universality",), subset=("prose",))
    of = quiet(config, models=models, tokens=tokens)
    assert of.subsets["mutual_all"].to_list() == of.neurons["mutual_all"][:48].to_list()
    assert of.subsets["mutual_all"].any()


@pytest.mark.parametrize("search", ["screened", "sketch"])
def test_other_searches_have_them(models, tmp_path, search):
    of = study(models, tmp_path / search, search=search, group_size=4)
    assert set(of.neurons.filter("mutual_all").select("layer", "neuron").rows()) == least_of(of, "m0").keys()
    assert of.table("anchors")["anchors_rotated"].null_count() == 0


def test_they_are_listed_with_their_matches_beside_chance(store, capsys):
    assert exit_code("show", store.path, "--anchors") == 0
    assert "Anchors of m0" in capsys.readouterr().out
    text = plain(anchors_view(store), 160)
    listed = re.findall(r"│ (L\d+\.\d+) +│ (\S+) +│", text)
    least = least_of(store, "m0")
    assert [name for name, _ in listed] == [
        f"L{layer}.{neuron}" for layer, neuron in sorted(least, key=lambda at: -least[at])
    ]
    for (_, shown), size in zip(listed, sorted(least.values(), reverse=True)):
        assert float(shown) == pytest.approx(size, abs=0.005 + 1e-9)
    assert text.count("⇄") == 2 * len(least)
    assert re.search(r"┃ fires +┃", text)
    levels = store.table("anchors").filter(pl.col("level").is_in([0.0, 0.3, 0.5, 0.7, 0.9]))
    for title, column in (
        ("anchors", "anchors"),
        ("anchors in a random basis", "anchors_rotated"),
        ("mutual pairs", "pairs"),
    ):
        line = next(line for line in text.splitlines() if line.startswith(f"│ {title} "))
        assert [int(n) for n in re.findall(r"│ (\d+) ", line)] == levels[column].to_list()


def test_a_line_of_the_summary_and_a_table_of_the_page_tell_of_them(store, few_figures):
    lines = dict(asker_lines(store, "m0"))
    every, half = (store.table("anchors").row(place, named=True) for place in (0, 5))
    assert half["level"] == 0.5
    told = f"{every['anchors']} anchors (mutual in every model), {half['anchors']} of them at ρ ≥ 0.50; "
    told += f"in a random basis {every['anchors_rotated']} and {half['anchors_rotated']}; "
    assert told in lines["matches"]
    assert len(lines) <= 10
    write_report(store)
    page = (store.path / "report.html").read_text()
    assert told in page
    assert f"<td>anchors in a random basis</td><td>{every['anchors_rotated']}</td>" in page


def test_the_permutation_baseline_says_no_number_of_a_random_basis(models, tmp_path):
    of = study(models, tmp_path / "run", baseline="permutation")
    assert of.table("anchors")["pairs_rotated"].is_null().all()
    matches = dict(asker_lines(of, "m0"))["matches"]
    assert "anchors (mutual in every model)" in matches
    assert "random basis" not in matches
    assert re.search(r"anchors in a random basis +│ –", plain(anchors_view(of), 120))


def test_where_there_is_none_that_is_said(tmp_path):
    """Of a reference without a living neuron."""
    models = [tiny_model("gpt2", seed, f"m{seed}") for seed in range(2)]
    for block in models[0].blocks:
        block.mlp.c_fc.weight.zero_()
    of = study(models, tmp_path / "run")
    assert of.neurons["mutual_all"][:48].to_list() == [False] * 48
    numbers = of.table("anchors").select(pl.exclude("asker", "level")).to_numpy()
    np.testing.assert_array_equal(numbers, 0)
    assert "No neuron of m0 has a mutual match in every other model." in plain(anchors_view(of), 100)


def test_a_study_that_keeps_no_anchors_is_refused(store, models, tmp_path, capsys):
    older = shutil.copytree(store.path, tmp_path / "older")
    manifest = json.loads((older / "study.json").read_text())
    del manifest["tables"]["anchors"]
    (older / "study.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="no anchors") as refused:
        anchors_view(Store(older))
    assert "another folder" in refused.value.fix
    assert "anchors" not in plain(study_view(Store(older)), 100)
    alone = study(models[:1], tmp_path / "alone", stages=("labels",))
    assert exit_code("show", alone.path, "--anchors") == 2
    assert "asked about no matches" in capsys.readouterr().err
    assert exit_code("show", store.path, "L0.1", "--anchors") == 2
    assert "--anchors is of a study" in capsys.readouterr().err
    (tmp_path / "dynamics.json").write_text("{}")
    assert exit_code("show", tmp_path, "--anchors") == 2
    assert "steps" in capsys.readouterr().err


def test_odd_names_stand_as_they_are(odd_store):
    assert len(plain(anchors_view(odd_store), 200).splitlines()) > 20
