"""The answers of a language model, kept in a file by what was asked: nothing that was answered is asked again.

A line for each answer: the CRC-32 of the rest, then JSON with a digest of the question (whose words are not kept) and
the reply.  Lines are only appended, each as soon as its answer is there; a last line that a crash cut off is dropped.
"""

import contextlib
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from universal_neurons.disk import disk_errors, open_regular, refuse_link, take_lock
from universal_neurons.errors import AnswersError, BackendError
from universal_neurons.explanations.backends import Backend, Prices, Prompt, Reply, Spent

LETTERS = 4  # characters of a token, about, where none were counted
HOPELESS = 8  # replies without any answer after which no more are asked for
KEPT = ("chosen", "text", "by_token", "missing", "read", "written")


class Answers:
    """What a backend answers, with a file at `path` that keeps it; one process at a time writes the file.

    Open it by `with`.  Raises `AnswersError` for a damaged file, `StoreConflictError` where another process writes it.
    """

    def __init__(self, path: Path, backend: Backend, *, prices: Prices | None = None) -> None:
        self.path = path
        self.backend = backend
        self.prices = prices
        self.spent = Spent()
        self._known: dict[str, Reply] = {}

    def __enter__(self) -> "Answers":
        refuse_link(self.path)
        with contextlib.ExitStack() as opened, disk_errors(self.path):
            lock = take_lock(self.path.with_name(f".{self.path.name}.lock"), str(self.path))
            opened.callback(lock.release)
            self._known, whole = read_answers(self.path) if self.path.exists() else ({}, 0)
            self._file = opened.enter_context(self.path.open("ab"))
            self._file.truncate(whole)
            self._open = opened.pop_all()
        return self

    def __exit__(self, *_failed: object) -> None:
        self._open.close()

    def ask(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """The reply to every prompt, from the file where it was answered before; the same question is asked once.

        Raises `BackendError` where the backend stops answering: what it answered is kept, and is not asked again.
        """
        keys = [key_of(self.backend, prompt) for prompt in prompts]
        new = {key: prompt for key, prompt in zip(keys, prompts) if key not in self._known}
        for key in dict.fromkeys(keys):
            if key in self._known:
                self.spent.recall(self._known[key])
        replies = dict(self._asked(new)) if new else {}
        return [self._known[key] if key in self._known else replies[key] for key in keys]

    def _asked(self, new: dict[str, Prompt]) -> Iterator[tuple[str, Reply]]:
        names = list(new)
        usable = any(not reply.missing for reply in self._known.values())
        missing = 0
        with disk_errors(self.path), contextlib.closing(self.backend.replies(list(new.values()))) as coming:
            try:
                for place, reply in coming:
                    self.spent.add(reply)
                    usable, missing = usable or not reply.missing, missing + bool(reply.missing)
                    if reply.final:
                        self._keep(names[place], reply)
                    if not usable and missing >= HOPELESS:
                        raise _hopeless(self.backend, reply, missing)
                    yield names[place], reply
            finally:
                self._file.flush()
                os.fsync(self._file.fileno())

    def _keep(self, key: str, reply: Reply) -> None:
        self._file.write(line_of(key, reply))
        self._file.flush()
        self._known[key] = reply

    def forecast(self, prompts: Iterable[Prompt]) -> str:
        """One line for before: how many questions are new, about how many tokens they have, and what that costs.

        Prompts are not kept: there may be many.
        """
        keys: set[str] = set()
        characters = written = known = 0
        for prompt in prompts:
            key = key_of(self.backend, prompt)
            if key not in keys:
                keys.add(key)
                known += key in self._known
                if key not in self._known:
                    characters, written = characters + prompt.characters, written + prompt.tokens
        read = characters // LETTERS
        cost = f", cost about {self.prices.of(read, written):,.4f} at most" if self.prices else ""
        return (
            f"questions {len(keys) - known:,} (answered before {known:,}); tokens to read about {read:,}, "
            f"to write at most {written:,}{cost}"
        )

    def totals(self) -> str:
        """One line for afterwards: what was answered, what is missing and why, tokens and cost."""
        return self.spent.in_words(self.prices)


def _hopeless(backend: Backend, reply: Reply, missing: int) -> BackendError:
    return BackendError(
        f"{backend.identity}: answers nothing that it is asked",
        given=f"{reply.missing}{reply.text and f': {reply.text}'}; without an answer in all: {missing}",
        wanted="an answer to one of the first questions at least",
        fix="name another model, or mend this one; what was answered before is kept",
    )


def key_of(backend: Backend, prompt: Prompt) -> str:
    """SHA-256 of who is asked and what, options too."""
    asked = [backend.identity, prompt.system, prompt.user, prompt.answers, prompt.tokens]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def line_of(key: str, reply: Reply) -> bytes:
    """A line of the file."""
    kept = {name: value for name, value in asdict(reply).items() if name in KEPT}
    kept["chosen"] = [None if value == -math.inf else value for value in reply.chosen]
    content = json.dumps({"asked": key, **kept}, allow_nan=False).encode()
    return b"%08x %s\n" % (zlib.crc32(content), content)


def read_answers(path: Path) -> tuple[dict[str, Reply], int]:
    """The replies in a file by what was asked, and the bytes of its whole lines.  Raises `AnswersError`."""
    known, whole = {}, 0
    with open_regular(path) as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                break
            try:
                key, reply = _read_line(line)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise AnswersError(
                    f"{path}: line {number:,} is damaged",
                    given=f"{type(error).__name__}: {error}",
                    wanted="a file that only `uneurons explain` has written",
                    fix="restore it, or remove the file: its questions are then asked again",
                ) from None
            known[key] = reply
            whole += len(line)
    return known, whole


def _read_line(line: bytes) -> tuple[str, Reply]:
    checksum, _, content = line.rstrip(b"\n").partition(b" ")
    if int(checksum, 16) != zlib.crc32(content):
        raise ValueError("its checksum differs")
    values = json.loads(content)
    key = values.pop("asked")
    values["chosen"] = tuple(-math.inf if value is None else float(value) for value in values["chosen"])
    return key, Reply(**values)
