"""Paths as users give them, and whole files."""

import hashlib

import pytest

from universal_neurons.disk import local_path, sha256_of
from universal_neurons.errors import MissingFileError


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
