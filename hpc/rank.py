"""One rank of a launch: refuses a world of the wrong size, runs a module, leaves marks.

Launchers cannot be asked: one that does not speak to the MPI library starts ranks that each
believe to be alone; MPICH's ends all ranks and returns 0 when one of them leaves early with
code 0; Slurm's returns the code of the kill and not of the rank that asked for it.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import uuid
from pathlib import Path

from hpc.errors import CONFIGURATION
from hpc.kin import end_with

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Threads that spin while they wait starve the other workers of the node.
    "OMP_WAIT_POLICY": "passive",
    # The C library gives large arrays back when they are freed, and the kernel clears their pages
    # when they come again: a chunk of 16 MiB then takes twice as long to write. 32 MiB is the most
    # that every version takes; Dask asks for the opposite.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}
"""Environment of a process that computes with one thread and keeps its memory.

Read when it starts, and when NumPy or torch is imported.
"""

RANKS_VARIABLE = "GFDT_RANKS"
"""Environment variable with the number of ranks that were asked for."""

MARKS_VARIABLE = "GFDT_MARKS"
"""Environment variable with the folder in which the ranks leave their marks."""

BEGAN = "began"
"""Mark of a rank that found itself in a world of the right size; holds its Slurm step."""

ENDED = "ended"
"""Mark of a rank that came to an end of its own, with its exit code: `ended-0-...`."""

START = 120.0
"""Seconds within which MPI must have started."""

ADVICE = (
    "launcher and MPI library do not belong together: with MPICH use `mpiexec` of the same "
    "environment or `srun --mpi=pmi2 --kill-on-bad-exit=1 python -m mpi4py -m ...`, with Open MPI "
    "its own `mpiexec` or `srun --mpi=pmix`, never both MPIs in one environment; "
    "`gfdt doctor --mpi` tests it"
)


def main() -> None:
    """Run `module arguments` of the command line as `python -m` would."""
    if os.environ[RANKS_VARIABLE] != "1":
        # Part of MPICH's launcher starts the ranks: killed, it leaves some that would go on, or
        # wait for peers for ever, beside the ranks of the next launch.
        end_with(os.getppid(), signal.SIGKILL)
    module = sys.argv[1]
    sys.argv = sys.argv[1:]
    code = 1
    try:
        refuse_wrong_world(int(os.environ[RANKS_VARIABLE]))
        _mark(BEGAN, _slurm_step())
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        if code:
            raise
    finally:
        _mark(f"{ENDED}-{code}")


def refuse_wrong_world(ranks: int) -> None:
    """Leave with code 78 and advice unless there are as many ranks as were asked for.

    Before anything slow is imported: a wrong launcher is told within seconds.
    """
    if ranks == 1:
        return
    # A peer that dies while MPI starts leaves the others spinning there with the interpreter
    # lock: no thread can end them, only the kernel.
    signal.setitimer(signal.ITIMER_REAL, START)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # a missing libmpi is a RuntimeError
        line = " ".join(str(error).split())
        _refuse(
            f"no working MPI: {line}; install the extra `gfdt-workflow[mpich]`, "
            "load the MPI module of the cluster, or train with score.train.ranks=1"
        )
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    size = MPI.COMM_WORLD.Get_size()
    if size != ranks:
        _refuse(f"MPI world has {size} ranks, {ranks} were asked for: {ADVICE}")


def _refuse(message: str) -> None:
    print(f"gfdt: {message}", flush=True)
    sys.exit(CONFIGURATION)


def _mark(what: str, content: str = "") -> None:
    (Path(os.environ[MARKS_VARIABLE]) / f"{what}-{uuid.uuid4().hex}").write_text(content)


def _slurm_step() -> str:
    """Slurm's number of the ranks of this launch; empty where it did not start them."""
    step = os.environ.get("SLURM_STEP_ID")
    return f"{os.environ['SLURM_JOB_ID']}.{step}" if step else ""


if __name__ == "__main__":
    main()
