"""F14: every way to start MPI ranks wrongly, tried for real; each must end soon, with advice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

LAUNCH = """
import sys
from pathlib import Path
from hpc import launchers
from hpc.choice import choose_launcher
from hpc.errors import MachineError
from hpc.launch import launch_ranks

launchers.LAUNCHERS["srun-none"] = launchers._srun("none")
folder, wanted, ranks = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
try:
    layout = launchers.Layout(ranks)
    launcher = choose_launcher(wanted, layout, folder)
    launch_ranks("hpc.probe", [], layout=layout, log=folder / "log", launcher=launcher)
except MachineError as error:
    print(error)
    sys.exit(error.exit_code)
"""

ALONE = """#!/bin/bash
# What the launcher of another MPI comes to: processes that do not know of each other.
count=$2; shift 2
for ((i = 0; i < count; i++)); do "$@" & done
code=0; for job in $(jobs -p); do wait "$job" || code=$?; done
exit $code
"""

JOB = ("salloc", "--quiet", "--ntasks=2", "--nodes=2", "--mem=1G", "--time=5")
NO_LIBRARY = {"MPI4PY_LIBMPI": "/no/such/libmpi.so"}


@dataclass(frozen=True)
class Wrong:
    """One cell of the matrix.

    Attributes:
        launcher: what `cluster.train.launcher` says.
        advice: words that the error must hold.
        before: words before the command.
        ranks: ranks asked for.
        mpiexec: text of the only `mpiexec` there is; empty for none, None for the usual one.
        variables: of the environment.
    """

    launcher: str
    advice: str
    before: tuple[str, ...] = ()
    ranks: int = 2
    mpiexec: str | None = None
    variables: tuple[tuple[str, str], ...] = ()


MATRIX = {
    "srun --mpi=none": Wrong("srun-none", "1 ranks, 2 were asked for: launcher and MPI", JOB),
    "srun --mpi=pmix with MPICH": Wrong("srun-pmix", "no rank began: launcher and MPI", JOB),
    "srun outside a job": Wrong("srun-pmi2", "set cluster.train.kind=slurm"),
    "more ranks than tasks": Wrong("srun-pmi2", "More processors requested", JOB, ranks=4),
    "mpiexec of another MPI": Wrong("mpiexec", "1 ranks, 2 were asked for", mpiexec=ALONE),
    "mpiexec that fails": Wrong("mpiexec", "no rank began", mpiexec="#!/bin/sh\nexit 3\n"),
    "no mpiexec": Wrong("mpiexec", "no mpiexec beside python", mpiexec=""),
    "no libmpi": Wrong("mpiexec", "no working MPI", variables=tuple(NO_LIBRARY.items())),
    "no libmpi in a job": Wrong("auto", "no MPI library", JOB, variables=tuple(NO_LIBRARY.items())),
}


def try_wrong(folder: Path, wrong: Wrong) -> tuple[int, float, str]:
    """Exit code, seconds and last words of a wrong launch, in a folder of its own."""
    python = sys.executable if wrong.mpiexec is None else _environment(folder, wrong.mpiexec)
    line = [*wrong.before, python, "-c", LAUNCH, str(folder), wrong.launcher, str(wrong.ranks)]
    variables = dict(wrong.variables)
    if wrong.mpiexec is not None:
        variables["PATH"] = "/usr/bin:/bin"
    began = time.monotonic()
    done = subprocess.run(
        line, env=os.environ | variables, capture_output=True, text=True, timeout=120
    )
    seconds = time.monotonic() - began
    return done.returncode, seconds, done.stdout.strip() or done.stderr.strip()


def _environment(folder: Path, mpiexec: str) -> str:
    """Python of a virtual environment with the packages of this one and another `mpiexec`."""
    home = Path(sys.prefix)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    (folder / "pyvenv.cfg").write_text((home / "pyvenv.cfg").read_text())
    (folder / "lib").symlink_to(home / "lib")
    if mpiexec:
        launcher = folder / "bin" / "mpiexec"
        launcher.write_text(mpiexec)
        launcher.chmod(0o755)
    return str(folder / "bin" / "python")
