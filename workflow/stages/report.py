"""Report: summary.json, and the page with the pictures."""

from __future__ import annotations

from typing import Any

from hpc.files import atomic_write_json
from hpc.stores import open_store
from workflow.runs import Notify, Run
from workflow.stages.summary import summarise


def report(run: Run, notify: Notify) -> None:
    """Write `report/`."""
    notify("report", 0, 1)
    response = open_store(run.response).load()
    summary: dict[str, Any] = summarise(run, response)
    atomic_write_json(run.folder / "report" / "summary.json", summary)
    notify("report", 1, 1)
