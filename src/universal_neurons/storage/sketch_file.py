"""Portable sketches: one model's signed sums in a file, so that models need share neither a machine nor a day.

A safetensors file with all that a comparison asks of a model: the sums of the rows that choose and of the held-out
stretches (bfloat16), moments and dead neurons, within-layer co-moments, and which tokens and signs they are of.
It holds no text.  Its metadata hold the SHA-256 of every tensor, and a seal: that of these, of the tensors' names,
types and shapes and of what the sketch is of.  All are verified when it is opened.

While it is made the sums go straight to their place in the file; a scratch folder beside it holds checkpoints of all
else, and the SHA-256 of every shard's sums.
"""

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from universal_neurons.disk import (
    BINARY,
    NOFOLLOW,
    create_anew,
    disk_errors,
    local_path,
    open_regular,
    own_folder,
    partial_of,
    sync,
    take_lock,
)
from universal_neurons.errors import InputError, MergeError, MissingFileError, SketchError, StoreConflictError
from universal_neurons.statistics import (
    Accumulator,
    Batch,
    Extremes,
    Key,
    LayerMoments,
    ShardEnergies,
    Signs,
    SumSquares,
    What,
)
from universal_neurons.storage.snapshots import Generations
from universal_neurons.text import Shard, TokenDataset

FORMAT = "universal-neurons sketch 3"
EARLIER = {"universal-neurons sketch 1": "hashes", "universal-neurons sketch 2": "what bounds its errors"}  # they lack
PIECE_BYTES = 1 << 24
DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "I32": torch.int32, "I64": torch.int64}
CODES = {dtype: code for code, dtype in DTYPES.items()}
Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


class FileInParts:
    """A sketch written tensor by tensor, or a tensor row by row; whole once `finish` sealed and renamed it.

    `about` is what it is of, as JSON.
    """

    def __init__(self, path: Path, shapes: Shapes, about: str) -> None:
        self.path, self.shapes, self.about = path, shapes, about
        self.partial = partial_of(path)
        self.places: dict[str, tuple[int, int]] = {}
        end = 0
        for name, (dtype, shape) in shapes.items():
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            self.places[name] = end, end + size
            end += size
        header = self._header(dict.fromkeys(shapes, "0" * 64))
        self.start = len(header)
        with disk_errors(path):
            if not self._goes_on(self.start + end):
                with create_anew(self.partial) as out:
                    out.truncate(self.start + end)
            with self._opened() as out:
                out.write(header)

    def _goes_on(self, size: int) -> bool:
        """Whether there is a file to go on with: one of this size and of no other name."""
        if not os.path.lexists(self.partial):
            return False
        status = self.partial.lstat()
        return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_size == size

    def _opened(self) -> BinaryIO:
        return os.fdopen(os.open(self.partial, os.O_RDWR | NOFOLLOW | BINARY), "r+b")

    def _header(self, hashes: Mapping[str, str]) -> bytes:
        """The file's beginning: of the same size whatever the hashes."""
        described = [(name, CODES[dtype], shape, hashes[name]) for name, (dtype, shape) in self.shapes.items()]
        metadata = {"format": FORMAT, "about": self.about, "seal": seal_of(self.about, described)}
        header: dict[str, Any] = {"__metadata__": metadata | {hash_key(name): hashes[name] for name in hashes}}
        for name, code, shape, _ in described:
            header[name] = {"dtype": code, "shape": list(shape), "data_offsets": list(self.places[name])}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def put(self, name: str, values: Tensor, row: int = 0) -> bytes:
        """Write a tensor, or rows of it from `row` on; returns their SHA-256."""
        content = bytes_of(values.detach().to("cpu", self.shapes[name][0])).tobytes()
        with disk_errors(self.path), self._opened() as out:
            out.seek(self.start + self.places[name][0] + row * self._width(name))
            out.write(content)
        return hashlib.sha256(content).digest()

    def hash(self, name: str, row: int = 0, stop: int | None = None) -> bytes:
        """SHA-256 of a tensor, or of its rows from `row` to `stop`, as they are in the file."""
        first, end = self.places[name]
        end = end if stop is None else first + stop * self._width(name)
        place = first + row * self._width(name)
        digest = hashlib.sha256()
        with disk_errors(self.path), self._opened() as file:
            file.seek(self.start + place)
            while place < end:
                piece = file.read(min(PIECE_BYTES, end - place))
                assert piece, "the file is shorter than it was made"
                digest.update(piece)
                place += len(piece)
        return digest.digest()

    def _width(self, name: str) -> int:
        """Bytes of a row."""
        dtype, shape = self.shapes[name]
        return int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize

    def sync(self) -> None:
        """Have the disk keep what is written so far."""
        sync(self.partial)

    def finish(self) -> Path:
        """Seal the file and rename it to its place."""
        header = self._header({name: self.hash(name).hex() for name in self.shapes})
        with disk_errors(self.path):
            with self._opened() as out:
                out.write(header)
            self.sync()
            require_free(self.path)
            self.partial.rename(self.path)
            sync(self.path.parent)
        return self.path


