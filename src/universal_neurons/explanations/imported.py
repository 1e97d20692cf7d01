"""Explanations that others have written, read from files: our own lines, or an export of Neuronpedia's.

Ours are JSON lines {"unit": "L0.32" or "seed-1/L0.32", "sentence": …} with, if one likes, {"source": …}.  Neuronpedia's
exports hold lines with modelId, layer, index, description and explanationModelName (docs.neuronpedia.org, table
Explanation of its schema): modelId is a study's model by its name, or by the id that `uneurons export --neuronpedia`
gives it; layer is `0-mlp` or `0` of a model's neurons.  A folder stands for all such files in it.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from universal_neurons.disk import local_path
from universal_neurons.errors import ExplanationsError, InputError, MissingFileError
from universal_neurons.explanations.prompts import whole_characters
from universal_neurons.legible import shortened
from universal_neurons.storage import Store
from universal_neurons.units import unit_name

IMPORTED = "imported"  # their source, before the name of who made them
LINE_BYTES = 1 << 20
LONGEST_NAME, LONGEST = 200, 10_000  # characters of a source, of a sentence
LONGEST_MODEL = 128
NAMES = ("*.jsonl", "*.jsonl.gz")
LAYER = re.compile(r"([0-9]{1,9})(?:-(.+))?")
WANTED = '{"unit": "L0.32", "sentence": "…"}, or a line of Neuronpedia\'s explanations'
EXPLANATIONS: dict[str, Any] = {
    "model": pl.String, "layer": pl.Int32, "neuron": pl.Int32, "source": pl.String, "explanation": pl.String,
}  # fmt: skip


def model_ids(names: Sequence[str]) -> list[str]:
    """An id of Neuronpedia's kind for every model: small letters, digits, dashes and underscores, no two alike."""
    taken: list[str] = []
    for name in names:
        wanted = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")[:LONGEST_MODEL] or "model"
        identity, number = wanted, 1
        while identity in taken:
            number += 1
            identity = f"{wanted[: LONGEST_MODEL - 8]}-{number}"
        taken.append(identity)
    return taken


def read_explanations(path: str | Path, store: Store) -> tuple[pl.DataFrame, int]:
    """Rows of `explanations` from a file or a folder, and how many lines said nothing.

    What one source says twice of a unit is kept twice where it differs, the second as `… 2`.  Raises
    `MissingFileError` for what is not there, `ExplanationsError` for a line that is none, or of a unit that the study
    does not have, by its number.
    """
    reader = _Reader(store)
    for file in _files(local_path(path)):
        for number, line in enumerate(_lines(file), 1):
            try:
                reader.add(line)
            except (InputError, ValueError, TypeError, RecursionError) as error:
                given = error.what if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
                wanted = (isinstance(error, InputError) and error.wanted) or WANTED
                raise ExplanationsError(
                    f"{file}: line {number:,} cannot be taken",
                    given=given,
                    wanted=wanted,
                    fix="mend it, or leave it out; nothing was taken of the file",
                ) from None
    if not reader.found:
        raise ExplanationsError(f"{path}: no explanations", wanted=WANTED)
    rows = [(*place, source, text) for (*place, source), text in reader.found.items()]
    return pl.DataFrame(rows, EXPLANATIONS, orient="row"), reader.empty


class _Reader:
    """Lines to explanations by unit and source."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.found: dict[tuple[str, int, int, str], str] = {}
        self.empty = 0
        self.models = dict(zip(model_ids(store.models), store.models)) | {name: name for name in store.models}
        self.of_neurons = {facts["name"]: "features" not in facts for facts in store.manifest["models"]}

    def add(self, line: bytes) -> None:
        """Take a line in; raises `ValueError`, `TypeError` or an `InputError` where it is none."""
        if not line.strip():
            return
        values = json.loads(line)
        if not isinstance(values, dict):
            raise TypeError("no object in braces")
        ours = "unit" in values
        name, text, source = (
            (values.get("unit"), values.get("sentence"), values.get("source"))
            if ours
            else (self._name_of(values), values.get("description"), values.get("explanationModelName"))
        )
        if not isinstance(name, str) or not isinstance(text, str | None) or not isinstance(source, str | None):
            raise TypeError("a unit, its sentence or its source that is no text")
        if ours and text is None:
            raise ValueError("no sentence")
        unit = self.store.neuron(name)
        text = whole_characters(" ".join((text or "").split()))
        if not text:
            self.empty += 1
            return
        if len(text) > LONGEST:
            raise ValueError(f"a sentence of {len(text):,} characters, more than {LONGEST:,}")
        whose = f"{IMPORTED}: {shortened(whole_characters(source), LONGEST_NAME)}" if source else IMPORTED
        self._keep((unit.model, unit.layer, unit.neuron), whose, text)

    def _keep(self, place: tuple[str, int, int], whose: str, text: str) -> None:
        number, source = 1, whose
        while self.found.get((*place, source), text) != text:
            number += 1
            source = f"{whose} {number}"
        self.found[*place, source] = text

    def _name_of(self, values: dict[str, Any]) -> str:
        """The name of the unit that a line of Neuronpedia's is about."""
        lacking = [name for name in ("modelId", "layer", "index", "description") if name not in values]
        if lacking:
            raise ValueError(f"neither a unit nor {lacking[0]}")
        identity, layer, index = (str(values[name]) for name in ("modelId", "layer", "index"))
        if identity not in self.models:
            raise ExplanationsError(f"modelId {identity!r}: no such model here", wanted=", ".join(self.models))
        model, parts = self.models[identity], LAYER.fullmatch(layer)
        kind = parts[2] if parts else ""
        if parts is None or (self.of_neurons[model] and kind not in (None, "mlp")):
            raise ExplanationsError(
                f"layer {layer!r} is not of this study's units",
                wanted="0-mlp or 0, of neurons" if self.of_neurons[model] else "a layer's number, and what it is of",
            )
        return self._numbered(model, int(parts[1]), index)

    def _numbered(self, model: str, layer: int, index: str) -> str:
        """The name of a layer's unit by its number there, experts' units included."""
        units = self.store.units[model]
        if layer >= units.layers or not index.isdecimal() or int(index) >= units.widths[layer]:
            raise ExplanationsError(f"{model}: no unit {index!r} in layer {layer}", wanted=f"{units.range_said}")
        return unit_name(*units.place_of(units.starts[layer] + int(index)), model)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted({file for pattern in NAMES for file in path.glob(pattern)})
        if not files:
            raise MissingFileError(f"{path}: no files of explanations", wanted="files named …jsonl or …jsonl.gz")
        return files
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file", wanted="a file of JSON lines, or a folder of them")
    return [path]


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, none of which is long."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            while line := stream.readline(LINE_BYTES):
                if len(line) == LINE_BYTES:
                    raise OSError(f"a line of more than {LINE_BYTES:,} bytes")
                yield line
    except (OSError, EOFError, zlib.error) as error:
        raise ExplanationsError(
            f"{path}: cannot be read", given=error, wanted="JSON lines, as they are or gzip"
        ) from None
