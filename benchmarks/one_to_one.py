"""How long does a one-to-one matching take, and how long the similarity of two layers?

    python benchmarks/one_to_one.py [--units N] [--few K] [--positions N] [--widths W ...]

Units of two models, K best matches each: of random others; with three fifths of the units shared; and with others of
which few are many units' match (popularity of a Pareto law of exponent 1), as hubs are.  Then two layers of random
units on so many positions.  Processor seconds, and peak memory above what the process held before.  Prints a Markdown
section; benchmarks/RESULTS.md holds one.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from measure import PeakMemory, machine

from universal_neurons.matching import Layer, assign, drawn_shifts, similarity_of
from universal_neurons.text import STRETCHES

Candidates = tuple[np.ndarray, np.ndarray]
draw = np.random.default_rng(0)


def correlations(units: int, few: int) -> np.ndarray:
    """ρ of every unit with its best few, falling."""
    return -np.sort(-draw.beta(2, 5, (units, few)), 1)


def candidates(units: int, few: int, popularity: np.ndarray | None = None) -> Candidates:
    """Every unit's best are drawn, each once, any of them as likely or by popularity."""
    index = np.sort(draw.choice(units, (units, few), p=popularity), 1)
    index[:, 1:][index[:, 1:] == index[:, :-1]] = -1
    return correlations(units, few), draw.permuted(index, axis=1)


def random_others(units: int, few: int) -> Candidates:
    """Every unit's best are any."""
    return candidates(units, few)


def shared_others(units: int, few: int) -> Candidates:
    """Three fifths of the units have a counterpart of their own, at ρ 0.9."""
    corr, index = random_others(units, few)
    shared = units * 3 // 5
    index[:shared][index[:shared] == np.arange(shared)[:, None]] = -1
    index[:shared, 0], corr[:shared, 0] = np.arange(shared), 0.9
    return corr, index


def hubs(units: int, few: int) -> Candidates:
    """Few others are the best of many."""
    popularity = draw.pareto(1.0, units) + 0.01
    return candidates(units, few, popularity / popularity.sum())


KINDS: dict[str, Callable[[int, int], Candidates]] = {
    "random others": random_others, "three fifths shared": shared_others, "hubs": hubs,
}  # fmt: skip


def measured(work: Callable[[], object]) -> tuple[float, float, object]:
    """Processor seconds, GiB at the peak, and what the work returned."""
    with PeakMemory("cpu") as memory:
        started = time.process_time()
        result = work()
        seconds = time.process_time() - started
    return seconds, memory.bytes / 2**30, result


def assignment_row(kind: str, units: int, few: int) -> str:
    """A row of the first table."""
    corr, index = KINDS[kind](units, few)
    seconds, size, pairs = measured(lambda: assign(corr, index))
    matched, moved = float(pairs.matched.mean()), float(pairs.moved.mean())  # type: ignore[attr-defined]
    return f"| {kind} | {seconds:.1f} | {size:.2f} | {matched:.1%} | {moved:.1%} |"


def similarity_row(width: int, positions: int) -> str:
    """A row of the second table."""
    values = [torch.relu(torch.randn(positions, width)) for _ in range(2)]
    ends = [positions * (n + 1) // STRETCHES for n in range(STRETCHES)]
    axes_seconds, _, layers = measured(lambda: [Layer(each, ends) for each in values])
    seconds, size, _ = measured(lambda: similarity_of(*layers, drawn_shifts(positions, 0)))  # type: ignore[misc]
    return f"| {width:,} | {axes_seconds / 2:.2f} | {seconds:.2f} | {size:.2f} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--units", type=int, default=36_864)
    parser.add_argument("--few", type=int, default=10)
    parser.add_argument("--positions", type=int, default=7_812)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 1024])
    options = parser.parse_args()
    print(f"""## one to one

`python benchmarks/one_to_one.py --units {options.units} --few {options.few} --positions {options.positions} --widths {" ".join(map(str, options.widths))}`; {machine()} Processor seconds.

{options.units:,} units and as many others, from {options.few} best matches; at most 60 s and 4 GiB are wanted.

| matches | seconds | GiB | matched | moved |
|---|---|---|---|---|""")
    for kind in KINDS:
        print(assignment_row(kind, options.units, options.few), flush=True)
    print(f"""
Two layers on {options.positions:,} positions: principal axes of each, and their measures with intervals and chance.

| units a layer | axes, s | measures, s | GiB |
|---|---|---|---|""")
    for width in options.widths:
        print(similarity_row(width, options.positions), flush=True)


if __name__ == "__main__":
    main()
