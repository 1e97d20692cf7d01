"""Open a file or a pipe as characters: decompressed and decoded by what its first bytes say, never by its name alone.

1. A regular file or a pipe that somebody writes into; folders and devices are refused.
2. gzip, xz, bzip2 and zstd are decompressed as they are read; archives and binary formats are refused by name.
3. A byte order mark says UTF-8, UTF-16 or UTF-32; without one the text is UTF-8.
4. Characters come in lines of a bounded length, so memory depends neither on a line's length nor on the file's.
"""

import bz2
import codecs
import gzip
import io
import lzma
import os
import shlex
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from universal_neurons.disk import BINARY, NONBLOCK, local_path
from universal_neurons.errors import MissingFileError, TextError

HEAD = 1 << 13  # bytes that tell what a file is
NUL_SHARE = 100  # one NUL in so many characters is no text
WRITER_SECONDS = 10.0  # that a pipe without a writer is waited for
PARQUET = b"PAR1"
REFUSED = (  # what the first bytes say, what it is called, what to do about it
    (b"PK\x03\x04", "a zip archive", "unzip -p {name} > corpus.txt"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z e -so {name} > corpus.txt"),
    (b"Rar!\x1a\x07", "a rar archive", "unrar p -inul {name} > corpus.txt"),
    (b"\x04\x22\x4d\x18", "lz4-compressed", "lz4 -dc {name} > corpus.txt"),
    (b"ARROW1", "an Arrow file", "save it as parquet, or with Dataset.save_to_disk"),
    (b"\x89HDF", "an HDF5 file", None),
    (b"SQLite format 3", "an SQLite data base", None),
    (b"%PDF-", "a PDF file", "pdftotext {name} corpus.txt"),
)
TAR = slice(257, 262), b"ustar"
MARKS = (  # the longer first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


def _zstd(stream: io.RawIOBase) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")


class Compression:
    """A way to compress: its first bytes, its suffixes, how it is read here and by a command."""

    def __init__(self, magic: bytes, suffixes: tuple[str, ...], reader: Callable[[Any], Any], command: str):
        self.magic = magic
        self.suffixes = suffixes
        self.reader = reader
        self.command = command


COMPRESSIONS = (
    Compression(b"\x1f\x8b", (".gz", ".gzip"), lambda stream: gzip.GzipFile(fileobj=stream), "gzip -dc"),
    Compression(b"\xfd7zXZ\x00", (".xz",), lzma.LZMAFile, "xz -dc"),
    Compression(b"BZh", (".bz2",), bz2.BZ2File, "bzip2 -dc"),
    Compression(b"\x28\xb5\x2f\xfd", (".zst", ".zstd"), _zstd, "zstd -dc"),
)
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)


class Opened:
    """A file's or pipe's bytes, decompressed; `head` are its first, `path` is where it lies.

    Raises `MissingFileError` and `TextError`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = local_path(path)
        self.file = _open(self.path)
        try:
            self.head, self.stream, self.compression = self._decompressed(self.file)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what is still to be read of it is lost."""
        self.file.close()

    def _decompressed(self, raw: io.BufferedReader) -> tuple[bytes, io.RawIOBase, Compression | None]:
        with self.reading():
            head = raw.read(HEAD)
            compression = next((c for c in COMPRESSIONS if head.startswith(c.magic)), None)
            stream = _Headed(head, raw)
            if compression is None:
                if head:
                    self._require_no_compressed_name()
                return head, stream, None
            unpacked = compression.reader(stream)
            inner = _read(unpacked, HEAD)
        if any(inner.startswith(c.magic) for c in COMPRESSIONS):
            raise self.refused("compressed twice", fix=f"{compression.command} {self.quoted} > once")
        return inner, _Headed(inner, unpacked), compression

    def _require_no_compressed_name(self) -> None:
        named = next((c for c in COMPRESSIONS if self.path.suffix.lower() in c.suffixes), None)
        if named is not None:
            raise self.refused(
                f"cannot be read: its name ends in {self.path.suffix}, its bytes are something else",
                fix="get the file again, or give it the suffix of what it holds",
            )

    @property
    def quoted(self) -> str:
        """The file's name as a shell takes it."""
        return shlex.quote(self.path.name)

    @property
    def suffixes(self) -> set[str]:
        """All suffixes of the name, in lower case."""
        return {suffix.lower() for suffix in self.path.suffixes}

    def refused(
        self, why: str, *, given: object = None, wanted: str = "UTF-8 text", fix: str | None = None
    ) -> TextError:
        """A `TextError` that begins with the file's path; the caller raises it."""
        return TextError(f"{self.path}: {why}", given=given, wanted=wanted, fix=fix)

    def reading(self) -> "_Reading":
        """What goes wrong inside is said of this file."""
        return _Reading(self)

    def characters(self) -> "Characters":
        """The file decoded, by its mark or as UTF-8.  Raises `TextError` for a file that is not text."""
        for magic, what, fix in REFUSED:
            if self.head.startswith(magic):
                raise self.refused(f"{what}, not text", fix=None if fix is None else fix.format(name=self.quoted))
        place, magic = TAR
        if self.head[place] == magic:
            raise self.refused("a tar archive, not text", fix=f"tar -xf {self.quoted}, then give one of its files")
        encoding = next((name for mark, name in MARKS if self.head.startswith(mark)), "utf-8")
        if encoding.startswith("utf-8") and _binary(self.head):
            half = "LE" if self.head[1:2] == b"\0" else "BE"
            raise self.refused(
                "holds NUL bytes: a binary file, or UTF-16 without its mark",
                fix=f"of UTF-16: {self._piped()}iconv -f UTF-16{half} -t UTF-8{self._file_argument()} > corpus.txt",
            )
        return Characters(self, encoding)

    def not_decoded(self, error: UnicodeDecodeError, encoding: str) -> TextError:
        """The `TextError` for bytes that are not of the encoding, with the command that reads them as Latin-1."""
        wanted = encoding.removesuffix("-sig").upper()
        return self.refused(
            f"not {wanted}",
            given=f"byte {error.object[error.start]:#04x}, {error.reason}",
            wanted=f"{wanted} text",
            fix=f"{self._piped()}iconv -f latin1 -t utf-8{self._file_argument()} > corpus.txt",
        )

    def _piped(self) -> str:
        return "" if self.compression is None else f"{self.compression.command} {self.quoted} | "

    def _file_argument(self) -> str:
        return f" {self.quoted}" if self.compression is None else ""


class _Reading:
    """Errors of files and of what unpacks them, as `TextError`."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, UNREADABLE) and not isinstance(error, UnicodeDecodeError):
            raise self.opened.refused(
                "cannot be read", given=str(error)[:200], wanted="a whole, readable file", fix="get the file again"
            ) from None


class Characters:
    """A file's characters, in lines of a bounded length; the first line can be looked at before it is read."""

    def __init__(self, opened: Opened, encoding: str) -> None:
        self.opened = opened
        self.encoding = encoding
        self._stream = io.TextIOWrapper(io.BufferedReader(opened.stream), encoding=encoding)
        self._ahead = ""

    def first_line(self, limit: int) -> str:
        """What begins with the first character that is no space, up to the line's end or the limit; it stays unread."""
        while len(self._ahead) < limit and not (self._ahead.endswith("\n") and self._ahead.strip()):
            piece = self._read(limit - len(self._ahead))
            if not piece:
                break
            self._ahead += piece
        return self._ahead.lstrip()

    def head(self, size: int, longest: int) -> str:
        """The first characters, with the whole of a last line that may be an object; they stay unread."""
        while len(self._ahead) < size and (piece := self._read(size - len(self._ahead))):
            self._ahead += piece
        if self._ahead[self._ahead.rfind("\n") + 1 :].lstrip().startswith("{"):
            self._ahead += self._read(longest)
        return self._ahead

    def lines(self, limit: int) -> Iterator[str]:
        """The lines that are left, of each at most so many characters at once."""
        while self._ahead:
            newline = self._ahead.find("\n")
            end = limit if newline < 0 else min(limit, newline + 1)
            line, self._ahead = self._ahead[:end], self._ahead[end:]
            yield line if len(line) == end else line + self._read(limit - len(line))
        with self._decoding():
            yield from iter(partial(self._stream.readline, limit), "")

    def _read(self, limit: int) -> str:
        with self._decoding():
            return self._stream.readline(limit)

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        try:
            with self.opened.reading():
                yield
        except UnicodeDecodeError as error:
            raise self.opened.not_decoded(error, self.encoding) from None

    def pieces(self, length: int) -> Iterator[tuple[str, bool]]:
        """Pieces of at least `length` characters that end with a line; the last may be shorter.

        A line longer than that is cut at a space, or anywhere where there is none: such a piece comes with False.
        """
        kept: list[str] = []
        size = 0
        ended = True
        for line in self.lines(length):
            kept.append(line)
            size += len(line)
            if size < length:
                continue
            piece = "".join(kept)
            ended = line[-1] == "\n" or len(line) < length
            cut = len(piece) if ended else cut_at(piece, length)
            yield self._text(piece[:cut]), ended
            kept = [piece[cut:]]
            size = len(piece) - cut
        if size or not ended:
            yield self._text("".join(kept)), True

    def _text(self, piece: str) -> str:
        if piece.count("\0") * NUL_SHARE > len(piece):
            raise self.opened.refused("holds NUL bytes: not text, or a file that was never written to its end")
        return piece


def cut_at(text: str, least: int) -> int:
    """Where a long text is cut: before its last space, if that leaves half of `least`, else at its end."""
    space = text.rfind(" ", least // 2)
    return space if space > 0 else len(text)


class _Headed(io.RawIOBase):
    """A stream whose first bytes were read already."""

    def __init__(self, head: bytes, rest: Any) -> None:
        self._head, self._rest = head, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head[: len(buffer)] if self._head else self._rest.read(len(buffer))
        self._head = self._head[len(data) :] if self._head else b""
        buffer[: len(data)] = data
        return len(data)


def _open(path: Path) -> io.BufferedReader:
    try:
        number = os.open(path, os.O_RDONLY | NONBLOCK | BINARY)
    except FileNotFoundError:
        lost = "a link that leads nowhere" if path.is_symlink() else "no such file"
        raise MissingFileError(f"{path}: {lost}", wanted="a text, jsonl or parquet file") from None
    except OSError as error:
        raise TextError(f"{path}: cannot be read", given=error.strerror, wanted="a readable file") from None
    raw = os.fdopen(number, "rb")
    try:
        mode = os.fstat(number).st_mode
        if stat.S_ISREG(mode):
            return raw
        if not stat.S_ISFIFO(mode):
            raise TextError(f"{path}: neither a file nor a pipe", wanted="a text, jsonl or parquet file")
        first = _await_writer(path, number)
        os.set_blocking(number, True)
    except BaseException:
        raw.close()
        raise
    piped: Any = _Headed(first, raw)
    return io.BufferedReader(piped)


def _await_writer(path: Path, number: int) -> bytes:
    """The first bytes of a pipe, waited for as long as it has a writer."""
    deadline = time.monotonic() + WRITER_SECONDS
    while True:
        try:
            if first := os.read(number, HEAD):
                return first
        except BlockingIOError:  # a writer that has written nothing yet
            deadline = time.monotonic() + WRITER_SECONDS
        if time.monotonic() > deadline:
            raise TextError(
                f"{path}: a pipe that nobody writes into",
                wanted="a file, or a pipe with text in it",
                fix="a pipe can be read only once: write it into a file, and give that",
            )
        time.sleep(0.02)


def _binary(head: bytes) -> bool:
    return head.count(b"\0") * NUL_SHARE > len(head)


def _read(stream: Any, n_bytes: int) -> bytes:
    parts = []
    missing = n_bytes
    while missing and (part := stream.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
