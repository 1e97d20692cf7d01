"""Does `uneurons estimate` predict a run's peak memory, and does memory stay flat?  python benchmarks/memory.py

Runs studies of the bundled models in processes of their own and sets their peak resident memory beside the estimate.
Prints a Markdown section; benchmarks/RESULTS.md holds one.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

STUDIES = {
    "two models": ["--models", "bundled/seed-1", "--models", "bundled/seed-2", "--max-tokens", "30000"],
    "five models": ["--max-tokens", "30000"],
    "five models, four times the tokens": ["--max-tokens", "120000"],
    "five models, all pairs": ["--pairs", "all", "--max-tokens", "30000"],
    "three models, every subset apart": [
        "--models", "bundled/seed-1", "--models", "bundled/seed-2", "--models", "bundled/seed-3",
        "--subset", "all", "--max-tokens", "30000",
    ],
    "two models, permutation baseline": [
        "--models", "bundled/seed-1", "--models", "bundled/seed-2", "--baseline", "permutation", "--max-tokens", "30000",
    ],
}  # fmt: skip


def peak_of(arguments: list[str]) -> tuple[int, str]:
    """Peak resident bytes of a `uneurons` command and what it printed."""
    code = "import sys; from universal_neurons.cli import main; main(sys.argv[1:])"
    with tempfile.TemporaryFile("w+") as out:
        child = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=out, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"uneurons {' '.join(arguments)} failed")
        out.seek(0)
        return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), out.read()


def main() -> None:
    print("## memory\n\n`python benchmarks/memory.py`; peak resident memory, MiB.\n")
    print("| study of bundled models | estimated | measured | ratio |\n|---|---|---|---|")
    for name, arguments in STUDIES.items():
        _, text = peak_of(["estimate", *arguments, "--json"])
        estimated = json.loads(text)["memory_peak"]
        with tempfile.TemporaryDirectory() as folder:
            measured, _ = peak_of(["run", *arguments, "--out", str(Path(folder) / "run")])
        print(f"| {name} | {estimated >> 20:,} | {measured >> 20:,} | {estimated / measured:.2f} |", flush=True)


if __name__ == "__main__":
    main()
