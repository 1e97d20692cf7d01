"""Where a training step's time goes: products, attention and the rest, and what that makes of a given time.

`train.py … --profile FILE` writes it before anything is trained; on a GPU kernels are timed, on a CPU operators.
"""

import json
import time
from pathlib import Path
from typing import Any

import batched
from torch.profiler import ProfilerActivity, profile

STEPS = {"cuda": 20, "cpu": 3}
PRODUCTS = ("gemm", "nvjet", "cutlass", "xmma", "cublas", "bmm", "addmm", "::mm", "matmul", "_mm_")
ATTENTION = ("flash", "fmha", "scaled_dot_product", "mem_eff", "cudnn_generated")
SPANS = ("##", "Optimizer.", "Torch-Compiled", "ProfilerStep", "CompiledFunction")  # stretches, not kernels
AT = (20, 100)  # TFLOP/s that tokens are reckoned for
SECONDS = 300  # that they are reckoned for
SHOWN = 25


def kind_of(kernel: str) -> str:
    """What a kernel or operator does, by its name."""
    name = kernel.lower()
    if any(part in name for part in ATTENTION):
        return "attention"
    if not name.startswith("triton") and any(part in name for part in PRODUCTS):
        return "products"
    return "rest"


def tokens_in(seconds: float, tflops: float, flops_a_token: int, seeds: int) -> int:
    """Tokens that each seed reads in so many seconds of so many TFLOP/s of products."""
    return int(seconds * tflops * 1e12 / (flops_a_token * seeds))


def shares(times: dict[str, float]) -> dict[str, float]:
    """The share of each kind in the time of all kernels."""
    total = sum(times.values()) or 1.0
    share_of = dict.fromkeys(("products", "attention", "rest"), 0.0)
    for name, spent in times.items():
        share_of[kind_of(name)] += spent / total
    return share_of


def measure(training) -> dict[str, Any]:
    """Profile some steps of a `train.Training` that has warmed up; its weights are left as they fall."""
    device = training.device
    steps = STEPS[device]
    training.try_out(2)
    started = time.perf_counter()
    training.try_out(steps)
    seconds = (time.perf_counter() - started) / steps
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiled:
        training.try_out(steps)
    spent = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    events = [event for event in profiled.key_averages() if not event.is_user_annotation]
    if device == "cuda":  # kernels alone: an operator's time is its kernels' once more
        events = [e for e in events if "CUDA" in str(e.device_type) and not e.key.startswith(SPANS)]
    times = {event.key: getattr(event, spent) / 1e6 / steps for event in events}
    longest = sorted(times, key=lambda name: -times[name])[:SHOWN]
    config = training.config
    seeds = len(training.seeds)
    flops = batched.product_flops(config, config.n_positions)
    a_step = training.settings["rows"] * config.n_positions
    return {
        "share_of_time": shares(times),
        "seconds_a_step": seconds,
        "seconds_a_step_in_kernels": sum(times.values()),
        "tokens_per_second_of_all_seeds": a_step * seeds / seconds,
        "product_tflops_per_second": a_step * seeds * flops / seconds / 1e12,
        "product_flops_a_token": flops,
        f"tokens_a_seed_in_{SECONDS}_s": {f"{at} TFLOP/s": tokens_in(SECONDS, at, flops, seeds) for at in AT},
        "compilation": training.compilation,
        "longest": {name[:120]: {"kind": kind_of(name), "ms_a_step": times[name] * 1e3} for name in longest},
    }


def write(training, path: Path) -> None:
    """Measure, print in a line, and keep; what a profiler refuses to do stops no training."""
    try:
        measured = measure(training)
    except Exception as error:  # noqa: BLE001 - whatever a profiler raises
        print(f"profile: failed: {type(error).__name__}: {error}", flush=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(measured, indent=1) + "\n")
    shares_text = ", ".join(f"{share:.0%} {kind}" for kind, share in measured["share_of_time"].items())
    print(f"profile: {shares_text}; {measured['product_tflops_per_second']:.3g} TFLOP/s of products", flush=True)
