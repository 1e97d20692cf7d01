"""Pickle-only models, adapters and GGUF files to safetensors folders, on request only."""

import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from universal_neurons.disk import disk_errors, local_path
from universal_neurons.errors import CheckpointError, InputError
from universal_neurons.models.loading import load_weights
from universal_neurons.models.locations import Source, names_of, resolve_sources
from universal_neurons.models.tokenizer import load_tokenizer, tokenizer_folder
from universal_neurons.models.weight_files import needs_conversion

NEW_FOLDER = "models"  # that a command proposes
Note = Callable[[str], object]


def convert(model: str, folder: str | Path, note: Note | None = None) -> Path:
    """A pickle-only model, an adapter or a GGUF file made a safetensors folder, its tokenizer brought along.

    The pickle is read by `torch.load(weights_only=True)`; `note` is told what is left out.  Raises `InputError` where
    `folder` is not empty, and `CheckpointError` where the weights cannot be read or do not fill the model.
    """
    source = resolve_sources([model], pickles=True)[0]
    target = local_path(folder)
    if _is_taken(target):
        raise InputError(
            f"{target}: there already, and not an empty folder", wanted="a new folder", fix="name another folder"
        )
    weights = load_weights(source, "float32", pickled=True)
    if note is not None:
        for text in weights.notes:
            note(text)
    network = weights.network.base_model if weights.headless else weights.network
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with disk_errors(target):
            network.save_pretrained(partial, safe_serialization=True)
            _bring_tokenizer(source, partial)
            if target.exists():
                target.rmdir()
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def convert_all(models: Sequence[str], folder: str | Path, note: Note) -> list[str]:
    """The models, each that needs it converted into a folder of `folder` by its name; what to call them from then on.

    One whose folder is there already is kept, so that the same command goes on where it was interrupted.  Raises what
    `convert` does.
    """
    places = []
    for model, name in zip(models, names_of(models)):
        target = local_path(folder) / name
        if _is_taken(target):
            note(f"{target}: there already")
        elif not needs_conversion(resolve_sources([model], pickles=True)[0]):
            note(f"{model}: safetensors already, it stays where it is")
            places.append(model)
            continue
        else:
            convert(model, target, note)
            note(f"{model}: converted")
        places.append(str(target))
    return places


def _bring_tokenizer(source: Source, folder: Path) -> None:
    """A model's tokenizer files, or what is in a GGUF file as such, into a folder."""
    if source.gguf is not None:
        load_tokenizer(source.folder, source.gguf).save_pretrained(folder)
        return
    for extra in ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"):
        for path in tokenizer_folder(source).glob(extra):
            shutil.copy(path, folder / path.name)


def _is_taken(target: Path) -> bool:
    return os.path.lexists(target) and (not target.is_dir() or any(target.iterdir()))


def require_safetensors(sources: Sequence[Source]) -> None:
    """Raise `CheckpointError` where models have to be converted first, with the one command that does it and runs."""
    pickled = [source.given for source in sources if needs_conversion(source)]
    if not pickled:
        return
    several = len(pickled) > 1
    places = dict(zip(pickled, (f"{NEW_FOLDER}/{name}" for name in names_of(pickled))))
    goal = NEW_FOLDER if several else places[pickled[0]]
    flags = [part for s in sources for part in ("--models", places.get(s.given, s.given))]
    raise CheckpointError(
        f"{', '.join(pickled)}: only pickled weights" if several else f"{pickled[0]}: only pickled weights",
        given=f"{len(pickled)} of {len(sources)} models without safetensors",
        wanted="safetensors",
        fix=f"{shlex.join(['uneurons', 'convert', *pickled, goal])} && {shlex.join(['uneurons', 'run', *flags])}"
        ", and your other options",
    )
