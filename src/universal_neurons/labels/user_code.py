"""Run a user's code so that the process is afterwards what it was before.

Within `Contained`, leaving the process at once (`os._exit`, `os.exec…`) raises `SystemExit`, and the standard streams
are stood for by objects that pass writing on but cannot be closed.  Afterwards the streams and their descriptors, the
working directory, the environment, the recursion limit, warnings and their filters, and the states of `random`, NumPy
and torch (if it is imported) are as before.  This keeps accidents from a study; it is no wall against malice.
"""

import contextlib
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

import numpy as np

STREAMS = ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__")
LEAVING = ("_exit", "abort", "execv", "execve")
Undo = Callable[[], object]


class Lent:
    """A stream that can be used and not closed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._stream, name)
        return Lent(value) if name in ("buffer", "raw") else value

    def __iter__(self) -> Iterator[Any]:
        return iter(self._stream)

    def __enter__(self) -> "Lent":
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def close(self) -> None:
        """Closes nothing."""

    def detach(self) -> "Lent":
        """What lies below; the stream keeps it."""
        return Lent(self._stream.buffer)


class Contained:
    """While a user's code runs; an instance serves once."""

    def __enter__(self) -> None:
        self._recursion = sys.getrecursionlimit()
        self._undo = [undo for keep in KEPT for undo in keep()]

    def __exit__(self, *error: object) -> None:
        sys.setrecursionlimit(self._recursion)  # first: what follows may need it
        for undo in reversed(self._undo):
            undo()


def _streams() -> Iterator[Undo]:
    for name in STREAMS:
        stream = getattr(sys, name, None)
        yield partial(setattr, sys, name, stream)
        if stream is not None:
            setattr(sys, name, Lent(stream))


def _descriptors() -> Iterator[Undo]:
    for number in range(3):
        with contextlib.suppress(OSError):  # closed already
            yield partial(_put_back, os.dup(number), number)


def _put_back(kept: int, number: int) -> None:
    os.dup2(kept, number)
    os.close(kept)


def _exits() -> Iterator[Undo]:
    process = os.getpid()
    for name in LEAVING:
        leave = getattr(os, name)
        yield partial(setattr, os, name, leave)
        setattr(os, name, partial(_raise_instead, f"os.{name}", leave, process))


def _raise_instead(name: str, leave: Callable[..., NoReturn], process: int, *arguments: Any) -> NoReturn:
    """In a process that the user's code has forked, `leave` does what it says."""
    if os.getpid() != process:
        leave(*arguments)
    raise SystemExit(f"{name} was called")


def _surroundings() -> Iterator[Undo]:
    with contextlib.suppress(OSError):  # a folder that is not there, or not readable
        folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        yield partial(_return_to, folder)
    environ = os.environ
    values = dict(os.environ)
    yield partial(_refill, environ, values)
    yield partial(setattr, os, "environ", environ)
    path = sys.path
    yield partial(setattr, sys, "path", path)
    yield partial(path.__setitem__, slice(None), list(path))


def _return_to(folder: int) -> None:
    with contextlib.suppress(OSError):
        os.fchdir(folder)
    os.close(folder)


def _refill(environ: "os._Environ[str]", values: dict[str, str]) -> None:
    if dict(environ) != values:
        environ.clear()
        environ.update(values)


def _warnings() -> Iterator[Undo]:
    caught = warnings.catch_warnings()
    caught.__enter__()
    yield partial(caught.__exit__, None, None, None)


def _chance() -> Iterator[Undo]:
    yield partial(random.setstate, random.getstate())
    yield partial(np.random.set_state, np.random.get_state())  # noqa: NPY002
    yield partial(np.seterr, **np.geterr())


def _torch() -> Iterator[Undo]:
    torch = sys.modules.get("torch")
    if torch is None:
        return
    yield partial(torch.set_default_dtype, torch.get_default_dtype())
    yield partial(torch.set_grad_enabled, torch.is_grad_enabled())
    yield partial(torch.set_rng_state, torch.get_rng_state())
    if torch.cuda.is_initialized():
        yield partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
    threads = torch.get_num_threads()
    device = torch.get_default_device()
    unless_usual = None if device.type == "cpu" else device  # a set default costs time at every call

    def put_back() -> None:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if torch.get_default_device() != device:
            torch.set_default_device(unless_usual)

    yield put_back


KEPT = (_descriptors, _streams, _exits, _surroundings, _warnings, _chance, _torch)
