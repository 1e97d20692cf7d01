"""A pickle-only model to a safetensors folder, on request only."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from universal_neurons.disk import disk_errors, local_path
from universal_neurons.errors import InputError
from universal_neurons.models.loading import load_weights
from universal_neurons.models.locations import resolve_sources
from universal_neurons.models.tokenizer import tokenizer_folder


def convert(model: str, folder: str | Path, note: Callable[[str], object] | None = None) -> Path:
    """A pickle-only model made a safetensors folder, its tokenizer files copied along.

    The pickle is read by `torch.load(weights_only=True)`; `note` is told what is left out.  Raises `InputError` where
    `folder` is not empty, and `CheckpointError` where the weights cannot be read or do not fill the model.
    """
    source = resolve_sources([model], pickles=True)[0]
    target = local_path(folder)
    if os.path.lexists(target) and (not target.is_dir() or any(target.iterdir())):
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
            for extra in ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"):
                for path in tokenizer_folder(source).glob(extra):
                    shutil.copy(path, partial / path.name)
            if target.exists():
                target.rmdir()
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target
