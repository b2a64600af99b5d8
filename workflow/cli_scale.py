"""The command `gfdt scale`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from workflow.interfaces import UserError
from workflow.options import HERE, Json, Name, Quiet, Runs, tell

Most = Annotated[
    int | None, typer.Option("--max-jobs", min=0, help="jobs at most; 0 pauses the run")
]
Fewest = Annotated[
    int | None, typer.Option("--min-jobs", min=0, help="jobs kept even without work")
]


def scale(
    name: Name,
    max_jobs: Most = None,
    min_jobs: Fewest = None,
    runs: Runs = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """More or fewer Slurm jobs for a run that is under way; no block is lost.

    It holds until that driver ends; the next one starts as the experiment says.

    Example: gfdt scale allen_cahn --max-jobs 40
    """
    from hpc.control import Order
    from hpc.control import scale as order
    from workflow.loading import load_run

    if max_jobs is None and min_jobs is None:
        raise UserError("nothing to change; give --max-jobs N or --min-jobs N")
    if None not in (max_jobs, min_jobs) and (min_jobs or 0) > (max_jobs or 0):
        raise UserError(f"--min-jobs {min_jobs} is more than --max-jobs {max_jobs}")
    run = load_run(name, runs)
    state = order(run.folder, Order(max_jobs, min_jobs))
    if state is None:
        tell(None, [f"{name}: asked; the driver has not answered yet"], as_json, quiet)
        return
    line = f"{name}: {state.min_jobs} to {state.max_jobs} jobs; {state.running} running"
    line += f", {state.queued} queued, {state.leaving} ending after their present block"
    tell(asdict(state), [f"{line}; {state.note}" if state.note else line], as_json, quiet)
