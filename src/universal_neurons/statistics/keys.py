"""Names of what a pass hands to its statistics: blocks of values, and integers that positions are sorted by."""

from dataclasses import dataclass
from enum import StrEnum


class What(StrEnum):
    """What of its source a block holds."""

    ACTIVATION = "activation"
    UNROUNDED = "activation as it is"  # where products read rounded ones
    PRE = "pre-activation"
    FIRST = "pre-activation at position 0"  # where BOS stands
    STREAM = "residual stream"  # its norm over the row's median (features/stream.py)
    SUMS = "signed sums"  # of a sketch
    NULL = "null"  # labels of other rows


@dataclass(frozen=True)
class Key:
    """One block or index of a batch: of which source (a model, the labels), and what of it."""

    source: str
    what: What = What.ACTIVATION

    @property
    def null(self) -> "Key":
        """The same of the null."""
        return Key(self.source, What.NULL)

    def __str__(self) -> str:
        return f"{self.what}:{self.source}"


Named = str | Key  # a source's name alone stands for its activations


def key_of(named: Named) -> Key:
    """The key that is meant."""
    return named if isinstance(named, Key) else Key(named)


# what positions are sorted by
BY_ROW, BY_POSITION, BY_WORD, BY_PREVIOUS = Key("row"), Key("position"), Key("word"), Key("previous")
BY_TOKEN = Key("token")  # its number among the most frequent
LABELS = Key("@labels")  # the labels' columns: no model can have this name
