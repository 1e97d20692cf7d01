"""Text from outside (tokens, labels, subsets, names, messages) made fit for a terminal, a figure or a page.

What would move the cursor, hide or turn round its neighbours, or be nothing at all is shown by a sign of its own.
"""

import unicodedata
from reprlib import Repr

SIGNS = {chr(code): chr(0x2400 + code) for code in range(32)} | {"\x7f": "␡", "\n": "⏎", "\t": "⇥"}
UNSHOWN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format (bidi, joiners), halves of surrogates, separators of lines

SHORT = Repr()
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother, SHORT.maxlong = 3, 160, 160, 60


def legible(text: object) -> str:
    """The text on one line: control and format characters, and lone surrogates, as visible signs (ESC as ␛)."""
    return "".join(map(_sign, str(text)))


def legible_lines(text: object) -> str:
    """The text with its line ends kept and all else as `legible` shows it."""
    return "\n".join(map(legible, str(text).split("\n")))


def _sign(character: str) -> str:
    if character in SIGNS:
        return SIGNS[character]
    return f"\\u{ord(character):04x}" if unicodedata.category(character) in UNSHOWN else character


def brief(text: str, most: int = 200) -> str:
    """The beginning of a text of whatever length."""
    return text if len(text) <= most else text[: most - 1] + "…"


def brief_repr(value: object) -> str:
    """A value of whatever size and depth, as Python writes it, cut."""
    try:
        return brief(SHORT.repr(value))
    except ValueError:  # a number of too many digits
        return f"<{type(value).__name__}>"
