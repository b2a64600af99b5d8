"""Submit: a run's jobs into Slurm's queue, all or none; and out of it again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hpc import jobs, slurm
from hpc.batch import ENDED
from hpc.errors import LaunchError, MachineError
from hpc.files import atomic_write_bytes
from hpc.lock import run_lock
from workflow.rivals import rivals_of
from workflow.runs import Run
from workflow.stages.frames import lay_down
from workflow.stages.planned_job import PlannedJob


def submit(run: Run, planned: Sequence[PlannedJob], *, command: str) -> list[str]:
    """Submit jobs, each to begin when the one before it succeeded.

    The first is held until Slurm has accepted all, so that nothing begins of a refused chain.

    Args:
        run: the run; its experiment is written into its folder.
        planned: the jobs in order.
        command: the command line, for the provenance.

    Returns:
        Ids of the jobs.

    Raises:
        RunLocked: another process works in the run folder.
        LaunchError: there is no Slurm here, or it refuses a job; nothing is left submitted.
        MachineError: the run has jobs already, or Slurm is too busy.
    """
    if not slurm.available():
        raise LaunchError("no sbatch on this machine: submit where Slurm is, or use gfdt run")
    with run_lock(run.folder):
        refuse_second(run)
        lay_down(run, command=command)
        paths = [_write(run, job) for job in planned]
        ids: list[str] = []
        try:
            for job, path in zip(planned, paths, strict=True):
                ids.append(_submit_one(run, job, path, ids[-1] if ids else None))
        except BaseException:
            slurm.cancel(ids)
            raise
    slurm.release(ids[:1])
    return ids


def _write(run: Run, job: PlannedJob) -> Path:
    path = run.folder.absolute() / "jobs" / f"{job.title}.sbatch"
    atomic_write_bytes(path, job.script.encode())
    job.spec.log.parent.mkdir(parents=True, exist_ok=True)
    return path


def _submit_one(run: Run, job: PlannedJob, path: Path, after: str | None) -> str:
    # Also here, for a template may lack it and options may overrule it.
    options = [f"--job-name={job.spec.name}"]
    if after is None:
        options.append("--hold")
    else:
        options += [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"]
    try:
        job_id = slurm.submit(path, options)
    except LaunchError as error:
        raise LaunchError(f"{error} (job {job.title}, {path}); nothing was submitted") from None
    jobs.record(run.folder, job_id, job.role)
    return job_id


def refuse_second(run: Run) -> None:
    """Refuse a run whose driver is already in the queue.

    Raises:
        MachineError: names the jobs.
    """
    waiting = [(e, j) for e, j in own_jobs(run) if e.role != "worker"]
    if waiting:
        names = ", ".join(f"{j.id} ({e.role}, {j.state})" for e, j in waiting)
        name = run.experiment.name
        raise MachineError(
            f"{run.folder} has jobs already: {names}; see gfdt status {name}, or first: "
            f"gfdt cancel {name}"
        )


def own_jobs(run: Run) -> list[tuple[jobs.Entry, slurm.Job]]:
    """Jobs of a run that wait or run: recorded by it, of this user, and of its name; in order.

    Those of its rivals come last, with the name of the rival in their role.

    Raises:
        LaunchError, MachineError: Slurm did not answer.
    """
    folders = {"": run.folder} | {f" {n}": rival.folder for n, rival in rivals_of(run).items()}
    recorded = {
        name: {entry.id: entry for entry in jobs.read(folder)} for name, folder in folders.items()
    }
    queue = {}
    if any(recorded.values()):
        queue = {job.id: job for job in slurm.jobs() if job.state not in ENDED}
    return [
        (replace(entry, role=entry.role + name), queue[entry.id])
        for name, folder in folders.items()
        for entry in recorded[name].values()
        if entry.id in queue and queue[entry.id].name == jobs.job_name(folder, entry.role)
    ]


ROUNDS = 5
"""Looks for workers that a driver started while it was being cancelled."""


def cancel(run: Run, *, dry_run: bool = False) -> list[tuple[jobs.Entry, slurm.Job]]:
    """Cancel the jobs of a run and its rivals and nobody else's, drivers before their workers.

    Returns:
        The jobs that were, or with `dry_run` would be, cancelled.

    Raises:
        LaunchError, MachineError: Slurm did not answer.
    """
    found: dict[str, tuple[jobs.Entry, slurm.Job]] = {}
    for attempt in range(ROUNDS):
        new = [(e, j) for e, j in own_jobs(run) if j.id not in found]
        if dry_run or not new:
            return [*found.values(), *new]
        new.sort(key=lambda pair: pair[0].role == "worker")
        # Those that wait for others first: else Slurm cancels them meanwhile.
        slurm.cancel([j.id for _, j in reversed(new) if j.state == "PENDING"])
        slurm.cancel([j.id for _, j in new if j.state != "PENDING"])
        found |= {j.id: (e, j) for e, j in new}
        time.sleep(min(1.0, 0.3 * (attempt + 1)))
    return list(found.values())
