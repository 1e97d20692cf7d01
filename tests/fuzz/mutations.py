"""What is done to a file: bits, bytes, stretches, and values of JSON that are of the wrong kind, too large or hostile."""

import copy
import json
import random
from typing import Any

HOSTILE_BYTES = [
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\x1b[2J", b"\r", b"\n\n", b"{", b"[" * 5000, b"]", b'"',
    b"&a *a", b"!!python/object:os.system", b"- " * 3000, b"\x1f\x8b", b"PAR1", b"9" * 400, b"$\\frac{1}{", b"\xe2\x80\xae",
]  # fmt: skip
HOSTILE_VALUES: list[Any] = [
    None, True, -1, 0, 2**31, 2**70, 1e308, float("nan"), float("inf"), "", "\0", "\ud800", "\x1b]0;t\x07", "[/red]", "$$", "../../x",
    "~nobody/x", "x" * 5000, [], {}, [[]], {"a": {}}, ["x", 1], "NewKind", "1", 0.5, "*", "s[1]", "\u202etxt", "auto", "a\nb",
]  # fmt: skip


def mutated(content: bytes, draw: random.Random, *, structured: bool) -> bytes:
    """A file's bytes with one to three mutations; of the values of a JSON document, where it is one."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        document = _document(content) if structured and draw.random() < 0.7 else None
        content = _bytes(content, draw) if document is None else json.dumps(_values(document, draw)).encode()
    return content


def _document(content: bytes) -> Any:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict | list) and document else None


def _values(document: Any, draw: random.Random) -> Any:
    """One value, anywhere, replaced, removed, renamed, repeated or nested."""
    document = copy.deepcopy(document)
    node = document
    while True:
        key = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
        if not isinstance(node[key], dict | list) or not node[key] or draw.random() < 0.25:
            break
        node = node[key]
    match draw.randrange(6):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[str(draw.choice(HOSTILE_VALUES))] = node.pop(key)
        case 2:
            node[key] = [node[key], node[key]]
        case _:
            node[key] = draw.choice(HOSTILE_VALUES)
    return document


def _bytes(content: bytes, draw: random.Random) -> bytes:
    size = len(content)
    at = draw.randrange(size + 1)
    stretch = min(size - at, draw.choice((1, 2, 8, 64, 1024)))
    match draw.randrange(8):
        case 0 | 1 if at < size:  # a bit
            return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
        case 2 if at < size:  # a byte
            return content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :]
        case 3:  # the end is missing
            return content[:at]
        case 4:  # a stretch is missing
            return content[:at] + content[at + stretch :]
        case 5:  # a stretch is there twice
            return content[: at + stretch] + content[at:]
        case 6:  # two stretches have changed places
            other = draw.randrange(size + 1)
            one, two = content[at : at + stretch], content[other : other + stretch]
            if len(one) == len(two) and abs(at - other) >= stretch:
                swapped = bytearray(content)
                swapped[at : at + len(one)], swapped[other : other + len(two)] = two, one
                return bytes(swapped)
    return content[:at] + draw.choice(HOSTILE_BYTES) + content[at:]
