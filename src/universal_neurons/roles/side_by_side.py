"""Small models one beside the other: their blocks keep one CPU thread busy, not several.

Each model has as many threads as the others; a study's bits are those of so many threads a model.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from universal_neurons.models import Described

SMALL = 1 << 23  # entries of the unembedding of a model that does not keep several threads busy
Result = TypeVar("Result")
Count = Callable[[int], None]


def models_at_once(models: Sequence[Described], device: str) -> int:
    """How many models to try out side by side: as many small ones on a CPU as there are threads, and those that would
    be left for a last round with threads idle: three models share two threads to the end."""
    small = all(model.vocab_size * model.d_model <= SMALL for model in models)
    if not small or device != "cpu":
        return 1
    threads = torch.get_num_threads()
    return max(1, min(len(models), threads + len(models) % threads))


@contextmanager
def threads_of_each(at_once: int) -> Iterator[None]:
    """While open, torch has the threads that each of so many models has beside the others."""
    every = torch.get_num_threads()
    torch.set_num_threads(max(1, every // at_once))
    try:
        yield
    finally:
        torch.set_num_threads(every)


def side_by_side(tasks: Sequence[Callable[[Count], Result]], at_once: int, count: Count) -> list[Result]:
    """What the tasks return, in their order, so many running at a time; each is given what it counts its tokens by.

    Where one fails, or the run is interrupted, the others stop at their next count.
    """
    if at_once == 1:
        return [task(count) for task in tasks]
    stopped, counting = threading.Event(), threading.Lock()

    def count_or_stop(tokens: int) -> None:
        if stopped.is_set():
            raise _StoppedError
        with counting:
            count(tokens)

    with threads_of_each(at_once):
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
            futures = [pool.submit(task, count_or_stop) for task in tasks]
            try:
                return [future.result() for future in futures]
            finally:
                stopped.set()
                for future in futures:
                    future.cancel()


class _StoppedError(Exception):
    """Another task failed."""
