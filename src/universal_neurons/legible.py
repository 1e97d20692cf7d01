"""Text from outside (tokens, labels, names, messages) made fit for a terminal, a figure, a page or a file's name.

What would move the cursor, hide or turn round its neighbours, or be nothing at all is shown by a sign of its own.
"""

import unicodedata
from collections.abc import Iterable
from reprlib import Repr

SIGNS = {chr(code): chr(0x2400 + code) for code in range(32)} | {"\x7f": "␡", "\n": "⏎", "\t": "⇥"}
UNSHOWN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format (bidi, joiners), halves of surrogates, separators of lines
FILE_BYTES = 120  # of a name within a file's name: all file systems take 255, and others stand before and behind it

SHORT = Repr()
SHORT.maxlevel = 3
SHORT.maxstring = 160
SHORT.maxother = 160
SHORT.maxlong = 60


def legible(text: object) -> str:
    """The text on one line: control and format characters, and lone surrogates, as visible signs (ESC as ␛)."""
    line = str(text)
    return line if line.isprintable() else "".join(map(_sign, line))


def legible_lines(text: object) -> str:
    """The text with its line ends kept and all else as `legible` shows it."""
    return "\n".join(map(legible, str(text).split("\n")))


def first_line(error: BaseException) -> str:
    """What an error of a library says, without the lines that explain it further; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shortened(text: str, longest: int) -> str:
    """The text, of more than `longest` characters the beginning and the end."""
    if len(text) <= longest:
        return text
    tail = (longest - 1) // 3
    return text[: longest - 1 - tail] + "…" + text[len(text) - tail :]


def file_names(names: Iterable[str]) -> dict[str, str]:
    """Every name as a part of a file's name: no separator or sign that cannot be seen, not long, each its own."""
    parts: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        printable = "".join(c if c.isprintable() and c not in "/\\" else "-" for c in name)
        part = short = printable.encode()[:FILE_BYTES].decode(errors="ignore")
        number = 1
        while part.casefold() in taken:  # file systems that do not tell A from a
            number += 1
            part = f"{short}-{number}"
        taken.add(part.casefold())
        parts[name] = part
    return parts


def _sign(character: str) -> str:
    if character in SIGNS:
        return SIGNS[character]
    code = ord(character)
    if unicodedata.category(character) in UNSHOWN or _is_noncharacter(code):
        return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
    return character


def _is_noncharacter(code: int) -> bool:
    """Whether Unicode keeps the code for no character ever; XML refuses two of them."""
    return code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF


def brief_repr(value: object) -> str:
    """A value of whatever size and depth, as Python writes it, cut."""
    try:
        return SHORT.repr(value)
    except ValueError:  # a number of too many digits
        return f"<{type(value).__name__}>"
