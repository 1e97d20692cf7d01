"""How fast is a large study's site in a browser, from disk?

    python benchmarks/explorer_pages.py SITE [--runs 20] [--chromium PATH]

Opens pages of an exported site in Debian's Chromium, headless: from the navigation's start until the page says that it is
drawn and answers (`study`, `unit`), from a letter typed until results are listed (`search`), from a changed filter until the
table and the scatter are drawn (`filter`).  Medians of `runs`, each in a fresh browser context, so that nothing is cached.

Prints Markdown rows; benchmarks/explorer.py prints them after its own.
"""

import argparse
import random
import shutil
from pathlib import Path
from statistics import median

READY = "performance.getEntriesByName('ready')[0].startTime"
SEARCH = """
(text) => new Promise((resolve) => {
  const box = document.getElementById("search"), panel = document.getElementById("results");
  const begun = performance.now();
  new MutationObserver(() => panel.hidden || resolve(performance.now() - begun)).observe(panel, { childList: true, attributes: true });
  box.value = text;
  box.dispatchEvent(new Event("input"));
})
"""
FILTER = """
(family) => new Promise((resolve) => {
  const select = [...document.querySelectorAll(".filters select")].find((each) => [...each.options].some((option) => option.value === family));
  const begun = performance.now();
  select.value = family;
  select.dispatchEvent(new Event("change"));
  requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - begun)));
})
"""


def opened(browser, address: str):
    """A page in a context of its own, drawn."""
    page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
    page.goto(address)
    page.wait_for_selector("#page[data-ready]")
    assert page.get_attribute("#page", "data-ready") == "yes", page.inner_text("#page")
    return page


def page_times(site: Path, runs: int = 20, chromium: str | None = None) -> dict[str, float]:
    """Medians in seconds; of `search` the first one of a page, which loads what it looks through, apart."""
    from playwright.sync_api import sync_playwright

    times: dict[str, list[float]] = {"study": [], "unit": [], "filter": [], "search, first": [], "search": []}
    units = random.Random(0)
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium or shutil.which("chromium"), args=["--no-sandbox"])
        for _ in range(runs):
            page = opened(browser, f"{site.resolve().as_uri()}/study.html")
            times["study"].append(page.evaluate(READY))
            models, widths = page.evaluate("[un.study.models.length, un.study.models[0].widths]")
            times["filter"].append(page.evaluate(FILTER, "syntax"))
            for name, text in (("search, first", "word1"), ("search", "word12"), ("search", "token 7")):
                times[name].append(page.evaluate(SEARCH, text))
            page.context.close()
        for _ in range(runs):
            layer = units.randrange(len(widths))
            name = f"{units.randrange(models)}/L{layer}.{units.randrange(widths[layer])}"
            page = opened(browser, f"{site.resolve().as_uri()}/unit.html?u={name}")
            times["unit"].append(page.evaluate(READY))
            page.context.close()
        browser.close()
    return {name: median(values) / 1000 for name, values in times.items()}


def rows(times: dict[str, float]) -> str:
    return "\n".join(f"| {name} | {seconds:.2f} s |" for name, seconds in times.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("site", type=Path)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--chromium")
    given = parser.parse_args()
    print(rows(page_times(given.site, given.runs, given.chromium)))


if __name__ == "__main__":
    main()
