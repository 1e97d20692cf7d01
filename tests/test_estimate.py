"""Memory: the estimate against a run in a process of its own, and no growth with the number of tokens."""

import json
import os
import subprocess
import sys

import pytest
from conftest import save_tiny, some_text

WIDE = {"n_embd": 32, "n_inner": 1024, "n_layer": 4}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Two models of 4 096 neurons and a long text: the statistics outweigh the libraries' share of memory."""
    root = tmp_path_factory.mktemp("wide")
    (root / "long.txt").write_text(some_text(40_000))
    models = [a for seed in (0, 1) for a in ("--models", str(save_tiny(root / f"m{seed}", seed=seed, **WIDE)))]
    return [*models, "--data", str(root / "long.txt"), "--draws", "2"], root


def peak_of(*arguments: str) -> tuple[int, str]:
    code = "import sys; from universal_neurons.cli import main; main(sys.argv[1:])"
    child = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    text = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = status
    assert status == 0
    return usage.ru_maxrss * 1024, text


def estimated(*arguments):
    _, text = peak_of("estimate", *arguments, "--json")
    return json.loads(text)["memory_peak"]


def test_the_estimate_predicts_the_peak_within_a_fifth_and_it_does_not_grow(wide):
    arguments, root = wide
    arguments = [*arguments, "--stages", "universality", "--batch-tokens", "1024"]  # full batches in every pass of both
    peaks = []
    for tokens in ("8000", "24000"):
        out = ("--max-tokens", tokens, "--out", str(root / tokens))
        peaks.append(peak_of("run", *arguments, *out)[0])
    expected = estimated(*arguments)
    assert [expected, expected] == pytest.approx(peaks, rel=0.2)
    assert peaks[1] < 1.1 * peaks[0]


def test_the_estimate_predicts_the_peak_of_all_stages(wide, few_roles):
    arguments, root = wide
    arguments = [*arguments, "-c", str(few_roles)]
    peak, _ = peak_of("run", *arguments, "--max-tokens", "4000", "--out", str(root / "all"))
    assert estimated(*arguments) == pytest.approx(peak, rel=0.2)
