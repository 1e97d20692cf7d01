"""Fetch packages from the registries and unpack them: Debian, PyPI and npm, by their ordinary clients.

A package is kept in `CACHE/REGISTRY/PACKAGE` (with `=VERSION` where one is given): its archive, and its files under
`files/`.  What is there already is not fetched again.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PIP = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
CLIENTS = {  # the command, what stands between name and version, and what to do where it fails
    "debian": (["apt-get", "download"], "=", "needs Debian 12 and a fresh `apt-get update`"),
    "pypi": (PIP, "==", "needs pip and a package that has a wheel"),
    "npm": (["npm", "pack", "--loglevel=error"], "@", "needs npm"),
}
LICENCES = {
    "debian": "usr/share/doc/*/copyright",
    "pypi": "*.dist-info/**/[Ll][Ii][Cc][Ee][Nn]*[Ee]*",
    "npm": "*/[Ll][Ii][Cc][Ee][Nn]*[Ee]*",
}


@dataclass(frozen=True)
class Package:
    """A package as fetched: its archive and the folder its files lie in."""

    registry: str
    name: str
    archive: Path
    files: Path

    def version(self) -> str:
        """The version that was fetched, as the archive tells."""
        if self.registry == "debian":
            return _run(["dpkg-deb", "-f", str(self.archive), "Version"], self.files).strip()
        if self.registry == "pypi":
            return self.archive.name.split("-")[1]
        (described,) = self.files.glob("*/package.json")
        return json.loads(described.read_text())["version"]

    def licence_file(self) -> str | None:
        """The file of the package that tells its licence; None where a package it depends on holds it."""
        files = sorted(path for path in self.files.glob(LICENCES[self.registry]) if path.is_file())
        return files[0].relative_to(self.files).as_posix() if files else None

    def sha256(self) -> str:
        """The SHA-256 of the archive, in hexadecimal digits."""
        with self.archive.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(registry: str, name: str, version: str | None, cache: Path) -> Package:
    """A package, out of the cache if it is there; raises SystemExit if the registry does not give it."""
    if registry not in CLIENTS:
        raise SystemExit(f"registry {registry!r} of package {name}: wanted one of {', '.join(CLIENTS)}")
    _, sign, _ = CLIENTS[registry]
    wanted = name + (sign + version if version else "")
    folder = cache.resolve() / registry / wanted.replace("/", "+")
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            partial = Path(scratch) / "package"
            partial.mkdir()
            _download(registry, wanted, partial)
            partial.rename(folder)
    archive = next(path for path in folder.iterdir() if path.is_file())
    return Package(registry, name, archive, folder / "files")


def _download(registry: str, wanted: str, folder: Path) -> None:
    command, _, fix = CLIENTS[registry]
    try:
        _run([*command, wanted], folder)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        raise SystemExit(
            f"{wanted}: {registry} did not give it ({reason.strip()[-300:]}); this {fix}, or correct `sources`"
        ) from error
    (archive,) = folder.iterdir()
    unpack(archive, folder / "files")


def unpack(archive: Path, target: Path) -> None:
    """The files of a .deb, a wheel or a .tgz."""
    target.mkdir(parents=True)
    if archive.suffix == ".deb":
        _run(["dpkg-deb", "-x", str(archive), str(target)], target)
    elif archive.suffix == ".whl":
        shutil.unpack_archive(archive, target, "zip")
    else:
        shutil.unpack_archive(archive, target, "gztar", filter="data")


def _run(command: list[str], folder: Path) -> str:
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
