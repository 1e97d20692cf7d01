"""An end to answers that drip, or never end: the body of every answer is read within so many seconds and bytes."""

import time
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

BYTES = 1 << 24  # of an answer, at most


def within(client: type, seconds: float) -> Callable[[Any], None]:
    """A hook of the responses of a `Client` of httpx, or of what stands in its place: their bodies have an end.

    One that is not whole after `seconds` is that library's `ReadTimeout`, one that is too long its `ReadError`.
    """
    base = next(kind for kind in client.__mro__ if kind.__name__ == "Client")
    library = import_module(base.__module__.partition(".")[0])

    class Bounded(library.SyncByteStream):  # type: ignore[name-defined]
        """A body with an end."""

        def __init__(self, response: Any) -> None:
            self.stream, self.request = response.stream, response.request

        def __iter__(self) -> Iterator[bytes]:
            until, size = time.monotonic() + seconds, 0
            for chunk in self.stream:
                size += len(chunk)
                if time.monotonic() > until:
                    raise library.ReadTimeout(f"not a whole answer within {seconds:g} s", request=self.request)
                if size > BYTES:
                    raise library.ReadError(f"an answer of more than {BYTES:,} bytes", request=self.request)
                yield chunk

        def close(self) -> None:
            self.stream.close()

    def bound(response: Any) -> None:
        response.stream = Bounded(response)

    return bound
