"""`only_subset`: a study of some subsets is the study of a text in which nothing else is."""

import json

import numpy as np
import polars as pl
import pytest
from conftest import exit_code, small_tokenizer, some_text

import universal_neurons as un
from universal_neurons.config import StudyConfig
from universal_neurons.errors import ConfigError, TextError
from universal_neurons.progress import Reporter
from universal_neurons.report import summary
from universal_neurons.study import decide
from universal_neurons.text import TokenDataset

RECORDS = [{"text": some_text(400, seed), "subset": "abc"[seed % 3]} for seed in range(18)]
SHORT = {"text": "too short", "subset": "short"}


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """The whole text, and that of two of its three subsets."""
    folder = tmp_path_factory.mktemp("texts")
    some = [record for record in RECORDS if record["subset"] != "b"]
    return write(folder / "all.jsonl", [*RECORDS, SHORT]), write(folder / "some.jsonl", some)


def rows_of(data, only=(), **settings):
    config = StudyConfig(data=data, only_subset=only, **settings)
    return TokenDataset.load(config, small_tokenizer(), context=64)


def test_the_rows_are_those_of_a_text_of_these_subsets_alone(texts):
    everything, some = texts
    restricted, alone = rows_of(everything, ("a", "c")), rows_of(some)
    assert restricted.fingerprint == alone.fingerprint
    assert restricted.subset_names == ("a", "c")
    np.testing.assert_array_equal(restricted.ids(np.arange(len(alone))), alone.ids(np.arange(len(alone))))
    assert rows_of(everything).subset_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("only", "settings", "wanted"),
    [
        (("nowhere",), {}, r"no subset 'nowhere'[\s\S]*given:  a, b, c, short"),
        (("a", "nowhere"), {}, "no subset 'nowhere'"),
        (("a", "short"), {}, "no row of subset 'short'"),
        (("b",), {"subset_column": "nowhere"}, "no column 'nowhere'"),
    ],
)
def test_a_subset_that_is_not_there_is_refused_by_name(texts, only, settings, wanted):
    with pytest.raises(TextError, match=wanted):
        rows_of(texts[0], only, **settings)


def test_a_text_without_subsets_is_refused(text_file):
    with pytest.raises(TextError, match="names no subsets"):
        rows_of(str(text_file), ("a",))


def test_it_is_refused_where_it_would_be_ignored(tmp_path):
    with pytest.raises(ConfigError, match="weights alone need none"):
        decide(StudyConfig(stages=("weights",), only_subset=("a",)), 1)
    assert "only_subset" not in StudyConfig().stored()
    assert StudyConfig(only_subset="a").stored()["only_subset"] == ["a"]


def test_a_study_of_a_subset_is_recorded_replayed_and_printed(
    texts, folders, tmp_path, few_figures, capsys, monkeypatch
):
    everything, some = texts
    common = ["--models", *folders[:2], "--draws", 2, "--stages", "universality", "--subset", "all"]
    assert exit_code("run", *common, "--data", everything, "--only-subset", "a", "c", "--out", tmp_path / "r") == 0
    printed = capsys.readouterr().out
    manifest = json.loads((tmp_path / "r/study.json").read_text())
    assert manifest["config"]["only_subset"] == ["a", "c"]
    assert exit_code("run", "-c", tmp_path / "r/study.json", "--out", tmp_path / "again") == 0
    assert exit_code("run", *common, "--data", some, "--out", tmp_path / "some") == 0
    tables = [json.loads((tmp_path / name / "study.json").read_text())["tables"] for name in ("r", "again", "some")]
    assert tables[0] == tables[1] == tables[2]
    assert "Within subsets (excess > 0.5)" in printed
    assert exit_code("show", tmp_path / "r") == 0
    page = (tmp_path / "r/report.html").read_text()
    for told in (printed, capsys.readouterr().out, page):
        told = " ".join(told.replace("│", " ").split())
        assert "This study reads documents of the subsets a, c alone (--only-subset)." in told
        assert "The counts within a, c rest on little text: fewer than 5,000 tokens." in told
    rows = {line.split("│")[1].strip(): line for line in printed.splitlines() if line.startswith("│ ")}
    found = pl.read_parquet(tmp_path / "r/subsets.parquet")
    store = un.Store(tmp_path / "r")
    tokens = rows_of(everything, ("a", "c"))
    chosen, _ = tokens.split()
    for number, name in enumerate("ac"):
        of_subset = found.filter((pl.col("subset") == name) & pl.col("excess_corr").is_finite())
        counted = tokens.mask(chosen[tokens.subsets[chosen] == number]).sum()
        wanted = [name, f"{counted:,}"]
        wanted += [str((of_subset[column] > 0.5).sum()) for column in ("excess_standardised", "excess_corr")]
        assert [cell.strip() for cell in rows[name].strip("│").split("│")][:4] == wanted
        assert store.manifest["counted_by_subset"][name] == counted
    less, more = sorted(store.manifest["counted_by_subset"].items(), key=lambda each: each[1])
    assert less[1] < more[1]
    monkeypatch.setattr(summary, "LITTLE_TOKENS", more[1])
    assert summary.little_sentence(store).startswith(f"The counts within {less[0]} rest on")
    monkeypatch.setattr(summary, "LITTLE_TOKENS", less[1])
    assert not summary.little_sentence(store)
    assert not summary.only_sentence(un.Store(tmp_path / "some"))
    assert exit_code("run", *common, "--data", everything, "--only-subset", "d", "--out", tmp_path / "no") == 2
    assert "no subset 'd'" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_sketches_keep_it(texts, folders, tmp_path):
    sketches = []
    for number, folder in enumerate(folders[:2]):
        out = str(tmp_path / f"{number}.safetensors")
        config = StudyConfig(models=(str(folder),), data=texts[0], only_subset=("a",), search="sketch", out=out)
        sketches.append(str(un.make_sketch(config, reporter=Reporter(quiet=True))))
    settings = {"models": tuple(sketches), "search": "screened", "draws": 2, "stages": ("universality",)}
    store = un.run_study(StudyConfig(**settings, out=str(tmp_path / "r")), progress=False)
    tokens = rows_of(texts[0], ("a",))
    assert store.config.only_subset == ("a",)
    assert store.manifest["tokens"]["fingerprint"] == tokens.fingerprint
    assert store.manifest["counted_tokens"] == tokens.mask(tokens.split()[0]).sum()
    with pytest.raises(ConfigError, match="only_subset is decided by the sketches"):
        un.run_study(StudyConfig(**settings, only_subset=("a",), out=str(tmp_path / "no")), progress=False)
