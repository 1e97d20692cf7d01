"""Does a study that is killed at any moment resume to the same bytes?

    python benchmarks/kills.py [--kills N] [--seed S]

Small studies of tiny models (exact, in panels, screened, in lanes, all stages) run in child processes, with a
snapshot after every shard.  Each is killed (SIGKILL) after a random part of the time it takes, resumed, sometimes
killed again, and in the end compared, byte for byte, with one that nobody disturbed.

The package is imported once and children are forked: nothing here runs a study in the parent, whose threads a fork
would lose.  Prints a Markdown section; benchmarks/RESULTS.md holds one.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["POLARS_MAX_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import contextlib
import json
import mmap
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import universal_neurons as un
from universal_neurons.models import BUNDLED_FOLDER, quiet_transformers
from universal_neurons.progress import Reporter
from universal_neurons.study import run as studies
from universal_neurons.text import tokens

SHARD_POSITIONS = 1024  # of this script's studies, so that a short text has many
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "a",
    "is",
    "that",
    "it",
    "was",
    "for",
    "on",
    "are",
    "as",
    "with",
    "his",
    "they",
]
TEXT_WORDS, MAX_TOKENS, CONTEXT = 7_000, 6_144, 64
AGAIN = 0.3  # the share of resumed studies that are killed again
PATIENCE = 300  # seconds after which a study hangs
STARTING = "starting"
ORDER = (
    STARTING,
    "models",
    "tokens",
    "weights",
    "labels",
    "pass",
    "statistics",
    "compare",
    "detail",
    "tables",
    "roles",
)
PLAIN: dict[str, Any] = {"stages": ("universality",), "draws": 2, "max_tokens": MAX_TOKENS, "context": CONTEXT}
ROLES = {"tokens": 512, "values": (0.0, 2.0), "controls": 3, "attention_pairs": 2, "distances": (4, 8), "ablated": 4}
CASES: dict[str, dict[str, Any]] = {
    "exact": PLAIN,
    "3 panels, all pairs": PLAIN | {"panels": 3, "pairs": "all"},
    "screened": PLAIN | {"search": "screened", "group_size": 8},
    "3 lanes": PLAIN | {"lanes": 3},
    "all stages": PLAIN | {"stages": (), "labels": ("tokens", "unigrams", "position"), "roles": ROLES},
}


class Spy(Reporter):
    """A silent reporter that leaves in shared memory what its study is doing."""

    def __init__(self, board: mmap.mmap) -> None:
        super().__init__(quiet=True)
        self.board = board

    def say(self, what: str) -> None:
        """Now it does this, until it says something else."""
        self.board[:] = what.encode()[: len(self.board)].ljust(len(self.board))

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Write the stage's name to the board, and time it."""
        self.say(name)
        with super().stage(name):
            yield


@dataclass
class Outcome:
    """What came of a child: whether it was killed, while doing what, and how long it ran."""

    killed: bool
    doing: str
    seconds: float


@dataclass
class Tally:
    """Kills by case and stage, and the studies whose files differ."""

    kills: Counter = field(default_factory=Counter)  # by (case, what it was doing)
    studies: Counter = field(default_factory=Counter)  # by case
    survived: int = 0  # children that ended before their kill
    different: list[str] = field(default_factory=list)


def make_inputs(folder: Path) -> tuple[list[str], str]:
    """Three tiny models and a text."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_FOLDER / "tokenizer")
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "n_positions": CONTEXT, "vocab_size": 1024}
    for seed in range(3):
        torch.manual_seed(seed)
        network = GPT2LMHeadModel(GPT2Config(**shape, initializer_range=0.3, bos_token_id=0, eos_token_id=0))
        with quiet_transformers():
            network.save_pretrained(folder / f"m{seed}")
            tokenizer.save_pretrained(folder / f"m{seed}")
    draw = random.Random(0)
    endings = ["", "", "", "", ",", ".\n", "!", " 12"]
    text = " ".join(draw.choice(WORDS) + draw.choice(endings) for _ in range(TEXT_WORDS))
    (folder / "text.txt").write_text(text)
    return [str(folder / f"m{seed}") for seed in range(3)], str(folder / "text.txt")


def in_child(work: Callable[[mmap.mmap], None], delay: float | None = None) -> Outcome:
    """Fork, do some work there, and kill it after so many seconds.  Raises `RuntimeError` where it fails by itself."""
    board = mmap.mmap(-1, 64)
    board[:] = STARTING.encode().ljust(64)
    started = time.perf_counter()
    child = os.fork()
    if not child:
        signal.alarm(PATIENCE)
        try:
            work(board)
        except BaseException:  # noqa: BLE001 - the child must not go on as the parent
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)  # not waited for yet, so the number is still its own
    _, status = os.waitpid(child, 0)
    seconds = time.perf_counter() - started
    doing = bytes(board).decode().strip()
    how = os.waitstatus_to_exitcode(status)
    if how not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a study failed while {doing}: exit status {how}")
    return Outcome(how != 0, doing, seconds)


def study(case: str, models: list[str], data: str, out: Path) -> Callable[[mmap.mmap], None]:
    """What a child does: begin or resume a study."""
    few = models[: 2 if case in ("screened", "all stages") else 3]
    settings = {"models": few, "data": data, "out": str(out)} | CASES[case]

    def work(board: mmap.mmap) -> None:
        tokens.SHARD_POSITIONS = SHARD_POSITIONS
        studies.run_study(un.StudyConfig(**settings), reporter=Spy(board), checkpoint_seconds=0.0)

    return work


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a study; of study.json all but the timings."""
    files = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    manifest = json.loads(files.pop("study.json"))
    del manifest["timings"]
    return files | {"study.json": json.dumps(manifest).encode()}


