"""What a scorer is asked: does an explanation say what a unit does on a window of text?

- detection: does the unit fire anywhere in the window?  One answer: the probability of yes, 0 to 1.
- fuzzing: are the marked tokens those on which it fires?  One answer: the probability of yes, 0 to 1.
- simulation: how strongly does it fire on every token?  One answer a token: 0 (not at all) to 10 (as it can).

A scorer that did not get an answer, or one that it cannot read, says NaN: missing, never a score.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

STRONGEST = 10  # what a simulated token can have at most


class Kind(StrEnum):
    """What is asked of a window."""

    DETECTION = "detection"
    FUZZING = "fuzzing"
    SIMULATION = "simulation"


@dataclass(frozen=True)
class Question:
    """One question: an explanation and a window's tokens as strings; `marks` are the places of the marked tokens.

    Only a question of fuzzing has marks.  The answer is in none of its fields.
    """

    kind: Kind
    explanation: str
    tokens: tuple[str, ...]
    marks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert self.tokens, "a question about no token"
        assert bool(self.marks) == (self.kind is Kind.FUZZING), "marks are of questions of fuzzing"
        assert all(0 <= place < len(self.tokens) for place in self.marks), "a mark outside its window"


@runtime_checkable
class Scorer(Protocol):
    """What answers questions: a local model, a server, or a function that reads a rule."""

    def probabilities(self, questions: Sequence[Question]) -> Float[np.ndarray, " questions"]:
        """The probability of yes, 0 to 1, for each question of detection or fuzzing; NaN where it is missing.

        A scorer that hears yes or no alone says 1 or 0.
        """
        ...

    def strengths(self, questions: Sequence[Question]) -> Float[np.ndarray, "questions tokens"]:
        """For each question of simulation a value for each token, 0 to `STRONGEST`.

        NaN where it is missing, and beyond the end of a window that is shorter than the longest.
        """
        ...
