"""torch's settings of the whole process, while something of ours runs: as it needs them, and afterwards as before.

A caller may have other defaults (float64, a device, autocast, products in tf32); statistics and checks are of float32
on devices that they name themselves.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

AUTOCAST = ("cpu", "cuda")
EXACT = ("none", "ieee")  # what float32 products may be computed in


@contextlib.contextmanager
def settled_torch(threads: int | None = None) -> Iterator[None]:
    """While open: so many CPU threads (None: as many as now), float32 by default on the CPU, in products too, no
    autocast."""
    threads_before, dtype_before = torch.get_num_threads(), torch.get_default_dtype()
    products: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul")]  # noqa: B009
    rounded = {part: part.fp32_precision for part in products if part.fp32_precision not in EXACT}
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
        for part in rounded:
            part.fp32_precision = "ieee"
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
        for part, precision in rounded.items():
            part.fp32_precision = precision
