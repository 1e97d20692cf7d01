"""Say what is going on: stages, tokens per second, time left; a bar on a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from universal_neurons.legible import legible, shortened
from universal_neurons.terminal import messages, say

PLAIN_SECONDS = 10.0
LONGEST = 60  # characters of a bar's name


class Reporter:
    """Progress of a study on stderr; `timings` holds each stage's seconds.  Silent if `quiet`."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self.quiet = quiet
        self.console = console or messages()
        self.timings: dict[str, float] = {}

    def note(self, text: str) -> None:
        """Print a line on stderr."""
        if not self.quiet:
            say(self.console, text)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """While open, the seconds that pass are added to the stage's in `timings`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - started

    @contextlib.contextmanager
    def tokens(self, label: str, total: int, done: int = 0) -> "Iterator[TokenMeter]":
        """A meter of token positions; call it with how many were read."""
        meter = TokenMeter(self, label, total, done)
        with meter:
            yield meter


class TokenMeter:
    """Counts token positions: a bar in a terminal, else a line of progress now and then."""

    def __init__(self, reporter: Reporter, label: str, total: int, done: int) -> None:
        self.reporter = reporter
        self.label = label
        self.total = total
        self.done = done
        self.started = self.shown = time.perf_counter()
        self.at_start = done
        self.bar: Progress | None = None
        if reporter.console.is_terminal and not reporter.quiet:
            name, share, rate = (
                TextColumn(field, markup=False)
                for field in ("{task.description}", "{task.percentage:3.0f} %", "{task.fields[rate]}")
            )
            columns = (name, BarColumn(), share, rate, TimeRemainingColumn())
            self.bar = Progress(*columns, console=reporter.console, transient=True)
            self.task = self.bar.add_task(shortened(legible(self.label), LONGEST), total=total, completed=done, rate="")

    def __enter__(self) -> "TokenMeter":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *failed: object) -> None:
        if self.bar:
            self.bar.stop()
        if failed[0] is None:
            seconds = time.perf_counter() - self.started
            self.reporter.note(f"{self.label}: {self.done:,} tokens in {clock(seconds)}, {self.rate}")

    @property
    def rate(self) -> str:
        """Tokens per second since the meter started, as text."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        return f"{(self.done - self.at_start) / seconds:,.0f} tokens/s"

    def __call__(self, tokens: int) -> None:
        self.done += tokens
        if self.bar:
            self.bar.update(self.task, completed=self.done, rate=self.rate)
        elif time.perf_counter() - self.shown >= PLAIN_SECONDS:
            self.shown = time.perf_counter()
            left = (self.shown - self.started) * (self.total - self.done) / max(self.done - self.at_start, 1)
            self.reporter.note(f"{self.label}: {self.done / self.total:4.0%}, {self.rate}, {clock(left)} left")


def clock(seconds: float) -> str:
    """Seconds as 1:02:03, 2:03 or 3.4 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
