"""Memory: the estimate against a run or a diff in a process of its own, and no growth with the number of tokens."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import save_tiny, some_text

WIDE = {"n_embd": 32, "n_inner": 1024, "n_layer": 3}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Two models of 3 072 neurons and a long text: the statistics outweigh the libraries' share of memory."""
    root = tmp_path_factory.mktemp("wide")
    (root / "long.txt").write_text(some_text(40_000))
    models = [a for seed in (0, 1) for a in ("--models", str(save_tiny(root / f"m{seed}", seed=seed, **WIDE)))]
    return [*models, "--data", str(root / "long.txt"), "--draws", "2"], root


PEAK = """
import pathlib, sys
from universal_neurons.cli import main
main(sys.argv[2:])
pathlib.Path(sys.argv[1]).write_text(pathlib.Path("/proc/self/status").read_text())
"""


def peak_of(folder: Path, *arguments: str) -> tuple[int, str]:
    """The most memory a command held, and what it printed.

    Its own account says so: `ru_maxrss` would be at least that of the test's process, which it was forked from.
    """
    status = folder / "status"
    child = subprocess.run([sys.executable, "-c", PEAK, str(status), *arguments], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    (peak,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak) * 1024, child.stdout


def estimated(folder, *arguments):
    _, text = peak_of(folder, "estimate", *arguments, "--json")
    return json.loads(text)["memory_peak"]


def test_the_estimate_predicts_the_peak_within_a_fifth_and_it_does_not_grow(wide):
    arguments, root = wide
    arguments = [*arguments, "--stages", "universality", "--batch-tokens", "1024"]  # full batches in every pass of both
    peaks = []
    for tokens in ("6000", "18000"):
        out = ("--max-tokens", tokens, "--out", str(root / tokens))
        peaks.append(peak_of(root, "run", *arguments, *out)[0])
    expected = estimated(root, *arguments)
    assert [expected, expected] == pytest.approx(peaks, rel=0.2)
    assert peaks[1] < 1.1 * peaks[0]


def test_the_estimate_predicts_the_peak_of_all_stages(wide, few_roles):
    arguments, root = wide
    arguments = [*arguments, "-c", str(few_roles)]
    peak, _ = peak_of(root, "run", *arguments, "--max-tokens", "4000", "--out", str(root / "all"))
    assert estimated(root, *arguments) == pytest.approx(peak, rel=0.2)


def test_the_estimate_predicts_the_peak_of_a_diff(wide):
    arguments, root = wide
    _, base, _, tuned, *text = arguments
    given = ("diff", base, tuned, *text, "--null", tuned, "--stages", "universality", "--batch-tokens", "1024")
    peak, _ = peak_of(root, *given, "--max-tokens", "6000", "--out", str(root / "diff"))
    _, told = peak_of(root, *given, "--estimate", "--json")
    assert json.loads(told)["memory_peak"] == pytest.approx(peak, rel=0.2)
