"""A study as a dataset: what `datasets` loads of it is what the tables say, and the card shows names as they stand."""

import html
import re

import datasets
import polars as pl
import pytest
import yaml
from conftest import exit_code
from markdown_it import MarkdownIt

from universal_neurons.errors import StoreConflictError
from universal_neurons.explorer import write_dataset
from universal_neurons.explorer.dataset import STRINGS, TABLES, escaped

pytest_plugins = ["explored"]

UNTOLD = {"details", "effect_histograms", "class_histograms", "head_scores", "attention_samples"}  # what figures draw


def parts_of(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    _, front, words = card.split("---\n", 2)
    return yaml.safe_load(front), words


def test_every_table_loads_and_says_what_the_study_says(study, tmp_path):
    folder = write_dataset(study, tmp_path / "d")
    about, words = parts_of(folder)
    named = [config["config_name"] for config in about["configs"]]
    assert set(named) == {name for name in study.manifest["tables"] if name != "histograms"} - UNTOLD
    assert [config["config_name"] for config in about["configs"] if config.get("default")] == ["neurons"]
    assert about["size_categories"] == ["1K<n<10K"]
    strings = study.strings
    for name in named:
        loaded = datasets.load_dataset(str(folder), name, split="train", cache_dir=str(tmp_path / "cache"))
        table = pl.from_arrow(loaded.data.table)
        own = study.table(name)
        assert table.select(own.columns).equals(own.cast(dict(table.select(own.columns).schema)))
        for source, column in STRINGS.get(name, {}).items():
            for tokens, shown in zip(own[source].to_list(), table[column].to_list()):
                wanted = [strings[token] for token in tokens] if isinstance(tokens, list) else strings[tokens]
                assert shown == wanted
        assert f"### {name}\n\nA row per {TABLES[name]}. {len(own):,} rows." in words
        assert all(f"`{column}`" in words for column in own.columns)


def test_copied_tables_are_the_same_bytes_and_so_is_the_whole(study, tmp_path):
    first, again = write_dataset(study, tmp_path / "a"), write_dataset(study, tmp_path / "b")
    for path in first.rglob("*.*"):
        assert path.read_bytes() == (again / path.relative_to(first)).read_bytes()
        if path.suffix == ".parquet" and path.stem not in STRINGS:
            assert path.read_bytes() == (study.path / path.name).read_bytes()


def test_no_path_of_this_machine_is_told(study, folders, tmp_path):
    folder = write_dataset(study, tmp_path / "d")
    for path in folder.rglob("*.*"):
        content = path.read_bytes()
        for place in (study.path, tmp_path, folders[0].parent):
            assert str(place).encode() not in content, path


def test_names_are_shown_as_they_stand(odd_store, tmp_path):
    about, words = parts_of(write_dataset(odd_store, tmp_path / "d"))
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(words)
    assert set(re.findall(r"</?([a-z0-9]+)", page)) <= {*"p code table thead tbody tr th td h1 h2 h3".split()}  # noqa: SIM905
    cells = [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", page)]
    from universal_neurons.legible import legible

    assert {legible(name) for name in odd_store.models} <= set(cells)
    assert "\n" not in about["pretty_name"]


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "[a](http://b)", "http://evil.example", "www.evil.example", "*a* _b_ `c`", "a | b", "&lt;", "# a", "- a", "1. a", "~~a~~", "![x](y)", "\\*", "$x$"]
)  # fmt: skip
def test_text_is_no_markdown(text):
    page = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(f"x {escaped(text)} y")
    assert page == f"<p>x {html.escape(text, quote=False)} y</p>\n"


def test_the_commands(study, tmp_path, capsys):
    assert exit_code("export", study.path, "--hf", "--out", tmp_path / "d") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "d")
    assert exit_code("export", study.path, "--neuronpedia", "--out", tmp_path / "n") == 0
    assert sorted(path.name for path in (tmp_path / "n").iterdir()) == study.models
    refused = {
        "four exports": [study.path, "--hf", "--neuronpedia", "--out", tmp_path / "x"],
        "--csv, --hf": [study.path, "--hf", "--csv", "--out", tmp_path / "x"],
        "--hf is of one study": [study.path, study.path, "--hf", "--out", tmp_path / "x"],
        "holds files": [study.path, "--hf", "--out", tmp_path / "d"],
    }
    for said, arguments in refused.items():
        assert exit_code("export", *arguments) in (1, 2)
        assert said in capsys.readouterr().err
    (tmp_path / "dynamics").mkdir()
    (tmp_path / "dynamics" / "dynamics.json").write_text("{}")
    assert exit_code("export", tmp_path / "dynamics", "--neuronpedia", "--out", tmp_path / "x") == 2
    assert "the study of a checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    with pytest.raises(StoreConflictError):
        write_dataset(study, tmp_path / "n")
