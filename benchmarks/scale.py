"""Is the engine at the machine's limit, and how right are the fast searches?

    python benchmarks/scale.py speed [--shape reduced|small|medium] [--tokens N] [--search exact[:PRODUCTS] ...]
    python benchmarks/scale.py gpu [--toy]
    python benchmarks/scale.py accuracy [--seeds N]

`speed`: GPT-2-shaped models with random weights (shape sets the cost), random tokens: on a CPU one pair of reduced
models (12 × 768 neurons) against the plain way: activations by transformer-lens or hooks, a float32 product per pair of layers,
sums in float64, a second pass for the rotated baseline.  Everything in one process, side by side, the plain way with torch as it is by default: seconds of every
stage, shares of the measured peak of the product, memory against the estimate, slopes in tokens and in neurons.

`gpu`: models at full width on a GPU, and the time of 100 M tokens extrapolated (gpu_speed.py).

`accuracy`: the bundled suite, many seeds of signs: errors of sketched ρ, recall of the best match, certificates.

Prints a Markdown section; benchmarks/RESULTS.md holds one.
"""

import argparse
from collections.abc import Sequence
from functools import partial

import numpy as np
from accuracy import accuracy
from gpu_speed import speed_on_gpu
from measure import PeakMemory, machine, slope, timed
from searches import CONTEXT, SHAPES, Run, forwards, random_model, random_tokens, settings_of

from universal_neurons.models import Model
from universal_neurons.study.measured import gemm_rate
from universal_neurons.study.memory import memory_plan
from universal_neurons.torch_state import settled_torch


