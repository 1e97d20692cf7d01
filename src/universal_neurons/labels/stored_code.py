"""Python files that a stored configuration names: somebody else may have written it, so they run only when named again.

A study.json or dynamics.json keeps the label files that made it.  Whoever goes on from one (`run -c study.json`,
`roles RUN`) says by name which of its Python files may run.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from universal_neurons.disk import local_path
from universal_neurons.errors import ConfigError


def require_named_again(stored: object, named: Sequence[str], source: str) -> None:
    """Raise `ConfigError` where a stored configuration's `labels` include a Python file that is not `named` again."""
    listed = stored if isinstance(stored, list | tuple) else [stored]
    labels = [label for label in listed if isinstance(label, str)]  # what else there is the configuration refuses
    allowed = {_script(label) for label in named}
    unnamed = [label for label in labels if _script(label) and _script(label) not in allowed]
    if unnamed:
        raise ConfigError(
            f"{source}: names Python files of labels, which would be run",
            given=", ".join(unnamed),
            wanted="each of them named again by you, once you have read it",
            fix=" ".join(f"--labels {label}" for label in labels),
        )


def require_given_again(settings: Mapping[str, Any], named: Mapping[str, Any], source: str) -> None:
    """Raise `ConfigError` where stored settings would run code, here or by way of a cluster, unless `named` anew."""
    if "labels" not in named:
        require_named_again(settings.get("labels"), (), source)
    if settings.get("cluster") is not None and "cluster" not in named:
        raise ConfigError(
            f"{source}: names a Ray cluster, whose answers can run code",
            given=settings["cluster"],
            wanted="a cluster that you name yourself",
            fix="--cluster auto, or the address of yours",
        )


def _script(label: str) -> str | None:
    """The Python file that a label names (`file.py`, `file.py:function`), wherever it is called from."""
    file, _, function = label.partition(".py:")
    path = Path(file + ".py" if function else label)
    return str(local_path(path).resolve()) if path.suffix == ".py" else None
