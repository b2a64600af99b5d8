"""One Slurm job of a run as a script: its place and size, whatever it does."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpc.jobqueue import place
from hpc.jobs import job_name
from hpc.scripts import JobSpec, render
from workflow.machines import DriverConfig, JobConfig
from workflow.runs import Run
from workflow.sites import SLURM

ROLE_VARIABLE = "GFDT_JOB"
"""Environment variable in which a job finds its role."""


@dataclass(frozen=True)
class PlannedJob:
    """A job of a run.

    Attributes:
        role: as in `hpc.jobs.Entry`.
        title: name of its script and its log.
        spec: what it asks for and does.
        script: the job script.
    """

    role: str
    title: str
    spec: JobSpec
    script: str


def train_job(run: Run, templates: Path, where: Sequence[Path]) -> PlannedJob:
    """The job of the command that trains."""
    config, ranks = run.experiment.cluster.train, run.experiment.score.train.ranks
    size: dict[str, Any] = {
        "tasks": ranks,
        "nodes": 1 if config.kind == "local" else None,
        "tasks_per_node": config.ranks_per_node,
        "cores": config.threads,
        "memory": None if config.memory is None else -(-config.memory // ranks),
        "lead": round(config.signal_lead),
        "requeues": DriverConfig().requeues if config.requeue else 0,
    }
    template = templates / "train.sbatch"
    return planned_job(run, "stage:train", "train", "train", [config], size, template, where)


def followed_train_job(run: Run) -> PlannedJob:
    """The job of a training that a driver waits for: the driver holds the run, the job trains."""
    planned = train_job(run, SLURM, [Path.cwd()])
    spec = replace(
        planned.spec,
        name=job_name(run.folder, "train"),
        command=[sys.executable, "-m", "workflow.stages.train_job", str(run.folder.absolute())],
        environment={**planned.spec.environment, ROLE_VARIABLE: "train"},
        requeues=TRAIN_REQUEUES if run.experiment.cluster.train.requeue else 0,
    )
    return PlannedJob("train", "train", spec, render(SLURM / "train.sbatch", spec))


TRAIN_REQUEUES = 1000
"""Returns to the queue of one training, each of them after progress."""


def _lead(wanted: int, walltime: float | None) -> int:
    """Less where the walltime is short: Slurm may warn a minute too early."""
    return wanted if walltime is None else max(1, min(wanted, int(walltime) // 4))


def planned_job(
    run: Run,
    role: str,
    title: str,
    command: str,
    configs: Sequence[JobConfig],
    size: dict[str, Any],
    template: Path,
    where: Sequence[Path],
) -> PlannedJob:
    """A job that runs a command of `gfdt`; what the experiment leaves open is the site's."""
    walltime = _first(config.walltime for config in configs)
    size["lead"] = _lead(size["lead"], walltime)
    site = place(run.experiment.cluster.simulate.config_name)
    folder = run.folder.absolute()
    experiment = [str(folder / "experiment.yaml"), "--runs", str(folder.parent)]
    spec = JobSpec(
        name=job_name(folder, role),
        log=folder / "logs" / f"{title}-%j.log",
        command=[sys.executable, "-m", "workflow.cli", command, *experiment],
        directory=Path.cwd(),
        environment={"PYTHONPATH": _python_path(where), ROLE_VARIABLE: role},
        walltime=walltime,
        queue=_first(config.queue for config in configs) or site.queue,
        account=_first(config.account for config in configs) or site.account,
        extra=_first(config.extra for config in configs) or site.extra,
        prologue=_first(config.prologue for config in configs) or site.prologue,
        **size,
    )
    return PlannedJob(role, title, spec, render(template, spec))


def _first(values: Any) -> Any:
    return next((value for value in values if value), None)


def _python_path(where: Sequence[Path]) -> str:
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([*map(str, where), *filter(None, before)]))
