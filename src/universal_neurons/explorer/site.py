"""Studies to a site: a folder of pages and data that opens from disk and from any web space.

1. The folder must be new, empty, or a site that was written here; another is refused before anything is read.
2. Everything is written into a folder beside it.
3. That takes the place of the old site by its name, and the old site goes.  A reader has the old site, for an instant
   none, then the new one.
"""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from universal_neurons.disk import disk_errors, local_path, partial_of, removing, take_lock
from universal_neurons.errors import InputError, MissingFileError, StoreConflictError
from universal_neurons.explorer.absent import shown_pages
from universal_neurons.explorer.csv_files import write_csv
from universal_neurons.explorer.data_files import read_statement, write_data
from universal_neurons.explorer.diff_files import changes_data, diff_data
from universal_neurons.explorer.studies import Result, ShownStudy, shown_studies
from universal_neurons.explorer.study_file import study_data
from universal_neurons.explorer.tables import tables_data
from universal_neurons.explorer.terms import terms_of
from universal_neurons.explorer.unit_files import write_unit_files
from universal_neurons.progress import Reporter

FORMAT = 1
STATIC = Path(__file__).parent / "static"
MARK = Path("data", "site.js")  # says that a folder is a site, and what stands in it
ONE, DIFF, SEVERAL = "study", "diff", "index"


def write_site(
    results: Sequence[Result],
    out: str | Path,
    *,
    csv: bool = False,
    served: bool = False,
    static: Path | None = None,
    reporter: Reporter | None = None,
) -> Path:
    """Write the site of some studies, training dynamics and diffs; returns its first page.

    `csv` adds tables of all units as CSV; `served` says that the site's server is there to try texts; `static` is the
    folder of the pages' templates, scripts and styles, else the package's.  Raises `StoreConflictError` where `out`
    holds anything else.
    """
    if not results:
        raise InputError("a site of no study", wanted="the folder of at least one study")
    target = local_path(out).resolve()
    reporter = reporter or Reporter(quiet=True)
    with disk_errors(target), _replacing(target) as folder:
        listed: list[dict[str, Any]] = []
        models: list[dict[str, Any]] = []
        for number, study in enumerate(shown_studies(results), start=1):
            reporter.note(f"site: {study.name} ({number} of {len(results)})")
            models += study.store.manifest["models"]
            listed.append(write_study(study, folder, served=served))
            if csv:
                write_csv(study, folder)
        site = {"format": FORMAT, "studies": listed, "terms": terms_of(models), "served": served}
        write_pages(site, folder, static or STATIC)
        write_data(folder, "site", site | {"entries": sorted({"data", *(entry.name for entry in folder.iterdir())})})
    return target / "index.html"


def write_study(study: ShownStudy, folder: Path, *, served: bool = False) -> dict[str, Any]:
    """Write the data files of one study; returns what the list of the site's studies says of it."""
    missing = _write_summary(study, folder, served)
    write_unit_files(study, folder)
    pages = shown_pages(missing)
    if study.diff is not None:
        write_data(folder, f"{study.id}/diff", diff_data(study.diff))
        write_data(folder, f"{study.id}/changes", changes_data(study.diff))
        pages = [DIFF, *pages]
    return {"id": study.id, "name": study.name, "title": study.title, "models": study.models, "pages": pages}


def _write_summary(study: ShownStudy, folder: Path, served: bool) -> dict[str, str]:
    """Write what is said of the study as a whole; returns what is absent.  The tables read for it are gone then."""
    store = study.summary()
    data = study_data(study, store)
    if served:
        del data["absent"]["text"]
    write_data(folder, f"{study.id}/study", data)
    write_data(folder, f"{study.id}/tables", tables_data(study, store))
    return data["absent"]


def write_pages(site: dict[str, Any], folder: Path, static: Path) -> None:
    """Render the pages, and copy scripts and styles.  The first page of a site of one study, or diff, is its own."""
    pages = Environment(
        loader=FileSystemLoader(static),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = [path.stem for path in sorted(static.glob("[!_]*.html"))]
    sources = {name: name for name in names} | {SEVERAL: _first_page(site["studies"])}
    for name, source in sources.items():
        text = pages.get_template(f"{source}.html").render(site=site, page=source)
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    shutil.copytree(static, folder / "static", ignore=shutil.ignore_patterns("*.html", ".*", "__pycache__"))


def _first_page(studies: Sequence[dict[str, Any]]) -> str:
    if len(studies) > 1:
        return SEVERAL
    return DIFF if DIFF in studies[0]["pages"] else ONE


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A new folder that takes the place of the site once all is written."""
    _require_place(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = take_lock(target.parent / f".{target.name}.lock", str(target))
    new, old = partial_of(target), target.with_name(f".{target.name}.old")
    try:
        for left in (new, old):  # by a writer that was killed
            _remove(left)
        with removing(new):
            new.mkdir()
            yield new
            _require_place(target)
            _put_in_place(new, target, old)
    finally:
        (target.parent / f".{target.name}.lock").unlink(missing_ok=True)
        lock.release()


def _put_in_place(new: Path, target: Path, old: Path) -> None:
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove(left: Path) -> None:
    if left.is_dir() and not left.is_symlink():
        shutil.rmtree(left)
    else:
        left.unlink(missing_ok=True)


def _require_place(target: Path) -> None:
    """Raise `StoreConflictError` where a folder holds anything but a site."""
    if not target.exists():
        return
    if not target.is_dir():
        raise StoreConflictError(f"{target}: is a file", wanted="a folder", fix="name another --out")
    ours = entries_of(target)
    foreign = sorted(entry.name for entry in target.iterdir() if entry.name not in ours)
    if foreign:
        raise StoreConflictError(
            f"{target}: holds files that are no part of a site",
            given=foreign[0],
            wanted="a new or empty folder, or a site that uneurons export wrote",
            fix="name another --out",
        )


def entries_of(folder: Path) -> set[str]:
    """What a site's folder holds, as the site says itself; nothing of a folder that is no site."""
    try:
        path, site = read_statement((folder / MARK).read_bytes())
        return set(map(str, site["entries"])) if path == "site" else set()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


def require_site(folder: Path) -> None:
    """Raise `MissingFileError` where a folder is no site."""
    if not entries_of(folder):
        raise MissingFileError(f"{folder}: no site here", wanted=f"a folder with {MARK}", fix="uneurons export RUN")
