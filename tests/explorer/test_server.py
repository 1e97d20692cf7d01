"""Whom the server answers and what: its own files to its own pages, and nothing else, whatever is asked."""

import asyncio
import os
import random
import threading
import time
import tracemalloc
from urllib.parse import unquote

import pytest
from asked import FILES, HOST, PORT, Answer, answer, app_of, ask, hand_made_site, post

from universal_neurons.errors import MissingFileError
from universal_neurons.explorer.site_files import SiteFiles

TEXT = {"study": "one", "text": "It was the best of times."}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = hand_made_site(tmp_path_factory.mktemp("site"))
    (folder.parent / "secret.txt").write_text("secret")
    return folder


@pytest.fixture(scope="module")
def app(site):
    return app_of(site)


def test_every_file_of_the_site_is_given_whole_and_nothing_else_is_listed(site, app):
    assert SiteFiles(site).paths == {"/", *(f"/{name}" for name in FILES)}
    for name, content in FILES.items():
        got = ask(app, f"/{name}")
        assert (got.status, got.body.decode()) == (200, content)
        assert int(got.headers["content-length"]) == len(content)
    assert ask(app, "/").body.decode() == FILES["index.html"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("unit.html", "text/html; charset=utf-8"),
        ("static/page.js", "text/javascript; charset=utf-8"),
        ("static/page.css", "text/css; charset=utf-8"),
        ("static/LICENSE", "application/octet-stream"),
    ],
)
def test_kinds(app, name, kind):
    assert ask(app, f"/{name}").headers["content-type"] == kind


@pytest.mark.parametrize("asked", [("/",), ("/data/site.js",), ("/none",), ("/api/text", "POST"), ("/", "PUT")])
def test_every_answer_says_what_a_page_may_do(app, asked):
    headers = ask(app, *asked).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert not any("access-control" in name for name in headers)


