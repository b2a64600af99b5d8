"""Following a Slurm job that works for this process: waiting is no failure, an end without work is.

The job goes on when this process ends; the next one finds it again by its name.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from hpc import slurm
from hpc.errors import LaunchError

ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
)
"""States of jobs that run no more, unless Slurm puts them into the queue again."""

NEVER = (
    "AccountNotAllowed",
    "BadConstraints",
    "InvalidAccount",
    "InvalidQOS",
    "JobHeldAdmin",
    "PartitionNodeLimit",
    "PartitionTimeLimit",
    "launch failed requeued held",
)
"""Reasons of a waiting job that do not pass."""

LOOK = 0.5
"""Seconds between looks at files."""

ASK = (2.0, 15.0)
"""Seconds between questions to Slurm, at first and at most."""


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
        state: Slurm's word; "forgotten" where it does not know any more.
        code: exit code, where it still knows.
    """

    state: str
    code: int | None


def active(name: str) -> slurm.Job | None:
    """The job of this user with a name, waiting or running; None if there is none.

    Raises:
        LaunchError, MachineError: Slurm did not answer.
    """
    found = [job for job in slurm.jobs() if job.name == name and job.state not in ENDED]
    return found[-1] if found else None


def follow(job_id: str, *, finished: Callable[[], bool], tell: Callable[[str], None]) -> Ended:
    """Wait until a job has ended, or its work is found finished.

    Args:
        job_id: the job.
        finished: looked at twice a second.
        tell: called with a line whenever the job's state or reason changes.

    Raises:
        LaunchError: Slurm will never start the job; it is cancelled.
        MachineError: Slurm did not answer for long; the job goes on.
    """
    pause, ask_at, said, endings = ASK[0], 0.0, "", 0
    while not finished():
        if time.monotonic() < ask_at:
            time.sleep(LOOK)
            continue
        ask_at = time.monotonic() + pause
        job = next(iter(slurm.jobs([job_id])), None)
        if job is None or job.state in ENDED:
            # Once is not enough: on its way back into the queue it may look ended.
            endings += 1
            if endings == 2:
                return Ended("forgotten" if job is None else job.state, exit_code(job_id))
            continue
        endings, pause = 0, min(1.5 * pause, ASK[1])
        _refuse_stuck(job)
        now = f"waits {job.reason}" if job.state == "PENDING" else f"{job.state} on {job.reason}"
        if now != said:
            tell(f"job {job_id} {now}")
            said = now
    return Ended("COMPLETED", 0)


def exit_code(job_id: str) -> int | None:
    """Exit code of a job that has ended; None where Slurm does not know any more."""
    try:
        said = slurm.ask(["scontrol", "--oneliner", "show", "job", job_id])
    except LaunchError:
        return None
    match = re.search(r"\bExitCode=(\d+):(\d+)", said)
    return None if match is None else int(match[1]) or 128 * (match[2] != "0") + int(match[2])


def _refuse_stuck(job: slurm.Job) -> None:
    stuck = next((reason for reason in NEVER if reason in job.reason), None)
    if stuck is None and job.state in ("REQUEUE_HOLD", "SPECIAL_EXIT"):
        stuck = job.state
    if stuck is not None:
        slurm.cancel([job.id])
        raise LaunchError(
            f"Slurm will never start job {job.id} ({job.name}): {stuck}; it is cancelled, change "
            "what it asks for and run the same command again"
        )
