"""Memory: the estimate against a run or a diff in a process of its own, and no growth with the number of tokens."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import save_tiny, small_tokenizer

from universal_neurons import StudyConfig
from universal_neurons.study import estimate, estimate_study

WIDE = {"n_embd": 32, "n_inner": 1024, "n_layer": 3}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Two models of 3 072 neurons and a long text: the statistics outweigh the libraries' share of memory.

    In the text all tokens of the vocabulary stand, as in texts at large: the more of them, the more labels there are.
    """
    root = tmp_path_factory.mktemp("wide")
    tokenizer, chooser = small_tokenizer(), random.Random(0)
    tokens = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    (root / "long.txt").write_text(tokenizer.decode(chooser.choices(tokens, k=60_000)))
    models = [a for seed in (0, 1) for a in ("--models", str(save_tiny(root / f"m{seed}", seed=seed, **WIDE)))]
    return [*models, "--data", str(root / "long.txt"), "--draws", "2"], root


SERVER = """
import json, os, pathlib, sys, traceback
import transformers.models.gpt2.modeling_gpt2
from universal_neurons.cli import main
from universal_neurons.diff import estimate_diff, run_diff
from universal_neurons.study import estimate_study, run_study

for line in sys.stdin:
    status, *arguments = json.loads(line)
    if not (child := os.fork()):
        code = 1
        try:
            os.dup2(os.open(f"{status}.out", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 1)
            main(arguments)
            sys.stdout.flush()
            pathlib.Path(status).write_text(pathlib.Path("/proc/self/status").read_text())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module", autouse=True)
def server():
    """A process that has imported what all commands need and has run nothing: every command is a fork of it.

    What a command frees goes back to the system at once: the C library would keep some 100 MiB of it, more or less
    from run to run.
    """
    environment = {key: value for key, value in os.environ.items() if key != "UNEURONS_FLOAT32"}  # as users run it
    at_once = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 20)}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment | at_once,
    ) as it:
        peak_of.server = it
        yield
        it.stdin.close()


def peak_of(folder: Path, *arguments: str) -> tuple[int, str]:
    """The most memory a command held, and what it printed.

    Its own account says so: `ru_maxrss` would be at least that of the test's process, which it was forked from.
    """
    status, server = folder / "status", peak_of.server
    print(json.dumps([str(status), *arguments]), file=server.stdin, flush=True)
    assert server.stdout.readline() == "0\n", arguments
    (peak,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak) * 1024, Path(f"{status}.out").read_text()


def estimated(folder, *arguments):
    _, text = peak_of(folder, "estimate", *arguments, "--json")
    return json.loads(text)["memory_peak"]


def test_the_estimate_predicts_the_peak_within_a_fifth_and_it_does_not_grow(wide):
    arguments, root = wide
    arguments = [*arguments, "--stages", "universality", "--batch-tokens", "512"]  # full batches in every pass of both
    peaks = []
    for tokens in ("3000", "9000"):
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
    given = ("diff", base, tuned, *text, "--null", tuned, "--stages", "universality", "--batch-tokens", "512")
    peak, _ = peak_of(root, *given, "--max-tokens", "3000", "--out", str(root / "diff"))
    _, told = peak_of(root, *given, "--estimate", "--json")
    assert json.loads(told)["memory_peak"] == pytest.approx(peak, rel=0.2)


def test_it_is_measured_as_the_study_would_run(wide, monkeypatch):
    arguments, root = wide
    models, data = arguments[1:4:2], str(root / "long.txt")
    threads, measure = [], estimate.gemm_rate

    def rate(*given):
        threads.append(torch.get_num_threads())
        return measure(*given)

    monkeypatch.setattr(estimate, "gemm_rate", rate)
    before = torch.get_num_threads()
    config = StudyConfig(models=tuple(models), data=data, threads=before + 2, stages=("universality",), max_tokens=3000)
    assert estimate_study(config).seconds > 0
    assert (set(threads), torch.get_num_threads()) == ({before + 2}, before)
