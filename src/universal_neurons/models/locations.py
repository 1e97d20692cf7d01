"""Where a model's files are: bundled, in a local folder, or on the hub; and pickles made into safetensors.

A source of a study is named MODEL[@REVISION][::FEATURES]; without features it is the model's neurons.

Dictionaries may be on the hub too: MODEL::org/name[/FOLDER][@REVISION]; of a FOLDER nothing else is downloaded.

A hub id is first made a local snapshot (`huggingface_hub.snapshot_download`, which honours `HF_HUB_OFFLINE`);
from there on everything is a local folder.
"""

import glob
import hashlib
import json
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from universal_neurons.config import BUNDLED, IN_MEMORY, is_nameable
from universal_neurons.disk import local_path
from universal_neurons.errors import CheckpointError, ConfigError, MissingFileError
from universal_neurons.legible import first_line

BUNDLED_FOLDER = Path(__file__).parents[1] / "bundled"
ROLES_FOLDER = BUNDLED_FOLDER / "roles"
SUITES = (BUNDLED_FOLDER, ROLES_FOLDER)  # folders of models with one tokenizer and one held-out text
TOKEN_COUNTS = "token_counts.csv"  # in a suite, of the text that its models were trained on
READABLE = ["*.json", "*.safetensors", "*.txt", "*.model"]
DICTIONARIES = ["*.json", "*.safetensors", "*.npz"]
PICKLES = ["pytorch_model*.bin", "pytorch_model.bin.index.json", "adapter_model.bin"]
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ADAPTER_SETTINGS = "adapter_config.json"
GGUF = ".gguf"
OF = "::"  # between a model and which of its features
NEURONS = "neurons"
SETTINGS_BYTES = 1 << 24
SHOWN = 200


@dataclass(frozen=True)
class Source:
    """A model as it was named and its folder; of an adapter its `base` too, of a GGUF file its name in there.

    `features` says what of it is studied: its neurons, or what `features.features_of` knows.
    """

    given: str
    name: str
    folder: Path
    revision: str | None = None
    base: "Source | None" = None
    gguf: str | None = None
    features: str = NEURONS


def bundled_models() -> list[str]:
    """The names of the models that `bundled` stands for: the seeds of the suite of roles."""
    return [f"{BUNDLED}/{folder.name}" for folder in sorted(ROLES_FOLDER.glob("roles-[0-9]"))]


def bundled_names() -> list[str]:
    """The names of all models that come with the package, fine-tunes among them."""
    folders = [folder for suite in SUITES for folder in sorted(suite.iterdir())]
    return [
        f"{BUNDLED}/{folder.name}" for folder in folders if is_adapter(folder) or (folder / "config.json").is_file()
    ]


def bundled_folder(name: str) -> Path:
    """The folder of a bundled model (`bundled/roles-1`, or `roles-1` alone), or of a checkpoint of it.

    Raises `MissingFileError` where there is none.
    """
    for suite in SUITES:
        folder = suite / name.removeprefix(f"{BUNDLED}/")
        if folder.is_dir():
            return folder
    raise MissingFileError(f"{name}: no such bundled model", wanted="one of " + ", ".join(bundled_names()))


def bundled_suite(folder: Path) -> Path | None:
    """The suite that a bundled model's folder is of, or a checkpoint's; None for a folder of another's."""
    return next((suite for suite in reversed(SUITES) if folder.resolve().is_relative_to(suite)), None)


def bundled_text(models: Sequence[str]) -> Path:
    """Text that no model of a suite was trained on: of the suite of the first of these models that is bundled, else of
    that of the seeds."""
    suites = (suite for model in expand_bundled(models) if (suite := _suite_of(model)) is not None)
    return next(suites, BUNDLED_FOLDER) / "heldout.jsonl.xz"


def bundled_counts(models: Sequence[str]) -> tuple[Path, str] | None:
    """The file of how often each token occurs in the text that a suite was trained on, where all of these models are of
    it and it has one, and what the suite is called; None else."""
    suites = {_suite_of(model) for model in expand_bundled(models)}
    suite = suites.pop() if len(suites) == 1 else None
    if suite is None or not (suite / TOKEN_COUNTS).is_file():
        return None
    return suite / TOKEN_COUNTS, suite.relative_to(BUNDLED_FOLDER.parent).as_posix()


def _suite_of(model: str) -> Path | None:
    """The suite that a model is of, as it is named; None for another's and for one in memory."""
    if model.startswith(f"{IN_MEMORY}:"):
        return None
    path, _ = split_features(model)
    if path.startswith(f"{BUNDLED}/") or os.path.isdir(local_path(path)):
        return bundled_suite(folder_of(path))
    return None


def expand_bundled(models: Sequence[str]) -> list[str]:
    """The list of models with `bundled` replaced by those that it stands for, whatever of them is asked for."""
    expanded = []
    for model in models:
        path, of, features = model.partition(OF)
        expanded += [f"{name}{of}{features}" for name in bundled_models()] if path == BUNDLED else [model]
    return expanded


