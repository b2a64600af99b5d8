"""The ways to start MPI ranks: the launcher must speak the language of the MPI library.

Where it does not, every rank finds itself alone in a world of one and all of them end well.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpc.errors import LaunchError

LEAVE = 8
"""Seconds after one rank has ended in which srun lets the others end by themselves."""

FAMILIES = {
    "mpich": ("mpich", "mvapich", "intel(r) mpi", "cray mpi"),
    "openmpi": ("open mpi",),
}
"""MPI libraries that share a start-up protocol, by words of `MPI_Get_library_version`."""

SPEAKS = {
    "mpich": ("srun-pmi2", "mpiexec"),
    "openmpi": ("srun-pmix", "mpiexec"),
}
"""Launchers for each of them inside a Slurm allocation, the best first."""


@dataclass(frozen=True)
class Layout:
    """How many ranks, and how they lie on the nodes.

    Attributes:
        ranks: number of ranks.
        per_node: ranks on each node; None leaves it to the launcher.
        threads: threads, and so cores, of each.
    """

    ranks: int
    per_node: int | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise ValueError(f"ranks={self.ranks}: at least 1 rank is needed")


def in_allocation() -> bool:
    """Whether this process belongs to a Slurm job."""
    return "SLURM_JOB_ID" in os.environ


def allocated_tasks() -> int:
    """Tasks of the Slurm job this process belongs to; 0 outside."""
    return int(os.environ.get("SLURM_NTASKS", "1")) if in_allocation() else 0


def command(launcher: str, layout: Layout) -> list[str]:
    """Command line to be put before the program of every rank.

    Raises:
        LaunchError: the launcher is not on this machine.
    """
    return [] if layout.ranks == 1 else LAUNCHERS[launcher](layout)


def find_mpiexec() -> str:
    """Path of the `mpiexec` of this Python environment, else the one on PATH.

    Raises:
        LaunchError: there is none.
    """
    # Another environment's launcher starts ranks that do not see each other.
    own = Path(sys.executable).with_name("mpiexec")
    found = str(own) if os.access(own, os.X_OK) else shutil.which("mpiexec")
    if found is None:
        raise LaunchError(
            "no mpiexec beside python nor on PATH; install the extra `gfdt-workflow[mpich]`, "
            "load the MPI module of the cluster, or train with score.train.ranks=1"
        )
    return found


def mpi_library() -> str:
    """First line of the name of the MPI library that `mpi4py` loads.

    Raises:
        LaunchError: it loads none.
    """
    # In a process of its own: MPI can be started only once, and some need a launcher for it.
    done = subprocess.run(
        [sys.executable, "-m", "mpi4py", "--mpi-lib-version"],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
    )
    if done.returncode:
        line = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise LaunchError(
            f"mpi4py finds no MPI library: {line}; install the extra `gfdt-workflow[mpich]` or "
            "load the MPI module of the cluster (MPI4PY_LIBMPI names its libmpi.so)"
        )
    return " ".join(done.stdout.split("\n", 1)[0].split())


def family(library: str) -> str | None:
    """Key of `FAMILIES` of an MPI library; None for one that is not known."""
    name = library.lower()
    return next((f for f, words in FAMILIES.items() if any(w in name for w in words)), None)


def srun_plugins() -> set[str]:
    """MPI plugins of this machine's `srun`; empty where there is no Slurm."""
    if shutil.which("srun") is None:
        return set()
    try:
        done = subprocess.run(
            ["srun", "--mpi=list"], capture_output=True, text=True, timeout=60, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return set()
    # Some versions print the list as an error.
    return set(
        re.findall(
            r"^\s*(?:srun: )?(pmi2|pmix|none|cray_shasta|openmpi)\s*$",
            done.stdout + done.stderr,
            re.MULTILINE,
        )
    )


def candidates(library: str, plugins: set[str]) -> list[str]:
    """Launchers that may suit an MPI library, the best first."""
    if not in_allocation():
        return ["mpiexec"]
    possible = SPEAKS.get(family(library) or "", ("mpiexec", "srun-pmix", "srun-pmi2"))
    return [n for n in possible if n == "mpiexec" or n.removeprefix("srun-") in plugins]


def _mpiexec(layout: Layout) -> list[str]:
    line = [find_mpiexec(), "-n", str(layout.ranks)]
    if layout.per_node is None:
        return line
    if family(mpi_library()) == "openmpi":
        return [*line, "--map-by", f"ppr:{layout.per_node}:node"]
    return [*line, "-ppn", str(layout.per_node)]


def _srun(plugin: str) -> Callable[[Layout], list[str]]:
    def line(layout: Layout) -> list[str]:
        if shutil.which("srun") is None:
            raise LaunchError(
                f"cluster.train.launcher=srun-{plugin} and no srun on this machine; "
                "set it to mpiexec or auto"
            )
        if not in_allocation():
            raise LaunchError(
                f"cluster.train.launcher=srun-{plugin} works inside a Slurm job only; set "
                "cluster.train.kind=slurm to train in one, or the launcher to mpiexec or auto"
            )
        lay = [f"--ntasks-per-node={layout.per_node}"] if layout.per_node else []
        return [
            "srun",
            f"--mpi={plugin}",
            # Others wait for ever for a rank that is gone: this ends them some time later,
            f"--wait={LEAVE}",
            # and whoever started them sooner, unless Slurm is about it already.
            "--kill-on-bad-exit=0",
            f"--ntasks={layout.ranks}",
            f"--cpus-per-task={layout.threads}",
            *lay,
        ]

    return line


LAUNCHERS: dict[str, Callable[[Layout], list[str]]] = {
    "mpiexec": _mpiexec,
    "srun-pmi2": _srun("pmi2"),
    "srun-pmix": _srun("pmix"),
}
"""By the names of `cluster.train.launcher`."""