def one_study(
    case: str, models: list[str], data: str, out: Path, length: float, draw: random.Random, tally: Tally
) -> None:
    """Kill a study once or more often, resume it to its end."""
    work = study(case, models, data, out)
    tally.studies[case] += 1
    while True:
        outcome = in_child(work, draw.uniform(0, length))
        if not outcome.killed:
            tally.survived += 1
            return
        tally.kills[case, outcome.doing] += 1
        if draw.random() >= AGAIN:
            break
    in_child(work)


def run(kills: int, seed: int, folder: Path) -> Tally:
    """So many kills, one case after the other."""
    models, data = make_inputs(folder)
    un.load_model(models[0])  # imports what children would else import one by one
    os.environ["UNIVERSAL_NEURONS_CACHE"] = str(folder / "cache")
    wanted, lengths = {}, {}
    for case in CASES:
        work = study(case, models, data, folder / "whole")
        in_child(work)
        wanted[case] = contents(folder / "whole")
        shutil.rmtree(folder / "whole")
        lengths[case] = float("inf")
        for _ in range(2):  # with warm caches, as those to come
            lengths[case] = min(lengths[case], in_child(work).seconds)
            if contents(folder / "whole") != wanted[case]:
                raise RuntimeError(f"{case}: two undisturbed studies differ")
            shutil.rmtree(folder / "whole")
    tally = Tally()
    draw = random.Random(seed)
    while tally.kills.total() < kills:
        case = list(CASES)[tally.studies.total() % len(CASES)]
        out = folder / f"study-{tally.studies.total()}"
        one_study(case, models, data, out, lengths[case], draw, tally)
        files = contents(out)
        unlike = sorted(n for n in files.keys() | wanted[case].keys() if files.get(n) != wanted[case].get(n))
        if unlike:
            tally.different.append(f"{case}: {', '.join(unlike)}")
        shutil.rmtree(out)
    return tally


def section(tally: Tally, command: str, seconds: float) -> str:
    """The section of RESULTS.md."""
    doing = sorted({what for _, what in tally.kills}, key=ORDER.index)
    lines = [
        "## kills",
        "",
        f"`{command}`; tiny models, a snapshot after every shard of {SHARD_POSITIONS:,} positions; {seconds:.0f} s.",
        "",
        f"{tally.kills.total()} kills of {tally.studies.total()} studies; {tally.survived} children ended before their kill.",
        f"Identical to an undisturbed study: {tally.studies.total() - len(tally.different)} of {tally.studies.total()}.",
        "",
        "| killed while in | " + " | ".join(doing) + " | all |",
        "|---|" + "---|" * (len(doing) + 1),
    ]
    for case in CASES:
        counts = [tally.kills[case, what] for what in doing]
        lines.append(f"| {case} | " + " | ".join(map(str, [*counts, sum(counts)])) + " |")
    totals = [sum(tally.kills[case, what] for case in CASES) for what in doing]
    lines.append("| all | " + " | ".join(map(str, [*totals, sum(totals)])) + " |")
    return "\n".join([*lines, *(f"\nNOT IDENTICAL: {text}" for text in tally.different)])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    arguments = options.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        tally = run(arguments.kills, arguments.seed, Path(folder))
    command = f"python benchmarks/kills.py --kills {arguments.kills} --seed {arguments.seed}"
    print(section(tally, command, time.perf_counter() - started))
    raise SystemExit(bool(tally.different))


if __name__ == "__main__":
    main()
