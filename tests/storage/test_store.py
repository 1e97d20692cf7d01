"""A study's folder as others leave it: altered, swapped, torn and missing files, links, leftovers, manifests of any kind."""

import contextlib
import json
import os
import random
import shutil

import polars as pl
import pytest
from conftest import exit_code, some_text

from universal_neurons import Store, StudyConfig, run_study
from universal_neurons.disk import sha256_of
from universal_neurons.errors import (
    ConfigError,
    InputError,
    MissingFileError,
    NonFiniteActivationsError,
    StoreConflictError,
    UniversalNeuronsError,
)
from universal_neurons.explorer.unit_rows import UnitRows, pieces_of
from universal_neurons.progress import Reporter
from universal_neurons.storage import StoreWriter, by_present_names


@pytest.fixture(scope="module")
def config(folders, text_file):
    return StudyConfig(
        models=tuple(map(str, folders[:2])), data=str(text_file), draws=2, context=32, max_tokens=2048,
        stages=("statistics", "universality"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(config):
    """Runs the study in a folder; returns the store and what was said."""

    def run(folder, **changes):
        notes = []
        reporter = Reporter(quiet=True)
        reporter.note = notes.append
        store = run_study(config.model_copy(update={"out": str(folder)} | changes), reporter=reporter)
        return store, "\n".join(notes)

    return run


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    return run(tmp_path_factory.mktemp("store") / "run")[0].path


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def contents(folder):
    files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    manifest = json.loads(files.pop("study.json"))
    return files | {"study.json": {key: value for key, value in manifest.items() if key != "timings"}}


def alter(path):
    pl.read_parquet(path).with_columns(is_universal=pl.lit(True)).write_parquet(path)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "altered": lambda folder: alter(folder / "neurons.parquet"),
    "flipped": lambda folder: flip(folder / "neurons.parquet"),
    "torn": lambda folder: (folder / "neurons.parquet").write_bytes((folder / "neurons.parquet").read_bytes()[:-9]),
    "empty": lambda folder: (folder / "neurons.parquet").write_bytes(b""),
    "swapped": lambda folder: shutil.copy(folder / "layers.parquet", folder / "neurons.parquet"),
    "pipe": lambda folder: ((folder / "neurons.parquet").unlink(), os.mkfifo(folder / "neurons.parquet")),
    "folder": lambda folder: ((folder / "neurons.parquet").unlink(), (folder / "neurons.parquet").mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_table_that_is_not_the_one_that_was_written_is_refused_by_name(folder, run, damage, capsys):
    DAMAGES[damage](folder)
    store = Store(folder)
    assert len(store.matches)
    with pytest.raises(StoreConflictError, match=r"neurons\.parquet"):
        _ = store.neurons
    with pytest.raises(StoreConflictError, match=r"neurons\.parquet"):
        repr(Store(folder))
    left = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    with pytest.raises(StoreConflictError, match=r"neurons\.parquet[\s\S]*remove them and run the same command again"):
        run(folder)
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == left
    assert exit_code("check", folder) == 2
    assert "neurons.parquet" in capsys.readouterr().err


def test_histograms_are_checked_too(folder, finished):
    low, high, counts = Store(finished).histogram("m0", 3)
    assert len(low) == len(high) == len(counts)
    flip(folder / "histograms.safetensors")
    with pytest.raises(StoreConflictError, match=r"histograms\.safetensors"):
        Store(folder).histogram("m0", 3)
    for model, neuron in (("m0", 48), ("m0", -1), ("m9", 0)):
        with pytest.raises(MissingFileError, match="no histogram of neuron"):
            Store(finished).histogram(model, neuron)
    (folder / "histograms.safetensors").write_bytes(b"torn")
    with pytest.raises(StoreConflictError, match=r"histograms\.safetensors: cannot be read"):
        Store(folder, verify=False).histogram("m0", 3)


def test_without_verifying_an_altered_table_is_read_and_a_torn_one_named(folder):
    alter(folder / "neurons.parquet")
    assert Store(folder, verify=False).neurons["is_universal"].all()
    (folder / "matches.parquet").write_bytes(b"PAR1" + b"x" * 100)
    with pytest.raises(StoreConflictError, match=r"matches\.parquet: cannot be read"):
        _ = Store(folder, verify=False).matches


def test_a_column_of_an_earlier_version_is_read_by_its_present_name(folder, finished):
    """As before `activation_mean`, in the store and piece by piece."""
    now = Store(finished).neurons
    path = folder / "neurons.parquet"
    now.drop("activation_sd").rename({"activation_mean": "mean_activation"}).write_parquet(path)
    manifest = json.loads((folder / "study.json").read_text())
    manifest["tables"]["neurons"] = sha256_of(path)
    (folder / "study.json").write_text(json.dumps(manifest))
    old = Store(folder)
    assert old.neurons.equals(now.drop("activation_sd"))
    assert now["activation_mean"].is_finite().all()
    assert "activation_mean" in next(pieces_of(old, "neurons")).columns
    model = old.models[0]
    rows = UnitRows(old, "neurons", old.units).take(model, len(old.units[model]))
    assert rows is not None
    assert rows["activation_mean"].equals(now.filter(pl.col("model") == model)["activation_mean"])


def test_a_label_of_an_earlier_version_is_read_by_its_present_name_but_for_ones_own():
    labels = ["start_w_vowel", "previous token: contains_caret", "start_w_digit", "mine", None]
    neurons = pl.DataFrame({"label": labels})
    present = ["starts_w_vowel", "previous token: contains_carrot", *labels[2:]]
    assert by_present_names("neurons", neurons)["label"].to_list() == present
    of_class = by_present_names("effects", pl.DataFrame({"class": labels, "label": labels}))
    assert of_class.to_dict(as_series=False) == {"class": present, "label": labels}
    assert by_present_names("neurons", neurons, own=["start_w_vowel"])["label"].to_list() == [labels[0], *present[1:]]


def test_a_stores_labels_of_an_earlier_version_are_read_by_their_present_names(folder):
    path = folder / "neurons.parquet"
    table = pl.read_parquet(path).with_columns(pl.lit("start_w_capital").alias("label"))
    table.write_parquet(path)
    manifest = json.loads((folder / "study.json").read_text())
    manifest["tables"]["neurons"] = sha256_of(path)
    for own, present in (([], "starts_w_cap"), (["start_w_capital"], "start_w_capital")):
        manifest["labels"] = {"own": own}
        (folder / "study.json").write_text(json.dumps(manifest))
        assert set(Store(folder).neurons["label"]) == {present}
        assert set(next(pieces_of(Store(folder), "neurons"))["label"]) == {present}


def test_without_labels_there_are_no_families(finished):
    with pytest.raises(InputError, match="no labels were looked for"):
        _ = Store(finished).families


def test_a_table_is_read_once(folder):
    store = Store(folder)
    first = store.neurons
    (folder / "neurons.parquet").unlink()
    assert store.neurons is first


@pytest.mark.parametrize("gone", ["neurons.parquet", "histograms.safetensors"])
def test_a_missing_file_is_named_and_made_anew(folder, finished, run, gone, capsys):
    (folder / gone).unlink()
    with pytest.raises(MissingFileError, match=gone):
        Store(folder).neurons if gone == "neurons.parquet" else Store(folder).histogram("m0", 0)
    assert exit_code("check", folder) == 2
    assert gone in capsys.readouterr().err
    store, said = run(folder)
    assert f"{gone} missing" in said
    assert contents(folder) == contents(finished)
    assert "complete already" in run(folder)[1]
    assert len(store.neurons) == 96


def test_the_way_out_of_an_altered_table_is_the_one_that_is_named(folder, finished, run):
    alter(folder / "neurons.parquet")
    (folder / "layers.parquet").unlink()
    with pytest.raises(StoreConflictError, match=r"neurons\.parquet[\s\S]*missing too: layers\.parquet"):
        run(folder)
    (folder / "neurons.parquet").unlink()
    run(folder)
    assert contents(folder) == contents(finished)


def test_check_says_what_is_whole(finished, folders, capsys):
    assert exit_code("check", finished) == 0
    assert "whole; 14 files" in capsys.readouterr().out
    assert exit_code("check", finished, folders[0]) == 2
    assert "checked apart" in capsys.readouterr().err


def test_paths_are_taken_literally(finished, tmp_path, monkeypatch):
    odd = shutil.copytree(finished, tmp_path / "run[1]*?")
    shutil.copytree(finished, tmp_path / "run1")
    alter(tmp_path / "run1" / "neurons.parquet")
    assert Store(odd).neurons.equals(Store(finished).neurons)
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(finished, tmp_path / "~")
    assert Store("~/run[1]*?").path == odd
    assert Store(tmp_path / "~").neurons.equals(Store(finished).neurons)
    with pytest.raises(MissingFileError, match="no study"):
        Store("~/run?")
    with StoreWriter("~/new") as writer:
        assert writer.path == tmp_path / "new"


def test_names_of_tables_lead_nowhere_else(folder, tmp_path):
    shutil.copy(folder / "neurons.parquet", tmp_path / "theirs.parquet")
    for name in ("../theirs", "/etc/passwd", "n*", "neurons.parquet", "histograms", "", "a\0b", "w" * 300):
        with pytest.raises(MissingFileError, match=r"no table(.|\n)*a table of this study: anchors, "):
            Store(folder).table(name)
        assert not Store(folder).has(name)
    manifest = json.loads((folder / "study.json").read_text())
    for name in ("../theirs", "/theirs", "a b", "..", "", "n\n"):
        manifest["tables"] = {name: "0" * 64}
        (folder / "study.json").write_text(json.dumps(manifest))
        with pytest.raises(StoreConflictError, match=r"study\.json: not readable"):
            Store(folder)


def changed(manifest, path, value):
    """A manifest with another value at a place, or without it."""
    made = json.loads(json.dumps(manifest))
    *parents, last = path
    inner = made
    for key in parents:
        inner = inner[key]
    if value is KeyError:
        del inner[last]
    else:
        inner[last] = value
    return made


WRONG = [
    *((("complete",), value) for value in (KeyError, "yes", 1, None, [True])),
    *((("config",), value) for value in (KeyError, None, [], "x", 3)),
    *((("tables",), value) for value in (KeyError, None, [], {"neurons": None}, {"neurons": "abc"})),
    *((("models",), value) for value in (KeyError, None, {}, [], [3], [{"name": "m0"}])),
    *((("models", 0, "name"), value) for value in (KeyError, None, "", 3)),
    *((("models", 0, "d_mlp"), value) for value in (KeyError, None, "24", 0, True, 1 << 40)),
    *((("models", 0, "layers"), value) for value in (KeyError, None, 0, 1 << 40)),
    *((("models", 1, "vocabulary"), value) for value in (None, "257", float("nan"))),
    *((("tokens",), value) for value in (KeyError, [], {}, "x")),
    *((("environment",), value) for value in (KeyError, None, {})),
    *((("counted_tokens",), value) for value in (KeyError, None, "many", 1.5)),
    *((("search",), value) for value in (KeyError, None, [], {"search": []}, {"search": "screened"})),
    *((("timings",), value) for value in (KeyError, None, {"pass": "long"})),
    *((("counted_by_subset",), value) for value in (None, [], {"x": "many"})),
    *((("null",), value) for value in ([], {}, {"draws": 0}, {"draws": "x"})),
    *((("tables",), {"neurons": "0" * 64, "null": "0" * 64}),),
    *((("layout",), value) for value in (None, {"passes": 0}, {"passes": "x"}, {"other": 1})),
]


@pytest.mark.parametrize(("path", "value"), WRONG, ids=lambda part: str(part)[:40])
def test_a_manifest_that_lacks_something_or_has_another_kind_is_named(folder, path, value, run):
    manifest = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps(changed(manifest, path, value)))
    with pytest.raises(StoreConflictError, match=r"study\.json: not readable"):
        Store(folder)
    assert exit_code("show", folder) == 2


def test_settings_that_cannot_be_are_named_by_who_asks_for_them(folder):
    for key, value in (("lanes", KeyError), ("lanes", None), ("dtype", "x"), ("roles", 3)):
        manifest = json.loads((folder / "study.json").read_text())
        (folder / "study.json").write_text(json.dumps(changed(manifest, ("config", key), value)))
        with pytest.raises(ConfigError, match=rf"study\.json: {key} cannot be this"):
            _ = Store(folder).settings
        (folder / "study.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(("path", "value"), [(("sinks",), None), (("models", 0, "widths"), None)])
def test_what_may_be_left_out_of_a_manifest_may_be_null(folder, path, value):
    manifest = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps(changed(manifest, path, value)))
    assert "L0.1" in repr(Store(folder).neuron("L0.1"))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b"3", b'"x"', b"\xff\xfe{}", b"[" * 100_000, b'{"complete": ' + b"9" * 5000 + b"}", b"{}",
     b"\0" * 1000, "{}".encode("utf-16")],
    ids=lambda content: repr(content[:8]),
)  # fmt: skip
def test_what_is_no_manifest_is_named_by_readers_and_writers(folder, content, run):
    (folder / "study.json").write_bytes(content)
    with pytest.raises(StoreConflictError, match=r"study\.json: not readable"):
        Store(folder)
    with pytest.raises(StoreConflictError, match=r"study\.json: not readable"):
        StoreWriter(folder).__enter__()
    assert not (folder / ".lock").exists()


