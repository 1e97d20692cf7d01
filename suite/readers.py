"""Readers of the corpus: from a package's files to texts.

A reader takes a folder and a row of the recipe's sources and yields strings in a fixed order.  `READERS` names them.
Those that read files take `glob` (a pattern or a list of them, under the package's root); .gz is undone.

    files     text files as they are
    html      HTML: the text, without the tags and without navigation and what else `without` names
    man       manual pages: the text, without roff's requests and escapes
    r         an R package's data (lazy-load data base): each vector of strings, a line an element
    bible     the file of Debian's bible-kjv-text: a chapter
    wordnet   WordNet's data files: a synset, "word, word (noun): gloss"
    dictd     dictionaries for dictd (.index beside .dict.dz): an entry
"""

import gzip
import re
import struct
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import manual_pages
import r_database
import web_pages

Texts = Iterator[str]


def files_of(folder: Path, source: dict) -> list[Path]:
    """The files that a source's `glob` matches, sorted; raises SystemExit if none does."""
    patterns = source["glob"] if isinstance(source["glob"], list) else [source["glob"]]
    files = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file() and not path.is_symlink()}
    if not files:
        raise SystemExit(f"package {source['package']}: no file matches {source['glob']!r}; correct `glob`")
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def decoded(path: Path) -> str | None:
    """A file's text with plain line ends, or None where it is not UTF-8 text."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text.replace("\r\n", "\n")


def read_files(folder: Path, source: dict) -> Texts:
    """Text files as they are."""
    texts = (decoded(path) for path in files_of(folder, source))
    return (text for text in texts if text is not None)


def read_html(folder: Path, source: dict) -> Texts:
    """The text of HTML pages, without navigation and markup."""
    for page in read_files(folder, source):
        yield web_pages.text_of(page, frozenset(source.get("without", ())))


def read_man(folder: Path, source: dict) -> Texts:
    """The text of manual pages, without roff requests."""
    return map(manual_pages.text_of, read_files(folder, source))


def read_r(folder: Path, source: dict) -> Texts:
    """Vectors of strings in an R package's data, a line an element."""
    for index in files_of(folder, source):
        for vector in r_database.strings(index):
            yield "\n".join(vector)


def _lzw(window: bytes) -> bytes:
    """A window as it was before `compress`, whose header all but the first lack."""
    header = b"\x1f\x9d\x90"
    command = ["gzip", "--decompress", "--stdout"]
    return subprocess.run(command, input=header + window.removeprefix(header), capture_output=True, check=True).stdout


def read_bible(folder: Path, source: dict) -> Texts:
    """A chapter at a time, verses numbered.

    Debian's file holds at byte 0x58 the number of windows, then where each begins and the last ends.
    """
    (path,) = files_of(folder, source)
    content = path.read_bytes()
    (count,) = struct.unpack_from(">I", content, 0x58)
    starts = struct.unpack_from(f">{count + 1}I", content, 0x5C)
    text = b"".join(_lzw(content[start:end]) for start, end in pairwise(starts))
    chapters: dict[str, list[str]] = {}
    for chapter, verse in re.findall(r"^(\w+?\d+):(\d+ .*)$", text.decode(), re.MULTILINE):
        chapters.setdefault(chapter, []).append(verse)
    return ("\n".join(verses) for verses in chapters.values())


PARTS = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}


def read_wordnet(folder: Path, source: dict) -> Texts:
    """A synset at a time: its words, its part of speech and its gloss."""
    for content in read_files(folder, source):
        for line in content.split("\n"):
            if re.match(r"\d{8} ", line):
                record, _, gloss = line.partition(" | ")
                _, _, part, count, *fields = record.split(" ")
                words = (re.sub(r"\(\w+\)$", "", word) for word in fields[: 2 * int(count, 16) : 2])
                words = (word.replace("_", " ") for word in words)
                yield f"{', '.join(words)} ({PARTS[part]}): {gloss.strip()}"


DIGITS = {
    digit: value for value, digit in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
}


def _number(digits: str) -> int:
    value = 0
    for digit in digits:
        value = 64 * value + DIGITS[digit]
    return value


def read_dictd(folder: Path, source: dict) -> Texts:
    """An entry at a time, in the order of the book; what describes the data base is left out."""
    for path in files_of(folder, source):
        content = gzip.decompress(path.with_name(path.stem + ".dict.dz").read_bytes())
        rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
        places = {(_number(start), _number(size)) for word, start, size in rows if not word.startswith("00")}
        for start, size in sorted(places):
            yield content[start : start + size].decode("utf-8", "replace").strip()


READERS = {
    "files": read_files,
    "html": read_html,
    "man": read_man,
    "r": read_r,
    "bible": read_bible,
    "wordnet": read_wordnet,
    "dictd": read_dictd,
}
