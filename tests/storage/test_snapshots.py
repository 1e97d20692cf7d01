"""Checkpoints on disk: whatever happens to the newest one, the one before it is used, and the work goes on."""

import hashlib
import json
import os
import random
import shutil

import pytest
import torch

from universal_neurons.errors import StoreConflictError
from universal_neurons.storage import Generations
from universal_neurons.storage import snapshots as module

STATE = {"sums": torch.arange(300, dtype=torch.float64) / 7, "count": torch.tensor(300), "none": torch.zeros(0, 4)}
WRONG_MANIFESTS = (
    b"", b"{", b"[]", b"7", b"null", b'"x"', b"\xff\xfe", b"{}", b'{"shard": 4}', b'{"shard": 4, "bytes": 5}',
    b'{"shard": 4, "bytes": {}, "seal": []}', b'{"seal": null}', b"[" * 100_000, b"9" * 10_000,
)  # fmt: skip


def after(step):
    return {name: tensor + step for name, tensor in STATE.items()}


@pytest.fixture
def saved(tmp_path):
    """Two generations, of steps 3 and 4."""
    found = Generations(tmp_path / "work", of="a study")
    for step in (3, 4):
        found.save(after(step), step)
    return found


def require(found, step):
    """The newest usable generation is that of a step, by all who ask."""
    assert found.newest() == step
    loaded = found.load()
    if not step:
        assert loaded is None
        return
    state, number = loaded
    assert number == step
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in after(step).items())


def flipped(content, place, bit=0):
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    return bytes(changed)


def rewrite(path, change):
    path.write_bytes(change(path.read_bytes()))


def replace_by_pipe(path):
    path.unlink()
    os.mkfifo(path)


def replace_by_link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def swap_with_older(path):
    shutil.copy(path.parent.with_name("checkpoint-00000003") / path.name, path)


DAMAGES = {
    "header": lambda path: rewrite(path, lambda old: flipped(old, 30, 7)),
    "length of the header": lambda path: rewrite(path, lambda old: flipped(old, 1)),
    "payload": lambda path: rewrite(path, lambda old: flipped(old, -9, 6)),
    "truncated": lambda path: rewrite(path, lambda old: old[:-1]),
    "longer": lambda path: rewrite(path, lambda old: old + b" "),
    "empty": lambda path: rewrite(path, lambda old: b""),
    "zeros": lambda path: rewrite(path, lambda old: bytes(len(old))),
    "missing": lambda path: path.unlink(),
    "pipe": replace_by_pipe,
    "link": replace_by_link,
    "folder": replace_by_folder,
    "the one before": swap_with_older,
}