def test_a_manifest_that_never_ends_is_not_read(folder, monkeypatch):
    (folder / "study.json").unlink()
    os.mkfifo(folder / "study.json")
    with pytest.raises(StoreConflictError, match="is not a file"):
        Store(folder)
    (folder / "study.json").unlink()
    (folder / "study.json").symlink_to("/dev/zero")
    with pytest.raises(StoreConflictError, match="is not a file"):
        Store(folder)
    (folder / "study.json").unlink()
    monkeypatch.setattr("universal_neurons.storage.manifest.MOST_BYTES", 1000)
    (folder / "study.json").write_text(" " * 2000)
    with pytest.raises(StoreConflictError, match="more than"):
        Store(folder)


def test_a_manifest_without_its_first_table_is_refused(folder):
    manifest = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps(manifest | {"tables": {}}))
    with pytest.raises(StoreConflictError, match="no table 'neurons'"):
        Store(folder)


def test_flipped_bits_of_a_manifest_are_never_a_traceback(folder):
    whole = (folder / "study.json").read_bytes()
    draw = random.Random(0)
    for _ in range(150):
        content = bytearray(whole)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        (folder / "study.json").write_bytes(content)
        with contextlib.suppress(UniversalNeuronsError):
            store = Store(folder)
            if not store.missing_files():  # of tables whose names were hit
                repr(store)


