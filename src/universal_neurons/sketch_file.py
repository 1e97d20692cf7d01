"""Portable sketches: one model's signed sums in a file, so that models need share neither a machine nor a day.

A safetensors file with all that a comparison asks of a model: the sums of the rows that choose and of the held-out
stretches (bfloat16), moments and dead neurons, within-layer co-moments, and which tokens and signs they are of.
It holds no text.  While it is made the sums go straight to their place in the file; a scratch folder beside it holds
checkpoints of all else.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from universal_neurons.accumulators import SUMS, Accumulator, Batch, Extremes
from universal_neurons.comoments import LayerMoments
from universal_neurons.disk import disk_errors, sync
from universal_neurons.errors import MissingFileError, SketchError
from universal_neurons.moments import SumSquares
from universal_neurons.sketch import ShardEnergies, Signs
from universal_neurons.tokens import Shard, TokenDataset

FORMAT = "universal-neurons sketch 1"
DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "I32": torch.int32, "I64": torch.int64}
CODES = {dtype: code for code, dtype in DTYPES.items()}
Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


class FileInParts:
    """A safetensors file written tensor by tensor, or a tensor row by row; whole once `finish` renamed it."""

    def __init__(self, path: Path, shapes: Shapes, metadata: Mapping[str, str]) -> None:
        self.path = path
        self.partial = path.with_name(f".{path.name}.partial")
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        self.places: dict[str, tuple[int, torch.dtype, tuple[int, ...]]] = {}
        end = 0
        for name, (dtype, shape) in shapes.items():
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            self.places[name] = end, dtype, shape
            header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self.start = 8 + len(text)
        with disk_errors(path):
            if not self.partial.exists() or self.partial.stat().st_size != self.start + end:
                with self.partial.open("wb") as out:
                    out.truncate(self.start + end)
            with self.partial.open("r+b") as out:
                out.write(len(text).to_bytes(8, "little") + text)

    def put(self, name: str, values: Tensor, row: int = 0) -> None:
        """Write a tensor, or rows of it from `row` on."""
        offset, dtype, shape = self.places[name]
        width = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        content = values.detach().to("cpu", dtype).contiguous().view(-1).view(torch.uint8).numpy()
        with disk_errors(self.path), self.partial.open("r+b") as out:
            out.seek(self.start + offset + row * width)
            out.write(content.tobytes())

    def sync(self) -> None:
        """Have the disk keep what is written so far."""
        sync(self.partial)

    def finish(self) -> Path:
        """Rename the whole file to its place."""
        with disk_errors(self.path):
            self.sync()
            self.partial.rename(self.path)
            sync(self.path.parent)
        return self.path


class KeptSums(Accumulator):
    """Writes every shard's signed sums to their rows of a file."""

    def __init__(self, model: str, file: FileInParts, name: str, starts: Mapping[int, int]) -> None:
        super().__init__((model + SUMS,), None)
        self.file, self.name, self.starts = file, name, starts

    def update(self, batch: Batch) -> None:
        """Write a shard."""
        (block,) = self.blocks(batch)
        self.file.put(self.name, block.values, self.starts[batch.shard])


def sum_rows(shards: Sequence[Shard], signs: Signs, context: int) -> tuple[dict[int, int], int]:
    """The first row of every shard's sums, by the shard's number, and how many rows there are."""
    starts, end = {}, 0
    for shard in shards:
        starts[shard.index] = end
        end += signs.groups(len(shard.rows) * context)
    return starts, end


def tensors_of(accumulators: Sequence[Accumulator]) -> dict[str, Tensor]:
    """The small tensors of a sketch: moments, extremes, energies, within-layer co-moments."""
    found: dict[str, Tensor] = {}
    for accumulator in accumulators:
        kind = STATISTICS.get(type(accumulator))
        if kind is not None:
            found |= {f"{kind}.{name}": tensor for name, tensor in accumulator.state().items()}
    return found


STATISTICS: dict[type[Accumulator], str] = {
    Extremes: "extremes", SumSquares: "moments", ShardEnergies: "energies", LayerMoments: "layers",
}  # fmt: skip


class SketchFile:
    """A portable sketch, opened.  Raises `MissingFileError` and, for what is no sketch or torn, `SketchError`."""

    def __init__(self, path: str | Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = Path(path)
        try:
            self.tensors = safe_open(self.path, "pt")
            metadata = self.tensors.metadata() or {}
        except FileNotFoundError:
            raise MissingFileError(f"{path}: no sketch here", wanted="a file that `uneurons sketch` wrote") from None
        except (SafetensorError, OSError) as error:
            raise SketchError(f"{path}: cannot be read", given=error, wanted="a whole sketch") from None
        if metadata.get("format") != FORMAT:
            raise SketchError(
                f"{path}: not a sketch", given=metadata.get("format", "another safetensors file"), wanted=FORMAT
            )
        self.about: dict[str, Any] = json.loads(metadata["about"])
        self.signs = Signs(**self.about["signs"])

    def get(self, name: str) -> Tensor:
        """One of its tensors."""
        return self.tensors.get_tensor(name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some rows of one of its tensors."""
        return self.tensors.get_slice(name)[start:stop]

    def state(self, kind: str) -> dict[str, Tensor]:
        """The state of one of its statistics."""
        names = [name for name in self.tensors.keys() if name.startswith(f"{kind}.")]  # noqa: SIM118
        return {name.removeprefix(f"{kind}."): self.get(name) for name in names}

    def token_rows(self) -> TokenDataset:
        """The rows' lengths and subsets, without their tokens."""
        about = self.about["tokens"]
        return TokenDataset(
            rows=np.zeros((0, about["context"]), np.int32),
            lengths=self.get("lengths").numpy(),
            context=about["context"],
            subsets=self.get("subsets").numpy(),
            subset_names=tuple(about["subset_names"]),
            masked=tuple(about["masked"]),
            bos=about["bos"],
            dtype=np.dtype(np.int32),
            fingerprint=about["fingerprint"],
            largest_id=about["largest_id"],
            counted=about["counted"],
        )


def require_one_text(files: Sequence[SketchFile]) -> None:
    """Raise `SketchError` where sketches are of other tokens, rows, signs or tokenizers."""
    first = files[0]
    for other in files[1:]:
        for what in ("tokens", "signs", "tokenizer", "heldout_tokens"):
            if first.about[what] != other.about[what]:
                raise SketchError(
                    f"{other.path.name} and {first.path.name}: sketches of other {what}",
                    given=f"{_short(other.about[what])}; {_short(first.about[what])}",
                    wanted="the same text, context, mask, group size and seed for all",
                    fix="make them with the same options of `uneurons sketch`",
                )


def _short(value: Any) -> str:
    return json.dumps(value)[:160]


def scratch_of(path: Path) -> Path:
    """The folder of a sketch's checkpoints while it is made."""
    return path.with_name(f".{path.name}.work")


def remove_scratch(path: Path) -> None:
    """Remove it."""
    shutil.rmtree(scratch_of(path), ignore_errors=True)
