"""The vendored axe-core, fetched again from the npm registry: `python tests/explorer/axe/fetch.py`.

Version and hash of the tarball are pinned; of its files those that tests need are kept, with their licences.
"""

import base64
import hashlib
import io
import tarfile
import urllib.request
from pathlib import Path

VERSION = "4.14.1"
SHA512 = "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
FILES = ("axe.min.js", "LICENSE", "LICENSE-3RD-PARTY.txt")
SCRIPT_SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"


def fetch(folder: Path) -> None:
    with urllib.request.urlopen(f"https://registry.npmjs.org/axe-core/-/axe-core-{VERSION}.tgz") as answer:
        packed = answer.read()
    assert base64.b64encode(hashlib.sha512(packed).digest()).decode() == SHA512
    with tarfile.open(fileobj=io.BytesIO(packed)) as files:
        for name in FILES:
            member = files.extractfile(f"package/{name}")
            assert member is not None
            (folder / name).write_bytes(member.read())


if __name__ == "__main__":
    fetch(Path(__file__).parent)
