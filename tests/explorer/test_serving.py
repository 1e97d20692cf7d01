"""The server as it runs: its own sockets, its command, its end; and that it leaves nothing behind."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from functools import partial

import pytest
from asked import hand_made_site
from conftest import exit_code
from running import Running

from universal_neurons.errors import ConfigError, MissingExtraError
from universal_neurons.explorer import serving
from universal_neurons.explorer.data_files import read_statement
from universal_neurons.explorer.site import write_site

pytest_plugins = ["explored"]


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    """Pages in small."""
    folder = tmp_path_factory.mktemp("static")
    for name in ("index", "study", "unit", "text"):
        (folder / f"{name}.html").write_text(f"<!doctype html><title>{name}</title>")
    (folder / "page.js").write_text('"use strict";')
    return folder


@pytest.fixture
def small(monkeypatch, static, tmp_path):
    """Sites have the pages in small, and are made in a folder that tests look into."""
    monkeypatch.setattr(serving, "write_site", partial(write_site, static=static))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def running(tmp_path_factory, study):
    server = Running(hand_made_site(tmp_path_factory.mktemp("site")), {"one": study})
    yield server
    server.stop()


def test_it_listens_on_this_machine_alone(running):
    assert running.place.getsockname()[0] == "127.0.0.1"
    for address in {found[4][0] for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}:
        if not address.startswith("127."):
            with pytest.raises(OSError):
                socket.create_connection((address, running.port), timeout=2)


def test_pages_by_http(running):
    status, headers, content = running.ask("GET", "/unit.html?u=0/L0.1&s=one")
    assert (status, content) == (200, b"<!doctype html><title>A unit</title>")
    assert "server" not in headers
    assert headers["content-security-policy"]
    assert running.ask("HEAD", "/unit.html")[::2] == (200, b"")
    for path in (
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/static/../../x",
        "//etc/passwd",
        "/static/%00",
        "/%ff",
    ):
        assert running.ask("GET", path)[0] == 404, path
    assert running.ask("GET", "/", headers={"Host": f"evil.example:{running.port}"})[0] == 403
    forwarded = {"X-Forwarded-Host": "evil.example", "X-Forwarded-For": "1.2.3.4", "Forwarded": "host=evil.example"}
    assert running.ask("GET", "/", headers=forwarded)[0] == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: HOST\r\n\r\n",
        b"GET http://evil.example/index.html HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n",
        b"GET ../../etc/passwd HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: HOST\r\nHost: evil.example\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: HOST\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: HOST\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"POST /api/text HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /api/text HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\nzz\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: HOST\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: YQ==\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused_without_an_error_of_the_servers(running, sent):
    got = running.raw(sent.replace(b"HOST", f"127.0.0.1:{running.port}".encode()))
    statuses = [int(line.split()[1]) for line in got.splitlines() if line.startswith(b"HTTP/1.1 ")]
    assert all(200 <= status < 500 for status in statuses), got[:300]
    assert b"Traceback" not in got
    assert running.ask("GET", "/")[0] == 200


def test_a_text_by_http(running):
    host = f"127.0.0.1:{running.port}"
    headers = {"Content-Type": "application/json", "Origin": f"http://{host}"}
    body = json.dumps({"study": "one", "text": "that is <b>it</b>"})
    status, headers_back, content = running.ask("POST", "/api/text", body, headers)
    found = json.loads(content)
    assert (status, headers_back["content-type"]) == (200, "application/json")
    assert ["".join(model["tokens"]) for model in found["models"]] == ["that is <b>it</b>"] * 2
    assert all(len(unit["activations"]) == len(model["tokens"]) for model in found["models"] for unit in model["units"])
    chunked = running.ask("POST", "/api/text", iter([body.encode()[:20], body.encode()[20:]]), headers)
    assert (chunked[0], json.loads(chunked[2])) == (200, found)
    assert running.ask("POST", "/api/text", iter([body.encode()] * 400), headers)[0] == 400
    assert running.ask("POST", "/api/text", body, headers | {"Origin": "http://evil.example"})[0] == 403


def test_a_taken_port_and_one_that_is_none():
    with serving.listening(0) as place:
        for port in (place.getsockname()[1], -1, 65536, 10**30):
            with pytest.raises(ConfigError, match=r"--port -?\d+: cannot be had"), serving.listening(port):
                pass


def test_without_the_extra(monkeypatch, study):
    monkeypatch.setattr(serving, "find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError, match=r"starlette and uvicorn not installed[^$]*universal-neurons\[explorer\]"
    ):
        serving.serve([study], told=print)


def test_one_page_is_printed(study, small, capfd):
    assert exit_code("serve", study.path, "--get", "/unit.html?s=x&u=0/L0.1") == 0
    assert capfd.readouterr().out == "<!doctype html><title>unit</title>"
    assert exit_code("serve", study.path, "--get", "data/site.js") == 0
    path, site = read_statement(capfd.readouterr().out.encode())
    assert (path, site["served"], len(site["studies"])) == ("site", True, 1)
    for missing in ("../s/study.json", "/none", "", "static", "/etc/passwd"):
        assert exit_code("serve", study.path, "--get", missing) == (0 if missing == "" else 1)
    assert "no such page: static" in capfd.readouterr().err
    assert exit_code("serve", study.path, "--get", "/", "--port", 1) == 2
    assert list(small.iterdir()) == []


SERVE = """
import sys
from functools import partial
from pathlib import Path
from universal_neurons.cli import main
from universal_neurons.explorer import serving

serving.write_site = partial(serving.write_site, static=Path(sys.argv[1]))
main(sys.argv[2:])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_command_serves_until_it_is_ended_and_leaves_nothing(study, static, tmp_path, number, code):
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(static), "serve", str(study.path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    try:
        said = process.stdout.readline()
        assert said.startswith("serving http://127.0.0.1:")
        port = int(said.split(":")[2].split("/")[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/data/site.js")
        site = read_statement(connection.getresponse().read())[1]
        assert site["served"]
        assert any(tmp_path.iterdir())
        process.send_signal(number)  # with a connection that is kept open
        assert process.wait(20) == code
        told = "making the pages; their address follows\nsite: s (1 of 1)\n"
        assert (process.stdout.read(), process.stderr.read()) == ("", told)
    finally:
        process.kill()
        process.wait()
    assert list(tmp_path.iterdir()) == []


def test_studies_side_by_side_keep_one_studys_models(study, tmp_path):
    read = []

    class Reader:
        def __init__(self, store):
            read.append(store)

        def read(self, text):
            return {"text": text}

    texts = serving.StudyTexts({"one": study, "two": study})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("universal_neurons.explorer.own_text.TextReader", Reader)
        for name in ("one", "one", "two", "one"):
            assert texts(name, name) == {"text": name}
    assert len(read) == 3
