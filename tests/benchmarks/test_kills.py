"""Studies that are killed at any moment resume to the same bytes: a few of the kills of benchmarks/kills.py."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kills.py"
SMALLER = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import kills
kills.SHARD_POSITIONS, kills.MAX_TOKENS, kills.TEXT_WORDS = 512, 3_072, 3_500
del kills.CASES["exact"]  # all stages are exact too
kills.main()
"""


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import kills
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return kills


@pytest.mark.slow
def test_killed_studies_resume_to_the_same_bytes(tmp_path):
    """In a process of its own: a fork of this one would lose the threads that other tests have started.

    Shards are half as long as the script's, and as many.
    """
    command = [sys.executable, "-c", SMALLER, str(SCRIPT.parent), "--kills", "4", "--seed", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    studies = re.search(r"Identical to an undisturbed study: (\d+) of (\d+)\.", done.stdout)
    assert studies is not None, done.stdout
    assert studies[1] == studies[2]
    kills = re.search(r"\n(\d+) kills of", done.stdout)
    assert kills is not None
    assert int(kills[1]) >= 4  # the last study may be killed again


def test_a_child_that_fails_by_itself_is_not_taken_for_a_killed_one(script, capfd):
    def fails(board):
        raise ZeroDivisionError

    with pytest.raises(RuntimeError, match="failed while starting"):
        script.in_child(fails)
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_kill_is_seen_with_what_it_interrupted(script):
    def works(board):
        script.Spy(board).say("pass")
        while True:
            pass

    outcome = script.in_child(works, 0.3)
    assert outcome.killed
    assert outcome.doing == "pass"
    assert not script.in_child(lambda board: None).killed


def test_studies_that_differ_are_named(script):
    tally = script.Tally()
    tally.kills["exact", "pass"] += 1
    tally.studies["exact"] += 1
    tally.different.append("exact: neurons.parquet")
    page = script.section(tally, "command", 2.0)
    assert "undisturbed study: 0 of 1" in page
    assert "NOT IDENTICAL: exact: neurons.parquet" in page
