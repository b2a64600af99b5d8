"""How the pages are built: `make docs`, warnings are errors."""

from __future__ import annotations

import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

from contracts import write_contracts  # noqa: E402

project = "gfdt-workflow"
author = "the gfdt-workflow developers"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb"]
html_theme = "furo"
html_title = "gfdt-workflow"
exclude_patterns = ["_build", "_generated"]
nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_ivar = True
# Results that are included link to files beside them.
suppress_warnings = ["myst.header"]

GENERATED = DOCS / "_generated"


def literal(_app, _what, _name, _object, _options, lines):
    """Docstrings are plain text: indented lines are formulas, and no character is markup."""
    made, fenced = [], False
    section = False
    for number, text in enumerate(lines):
        indented = text.startswith("    ") and not section
        section = section or bool(re.fullmatch(r"(Args|Returns|Raises|Attributes|Source):.*", text))
        if indented and not fenced and (number == 0 or not lines[number - 1].strip()):
            made += [".. code-block:: text", ""]
            fenced = True
        elif text.strip() and not indented:
            fenced = False
        made.append(text if fenced or text.startswith((">>>", "...")) else _escaped(text))
    lines[:] = made


def _escaped(text: str) -> str:
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        f"`{part}`" if part.startswith("`") else re.sub(r"([*|])|_(?=\W|$)", _escape, part)
        for part in parts
    )


def _escape(found: re.Match[str]) -> str:
    return f"\\{found[0]}"


def methods(_app, name, content):
    """Pages that the index does not name are those of the generative methods."""
    if name == "index":
        named = set(re.findall(r"^[a-z_]+$", content[0], re.MULTILINE)) | {"index"}
        others = sorted(page.stem for page in DOCS.glob("*.md") if page.stem not in named)
        content[0] = content[0].replace("METHODS\n", "".join(f"{one}\n" for one in others))


def setup(app):
    """Called by Sphinx."""
    write_contracts(DOCS.parent, GENERATED)
    app.connect("autodoc-process-docstring", literal, priority=100)
    app.connect("source-read", methods)
