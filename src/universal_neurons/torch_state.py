"""torch's settings of the whole process, while something of ours runs: as it needs them, and afterwards as before.

A caller may have other defaults (float64, a device, autocast); statistics and checks are of float32 on devices that
they name themselves.
"""

import contextlib
from collections.abc import Iterator

import torch

AUTOCAST = ("cpu", "cuda")


@contextlib.contextmanager
def settled_torch(threads: int | None = None) -> Iterator[None]:
    """While open: so many CPU threads (None: as many as now), float32 by default on the CPU, no autocast."""
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
            yield
    finally:
        torch.set_num_threads(threads_before)
        torch.set_default_dtype(dtype_before)
