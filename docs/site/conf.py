"""Sphinx's settings, and what Sphinx lacks: formulas as MathML, and docstrings that are no reStructuredText."""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.util.logging import getLogger

import universal_neurons

project = "universal-neurons"
author = "The universal-neurons developers"
version = release = universal_neurons.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"universal-neurons {release}"
html_copy_source = False
html_show_sphinx = False
html_math_renderer = "mathml"
html_css_files = ["site.css"]
html_static_path = ["static"]
highlight_language = "text"
default_role = "literal"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
python_display_short_literal_types = True
python_maximum_signature_line_length = 90

SPECIAL = re.compile(r"(?<!\\)([*|]|(?<=\w)_(?!\w))")  # what reStructuredText would take for markup


def as_text(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """A docstring as it is meant: nothing in it is markup but what stands in backticks."""
    for number, line in enumerate(lines):
        parts = line.split("`")
        lines[number] = "`".join(part if place % 2 else SPECIAL.sub(r"\\\1", part) for place, part in enumerate(parts))


def of_settings(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returned: str
) -> tuple[str, str] | None:
    """Settings have a page of their own, in place of a signature of fifty names."""
    is_settings = isinstance(obj, type) and issubclass(obj, BaseModel)
    return ("(**settings)", "") if is_settings else None


def leave_out(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Constants of a class are its own."""
    return True if name.isupper() else None


def mathml(node: nodes.math | nodes.math_block, *, block: bool) -> str:
    """A formula as MathML; one that cannot be read is warned of."""
    try:
        return tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        getLogger(__name__).warning("formula %r: %s", node.astext(), error, location=node)
        return ""


def inline_formula(translator: Any, node: nodes.math) -> None:
    """A formula in a sentence."""
    translator.body.append(mathml(node, block=False))
    raise nodes.SkipNode


def formula(translator: Any, node: nodes.math_block) -> None:
    """A formula on a line of its own."""
    translator.body.append(f'<div class="formula">{mathml(node, block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """What is added to Sphinx."""
    app.add_html_math_renderer("mathml", (inline_formula, None), (formula, None))
    app.connect("autodoc-process-docstring", as_text)
    app.connect("autodoc-process-signature", of_settings)
    app.connect("autodoc-skip-member", leave_out)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
