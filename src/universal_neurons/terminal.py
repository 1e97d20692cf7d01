"""What is printed: by every command, by the progress and by `repr`.

Text stands as it is: no markup, no codes of emoji, no control characters (`legible`).  A stream whose encoding lacks a
character shows `?`.  Where nobody reads a stream any more (`| head`), what is printed is dropped and the command
goes on; an output that cannot be written is an `OutputError`.
"""

import contextlib
import io
import os
import sys
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.style import Style
from rich.table import Column, Table
from rich.text import Text

from universal_neurons.errors import OutputError
from universal_neurons.legible import legible

UNBOUNDED = 1 << 20  # columns of a terminal
AS_IT_STANDS: Any = {"markup": False, "emoji": False, "highlight": False}


class Outlet:
    """A standard stream; what is written after its reader has gone is dropped.

    Other failures are an `OutputError`, but of stderr: progress and messages that cannot be shown stop nothing.
    """

    def __init__(self, stream: Any, *, needed: bool) -> None:
        self.stream, self.needed = stream, needed
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write a text; returns its length, written or dropped because the reader is gone."""
        try:
            return self.stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Flush what was written; nothing happens where the reader is gone."""
        try:
            self.stream.flush()
        except OSError as error:
            self._give_up(error)

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self.stream.isatty()

    def fileno(self) -> int:
        """The stream's file descriptor."""
        return self.stream.fileno()

    def _give_up(self, error: OSError) -> None:
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())  # else its rest fails once more when Python ends
            os.close(null)
        if self.needed and not isinstance(error, BrokenPipeError):
            raise OutputError(
                "what was found cannot be printed",
                given=error.strerror or error,
                wanted="an open standard output with space for it",
                fix="`uneurons show` prints a finished study again",
            ) from None


def output() -> Console:
    """The console of what commands print."""
    return _console(sys.stdout, needed=True)


def messages() -> Console:
    """The console of progress and errors, on stderr."""
    return _console(sys.stderr, needed=False)


def _console(stream: Any, *, needed: bool) -> Console:
    file: Any = io.StringIO() if stream is None else Outlet(stream, needed=needed)
    return Console(file=file, **AS_IT_STANDS)


def say(console: Console, text: object) -> None:
    """Print one line, however long, for people and for programs that read lines."""
    console.print(shown(text), soft_wrap=True)


def shown(text: object, style: str | Style = "") -> Text:
    """Text from outside as rich text on one line."""
    return Text(legible(text), style)


def shown_lines(*lines: object) -> Text:
    """Some lines as rich text; what looks like a line's end within one stays in it."""
    return Text("\n".join(map(legible, lines)))


class TextTable(Table):
    """A table whose title, headings and cells are text as it stands, on more lines where it is narrow."""

    def __init__(self, *headings: Column | str, title: str | None = None, show_header: bool = True) -> None:
        columns = [heading if isinstance(heading, Column) else Column(heading) for heading in headings]
        for column in columns:
            column.header = shown(column.header)
        super().__init__(
            *columns, title=None if title is None else shown(title, "table.title"), show_header=show_header
        )

    def row(self, *cells: object) -> None:
        """Add a row; cells that are no rich text are shown as they stand, on one line."""
        self.add_row(*(cell if isinstance(cell, Text) else shown(cell) for cell in cells))
        for column in self.columns:
            column.overflow = "fold"


class ModelsTable(TextTable):
    """A table with headings that name models: letters, and a line that says whose, where the names do not fit.

    `letters` is by model, `short` the shorter heading by the number of its column.
    """

    def __init__(
        self, *headings: Column | str, letters: Mapping[str, str], short: Mapping[int, str], title: str | None = None
    ) -> None:
        super().__init__(*headings, title=title)
        self.letters, self.short = letters, short

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """As rich draws a table, in as much width as there is."""
        if self.__rich_measure__(console, options.update(max_width=UNBOUNDED)).minimum <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        narrow = copy(self)
        narrow.columns = [
            replace(column, min_width=None, header=shown(self.short.get(n, column.header)))
            for n, column in enumerate(self.columns)
        ]
        yield from super(ModelsTable, narrow).__rich_console__(console, options)
        yield shown("; ".join(f"{letter}: {name}" for name, letter in self.letters.items()), "table.caption")


def plain(view: RenderableType, width: int) -> str:
    """A view as plain text, whatever terminal there is."""
    console = Console(
        width=width, force_terminal=False, force_jupyter=False, color_system=None, legacy_windows=False, **AS_IT_STANDS
    )
    with console.capture() as captured:
        console.print(view)
    return captured.get()


def html(view: RenderableType, width: int) -> str:
    """A view as HTML for a notebook: text of one width, in its colours."""
    console = Console(
        file=io.StringIO(), record=True, width=width, force_terminal=True, force_jupyter=False,
        color_system="truecolor", no_color=False, legacy_windows=False, **AS_IT_STANDS,
    )  # fmt: skip
    console.print(view)
    return console.export_html(inline_styles=True, code_format='<pre style="line-height: 1.2">{code}</pre>')


def prepare_streams() -> None:
    """Give a command whole standard streams, whatever it was started with.

    A closed descriptor would be given to the next file that is opened, which what is printed would then end up in.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if number < 2 else os.O_WRONLY)
    if sys.stdout is None:
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
