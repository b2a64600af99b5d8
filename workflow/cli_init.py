"""The command `gfdt init`."""

from __future__ import annotations

import keyword
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from workflow.interfaces import UserError
from workflow.options import Quiet, tell


class Kind(StrEnum):
    """What is begun."""

    experiment = "experiment"
    system = "system"
    data = "data"
    site = "site"


TEMPLATES = {
    Kind.experiment: ("experiment.yaml",),
    Kind.system: ("system.yaml", "system.py"),
    Kind.data: ("data.yaml",),
    Kind.site: ("site.yaml",),
}
"""Files of each kind; NAME in them becomes the name."""


def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="of the experiment, or of the site")],
    kind: Annotated[Kind, typer.Option(help="what to begin")] = Kind.experiment,
    quiet: Quiet = False,
) -> None:
    """Begin an experiment, a system or data of your own, or a site: files here, to be edited.

    Example: gfdt init my_experiment

    Example: gfdt init my_system --kind system
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UserError(f"'{name}' names files and a module; use letters, digits and _")
    texts = {
        Path(template.replace(template.split(".")[0], name)): files("workflow.templates")
        .joinpath(template)
        .read_text()
        .replace("NAME", name)
        for template in TEMPLATES[kind]
    }
    for path in texts:
        if path.exists():
            raise UserError(f"{path} exists; give another name, or remove it")
    for path, text in texts.items():
        path.write_text(text)
    first = next(iter(texts))
    then = f"gfdt submit EXPERIMENT --site {first}" if kind == Kind.site else f"gfdt run {first}"
    tell(None, [f"wrote {', '.join(map(str, texts))}; then: {then}"], False, quiet)
