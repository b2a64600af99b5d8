"""Asking Slurm: submit, look, cancel; patient where Slurm is busy, one line where it refuses.

Every call is one of Slurm's own commands with plain arguments, never through a shell.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc.errors import LaunchError, MachineError

TIMEOUT = 60.0
"""Seconds after which one Slurm command counts as failed."""

SHORTEST = 10.0
"""Seconds that one Slurm command has at least, however little patience there is."""

PATIENCE = 300.0
"""Seconds over which a busy Slurm is asked again before giving up."""

BUSY = (
    "socket timed out",
    "unable to contact slurm controller",
    "connection refused",
    "connection timed out",
    "resource temporarily unavailable",
    "zero bytes were transmitted",
    "slurm backup controller in standby",
    "job violates accounting/qos policy",
    "submission rate",
    "maxsubmit",
    "too many",
)
"""What Slurm says when the same request may succeed later; anything else is final."""


@dataclass(frozen=True)
class Job:
    """One job in the queue.

    Attributes:
        id: Slurm's number.
        name: name of the job.
        state: Slurm's word, such as PENDING, RUNNING, COMPLETED.
        reason: why it waits; for a running job its nodes.
        left: time left of its walltime, as Slurm writes it.
    """

    id: str
    name: str
    state: str
    reason: str
    left: str


def available() -> bool:
    """Whether this machine has Slurm's commands."""
    return all(shutil.which(name) for name in ("sbatch", "squeue", "scancel"))


def submit(script: Path, options: Sequence[str] = (), *, patience: float = PATIENCE) -> str:
    """Submit a job script; repeats, with growing pauses, while Slurm is busy.

    Args:
        script: the job script.
        options: options of `sbatch` in addition to those in the script.
        patience: seconds over which a busy Slurm is asked again.

    Returns:
        The job's id.

    Raises:
        LaunchError: there is no Slurm here, or it refuses the job; tells its reason.
        MachineError: Slurm stayed busy.
    """
    said = ask(["sbatch", "--parsable", *options, str(script)], patience=patience)
    match = re.fullmatch(r"(\d+)(;.*)?", (said.strip().splitlines() or [""])[-1])
    if match is None:
        raise MachineError(f"sbatch gave no job id but: {said.strip()[:200]}")
    return match[1]


def jobs(ids: Iterable[str] | None = None, *, patience: float = PATIENCE) -> list[Job]:
    """Jobs of this user in the queue, or those of `ids` that Slurm still knows.

    Args:
        ids: of the jobs, ended ones included.
        patience: seconds over which a busy Slurm is asked again.

    Raises:
        LaunchError, MachineError: as `submit`.
    """
    command = ["squeue", "--noheader", "--all", "--format=%i|%j|%T|%R|%L"]
    command.append(f"--user={os.getuid()}")
    if ids is not None:
        # Not by --jobs: one that Slurm has forgotten would fail the whole question.
        command.append("--states=all")
    found = []
    for line in ask(command, patience=patience).splitlines():
        number, _, rest = line.partition("|")
        name, state, reason, left = rest.rsplit("|", 3)
        found.append(Job(number, name, state, reason, left))
    if ids is None:
        return found
    wanted = set(ids)
    return [job for job in found if job.id in wanted]


def duration(text: str) -> float | None:
    """Seconds of a duration as Slurm writes and reads it: a plain number is minutes.

    None for words such as UNLIMITED.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if match is None:
        return None
    days, *given = match.groups()
    parts = [int(part) for part in given if part is not None]
    if days is None and len(parts) < 3:
        parts = [0, *parts]
    hours, minutes, seconds = [*parts, 0, 0][:3]
    return float(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)


def cancel(ids: Sequence[str], *, signal: str | None = None, patience: float = PATIENCE) -> None:
    """Cancel jobs, or send them a signal; ids that Slurm has forgotten are no error."""
    if not ids:
        return
    command = ["scancel", "--quiet"]
    if signal is not None:
        command += ["--full", f"--signal={signal}"]
    ask([*command, *ids], patience=patience)


def release(ids: Sequence[str]) -> None:
    """Let held jobs begin.

    Raises:
        LaunchError, MachineError: as `submit`.
    """
    if ids:
        ask(["scontrol", "release", ",".join(ids)])


def ask(command: Sequence[str], *, patience: float = PATIENCE) -> str:
    """What a Slurm command prints; asked again while Slurm is busy.

    Raises:
        LaunchError: the command does not exist, or Slurm refuses.
        MachineError: Slurm stayed busy for `patience` seconds.
    """
    give_up, pause = time.monotonic() + patience, 1.0
    within = min(TIMEOUT, max(patience, SHORTEST))
    while True:
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=within,
                stdin=subprocess.DEVNULL,
                env=_environment(),
            )
            said = " ".join(done.stderr.split())
            if done.returncode == 0:
                return done.stdout
            busy = any(word in said.lower() for word in BUSY)
        except subprocess.TimeoutExpired:
            said, busy = f"no answer within {within:g} s", True
        except FileNotFoundError:
            raise LaunchError(
                f"no {command[0]} on this machine: run where Slurm is, or set the cluster kind "
                "to local"
            ) from None
        if not busy:
            raise LaunchError(f"{command[0]} refused: {said or f'exit code {done.returncode}'}")
        if time.monotonic() + pause > give_up:
            lasting = f" for {patience:g} s" if patience else ""
            raise MachineError(f"{command[0]} failed{lasting}: {said}; run again later")
        # Spread out: a busy Slurm is not helped by everybody asking at once.
        time.sleep(pause * random.uniform(0.5, 1.5))
        pause = min(2 * pause, 30.0)


def _environment() -> dict[str, str]:
    """That of this process, without the size of the job it may be in.

    A job inherits the variables of whoever submits it, and `srun` in it would take the size of the
    other job for its own.
    """
    if "SLURM_JOB_ID" not in os.environ:
        return dict(os.environ)
    kept = ("SLURM_CONF", "SLURM_CLUSTERS")
    return {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k in kept}
