"""The commands `gfdt submit` and `gfdt cancel`."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from workflow.options import (
    HERE,
    DryRun,
    Force,
    Json,
    Name,
    Quiet,
    Runs,
    Settings,
    SiteName,
    SlurmDir,
    Source,
    tell,
)
from workflow.sites import SLURM

if TYPE_CHECKING:
    from workflow.runs import Run
    from workflow.stages.planned_job import PlannedJob


class Driver(StrEnum):
    """Who drives the stages of a submitted run."""

    chain = "chain"
    job = "job"


def submit(
    experiment: Source,
    driver: Annotated[
        Driver, typer.Option(help="chain: a job for each stage; job: one for all")
    ] = Driver.chain,
    site: SiteName = None,
    slurm_dir: SlurmDir = SLURM,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the job scripts and write nothing")
    ] = False,
    force: Force = False,
    settings: Settings = None,
    runs: Runs = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The stages of an experiment as Slurm jobs, each waiting for the one before it.

    With --driver job one small job runs all stages and starts the others. What is finished is
    skipped, so the same command continues.

    Example: gfdt submit allen_cahn --site my_site.yaml --dry-run
    """
    from workflow.opening import open_run
    from workflow.sites import load_site, overruled
    from workflow.stages.jobs import plan_jobs, python_path, scripts
    from workflow.stages.plan import refuse_many_files
    from workflow.stages.submit import submit as submit_jobs

    said = load_site(site, slurm_dir) if site else None
    run = open_run(experiment, runs, settings or [], said)
    where = python_path(experiment)
    planned = plan_jobs(run, driver=driver.value, templates=slurm_dir, where=where)
    if not force:
        refuse_many_files(run)
    notes = overruled(run.experiment, said or {})
    ids: list[str] = []
    if not dry_run:
        ids = submit_jobs(run, planned, command=" ".join(sys.argv))
    lines = [*notes, *(scripts(planned) if dry_run else _submitted(run, planned, ids))]
    found = [
        {"id": ids[i] if ids else None, "role": job.role, "name": job.spec.name}
        | ({"script": job.script} if dry_run else {})
        for i, job in enumerate(planned)
    ]
    tell({"run": str(run.folder), "jobs": found, "notes": notes}, lines, as_json, quiet)


def _submitted(run: Run, planned: list[PlannedJob], ids: list[str]) -> list[str]:
    lines = []
    for number, (job_id, job) in enumerate(zip(ids, planned, strict=True)):
        after = f", after {ids[number - 1]}" if number else ""
        lines.append(f"job {job_id}: {job.title}{after}")
    name = run.experiment.name
    runs = "" if run.folder.parent == HERE else f" --runs {run.folder.parent}"
    lines.append(f"watch: gfdt status {name}{runs} --watch; stop: gfdt cancel {name}{runs}")
    return lines


def cancel(
    name: Name,
    dry_run: DryRun = False,
    runs: Runs = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take the jobs of a run out of Slurm's queue; nobody else's. What is done is kept.

    Example: gfdt cancel allen_cahn --dry-run
    """
    from workflow.loading import load_run
    from workflow.stages.submit import cancel as cancel_jobs

    run = load_run(name, runs)
    found = cancel_jobs(run, dry_run=dry_run)
    done = "would cancel" if dry_run else "cancelled"
    lines = [f"{done} job {job.id} ({entry.role}, was {job.state})" for entry, job in found]
    jobs = [{"id": job.id, "role": entry.role, "state": job.state} for entry, job in found]
    tell({"run": str(run.folder), "cancelled": jobs}, lines or ["no jobs"], as_json, quiet)
