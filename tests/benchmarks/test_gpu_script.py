"""The run that is prepared for a GPU (benchmarks/gpu.sh), rehearsed at toy shapes on the CPU.

Of the tests marked `cuda` it runs a few: where there is no GPU, all of them run on the CPU beside this one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

ROOT = Path(__file__).parents[2]
ONLY = "interventions or memory or overlap or handed_over"
SCRIPT = ["bash", str(ROOT / "benchmarks" / "gpu.sh")]


def run(*arguments):
    environment = os.environ | {"PYTHON": sys.executable, "OMP_WAIT_POLICY": "PASSIVE", "TRAINING": "4", "ONLY": ONLY}
    return subprocess.run([*SCRIPT, *map(str, arguments)], capture_output=True, text=True, env=environment)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="what travels is what git holds")
def test_the_rehearsal_runs_every_part_to_its_end(tmp_path):
    done = run("--dry", tmp_path / "results")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "for train travel code" in done.stdout
    log = (tmp_path / "results" / "log.md").read_text()
    for part in ("tests", "speed", "train"):
        assert f"== {part}: exit status 0" in log
    assert " passed" in log
    assert log.count("| exact |") == 4  # two cases, each row at once and again in the section
    files = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert len(files) <= 8
    assert {"log.md", "results.json", "last-0.safetensors"} <= set(files)
    with safe_open(tmp_path / "results" / "last-0.safetensors", "pt") as weights:
        assert {name.split("/")[0] for name in weights.keys()} == {"seed-1", "seed-2", "relu2-1", "relu2-2"}  # noqa: SIM118


@pytest.mark.skipif((ROOT / ".gpu").exists(), reason="prepared here")
def test_a_part_whose_files_were_not_carried_is_refused_before_anything_runs(tmp_path):
    for part, file in (("speed", ".gpu/site.tar.xz"), ("train", ".gpu/roles/tokens.u16.xz")):
        done = run(tmp_path / "results", part)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"{file} is not here, and {part} needs it: --prepare\n"


def test_an_unknown_part_is_refused_before_anything_runs(tmp_path):
    done = run("--dry", tmp_path / "results", "tests", "trian")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no part trian: wanted tests, speed or train" in done.stderr
    assert not (tmp_path / "results").exists()
