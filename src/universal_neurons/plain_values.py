"""Small YAML and JSON files of a user's, read strictly: bounded, without aliases, every key once.

JSON is read as JSON, by its suffix or where the content is JSON whatever the suffix.  The rest is YAML, of which
anchors and aliases are refused: a few bytes of them stand for gigabytes.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

import yaml

from universal_neurons.errors import InputError, MissingFileError

DEEPEST = 32
LONGEST_NUMBER = 64
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Strict(LOADER):
    """A YAML loader that refuses keys that come twice and endless numbers (of base 60, they take hours)."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        mapping: dict = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            raise ValueError(f"line {node.start_mark.line + 1}: a key comes twice")
        return mapping

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if node.tag in NUMBERS and len(value) > LONGEST_NUMBER:
            raise ValueError(f"line {node.start_mark.line + 1}: a number of {len(value):,} characters")
        return value


def read_values(path: Path, *, most_bytes: int, refused: type[InputError], wanted: str) -> Any:
    """What a YAML or JSON file says; None where it is empty.

    Raises `MissingFileError` for what is no readable file, `refused` for what cannot be understood.
    """
    content = _content(path, most_bytes, refused, wanted)
    try:
        return _values(content.decode("utf-8-sig"), path)
    except RecursionError:
        raise refused(f"{path}: not readable: too deeply nested", wanted=wanted) from None
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:  # all that PyYAML lets out
        kind = "JSON" if _named_json(path) else "YAML"
        raise refused(f"{path}: not readable: not {kind}", given=error, wanted=wanted) from None


def _content(path: Path, most_bytes: int, refused: type[InputError], wanted: str) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe without a writer would hang
            raise MissingFileError(f"{path}: not a regular file", wanted=wanted)
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise MissingFileError(f"{path}: cannot be read", given=error.strerror, wanted=wanted) from None
    if len(content) > most_bytes:
        raise refused(f"{path}: too large", given=f"more than {most_bytes:,} bytes", wanted=wanted)
    return content


def _values(text: str, path: Path) -> Any:
    if not text.strip():
        return None
    if _named_json(path):
        return json.loads(text, object_pairs_hook=_each_once)
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text, object_pairs_hook=_each_once)
        except ValueError:
            pass  # YAML may begin so too
    _require_plain(text)
    return yaml.load(text, _Strict)


def _named_json(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("a key comes twice")
    return names


def _require_plain(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, LOADER):
        line = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise ValueError(f"{line}: an anchor or alias (& or *): write the value out, or put it into quotes")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"{line}: too deeply nested")
