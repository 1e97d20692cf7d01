"""Settings from files and flags: whatever stands in them is taken as it stands or refused by name, shortly and at once."""

import json
import os
import time
from pathlib import Path

import pytest
import yaml
from conftest import settled

from universal_neurons import plain_values
from universal_neurons.config import StudyConfig
from universal_neurons.config_reading import make_config, make_dynamics_config, read_config
from universal_neurons.diff.settings import make_diff_config
from universal_neurons.errors import ConfigError, MissingFileError
from universal_neurons.role_settings import RoleSettings

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi")
)
REFUSED = {
    "aliases that grow": (LAUGHS, "anchor or alias"),
    "an alias": ("models: &m [a]\nsubset: *m\n", "anchor or alias"),
    "a deep list": ("models: " + "[" * 20_000, "nest"),
    "a deep mapping": ("models: " + "{a: " * 20_000, "nest"),
    "a deep block": ("".join(f"{' ' * n}-\n" for n in range(100)), "deeply nested"),
    "deep JSON": ('{"models": ' + "[" * 100_000, "not readable"),
    "a key twice": ("seed: 1\nseed: 2\n", "a key comes twice"),
    "an inner key twice": ("roles: {tokens: 9, tokens: 8}\n", "a key comes twice"),
    "a tag": ("!!python/object/apply:os.system ['true']", "python/object"),
    "a number without end": ("seed: " + "9" * 5000, "a number of 5,000 characters"),
    "a number of base 60": ("seed: 1" + ":1" * 400_000, "a number of 800,001 characters"),
    "an empty number": ("seed: !!int ''", "not readable"),
    "no time": ("seed: !!timestamp x", "not readable"),
    "a date that is none": ("seed: 2024-13-45", "not readable"),
    "a key that is a list": ("? [a]\n: b\n", "not readable"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "not readable"),
    "control characters": ("seed: \x01\n", "not readable"),
    "a list": ("[1, 2]", "not a mapping of names"),
    "keys that are no names": ("1: 2\n", "not a mapping of names"),
    "a configuration that is none": ('{"complete": true, "config": 7}', "not a mapping of names"),
    "not UTF-8": (b"data: caf\xe9", "not readable"),
}


def write(folder, content, name="study.yaml"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


@pytest.mark.parametrize("loader", [plain_values.LOADER, yaml.SafeLoader])
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_understood_is_refused_shortly_and_at_once(tmp_path, monkeypatch, case, loader):
    monkeypatch.setattr(plain_values, "LOADER", loader)
    content, words = REFUSED[case]
    before = time.monotonic()
    with pytest.raises(ConfigError, match=words) as refused:
        read_config(write(tmp_path, content))
    assert time.monotonic() - before < 30
    assert len(str(refused.value)) < 1500


def test_only_files_of_a_bounded_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for place in (tmp_path / "pipe.yaml", tmp_path, "/dev/zero", "/dev/null"):
        with pytest.raises(MissingFileError, match="not a regular file"):
            read_config(place)
    for place in (tmp_path / "none.yaml", "x" * 300, "~nosuchuser/x.yaml", "a\0b"):
        with pytest.raises(MissingFileError, match="cannot be"):
            read_config(place)
    with pytest.raises(ConfigError, match="too large"):
        read_config(write(tmp_path, "#" * (1 << 24)))


def test_an_empty_file_has_no_settings(tmp_path):
    for content in ("", " \n", "# nothing\n", "null\n", b"\xef\xbb\xbf"):
        assert read_config(write(tmp_path, content))[0] == {}
    assert read_config(write(tmp_path, "", "a.json"))[0] == {}


@pytest.mark.parametrize("name", ["a.json", "a.yaml", "a.JSON"])
def test_json_is_read_as_json(tmp_path, name):
    settings = {"data": "💥.txt", "subset": ["\u2028", "tab\there"], "published": {"source": "ü"}}
    for text in (json.dumps(settings), json.dumps(settings, indent="\t", ensure_ascii=False)):
        assert read_config(write(tmp_path, text, name))[0] == settings
    wrapped = json.dumps({"complete": True, "config": settings, "timings": {"pass": float("nan")}})
    assert read_config(write(tmp_path, wrapped, name))[0] == settings
    for text in ('{"seed": 1, "seed": 2}', '{"seed": ', "seed: 1", '{"seed": 9' + "9" * 5000 + "}"):
        with pytest.raises(ConfigError, match=r"not readable: not JSON"):
            read_config(write(tmp_path, text, "b.json"))


def test_the_home_is_expanded_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "seed: 3", "s[1]*.yaml")
    assert read_config("~/s[1]*.yaml")[0] == {"seed": 3}


