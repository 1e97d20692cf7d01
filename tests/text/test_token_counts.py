"""Token counts: read from every kind of file, refused by name, and which a study goes by."""

import hashlib
import json

import numpy as np
import polars as pl
import pytest
from conftest import settled

from universal_neurons.errors import MissingFileError, TokenCountsError, TokenRangeError
from universal_neurons.models import ROLES_FOLDER, bundled_models
from universal_neurons.role_settings import RoleSettings
from universal_neurons.text import frequencies_of
from universal_neurons.text.token_counts import read_token_counts

GOOD = {"token": [4, 0, 2], "count": [7, 1, 0]}
WRITERS = {
    "parquet": pl.DataFrame.write_parquet,
    "csv": pl.DataFrame.write_csv,
    "json": pl.DataFrame.write_json,
}


def written(folder, kind="csv", **columns):
    path = folder / f"counts.{kind}"
    WRITERS[kind](pl.DataFrame(columns), path)
    return path


@pytest.mark.parametrize("kind", WRITERS)
def test_tokens_that_a_table_lacks_count_nothing(kind, tmp_path):
    path = written(tmp_path, kind, **GOOD, other=["a", "b", "c"])
    found = read_token_counts(path, 6)
    assert found.counts.tolist() == [1, 0, 0, 0, 7, 0]
    assert found.counts.dtype == np.int64
    assert found.describe() == {
        "of": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "tokens": 8,
    }


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"token": [1, 2]}, "no column 'count'"),
        ({"id": [1], "count": [2]}, "no column 'token'"),
        ({"token": [1, 2], "count": [0.5, 2.0]}, "count is Float64"),
        ({"token": ["a", "b"], "count": [1, 2]}, "token is String"),
        ({"token": [1, 2], "count": [3, -1]}, "not a count"),
        ({"token": [1, 2], "count": [3, None]}, "not a count"),
        ({"token": [1, None], "count": [3, 3]}, "not a count"),
        ({"token": [1, 2], "count": [3, 10**15 + 1]}, "not a count"),
        ({"token": [1, 2, 1], "count": [3, 3, 4]}, "a token that comes twice"),
        ({"token": [1, 2], "count": [0, 0]}, "no token is counted"),
        ({"token": pl.Series([], dtype=pl.Int32), "count": pl.Series([], dtype=pl.Int32)}, "no token is counted"),
    ],
)
def test_what_is_no_table_of_counts_is_refused_by_name(columns, said, tmp_path):
    with pytest.raises(TokenCountsError, match=said):
        read_token_counts(written(tmp_path, "parquet", **columns), 6)


@pytest.mark.parametrize("token", [6, -1, 2**40])
def test_a_token_outside_the_vocabulary_is_refused(token, tmp_path):
    with pytest.raises(TokenRangeError, match="ids from 0 to 5"):
        read_token_counts(written(tmp_path, token=[0, token], count=[1, 1]), 6)
    big = written(tmp_path, "parquet", token=pl.Series([0, 2**64 - 1], dtype=pl.UInt64), count=[1, 1])
    with pytest.raises(TokenRangeError):
        read_token_counts(big, 6)


def test_what_cannot_be_read_is_refused_by_name(tmp_path):
    with pytest.raises(MissingFileError, match="cannot be read"):
        read_token_counts(tmp_path / "none.csv", 6)
    with pytest.raises(MissingFileError, match="not a regular file"):
        read_token_counts(tmp_path, 6)
    (tmp_path / "counts.txt").write_text("token,count\n1,2\n")
    with pytest.raises(TokenCountsError, match="not a table"):
        read_token_counts(tmp_path / "counts.txt", 6)
    for kind in WRITERS:
        for content in (b"", b"\xff\x00{[", json.dumps({"a": 1}).encode()):
            (tmp_path / f"bad.{kind}").write_bytes(content)
            with pytest.raises(TokenCountsError):
                read_token_counts(tmp_path / f"bad.{kind}", 6)


def test_a_study_goes_by_given_counts_or_those_of_the_suite_that_all_its_models_are_of(tmp_path):
    path = written(tmp_path, **GOOD)
    given = settled(models=("bundled/roles-1",), roles=RoleSettings(frequencies=str(path)))
    assert frequencies_of(given, 1024).of == str(path)
    shipped = pl.read_csv(ROLES_FOLDER / "token_counts.csv")
    for models in (bundled_models(), ("bundled",), ("bundled/roles-1-german", str(ROLES_FOLDER / "roles-2"))):
        found = frequencies_of(settled(models=tuple(models), data="other.txt"), 1024)
        assert found.of == "bundled/roles"
        assert found.counts.tolist() == shipped["count"].to_list()
    for models in (("bundled/seed-1",), ("bundled/roles-1", "bundled/seed-1"), ("in-memory:roles-1",), ("org/model",)):
        assert frequencies_of(settled(models=models), 1024) is None
