"""A folder, or files in it, that somebody removes while a study is written into it."""

import json
import shutil

import polars as pl
import pytest

from universal_neurons.errors import StoreRemovedError
from universal_neurons.storage import StoreWriter

MANIFEST = {"config": {}, "models": []}
REMOVALS = {
    "the folder": lambda folder: shutil.rmtree(folder),
    "the folder, another made in its place": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    "the folder, moved away": lambda folder: folder.rename(folder.with_name("elsewhere")),
    "a table": lambda folder: (folder / "neurons.parquet").unlink(),
}


def write(folder, removal):
    with StoreWriter(folder) as writer:
        writer.begin(MANIFEST)
        hashes = {"neurons": writer.write_table("neurons", pl.DataFrame({"a": [1]}))}
        removal(folder)
        return writer.finish(MANIFEST | {"tables": hashes})


@pytest.mark.parametrize("removal", REMOVALS)
def test_what_was_removed_is_named_and_nothing_is_said_to_be_complete(tmp_path, removal):
    with pytest.raises(StoreRemovedError, match=r"removed while it was written[\s\S]*run the same command again"):
        write(tmp_path / "run", REMOVALS[removal])
    manifests = list(tmp_path.rglob("study.json"))
    assert not any(json.loads(path.read_text())["complete"] for path in manifests)
    assert not list(tmp_path.rglob("*.partial"))


def test_what_another_writer_put_in_its_place_is_left_alone(tmp_path):
    folder = tmp_path / "run"
    first = StoreWriter(folder).__enter__()
    first.begin(MANIFEST)
    first.prepare()
    shutil.rmtree(folder)
    with StoreWriter(folder) as second:
        second.begin(MANIFEST | {"labels": ["another's"]})
        (second.prepare() / "rows.i32").write_bytes(b"theirs")
        with pytest.raises(StoreRemovedError):
            first.__exit__(None, None, None)
        assert (folder / ".lock").exists()
        assert (folder / "work" / "rows.i32").read_bytes() == b"theirs"


@pytest.mark.parametrize("kind", [FileNotFoundError, RuntimeError, KeyboardInterrupt])
def test_whatever_stops_the_pass_the_removal_is_named_but_an_interruption_stays_one(tmp_path, kind):
    def stop(folder):
        shutil.rmtree(folder)
        raise kind(2, "No such file", "elsewhere")

    with pytest.raises(kind if kind is KeyboardInterrupt else StoreRemovedError):
        write(tmp_path / "run", stop)


def test_a_scratch_file_that_is_gone_is_named_and_a_file_elsewhere_is_not_ours(tmp_path):
    def read(path):
        with StoreWriter(tmp_path / "run") as writer:
            writer.begin(MANIFEST)
            path.read_bytes()

    with pytest.raises(StoreRemovedError, match=r"rows\.i32"):
        read(tmp_path / "run" / "work" / "rows.i32")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "corpus.txt")
