"""`uneurons check` of models whose tokenizers differ: how well they fit, and that `run` refuses them."""

import json
import shutil

import pytest
from conftest import exit_code, save_tiny, small_tokenizer, some_text
from rich.console import Console
from tokenizer_kinds import kinds

from universal_neurons import StudyConfig, run_study
from universal_neurons.errors import ArchitectureError, TokenizerError
from universal_neurons.study import check_models
from universal_neurons.text import Passages


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models of one tokenizer, one of another."""
    root = tmp_path_factory.mktemp("models")
    made = [save_tiny(root / name, seed=seed) for seed, name in enumerate(("a", "b", "c"))]
    kinds()["WordPiece, BERT"].save_pretrained(made[2])
    return made


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "t.txt"
    path.write_text(some_text(3000) + "\0 ")
    return path


def printed(*given, **named) -> str:
    console = Console(record=True, width=200)
    console.print(check_models([str(name) for name in given], **named))
    return " ".join(console.export_text().split())


def test_it_says_how_well_two_tokenizers_fit_and_run_says_the_same(folders, text, tmp_path):
    said = printed(folders[0], folders[2], data=str(text))
    config = StudyConfig(data=str(text), max_tokens=100_000)
    table = Passages.load(config, {"a": small_tokenizer(), "c": kinds()["WordPiece, BERT"]}, context=64).fit_table()
    for row in table.iter_rows(named=True):
        assert f"{row['model']} │ {row['tokens']:,} │ {row['tokens_per_span']:.2f} │ {row['own_fraction']:.1%}" in said
    assert f"of {table['bytes'][0]:,} bytes: other text 2" in said
    assert f"{table['spans'][0]:,} spans" in said
    assert "They work together: 2 models, several tokenizers" in said
    out = str(tmp_path / "run")
    study = config.model_copy(update={"models": (str(folders[0]), str(folders[2])), "context": 64, "out": out})
    study = study.model_copy(update={"stages": ("universality",), "draws": 2})
    assert run_study(study, progress=False).table("spans").equals(table)


def test_of_one_tokenizer_it_reads_no_text_unless_one_is_named(folders, text):
    assert "tokens a span" not in printed(*folders[:2])
    said = printed(*folders[:2], data=str(text))
    assert "│ 1.00 │ 100.0% │ none" in said
    assert "They work together: 2 models, one tokenizer." in said
    assert "architecture" in said
    assert "family" not in said
    assert "error: how far what is read as activations is from what the MLPs add by them" in said


def test_the_bundled_text_is_read_by_default_and_by_the_tokenizer_that_is_named_too(folders, tmp_path):
    kinds()["byte-level"].save_pretrained(tmp_path)
    said = printed(*folders[:2], tokenizer=str(tmp_path))
    assert "Tokenizers on the bundled text" in said
    assert f"--tokenizer {tmp_path}"[:20] in said
    assert "`uneurons run` refuses them: different tokenizers" in said


def test_a_model_without_a_tokenizer_beside_others_that_differ_is_named(folders, tmp_path):
    bare = shutil.copytree(folders[0], tmp_path / "bare")
    for file in bare.glob("*token*"):
        file.unlink()
    with pytest.raises(TokenizerError, match="bare has no tokenizer, and the others' differ"):
        check_models([str(folders[0]), str(folders[2]), str(bare)])


def test_all_that_keeps_models_apart_is_named_at_once(folders, tmp_path):
    small = save_tiny(tmp_path / "small", vocab_size=100)
    with pytest.raises(ArchitectureError, match=r"TokenRangeError(.|\n)*MissingFileError"):
        check_models([str(folders[2]), str(small)], data=str(tmp_path / "nowhere.txt"))


def test_the_command_takes_a_text_for_models_and_none_for_studies(folders, text, tmp_path, capsys):
    assert exit_code("check", folders[0], folders[2], "--data", text) == 0
    assert "tokens a span" in capsys.readouterr().out
    (tmp_path / "study.json").write_text(json.dumps({"complete": True}))
    assert exit_code("check", tmp_path, "--data", text) == 2
