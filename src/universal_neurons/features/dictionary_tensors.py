"""The tensors of a dictionary's file, read with care: safetensors or NumPy's npz, never a pickle.

A file is looked at before it is read: that it is no link out of its folder, that an npz unpacks to what its arrays say
they are and no more.  Then every tensor is taken by name, of the shape it must have, as finite float32; what nobody
took is refused, for a format that has more computes something else.
"""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from universal_neurons.errors import CheckpointError
from universal_neurons.features.several_places import require_two_axes
from universal_neurons.models import weight_files

MOST_UNPACKED = 64  # bytes that a byte of an npz may unpack to: of numbers, hardly above one
UNREADABLE = (
    OSError, ValueError, EOFError, RuntimeError, LookupError, TypeError, SyntaxError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
KINDS = "fiub"  # numbers


class Tensors:
    """The tensors of one file; `named` is what errors call the dictionary."""

    def __init__(self, tensors: Mapping[str, Tensor], named: str) -> None:
        self.tensors, self.named = dict(tensors), named

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def rename(self, names: Mapping[str, str]) -> None:
        """Call tensors as others do; those that are not there are left out."""
        self.tensors = {names.get(name, name): tensor for name, tensor in self.tensors.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor.  Raises `CheckpointError` where it is missing."""
        if name not in self.tensors:
            raise CheckpointError(
                f"{self.named}: it has no {name}",
                given=", ".join(sorted(self.tensors)) or "no tensors",
                wanted=name,
                fix="copy or download the file again",
            )
        return tuple(self.tensors[name].shape)

    def take(self, name: str, *shape: int | None) -> Tensor:
        """A tensor as contiguous float32, of this shape (None: any size).  Raises `CheckpointError` for another."""
        given = self.shape(name)
        if len(given) != len(shape) or any(size not in (None, has) or not has for size, has in zip(shape, given)):
            raise CheckpointError(
                f"{self.named}: {name} is of another shape than its configuration and its other tensors say",
                given=f"{list(given)}",
                wanted="[" + ", ".join("any" if size is None else str(size) for size in shape) + "]",
                fix="copy or download both files again",
            )
        tensor = self.tensors.pop(name)
        values = tensor.float() if tensor.dtype != torch.bool else None
        if values is None or not bool(values.isfinite().all()):
            raise CheckpointError(
                f"{self.named}: {name} holds what are no numbers",
                given=f"{tensor.dtype}, some of them not finite" if values is not None else "truth values",
                wanted="finite numbers",
                fix="copy or download the file again",
            )
        return values.contiguous()

    def finish(self) -> None:
        """Raise `CheckpointError` where a tensor is left that nobody took."""
        if self.tensors:
            raise CheckpointError(
                f"{self.named}: tensors that this kind of dictionary has no place for",
                given=", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(self.tensors.items())),
                wanted="the tensors of the architecture that its configuration names",
                fix="mend the configuration, or take a dictionary of a kind that is read (docs/features.md)",
            )


def read_tensors(path: Path, named: str) -> Tensors:
    """The tensors of a safetensors file or an npz.

    Raises `CheckpointError` for one that is broken, `DictionaryError` for weights of several places at once.
    """
    if path.suffix == ".npz":
        arrays = _of_npz(path, named)
        require_two_axes({name: tuple(array.shape) for name, array in arrays.items()}, named)
        return Tensors(arrays, named)
    stored = weight_files.stored_tensors([path], named)
    require_two_axes({name: tuple(tensor.shape) for name, tensor in stored.items()}, named)
    strange = [name for name, tensor in stored.items() if not tensor.plain]
    if strange:
        raise CheckpointError(
            f"{named}: tensors that are no floating-point numbers",
            given=", ".join(strange),
            wanted="float32, bfloat16, float16 or float64",
            fix="save it dequantised",
        )
    return Tensors(weight_files.read_tensors([path], named), named)


def _of_npz(path: Path, named: str) -> dict[str, Tensor]:
    try:
        _require_honest(path, named)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _tensor(arrays[name], name, named) for name in arrays.files}
    except UNREADABLE as error:
        raise CheckpointError(
            f"{named}: {path.name} cannot be read",
            given=f"{type(error).__name__}: {error}",
            wanted="an npz of arrays of numbers (pickles are not opened)",
            fix="copy or download the file again",
        ) from error


def _tensor(array: np.ndarray, name: str, named: str) -> Tensor:
    if array.dtype.kind not in KINDS:
        raise CheckpointError(f"{named}: {name} holds no numbers", given=array.dtype, wanted="floating-point numbers")
    return torch.from_numpy(np.ascontiguousarray(array.astype(np.float32)))


def _require_honest(path: Path, named: str) -> None:
    """Raise `CheckpointError` for an archive that unpacks to much more than it is, or to other than it says."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        packed, whole = (sum(getattr(m, size) for m in members) for size in ("compress_size", "file_size"))
        if whole > MOST_UNPACKED * max(packed, 1) or packed > path.stat().st_size:
            raise CheckpointError(
                f"{named}: {path.name} unpacks to far more than numbers do",
                given=f"{packed:,} bytes that say they are {whole:,}",
                wanted=f"at most {MOST_UNPACKED} times as many",
                fix="download the file from who made it",
            )
        for member in members:
            with archive.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(stream)
                size = stream.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize
            if size != member.file_size or dtype.hasobject:
                raise CheckpointError(
                    f"{named}: {member.filename} is not the array that it says",
                    given=f"{member.file_size:,} bytes for {dtype} {list(shape)}",
                    wanted=f"{size:,} bytes of numbers",
                    fix="copy or download the file again",
                )


def require_own(path: Path, folder: Path, named: str) -> None:
    """Raise `CheckpointError` for a file that is a link out of its folder; in the hub's cache, of its repository."""
    if not path.is_symlink():
        return
    home = folder.resolve()
    home = next((parent.parent for parent in (home, *home.parents) if parent.name == "snapshots"), home)
    if not path.resolve().is_relative_to(home) or not path.is_file():
        raise CheckpointError(
            f"{named}: {path.name} is a link out of its folder",
            given=f"a link to {path.readlink()}",
            wanted="a file in the folder",
            fix="copy the file there",
        )
