"""The Slurm jobs of a run: which, how large, and as scripts; nothing is submitted here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from hpc.slurm_pool import planned_worker
from workflow.machines import JobConfig, PoolConfig
from workflow.rivals import learned_of
from workflow.runs import Run
from workflow.sites import SLURM
from workflow.stages.pipeline import expected_blocks
from workflow.stages.planned_job import PlannedJob, planned_job, train_job
from workflow.stages.pools import jobs_of

Driver = Literal["chain", "job"]

LEAD = 120
"""Seconds before its walltime ends at which a driver's job is warned."""


def plan_jobs(
    run: Run, *, driver: Driver = "chain", templates: Path = SLURM, where: Sequence[Path] = ()
) -> list[PlannedJob]:
    """The jobs that finish a run, each of which needs the one before it.

    Args:
        run: the run, checked.
        driver: "chain" has a job for the ensemble, one for training and one for the rest, less
            those that are finished; "job" has one that does it all.
        templates: folder of `driver.sbatch` and `train.sbatch`.
        where: folders from which a user's own modules are imported.

    Raises:
        LaunchError: something cannot stand in a job script.
    """
    cluster = run.experiment.cluster
    if driver == "job":
        return [_driver_job(run, "driver", "driver", "run", _pools(run), templates, where)]
    found = []
    if len(run.ledger("simulate").done()) < expected_blocks(run)["simulate"]:
        pools = [cluster.simulate]
        found.append(
            _driver_job(run, "stage:simulate", "simulate", "simulate", pools, templates, where)
        )
    if not all(one.is_trained for one in learned_of(run).values()):
        found.append(train_job(run, templates, where))
    pools = [cluster.analyse, *([cluster.simulate] if _has_pairs(run) else [])]
    return [
        *found,
        _driver_job(run, "stage:analyse", "analyse", "run", pools, templates, where),
    ]


def plan_workers(run: Run) -> dict[str, str]:
    """What submits one worker of each pool of Slurm jobs, by "worker of" and its section.

    Raises:
        LaunchError: the site's configuration cannot be used.
    """
    pools = {"simulate": run.experiment.cluster.simulate, "analyse": run.experiment.cluster.analyse}
    return {
        f"worker of {section}": planned_worker(jobs_of(pool), run.folder)
        for section, pool in pools.items()
        if pool.kind == "slurm"
    }


def on_a_cluster(run: Run) -> bool:
    """Whether any stage is to run as a Slurm job."""
    cluster = run.experiment.cluster
    return any(c.kind != "local" for c in (cluster.simulate, cluster.train, cluster.analyse))


def _has_pairs(run: Run) -> bool:
    return "direct" in run.experiment.response.estimators


def _pools(run: Run) -> list[PoolConfig]:
    """All that a driver of the whole run may have to be, ranks beside it included."""
    cluster, train = run.experiment.cluster, run.experiment.cluster.train
    pools = [cluster.simulate, cluster.analyse]
    if train.kind == "local" and learned_of(run):
        cores = run.experiment.score.train.ranks * train.threads
        pools.append(PoolConfig(cores=cores, memory=train.memory))
    return pools


def _driver_job(
    run: Run,
    role: str,
    title: str,
    command: str,
    pools: Sequence[PoolConfig],
    templates: Path,
    where: Sequence[Path],
) -> PlannedJob:
    """A job that holds a driver, and the workers of its pools unless these are jobs themselves."""
    config = run.experiment.cluster.driver
    here = [pool for pool in pools if pool.kind != "slurm"]
    wide = [pool for pool in here if pool.kind == "allocation"]
    tasks = max((pool.max_jobs for pool in wide), default=1)
    size: dict[str, Any] = {
        "tasks": tasks,
        "nodes": 1 if not wide else None,
        "cores": max([config.cores, *(pool.workers or pool.cores or 1 for pool in here)]),
        "memory": max((c.memory for c in (config, *here) if c.memory), default=None),
        "lead": LEAD,
        "requeues": config.requeues,
    }
    # A computing driver is placed as its pool, a waiting one as drivers are.
    places: list[JobConfig] = [*here[:1], config]
    return planned_job(run, role, title, command, places, size, templates / "driver.sbatch", where)


def python_path(source: str) -> list[Path]:
    """Folders from which modules named in an experiment file are imported."""
    where = Path(source).resolve().parent if Path(source).suffix else Path.cwd()
    return list(dict.fromkeys([where, Path.cwd()]))


def scripts(planned: Sequence[PlannedJob]) -> list[str]:
    """The job scripts as text for people."""
    told = []
    for number, job in enumerate(planned):
        after = f" after {planned[number - 1].title}" if number else ""
        told += [f"# ==> {job.title}.sbatch{after}", job.script]
    return told