def test_models_of_another_study_are_told(folder):
    text = (folder / "study.json").read_text()
    (folder / "study.json").write_text(text.replace('"name": "m1"', '"name": "m7"'))
    with pytest.raises(StoreConflictError, match="not of one study"):
        repr(Store(folder))


LEFT = {
    "nothing": lambda folder: None,
    "a lock": lambda folder: (folder / ".lock").touch(),
    "a manifest half written": lambda folder: (folder / ".study.json.partial").write_text("{"),
    "a table half written": lambda folder: (folder / ".neurons.parquet.partial").write_text("PAR1"),
    "rows": lambda folder: ((folder / "work").mkdir(), (folder / "work" / "rows.partial").touch()),
    "rows of spans": lambda folder: (
        (folder / "work").mkdir(),
        *((folder / "work" / name).touch() for name in ("rows-0.i32", "spans-1.partial", "ranges.i32", "text.utf8")),
    ),
    "a checkpoint of nobody's": lambda folder: (folder / "work" / "checkpoint-00000003").mkdir(parents=True),
    "new tables": lambda folder: ((folder / ".rewriting").mkdir(), (folder / ".rewriting" / "heads.parquet").touch()),
    "a figure half written": lambda folder: (
        (folder / "figures").mkdir(), (folder / "figures" / ".convergence.svg.partial").touch()
    ),
}  # fmt: skip


