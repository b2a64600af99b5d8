"""Workers as Slurm jobs: an encrypted scheduler in this process, jobs that come and go."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import distributed

from hpc import control, slurm
from hpc.credentials import temporary_credentials
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
            text = job_script(
                jobs,
                address,
                name=worker,
                options=credentials.options,
                environment=worker_environment(),
            )
            log = str(log_of(folder, "%j")).replace("%", "%%").replace("%%j", "%j")
            with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
                file.write(text)
                file.flush()
                # Here, not in the text: names of folders hold anything.
                named = [f"--job-name={name}", f"--output={log}", f"--error={log}"]
                job = slurm.submit(Path(file.name), named, patience=0.0)
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


def cancel_named(name: str) -> None:
    """Cancel this user's jobs of that name, which are those of one run folder."""
    with contextlib.suppress(MachineError):
        found = [job.id for job in slurm.jobs(patience=PATIENCE) if job.name == name]
        slurm.cancel(found, patience=PATIENCE)
