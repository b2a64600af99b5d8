"""Status and verification of a run, from its files alone, and of the machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpc.checks import check_machine
from hpc.ledger import Problem
from workflow.runs import Run, cores, versions, wall_times
from workflow.stages.pipeline import LEDGERS, expected_blocks


def status(run: Run) -> dict[str, Any]:
    """Blocks done of each stage, training steps, and whether there is a report."""
    stages = {
        stage: {"done": len(run.ledger(stage).done()), "blocks": blocks}
        for stage, blocks in expected_blocks(run).items()
    }
    done = run.ledger("train").done()
    steps = max((int(block[5:]) for block in done if block.startswith("step-")), default=0)
    if run.experiment.score.estimator == "neural":
        # Training may have stopped early.
        total = steps if "neural" in done else run.experiment.score.train.steps
        stages["train"] = {"done": steps, "blocks": total}
    page = run.folder / "report" / "index.html"
    return {
        "name": run.experiment.name,
        "folder": str(run.folder),
        "stages": stages,
        "wall_seconds": wall_times(run),
        "report": str(page) if page.is_file() else None,
    }


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