def split_features(model: str) -> tuple[str, str]:
    """A model as it is named, and which of its features: its neurons where it does not say.

    Raises `ConfigError` where that is ambiguous, or nothing is named.
    """
    if OF not in model:
        return model, NEURONS
    path, _, features = model.partition(OF)
    if os.path.lexists(local_path(model)) or OF in features or not path.strip() or not features.strip():
        raise ConfigError(
            f"{model}: not a model and its features",
            given=f"{OF} in the name of a file or folder" if path and features else f"nothing beside {OF}",
            wanted=f"MODEL{OF}FEATURES, neither with {OF} in its name",
            fix="rename the folder, or make a link to it of another name",
        )
    return path, features


def resolve_sources(models: Sequence[str], *, pickles: bool = False, download: bool = True) -> list[Source]:
    """Every model's folder and a unique name for it, downloading from the hub what is not local unless told not to.

    Raises `MissingFileError` for what is not there, and `CheckpointError` for an adapter that names no model.
    """
    expanded = expand_bundled(models)
    sources = []
    for model, name in zip(expanded, names_of(expanded)):
        named, features = split_features(model)
        features = features_at(features, download=download)
        path, revision = _split_revision(named)
        place = local_path(path)
        if place.suffix == GGUF and revision is None and place.is_file():
            sources.append(Source(model, name, place.parent, gguf=place.name, features=features))
        else:
            folder = _folder_of(path, revision, pickles=pickles, download=download)
            sources.append(Source(model, name, folder, revision, features=features))
    return [
        replace(source, base=_base_of(source, pickles=pickles, download=download))
        if source.gguf is None and is_adapter(source.folder)
        else source
        for source in sources
    ]


def features_at(features: str, *, download: bool = True) -> str:
    """Features as they are named; of dictionaries on the hub, the local folder of their snapshot.

    A folder that is here comes before the hub.  Raises `MissingFileError` for an id that is not found, or has no such
    folder.
    """
    path, revision = _split_revision(features)
    repository, below = "/".join(path.split("/")[:2]), path.split("/")[2:]
    if "/" not in path or path.startswith((".", "/", "~")) or os.path.lexists(local_path(path)):
        return features if revision is None else str(_folder_of(path, revision))
    patterns = [glob.escape("/".join([*below, ""])) + pattern for pattern in DICTIONARIES]
    folder = _snapshot(repository, revision, patterns, download).joinpath(*below)
    if ".." in below or not folder.is_dir():
        raise MissingFileError(
            f"{features}: no such folder in {repository} on the hub",
            given="/".join(below),
            wanted="a folder of the repository that holds dictionaries",
            fix="look up its folders on the hub",
        )
    return str(folder)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a `peft` adapter and no model."""
    weights = [name for whole in WEIGHTS for name in (whole, f"{whole}.index.json")]
    return (folder / ADAPTER_SETTINGS).is_file() and not any((folder / name).is_file() for name in weights)


def is_of_hub(folder: Path) -> bool:
    """Whether a folder is a snapshot in the hub's cache."""
    return folder.parent.name == "snapshots"


def _base_of(adapter: Source, *, pickles: bool, download: bool) -> Source:
    """The model that an adapter names: a folder beside it or here, a bundled model, or one of the hub."""
    settings = json_object(adapter.folder / ADAPTER_SETTINGS, adapter.given)
    named, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    revision = revision if isinstance(revision, str) and revision else None
    fix = f"write the folder or hub id of its model as base_model_name_or_path into {adapter.folder / ADAPTER_SETTINGS}"
    wanted = "the model that it was trained on: a folder (from the adapter's or from here), or a hub id"
    if not isinstance(named, str) or not is_nameable(named) or not named:
        raise CheckpointError(
            f"{adapter.given}: an adapter that names no model", given=str(named)[:SHOWN], wanted=wanted, fix=fix
        )
    beside = adapter.folder / named
    is_beside = os.path.isdir(beside)
    try:
        folder = beside if is_beside else _folder_of(named, revision, pickles=pickles, download=download)
    except MissingFileError as error:
        raise MissingFileError(
            f"{adapter.given}: an adapter whose model is not there", given=error.what, wanted=wanted, fix=fix
        ) from error
    if is_adapter(folder):
        raise CheckpointError(
            f"{adapter.given}: an adapter of an adapter",
            given=f"{named}, an adapter itself",
            wanted="an adapter of a whole model",
            fix=f"merge that one first, uneurons convert {shlex.quote(str(folder))} NEW_FOLDER, and {fix}",
        )
    return Source(named, adapter.name, folder, None if is_beside else revision)


