"""Text from outside (tokens, labels, subsets, names, messages) made fit for a terminal, a figure or a page.

What would move the cursor, hide or turn round its neighbours, or be nothing at all is shown by a sign of its own.
"""

import unicodedata

SIGNS = {chr(code): chr(0x2400 + code) for code in range(32)} | {"\x7f": "␡", "\n": "⏎", "\t": "⇥"}
UNSHOWN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format (bidi, joiners), halves of surrogates, separators of lines


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