@pytest.mark.parametrize("left", LEFT)
def test_what_our_own_writer_left_is_no_obstacle(tmp_path, left):
    LEFT[left](tmp_path)
    with StoreWriter(tmp_path) as writer:
        writer.claim({"config": {}, "models": []})
        assert writer.load_snapshot() is None
    assert [path.name for path in tmp_path.iterdir()] == ["study.json"]


FOREIGN = {
    "a file": lambda folder: (folder / "thesis.tex").write_text("years of work"),
    "a file in work": lambda folder: ((folder / "work").mkdir(), (folder / "work" / "thesis.tex").write_text("work")),
    "a figure": lambda folder: ((folder / "figures").mkdir(), (folder / "figures" / "mine.svg").write_text("work")),
    "a table": lambda folder: (folder / "neurons.parquet").write_text("work"),
    "a hidden file": lambda folder: (folder / ".thesis.partial").write_text("work"),
}


@pytest.mark.parametrize("foreign", FOREIGN)
def test_foreign_files_are_refused_and_stay(tmp_path, foreign):
    FOREIGN[foreign](tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(StoreConflictError, match="not a study"):
        StoreWriter(tmp_path).__enter__()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", [".lock", "work", ".rewriting", "figures", "steps"])
def test_a_link_in_the_place_of_our_own_is_refused_by_name(folder, tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    target = elsewhere / "theirs" if name == ".lock" else elsewhere
    (elsewhere / "theirs").write_text("years of work")
    (folder / name).symlink_to(target)
    with pytest.raises(StoreConflictError, match=rf"{name}: is a symbolic link"):
        StoreWriter(folder).__enter__()
    if name == "figures":
        with pytest.raises(StoreConflictError, match="is a symbolic link"):
            Store(folder).write_page("figures/a.svg", b"ours")
    assert (elsewhere / "theirs").read_text() == "years of work"
    assert [path.name for path in elsewhere.iterdir()] == ["theirs"]


def test_links_inside_the_scratch_folder_and_of_files_lead_no_write_away(folder, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.write_text("years of work")
    for name in (".neurons.parquet.partial", ".study.json.partial", ".report.html.partial", "report.html"):
        (folder / name).symlink_to(theirs)
    with StoreWriter(folder) as writer:
        writer.write_table("neurons", pl.DataFrame({"a": [1]}))
        writer.write_manifest(writer.require_same({}))
    Store(folder).write_page("report.html", b"ours")
    assert (folder / "report.html").read_bytes() == b"ours"
    assert theirs.read_text() == "years of work"
    (folder / "work").mkdir()
    (folder / "work" / "lanes").symlink_to(tmp_path)
    with pytest.raises(StoreConflictError, match="lanes: is a symbolic link"):
        StoreWriter(folder).__enter__()


def test_places_that_cannot_be_are_named(tmp_path):
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "file").touch()
    for place, words in (
        (tmp_path / "nowhere", "link to nothing"),
        (tmp_path / "nowhere" / "run", "link to nothing"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "run", "cannot be written"),
        (tmp_path / ("w" * 300), "cannot be a path"),
        ("~nosuchuser/run", "cannot be a path"),
    ):
        with pytest.raises(StoreConflictError, match=words):
            StoreWriter(place).__enter__()
    assert {path.name for path in tmp_path.iterdir()} == {"nowhere", "file"}
    with pytest.raises(MissingFileError, match="no study"):
        Store(tmp_path / "file")


def refused(run, folder, error, **changes):
    with pytest.raises(error):
        run(folder, **changes)


@pytest.mark.parametrize("existing", [False, True])
def test_after_any_refusal_the_folder_is_free(run, tmp_path, text_file, monkeypatch, existing):
    folder = tmp_path / "a" / "run"
    if existing:
        folder.mkdir(parents=True)
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 500)
    (tmp_path / "own.yaml").write_text("- not\n- labels")
    refused(run, folder, InputError, data=str(tmp_path / "short.txt"))
    refused(run, folder, InputError, data=str(tmp_path / "none.txt"))
    refused(run, folder, InputError, data=str(tmp_path / "latin.txt"))
    refused(run, folder, InputError, subset=("nowhere",))
    refused(run, folder, InputError, stages=("labels",), labels=(str(tmp_path / "own.yaml"),))
    refused(run, folder, InputError, mask=(5000,))
    assert folder.exists() == existing
    assert not existing or not any(folder.iterdir())
    with monkeypatch.context() as patched:  # not a named error: a defect of ours
        patched.setattr("universal_neurons.features.readers.TokenDataset.load", lambda *_, **__: [][0])
        refused(run, folder, IndexError, data=str(tmp_path / "short.txt"))
    store, _ = run(folder, data=str(text_file))
    assert len(store.neurons) == 96


def test_trouble_with_the_text_is_not_blamed_on_the_folder(run, tmp_path, monkeypatch):
    def unreadable(*_, **__):
        raise PermissionError(13, "Permission denied", "corpus.txt")

    monkeypatch.setattr("universal_neurons.features.readers.TokenDataset.load", unreadable)
    with pytest.raises(PermissionError, match=r"corpus\.txt") as caught:
        run(tmp_path / "run")
    assert "cannot be written" not in str(caught.value)


def test_a_study_that_stopped_before_anything_was_found_makes_room(run, folders, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise NonFiniteActivationsError("NaN")

    with monkeypatch.context() as patched:
        patched.setattr("universal_neurons.study.stages.Passes.run", stop)
        refused(run, tmp_path / "run", NonFiniteActivationsError)
    assert (tmp_path / "run" / "study.json").exists()
    (tmp_path / "other.txt").write_text(some_text(1500, 5))
    store, _ = run(tmp_path / "run", data=str(tmp_path / "other.txt"))
    assert store.config.data == str(tmp_path / "other.txt")
    assert contents(tmp_path / "run") == contents(run(tmp_path / "alone", data=str(tmp_path / "other.txt"))[0].path)


def test_a_study_that_found_something_does_not(tmp_path):
    for costly in (
        "work/checkpoint-00000001/manifest.json",
        "matches.parquet",
        "work/lanes/0/x",
        "steps/1/neurons.parquet",
    ):
        folder = tmp_path / costly.replace("/", "-")
        with StoreWriter(folder) as writer:
            writer.claim({"config": {"seed": 1}})
        (folder / costly).parent.mkdir(parents=True, exist_ok=True)
        (folder / costly).write_text("long sought")
        with (
            StoreWriter(folder) as writer,
            pytest.raises(StoreConflictError, match=r"another study[\s\S]*config\.seed"),
        ):
            writer.claim({"config": {"seed": 2}})
        assert (folder / costly).read_text() == "long sought"


def test_its_site_stands_beside_it_however_the_folder_is_named(folder, monkeypatch):
    store = Store(folder)
    assert store.site == store.path.with_name(f"{store.path.name}-site")
    monkeypatch.chdir(store.path)
    assert Store(".").site == store.path.resolve().with_name(f"{store.path.name}-site")
