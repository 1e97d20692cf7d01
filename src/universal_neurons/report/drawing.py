"""Figures as a page and a folder have them: laid out once, as SVG and PNG.

Matplotlib draws by one core.  So where there are two, and memory, a second interpreter opens the same study and draws
some of its figures (`python -m universal_neurons.report.drawing FOLDER`).  The files are the same either way.
"""

import base64
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from universal_neurons.report import figures
from universal_neurons.report.figures import Caption, Illustration
from universal_neurons.storage import Results, Store

FEWEST = 12  # figures from which a second interpreter, which takes a second to begin, is worth it
ROOM = 1 << 30  # bytes free, of which a second interpreter takes half
MINE, OTHERS = (0, 2, 4), (1, 3)  # of five figures; the second interpreter begins later


@dataclass(frozen=True)
class Picture:
    """A figure as a page has it: what it is called, its SVG as an address, and its caption."""

    title: str
    source: str
    caption: Caption


def embedded(shown: Illustration) -> Picture:
    """A figure that is in no file of its own."""
    figures.lay_out(shown.figure)
    return _picture(shown.title, figures.render(shown.figure, "svg"), shown.caption)


def written(results: Results, drawn: Mapping[str, Illustration]) -> dict[str, Picture]:
    """Figures, drawn into a finished folder as SVG and PNG, by name."""
    pictures = {}
    for name, shown in drawn.items():
        figures.lay_out(shown.figure)
        svg = figures.render(shown.figure, "svg")
        results.write_page(f"figures/{name}.svg", svg)
        results.write_page(f"figures/{name}.png", figures.render(shown.figure, "png"))
        pictures[name] = _picture(shown.title, svg, shown.caption)
    return pictures


def written_figures(store: Store) -> dict[str, Picture]:
    """All figures of a study, drawn into its folder, by two processes where there are cores for them."""
    names = list(figures.study_places(store))
    as_on_disk = type(store) is Store
    if not as_on_disk or len(names) < FEWEST or _cores() < 2 or psutil.virtual_memory().available < ROOM:
        return written(store, figures.study_figures(store))
    with _second_interpreter(store.path) as other:
        pictures = written(store, figures.study_figures(store, MINE))
        told, _ = other.communicate()
    if other.returncode:  # it may have found no memory; what is wrong with a figure is said of it here
        pictures |= written(store, figures.study_figures(store, OTHERS))
    else:
        pictures |= {name: _told(store, name, **of) for name, of in json.loads(told).items()}
    return {name: pictures[name] for name in names if name in pictures}


def _told(store: Store, name: str, title: str, caption: dict[str, str]) -> Picture:
    """A figure that the other interpreter drew."""
    return _picture(title, (store.path / f"figures/{name}.svg").read_bytes(), Caption(**caption))


def _picture(title: str, svg: bytes, caption: Caption) -> Picture:
    return Picture(title, "data:image/svg+xml;base64," + base64.b64encode(svg).decode(), caption)


def _cores() -> int:
    """How many cores this process may use: those it runs on, and no more than OpenMP is given."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(given)) if given.isdecimal() else cores


@contextlib.contextmanager
def _second_interpreter(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-P", "-m", __name__, str(folder.resolve())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def _draw_the_others(folder: str) -> None:
    """Draw the second interpreter's part of a study's figures, and tell their titles and captions."""
    store = Store(Path(folder))
    shown = figures.study_figures(store, OTHERS)
    written(store, shown)
    print(json.dumps({name: {"title": of.title, "caption": asdict(of.caption)} for name, of in shown.items()}))


if __name__ == "__main__":
    _draw_the_others(sys.argv[1])
