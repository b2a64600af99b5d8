"""The text of a worker's Slurm job: the site's own dask configuration, and what is set above it."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import dask
import dask.utils
import yaml

from hpc import slurm
from hpc.deadline import DEADLINE, START
from hpc.errors import LaunchError, MachineError
from hpc.rank import ONE_THREAD
from hpc.scripts import slurm_time

USUAL = {"cores": 1, "memory": "4GiB", "walltime": "00:30:00"}
"""Where neither the experiment nor the site says anything."""

DEATH_TIMEOUT = 300
"""Seconds that a worker looks for its scheduler; busy networks need more than Dask's 60."""
LEAVING = ("--preload-nanny", "hpc.orphans")
"""Options of a worker: one whose driver has died does not look for it so long."""


@dataclass(frozen=True)
class Jobs:
    """What worker jobs ask for, and how many there may be; None is left to the site.

    Attributes:
        min_jobs: jobs kept while the pool is open.
        max_jobs: jobs at most.
        max_pending: jobs waiting in the queue at most.
        cores: of one job; one worker thread each.
        memory: bytes of one job.
        walltime: seconds of one job.
        queue: partition.
        account: who pays.
        interface: network of scheduler and workers, as ib0.
        config_name: section of the dask configuration below `jobqueue`.
        extra: further options of sbatch.
        prologue: shell lines before the worker starts.
    """

    min_jobs: int = 0
    max_jobs: int = 20
    max_pending: int = 5
    cores: int | None = None
    memory: int | None = None
    walltime: float | None = None
    queue: str | None = None
    account: str | None = None
    interface: str | None = None
    config_name: str = "slurm"
    extra: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lifetime:
    """How a job's walltime is used.

    Attributes:
        walltime: seconds until Slurm kills the job.
        margin: seconds before that in which a worker says goodbye.
        stagger: workers end up to so many seconds earlier, not all at once.
    """

    walltime: float

    @property
    def margin(self) -> float:
        """A tenth of the walltime, 5 minutes at most."""
        return min(300.0, 0.1 * self.walltime)

    @property
    def stagger(self) -> float:
        """Half the margin."""
        return self.margin / 2

    @property
    def seconds(self) -> float:
        """Seconds of work that every worker has."""
        return self.walltime - self.margin - 2 * self.stagger


def site(jobs: Jobs) -> dict[str, Any]:
    """The site's section of the dask configuration, completed by what dask-jobqueue ships.

    Raises:
        LaunchError: there is no such section.
    """
    known = {"slurm": {}} | dask.config.get("jobqueue", {})
    if jobs.config_name not in known:
        names = ", ".join(sorted(known))
        raise LaunchError(
            f"no section jobqueue.{jobs.config_name} in the dask configuration; there are {names}; "
            "set config_name of the cluster section to one of them"
        )
    found = {k.replace("_", "-"): v for k, v in known[jobs.config_name].items()}
    return _shipped() | USUAL | {k: v for k, v in found.items() if v is not None}


@cache
def _shipped() -> dict[str, Any]:
    _slurm_job()  # in the right thread
    text = files("dask_jobqueue").joinpath("jobqueue.yaml").read_text()
    return dict(yaml.safe_load(text)["jobqueue"]["slurm"])


def lifetime(jobs: Jobs) -> Lifetime:
    """How long a job lasts. Errors as `site`."""
    if jobs.walltime:
        return Lifetime(jobs.walltime)
    said = site(jobs)["walltime"]
    seconds = slurm.duration(str(said))
    if seconds is None:
        raise LaunchError(
            f"walltime {said!r} of jobqueue.{jobs.config_name} in the dask configuration is no "
            "duration; write it like '01:00:00'"
        )
    return Lifetime(seconds)


def memory(jobs: Jobs) -> int:
    """Bytes of a job. Errors as `site`."""
    return jobs.memory or int(dask.utils.parse_bytes(site(jobs)["memory"]))


def job_script(
    jobs: Jobs,
    scheduler: str,
    *,
    name: str,
    options: tuple[str, ...],
    environment: Mapping[str, str],
) -> str:
    """Text of the job of one worker.

    Args:
        jobs: what the job asks for.
        scheduler: address.
        name: of the worker.
        options: further options of the command `dask worker`.
        environment: further environment variables.

    Raises:
        LaunchError: the site's configuration cannot be used.
    """
    usual, life = site(jobs), lifetime(jobs)
    directives = usual["job-extra-directives"]
    # From the job's own start: a worker may wait in the queue for days.
    end = f"$(( GFDT_END - {round(life.walltime - life.seconds)} ))"
    before = [
        f"export {START}=$(date +%s)",
        f"GFDT_END=${{SLURM_JOB_END_TIME:-$(( {START} + {round(life.walltime)} ))}}",
        f"export {DEADLINE}={end}",
        *(f"export {key}={shlex.quote(value)}" for key, value in environment.items()),
    ]
    worker = [
        *usual["worker-extra-args"],
        *map(shlex.quote, options),
        *LEAVING,
        *("--lifetime", f"{round(life.seconds + life.stagger)}s"),
        *("--lifetime-stagger", f"{round(life.stagger)}s"),
        # On the loopback: other users of the node are not to read it.
        *("--dashboard-address", "127.0.0.1:0"),
    ]
    try:
        # Complete, also where a section of the site's own lacks a key.
        with dask.config.set({f"jobqueue.{jobs.config_name}": usual}):
            job = _slurm_job()(
                scheduler,
                name=name,
                config_name=jobs.config_name,
                cores=jobs.cores or usual["cores"],
                # "1GB" would be 954 MiB to Slurm.
                memory=f"{memory(jobs) // 2**20}MiB",
                processes=1,  # Dask loses jobs of several for good
                walltime=slurm_time(life.walltime),
                queue=jobs.queue,
                account=jobs.account,
                interface=jobs.interface,
                death_timeout=max(
                    DEATH_TIMEOUT, dask.utils.parse_timedelta(usual["death-timeout"])
                ),
                python=usual["python"] or shlex.quote(sys.executable),
                worker_extra_args=worker,
                # A job that comes back would be a second worker of the same name.
                job_extra_directives=[*directives, "-N 1", "--no-requeue", *jobs.extra],
                job_script_prologue=[*before, *usual["job-script-prologue"], *jobs.prologue],
            )
    except (KeyError, TypeError, ValueError) as error:
        raise LaunchError(
            f"jobqueue.{jobs.config_name} of the dask configuration cannot be used: {error}"
        ) from error
    return str(job.job_script())


def worker_environment() -> dict[str, str]:
    """Environment of a worker before it imports anything."""
    return ONE_THREAD | {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "60s"}


@cache
def _slurm_job() -> Any:
    """dask-jobqueue's description of a Slurm job; its import takes over Ctrl-C, which is undone."""
    if threading.current_thread() is not threading.main_thread():
        raise MachineError("Slurm pools can be opened from the main thread only")
    before = signal.getsignal(signal.SIGINT)
    try:
        from dask_jobqueue.slurm import SLURMJob
    finally:
        signal.signal(signal.SIGINT, before)
    return SLURMJob
