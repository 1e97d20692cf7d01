"""How fast and how exact are a CPU's products in each precision?  python benchmarks/products.py [--tokens N]

1. Float32-equivalent GFLOP/s of a processor second, of 4 096 positions and 4 608 units, everything but packing included.
2. The largest error of ρ against float64, of 4 096 positions, by the kurtosis of the units.
3. With `--tokens N`: processor seconds of the pass of one pair of reduced models (searches.py), beside the plain way.

Processor seconds, so that what else runs on the machine counts less.  Prints a Markdown section; benchmarks/RESULTS.md
holds one.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from measure import machine
from plain_way import plain_way, reads_by, to_lens
from searches import CONTEXT, SHAPES, Run, forwards, random_model, random_tokens, settings_of

from universal_neurons.statistics import Block, add_product_of_blocks, round_to_scales, units_for
from universal_neurons.study.product_units import errors_of
from universal_neurons.torch_state import settled_torch

KINDS = ("float32", "int8", "bfloat16")
POSITIONS, UNITS = 4096, 4608


def processor_seconds(work: Callable[[], object]) -> float:
    """What all threads of this process took."""
    started = time.process_time()
    work()
    return time.process_time() - started


@settled_torch()
def rate(kind: str) -> float:
    """Float32-equivalent FLOP of a product in a processor second."""
    values = torch.randn(POSITIONS, UNITS)
    block = Block(values, rounding=kind, scale=round_to_scales(values) if kind == "int8" else None)
    into, every = torch.zeros(UNITS, UNITS), slice(None)
    add = partial(add_product_of_blocks, into, block, every, block, every, False)
    add()
    return 2 * POSITIONS * UNITS**2 / min(processor_seconds(add) for _ in range(3))


def heavy_tailed(power: float, seed: int) -> torch.Tensor:
    """Units that share signals, each a power of a Gaussian's size."""
    shared = np.random.default_rng(0).standard_normal((POSITIONS, 64))
    values = shared + np.random.default_rng(seed).standard_normal((POSITIONS, 64)) / 2
    return torch.from_numpy((np.sign(values) * np.abs(values) ** power).astype(np.float32))


def kurtosis(values: torch.Tensor) -> float:
    """The highest of any unit."""
    centred = values.double() - values.double().mean(0)
    return float((centred.pow(4).mean(0) / centred.square().mean(0).square()).max())


def passes(count: int) -> None:
    """Processor seconds of the pass in each precision."""
    models, tokens = [random_model("reduced", seed, "cpu") for seed in (1, 2)], random_tokens(count)
    layers, width = SHAPES["reduced"]["n_layer"], SHAPES["reduced"]["n_inner"]
    lenses = [to_lens(model) for model in models]
    plain = processor_seconds(lambda: plain_way(lenses, tokens, layers, width))
    print(f"\nOne pair of reduced models, {tokens.counted:,} counted tokens; the plain way by {reads_by()}.\n")
    print("| | processor seconds | faster than the plain way |\n|---|---|---|")
    print(f"| the plain way | {plain:.1f} | |")
    print(f"| the forward passes alone | {processor_seconds(lambda: forwards(models, tokens, 2048)):.1f} | |")
    for kind in KINDS:
        run = Run(models, tokens, settings_of(models, "exact", context=CONTEXT, gemm_dtype=kind, batch_tokens=4096))
        stages: dict[str, float] = {}
        run.stage = partial(_timed_stage, stages)  # type: ignore[method-assign]
        run.go()
        print(f"| the pass, {kind} | {stages['pass']:.1f} | {plain / stages['pass']:.1f}× |")


def _timed_stage(stages: dict[str, float], name: str, work: Callable[[], object]) -> object:
    results: list[object] = []
    seconds = processor_seconds(lambda: results.append(work()))
    stages[name] = stages.get(name, 0.0) + seconds
    return results[0]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tokens", type=int, help="of the passes; none are timed without")
    arguments = options.parse_args()
    given = f" --tokens {arguments.tokens}" if arguments.tokens else ""
    print(f"## products\n\n`python benchmarks/products.py{given}`; {machine()}\n")
    print("| products in | units | GFLOP of float32 a processor second |\n|---|---|---|")
    for kind in KINDS:
        print(f"| {kind} | {', '.join(units_for(kind)) or '–'} | {rate(kind) / 1e9:.0f} |")
    print(f"\nThe largest error of ρ against float64, {POSITIONS:,} positions, 64 × 64 units.\n")
    print(f"| kurtosis | {' | '.join(KINDS)} |\n|---|{'---|' * len(KINDS)}")
    for power in (1, 3, 5, 9):
        left, right = heavy_tailed(power, 1), heavy_tailed(power, 2)
        errors = [float(errors_of(left, right, kind).max()) for kind in KINDS]
        print(f"| {kurtosis(left):,.0f} | {' | '.join(f'{error:.1e}' for error in errors)} |")
    if arguments.tokens:
        passes(arguments.tokens)


if __name__ == "__main__":
    main()
