"""The machine sections of the experiment file: where stages run and what faults they bear.

They say nothing about the science and may change on an existing run. What is left unset comes
from the user's own dask configuration (`jobqueue.slurm`), so that a site is described once.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from workflow.schema import Bytes, Line, Seconds, Strict, Word


class JobConfig(Strict):
    """What one Slurm job asks for; unset is left to the site."""

    # A worker holds 450 MiB before it has any data; Dask pauses it for good at four fifths.
    memory: Bytes | None = Field(None, ge=2**30, description="of one job, such as 4GiB")
    walltime: Seconds | None = Field(None, ge=60, description="such as 01:00:00")
    queue: Word | None = Field(None, description="Slurm partition")
    account: Word | None = None
    extra: tuple[Line, ...] = Field((), description="further sbatch options, as --qos=long")
    prologue: tuple[Line, ...] = Field((), description="shell lines before work, as module loads")


class PoolConfig(JobConfig):
    """Where Dask tasks run: processes of this machine, Slurm jobs, or one Slurm allocation.

    `local` starts `workers` processes here. `slurm` starts workers as jobs of their own, from
    `min_jobs` to `max_jobs` as there is work, no more than `max_pending` of them waiting in the
    queue. `allocation` starts one worker on every task of the Slurm allocation it is called in.
    """

    kind: Literal["local", "slurm", "allocation"] = "local"
    workers: int | None = Field(None, ge=1, description="local; default: one per core")
    min_jobs: int = Field(0, ge=0)
    max_jobs: int = Field(20, ge=1)
    max_pending: int = Field(5, ge=1)
    cores: int | None = Field(None, ge=1, description="of one job; one worker thread each")
    interface: Word | None = Field(None, description="network of scheduler and workers, as ib0")
    config_name: Word = Field("slurm", description="section of the dask jobqueue configuration")

    @model_validator(mode="after")
    def _ordered(self) -> PoolConfig:
        if self.min_jobs > self.max_jobs:
            raise ValueError(f"min_jobs={self.min_jobs} is more than max_jobs={self.max_jobs}")
        return self


class TrainingMachineConfig(JobConfig):
    """Where training ranks run: beside this process, or as a Slurm job of their own."""

    kind: Literal["local", "slurm"] = "local"
    launcher: Literal["auto", "srun-pmi2", "srun-pmix", "mpiexec"] = "auto"
    ranks_per_node: int | None = Field(None, ge=1)
    threads: int = Field(1, ge=1, description="of one rank")
    signal_lead: Seconds = Field(120.0, ge=1, description="warning before the walltime ends")
    max_restarts: int = Field(5, ge=0, description="within one allocation")
    requeue: bool = True


class DriverConfig(JobConfig):
    """The job of a driver, for `gfdt submit`; where it computes itself, it asks for that too."""

    cores: int = Field(1, ge=1)
    requeues: int = Field(20, ge=0, description="times it is continued after its walltime")


class ClusterConfig(Strict):
    """Machines by stage."""

    simulate: PoolConfig = PoolConfig()
    train: TrainingMachineConfig = TrainingMachineConfig()
    analyse: PoolConfig = PoolConfig()
    driver: DriverConfig = DriverConfig()


class FaultsConfig(Strict):
    """What a run bears before it gives up."""

    segment_attempts: int = Field(3, ge=1, description="failures of one block")
    lease: Seconds = Field(60.0, ge=2, description="silence after which a driver counts as dead")
    watchdog: Seconds = Field(600.0, ge=5, description="silence after which training ranks end")
