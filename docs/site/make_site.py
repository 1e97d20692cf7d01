"""Builds the site: `make docs`.  No network is needed; a warning or a dead link is an error.

1. The pages as they stand (README, docs/, benchmarks/RESULTS.md, the card of the bundled suite …) are copied side by
   side as in the repository, so that their links lead where they lead there.
2. The notebooks of docs/tutorials become pages, with the outputs that they hold (`tutorials`).
3. The reference is written beside them (`reference`): commands from the app, settings from the configuration's fields,
   tables from docs/columns.yaml, Python from docstrings.  It is made anew each time, so it cannot be stale.
4. Sphinx makes HTML of all, with MyST for Markdown, furo for the looks and formulas as MathML in a font of ours.

Why Sphinx (looked at in November 2026): mkdocs 1 has had no release since 2024, and mkdocs-material calls itself
inactive; its authors' Zensical is an alpha that changes every week, and is about to replace its own link checks.
Sphinx is stable, had 14 releases within a year, turns any warning into a failure, reads docstrings by itself, and its
search works from disk.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import reference
import tutorials
from sphinx.cmd.build import main as sphinx

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
COPIED = (
    "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "benchmarks/RESULTS.md", "docs/columns.yaml",
    "src/universal_neurons/bundled/README.md",
    "src/universal_neurons/bundled/roles/README.md", *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")),
    *(f"docs/images/{image.name}" for image in (ROOT / "docs/images").iterdir()),
)  # fmt: skip
STRICT = ("--fail-on-warning", "--keep-going", "--quiet", "--fresh-env", "-c", str(HERE))  # for Sphinx


def stage(folder: Path) -> None:
    """Put the site's source together: the pages that there are, and the generated ones."""
    for name in COPIED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    tutorials.write_tutorials(ROOT / "docs/tutorials", folder / "docs/tutorials")
    contents = (HERE / "contents.md").read_text(encoding="utf-8")
    (folder / "index.md").write_text((ROOT / "README.md").read_text(encoding="utf-8") + contents, encoding="utf-8")
    for name, page in reference.all_pages().items():
        (folder / "reference").mkdir(exist_ok=True)
        (folder / "reference" / f"{name}.md").write_text(page, encoding="utf-8")


def main(out: str) -> int:
    """Build the site into a folder; returns Sphinx's exit code, 0 where nothing was to be warned of."""
    with tempfile.TemporaryDirectory() as source:
        stage(Path(source))
        return sphinx([*STRICT, "-b", "html", "-d", f"{source}/.doctrees", source, out])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
