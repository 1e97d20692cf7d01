"""Does an installed package work, as far as a small study?

Run by `.ci/package` in an empty folder, by the Python that it is installed for.
"""

import subprocess
import sys
from importlib.metadata import files, requires, version
from pathlib import Path

from packaging.requirements import Requirement

import universal_neurons as un
from universal_neurons.cli import main

PACKAGE = Path(un.__file__).parent


def unmet() -> list[str]:
    """What the package asks for, extras aside, and is not there."""
    wanted = [Requirement(line) for line in requires("universal-neurons") or ()]
    wanted = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [str(one) for one in wanted if not one.specifier.contains(version(one.name), prereleases=True)]


def check_install() -> None:
    """What was installed is what is imported, whole, with all that it asks for, and the command answers."""
    assert PACKAGE.is_relative_to(sys.prefix), f"{PACKAGE} is not what was installed"
    said = subprocess.run(["uneurons", "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    assert version("universal-neurons") == un.__version__ == said
    missing = [str(file) for file in files("universal-neurons") or ["all"] if not Path(file.locate()).exists()]
    assert not missing, missing
    assert (PACKAGE / "py.typed").exists()
    assert not unmet(), unmet()
    whole, suite = ([file.stat().st_size for file in folder.rglob("*")] for folder in (PACKAGE, PACKAGE / "bundled"))
    print(f"installed: {sum(whole) / 2**20:.1f} MiB, the bundled suite {sum(suite) / 2**20:.1f} MiB of it")


def check_study() -> None:
    """Two bundled models are studied, and the study is shown and exported."""
    models = ("--models", "bundled/seed-1", "--models", "bundled/seed-2")
    main([*("run", *models, "--max-tokens", "4096"), *("--stages", "universality", "--draws", "2", "--out", "study")])
    main(["show", "study"])
    main(["export", "study", "--out", "site"])
    assert un.Store("study").neurons.height == 2 * 768
    assert Path("site/index.html").exists()


if __name__ == "__main__":
    check_install()
    check_study()
