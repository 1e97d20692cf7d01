"""The pictures of README.md and docs/explorer.md, from the site that `make demo` writes.

    make demo
    python benchmarks/screenshots.py runs/bundled-site docs/images

Opens the site in Debian's Chromium, headless, and writes PNG files, each under 200 kB.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image

LARGEST = 200_000  # bytes
UNIT = "unit.html?u=0/L0.211"
PICTURES = {  # address, what is scrolled to, what is pressed first, scheme, width and height
    "study": ("study.html", "#units", None, "light", (1360, 1000)),
    "unit": (UNIT, None, None, "light", (1360, 1080)),
    "lanes": (UNIT, "#together", "Under one text", "dark", (1100, 620)),
}


def picture(
    browser, site: Path, address: str, scroll: str | None, press: str | None, scheme: str, size: tuple[int, int]
) -> bytes:
    viewport = {"width": size[0], "height": size[1]}
    page = browser.new_context(viewport=viewport, color_scheme=scheme).new_page()
    page.goto(f"{site.resolve().as_uri()}/{address}")
    page.wait_for_selector("#page[data-ready=yes]")
    if press:
        page.get_by_role("button", name=press).click()
    if scroll:
        page.evaluate("(where) => document.querySelector(where).scrollIntoView()", scroll)
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(300)
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    shot = shot.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)  # a third of the bytes
    page.context.close()
    out = io.BytesIO()
    shot.save(out, "PNG", optimize=True)
    return out.getvalue()


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("site", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=given.chromium, args=["--no-sandbox"])
        for name, settings in PICTURES.items():
            content = picture(browser, given.site, *settings)
            assert len(content) < LARGEST, f"{name}: {len(content)} bytes"
            (given.out / f"explorer-{name}.png").write_bytes(content)
            print(f"{name}: {len(content):,} bytes")
        browser.close()


if __name__ == "__main__":
    main()