@pytest.mark.parametrize("name", ["0000.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damage_means_the_one_before(saved, name, damage):
    newest = saved.folder / "checkpoint-00000004"
    DAMAGES[damage](newest / name)
    told = []
    assert saved.load(told.append)[1] == 3
    assert [text.startswith("checkpoint-00000004 is not used: ") for text in told] == [True]
    require(saved, 3)
    saved.save(after(4), 4)
    require(saved, 4)
    assert [path.name for path in saved.all()] == [newest.name, "checkpoint-00000003"]


@pytest.mark.parametrize("content", WRONG_MANIFESTS, ids=range(len(WRONG_MANIFESTS)))
def test_a_manifest_that_is_none_means_the_one_before(saved, content):
    (saved.folder / "checkpoint-00000004" / "manifest.json").write_bytes(content)
    require(saved, 3)


def test_every_flipped_bit_is_seen(saved):
    chooser = random.Random(5)
    newest = saved.folder / "checkpoint-00000004"
    whole = {path: path.read_bytes() for path in newest.iterdir()}
    for _ in range(300):
        path = chooser.choice(list(whole))
        place, bit = chooser.randrange(len(whole[path])), chooser.randrange(8)
        path.write_bytes(flipped(whole[path], place, bit))
        require(saved, 3)
        path.write_bytes(whole[path])
    require(saved, 4)


def test_with_none_usable_the_work_starts_anew_and_is_kept(saved):
    for folder in saved.all():
        rewrite(folder / "0000.safetensors", lambda old: flipped(old, -1))
    require(saved, 0)
    for step in (1, 2):  # below those that are damaged
        saved.save(after(step), step)
        require(Generations(saved.folder, of="a study"), step)
    assert [path.name for path in saved.all()] == ["checkpoint-00000002", "checkpoint-00000001"]


def test_the_last_two_that_are_whole_are_kept(saved):
    rewrite(saved.folder / "checkpoint-00000004" / "0000.safetensors", lambda old: old[:50])
    again = Generations(saved.folder, of="a study")
    assert again.load()[1] == 3
    again.save(after(7), 7)
    assert [path.name for path in again.all()] == ["checkpoint-00000007", "checkpoint-00000003"]


def test_what_another_study_or_version_wrote_is_not_used(saved, monkeypatch):
    require(Generations(saved.folder, of="another study"), 0)
    with monkeypatch.context() as patched:
        patched.setattr(module, "FORMAT", "universal-neurons generation 3, 9.9")
        require(saved, 0)
    (saved.folder / "checkpoint-00000004").rename(saved.folder / "checkpoint-00000009")
    require(saved, 3)


def test_a_generation_without_hashes_is_not_used(saved):
    """As versions wrote them that kept none."""
    newest = saved.folder / "checkpoint-00000004"
    sizes = {"0000.safetensors": (newest / "0000.safetensors").stat().st_size}
    (newest / "manifest.json").write_text(json.dumps({"shard": 4, "bytes": sizes}))
    require(saved, 3)


def test_the_manifest_holds_the_hash_of_every_file(saved):
    newest = saved.folder / "checkpoint-00000004"
    note = json.loads((newest / "manifest.json").read_text())
    hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in newest.glob("*.safetensors")}
    assert note["sha256"] == hashes
    assert note["bytes"].keys() == hashes.keys()


def test_tensors_that_fill_several_files_are_verified_all(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART_BYTES", 1000)
    found = Generations(tmp_path / "work")
    for step in (1, 2):
        found.save(after(step), step)
    parts = sorted((tmp_path / "work" / "checkpoint-00000002").glob("*.safetensors"))
    assert len(parts) > 1
    require(found, 2)
    rewrite(parts[-1], lambda old: flipped(old, -1))
    require(found, 1)


def test_what_stands_in_a_generations_place_is_replaced_and_no_link_is_followed(saved, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "work").write_text("years")
    newest = saved.folder / "checkpoint-00000004"
    shutil.rmtree(newest)
    newest.symlink_to(theirs)
    (saved.folder / ".checkpoint-00000005.host.1.partial").symlink_to(theirs)
    (saved.folder / "checkpoint-00000005").write_text("a file")
    require(saved, 3)
    for step in (4, 5):
        saved.save(after(step), step)
        require(saved, step)
    assert (theirs / "work").read_text() == "years"
    assert not any(path.is_symlink() for path in saved.folder.iterdir())
    (tmp_path / "link").symlink_to(theirs)
    with pytest.raises(StoreConflictError, match="symbolic link"):
        Generations(tmp_path / "link").save(after(1), 1)


@pytest.mark.parametrize("shut", ["checkpoint-00000004", "checkpoint-00000004/0000.safetensors"])
def test_what_nobody_may_read_is_as_good_as_none(saved, monkeypatch, shut):
    """As for a user who is not root, whom no permission stops."""
    closed = saved.folder / shut
    opened = type(closed).open

    def denied(self, *how, **more):
        if closed in (self, *self.parents):
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *how, **more)

    with monkeypatch.context() as patched:
        patched.setattr(type(closed), "open", denied)
        require(saved, 3)
    closed.chmod(0)
    saved.save(after(4), 4)
    require(saved, 4)


def test_a_shared_generation_that_is_damaged_is_replaced_and_a_whole_one_kept(tmp_path):
    mine, theirs = (Generations(tmp_path / "work", shared=True) for _ in range(2))
    for step in (1, 2, 3):
        theirs.save(after(step), step)
    mine.save(after(2), 2)
    require(mine, 3)
    rewrite(tmp_path / "work" / "checkpoint-00000003" / "0000.safetensors", lambda old: flipped(old, 40))
    require(mine, 2)
    mine.save(after(3), 3)
    require(theirs, 3)


def test_names_that_are_not_ours_are_left_alone(saved):
    for name in ("checkpoint-best", "checkpoint-1", "notes"):
        (saved.folder / name).mkdir()
    saved.save(after(5), 5)
    assert [path.name for path in saved.all()] == ["checkpoint-00000005", "checkpoint-00000004"]
    assert (saved.folder / "checkpoint-best").is_dir()
