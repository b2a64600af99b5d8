"""The work of the Slurm job that a driver submits: `python -m workflow.stages.train_job RUN_FOLDER`.

The driver holds the run and waits; the job holds the training. Its exit code tells the job script
what to do: 75 is saved and may go on, anything else comes back until something is changed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hpc.errors import MachineError
from workflow.interfaces import UserError
from workflow.runs import load_run
from workflow.stages.train import train_here


def main() -> int:
    """Train; returns the exit code."""
    try:
        train_here(load_run(sys.argv[1], Path(".")), lambda *_: None)
    except (MachineError, UserError) as error:
        print(f"gfdt: {' '.join(str(error).split())}", flush=True)
        return error.exit_code
    print("gfdt: training is finished", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
