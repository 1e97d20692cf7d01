"""What is said of the package is what it is: versions, bounds, reasons for its dependencies, extras."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import universal_neurons as un

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGE = (ROOT / "docs/packaging.md").read_text(encoding="utf-8")
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
PINNED = {name.lower().replace("_", "-"): version for name, version in PINS.items()}
EXTRAS = PROJECT["optional-dependencies"]
ALL = [Requirement(line) for lines in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines]


def test_the_version_is_the_same_everywhere():
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1]
    assert PROJECT["version"] == cited == un.__version__


def test_every_dependency_has_a_reason_and_every_extra_a_use():
    rows = set(re.findall(r"^\| `([\w-]+)` \|", PAGE, re.MULTILINE))
    assert rows == {Requirement(line).name for line in PROJECT["dependencies"]} | EXTRAS.keys()


@pytest.mark.parametrize("wanted", ALL, ids=str)
def test_what_ci_installs_is_within_the_bounds(wanted):
    """`bench` and `pile`, which neither tests nor linters need, are not pinned."""
    pinned = PINNED.get(wanted.name.lower())
    if pinned is None:
        assert wanted.name in {"universal-neurons", "transformer-lens", "zstandard"}
    else:
        assert pinned in wanted.specifier


def test_the_bounds_that_have_a_reason_are_those_of_the_project():
    bounds = set(re.findall(r"^\| `([\w-]+>=[\d.]+)` \|", PAGE, re.MULTILINE))
    assert bounds <= {re.split(",", line)[0] for line in PROJECT["dependencies"]}
    assert len(bounds) > 3


def test_the_pythons_that_are_named_are_those_of_the_classifiers():
    named = re.search(r"^Python ([\d., and]+)\. CI", PAGE, re.MULTILINE)[1]
    classified = re.findall(r":: Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    assert re.findall(r"3\.\d+", named) == classified
    assert PROJECT["requires-python"] == f">={classified[0]}"