def hash_key(name: str) -> str:
    """The key in the metadata under which a tensor's SHA-256 is."""
    return f"sha256 {name}"


def seal_of(about: str, described: Sequence[tuple[str, str, Sequence[int], str | None]]) -> str:
    """SHA-256 of what a sketch is of and of its tensors' names, types, shapes and hashes."""
    tensors = sorted([name, code, list(shape), hashed] for name, code, shape, hashed in described)
    return hashlib.sha256(json.dumps([FORMAT, about, tensors]).encode()).hexdigest()


def bytes_of(values: Tensor) -> memoryview:
    """A tensor's bytes, in order."""
    return values.contiguous().view(-1).view(torch.uint8).numpy().data


class KeptSums(Accumulator):
    """Writes every shard's signed sums to their rows of a file; its state is the SHA-256 of each."""

    TENSORS = ("hashes",)

    def __init__(self, model: str, file: FileInParts, name: str, starts: Mapping[int, int]) -> None:
        super().__init__((Key(model, What.SUMS),), None)
        self.file, self.name, self.starts = file, name, starts
        self.numbers = {shard: number for number, shard in enumerate(starts)}
        self.hashes = torch.zeros(len(starts), 32, dtype=torch.uint8)

    def update(self, batch: Batch) -> None:
        """Write a shard."""
        (block,) = self.blocks(batch)
        hashed = self.file.put(self.name, block.values, self.starts[batch.shard])
        self.hashes[self.numbers[batch.shard]] = torch.frombuffer(bytearray(hashed), dtype=torch.uint8)

    def merge(self, other: Accumulator) -> None:
        """Refuse: the rows of two files are not one file's."""
        raise MergeError(f"{self.key} cannot merge", wanted="one file, written in order")

    def is_kept(self, shard: int, rows: int) -> bool:
        """Whether a shard's rows are in the file as they were written."""
        start, hashed = self.starts[shard], self.hashes[self.numbers[shard]]
        return self.file.hash(self.name, start, start + rows) == bytes(hashed.numpy())


def sum_rows(shards: Sequence[Shard], signs: Signs, context: int) -> tuple[dict[int, int], int]:
    """The first row of every shard's sums, by the shard's number, and how many rows there are."""
    starts, end = {}, 0
    for shard in shards:
        starts[shard.index] = end
        end += signs.groups(len(shard.rows) * context)
    return starts, end


def tensors_of(accumulators: Sequence[Accumulator]) -> dict[str, Tensor]:
    """The small tensors of a sketch: moments, extremes, energies, within-layer co-moments."""
    tensors: dict[str, Tensor] = {}
    for accumulator in accumulators:
        kind = STATISTICS.get(type(accumulator))
        if kind is not None:
            tensors |= {f"{kind}.{name}": tensor for name, tensor in accumulator.state().items()}
    return tensors


STATISTICS: dict[type[Accumulator], str] = {
    Extremes: "extremes", SumSquares: "moments", ShardEnergies: "energies", LayerMoments: "layers",
}  # fmt: skip


