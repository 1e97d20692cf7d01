"""The pages of reference, as Markdown: commands, settings, tables, Python.  Each is made of what it speaks of."""

import re
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import universal_neurons as un
from universal_neurons.cli import app
from universal_neurons.config import Published

COLUMNS = Path(__file__).parents[1] / "columns.yaml"
KINDS = {  # of stores, by their names in columns.yaml
    "study": "A study's tables",
    "dynamics": "Tables of training dynamics",
    "diff": "Tables of a diff",
    "scores": "Scores of explanations",
}
SETTINGS: dict[str, tuple[type[BaseModel], str]] = {
    "Of a study": (
        un.StudyConfig,
        "`uneurons run`, `un.StudyConfig`. Flags are these names with `-` for `_`.",
    ),
    "Of training dynamics, besides": (un.DynamicsConfig, "`uneurons dynamics`, `un.DynamicsConfig`."),
    "Of a diff, besides": (un.DiffConfig, "`uneurons diff`, `un.DiffConfig`."),
    "Of roles": (un.RoleSettings, "The section `roles` of a file of settings, and `un.RoleSettings`."),
    "Of a publication": (Published, "The section `published` of a file of settings: its counts, printed beside ours."),
}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
HEAD = ("column", "type", "unit", "meaning")  # of a list of columns
Row = tuple[str, ...]


def all_pages() -> dict[str, str]:
    """Every page of reference by its name."""
    return {"commands": commands(), "settings": settings(), "tables": tables(), "python": python()}


def commands() -> str:
    """What `--help` says of every command."""
    text = app.generate_docs(output_format="markdown")
    text = re.sub(r"## Table of Contents\n.*?(?=\*\*Commands)", "", text, flags=re.DOTALL)
    text = re.sub(r"^# uneurons$", "# Commands, option by option", text, flags=re.MULTILINE)
    return re.sub(r"^\*\*(\w+)\*\*:$", r"\1:", text, flags=re.MULTILINE)


def settings() -> str:
    """Every field of the configurations, with its values, default and description."""
    parts = ["# Settings", "What they mean together: [commands](../docs/commands.md)."]
    for title, (kind, use) in SETTINGS.items():
        old = un.StudyConfig.model_fields if issubclass(kind, un.StudyConfig) and kind is not un.StudyConfig else {}
        schema = kind.model_json_schema()
        new = [name for name, field in kind.model_fields.items() if name not in old or says_else(field, old[name])]
        rows = [setting(name, schema) for name in new]
        parts += [f"## {title}", use, table(("setting", "values", "default", "meaning"), rows)]
    return "\n\n".join(parts) + "\n"


def says_else(field: FieldInfo, other: FieldInfo) -> bool:
    """Whether a setting means something else here than it does of a study."""
    return (field.description, field.default) != (other.description, other.default)


def setting(name: str, schema: Mapping[str, Any]) -> Row:
    """A setting's row."""
    field = schema["properties"][name]
    default = field.get("default")
    shown = "–" if default in (None, [], ()) or isinstance(default, dict) else code(default)
    return f"`{name}`", values(field, schema), shown, field.get("description", "")


def code(value: Any) -> str:
    """A default value; of a list each."""
    return ", ".join(f"`{one}`" for one in (value if isinstance(value, list) else [value]))


def values(field: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """What a setting may be, from its JSON schema."""
    if "$ref" in field:
        return "a section, below"
    if "anyOf" in field:
        return " or ".join(values(one, schema) for one in field["anyOf"] if one.get("type") != "null")
    if "enum" in field or "const" in field:
        return ", ".join(f"`{one}`" for one in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        item = field.get("items") or field.get("prefixItems", [{}])[0]
        return f"{values(item, schema)}; several"
    if field.get("type") == "object":
        return "a mapping"
    bounds = [f"{sign}\N{NO-BREAK SPACE}{number(field[key])}" for key, sign in BOUNDS.items() if key in field]
    return ", ".join([field.get("type", "any"), *bounds])


def number(value: float) -> str:
    """A bound; of large integers powers of two, else digits by threes."""
    power = value.bit_length() - 1 if isinstance(value, int) else 0
    return f"2^{power}" if power > 30 and value == 2**power else f"{value:,}".replace(",", "\N{NO-BREAK SPACE}")


def tables() -> str:
    """Every column of every table: type, unit, meaning."""
    about = (
        "A type is polars'. A unit `–` is none. `1, −1` and the like are all values there are. "
        "More on each: [the store](store.md), [diffs](diff.md), [dynamics](dynamics.md)."
    )
    parts = ["# Tables", about]
    words = read_columns()
    for kind, title in KINDS.items():
        parts.append(f"## {title}")
        for name, described in words[kind].items():
            rows = [(f"`{column}`", *told) for column, told in columns(words, kind, name).items()]
            parts += [f"### `{name}`", described["about"], table(HEAD, rows)]
    return "\n\n".join(parts).replace("](", "](../docs/") + "\n"


def read_columns() -> dict[str, Any]:
    """docs/columns.yaml; links in it lead from docs/."""
    return yaml.safe_load(COLUMNS.read_text(encoding="utf-8"))


def columns(words: Mapping[str, Any], kind: str, name: str) -> dict[str, Row]:
    """Type, unit and meaning of a table's columns; those with a type alone have the words of another table."""
    described = words[kind][name]
    other = described.get("like")
    lent = (
        (words[kind] if other in words[kind] and other != name else words["study"])[other]["columns"] if other else {}
    )
    found: dict[str, Row] = {}
    for column, told in described["columns"].items():
        kind_of_value, _, said = told.partition(" | ")
        said = said or lent.get(column, "").partition(" | ")[2] or words["shared"][column]
        found[column] = (kind_of_value, *said.split(" | ", 1))
    return found


def python() -> str:
    """Every public name, by the folder that it is from, from its docstring."""
    by_home: dict[str, list[str]] = {}
    for name in un.__all__:
        by_home.setdefault(getattr(un, name).__module__.split(".")[1], []).append(name)
    parts = [
        "# Python, name by name",
        "Used together: [in Python](../docs/python.md). `import universal_neurons as un`.",
    ]
    for home, names in sorted(by_home.items()):
        about = (import_module(f"universal_neurons.{home}").__doc__ or "").split("\n\n")[0].replace("\n", " ")
        parts += [f"## {home.replace('_', ' ')}", about, *(directive(name) for name in names)]
    return "\n\n".join(parts) + "\n"


def directive(name: str) -> str:
    """Sphinx's directive for a public name; settings are on their page, field by field."""
    thing = getattr(un, name)
    kind = "autoclass" if isinstance(thing, type) else "autofunction"
    members = "" if kind == "autofunction" or issubclass(thing, BaseModel) else "\n   :members:"
    return f"```{{eval-rst}}\n.. {kind}:: universal_neurons.{name}{members}\n```"


def table(head: Row, rows: Iterable[Row]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
