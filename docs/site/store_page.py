"""The lists of columns in docs/store.md: `python docs/site/store_page.py` writes them anew from docs/columns.yaml.

A list stands between `<!-- columns of KIND.TABLE -->` and `<!-- end of columns -->`; a test finds one that is stale.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reference import HEAD, columns, read_columns, table

PAGE = Path(__file__).parents[1] / "store.md"
LIST = re.compile(r"(<!-- columns of (\w+)\.(\w+) -->\n).*?(<!-- end of columns -->)", re.DOTALL)


def listed(words: Mapping[str, Any], kind: str, name: str) -> str:
    """What a table's rows are, and its columns; those that have the words of others are named alone."""
    described = words[kind][name]
    told = columns(words, kind, name)
    own = {column for column, said in described["columns"].items() if " | " in said}
    key = [f"`{column}`" for column in told if column not in own and column in words["shared"]]
    lent = [f"`{column}`" for column in told if column not in own and column not in words["shared"]]
    parts = [described["about"]]
    if key:
        parts.append(f"[Which row](#whose-rows): {', '.join(key)}.")
    if lent:
        parts.append(f"As in [`{described['like']}`](#{described['like']}): {', '.join(lent)}.")
    if own:
        parts.append(table(HEAD, [(f"`{column}`", *said) for column, said in told.items() if column in own]))
    return "\n\n".join(parts)


def shared(words: Mapping[str, Any]) -> str:
    """The columns that mean the same in every table."""
    rows = [(f"`{column}`", *said.split(" | ")) for column, said in words["shared"].items()]
    return table(("column", "unit", "meaning"), rows)


def filled(page: str) -> str:
    """The page with every list as docs/columns.yaml has it."""
    words = read_columns()

    def written(found: re.Match[str]) -> str:
        start, kind, name, end = found.groups()
        return f"{start}\n{shared(words) if kind == 'shared' else listed(words, kind, name)}\n\n{end}"

    return LIST.sub(written, page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
