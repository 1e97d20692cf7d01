"""What does a diff cost beside the study that is in it?  python benchmarks/diff.py

A bundled seed at a checkpoint and at its end, as base and fine-tune: the study of the two, each asking the other, and the
diff with the same stages, effects left out.  Processor seconds, the least of two, models read from disk each time.
Prints a Markdown section; benchmarks/RESULTS.md holds one.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measure import machine

import universal_neurons as un
from universal_neurons.models import BUNDLED_FOLDER

ROUNDS = 2
TOKENS = 100_000
STAGES = {
    "universality": ("universality",),
    "all but roles": ("weights", "statistics", "labels", "universality"),
}


def best_of(work: Callable[[str], object]) -> float:
    """The fewest processor seconds of some rounds, each into a folder of its own."""
    seconds = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            started = time.process_time()
            work(str(Path(folder) / "run"))
            seconds.append(time.process_time() - started)
    return min(seconds)


def main(tokens: int) -> None:
    models = tuple(str(BUNDLED_FOLDER / "seed-1" / step) for step in ("step-3223", ""))
    print(f"## diff\n\n`python benchmarks/diff.py {tokens}`; {machine()}\n")
    print("| stages | study, s | diff, s | ratio |\n|---|---|---|---|")
    for name, stages in STAGES.items():
        config = un.DiffConfig(
            effects=0,
            models=models,
            max_tokens=tokens,
            stages=stages,
            tokenizer=str(BUNDLED_FOLDER / "tokenizer"),
            nlp="auto",
        )
        study = best_of(lambda out, config=config: un.run_study(config.study(out=out), progress=False))
        diff = best_of(lambda out, config=config: un.run_diff(config.model_copy(update={"out": out}), progress=False))
        print(f"| {name} | {study:.1f} | {diff:.1f} | {diff / study:.2f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else TOKENS)
