"""The work of the job that a driver submits: `python -m workflow.stages.train_job RUN_FOLDER`.

The driver holds the run and waits; the job holds the training. Its exit code tells the job script
what to do: 75 is saved and may go on, anything else comes back until something is changed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from hpc.errors import TRY_AGAIN, MachineError, Paused, RunLocked
from hpc.lock import LEASE
from workflow.interfaces import UserError
from workflow.loading import load_run
from workflow.runs import Run
from workflow.stages.train import train_here

FAILED = 1
"""Exit code of a training that would fail again: it got no further."""


def main() -> int:
    """Train; returns the exit code."""
    try:
        run = load_run(sys.argv[1], Path("."))
        before = run.trained_steps
        try:
            _train(run)
        except MachineError as error:
            _say(str(error))
            hopeless = error.exit_code == TRY_AGAIN and run.trained_steps == before
            return FAILED if hopeless and not isinstance(error, Paused) else error.exit_code
    except (MachineError, UserError) as error:
        _say(str(error))
        return error.exit_code
    _say("training is finished")
    return 0


def _train(run: Run) -> None:
    """Train, once the job's forerunner on a node that was lost is known to be dead."""
    patience = time.monotonic() + 2 * LEASE
    while True:
        try:
            return train_here(run, lambda *_: None)
        except RunLocked:
            if time.monotonic() > patience:
                raise
        time.sleep(1)


def _say(message: str) -> None:
    print(f"gfdt: {' '.join(message.split())}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