def test_head_is_get_without_the_body(app):
    for path in ("/", "/data/site.js", "/none"):
        whole, head = ask(app, path), ask(app, path, "HEAD")
        assert (head.status, head.headers, head.body) == (whole.status, whole.headers, b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get", "X" * 900])
def test_other_methods_are_refused(app, method):
    got = ask(app, "/unit.html", method)
    assert (got.status, got.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("host", [HOST, f"localhost:{PORT}", f"[::1]:{PORT}", f"LocalHost:{PORT}"])
def test_own_hosts(app, host):
    assert ask(app, "/", headers=[("Host", host)]).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", f"evil.example:{PORT}", "127.0.0.1", "localhost", f"127.0.0.1:{PORT + 1}", f"127.0.0.2:{PORT}",
        f"localhost.:{PORT}", f"localhost:{PORT}@evil.example", f" {HOST}", f"{HOST}, evil.example", f"0.0.0.0:{PORT}",
        f"127.1:{PORT}", f"2130706433:{PORT}", f"[::ffff:127.0.0.1]:{PORT}", f"localhost.evil.example:{PORT}", "", "-",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/data/site.js", "/api/text", "/none"])
def test_foreign_hosts_see_nothing(app, host, path):
    got = ask(app, path, headers=[("Host", host)])
    assert got.status == 403
    assert b"Forbidden" in got.body


def test_two_hosts_are_none(app):
    assert ask(app, "/", headers=[("Host", HOST), ("Host", "evil.example")]).status == 403


@pytest.mark.parametrize("other", ["cross-site", "same-site", "anything"])
def test_other_sites_may_link_to_pages_but_load_nothing(app, other):
    script = [("Sec-Fetch-Site", other), ("Sec-Fetch-Mode", "no-cors"), ("Sec-Fetch-Dest", "script")]
    opened = [("Sec-Fetch-Site", other), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")]
    framed = [*opened[:2], ("Sec-Fetch-Dest", "iframe")]
    assert ask(app, "/data/one/study.js", headers=script).status == 403
    assert ask(app, "/data/one/study.js", headers=opened).status == 403
    assert ask(app, "/unit.html", headers=framed).status == 403
    assert ask(app, "/unit.html", headers=opened).status == 200
    for own in ("same-origin", "none"):
        assert ask(app, "/data/one/study.js", headers=[("Sec-Fetch-Site", own)]).status == 200


OUTSIDE = [
    "/../secret.txt", "/static/../../secret.txt", "//secret.txt", "/./index.html", "/static/", "/static", "/data",
    "/..", "/...", "/index.html/", "/index.html/..", "/INDEX.HTML", "/index.html\0", "/index.html ", "/\\..\\secret.txt",
    "/C:\\secret.txt", "/static\\page.js", "", "*", "index.html", "http://127.0.0.1/index.html", "/data/one/unit/0/00.js",
    "/api/text/", "/api", "/.", "/etc/passwd", "/proc/self/environ", "/index.html;x", "/\ud800", "/\u2025/secret.txt",
    "/%2e%2e/secret.txt",
]  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE)
def test_nothing_outside_the_list(app, path):
    got = ask(app, path)
    assert (got.status, got.body) == (404, b"Not Found\n")


@pytest.mark.parametrize(
    "path",
    [
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e%5csecret.txt",
        "/%252e%252e/secret.txt",
        "/static/%c0%ae%c0%ae/secret.txt",
        "/index.html%00.js",
    ],
)
def test_encoded_traversal(app, path):
    assert ask(app, unquote(path), raw=path.encode()).status == 404


def test_links_are_left_out_and_what_is_put_in_a_files_place_is_not_given(tmp_path):
    folder = hand_made_site(tmp_path / "site")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.js").write_text("secret")
    (folder / "link.html").symlink_to(tmp_path / "secret.txt")
    (folder / "inner.html").symlink_to(folder / "unit.html")
    (folder / "data" / "other").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(folder / "pipe.html")
    app = app_of(folder)
    assert app.files.paths == {"/", *(f"/{name}" for name in FILES)}
    for path in ("/link.html", "/inner.html", "/data/other/secret.js", "/pipe.html"):
        assert ask(app, path).status == 404
    for name, replace in {
        "unit.html": lambda place: place.symlink_to(tmp_path / "secret.txt"),
        "static/page.js": lambda place: place.hardlink_to(tmp_path / "secret.txt"),
        "static/page.css": os.mkfifo,
        "data/site.js": lambda place: None,
    }.items():
        (folder / name).unlink()
        replace(folder / name)
        assert ask(app, f"/{name}").status == 404, name
    (folder / "data" / "one").rename(tmp_path / "moved")
    (folder / "data" / "one").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "study.js").write_text("secret")
    assert ask(app, "/data/one/study.js").status == 404
    (folder / "late.html").write_text("made after the start")
    assert ask(app, "/late.html").status == 404


def test_a_text_is_read(app):
    got = post(app, TEXT)
    assert (got.status, got.json) == (200, {"study": "one", "length": 25})
    assert got.headers["content-type"] == "application/json"
    assert post(app, TEXT, Content_Type="Application/JSON; charset=utf-8").status == 200
    assert post(app, {"study": "one", "text": "\U0001f600" * 20_000}).json["length"] == 20_000


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": None}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": f"https://{HOST}"}, 403),
        ({"Origin": f"http://127.0.0.1:{PORT + 1}"}, 403),
        ({"Origin": f"http://localhost:{PORT}"}, 403),  # not the host that was asked
        ({"Origin": f"http://{HOST}.evil.example"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}, 403),
        ({"Content_Type": None}, 415),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content_Type": "text/plain; application/json"}, 415),
        ({"Content_Length": "320001"}, 413),
        ({"Content_Length": "9" * 5000}, 413),
        ({"Content_Length": "-1"}, 413),
        ({"Content_Length": "\xb2"}, 413),
    ],
)
def test_texts_of_others_and_of_other_kinds_are_refused(site, headers, status):
    read = []
    got = post(app_of(site, lambda *asked: read.append(asked) or {}), TEXT, **headers)
    assert (got.status, read) == (status, [])
    assert got.json["error"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b'{"a":' * 50_000, 400),
        (b"1" * 100_000, 400),
        (b"null", 400),
        (b'["study", "text"]', 400),
        ({"text": "a"}, 400),
        ({**TEXT, "more": 1}, 400),
        ({**TEXT, "study": "two"}, 400),
        ({**TEXT, "study": ["one"]}, 400),
        ({**TEXT, "study": None}, 400),
        ({**TEXT, "text": 5}, 400),
        ({**TEXT, "text": " \n"}, 400),
        ({**TEXT, "text": "\ud800"}, 400),
        ({**TEXT, "text": "a" * 20_001}, 413),
        (b" " * 320_001, 413),
    ],
)
def test_malformed_bodies(app, body, status):
    got = post(app, body)
    assert got.status == status
    assert set(got.json) == {"error"}


