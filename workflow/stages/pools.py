"""Where the blocks of a run are computed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import distributed

from hpc.backends import open_client
from hpc.dashboard import dashboard
from hpc.job_script import Jobs
from workflow.machines import PoolConfig
from workflow.provenance import cores
from workflow.runs import Run


def jobs_of(pool: PoolConfig) -> Jobs:
    """What the machine room needs to know of a section of the experiment file."""
    return Jobs(
        min_jobs=pool.min_jobs,
        max_jobs=pool.max_jobs,
        max_pending=pool.max_pending,
        cores=pool.cores,
        memory=pool.memory,
        walltime=pool.walltime,
        queue=pool.queue,
        account=pool.account,
        interface=pool.interface,
        config_name=pool.config_name,
        extra=pool.extra,
        prologue=pool.prologue,
    )


class Pools:
    """The Dask clients of a run: opened when there is work, shared by stages on the same pool.

    Args:
        run: the run.
        blocks: of the longest stage: starting more workers takes seconds for nothing.
        client: the caller's, used in place of all others.
    """

    def __init__(self, run: Run, blocks: int, client: distributed.Client | None = None) -> None:
        self._run, self._blocks, self._client = run, blocks, client
        self._stack = ExitStack()
        self._open: tuple[str, distributed.Client] | None = None

    def __enter__(self) -> Pools:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def of(self, stage: str) -> Callable[[], distributed.Client]:
        """Gives the client of a stage; called only if something is left to do."""
        cluster = self._run.experiment.cluster
        pool = cluster.simulate if stage in ("simulate", "direct") else cluster.analyse
        key = pool.model_dump_json()

        def client() -> distributed.Client:
            if self._open is not None and self._open[0] == key:
                if self._open[1].status == "running":
                    return self._open[1]
            self.release()
            opened = open_client(
                self._client or pool.kind,
                workers=pool.workers or min(cores(), self._blocks),
                jobs=jobs_of(pool),
                log_dir=self._run.folder / "logs",
            )
            self._open = key, self._stack.enter_context(opened)
            self._stack.enter_context(dashboard(self._run.folder, self._open[1]))
            return self._open[1]

        return client

    def release(self) -> None:
        """Close what is open; its cores are wanted elsewhere."""
        self._open = None
        self._stack.close()
