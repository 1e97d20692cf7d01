"""The file of a portable sketch: its hashes, what of it may be damaged, and how it is made in parts."""

import hashlib
import json
import os
import random
import shutil

import pytest
import torch
from conftest import save_tiny
from safetensors import safe_open
from safetensors.torch import save_file
from test_sketched import sketch_of

from universal_neurons.cli import main
from universal_neurons.disk import partial_of
from universal_neurons.errors import MissingFileError, SketchError, StoreConflictError, TextError
from universal_neurons.features.sketched import SketchedModel
from universal_neurons.storage import Generations, SketchFile, scratch_folder, scratch_of
from universal_neurons.storage.sketch_file import FORMAT, hash_key, seal_of

SMALL = {"max_tokens": 2_000, "context": 32, "group_size": 4}


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr("universal_neurons.text.tokens.SHARD_POSITIONS", 256)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "m", n_embd=8, n_inner=8)


@pytest.fixture(scope="module")
def whole(model, text_file, tmp_path_factory):
    """A sketch that nobody disturbed."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("universal_neurons.text.tokens.SHARD_POSITIONS", 256)
        return sketch_of(model, text_file, tmp_path_factory.mktemp("sketch") / "m.safetensors", **SMALL).read_bytes()


def said_by(path):
    """All that a sketch says."""
    file = SketchFile(path)
    tensors = {name: file.get(name) for name in file.tensors.keys()}  # noqa: SIM118
    return file.about, tensors


def same(one, two):
    assert one[0] == two[0]
    assert one[1].keys() == two[1].keys()
    assert all(torch.equal(tensor, two[1][name]) for name, tensor in one[1].items())


def header_of(content):
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def with_header(header, payload):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + payload


def test_the_hashes_are_those_of_the_tensors_and_the_seal_that_of_all(whole, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(whole)
    header, payload = header_of(whole)
    metadata = header.pop("__metadata__")
    for name, place in header.items():
        content = payload[slice(*place["data_offsets"])]
        assert metadata[hash_key(name)] == hashlib.sha256(content).hexdigest()
    tensors = sorted([name, p["dtype"], p["shape"], metadata[hash_key(name)]] for name, p in header.items())
    sealed = json.dumps([FORMAT, metadata["about"], tensors]).encode()
    assert metadata["seal"] == hashlib.sha256(sealed).hexdigest()
    assert {"sums", "heldout", "mean", "n", "layers.cross"} < header.keys()
    with safe_open(path, "pt") as tensors:
        assert tensors.metadata()["format"] == FORMAT


def refusal_of(path):
    """Why a file is refused, or None."""
    try:
        SketchFile(path)
    except SketchError as error:
        return str(error)
    return None


def test_any_byte_that_is_changed_is_refused_by_name_or_says_nothing(whole, tmp_path):
    path = tmp_path / "mutated.safetensors"
    path.write_bytes(whole)
    undisturbed = said_by(path)
    chooser = random.Random(11)
    start = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for number in range(400):
        place = chooser.randrange(start) if number % 2 else chooser.randrange(start, len(whole))
        content = bytearray(whole)
        content[place] = chooser.choice([content[place] ^ 1 << chooser.randrange(8), chooser.randrange(256)])
        path.write_bytes(content)
        error = refusal_of(path)
        if error is None:
            same(said_by(path), undisturbed)
            assert place < start or content == whole
        else:
            assert path.name in error
            assert content != whole
            refused += 1
    assert refused > 300


@pytest.mark.parametrize("length", [0, 7, 8, 500, -1])
def test_a_torn_one_is_refused(whole, tmp_path, length):
    (tmp_path / "m.safetensors").write_bytes(whole[:length])
    with pytest.raises(SketchError, match=r"m\.safetensors"):
        SketchFile(tmp_path / "m.safetensors")


def test_rows_that_changed_places_are_refused(whole, tmp_path):
    header, payload = header_of(whole)
    start = header["sums"]["data_offsets"][0]
    width = header["sums"]["shape"][1] * 2
    rows = payload[start : start + width], payload[start + width : start + 2 * width]
    assert rows[0] != rows[1]
    swapped = payload[:start] + rows[1] + rows[0] + payload[start + 2 * width :]
    (tmp_path / "m.safetensors").write_bytes(with_header(header, swapped))
    with pytest.raises(SketchError, match="its tensor sums, not as written"):
        SketchedModel(str(tmp_path / "m.safetensors"), "cpu")


def metadata_with(**changes):
    return lambda header: header["__metadata__"].update(changes)


def metadata_without(key):
    return lambda header: header["__metadata__"].pop(key)


def shape_turned(header):
    header["sums"]["shape"].reverse()


def renamed(header):
    header["summs"] = header.pop("sums")


def places_swapped(header):
    """Of two tensors of one shape."""
    one, two = header["extremes.low"], header["extremes.high"]
    one["data_offsets"], two["data_offsets"] = two["data_offsets"], one["data_offsets"]


def type_changed(header):
    header["n"]["dtype"] = "F32"


HEADERS = {
    "no metadata": lambda header: header.pop("__metadata__"),
    "metadata of a wrong type": lambda header: header.update(__metadata__=7),
    "metadata that are no strings": metadata_with(about=[1]),
    "another format": metadata_with(format="universal-neurons sketch 9"),
    "about no JSON": metadata_with(about="{"),
    "about deep": metadata_with(about="[" * 50_000),
    "about a list": metadata_with(about="[]"),
    "about empty": metadata_with(about="{}"),
    "about of wrong types": metadata_with(about=json.dumps({"signs": 7, "model": None, "tokens": "x"})),
    "no about": metadata_without("about"),
    "no seal": metadata_without("seal"),
    "no hash": metadata_without(hash_key("sums")),
    "another hash": metadata_with(**{hash_key("sums"): "0" * 64}),
    "a shape turned": shape_turned,
    "a tensor renamed": renamed,
    "a type changed": type_changed,
    "two places swapped": places_swapped,
}


@pytest.mark.parametrize("change", HEADERS)
def test_metadata_that_are_not_as_written_are_refused_by_name(whole, tmp_path, change):
    header, payload = header_of(whole)
    HEADERS[change](header)
    (tmp_path / "m.safetensors").write_bytes(with_header(header, payload))
    with pytest.raises(SketchError, match=r"m\.safetensors"):
        SketchedModel(str(tmp_path / "m.safetensors"), "cpu")


@pytest.mark.parametrize(("number", "lacks"), [(1, "hashes"), (2, "what bounds its errors")])
def test_one_of_an_earlier_version_says_to_make_it_again(tmp_path, number, lacks):
    old = {"format": f"universal-neurons sketch {number}", "about": "{}"}
    save_file({"sums": torch.zeros(2, 2)}, tmp_path / "old.safetensors", metadata=old)
    with pytest.raises(SketchError, match=f"without {lacks}") as refused:
        SketchFile(tmp_path / "old.safetensors")
    assert "make it again with `uneurons sketch`" in str(refused.value)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "zero"):
        with pytest.raises(SketchError, match="is not a file"):
            SketchFile(tmp_path / f"{name}.safetensors")
    with pytest.raises(MissingFileError):
        SketchFile(tmp_path / "none.safetensors")


def test_the_command_names_a_damaged_sketch(whole, tmp_path, capsys):
    changed = bytearray(whole)
    changed[-5] ^= 32
    (tmp_path / "a.safetensors").write_bytes(whole)
    (tmp_path / "b.safetensors").write_bytes(changed)
    with pytest.raises(SystemExit) as stop:
        main(["run", "--models", str(tmp_path / "a.safetensors"), "--models", str(tmp_path / "b.safetensors"), "--out", str(tmp_path / "run")])  # fmt: skip
    assert stop.value.code == 2
    assert "b.safetensors: damaged" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def begun(model, text_file, tmp_path_factory):
    """A folder with a sketch that was stopped after its third checkpoint."""
    save, saved = Generations.save, []

    def stop(self, tensors, step):
        save(self, tensors, step)
        saved.append(step)
        if len(saved) == 3:
            raise KeyboardInterrupt

    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("universal_neurons.text.tokens.SHARD_POSITIONS", 256)
        patched.setattr(Generations, "save", stop)
        patched.setattr("universal_neurons.study.sketch_maker.SNAPSHOT_SECONDS", 0.0)
        patched.setattr("universal_neurons.study.sketch_maker.SNAPSHOT_SHARE", 1e9)
        with pytest.raises(KeyboardInterrupt):
            sketch_of(model, text_file, folder / "m.safetensors", **SMALL)
    assert saved == [1, 2, 3]
    return folder


def flip_in(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)


def damage_rows(partial, scratch):
    content = partial.read_bytes()
    header, _ = header_of(content)
    start = len(content) - max(place["data_offsets"][1] for name, place in header.items() if name != "__metadata__")
    flip_in(partial, start + header["sums"]["data_offsets"][0] + 70)


def damage_newest(partial, scratch):
    flip_in(sorted(scratch.glob("checkpoint-*"))[-1] / "0000.safetensors", -1)


def damage_both(partial, scratch):
    damage_rows(partial, scratch)
    damage_newest(partial, scratch)


def replace_by_link(partial, scratch):
    partial.rename(partial.with_name("theirs"))
    partial.symlink_to("theirs")


def replace_by_second_name(partial, scratch):
    partial.rename(partial.with_name("theirs"))
    os.link(partial.with_name("theirs"), partial)


DAMAGES = {
    "nothing": lambda partial, scratch: None,
    "rows": damage_rows,
    "header": lambda partial, scratch: flip_in(partial, 40),
    "newest checkpoint": damage_newest,
    "rows and checkpoint": damage_both,
    "shorter": lambda partial, scratch: partial.write_bytes(partial.read_bytes()[:-9]),
    "zeros": lambda partial, scratch: partial.write_bytes(bytes(partial.stat().st_size)),
    "gone": lambda partial, scratch: partial.unlink(),
    "link": replace_by_link,
    "second name": replace_by_second_name,
    "tokens": lambda partial, scratch: flip_in(scratch / "rows.i32", 50),
    "no checkpoints": lambda partial, scratch: [shutil.rmtree(folder) for folder in scratch.glob("checkpoint-*")],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_is_damaged_while_it_is_made_it_ends_with_the_same_bytes(
    model, text_file, whole, begun, tmp_path, damage
):
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    out = tmp_path / "m.safetensors"
    DAMAGES[damage](partial_of(out), scratch_of(out))
    theirs = (tmp_path / "theirs").read_bytes() if (tmp_path / "theirs").exists() else None
    assert sketch_of(model, text_file, out, **SMALL).read_bytes() == whole
    assert {path.name for path in tmp_path.iterdir()} == {out.name} | ({"theirs"} if theirs else set())
    assert theirs is None or (tmp_path / "theirs").read_bytes() == theirs


def test_two_do_not_make_one_sketch(model, text_file, whole, tmp_path):
    out = tmp_path / "m.safetensors"
    with scratch_folder(out), pytest.raises(StoreConflictError, match="another process is writing it"):
        sketch_of(model, text_file, out, **SMALL)
    assert sketch_of(model, text_file, out, **SMALL).read_bytes() == whole


def test_nothing_is_written_through_links_beside_it(model, text_file, tmp_path):
    out, theirs = tmp_path / "m.safetensors", tmp_path / "theirs"
    theirs.mkdir()
    scratch_of(out).symlink_to(theirs)
    with pytest.raises(StoreConflictError, match="symbolic link"):
        sketch_of(model, text_file, out, **SMALL)
    assert not list(theirs.iterdir())
    (tmp_path / "taken.safetensors").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreConflictError, match="is there already"):
        sketch_of(model, text_file, tmp_path / "taken.safetensors", **SMALL)


def test_a_refused_one_leaves_nothing_behind(model, text_file, tmp_path):
    out = tmp_path / "m.safetensors"
    with pytest.raises(TextError):
        sketch_of(model, text_file, out, **SMALL | {"max_tokens": 64})
    assert not list(tmp_path.iterdir())


def test_the_seal_tells_apart_what_it_is_of():
    one = [("a", "F32", [2, 3], "h"), ("b", "I64", [], "k")]
    assert seal_of("about", one) == seal_of("about", one[::-1])
    for about, other in (("else", one), ("about", one[:1]), ("about", [("a", "F32", [3, 2], "h"), one[1]]), ("about", [("a", "F32", [2, 3], None), one[1]])):  # fmt: skip
        assert seal_of(about, other) != seal_of("about", one)
