"""Which launcher to use: the first that a real test of two ranks finds fit."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path

from hpc.errors import LaunchError, MachineError
from hpc.files import atomic_write_json
from hpc.launch import launch_ranks
from hpc.launchers import Layout, candidates, in_allocation, mpi_library, srun_plugins
from hpc.rank import ADVICE

PAIR = Layout(2)
"""The smallest test."""

PATIENCE = 60.0
"""Seconds that the smallest test may take, on a busy machine."""

FILE = "launcher.json"
"""Beside the log: what was found fit, and in which Slurm job."""


def choose_launcher(wanted: str, layout: Layout, folder: Path) -> str:
    """The launcher for some ranks.

    Args:
        wanted: a name of `launchers.LAUNCHERS`, or "auto": inside a Slurm job the first that
            starts two ranks which see each other, elsewhere `mpiexec`.
        layout: the ranks.
        folder: where all nodes can write; keeps what was found, for this job.

    Raises:
        LaunchError: none is fit; tells why of each.
    """
    if wanted != "auto":
        return wanted
    if layout.ranks == 1 or not in_allocation():
        return "mpiexec"
    job = os.environ["SLURM_JOB_ID"]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads((folder / FILE).read_text())
        if kept["job"] == job:
            return str(kept["launcher"])
    library = mpi_library()
    failures = []
    for name in candidates(library, srun_plugins()):
        works, said = probe_mpi(name, folder=folder)
        if works:
            atomic_write_json(folder / FILE, {"job": job, "launcher": name, "found": said})
            return name
        failures.append(f"{name}: {said}")
    raise LaunchError(f"no launcher starts ranks of {library} ({'; '.join(failures)}); {ADVICE}")


def probe_mpi(
    launcher: str = "mpiexec", *, folder: Path | None = None, timeout: float = PATIENCE
) -> tuple[bool, str]:
    """Whether two MPI ranks can be started here, and what they said; arguments as `try_mpi`."""
    try:
        return True, try_mpi(launcher, folder=folder, timeout=timeout)
    except MachineError as error:
        return False, str(error)


def try_mpi(
    launcher: str = "mpiexec", *, folder: Path | None = None, timeout: float = PATIENCE
) -> str:
    """Start two MPI ranks that add up numbers.

    Args:
        launcher: a name of `launchers.LAUNCHERS`.
        folder: where all nodes can write; by default a temporary one of this machine.
        timeout: seconds after which they are stopped.

    Returns:
        What they said.

    Raises:
        LaunchError: they do not start, or do not see each other.
        MachineError: they were killed or stopped; another time they may do.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".probe-", dir=folder) as place:
        lines: list[str] = []
        log = Path(place) / "probe.log"
        try:
            launch_ranks(
                "hpc.probe",
                [],
                layout=PAIR,
                log=log,
                launcher=launcher,
                echo=lines.append,
                timeout=timeout,
            )
        except MachineError as error:
            message = str(error).replace(f"; see {log}", "")
            raise type(error)(message, exit_code=error.exit_code) from error
        said = [line for line in lines if line.startswith("probe:")]
        if not said:  # all of them ended well: it is the launcher that was lost
            raise MachineError("what the ranks said did not arrive; run the same command again")
        return said[-1]