class SketchFile:
    """A portable sketch, opened and verified.

    Raises `MissingFileError` and, for what is no sketch, damaged or torn, `SketchError`.
    """

    def __init__(self, path: str | Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = local_path(path)
        try:
            open_regular(self.path).close()
            self.tensors = safe_open(self.path, "pt")
            metadata = self.tensors.metadata() or {}
        except FileNotFoundError:
            raise MissingFileError(f"{path}: no sketch here", wanted="a file that `uneurons sketch` wrote") from None
        except StoreConflictError as error:
            raise SketchError(error.what, wanted="a whole sketch") from None
        except (SafetensorError, OSError) as error:
            raise SketchError(f"{path}: cannot be read", given=error, wanted="a whole sketch") from None
        given = metadata.get("format", "another safetensors file")
        if given in EARLIER:
            raise SketchError(
                f"{path}: a sketch without {EARLIER[given]}, as an earlier version wrote them",
                given=given,
                wanted=FORMAT,
                fix="make it again with `uneurons sketch`",
            )
        if given != FORMAT:
            raise SketchError(f"{path}: not a sketch", given=given[:200], wanted=FORMAT)
        self._verify(metadata)
        self.about: dict[str, Any] = json.loads(metadata["about"])
        self.signs = Signs(**self.about["signs"])

    def _verify(self, metadata: Mapping[str, str]) -> None:
        """Raise `SketchError` unless all is as it was written."""
        described = []
        for name in self._names():
            part = self.tensors.get_slice(name)
            described.append((name, part.get_dtype(), part.get_shape(), metadata.get(hash_key(name))))
        if "about" not in metadata or metadata.get("seal") != seal_of(metadata["about"], described):
            raise self._damaged("its metadata")
        for name in self._names():
            digest = hashlib.sha256()
            for piece in self._pieces(name):
                digest.update(bytes_of(piece))
            if digest.hexdigest() != metadata[hash_key(name)]:
                raise self._damaged(f"its tensor {name}")

    def _damaged(self, what: str) -> SketchError:
        return SketchError(
            f"{self.path}: damaged",
            given=f"{what}, not as written",
            wanted="the file as `uneurons sketch` wrote it",
            fix="copy it again, or make it again",
        )

    def _names(self) -> list[str]:
        return sorted(self.tensors.keys())

    def _pieces(self, name: str) -> Iterator[Tensor]:
        """A tensor in pieces of bounded size: of whole rows."""
        shape = self.tensors.get_slice(name).get_shape()
        if not shape:
            yield self.get(name)
            return
        step = max(1, PIECE_BYTES // max(1, 8 * int(np.prod(shape[1:], dtype=np.int64))))
        for start in range(0, shape[0], step):
            yield self.rows(name, start, min(start + step, shape[0]))

    def get(self, name: str) -> Tensor:
        """One of its tensors."""
        return self.tensors.get_tensor(name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some rows of one of its tensors."""
        return self.tensors.get_slice(name)[start:stop]

    def state(self, kind: str) -> dict[str, Tensor]:
        """The state of one of its statistics."""
        names = [name for name in self._names() if name.startswith(f"{kind}.")]
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
        _require_same_spans(first, other)
    for other in files[1:]:
        for what in ("tokens", "signs", "tokenizer", "heldout_tokens"):
            if first.about[what] != other.about[what]:
                raise SketchError(
                    f"{other.path.name} and {first.path.name}: sketches of other {what}",
                    given=f"{_short(other.about[what])}; {_short(first.about[what])}",
                    wanted="the same text, context, mask, group size and seed for all",
                    fix="make them with the same options of `uneurons sketch`",
                )


def _require_same_spans(first: SketchFile, other: SketchFile) -> None:
    """Of the same tokenizers, in any order, and pooled alike; or both of tokens."""
    spans = [file.about.get("spans") for file in (first, other)]
    same = [one and (one["pooling"], set(one["tokenizers"].values())) for one in spans]
    if same[0] != same[1]:
        told = [
            f"{file.path.name}: " + (f"spans of {', '.join(one['tokenizers'])}, {one['pooling']}" if one else "tokens")
            for file, one in zip((first, other), spans)
        ]
        raise SketchError(
            f"{other.path.name} and {first.path.name}: sketches of other spans",
            given="; ".join(told),
            wanted="the boundaries that the same tokenizers share, pooled alike",
            fix="make each with --tokenizers naming all the others' tokenizers",
        )


def _short(value: Any) -> str:
    return json.dumps(value)[:160]


def require_free(path: Path) -> None:
    """Raise `StoreConflictError` where something is there already."""
    if os.path.lexists(path):
        raise StoreConflictError(f"{path}: is there already", wanted="a new file", fix="name another --out")


def scratch_of(path: Path) -> Path:
    """The folder of a sketch's checkpoints while it is made."""
    return path.with_name(f".{path.name}.work")


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """The folder of a sketch's checkpoints, held by one process; removed where the sketch is whole, or refused at once.

    Raises `StoreConflictError` where another process makes this sketch.
    """
    folder = scratch_of(path)
    with disk_errors(path):
        lock = take_lock(own_folder(folder) / ".lock", str(path))
    try:
        yield folder
    except InputError:
        if not Generations(folder).all():
            shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.release()
