"""Workers as Slurm jobs: an encrypted scheduler in this process, jobs that come and go."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

import distributed

from hpc import control, slurm
from hpc.credentials import PREFIX, temporary_credentials, tls_options
from hpc.errors import LaunchError, MachineError
from hpc.job_script import Jobs, job_script, lifetime, site, worker_environment
from hpc.jobs import job_name, record
from hpc.scheduler import open_scheduler
from hpc.supervisor import Supervisor, log_of

ROLE = "worker"

PATIENCE = 30.0
"""Seconds for a busy Slurm to cancel jobs, which end by themselves some time later."""


@contextlib.contextmanager
def slurm_client(jobs: Jobs, *, workers: int, log_dir: Path) -> Iterator[distributed.Client]:
    """Workers as Slurm jobs, none before `Pool.want`; all are cancelled at the end.

    Args:
        jobs: what they ask for, and how many there may be.
        workers: not used; `jobs` bounds their number.
        log_dir: folder `logs` of the run folder, which all nodes see.

    Raises:
        LaunchError: there is no Slurm here, or the site's configuration cannot be used.
        MachineError: the scheduler cannot be started.
    """
    folder = log_dir.parent.resolve()
    if not slurm.available():
        raise LaunchError(
            "no sbatch, squeue and scancel on this machine: run where Slurm is, or set the cluster "
            "kind to local"
        )
    log_dir.mkdir(parents=True, exist_ok=True)
    options = site(jobs)["scheduler-options"] or {}
    interface = jobs.interface or site(jobs)["interface"]
    name = job_name(folder, ROLE)
    control.forget(folder)
    cancel_named(name)  # of a driver that was killed
    with contextlib.ExitStack() as stack:
        credentials = stack.enter_context(temporary_credentials(folder))
        cluster, client = stack.enter_context(open_scheduler(credentials, interface, options))
        address = cluster.scheduler_address

        def submit(worker: str) -> str:
            text = worker_script(jobs, address, worker, credentials.options)
            with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
                file.write(text)
                file.flush()
                job = slurm.submit(Path(file.name), submit_options(folder), patience=0.0)
            record(folder, job, ROLE)
            return job

        pool = Supervisor(client, cluster, jobs, submit, folder, lifetime(jobs).seconds)
        client.pool = pool
        pool.start()
        try:
            yield client
        finally:
            left = pool.stop()
            control.forget(folder)
            with contextlib.suppress(MachineError):
                slurm.cancel(left, patience=PATIENCE)
            cancel_named(name)  # one whose sbatch was interrupted is in no list


def worker_script(jobs: Jobs, address: str, worker: str, options: tuple[str, ...]) -> str:
    """Text of the job of a worker of that name, for a scheduler at that address.

    Raises:
        LaunchError: the site's configuration cannot be used.
    """
    return job_script(jobs, address, name=worker, options=options, environment=worker_environment())


def submit_options(folder: Path) -> list[str]:
    """Options of sbatch for the workers of a run folder.

    Not in the script: names of folders hold anything.
    """
    log = str(log_of(folder, "%j")).replace("%", "%%").replace("%%j", "%j")
    return [f"--job-name={job_name(folder, ROLE)}", f"--output={log}", f"--error={log}"]


def planned_worker(jobs: Jobs, folder: Path) -> str:
    """The command and the text that submit a worker of a run which has no scheduler yet.

    Errors as `worker_script`.
    """
    folder = folder.resolve()
    options = tls_options(folder / f"{PREFIX}XXXX")
    text = worker_script(jobs, "tls://DRIVER:PORT", "worker-N", options)
    return f"# {shlex.join(['sbatch', *submit_options(folder)])}\n{text}"


def cancel_named(name: str) -> None:
    """Cancel this user's jobs of that name, which are those of one run folder."""
    with contextlib.suppress(MachineError):
        found = [job.id for job in slurm.jobs(patience=PATIENCE) if job.name == name]
        slurm.cancel(found, patience=PATIENCE)
