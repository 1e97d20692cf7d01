"""A real Chromium for the tests of pages: one per module, whose pages must ask for no file but the site's own.

Test modules name it as their plugin: `pytest_plugins = ["visits"]`.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hand_site import write_hand_site

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 15_000  # milliseconds, on a machine that does much else


@pytest.fixture(scope="module")
def chromium() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright (extra test)")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """A browser page, and what it did that it should not: complaints, requests outside of the site."""

    def __init__(self, chromium, root: Path, **settings) -> None:
        self.root = root
        self.complaints: list[str] = []
        self.outside: list[str] = []
        self.context = chromium.new_context(
            viewport=settings.pop("viewport", {"width": 1200, "height": 800}), **settings
        )
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.page.on("console", lambda said: said.type in ("error", "warning") and self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))
        self.page.on("request", self._asked)

    def _asked(self, request) -> None:
        if not request.url.startswith((self.root.as_uri() + "/", "blob:file:", "data:image/")):
            self.outside.append(request.url)

    def go(self, address: str):
        self.page.goto(f"{self.root.as_uri()}/{address}")
        self.arrived()
        return self.page

    def arrived(self) -> str:
        """Wait until the page is drawn; whether it is drawn or says why it cannot be."""
        self.page.wait_for_selector("#page[data-ready]")
        return self.page.get_attribute("#page", "data-ready")

    def well(self) -> None:
        assert not self.complaints
        assert not self.outside
        assert self.page.evaluate("window.pwned") is None


@pytest.fixture(scope="module")
def small_site(tmp_path_factory) -> Path:
    return write_hand_site(tmp_path_factory.mktemp("site"))


@pytest.fixture
def visit(chromium) -> Iterator[Callable[..., Visitor]]:
    """Makes visitors of a site, with settings of the browser's own (a colour scheme, a viewport)."""
    visitors: list[Visitor] = []

    def visiting(root: Path, **settings) -> Visitor:
        visitors.append(Visitor(chromium, root, **settings))
        return visitors[-1]

    yield visiting
    for visitor in visitors:
        visitor.context.close()


@pytest.fixture
def visitor(visit, small_site) -> Visitor:
    return visit(small_site)
