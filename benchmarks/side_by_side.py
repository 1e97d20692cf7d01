"""Do two studies on the same cores slow each other down?  python benchmarks/side_by_side.py

Studies of two bundled models, one alone and two at once, with idle OpenMP threads that spin (torch's default), that
sleep (what the package sets), and with one thread each.  Prints a Markdown section; benchmarks/RESULTS.md holds one.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STUDY = ["run", "--models", "bundled/seed-1", "--models", "bundled/seed-2", "--stages", "universality"]
TOKENS = ["--max-tokens", "40000"]
WAYS: dict[str, tuple[dict[str, str], list[str]]] = {
    "idle threads spin (GOMP_SPINCOUNT=300000)": ({"GOMP_SPINCOUNT": "300000"}, []),
    "idle threads sleep (the package's OMP_WAIT_POLICY=PASSIVE)": ({}, []),
    "--threads 1": ({}, ["--threads", "1"]),
}


def seconds_of(studies: int, environment: dict[str, str], options: list[str]) -> float:
    """How long so many studies take that start together."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    code = "import sys; from universal_neurons.cli import main; main(sys.argv[1:])"
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        children = [
            subprocess.Popen(
                [sys.executable, "-c", code, *STUDY, *TOKENS, *options, "--out", str(Path(folder) / str(number))],
                env=clean | environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for number in range(studies)
        ]
        if any(child.wait() for child in children):
            raise SystemExit("a study failed")
        return time.perf_counter() - started


def main() -> None:
    print(
        f"## side by side\n\n`python benchmarks/side_by_side.py`; {os.cpu_count()} cores; seconds, start-up included.\n"
    )
    print("| | one study | two at once | ratio |\n|---|---|---|---|")
    for name, (environment, options) in WAYS.items():
        alone, both = (seconds_of(studies, environment, options) for studies in (1, 2))
        print(f"| {name} | {alone:.1f} | {both:.1f} | {both / alone:.2f} |", flush=True)


if __name__ == "__main__":
    main()
