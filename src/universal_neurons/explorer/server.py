"""The server of a site: its files to whoever asks on this machine, and what a text of the reader's own does.

Every request goes through `SiteApp`, in this order:

1. `Host` must name this machine and this port, so that no other name's pages (DNS rebinding) can read it.
2. What a browser says comes from another site is refused, but for a page that is opened by a link; data files are
   scripts, and a script is readable by every page that may load it.
3. GET and HEAD find a file in the list of `SiteFiles`, or nothing.  The query is the pages' business.
4. POST /api/text: `Origin` must be this server's own pages, the body JSON of bounded size.  One text is read at a time.

What is refused is told in a word.  Listens on 127.0.0.1 alone.
"""

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from universal_neurons.errors import UniversalNeuronsError
from universal_neurons.explorer.site_files import SiteFile, SiteFiles

TEXT_PATH = "/api/text"
LONGEST_TEXT = 20_000  # characters
LONGEST_BODY = 16 * LONGEST_TEXT  # bytes: JSON spells a character in at most 12
BODY_SECONDS = 20
MOST_WAITING = 16
PIECE = 1 << 18
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}

ReadText = Callable[[str, str], dict[str, Any]]  # a study's id, a text; raises `UniversalNeuronsError`


class Refused(Exception):
    """A request that is not answered: its status, and the methods that its path takes."""

    def __init__(self, status: HTTPStatus, why: str = "", *, allow: str | None = None) -> None:
        super().__init__(why or status.phrase)
        self.status, self.allow = status, allow


class SiteApp:
    """The server as an ASGI application.

    `port` is the one that `Host` must name.  `studies` are the ids that a text may be read by, `read_text` reads it;
    it runs in a thread, never twice at once.
    """

    def __init__(self, files: SiteFiles, port: int, read_text: ReadText, studies: frozenset[str]) -> None:
        self.files, self.read_text, self.studies = files, read_text, studies
        places = [f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"]
        self.hosts = frozenset(places + [place.rpartition(":")[0] for place in places if port == 80])
        self._reading, self._waiting = anyio.Lock(), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        assert scope["type"] == "http", scope["type"]
        request = Request(scope, receive)
        try:
            answer = await self._answer(request)
        except Refused as refused:
            answer = _refusal(request, refused)
        except ClientDisconnect:
            return
        await answer(scope, receive, send)

    async def _answer(self, request: Request) -> "Response | FileAnswer":
        path = request.scope["path"]
        self._require_own_host(request)
        _require_own_site(request, path)
        if path == TEXT_PATH:
            return await self._text(request)
        if request.method not in ("GET", "HEAD"):
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, allow="GET, HEAD")
        found = self.files.find(path)
        if found is None:
            raise Refused(HTTPStatus.NOT_FOUND)
        return FileAnswer(found, whole=request.method == "GET")

    def _require_own_host(self, request: Request) -> None:
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            raise Refused(HTTPStatus.FORBIDDEN)

    async def _text(self, request: Request) -> Response:
        if request.method != "POST":
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, allow="POST")
        if request.headers.getlist("origin") != [f"http://{request.headers['host']}"]:
            raise Refused(HTTPStatus.FORBIDDEN)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body is to be application/json")
        study, text = self._asked(await _body_of(request))
        if self._waiting >= MOST_WAITING:
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, "other texts are being read: try again later")
        self._waiting += 1
        try:
            async with self._reading:
                found = await anyio.to_thread.run_sync(self.read_text, study, text)
        except UniversalNeuronsError as error:
            raise Refused(HTTPStatus.CONFLICT, error.what) from None
        finally:
            self._waiting -= 1
        return _json(found, HTTPStatus.OK)

    def _asked(self, body: bytes) -> tuple[str, str]:
        """The study and text that a body names."""
        try:
            asked = json.loads(body.decode())
        except (ValueError, RecursionError):
            raise Refused(HTTPStatus.BAD_REQUEST, "the body is no JSON") from None
        if not isinstance(asked, dict) or asked.keys() != {"study", "text"}:
            raise Refused(HTTPStatus.BAD_REQUEST, "wanted: study and text")
        study, text = asked["study"], asked["text"]
        if not isinstance(study, str) or study not in self.studies:
            raise Refused(HTTPStatus.BAD_REQUEST, "no such study")
        if not isinstance(text, str) or not text.strip():
            raise Refused(HTTPStatus.BAD_REQUEST, "wanted: a text")
        if len(text) > LONGEST_TEXT:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the text has over {LONGEST_TEXT:,} characters")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise Refused(HTTPStatus.BAD_REQUEST, "the text has half of a character")
        return study, text


def _require_own_site(request: Request, path: str) -> None:
    """Refuse what another site's page loads; one may lead here by a link."""
    site = request.headers.get("sec-fetch-site", "none")
    opened = (request.headers.get("sec-fetch-mode"), request.headers.get("sec-fetch-dest")) == ("navigate", "document")
    page = request.method in ("GET", "HEAD") and (path == "/" or path.endswith(".html"))
    if site not in ("same-origin", "none") and not (opened and page):
        raise Refused(HTTPStatus.FORBIDDEN)


async def _body_of(request: Request) -> bytes:
    """A body of bounded size, which must come in bounded time."""
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdecimal()) or int(length[:20]) > LONGEST_BODY:
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body is too long")
    body = bytearray()
    try:
        with anyio.fail_after(BODY_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > LONGEST_BODY:
                    raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body is too long")
    except TimeoutError:
        raise Refused(HTTPStatus.REQUEST_TIMEOUT) from None
    return bytes(body)


def _refusal(request: Request, refused: Refused) -> Response:
    allow = {} if refused.allow is None else {"allow": refused.allow}
    if request.scope["path"] == TEXT_PATH:
        return _json({"error": str(refused)}, refused.status, allow)
    return _words(f"{refused}\n".encode(), "text/plain; charset=utf-8", refused.status, allow, request.method)


def _json(found: dict[str, Any], status: HTTPStatus, more: dict[str, str] | None = None) -> Response:
    return _words(json.dumps(found, allow_nan=False).encode(), "application/json", status, more or {})


def _words(content: bytes, kind: str, status: HTTPStatus, more: dict[str, str], method: str = "GET") -> Response:
    headers = HEADERS | {"content-type": kind, "content-length": str(len(content))} | more
    return Response(b"" if method == "HEAD" else content, status, headers)


class FileAnswer:
    """A file as the answer, sent in pieces; without its content for HEAD."""

    def __init__(self, file: SiteFile, *, whole: bool) -> None:
        self.file, self.whole = file, whole

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; not found where it is gone since."""
        content = self.file.open()
        if content is None:
            await _refusal(Request(scope), Refused(HTTPStatus.NOT_FOUND))(scope, receive, send)
            return
        with content:
            left = content.seek(0, 2)
            content.seek(0)
            headers = HEADERS | {"content-type": self.file.kind, "content-length": str(left)}
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": 200, "headers": raw})
            while self.whole and left and (piece := content.read(min(PIECE, left))):
                left -= len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
