"""How many CPU threads torch uses while something runs, and afterwards as many as before."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Use so many threads while open; torch's own choice where None."""
    before = torch.get_num_threads()
    try:
        if number is not None:
            torch.set_num_threads(number)
        yield
    finally:
        torch.set_num_threads(before)
