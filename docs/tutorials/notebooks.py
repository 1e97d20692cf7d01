"""Tutorials as notebooks: each `NAME.py` here is the source of `NAME.ipynb`, which holds its outputs too.

    python docs/tutorials/notebooks.py            # runs all and writes the notebooks
    python docs/tutorials/notebooks.py dynamics   # one of them

A source is Python in cells: `# %%` begins code, `# %% [markdown]` text.  Cells run one after another in this process,
in a folder of their own: so tutorials share the studies that they name alike, and need no Jupyter.
"""

import ast
import base64
import contextlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LARGEST_PICTURE, LARGEST_PAGE = 60_000, 30_000  # bytes, characters: of one output in a notebook


@dataclass(frozen=True)
class Cell:
    """One cell of a notebook: `code` or `markdown`."""

    kind: str
    source: str


def names() -> list[str]:
    """The tutorials, in the order in which they are read."""
    listed = re.findall(r"\]\((\w+)\.ipynb\)", (HERE / "README.md").read_text(encoding="utf-8"))
    return list(dict.fromkeys(listed))


def cells_of(name: str) -> list[Cell]:
    """The cells of a tutorial's source."""
    parts = re.split(r"^# %%(.*)\n", (HERE / f"{name}.py").read_text(encoding="utf-8"), flags=re.MULTILINE)
    made = []
    for heading, body in zip(parts[1::2], parts[2::2]):
        if heading.strip() == "[markdown]":
            made.append(Cell("markdown", re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE)))
        else:
            made.append(Cell("code", body.strip()))
    return made


def run(cells: list[Cell], file: str) -> Iterator[tuple[Cell, list[dict[str, Any]]]]:
    """Every cell with the outputs that a notebook keeps of it; what a cell raises passes."""
    space: dict[str, Any] = {"__name__": "__main__"}
    for place, cell in enumerate(cells):
        yield cell, _outputs(cell.source, space, f"{file}, cell {place}") if cell.kind == "code" else []


def _outputs(source: str, space: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """Run one cell: what it prints, and the value that it ends with."""
    tree = ast.parse(source, where)
    last = ast.Expression(tree.body.pop().value) if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        exec(compile(tree, where, "exec"), space)
        value = None if last is None else eval(compile(last, where, "eval"), space)
        shown = None if value is None else _shown(value)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": printed.getvalue()})
    if shown is not None:
        outputs.append({"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": shown})
    return outputs


def _shown(value: Any) -> dict[str, str]:
    """A value by media type: a picture with its caption, a page where it is small, text always."""
    if hasattr(value, "_repr_png_"):
        return {"image/png": base64.b64encode(_small(value._repr_png_())).decode(), "text/plain": str(value.caption)}
    page = value._repr_html_() if hasattr(value, "_repr_html_") else None
    return {"text/plain": repr(value)} | ({"text/html": page} if page and len(page) <= LARGEST_PAGE else {})


def _small(picture: bytes) -> bytes:
    """The same picture in so few colours and pixels that it is small."""
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB")
    while len(picture) > LARGEST_PICTURE:
        written = io.BytesIO()
        image.quantize(64).save(written, "PNG", optimize=True)
        picture = written.getvalue()
        image = image.resize((image.width * 4 // 5, image.height * 4 // 5))
    return picture


def notebook(ran: list[tuple[Cell, list[dict[str, Any]]]]) -> dict[str, Any]:
    """A notebook (nbformat 4.5) of cells and their outputs."""
    made = []
    for place, (cell, outputs) in enumerate(ran):
        about: dict[str, Any] = {"cell_type": cell.kind, "id": f"cell-{place}", "metadata": {}, "source": cell.source}
        if cell.kind == "code":
            about |= {"execution_count": None, "outputs": outputs}
        made.append(about)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": made}


def main(chosen: list[str]) -> None:
    """Run tutorials, all unless some are named, and write their notebooks."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name in chosen or names():
            content = notebook(list(run(cells_of(name), f"{name}.py")))
            path = HERE / f"{name}.ipynb"
            path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            print(f"{path.name}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