def speed_on_cpu(shape: str, count: int, searches: Sequence[str]) -> None:
    """One pair of models, every search and the plain way on the same tokens."""
    from plain_way import exact_rows, plain_way, reads_by, to_lens

    models = [random_model(shape, seed, "cpu") for seed in (1, 2)]
    tokens = random_tokens(count)
    counted = tokens.counted
    entries = models[0].n_neurons * models[1].n_neurons
    product_rate = settled_torch()(partial(gemm_rate, "cpu", size=3072))
    peak = product_rate()
    forward, _ = timed(lambda: forwards(models, tokens, 2048))
    runs, peaks, estimates, answers = {}, {}, {}, {}
    Run(models, random_tokens(4096), settings_of(models, "exact", context=CONTEXT)).go()
    for search in searches:
        config = settings_of(models, **search_and_products(search), context=CONTEXT)
        runs[search] = Run(models, tokens, config)
        with PeakMemory("cpu") as peak_memory:
            answers[search] = runs[search].go()
        peaks[search] = peak_memory.bytes
        plan = memory_plan(config, models)
        estimates[search] = plan.statistics + plan.blocks + plan.workspace
    layer = 7 % models[0].n_layers
    rows = models[0].units.columns(layer)
    true_best = exact_rows(models, tokens, layer).max(1)
    lenses = [to_lens(model) for model in models]
    plain_seconds, plain = timed(lambda: plain_way(lenses, tokens, models[0].n_layers, models[0].d_mlp))
    peak = max(peak, product_rate())
    product = 2.0 * counted * entries / peak
    print(f"""## scale: speed

`python benchmarks/scale.py speed --shape {shape} --tokens {count}`; one pair of GPT-2-shaped models of random weights,
{models[0].n_layers} × {models[0].d_mlp} = {models[0].n_neurons:,} neurons each, {counted:,} counted tokens, one baseline draw, all in one process.
{machine()} The plain way reads activations by {reads_by()}.
On this processor `auto` chooses {settings_of(models, "exact", context=CONTEXT).gemm_dtype} for `exact`.

| | seconds | faster than the plain way | max error of the best ρ | same best match |
|---|---|---|---|---|""")
    expected = true_best.values.numpy()
    print(f"| the plain way | {plain_seconds:.1f} | | {np.abs(plain[0][rows].numpy() - expected).max():.1e} | |")
    for search, run in runs.items():
        error = np.abs(answers[search].best[0, rows] - expected).max()
        same = (answers[search].best_index[0, rows] == true_best.indices.numpy()).mean()
        print(f"| {search} | {run.total:.1f} | {plain_seconds / run.total:.1f}× | {error:.1e} | {same:.2%} |")
    print(f"""
Errors are against float64, layer {layer}'s {models[0].d_mlp} neurons. {_doubts(runs)}

| stage, seconds | {" | ".join(runs)} |
|---|{"---|" * len(runs)}""")
    for name in ("pass", "second pass", "candidates", "answer"):
        print(f"| {name} | " + " | ".join(f"{run.seconds.get(name, 0.0):.1f}" for run in runs.values()) + " |")
    print(f"""
| | |
|---|---|
| peak of the float32 product, measured here | {peak / 1e9:.0f} GFLOP/s |
| the forward passes alone | {forward:.1f} s |
| all pairs' products at the peak | {product:.1f} s |""")
    for search, run in runs.items():
        if run.config.search == "exact":
            print(
                f"| {search}: (forwards + float32 products at the peak) / whole | {(forward + product) / run.total:.0%} |"
            )
    print()
    print("| memory, MiB | estimated | measured |\n|---|---|---|")
    for search in runs:
        print(f"| {search} | {estimates[search] >> 20:,} | {peaks[search] >> 20:,} |")
    by_tokens = [(n, _exact_seconds(models, n)) for n in (count // 16, count // 8, count // 4)]
    by_layers = [
        (n * models[0].d_mlp, _exact_seconds([random_model(shape, s, "cpu", n) for s in (1, 2)], count // 8))
        for n in (3, 6, 12)
    ]
    print(f"""
| the pass, exact: log-log slope | at | |
|---|---|---|
| in tokens | {", ".join(f"{n:,}: {seconds:.1f} s" for n, seconds in by_tokens)} | {slope(*zip(*by_tokens)):.2f} |
| in neurons a model | {", ".join(f"{n:,}: {seconds:.1f} s" for n, seconds in by_layers)} | {slope(*zip(*by_layers)):.2f} |
""")


def search_and_products(named: str) -> dict[str, str]:
    """The settings that "exact:bfloat16" names; of "exact" alone products are as `auto` chooses."""
    search, _, products = named.partition(":")
    return {"search": search} | ({"gemm_dtype": products} if products else {})


def _doubts(runs: dict[str, Run]) -> str:
    lines = []
    if "screened" in runs:
        doubts = runs["screened"].doubts
        lines.append(f"Screened: {doubts['certified']:,} of {doubts['matches']:,} matches certified.")
    if "sketch" in runs:
        doubts = runs["sketch"].doubts
        lines.append(f"Sketch: standard error {doubts['standard_error']:.4f}, best lowered by {doubts['lowered']:.4f}.")
    return " ".join(lines)


def _exact_seconds(models: Sequence[Model], count: int) -> float:
    run = Run(models, random_tokens(count), settings_of(models, "exact", context=CONTEXT))
    run.go()
    return run.seconds["pass"]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", choices=["speed", "gpu", "accuracy"])
    options.add_argument("--shape", choices=list(SHAPES), default="reduced")
    options.add_argument("--tokens", type=int, default=131_072)
    options.add_argument("--seeds", type=int, default=20)
    options.add_argument(
        "--search", nargs="+", default=["exact:float32", "exact:int8", "exact:bfloat16", "screened", "sketch"]
    )
    options.add_argument("--toy", action="store_true", help="gpu: toy shapes on the CPU, a rehearsal")
    arguments = options.parse_args()
    if arguments.what == "accuracy":
        accuracy(arguments.seeds, arguments.tokens)
    elif arguments.what == "gpu":
        speed_on_gpu(toy=arguments.toy)
    else:
        speed_on_cpu(arguments.shape, arguments.tokens, arguments.search)


if __name__ == "__main__":
    main()
