"""Several finished runs on one page."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc.errors import MachineError
from hpc.files import atomic_write_bytes
from hpc.stores import open_store
from workflow.config import flatten
from workflow.figures.comparison import comparison, curves_of_runs
from workflow.interfaces import UserError
from workflow.runs import Run

SHOWN = ("seed", "system", "data", "ensemble", "score", "response", "direct")
"""Sections of an experiment in which runs are told apart; others change no number."""


def compare(runs: Sequence[Run], folder: Path) -> Path:
    """Write `index.html` about several runs.

    Args:
        runs: two at least, each with a report.
        folder: where the page goes; made if absent.

    Returns:
        The page.

    Raises:
        UserError: the same run twice.
        MachineError: a run without a report.
    """
    names = _names(runs)
    summaries = {name: _summary(run) for name, run in zip(names, runs, strict=True)}
    folder.mkdir(parents=True, exist_ok=True)
    responses = {n: open_store(r.response) for n, r in zip(names, runs, strict=True)}
    figure = curves_of_runs(responses, folder)
    text = comparison(
        summaries,
        differences=differences(runs),
        reports={
            name: os.path.relpath(run.folder / "report" / "index.html", folder)
            for name, run in zip(names, runs, strict=True)
        },
        figures=[figure] if figure else [],
        folder=folder,
    )
    atomic_write_bytes(folder / "index.html", text.encode())
    return folder / "index.html"


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Keys of the experiments that differ, with each run's value."""
    flat = [flatten(_shown(run)) for run in runs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    values = {key: [str(one.get(key, "–")) for one in flat] for key in keys}
    return {key: told for key, told in values.items() if len(set(told)) > 1}


def _shown(run: Run) -> dict[str, Any]:
    dumped = run.experiment.model_dump(mode="json")
    return {key: dumped[key] for key in SHOWN if dumped.get(key) is not None}


def _names(runs: Sequence[Run]) -> list[str]:
    folders = [run.folder.resolve() for run in runs]
    if len(set(folders)) < len(folders):
        raise UserError("the same run is given twice; name different ones")
    names = [run.experiment.name for run in runs]
    same = len(set(names)) < len(names)
    return [str(run.folder) for run in runs] if same else names


def _summary(run: Run) -> dict[str, Any]:
    path = run.folder / "report" / "summary.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        name = run.experiment.name
        raise MachineError(f"{run.folder} has no report yet; first: gfdt run {name}") from None
    except ValueError as error:
        raise MachineError(f"{path} is damaged: {error}; again: gfdt report RUN") from error
    return found
