"""A site served from this machine to this machine, until Ctrl-C.

1. The port is taken on 127.0.0.1 before anything is made: a free one, where none is named.
2. The site is written into a folder of its own among the temporary files, which goes when the server ends.
3. Pages come from there (`server`); texts are read by the models of the study that is named (`own_text`), which are
   loaded when the first text comes and go when another study's are asked for.
"""

import contextlib
import signal
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from universal_neurons.errors import ConfigError, MissingExtraError
from universal_neurons.explorer.data_files import read_statement
from universal_neurons.explorer.site import MARK, write_site
from universal_neurons.explorer.site_files import SiteFiles
from universal_neurons.explorer.studies import Result, study_of
from universal_neurons.progress import Reporter

if TYPE_CHECKING:
    from uvicorn import Server

    from universal_neurons.explorer.own_text import TextReader

LOOPBACK = "127.0.0.1"
NEEDED = ("starlette", "uvicorn")
ENDING = ("SIGTERM", "SIGHUP")  # signals, where a system has them; a shell's exit code is then 128 + their number
GRACE_SECONDS = 2


def serve(
    results: Sequence[Result],
    *,
    port: int = 0,
    open_page: bool = False,
    told: Callable[[str], None],
    reporter: Reporter | None = None,
) -> None:
    """Serve the site of some studies until Ctrl-C; `told` is told its address, `open_page` opens it in the browser.

    Raises `MissingExtraError` without the extra explorer, `ConfigError` for a port that cannot be had.
    """
    require_extra()
    with ended_by_signals(), listening(port) as place, temporary_site(results, reporter) as (folder, by_id):
        address = f"http://{LOOPBACK}:{place.getsockname()[1]}/"
        told(address)
        if open_page:
            webbrowser.open(address)
        with contextlib.suppress(KeyboardInterrupt):
            server_of(folder, by_id, place).run(sockets=[place])


def page_of(results: Sequence[Result], path: str, reporter: Reporter | None = None) -> bytes | None:
    """The content of one file of the site of some studies, by its path; a query is left out.  None: there is none."""
    with temporary_site(results, reporter) as (folder, _):
        found = SiteFiles(folder).find("/" + path.partition("?")[0].partition("#")[0].removeprefix("/"))
        content = None if found is None else found.open()
        if content is None:
            return None
        with content:
            return content.read()


def require_extra() -> None:
    """Raise `MissingExtraError` where what the server is made of is not installed."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"serve: {' and '.join(missing)} not installed",
            wanted="the extra explorer",
            fix="pip install 'universal-neurons[explorer]', or uneurons export, whose pages need no server",
        )


@contextlib.contextmanager
def listening(port: int) -> Iterator[socket.socket]:
    """A socket of this machine alone that takes connections, on a free port where 0 is named."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as place:
        if sys.platform != "win32":  # there it would share the port of another server
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            place.bind((LOOPBACK, port))
            place.listen()
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"--port {port}: cannot be had",
                given=getattr(error, "strerror", None) or error,
                wanted="a free port from 1 to 65535",
                fix="leave --port out: a free one is chosen",
            ) from None
        yield place


@contextlib.contextmanager
def temporary_site(
    results: Sequence[Result], reporter: Reporter | None = None
) -> Iterator[tuple[Path, dict[str, Result]]]:
    """The folder of a site made for a server, and its studies by their ids; it goes at the end."""
    with tempfile.TemporaryDirectory(prefix="uneurons-", ignore_cleanup_errors=True) as own:
        folder = Path(own) / "site"
        write_site(results, folder, served=True, reporter=reporter)
        _, site = read_statement((folder / MARK).read_bytes())
        yield folder, {study["id"]: result for study, result in zip(site["studies"], results, strict=True)}


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """While open, signals that end a process end it as an error does, so that nothing is left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ENDING if hasattr(signal, name)]
    before = {number: signal.signal(number, _end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def server_of(folder: Path, by_id: Mapping[str, Result], place: socket.socket) -> "Server":
    """The server of a site's folder at a socket that listens."""
    from uvicorn import Config, Server

    from universal_neurons.explorer.server import SiteApp

    app = SiteApp(SiteFiles(folder), place.getsockname()[1], StudyTexts(by_id), frozenset(by_id))
    return Server(
        Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            loop="asyncio",
            proxy_headers=False,
            server_header=False,
            access_log=False,
            log_level="error",
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )


class StudyTexts:
    """Reads texts by the models of whichever study is named; keeps those of the last one."""

    def __init__(self, by_id: Mapping[str, Result]) -> None:
        self._by_id, self._last = by_id, ""
        self._reader: TextReader | None = None

    def __call__(self, study: str, text: str) -> dict[str, Any]:
        """What `TextReader` finds by the models of the study that is shown; raises its errors."""
        from universal_neurons.explorer.own_text import TextReader

        if self._reader is None or self._last != study:
            self._reader = None  # its models go before others come
            self._reader, self._last = TextReader(study_of(self._by_id[study])), study
        return self._reader.read(text)
