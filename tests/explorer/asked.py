"""A site made by hand, its server, and requests put to it in this process."""

import asyncio
import json
from pathlib import Path

from universal_neurons.explorer.server import SiteApp
from universal_neurons.explorer.site_files import SiteFiles

PORT = 8123
HOST = f"127.0.0.1:{PORT}"
FILES = {
    "index.html": "<!doctype html><title>One study</title>",
    "unit.html": "<!doctype html><title>A unit</title>",
    "static/page.js": '"use strict";',
    "static/page.css": "body {}",
    "static/LICENSE": "MIT",
    "data/site.js": 'un.add("site",{});',
    "data/one/study.js": 'un.add("one/study",{});',
    "data/one/unit/0/0.js": 'un.add("one/unit/0/0",{});',
}


def hand_made_site(folder: Path) -> Path:
    """A small folder laid out as a site."""
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def app_of(folder: Path, read_text=lambda study, text: {"study": study, "length": len(text)}) -> SiteApp:
    return SiteApp(SiteFiles(folder), PORT, read_text, frozenset({"one"}))


class Answer:
    """What the server sent."""

    def __init__(self, messages):
        self.status = messages[0]["status"]
        self.headers = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
        self.body = b"".join(message.get("body", b"") for message in messages[1:])

    @property
    def json(self):
        return json.loads(self.body)


async def answer(app, path="/", method="GET", headers=(), body=(), raw=None) -> Answer:
    """One request; `headers` are pairs, `Host` among them unless it is the right one."""
    given = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    if not any(name == b"host" for name, _ in given):
        given.append((b"host", HOST.encode()))
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": raw or path.encode("utf-8", "surrogatepass"), "query_string": b"",
        "root_path": "", "headers": [pair for pair in given if pair[1] != b"-"],
        "client": ("127.0.0.1", 5), "server": ("127.0.0.1", PORT),
    }  # fmt: skip
    pieces, sent = list(body), []

    async def receive():
        piece = pieces.pop(0) if pieces else b""
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return Answer(sent)


def ask(app, *args, **kwargs) -> Answer:
    return asyncio.run(answer(app, *args, **kwargs))


def post(app, content, **changed) -> Answer:
    """A text to read, as the site's own page asks; `changed` are headers, None for one left out."""
    headers = {"Content-Type": "application/json", "Origin": f"http://{HOST}"} | {
        name.replace("_", "-"): value for name, value in changed.items()
    }
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    pairs = [(name, value) for name, value in headers.items() if value is not None]
    return ask(app, "/api/text", "POST", pairs, [body])
