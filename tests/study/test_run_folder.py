"""The folder that a study goes to where none is named."""

from pathlib import Path

import pytest

from universal_neurons.study import run_folder


@pytest.mark.parametrize(
    ("name", "data", "folder"),
    [
        ("a-vs-b", "bundled", "runs/a-vs-b"),
        ("a-vs-b", "/data/corpus.txt.gz", "runs/a-vs-b-on-corpus"),
        ("org/a-vs-x\0y", "bundled", "runs/org-a-vs-x-y"),
        ("x" * 180, "bundled", "runs/" + "x" * 180),
    ],
)
def test_it_is_named_after_models_and_text(name, data, folder):
    assert run_folder(name, data) == folder


@pytest.mark.parametrize("long", ["x" * 4000, "é" * 2000, "a" + "漢" * 2000])
def test_a_long_name_is_cut_where_a_file_can_have_it_and_others_differ(tmp_path, monkeypatch, long):
    monkeypatch.chdir(tmp_path)
    folders = [Path(run_folder(long + end, data)) for end in ("", "y") for data in ("bundled", "c.txt")]
    assert len(set(folders)) == 4
    for folder in folders:
        folder.mkdir(parents=True)
        (folder.parent / f".{folder.name}-site.partial").mkdir()
        assert folder.name.startswith(long[:50])
