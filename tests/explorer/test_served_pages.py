"""Pages from the server in a real Chromium: drawn without complaint, a text read and shown; other sites' pages get nothing."""

import http.server
import threading
from functools import partial

import pytest
from running import Running

from universal_neurons.explorer import TextReader, write_site

pytest_plugins = ["visits", "explored"]

PAGES = [
    "index",
    "study",
    "families",
    "roles",
    "layers",
    "models",
    "subsets",
    "dynamics",
    "diff",
    "explanations",
    "text",
]
OWN = 'that </script><script>window.pwned = 1</script><img src=x onerror="window.pwned=1"> is\tit\u202e.'


class Place:
    """Where a server is, as a visitor asks of a folder."""

    def __init__(self, port: int) -> None:
        self.port = port

    def as_uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def served(tmp_path_factory, study):
    page = write_site([study], tmp_path_factory.mktemp("site") / "site", served=True)
    server = Running(page.parent, {"s": study})
    yield Place(server.port)
    server.stop()


def test_every_page_is_drawn_without_complaint(visit, served):
    visitor = visit(served)
    for name in [*PAGES, "unit"]:
        visitor.go(f"{name}.html" + ("?s=s&u=0/L1.3" if name == "unit" else ""))
        assert visitor.arrived() == "yes", name
        visitor.well()


def test_a_text_is_read_and_shown_as_it_was_typed(visit, served, study):
    visitor = visit(served)
    page = visitor.go("text.html")
    page.fill("#own-text", OWN)
    page.click("button[type=submit]")
    page.wait_for_selector("ol.fired")
    shown = page.eval_on_selector_all(
        "section:has(> ol.fired)",
        "all => all.map(one => [...one.querySelectorAll('.lane-head a')].map(a => a.innerText))",
    )
    found = TextReader(study).read(OWN)["models"]
    assert [len(names) for names in shown] == [len(model["units"]) for model in found]
    for names, model in zip(shown, found):
        assert all(unit["name"] in name for name, unit in zip(names, model["units"]))
    assert "<script>" in page.inner_text("main").replace("\n", "")
    visitor.well()


def test_what_the_server_refuses_is_said_on_the_page(visit, served):
    visitor = visit(served)
    page = visitor.go("text.html")
    page.fill("#own-text", "  ")
    page.click("button[type=submit]")
    page.wait_for_selector("p.notice")
    assert "wanted: a text" in page.inner_text("p.notice")


STRANGER = """<!doctype html><body><script>window.got = []; window.un = { add: (path) => window.got.push(path) };</script>
<script src="SITE/data/site.js" onload="window.got.push('loaded')" onerror="window.got.push('refused')"></script>
<iframe src="SITE/study.html"></iframe>
<script>
window.done = (async () => {
  for (const mode of ["cors", "no-cors"]) {
    try {
      const answer = await fetch("SITE/api/text", { method: "POST", mode, body: '{"study": "s", "text": "a"}' });
      window.got.push(answer.type + " " + answer.status);
    } catch (error) { window.got.push("no answer"); }
  }
})();
</script>"""


def test_another_sites_page_gets_nothing(chromium, served, tmp_path):
    (tmp_path / "index.html").write_text(STRANGER.replace("SITE", served.as_uri()))
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    handler.log_message = lambda *args: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            page = chromium.new_page()
            statuses = []
            page.on(
                "response", lambda answer: answer.url.startswith(served.as_uri()) and statuses.append(answer.status)
            )
            for host in ("127.0.0.1", "localhost"):  # of the same site, and of another
                page.goto(f"http://{host}:{other.server_address[1]}/")
                page.evaluate("window.done")
                assert set(page.evaluate("window.got")) <= {"refused", "no answer", "opaque 0"}
                assert page.evaluate("window.got")[0] == "refused"
            assert set(statuses) <= {403}
            page.close()
        finally:
            other.shutdown()
            thread.join()
