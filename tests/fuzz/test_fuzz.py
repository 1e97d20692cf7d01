"""Files of every format, mutated: a named error or an answer, never a traceback, a hang, a silent difference, a swell.

`pytest tests/fuzz` tries 1 000 mutations, `pytest tests/fuzz --mutations 20000` more, `--fuzz-seed N` others.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

WORKER = Path(__file__).with_name("worker.py")
SHARES = {"text": 0.4, "models": 0.25, "studies": 0.35}
HANG_SECONDS = 30.0  # of a worker's work or sleep, however long it waits for a processor
START_SECONDS = 180.0
RESTARTS = 5


@pytest.mark.parametrize("group", SHARES)
def test_no_mutation_of_a_file_does_more_than_raise_a_named_error(group, tmp_path, request):
    mutations = round(request.config.getoption("--mutations") * SHARES[group])
    seed = request.config.getoption("--fuzz-seed")
    findings = fuzzed(group, tmp_path, mutations, seed)
    assert not findings, "\n".join(findings)


def fuzzed(group: str, folder: Path, mutations: int, seed: int, hang_seconds: float = HANG_SECONDS) -> list[str]:
    """All findings; a worker that died or hung is started again behind the mutation it was at."""
    findings: list[str] = []
    first = 0
    for attempt in range(RESTARTS):
        lines, ending = worked(group, folder / str(attempt), mutations, seed, first, hang_seconds)
        findings += [f"{line['target']} ({line['number']}): {line['finding']}" for line in lines if "finding" in line]
        if lines and "done" in lines[-1]:
            return findings
        last = next((line for line in reversed(lines) if "at" in line), None)
        findings.append(f"{last['target']} ({last['at']}): {ending}" if last else f"before any mutation: {ending}")
        if last is None:
            return findings
        first = last["at"] + 1
    return [*findings, f"given up after {RESTARTS} workers"]


class Effort:
    """How long a process has computed, or slept without a break, since it was heard: a busy machine adds nothing."""

    def __init__(self, pid: int) -> None:
        self.process = psutil.Process(pid)
        self.heard()

    def heard(self) -> None:
        self.before = self.computed = self._computed()
        self.slept, self.looked = 0.0, time.monotonic()

    def _computed(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system

    def seconds(self) -> float:
        now, computed = time.monotonic(), self._computed()
        asleep = computed == self.computed and self.process.status() == psutil.STATUS_SLEEPING
        self.slept = self.slept + now - self.looked if asleep else 0.0
        self.computed, self.looked = computed, now
        return max(computed - self.before, self.slept)


def worked(
    group: str, folder: Path, mutations: int, seed: int, first: int, hang_seconds: float
) -> tuple[list[dict], str]:
    """What one worker said, and how it ended."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(WORKER), group, str(folder), str(mutations), str(seed), str(first)]
    lines: list[dict] = []
    with (folder.parent / "errors.txt").open("w+") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment) as worker:
            assert worker.stdout is not None
            os.set_blocking(worker.stdout.fileno(), False)
            with selectors.DefaultSelector() as ready:
                ready.register(worker.stdout, selectors.EVENT_READ)
                rest, effort = b"", Effort(worker.pid)
                while ready.select(timeout=1.0) or worker.poll() is None:
                    chunk = worker.stdout.read()
                    if chunk == b"":
                        break
                    if chunk:
                        effort.heard()
                        *whole, rest = (rest + chunk).split(b"\n")
                        lines += map(json.loads, whole)
                    elif effort.seconds() > (hang_seconds if lines else START_SECONDS):
                        worker.kill()
                        return lines, f"hung for {hang_seconds:g} seconds"
        errors.seek(0)
        return lines, f"ended with {worker.returncode}: {errors.read()[-1500:]}"


@pytest.mark.parametrize("code", ["while True: pass", "import time; time.sleep(3600)"])
def test_work_and_sleep_count(code):
    with subprocess.Popen([sys.executable, "-c", code]) as child:
        effort = Effort(child.pid)
        while effort.seconds() < 0.5:
            time.sleep(0.1)
        effort.heard()
        assert effort.seconds() < 0.5
        child.kill()


def test_a_wait_for_a_processor_does_not():
    """Stopped, it neither computes nor sleeps, as where others have all processors."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as child:
        effort = Effort(child.pid)
        child.send_signal(signal.SIGSTOP)
        while effort.process.status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        effort.heard()
        time.sleep(0.3)
        assert effort.seconds() < 0.1
        child.kill()


def test_whatever_a_reader_does_wrong_is_found(tmp_path):
    findings = fuzzed("wrong", tmp_path, 6, 0, hang_seconds=2.0)
    signs = ("ZeroDivisionError", "another answer, in silence", "ended with -11", "more memory", "characters", "hung")
    assert len(findings) == len(signs)
    for finding, sign in zip(findings, signs):
        assert sign in finding
