"""What every benchmark asks of the machine: what it is, how long work takes, how much memory it takes at its peak."""

import platform
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
import torch
from transformers import __version__ as transformers_version


def machine() -> str:
    """The processor, its memory, and the versions of what computes on it, in a sentence."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{platform.machine()}, {model}, {torch.get_num_threads()} threads, {memory:.0f} GiB; torch {torch.__version__}, "
        f"transformers {transformers_version}, NumPy {np.__version__}."
    )


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """Seconds, and what the work returned; on a GPU until all of it is done."""
    settle()
    started = time.perf_counter()
    result = work()
    settle()
    return time.perf_counter() - started, result


def processor_timed(work: Callable[[], object]) -> tuple[float, object]:
    """Seconds that all threads of this process took, on which other programs have less effect; and what the work returned."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def settle() -> None:
    """Wait until the GPU, if there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of log y over log x, by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


class PeakMemory:
    """The peak of a device's memory while open, above what it was before: `bytes`.

    On a GPU what torch allocated there, on a CPU this process's resident memory.
    """

    def __init__(self, device: str) -> None:
        self.on_gpu = device.startswith("cuda")
        self.bytes = 0

    def __enter__(self) -> "PeakMemory":
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return self
        self.before = self.peak = psutil.Process().memory_info().rss
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        process = psutil.Process()
        while not self.stop.wait(0.02):
            self.peak = max(self.peak, process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        if self.on_gpu:
            self.peak = torch.cuda.max_memory_allocated()
        else:
            self.stop.set()
            self.thread.join()
        self.bytes = self.peak - self.before
