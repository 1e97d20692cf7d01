"""Dictionaries from a folder: of SAELens, Gemma Scope, sparsify, or of our own form; one, or one per layer.

A folder that holds a format's weights is one dictionary; any other is searched for such folders.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from universal_neurons.config import BUNDLED
from universal_neurons.disk import local_path
from universal_neurons.errors import CheckpointError, DictionaryError, MissingFileError
from universal_neurons.features import gemma_scope, plain_dictionaries, saelens, sparsify
from universal_neurons.features.dictionary import Dictionary
from universal_neurons.features.dictionary_tensors import require_own
from universal_neurons.features.several_places import error_of_folder, require_one_place
from universal_neurons.models import SUITES, digest_of, is_of_hub, json_object

DEEPEST = 6  # folders below the one that is named
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")


class Format(NamedTuple):
    """The files of a format, and what makes a dictionary of them; some do without settings."""

    weights: str
    settings: str
    read: Callable[[Path, Mapping[str, Any], str], Dictionary]
    may_lack_settings: bool = False


FORMATS = (
    Format(plain_dictionaries.WEIGHTS, plain_dictionaries.CONFIG, plain_dictionaries.read_plain),
    Format(saelens.WEIGHTS, saelens.CONFIG, saelens.read_saelens),
    Format(sparsify.WEIGHTS, sparsify.CONFIG, sparsify.read_sparsify),
    Format(gemma_scope.ARRAYS, saelens.CONFIG, gemma_scope.read_gemma_scope, may_lack_settings=True),
    Format(gemma_scope.TENSORS, gemma_scope.SETTINGS, gemma_scope.read_gemma_scope_2),
)


def load_dictionaries(folder: str | Path) -> tuple[Dictionary, ...]:
    """The dictionaries in a folder, by layer: at most one of each.

    Raises `MissingFileError` without a folder, `DictionaryError` for what is none or not computed here and for several
    of one layer, `CheckpointError` for files that are broken, pickled, or links out of the folder.
    """
    root = local_path(folder)
    if not root.is_dir():
        raise MissingFileError(f"{folder}: no such folder", wanted="a folder of dictionaries", fix="check the spelling")
    places = list(_folders(root, root, DEEPEST))
    if not places:
        raise _none(root)
    dictionaries = sorted((_load(place, root) for place in places), key=lambda each: each.read.layer)
    for one, other in pairwise(dictionaries):
        if one.read.layer == other.read.layer:
            raise DictionaryError(
                f"{folder}: several dictionaries of one layer",
                given=f"{one.name} ({one.read}) and {other.name} ({other.read})",
                wanted="one of each layer",
                fix="name the folder of one, or bring those that you mean into a folder of their own",
            )
    return tuple(dictionaries)


def bundled_dictionaries(model: str) -> Path:
    """The folder of the dictionaries that come with a bundled model (`bundled/roles-1`, or `roles-1` alone).

    Raises `MissingFileError` for a model that none come with.
    """
    having = {path.parent.name: path for suite in SUITES for path in sorted(suite.glob("*/dictionaries"))}
    folder = having.get(model.removeprefix(f"{BUNDLED}/"))
    if folder is None:
        raise MissingFileError(
            f"{model}: no dictionaries come with it",
            wanted="one of " + ", ".join(f"{BUNDLED}/{name}" for name in having),
            fix="name a folder of dictionaries of that model",
        )
    return folder


def _folders(folder: Path, root: Path, deeper: int) -> Iterator[Path]:
    """The folders that hold a format's weights, in order."""
    if any((folder / each.weights).is_symlink() or (folder / each.weights).exists() for each in FORMATS):
        yield folder
    elif deeper:
        for below in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
            if below.is_symlink() and not below.resolve().is_relative_to(root.resolve()):
                raise CheckpointError(
                    f"{root}: {below.relative_to(root)} is a link out of the folder",
                    given=f"a link to {below.readlink()}",
                    wanted="a folder in it",
                    fix="copy it there, or name it",
                )
            yield from _folders(below, root, deeper - 1)


def _load(folder: Path, root: Path) -> Dictionary:
    """The one dictionary of a folder, named by its path in the one that was asked for."""
    named = str(folder)
    kinds = [each for each in FORMATS if (folder / each.weights).is_symlink() or (folder / each.weights).exists()]
    if len(kinds) > 1:
        raise DictionaryError(
            f"{named}: weights of several formats",
            given=", ".join(each.weights for each in kinds),
            wanted="one dictionary in a folder",
            fix="bring them into folders of their own",
        )
    kind = kinds[0]
    files = [folder / kind.settings, folder / kind.weights]
    for path in files:
        require_own(path, folder, named)
    if kind.may_lack_settings and not files[0].exists():
        files = files[1:]
    missing = next((path for path in files if not path.is_file()), None)
    if missing is not None:
        raise CheckpointError(
            f"{named}: {missing.name} is {'no file' if missing.exists() else 'missing'}",
            wanted=f"{kind.settings} and {kind.weights}",
            fix="copy or download the whole folder again",
        )
    config = json_object(files[0], named) if len(files) == 2 else {}
    require_one_place(config, named)
    dictionary = kind.read(folder, config, named)
    name = _called(root) if folder == root else str(folder.relative_to(root))
    return replace(dictionary, name=name, digest=digest_of(files))


def _called(folder: Path) -> str:
    """What a folder that is a dictionary is called; a snapshot of the hub after its repository."""
    return folder.parents[1].name.rpartition("--")[2] if is_of_hub(folder) else folder.name


def _none(root: Path) -> DictionaryError | CheckpointError:
    if several := error_of_folder(root):
        return several
    pickles = sorted(path.name for path in root.rglob("*") if path.suffix in PICKLES)
    if pickles:
        return CheckpointError(
            f"{root}: only pickled dictionaries",
            given=", ".join(pickles[:5]),
            wanted="safetensors, or npz of numbers",
            fix="save them by the tool that made them (SAELens: save_model), or in our own form (docs/features.md)",
        )
    return DictionaryError(
        f"{root}: no dictionary in the folder",
        given=", ".join(sorted(path.name for path in root.iterdir())[:8]) or "an empty folder",
        wanted="one of " + ", ".join(each.weights for each in FORMATS) + ", or folders that hold one",
        fix="name the folder that holds them, or save it in our own form (docs/features.md)",
    )
