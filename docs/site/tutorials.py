"""The tutorials as pages of the site: each notebook of docs/tutorials with the outputs that it holds."""

import base64
import json
import re
from pathlib import Path
from typing import Any

PICTURE, TEXT = "image/png", "text/plain"


def write_tutorials(notebooks: Path, folder: Path) -> None:
    """Write a page of each notebook, its pictures beside it, and the list of them, which leads to the pages."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = (notebooks / "README.md").read_text(encoding="utf-8").replace(".ipynb)", ".md)")
    names = list(dict.fromkeys(re.findall(r"\]\((\w+)\.md\)", listed)))
    contents = "\n".join(["", "```{toctree}", ":hidden:", *names, "```", ""])
    (folder / "README.md").write_text(listed + contents, encoding="utf-8")
    for name in names:
        cells = json.loads((notebooks / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        parts = [part for number, cell in enumerate(cells) for part in _parts(cell, folder, f"{name}-{number}")]
        (folder / f"{name}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _parts(cell: dict[str, Any], folder: Path, name: str) -> list[str]:
    """A cell as Markdown; its pictures are written as `name`-K.png."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    parts = [_fenced(source, "python")]
    for number, output in enumerate(cell["outputs"]):
        data = output.get("data", {TEXT: output.get("text", "")})
        text = "".join(data.get(TEXT, ""))
        if PICTURE in data:
            picture = f"{name}-{number}.png"
            (folder / picture).write_bytes(base64.b64decode("".join(data[PICTURE])))
            parts.append(f"![]({picture})")
        if text.strip():
            parts.append(text if PICTURE in data else _fenced(text, "text"))
    return parts


def _fenced(text: str, language: str) -> str:
    return f"````{language}\n{text.rstrip()}\n````"
