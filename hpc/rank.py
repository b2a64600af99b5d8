"""One rank of a launch: runs a module and leaves a mark when it has come to its end.

Launchers cannot be asked: MPICH's ends all ranks and returns 0 when one of them leaves early with
code 0.
"""

from __future__ import annotations

import os
import runpy
import sys
import uuid
from pathlib import Path

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Threads that spin while they wait starve the other workers of the node.
    "OMP_WAIT_POLICY": "passive",
}
"""Environment of a process that computes with one thread; read when NumPy or torch is imported."""

RANKS_VARIABLE = "GFDT_RANKS"
"""Environment variable with the number of ranks that were asked for."""

MARKS_VARIABLE = "GFDT_MARKS"
"""Environment variable with the folder in which every finished rank leaves a file."""


def main() -> None:
    """Run `module arguments` of the command line as `python -m` would, then leave the mark."""
    module = sys.argv[1]
    sys.argv = sys.argv[1:]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        if leaving.code not in (None, 0):
            raise
    (Path(os.environ[MARKS_VARIABLE]) / uuid.uuid4().hex).touch()


if __name__ == "__main__":
    main()
