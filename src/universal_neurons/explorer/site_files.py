"""The files of a site that a server gives: listed once, found by their whole path, opened with nothing taken on trust.

1. `SiteFiles` walks the site's folder at the start and notes every ordinary file; a link, to a file or a folder, is
   left out and not followed.
2. A path that is asked for is looked up among those; no path is ever made of what was asked.
3. An opened file must still be the one that was noted (device and inode), so nothing can be put in its place.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from universal_neurons.disk import BINARY, NOFOLLOW, NONBLOCK

FIRST_PAGE = "/index.html"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".txt": "text/plain; charset=utf-8",
}
OTHER_KIND = "application/octet-stream"


@dataclass(frozen=True)
class SiteFile:
    """A file of the site: where it is, its media type, and which file of the disk it was at the start."""

    path: Path
    kind: str
    device: int
    inode: int

    def open(self) -> BufferedReader | None:
        """The file to read; None where it is gone, or another is in its place."""
        try:
            handle = os.open(self.path, os.O_RDONLY | NOFOLLOW | NONBLOCK | BINARY)
        except OSError:
            return None
        found = os.fstat(handle)
        if (found.st_dev, found.st_ino) != (self.device, self.inode):
            os.close(handle)
            return None
        return os.fdopen(handle, "rb")


class SiteFiles:
    """The ordinary files of a site's folder, by the path under which each is asked for (`/data/site.js`)."""

    def __init__(self, folder: Path) -> None:
        self._files = dict(_walk(folder, "/"))
        if FIRST_PAGE in self._files:
            self._files["/"] = self._files[FIRST_PAGE]

    @property
    def paths(self) -> frozenset[str]:
        """Every path that something is found at."""
        return frozenset(self._files)

    def find(self, path: str) -> SiteFile | None:
        """The file at a path, which must be spelled as it was listed; None where there is none."""
        return self._files.get(path)


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, SiteFile]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
                continue
            found = os.stat(entry.path, follow_symlinks=False)
            if stat.S_ISREG(found.st_mode):
                kind = KINDS.get(Path(entry.name).suffix, OTHER_KIND)
                yield f"{prefix}{entry.name}", SiteFile(Path(entry.path), kind, found.st_dev, found.st_ino)
