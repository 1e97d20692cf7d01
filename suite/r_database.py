"""Read an R package's lazy-load data base (`Rdata.rdx` and `Rdata.rdb`) as far as vectors of strings go.

The .rdx is a compressed serialisation that says at which place of the .rdb each object lies; an object there is four
bytes of length and a zlib stream with a serialisation of its own.  The format is that of R's `serialize` (binary, big
endian), described in "R Internals", section 1.8; kinds of objects that such data bases do not hold are refused.
"""

import bz2
import lzma
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NIL, REFERENCE, SYMBOL, PAIRS, CHARACTERS = 254, 255, 1, 2, 9
LOGICALS, INTEGERS, REALS, STRINGS, LIST = 10, 13, 14, 16, 19
NUMBERS = {LOGICALS: "i", INTEGERS: "i", REALS: "d"}


class Serialisation:
    """A cursor over one serialised object."""

    def __init__(self, content: bytes) -> None:
        if content[:2] != b"X\n":
            raise SystemExit("an R object in another serialisation than binary; store it with R's defaults")
        self.content = content
        self.place = 2
        self.seen = []
        version, _, _ = (self._integer() for _ in range(3))
        if version >= 3:
            self._bytes(self._integer())  # the native encoding

    def _bytes(self, count: int) -> bytes:
        self.place += count
        return self.content[self.place - count : self.place]

    def _integer(self) -> int:
        return struct.unpack(">i", self._bytes(4))[0]

    def read(self) -> Any:
        """The object: lists of values, dictionaries for named lists, None for what is missing."""
        flags = self._integer()
        kind = flags & 0xFF
        attributes = flags & 0x200
        if kind == NIL:
            return None
        if kind == REFERENCE:
            number = flags >> 8
            return self.seen[(number if number else self._integer()) - 1]
        if kind == SYMBOL:
            self.seen.append(self.read())
            return self.seen[-1]
        if kind == PAIRS:
            return self._pairs(flags)
        if kind == CHARACTERS:
            size = self._integer()
            return None if size == -1 else self._bytes(size).decode("latin-1" if flags & 0x4000 else "utf-8")
        return self._vector(kind, bool(attributes))

    def _refuse_unless(self, known: bool, kind: int) -> None:
        if not known:
            raise SystemExit(f"an R object of kind {kind}: only vectors and lists are read; name another package")

    def _pairs(self, flags: int) -> dict:
        pairs = {}
        while flags & 0xFF != NIL:
            self._refuse_unless(flags & 0x600 == 0x400, PAIRS)
            tag = self.read()
            pairs[tag] = self.read()
            flags = self._integer()
        return pairs

    def _vector(self, kind: int, attributes: bool) -> Any:
        self._refuse_unless(kind in (*NUMBERS, STRINGS, LIST), kind)
        count = self._integer()
        if kind in NUMBERS:
            form = f">{count}{NUMBERS[kind]}"
            values = list(struct.unpack(form, self._bytes(struct.calcsize(form))))
        else:
            values = [self.read() for _ in range(count)]
        names = (self.read() or {}).get("names") if attributes else None
        return dict(zip(names, values)) if kind == LIST and names else values


def _decompressed(stored: bytes) -> bytes:
    """An object of the .rdb: four bytes of length, then zlib, or a letter and bzip2 or xz."""
    if stored[4:5] == b"2":
        return bz2.decompress(stored[5:])
    if stored[4:5] == b"Z":
        return lzma.decompress(stored[5:])
    return zlib.decompress(stored[4:])


def _strings(value: Any) -> Iterator[list[str]]:
    for part in value.values() if isinstance(value, dict) else [value]:
        if isinstance(part, list) and part and all(isinstance(item, str) for item in part):
            yield part


def strings(index: Path) -> Iterator[list[str]]:
    """The vectors of strings, and the columns of strings of data frames, beside an .rdx, by their names."""
    places = Serialisation(zlib.decompress(index.read_bytes(), 47)).read()["variables"]
    content = index.with_suffix(".rdb").read_bytes()
    for _, (start, size) in sorted(places.items()):
        yield from _strings(Serialisation(_decompressed(content[start : start + size])).read())
