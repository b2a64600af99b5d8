"""Training as a Slurm job of its own: submit it once, follow it by its files, tell how it ended."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

from hpc import jobs, slurm
from hpc.batch import Ended, active, follow
from hpc.errors import CONFIGURATION, LaunchError, MachineError
from hpc.files import atomic_write_bytes
from hpc.logs import last_words
from workflow.runs import Notify, Run
from workflow.stages.planned_job import followed_train_job

LOGGER = logging.getLogger("workflow.train")


def train_as_job(run: Run, notify: Notify) -> None:
    """Complete `score/` by a job; one that runs already, as of a driver that died, is followed.

    Raises:
        LaunchError: Slurm refuses the job or will never start it, or training cannot be started.
        MachineError: the job ended before training did; the same command submits another.
    """
    steps = run.experiment.score.train.steps
    name = jobs.job_name(run.folder, "train")
    job = active(name)
    if job is not None and not run.is_current("train"):
        slurm.cancel([job.id])
        _wait_until_gone(name)
        job = None
    run.renew("train", run.folder / "score")
    begun(run, notify)
    if job is None and _complete(run):
        notify("train", steps, steps)
        return
    job_id = _submit(run) if job is None else job.id
    tail = _Tail(run.folder / "logs" / "train.log")

    def finished() -> bool:
        for line in tail.lines():
            pass_on(line, notify, steps)
        return _complete(run)

    ended = follow(job_id, finished=finished, tell=LOGGER.warning)
    if not _complete(run):
        raise _failure(run, job_id, ended)
    notify("train", steps, steps)


def _complete(run: Run) -> bool:
    return run.is_trained and not run.unfitted


def begun(run: Run, notify: Notify) -> None:
    """Tell how far a training is, but not in its pilot, whose time is not that of its steps."""
    steps = run.experiment.score.train.steps
    if not run.in_pilot:
        notify("train", min(steps, run.trained_steps), steps)


def pass_on(line: str, notify: Notify, steps: int) -> None:
    """Tell of the step, of the training or of its pilot, that a line of the log tells of."""
    if line.startswith("{"):
        told = json.loads(line)
        if "pilot" in told:
            notify("pilot", told["pilot"], told["of"])
        else:
            notify("train", told["step"], steps)


def _submit(run: Run) -> str:
    planned = followed_train_job(run)
    path = run.folder.absolute() / "jobs" / "train.sbatch"
    planned.spec.log.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, planned.script.encode())
    job_id = slurm.submit(path)
    jobs.record(run.folder, job_id, planned.role)
    return job_id


def _wait_until_gone(name: str) -> None:
    deadline = time.monotonic() + 120
    while (job := active(name)) is not None:
        if time.monotonic() > deadline:
            raise MachineError(
                f"job {job.id} trains the run as it was and does not end; run again later"
            )
        time.sleep(1)


def _failure(run: Run, job_id: str, ended: Ended) -> MachineError:
    log = run.folder / "logs" / f"train-{job_id}.log"
    try:
        last = last_words(log.read_text(errors="replace").splitlines()) or "none"
    except OSError:
        last = "none"
    code = "" if ended.code is None else f", exit code {ended.code}"
    message = (
        f"training job {job_id} ended {ended.state}{code} at step {run.trained_steps} of "
        f"{run.experiment.score.train.steps}; last line of log: {last}; see {log}"
    )
    if ended.code == CONFIGURATION:
        return LaunchError(message)
    return MachineError(f"{message}; the same command continues")


class _Tail:
    """New whole lines of a file that others append to; its past is passed over."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.is_file() else 0
        self._rest = b""

    def lines(self) -> list[str]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(new)
        *whole, self._rest = (self._rest + new).split(b"\n")
        return [line.decode(errors="replace") for line in whole]
