"""What is asked of a language model, what it answers, and whatever answers: a model here, or a server.

A question with `answers` to choose from is answered by their log-probabilities, not by text that would have to be read.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

SERVER = "openai:"  # before the address of a server


@dataclass(frozen=True)
class Prompt:
    """One question: instructions and what is asked.

    `answers` are those to choose from; where there are none, text of up to `tokens` tokens is asked for.
    """

    system: str
    user: str
    answers: tuple[str, ...] = ()
    tokens: int = 1

    @property
    def characters(self) -> int:
        """How long it is."""
        return len(self.system) + len(self.user)


@dataclass(frozen=True)
class Reply:
    """What came back: of a choice the natural logarithm of each answer's probability (-inf: none), else text.

    `by_token` says that a choice was read from one token alone, from a server that gives no log-probabilities: its
    answer has probability 1.  `missing` says why there is no answer (`text` what came in its place); `final` whether
    asking again would bring the same.
    `read` and `written` are tokens, as whatever answered counts them.
    """

    chosen: tuple[float, ...] = ()
    text: str = ""
    by_token: bool = False
    missing: str = ""
    final: bool = True
    read: int = 0
    written: int = 0

    @property
    def shares(self) -> tuple[float, ...]:
        """The probability of each answer among all of them; nothing where the answer is missing."""
        highest = max(self.chosen, default=-math.inf)
        if highest == -math.inf:
            return ()
        sizes = [math.exp(value - highest) for value in self.chosen]
        return tuple(size / sum(sizes) for size in sizes)


@runtime_checkable
class Backend(Protocol):
    """A language model that answers: `name` is what tables call it.

    `identity` names all that an answer depends on besides its prompt.
    """

    name: str
    identity: str

    def replies(self, prompts: Sequence[Prompt]) -> Generator[tuple[int, Reply], None, None]:
        """The place and the reply of every prompt, each as soon as it is there, in any order.

        Raises `BackendError` where no more replies can be had.
        """
        ...


@dataclass(frozen=True)
class Prices:
    """What a million tokens cost, read and written, in whatever currency they are given."""

    read: float
    written: float

    def of(self, read: int, written: int) -> float:
        """What these tokens cost."""
        return (read * self.read + written * self.written) / 1e6


@dataclass
class Spent:
    """What was asked so far: answers had from the file, answered now, missing by reason, tokens."""

    kept: int = 0
    answered: int = 0
    by_token: int = 0
    missing: dict[str, int] = field(default_factory=dict)
    read: int = 0
    written: int = 0

    def add(self, reply: Reply) -> None:
        """Count a reply that came now."""
        self.read += reply.read
        self.written += reply.written
        self.answered += not reply.missing
        self._mark(reply)

    def recall(self, reply: Reply) -> None:
        """Count a reply that the file had."""
        self.kept += 1
        self._mark(reply)

    def _mark(self, reply: Reply) -> None:
        self.by_token += reply.by_token
        if reply.missing:
            self.missing[reply.missing] = self.missing.get(reply.missing, 0) + 1

    def in_words(self, prices: Prices | None = None) -> str:
        """One line: how many answers, what is missing and why, tokens and cost."""
        parts = [f"answered {self.answered:,}", f"from the file {self.kept:,}"]
        parts += [f"missing {number:,} ({why})" for why, number in sorted(self.missing.items())]
        parts += [f"one token without a probability {self.by_token:,}"] if self.by_token else []
        cost = f", cost {prices.of(self.read, self.written):,.4f}" if prices else ""
        return f"{', '.join(parts)}; tokens read {self.read:,}, written {self.written:,}{cost}"