NUMBERS = [name for name, field in StudyConfig.model_fields.items() if int in getattr(field.annotation, "__args__", [field.annotation])]  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [10**50, -(10**50), -1, float("nan"), float("inf"), 1e999, "9" * 5000, 0.5, [], None, {}])  # fmt: skip
def test_numbers_that_cannot_be_are_refused(name, value):
    optional = type(None) in getattr(StudyConfig.model_fields[name].annotation, "__args__", ())
    if value is None and optional:
        assert getattr(make_config({name: None}), name) is None
        return
    with pytest.raises(ConfigError, match=f"{name} cannot be this") as refused:
        make_config({name: value})
    assert len(str(refused.value)) < 800


@pytest.mark.parametrize("settings", [
    {"threshold": float("nan")}, {"threshold": float("-inf")}, {"unexplained": float("nan")}, {"mask": [10**30]},
    {"mask": [2**31]}, {"mask": ["bos", {}]}, {"roles": {"kurtosis": float("inf")}}, {"roles": {"mediated": float("nan")}},
    {"roles": {"tokens": 10**30}}, {"roles": {"distances": [10**30]}}, {"roles": {"distances": [-1]}},
    {"roles": {"values": [float("nan")]}}, {"roles": {"colour": 1}}, {"roles": 7}, {"models": []}, {"models": [""]},
    {"models": [" "]}, {"data": ""}, {"data": "a\0b"}, {"models": ["a\0b"]}, {"out": "o\0"}, {"subset": ["\0"]},
    {"data": "x" * 5000}, {"tokenizer": "\ud800"}, {"published": {"source": "x", "neurons": 0, "universal": 0}},
    {"published": {"source": "x", "neurons": 10**30, "universal": 0}}, {"x" * 5000: 1}, {"labels": ["y" * 5000]},
    {"data": {"a": [["b" * 10**6] * 9] * 9}}, {"pairs": "\x1b[2J" * 900}, {"labels": [[[[[[[["deep"]]]]]]]]},
])  # fmt: skip
def test_impossible_settings_are_named_and_never_printed_whole(settings):
    for make in (make_config, make_dynamics_config):
        with pytest.raises(ConfigError, match=r"cannot be this|unknown key") as refused:
            make(settings)
        assert len(str(refused.value)) < 1600


def test_no_labels_are_for_studies_that_take_functions():
    assert make_config({"labels": []}).labels == ()
    for make in (make_dynamics_config, make_diff_config):
        with pytest.raises(ConfigError, match="labels are none"):
            make({"models": ["a", "b"], "labels": []})


def test_a_union_says_all_that_is_possible():
    with pytest.raises(ConfigError, match=r"mask.0 cannot be this[\s\S]*'sinks'; or: [\s\S]*less than"):
        make_config({"mask": [10**30]})


@pytest.mark.parametrize("size", [64, 8])
def test_a_group_size_is_refused_without_a_sketch_though_a_stored_study_names_one(tmp_path, size):
    with pytest.raises(ConfigError, match="group_size without a sketch"):
        make_config({"group_size": size})
    assert make_config({"group_size": size, "search": "sketch"}).group_size == size
    stored = {"complete": True, "config": settled(search="exact").stored()}
    assert stored["config"]["group_size"] == 64
    path = write(tmp_path, json.dumps(stored), "study.json")
    assert make_config(read_config(path)[0]).group_size is None


def test_an_ordinary_study_is_as_it_was(tmp_path):
    config = StudyConfig(data="c.txt", mask=("bos", 7), threads=2, seed=2**128 - 1, roles={"kurtosis": 1e9})
    path = write(tmp_path, config.model_dump_json(), "study.json")
    assert make_config(read_config(path)[0]) == config


def test_paths_are_taken_where_text_is():
    """Alone or among others, in a study's settings, a diff's and training dynamics'."""
    here = Path("models") / "a"
    study = StudyConfig(models=[here, "b"], data=here, out=here, labels=here.with_suffix(".py"))
    assert (study.models, study.data, study.out) == (("models/a", "b"), "models/a", "models/a")
    assert study.labels == ("models/a.py",)
    assert StudyConfig(models=here).models == ("models/a",)
    assert make_diff_config({"models": (here, "b"), "nulls": here}).nulls == ("models/a",)
    assert make_dynamics_config({"models": (here, "b"), "revisions": here}).revisions == ("models/a",)


def test_readings_are_bounded_by_the_logits_that_they_take():
    sizes = [(1_000, 4096), (8_192, 4096), (49_152, 1365), (262_144, 1024)]
    assert [(size, RoleSettings().positions_read(size)) for size, _ in sizes] == sizes
    assert RoleSettings(tokens=512).positions_read(49_152) == 512
    assert RoleSettings(readings=3000).positions_read(49_152) == 3000
