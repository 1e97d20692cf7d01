"""Paths as users give them, and whole files."""

import errno
import hashlib
import os

import pytest

from universal_neurons.disk import (
    create_anew,
    disk_errors,
    full_disk,
    local_path,
    open_regular,
    own_folder,
    sha256_of,
    write_atomically,
)
from universal_neurons.errors import DiskError, DiskFullError, MissingFileError, StoreConflictError, TextError
from universal_neurons.storage import StoreWriter


def test_only_the_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/runs/x[1]*") == tmp_path / "runs" / "x[1]*"
    assert str(local_path("a/~/b?.txt")) == "a/~/b?.txt"


@pytest.mark.parametrize("given", ["w" * 300, "~nosuchuser/c.txt", "a\0b", "x/" * 3000])
def test_what_can_be_no_path_is_refused_by_name(given):
    with pytest.raises(MissingFileError, match="cannot be a path"):
        local_path(given)


def test_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(MissingFileError, match="cannot be a path"):
        local_path(tmp_path / "a")


def test_a_files_hash_is_that_of_its_bytes(tmp_path):
    (tmp_path / "f").write_bytes(b"abc" * 10**6)
    assert sha256_of(tmp_path / "f") == hashlib.sha256(b"abc" * 10**6).hexdigest()


def test_a_new_file_takes_the_place_of_a_link_and_leaves_what_it_led_to(tmp_path):
    (tmp_path / "theirs").write_text("years of work")
    (tmp_path / ".f.partial").symlink_to(tmp_path / "theirs")
    with create_anew(tmp_path / ".f.partial") as out:
        out.write(b"ours")
    assert (tmp_path / "theirs").read_text() == "years of work"
    assert not (tmp_path / ".f.partial").is_symlink()
    (tmp_path / "f").symlink_to(tmp_path / "theirs")
    write_atomically(tmp_path / "f", b"ours")
    assert (tmp_path / "theirs").read_text() == "years of work"
    assert (tmp_path / "f").read_bytes() == b"ours"
    assert not (tmp_path / ".f.partial").exists()


def test_a_stale_partial_file_is_begun_again(tmp_path):
    (tmp_path / ".f.partial").write_bytes(b"a longer one, half written")
    write_atomically(tmp_path / "f", b"short")
    assert (tmp_path / "f").read_bytes() == b"short"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_folder_of_ours_is_no_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "figures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreConflictError, match="figures: is a symbolic link"):
        own_folder(tmp_path / "figures")
    assert own_folder(own_folder(tmp_path / "work")).is_dir()


def test_pipes_devices_and_folders_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros", "."):
        with pytest.raises(StoreConflictError, match="is not a file"):
            open_regular(tmp_path / name)
    (tmp_path / "f").write_bytes(b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "f")
    with open_regular(tmp_path / "link") as stream:
        assert stream.read() == b"abc"


def fail_with(number: int, path) -> None:
    with disk_errors(path):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, DiskFullError),
        (errno.EDQUOT, DiskFullError),
        (errno.EFBIG, DiskError),
        (errno.EIO, DiskError),
        (errno.EROFS, StoreConflictError),
    ],
)
def test_a_disk_that_fails_is_named(tmp_path, number, kind):
    with pytest.raises(kind, match=str(tmp_path)):
        fail_with(number, tmp_path)


@pytest.mark.parametrize("named", [full_disk, disk_errors])
def test_trouble_that_has_a_name_keeps_it(tmp_path, named):
    trouble = TextError("corpus: reading it failed", given="OSError: [Errno 28] No space left on device")
    with pytest.raises(TextError) as caught, named(tmp_path):
        raise trouble
    assert caught.value is trouble


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_and_nothing_is_left_there(tmp_path, monkeypatch, number):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", lambda *_: fail_with(number, tmp_path))
    with pytest.raises(StoreConflictError, match=r"cannot be locked[\s\S]*another file system"):
        StoreWriter(tmp_path / "a" / "run").__enter__()
    assert not list(tmp_path.iterdir())