def test_a_body_without_a_length_is_bounded(app):
    pieces = [b" " * 10_000 for _ in range(1000)]
    headers = [("Content-Type", "application/json"), ("Origin", f"http://{HOST}")]
    assert ask(app, "/api/text", "POST", headers, pieces).status == 413


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "OPTIONS"])
def test_the_text_page_takes_post_alone(app, method):
    got = ask(app, "/api/text", method)
    assert (got.status, got.headers["allow"]) == (405, "POST")


def test_what_stands_in_the_way_is_said(site):
    def read(study, text):
        raise MissingFileError("seed-1: no such folder", given="secret", wanted="a model")

    got = post(app_of(site, read), TEXT)
    assert (got.status, got.json) == (409, {"error": "seed-1: no such folder"})


def test_one_text_at_a_time_and_no_endless_queue(site):
    busy, most = threading.Lock(), []

    def read(study, text):
        most.append(busy.acquire(blocking=False))
        time.sleep(0.01)
        busy.release()
        return {}

    async def many() -> list[Answer]:
        app = app_of(site, read)
        headers = [("Content-Type", "application/json"), ("Origin", f"http://{HOST}")]
        body = b'{"study": "one", "text": "a"}'
        return await asyncio.gather(*(answer(app, "/api/text", "POST", headers, [body]) for _ in range(40)))

    statuses = [got.status for got in asyncio.run(many())]
    assert all(most)
    assert (statuses.count(200), statuses.count(429)) == (16, 24)


PARTS = ["..", ".", "", "static", "data", "one", "unit", "0", "%2e%2e", "%2f", "\\", "\0", "etc", "passwd", "~", "site.js", "index.html", "é", "\ud800", "a" * 300]  # fmt: skip
QUERIES = 50  # for one of --mutations


def mutated(chooser: random.Random) -> str:
    """A path of the site with characters changed, one made of parts, or noise."""
    kind = chooser.randrange(3)
    if kind == 0:
        letters = list("/" + chooser.choice(list(FILES)))
        for _ in range(chooser.randrange(3)):
            letters[chooser.randrange(len(letters))] = chr(chooser.randrange(0x250))
        return "".join(letters)
    if kind == 1:
        return "/" + "/".join(chooser.choices(PARTS, k=chooser.randrange(1, 9)))
    return "".join(chr(chooser.randrange(1, 0x3000)) for _ in range(chooser.randrange(40)))


def test_random_queries_find_nothing_outside_the_list_and_take_no_memory(request, app):
    count = QUERIES * request.config.getoption("--mutations")
    chooser = random.Random(request.config.getoption("--fuzz-seed"))
    contents = {f"/{name}": content.encode() for name, content in FILES.items()} | {"/": FILES["index.html"].encode()}

    async def try_out(count: int) -> None:
        for _ in range(count):
            path = mutated(chooser)
            method = chooser.choice(["GET", "GET", "GET", "HEAD", "POST", "PUT"])
            got = await answer(app, path, method, raw=b"/")
            assert got.status in (200, 404, 405), (path, method)
            if got.status == 200:
                assert got.body == (contents[path] if method == "GET" else b""), path
            else:
                assert got.body in (b"", b"Not Found\n", b"Method Not Allowed\n"), path

    asyncio.run(try_out(count // 10))
    tracemalloc.start()
    asyncio.run(try_out(200))
    before = tracemalloc.get_traced_memory()[0]
    asyncio.run(try_out(1000))
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 100_000
    asyncio.run(try_out(count - count // 10 - 1200))
