"""Verification of a run, from its files alone, and of the machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpc.checks import check_machine
from hpc.ledger import Problem
from workflow.runs import Run, cores, versions
from workflow.stages.pipeline import LEDGERS


def verify(run: Run, *, repair: bool = False) -> list[Problem]:
    """Every block whose files or receipt are missing or damaged.

    Args:
        run: the run.
        repair: forget those blocks, so that the next `gfdt run` makes them again.
    """
    found: list[Problem] = []
    for stage in LEDGERS:
        ledger = run.ledger(stage)
        problems = ledger.problems()
        if repair:
            for block in {p.block for p in problems}:
                ledger.drop(block)
        found += problems
    return found


def examine(runs: Path) -> dict[str, Any]:
    """Versions, cores, and whether MPI and the file system of the runs do what they must."""
    checks = check_machine(runs, distribution="gfdt-workflow")
    return {
        "versions": versions(),
        "cores": cores(),
        "checks": {check.name: asdict(check) for check in checks},
    }
