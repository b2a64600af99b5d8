"""Verification of a run, from its files alone, and of the machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpc.check_mpi import check_mpi
from hpc.check_slurm import check_jobs, check_slurm
from hpc.checks import check_machine, existing
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


def examine(runs: Path, *, mpi: bool = False, slurm: bool = False) -> dict[str, Any]:
    """Versions, cores, and whether this machine does what it must.

    Args:
        runs: where run folders live.
        mpi: look at MPI alone.
        slurm: look at Slurm alone, or beside MPI, and have a small job try things.
    """
    checks = []
    if not (mpi or slurm):
        checks += check_machine(runs, distribution="gfdt-workflow")
    if mpi or not slurm:
        checks += check_mpi()
    if slurm or not mpi:
        checks.append(check_slurm(needed=slurm))
    if slurm and checks[-1].ok:
        checks += check_jobs(existing(runs))
    return {
        "versions": versions(),
        "cores": cores(),
        "checks": {check.name: asdict(check) for check in checks},
    }
