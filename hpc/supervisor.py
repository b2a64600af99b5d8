"""As many worker jobs as there is work: one lost is one replaced, one too many is let go."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import distributed

from hpc import control, slurm
from hpc.deadline import leave
from hpc.errors import LaunchError, MachineError, StoreError
from hpc.job_script import Jobs

TICK = 1.0
"""Seconds between two looks at the workers, which cost Slurm nothing."""

LOOKS = (3.0, 60.0)
"""Seconds between two questions to Slurm: after a change, and while nothing happens."""

RETRIES = (1.0, 10.0)
"""Seconds between tries of a failing sbatch, first and at most."""

SETTLE = 6.0
"""Seconds of less work before workers are let go: the next stage may want them."""

ALIVE = frozenset(
    "PENDING CONFIGURING RUNNING SUSPENDED STOPPED RESIZING REQUEUED SIGNALING".split()
)
"""States of a job that may still give a worker."""

INNOCENT = frozenset("CANCELLED COMPLETING NODE_FAIL PREEMPTED REVOKED".split())
"""States of a job that others ended, or whose end is not judged yet."""

NEVER = re.compile(
    r"\(?(BadConstraints|Invalid\w+|Partition(Time|Node)Limit|\w*Max\w*PerJob\w*)\)?"
)
"""Reasons for waiting that do not pass."""

HOPELESS = 3
"""Jobs in a row that end before their worker came, after which a pool gives up."""

BARREN = 2
"""Jobs in a row that lived to their end without any block done."""

FRUITLESS = 30
"""Jobs that may end without any block done, for whatever reason, beyond two for each allowed."""

FAILURES = 60
"""Looks in a row that may fail for reasons nobody thought of."""

SILENCE = 900.0
"""Seconds without an answer of Slurm, and without any worker, after which a pool gives up."""

MUTE = 400.0
"""Seconds after which a running job without worker is cancelled; longer than its own patience."""

LOG = logging.getLogger("distributed.gfdt")


@dataclass
class _Job:
    """One worker job; `address` while its worker is known to the scheduler, `seen` when it was."""

    id: str
    submitted: float
    address: str | None = None
    born: float | None = None
    leaving: bool = False
    state: str = "PENDING"
    reason: str = ""
    seen: float | None = None
    worked: bool = False


class Supervisor(threading.Thread):
    """Keeps the number of worker jobs between bounds, as there is work.

    Args:
        client: client of the scheduler in this process.
        cluster: holder of that scheduler.
        jobs: bounds.
        submit: submits the job of the worker of that name and returns its id.
        folder: run folder; for orders, and where logs are.
        lifetime: seconds of work of one job.
    """

    def __init__(
        self,
        client: distributed.Client,
        cluster: distributed.LocalCluster,
        jobs: Jobs,
        submit: Callable[[str], str],
        folder: Path,
        lifetime: float,
    ) -> None:
        super().__init__(name="gfdt-supervisor", daemon=True)
        self._client, self._cluster, self._submit = client, cluster, submit
        self._scheduler: Any = cluster.scheduler
        self._loop: Any = cluster.loop
        self._one_thread, self._retiring = (jobs.cores or 1) == 1, set[str]()
        self._folder, self._lifetime, self._max_pending = folder, lifetime, jobs.max_pending
        self._usual = jobs.min_jobs, jobs.max_jobs
        self._min, self._max = self._usual
        self._jobs: dict[str, _Job] = {}
        self._asked, self._wanted, self._fewer_since, self._number = 0, 0, math.inf, 0
        self._error: MachineError | None = None
        self._troubles: dict[str, str] = {}
        self._answered = time.monotonic()
        self._idle_jobs = 0
        self._stillborn, self._barren, self._last_block = 0, 0, 0.0
        self._next_look, self._pause, self._next_submit = 0.0, LOOKS[0], 0.0
        self._retry, self._next_beat = RETRIES[0], 0.0
        self._shown: tuple[Any, ...] = ()
        self._ending = threading.Event()

    # What chains of tasks ask and tell.

    def want(self, tasks: int) -> None:
        """So many tasks could run at once."""
        self._asked = tasks

    def done(self) -> None:
        """A block is done."""
        self._last_block, self._barren, self._idle_jobs = time.monotonic(), 0, 0

    def declined(self, address: str) -> None:
        """The worker there has too little time left: it goes, another comes."""
        for job in list(self._jobs.values()):
            if job.address == address:
                job.leaving = True
        if self._one_thread:  # else another of its threads may be at work
            self._see_off(address, idle=True)

    def waiting(self) -> bool:
        """Whether workers are on their way.

        Raises:
            MachineError: there will be none.
        """
        if self._error is not None:
            raise self._error
        return self._max == 0 or any(not job.leaving for job in self._jobs.values())

    @property
    def note(self) -> str:
        """What is in the way, empty if nothing."""
        return "; ".join(self._troubles.values())

    # The thread.

    def run(self) -> None:
        """Look and act until stopped."""
        failures = 0
        while not self._ending.wait(TICK):
            try:
                self._tick()
                failures = 0
            except MachineError as error:
                self._error = error
            except Exception as error:
                LOG.exception("supervising jobs failed")
                failures += 1
                if failures > FAILURES:
                    self._error = MachineError(
                        f"worker jobs cannot be supervised ({type(error).__name__}: {error}); "
                        "run the same command again"
                    )

    def stop(self) -> list[str]:
        """End the thread; the ids of the jobs that may still be there."""
        self._ending.set()
        self.join(timeout=slurm.TIMEOUT)
        return [job.id for job in self._jobs.values()]

    def _tick(self) -> None:
        crew = self._cluster.sync(self._crew)
        now = time.monotonic()
        self._meet(crew, now)
        if now >= self._next_look:
            self._look(now)
        order = control.read_order(self._folder)
        self._max = self._usual[1] if order.max_jobs is None else order.max_jobs
        lowest = self._usual[0] if order.min_jobs is None else order.min_jobs
        self._min = min(lowest, self._max)
        self._settle(now)
        busy = {name for name, (_, tasks) in crew.items() if tasks}
        self._fit(busy, now)
        for name, job in list(self._jobs.items()):
            if job.leaving and job.address is not None:
                self._see_off(job.address, idle=name not in busy)
        self._show(now)

    def _settle(self, now: float) -> None:
        """More work counts at once, less only when it has lasted."""
        fewer = self._asked < self._wanted
        self._fewer_since = min(self._fewer_since, now) if fewer else math.inf
        if not fewer or now - self._fewer_since > SETTLE:
            self._wanted = self._asked

    async def _crew(self) -> dict[str, tuple[str, int]]:
        workers = self._scheduler.workers.values()
        return {str(ws.name): (ws.address, len(ws.processing)) for ws in workers}

    async def _retire(self, address: str) -> None:
        retired = await self._scheduler.retire_workers([address], close_workers=True, remove=False)
        if not retired:
            # The last worker has nobody to leave a result to; it is on disk.
            self._scheduler.close_worker(address)

    def _see_off(self, address: str, *, idle: bool) -> None:
        if idle and address not in self._retiring:
            self._retiring.add(address)
            self._loop.add_callback(self._retire, address)
        elif not idle:
            self._client.run(leave, workers=[address], wait=False, on_error="ignore")

    def _meet(self, crew: dict[str, tuple[str, int]], now: float) -> None:
        """Take note of workers that came and went."""
        for name, job in self._jobs.items():
            address, tasks = crew.get(name, (None, 0))
            if address is not None and job.born is None:
                job.born, self._stillborn = now, 0
                self._changed(now)
            if address is None and job.address is not None:
                self._changed(now, at_once=True)
            job.address, job.worked = address, job.worked or tasks > 0
            if address is not None:
                job.seen = now

    def _changed(self, now: float, *, at_once: bool = False) -> None:
        self._pause = LOOKS[0]
        self._next_look = min(self._next_look, now + (0.0 if at_once else self._pause))

    def _look(self, now: float) -> None:
        """Ask Slurm which jobs are still there, and forget the others."""
        self._next_look, self._pause = now + self._pause, min(1.5 * self._pause, LOOKS[1])
        if not self._jobs:
            return
        try:
            ids = [job.id for job in self._jobs.values()]
            listed = {job.id: job for job in slurm.jobs(ids, patience=0.0)}
        except MachineError as error:
            self._troubles["squeue"] = str(error)
            working = any(job.address is not None for job in self._jobs.values())
            if not working and now - self._answered > SILENCE:
                raise
            return
        self._answered = now
        self._troubles.pop("squeue", None)
        for name, job in list(self._jobs.items()):
            found = listed.get(job.id)
            if found is not None and found.state in ALIVE:
                job.state, job.reason = found.state, found.reason
                if found.state == "RUNNING":
                    job.seen = job.seen or now
                if job.seen is not None and now - job.seen > MUTE:
                    _cancel(job)
            elif job.address is None:
                del self._jobs[name]
                self._mourn(job, now, innocent=found is not None and found.state in INNOCENT)
            else:  # its worker has not gone yet, or is being brought down now
                self._changed(now)
        self._refuse_hopeless_queue()

    def _mourn(self, job: _Job, now: float, *, innocent: bool) -> None:
        """Judge the end of a job."""
        LOG.info("job %s ended", job.id)
        self._idle_jobs += 1
        if self._wanted and self._idle_jobs > FRUITLESS + 2 * self._max:
            raise MachineError(
                f"{self._idle_jobs} jobs ended since the last block was done; see "
                f"{log_of(self._folder, job.id)}"
            )
        if job.leaving or innocent:
            return
        if job.born is None:
            self._stillborn += 1
            if self._stillborn >= HOPELESS:
                raise MachineError(
                    f"{HOPELESS} jobs in a row ended before their worker came, the last with: "
                    f"{self._last_words(job)}"
                )
        elif job.worked and now - job.born > 0.8 * self._lifetime and self._last_block < job.born:
            self._barren += 1
            if self._barren >= BARREN:
                raise MachineError(
                    f"no block was done within the {self._lifetime:.0f} s of work that the "
                    "walltime of a job leaves; raise the walltime of the cluster section, or lower "
                    "ensemble.chunk in a new run",
                    exit_code=LaunchError.exit_code,
                )

    def _last_words(self, job: _Job) -> str:
        path = log_of(self._folder, job.id)
        with contextlib.suppress(OSError):
            lines = path.read_text(errors="replace").strip().splitlines()
            if lines:
                return f"{lines[-1][:300]} (see {path})"
        return f"nothing in {path}; is this folder seen by the nodes?"

    def _refuse_hopeless_queue(self) -> None:
        jobs = list(self._jobs.values())
        if jobs and all(j.state == "PENDING" and NEVER.fullmatch(j.reason) for j in jobs):
            reason = jobs[0].reason.strip("()")
            raise LaunchError(
                f"Slurm will never start these jobs ({reason}); change queue, walltime, cores or "
                "memory of the cluster section, or the dask configuration that stands for them"
            )

    def _fit(self, busy: set[str], now: float) -> None:
        """Submit what is missing, let go what is too much."""
        if self._error is not None:
            return
        staying = {name: job for name, job in self._jobs.items() if not job.leaving}
        target = max(self._min, min(self._wanted, self._max))
        pending = sum(job.born is None for job in staying.values())
        for _ in range(min(target - len(staying), self._max_pending - pending)):
            if now < self._next_submit or not self._add(now, alone=not staying):
                return
        # Who waits goes first, then who has nothing to do, then who has the least time left.
        order = sorted(
            staying.items(), key=lambda one: (one[1].born is not None, one[0] in busy, one[1].born)
        )
        for name, job in order[: max(0, len(staying) - target)]:
            self._let_go(name, job)

    def _add(self, now: float, *, alone: bool) -> bool:
        self._number += 1
        name = f"worker-{self._number}"
        try:
            job = self._submit(name)
        except MachineError as error:
            self._troubles["sbatch"] = str(error)
            if alone and isinstance(error, LaunchError):
                raise
            LOG.warning("%s", error)
            self._next_submit = time.monotonic() + self._retry
            self._retry = min(1.5 * self._retry, RETRIES[1])
            return False
        self._jobs[name] = _Job(job, now)
        self._retry = RETRIES[0]
        self._troubles.pop("sbatch", None)
        self._changed(now)
        return True

    def _let_go(self, name: str, job: _Job) -> None:
        if job.born is None:
            _cancel(job)
            del self._jobs[name]
        job.leaving = True

    def _show(self, now: float) -> None:
        jobs = list(self._jobs.values())
        running = sum(job.address is not None for job in jobs)
        queued = sum(job.born is None for job in jobs)
        leaving = sum(job.leaving for job in jobs)
        shown = (self._min, self._max, running, queued, leaving, self.note)
        if now < self._next_beat and shown == self._shown:
            return
        self._shown, self._next_beat = shown, now + control.BEAT
        with contextlib.suppress(StoreError):  # worth no stop
            control.write_state(self._folder, control.PoolState(*shown, written=time.time()))


def _cancel(job: _Job) -> None:
    try:
        slurm.cancel([job.id], patience=0.0)
    except MachineError as error:
        LOG.warning("job %s: %s", job.id, error)  # it ends by itself, or with the pool


def log_of(folder: Path, job: str) -> Path:
    """File that a worker job writes to; `job` is its id, or Slurm's `%j`."""
    return folder / "logs" / f"worker-{job}.log"
