"""torch's settings of the whole process, while something of ours runs: as it needs them, and afterwards as before.

A caller may have other defaults (float64, a device, autocast, products in tf32); statistics and checks are of float32
on devices that they name themselves.
"""

import contextlib
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from universal_neurons.errors import ConfigError
from universal_neurons.processor import exact_products

AUTOCAST = ("cpu", "cuda")
POOL = re.compile(r"polars-\d+\s*")  # names of the threads by which polars computes


@dataclass
class Fork:
    """Whether this process is a copy of another, which threads do not outlive: torch and polars would wait for theirs.

    torch needs none where it is given one thread; polars has begun its own where they are in the other process.
    """

    forked: bool
    polars_began: bool = False

    def before(self) -> None:
        """In the process that is about to be copied."""
        self.polars_began = self.polars_began or _polars_has_begun()

    def after(self) -> None:
        """In the copy."""
        self.forked = True

    def require_threads(self) -> None:
        """Raise `ConfigError` where the threads of polars did not come along."""
        if self.forked and self.polars_began:
            raise ConfigError(
                "this process was forked off one in which polars had computed, and would wait for its threads for ever",
                wanted="a process that begins anew, or is forked before anything is computed",
                fix='multiprocessing.get_context("spawn")',
            )


def _polars_has_begun() -> bool:
    """Whether its threads are there (where the system tells)."""
    names = []
    for name in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):
            names.append(name.read_text(errors="replace"))
    return any(map(POOL.fullmatch, names))


def _is_worker_by_fork() -> bool:
    """Whether `multiprocessing` forked this process, before this module was there to see it."""
    begun_anew = any("multiprocessing" in argument for argument in sys.orig_argv)
    return multiprocessing.parent_process() is not None and not begun_anew


FORK = Fork(_is_worker_by_fork())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=FORK.before, after_in_child=FORK.after)


@contextlib.contextmanager
def settled_torch(threads: int | None = None) -> Iterator[None]:
    """While open: so many CPU threads (None: as many as now; one where this process was forked), float32 by default on
    the CPU, in products too (by the faster of two libraries: `onednn_is_faster`), no autocast.

    Raises `ConfigError` in a process that was forked off one in which polars had computed.
    """
    FORK.require_threads()
    threads = 1 if threads is None and FORK.forked else threads
    threads_before, dtype_before = torch.get_num_threads(), torch.get_default_dtype()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
        with contextlib.ExitStack() as settings:
            if torch.get_default_device().type != "cpu":
                settings.enter_context(torch.device("cpu"))
            for device in AUTOCAST:
                if torch.is_autocast_enabled(device):
                    settings.enter_context(torch.autocast(device, enabled=False))
                settings.enter_context(exact_products(device))
            yield
    finally:
        torch.set_num_threads(threads_before)
        torch.set_default_dtype(dtype_before)
