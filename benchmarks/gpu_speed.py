"""Searches at full width on a GPU (benchmarks/scale.py gpu).

Every row is printed as soon as it is there, and all of them once more as a section when they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from measure import PeakMemory, timed
from searches import CONTEXT, Run, forwards, random_model, random_tokens, settings_of

from universal_neurons.models import Model
from universal_neurons.study.estimate import gemm_flops
from universal_neurons.study.memory import memory_plan, plan_layout

PAPER_TOKENS = 100_000_000
WARM_TOKENS = 65_536
COLUMNS = (
    "models", "search", "tokens", "forwards alone, s", "pass, s", "second pass, s", "answer, s",
    "products at the peak / (pass − forwards)", "(forwards + products at the peak) / whole",
    "100 M tokens, extrapolated, min", "memory estimated, GiB", "measured, GiB",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Models of one shape, searched in some ways, each over so many tokens."""

    shape: str
    models: int
    searches: dict[str, int]


FULL = (
    Case("small", 5, {"exact": 524_288, "sketch": 262_144, "screened": 131_072}),
    Case("medium", 2, {"exact": 131_072, "screened": 65_536}),
)
TOY = (Case("toy", 3, {"exact": 16_384, "screened": 16_384, "sketch": 16_384}), Case("toy", 2, {"exact": 16_384}))


def product_peak(device: str, dtype: torch.dtype, size: int) -> float:
    """FLOP/s of one large product of random numbers, the best of eight rounds."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    into = torch.empty(size, size, device=device, dtype=dtype)
    seconds = min(timed(lambda: torch.mm(left, right, out=into))[0] for _ in range(8))
    return 2.0 * size**3 / seconds


def speed_on_gpu(*, toy: bool = False) -> None:
    """All cases; `toy` rehearses them on the CPU."""
    device, size = ("cpu", 512) if toy else ("cuda", 8_192)
    dtype = torch.float32 if toy else torch.bfloat16
    peak = product_peak(device, dtype, size)
    card = "the CPU, a rehearsal" if toy else torch.cuda.get_device_name()
    rows = []
    for case in TOY if toy else FULL:
        models = [random_model(case.shape, seed, device) for seed in range(case.models)]
        for search, count in case.searches.items():
            rows.append("| " + " | ".join(cells(models, search, count, device, peak)) + " |")
            print(rows[-1], flush=True)
    print(f"""
## scale: speed on a GPU

`python benchmarks/scale.py gpu{" --toy" if toy else ""}`; {card}, torch {torch.__version__}.  GPT-2 shapes, random weights, random
tokens, the first model against the others, one baseline draw.  The product of two {size} × {size} matrices in
{str(dtype).removeprefix("torch.")} reaches {peak / 1e12:.2f} TFLOP/s here: the peak.

| {" | ".join(COLUMNS)} |
{"|---" * len(COLUMNS)}|""")  # fmt: skip
    print("\n".join(rows))


def cells(models: Sequence[Model], search: str, count: int, device: str, peak: float) -> list[str]:
    """One search, measured: a row of the table."""
    config = settings_of(models, search, context=CONTEXT)
    if device == "cuda":
        torch.cuda.empty_cache()
    layout = plan_layout(config, models)
    name = f"{len(models)} × {models[0].n_layers} × {models[0].d_mlp}"
    if layout.passes > 1:
        return [name, search, f"would take {layout.passes} passes here"]
    tokens = random_tokens(count)
    Run(models, random_tokens(min(WARM_TOKENS, count)), config, layout.compensated).go()
    forward, _ = timed(lambda: forwards(models, tokens, config.batch_tokens))
    run = Run(models, tokens, config, layout.compensated)
    with PeakMemory(device) as memory:
        run.go()
    first, second = run.seconds["pass"], run.seconds.get("second pass", 0.0)
    answer = run.total - first - second
    products = gemm_flops(models, config) * tokens.counted / peak
    shares = [f"{products / (first - forward):.0%}", f"{(forward + products) / run.total:.0%}"]
    whole = (first + second) * PAPER_TOKENS / tokens.counted + answer
    return [
        name,
        search,
        f"{tokens.counted:,}",
        *(f"{seconds:.2f}" for seconds in (forward, first, second, answer)),
        *(shares if search == "exact" else ["", ""]),
        f"{whole / 60:.1f}",
        f"{memory_plan(config, models, layout).total / 2**30:.2f}",
        f"{memory.bytes / 2**30:.2f}",
    ]
