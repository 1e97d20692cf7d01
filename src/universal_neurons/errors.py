"""Named errors: what was given, what was wanted, and what to do about it.

`InputError` and its kinds are the user's to mend (exit code 2); `StudyError` and its kinds are failures while
a study runs (exit code 1).  Nothing else is caught: a defect of ours asserts and shows its traceback.
"""


class UniversalNeuronsError(Exception):
    """A failure that a person can act on."""

    exit_code = 1

    def __init__(self, what: str, *, given: object = None, wanted: object = None, fix: str | None = None) -> None:
        self.what = what
        lines = [what]
        for label, value in (("given", given), ("wanted", wanted), ("fix", fix)):
            if value is not None:
                lines.append(f"  {label + ':':8}{value}")
        super().__init__("\n".join(lines))


class InputError(UniversalNeuronsError):
    """What was asked for cannot be done as asked."""

    exit_code = 2


class MissingFileError(InputError):
    """A file, folder or hub repository that is not there."""


class TextError(InputError):
    """A corpus that cannot be read, is empty or too short."""


class TokenRangeError(InputError):
    """Token ids outside a model's vocabulary."""


class TokenizerError(InputError):
    """No tokenizer, or models whose tokenizers differ."""


class ArchitectureError(InputError):
    """A model family that is not in the table, or a model that is not what its family's row says."""


class CheckpointError(InputError):
    """Weights that are truncated, incomplete, or stored as pickles."""


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


class StudyError(UniversalNeuronsError):
    """A study that stopped; started again, it resumes."""


class NonFiniteActivationsError(StudyError):
    """A model produced NaN or infinite activations."""


class ClusterError(StudyError):
    """A Ray cluster that has no workers left, or whose workers die again and again."""


class DiskFullError(StudyError):
    """No space left where the store is written."""
