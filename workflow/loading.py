"""Runs that are there: found by name or folder, and read."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from workflow.config import parse_experiment
from workflow.interfaces import UserError
from workflow.ownership import refuse_foreign_code
from workflow.runs import Run


def load_run(name: str | Path, runs: Path) -> Run:
    """An existing run by name or folder.

    Raises:
        UserError: there is none.
    """
    folder = folder_of(name, runs)
    try:
        stamp = (folder / "experiment.yaml").stat().st_mtime_ns
    except FileNotFoundError:
        raise UserError(f"{folder} has no experiment.yaml; mend: gfdt repair {name}") from None
    return _load(folder, stamp)


def folder_of(name: str | Path, runs: Path) -> Path:
    """Folder of an existing run by name or folder; errors as `load_run`."""
    for folder in (runs / str(name), Path(name)):
        if (folder / "experiment.yaml").is_file() or (folder / "ledger").is_dir():
            return folder
    near = difflib.get_close_matches(str(name), names_of_runs(runs), n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise UserError(f"no run '{name}' in {runs}; {hint}start it with: gfdt run {name}")


def names_of_runs(runs: Path) -> list[str]:
    """Names of the runs in a folder, sorted."""
    return sorted(path.parent.name for path in runs.glob("*/experiment.yaml"))


@lru_cache(maxsize=8)
def _load(folder: Path, _stamp: int) -> Run:
    experiment = parse_experiment(read_own(folder / "experiment.yaml", yaml.safe_load))
    refuse_foreign_code(folder, experiment)
    provenance = folder / "provenance.json"
    if provenance.is_file():
        for entry in read_own(provenance, json.loads).get("python_path", []):
            if entry not in sys.path:
                sys.path.insert(0, entry)
    return Run(folder, experiment)


def read_own(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """Content of one of the files that a run itself wrote.

    Raises:
        UserError: it is damaged.
    """
    try:
        content = parse(path.read_text())
    except (ValueError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged; remove it and run the experiment's own file again")
    return content
