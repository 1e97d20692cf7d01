"""When what happens in training: learning rate, checkpoints, and how many steps fill a given time."""

import math
import os
import time
from pathlib import Path

SPARE = 0.97  # of the time is filled with steps: reports, files and a card that grows warm take the rest
UNKNOWN_AGE = 15.0  # seconds a process is taken to be old where /proc does not say


def learning_rate(step: int, settings: dict) -> float:
    """Of step 1, 2, …: a linear warm-up, then a cosine down to `final` of the peak."""
    if step <= settings["warmup"]:
        return settings["peak"] * step / settings["warmup"]
    share = (step - settings["warmup"]) / max(1, settings["steps"] - settings["warmup"])
    return settings["peak"] * (settings["final"] + (1 - settings["final"]) * 0.5 * (1 + math.cos(math.pi * share)))


def log_spaced(steps: int, count: int) -> list[int]:
    """So many steps from 1 to the last, evenly in the logarithm, each once."""
    return sorted({round(steps ** (k / max(1, count - 1))) for k in range(count)})


def checkpoint_steps(steps: int, wanted: int | list[float]) -> list[int]:
    """The steps after which a checkpoint is written, the last left out: a number of log-spaced ones, or shares."""
    candidates = log_spaced(steps, wanted) if isinstance(wanted, int) else [max(1, round(steps * s)) for s in wanted]
    return sorted({step for step in candidates if step < steps})


def steps_that_fit(steps_per_second: float, seconds: float) -> int:
    """Steps that fill so many seconds but for a spare part."""
    return max(1, int(steps_per_second * max(0.0, seconds) * SPARE))


def process_age() -> float:
    """Seconds since this process started, imports included."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return UNKNOWN_AGE
    return age if 0 <= age < 3600 else UNKNOWN_AGE
