"""The command `gfdt plan`, which is also `gfdt run --dry-run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workflow.options import (
    HERE,
    Json,
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


def plan(
    experiment: Source,
    site: SiteName = None,
    slurm_dir: SlurmDir = SLURM,
    settings: Settings = None,
    runs: Runs = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Sizes, files, core-hours and, on a cluster, job scripts; writes nothing.

    Example: gfdt plan allen_cahn --site my_site.yaml
    """
    from workflow.opening import open_run
    from workflow.sites import load_site

    said = load_site(site, slurm_dir) if site else None
    run = open_run(experiment, runs, settings or [], said)
    tell_plan(run, as_json, quiet, source=experiment, templates=slurm_dir)


def tell_plan(
    run: Run, as_json: bool, quiet: bool, *, source: str = "", templates: Path = SLURM
) -> None:
    """Print the plan of a run; its job scripts where any of it is a Slurm job."""
    from workflow.stages.jobs import on_a_cluster, plan_jobs, plan_workers, python_path, scripts
    from workflow.stages.plan import plan as plan_of
    from workflow.stages.plan import too_many_files

    found = plan_of(run)
    lines = []
    for key, value in found.items():
        text = f"{value / 2**20:.1f} MiB" if "bytes" in key else str(value)
        lines.append(f"{key.replace('_', ' '):32} {text}")
    warning = too_many_files(run)
    if warning:
        lines.append(f"warning: {warning}")
    if on_a_cluster(run):
        planned = plan_jobs(run, templates=templates, where=python_path(source))
        workers = plan_workers(run)
        lines += ["", *scripts(planned)]
        for title, text in workers.items():
            lines += [f"# ==> {title}", text]
        found["jobs"] = {job.title: job.script for job in planned} | workers
    tell(found | {"warning": warning}, lines, as_json, quiet)