def json_object(path: Path, named: str) -> dict[str, Any]:
    """A JSON file's object; `CheckpointError` for anything else."""
    try:
        size = path.stat().st_size
        value = json.loads(path.read_text(encoding="utf-8")) if size <= SETTINGS_BYTES else f"a file of {size:,} bytes"
    except (OSError, ValueError, RecursionError) as error:
        value = f"{type(error).__name__}: {error}"
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{named}: unreadable {path.name}",
            given=str(value)[:SHOWN],
            wanted="a JSON object",
            fix="copy or download the file again",
        )
    return value


def names_of(models: Sequence[str]) -> list[str]:
    """The unique name of every model: the last part of its path or id, or more of it; `::` and its features behind.

    Several features of one model have its name before them; the same asked for twice is two models.
    """
    split = [split_features(model) for model in models]
    times: Counter[tuple[str, str]] = Counter()
    keys = []
    for asked in split:
        keys.append((asked[0], times[asked]))
        times[asked] += 1
    different = list(dict.fromkeys(keys))
    named = dict(zip(different, _unique_names([_split_revision(path) for path, _ in different])))
    with_features = [named[key] + behind_name(features) for key, (_, features) in zip(keys, split)]
    return _numbered(with_features)


def behind_name(features: str) -> str:
    """What stands behind a model's name: nothing of its neurons; of a folder of dictionaries its own name."""
    folder = _split_revision(features)[0]
    return "" if features == NEURONS else OF + (local_path(folder).resolve().name if "/" in folder else features)


def folder_of(model: str, *, download: bool = True) -> Path:
    """The local folder of one model, tokenizer or data set of the hub, downloaded unless told not to."""
    return _folder_of(*_split_revision(model), download=download)


def _split_revision(model: str) -> tuple[str, str | None]:
    """A path or id, and the revision after the last @, unless a file or folder has the whole as its name."""
    if "@" not in model or os.path.lexists(local_path(model)):
        return model, None
    path, _, revision = model.rpartition("@")
    return path, revision


def _unique_names(parsed: list[tuple[str, str | None]]) -> list[str]:
    def spelled(path: str, revision: str | None, parts: int) -> str:
        whole = local_path(path).resolve()
        tail = "-".join(whole.parts[-parts:] if parts > 1 else [whole.name]) or "model"
        return f"{tail}@{revision}" if revision and parts > 1 else tail

    names = [spelled(path, revision, 1) for path, revision in parsed]
    for parts in (2, 3):
        counts = Counter(names)
        names = [
            spelled(path, revision, parts) if counts[name] > 1 else name
            for (path, revision), name in zip(parsed, names)
        ]
    return _numbered(names)


def _numbered(names: Sequence[str]) -> list[str]:
    """Names of which the second and later of the same have a number behind."""
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return unique


def _folder_of(path: str, revision: str | None, *, pickles: bool = False, download: bool = True) -> Path:
    local = local_path(path)
    if path.startswith(f"{BUNDLED}/") and not local.is_dir():
        local = bundled_folder(path)
    if os.path.isdir(local):
        if revision is not None:
            raise MissingFileError(
                f"{path}@{revision}: {path} is a folder here, which has no revisions",
                wanted="a folder alone, or a hub id whose name no folder here has",
                fix="leave @ and the revision out; to have the hub's, rename the folder or work elsewhere",
            )
        return local
    if os.path.lexists(local):
        raise MissingFileError(
            f"{path}: not a model folder",
            given="a file" if local.exists() else f"a link to {os.readlink(local)[:200]}, which is not there",
            wanted="a Hugging Face model folder",
        )
    if not path or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise MissingFileError(
            f"{path or 'an empty name'}: no such folder", wanted="a Hugging Face model folder or hub id"
        )
    return _snapshot(path, revision, READABLE + (PICKLES if pickles else []), download)


def require_ordinary_files(folder: Path, named: str) -> None:
    """Refuse a model's folder in which something that would be read as a file is none: reading it may never end."""
    no_file = next((p for pattern in READABLE for p in sorted(folder.glob(pattern)) if not p.is_file()), None)
    if no_file is not None:
        kind = "a folder" if no_file.is_dir() else "no ordinary file" if no_file.exists() else "a link to nothing"
        raise CheckpointError(
            f"{named}: {no_file.name} is no file", given=kind, wanted="a file", fix="mend or remove it"
        )


def _snapshot(repository: str, revision: str | None, patterns: list[str], download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=patterns, local_files_only=not download)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError, ValueError) as error:
        at = f" at revision {revision}" if revision else ""
        raise MissingFileError(
            f"{repository}{at}: neither a local folder nor found on the hub",
            given=first_line(error),
            wanted="an existing folder, or a hub id that can be reached or is in the hub's cache",
            fix="check the spelling and the network (HF_HUB_OFFLINE uses the cache alone)",
        ) from None


def digest_of(files: Sequence[Path]) -> str:
    """SHA-256 over the files' bytes, in order."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()
