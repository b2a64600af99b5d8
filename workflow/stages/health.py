"""Verification of a run, from its files alone, and of the machine."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpc.check_mpi import check_mpi
from hpc.check_slurm import check_jobs, check_slurm
from hpc.checks import check_machine, existing
from hpc.errors import CorruptBlock
from hpc.files import atomic_write_json, file_crc
from hpc.ledger import Problem, Receipt
from workflow.provenance import cores, versions
from workflow.rivals import rivals_of
from workflow.runs import Run
from workflow.stages.frames import STAGE as FRAMES
from workflow.stages.frames import mend
from workflow.stages.pipeline import LEDGERS

STEP = re.compile(r"step-\d{8}")
"""Names of the blocks that are checkpoints."""


def verify(run: Run, *, repair: bool = False) -> list[Problem]:
    """Every block whose files or receipt are missing or damaged.

    Args:
        run: the run.
        repair: forget those blocks, so that the next `gfdt run` makes them again.
    """
    found = _verify(run, repair=repair)
    for rival in rivals_of(run).values():
        found += _verify(rival, repair=repair)
    return found


def _verify(run: Run, *, repair: bool) -> list[Problem]:
    found: list[Problem] = []
    for stage in LEDGERS:
        ledger = run.ledger(stage)
        problems = ledger.problems()
        blocks = {problem.block for problem in problems}
        if repair and stage == FRAMES:
            for store in sorted(blocks):
                mend(run, store)
        elif repair and blocks:
            ledger.drop(*blocks)
        found += problems
    return found + _latest(run, repair=repair)


def _latest(run: Run, *, repair: bool) -> list[Problem]:
    """What is wrong with `latest.json`, which must be about a checkpoint that is recorded."""
    path = run.folder / "score" / "latest.json"
    blocks = [block for block in run.ledger("train").done() if STEP.fullmatch(block)]
    known = [receipt for block in blocks if (receipt := _checkpoint(run, block))]
    if not known:
        return []
    texts = {json.dumps(_pointer(receipt), indent=2) + "\n" for receipt in known}
    if path.is_file() and path.read_bytes() in {text.encode() for text in texts}:
        return []
    if repair:
        atomic_write_json(path, _pointer(max(known, key=lambda receipt: receipt.block)))
    return [Problem("latest", str(path.relative_to(run.folder)), "names no recorded checkpoint")]


def _pointer(receipt: Receipt) -> dict[str, Any]:
    """Content of `latest.json` for a checkpoint."""
    (path,) = receipt.files
    return {
        "step": int(receipt.block.removeprefix("step-")),
        "file": path.removeprefix("score/"),
        "crc32c": receipt.files[path],
    }


def _checkpoint(run: Run, block: str) -> Receipt | None:
    """The receipt of a checkpoint; where that is damaged, what it said of a file that is not."""
    with contextlib.suppress(CorruptBlock):
        return run.ledger("train").load(block)
    name = f"score/{block}.pt"
    with contextlib.suppress(OSError):
        return Receipt(block, {name: file_crc(run.folder / name)})
    return None


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
