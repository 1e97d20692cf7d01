"""Named errors: what was given, what was wanted, and what to do about it.

`InputError` and its kinds are the user's to mend (exit code 2); `StudyError` and its kinds are failures while
a study runs (exit code 1).  Nothing else is caught: a defect of ours asserts and shows its traceback.
"""

import errno
from collections.abc import Sequence
from typing import Any

from universal_neurons.legible import legible, legible_lines, shortened

LONGEST_VALUE = 300  # characters shown of what was given
LONGEST = 1000  # of a sentence, whatever is named in it


class UniversalNeuronsError(Exception):
    """A failure that a person can act on.

    Its lines are its own: names and values in them are legible, on one line, and not long.  `causes` are the
    errors that it sums up.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        given: object = None,
        wanted: object = None,
        fix: str | None = None,
        causes: Sequence[str] = (),
    ) -> None:
        self.what = _line(what, LONGEST)
        self._parts = {
            "given": None if given is None else _line(given, LONGEST_VALUE),
            "wanted": None if wanted is None else _line(wanted, LONGEST),
            "fix": None if fix is None else _line(fix, LONGEST),
        }
        self._causes = tuple(map(legible_lines, causes))
        parts = [f"  {label + ':':8}{value}" for label, value in self._parts.items() if value is not None]
        super().__init__("\n".join([self.what, *self._causes, *parts]))

    @property
    def given(self) -> str | None:
        """What was given, on one line and cut where it is long; None where that says nothing."""
        return self._parts["given"]

    @property
    def wanted(self) -> str | None:
        """What was wanted instead, in the same way."""
        return self._parts["wanted"]

    @property
    def fix(self) -> str | None:
        """What helps: an option, a command, or where to mend something."""
        return self._parts["fix"]

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.what, self._parts | {"causes": self._causes})


def _line(text: object, longest: int) -> str:
    return shortened(legible(shortened(str(text), longest)), longest)


def _rebuilt(kind: type[UniversalNeuronsError], what: str, parts: dict[str, Any]) -> UniversalNeuronsError:
    """An error as it was in another process."""
    return kind(what, **parts)


class InputError(UniversalNeuronsError):
    """What was asked for cannot be done as asked."""

    exit_code = 2


class MissingFileError(InputError):
    """A file, folder or hub repository that is not there."""


class TextError(InputError):
    """A corpus that cannot be read, is empty or too short."""


class TokenRangeError(InputError):
    """Token ids outside a model's vocabulary."""


class TokenCountsError(InputError):
    """Counts of tokens that cannot be read, or that are none."""


class TokenizerError(InputError):
    """No tokenizer, or models whose tokenizers differ."""


class ArchitectureError(InputError):
    """A model whose parts neither the table names nor structure tells, or that is not what its row says."""


class CheckpointError(InputError):
    """Weights that are truncated, incomplete, or stored as pickles."""


class DictionaryError(InputError):
    """A dictionary of a kind that is not read, not of this model, or that does not reconstruct what it reads."""


class ContextError(InputError):
    """A context longer than a model can read."""


class ConfigError(InputError):
    """An unknown or impossible setting."""


class MissingExtraError(InputError):
    """An optional part of the package that is not installed."""


class LabelError(InputError):
    """Labels of one's own that cannot be read."""


class NothingToCompareError(InputError):
    """One model alone has no counterpart anywhere."""


class CorrespondenceError(InputError):
    """Models whose units do not correspond by index, and so no base and its fine-tune."""


class StepError(InputError):
    """Training runs without checkpoints in common, or checkpoints whose step cannot be told."""


class StoreConflictError(InputError):
    """The output folder holds another study, or another process writes it."""


class MemoryNeededError(InputError):
    """The study does not fit in memory."""


class SketchError(InputError):
    """A portable sketch that cannot be read, or sketches that cannot be compared."""


class ClusterAddressError(InputError):
    """No Ray cluster answers where one was said to be."""


class MergeError(InputError):
    """Statistics that do not belong together."""


class AnswersError(InputError):
    """A file of a language model's answers that is damaged."""


class ExplanationsError(InputError):
    """Explanations of others' that cannot be read, or are of units that are not there."""


class StudyError(UniversalNeuronsError):
    """A study that stopped; started again, it resumes."""


class NonFiniteActivationsError(StudyError):
    """A model produced NaN or infinite activations."""


class BackendError(StudyError):
    """A language model, or its server, that does not answer what it is asked."""


class ClusterError(StudyError):
    """A Ray cluster that has no workers left, or whose workers die again and again."""


class DiskFullError(StudyError):
    """No space left where the store is written."""


class DiskError(StudyError):
    """A disk that fails, or files that may not grow."""


class StoreRemovedError(StudyError):
    """The output folder, or a file in it, that was removed while it was written."""


class OutputError(UniversalNeuronsError):
    """Standard output that is closed or full, so that results cannot be printed."""


NO_MEMORY = ("can't start new thread", "failed to map segment", "Cannot allocate memory", "memory allocation of")


def as_memory_error(error: BaseException) -> MemoryNeededError | None:
    """What the system, or a library for it, says where it gives no more memory, as an error of ours; of others None."""
    said = next((words for words in NO_MEMORY if words in str(error)), None)
    if said is None and not isinstance(error, MemoryError) and getattr(error, "errno", None) != errno.ENOMEM:
        return None
    return MemoryNeededError(
        "the system gives no more memory",
        given=f"{type(error).__name__}: {error}".splitlines()[0],
        wanted="more free memory, address space (ulimit -v) and threads (ulimit -u)",
        fix="raise the limit, or use a machine with more memory; `uneurons estimate` says what a study takes",
    )
