"""One big allocation: a worker on every Slurm task of the job that this process runs in."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import distributed

from hpc import slurm
from hpc.credentials import temporary_credentials
from hpc.deadline import DEADLINE, START
from hpc.errors import LaunchError, MachineError
from hpc.job_script import DEATH_TIMEOUT, LEAVING, Jobs, Lifetime, worker_environment
from hpc.pool import Lent
from hpc.scheduler import open_scheduler

RESTARTS = 100
"""How often a task of `srun` starts its killed worker again."""

LOOP = (
    'n=0; until "$@"; do [ $? -gt 128 ] && n=$((n + 1)) && [ $n -lt "$RESTARTS" ] || exit 1; done'
)
"""What every task of `srun` runs; one that ends by itself found no scheduler."""


class Allocation(Lent):
    """The workers of one `srun`, which end with the allocation."""

    def __init__(
        self, client: distributed.Client, step: subprocess.Popen[bytes], log: Path
    ) -> None:
        super().__init__(client)
        self._step, self._log = step, log
        self._gone: set[str] = set()

    def declined(self, address: str) -> None:
        """Let the worker go; there will be no other."""
        self._gone.add(address)
        super().declined(address)

    def waiting(self) -> bool:
        """Whether the workers' processes are there.

        Raises:
            MachineError: all have left since the allocation ends, or `srun` failed.
        """
        left = self._client.nthreads().keys() - self._gone
        if self._gone and not left:
            raise MachineError(
                "the Slurm allocation ends too soon for another block; run again in a new one"
            )
        if self._step.poll() is not None and not left:
            raise MachineError(f"srun ended with code {self._step.returncode}; see {self._log}")
        return True


@contextlib.contextmanager
def allocation_client(jobs: Jobs, *, workers: int, log_dir: Path) -> Iterator[distributed.Client]:
    """One worker on every task of this Slurm allocation, the scheduler in this process.

    A killed worker is started again where it was.

    Args:
        jobs: memory, interface and prologue are used; the rest is the allocation's.
        workers: not used; the allocation has as many tasks as it has.
        log_dir: folder `logs` of the run folder, which all nodes see.

    Raises:
        LaunchError: this process is in no Slurm allocation.
        MachineError: the scheduler cannot be started.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        raise LaunchError(
            "cluster kind 'allocation' is for use inside a Slurm job: start it by sbatch or "
            "salloc, or use kind slurm, which submits jobs itself"
        )
    log_dir.mkdir(parents=True, exist_ok=True)
    log = log_dir.resolve() / f"workers-{job}.log"
    with contextlib.ExitStack() as stack:
        credentials = stack.enter_context(temporary_credentials(log_dir.parent))
        cluster, client = stack.enter_context(open_scheduler(credentials, jobs.interface, {}))
        command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address]
        command += ["--nthreads", str(threads(os.environ)), "--nanny", *credentials.options]
        command += LEAVING
        command += ["--death-timeout", str(DEATH_TIMEOUT), "--dashboard-address", "127.0.0.1:0"]
        command += ["--memory-limit", str(jobs.memory or "auto")]
        if jobs.interface:
            command += ["--interface", jobs.interface]
        step = stack.enter_context(_step(command, jobs.prologue, job, log))
        client.pool = Allocation(client, step, log)
        yield client


@contextlib.contextmanager
def _step(
    command: list[str], prologue: tuple[str, ...], job: str, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command on every task; ended with the context."""
    text = "\n".join([*prologue, f"RESTARTS={RESTARTS}", LOOP])
    left = time_left(job)
    environment = os.environ | worker_environment()
    if left is not None:
        life, now = Lifetime(left), time.time()
        environment |= {START: f"{now:.0f}", DEADLINE: f"{now + life.walltime - life.margin:.0f}"}
    # `--overlap`: this process may sit in a step of its own. A killed worker ends no other.
    step = ["srun", "--overlap", "--kill-on-bad-exit=0", "--wait=0", "bash", "-c", text, "worker"]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*step, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the driver
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def threads(environment: Mapping[str, str]) -> int:
    """Worker threads of one task of the allocation."""
    return int(environment.get("SLURM_CPUS_PER_TASK") or 1)


def time_left(job: str) -> float | None:
    """Seconds until a job ends, None if it has no limit or Slurm does not say."""
    end = os.environ.get("SLURM_JOB_END_TIME")  # since Slurm 23
    if end is not None:
        return float(end) - time.time()
    with contextlib.suppress(MachineError):
        for found in slurm.jobs([job]):
            return slurm.duration(found.left)
    return None
