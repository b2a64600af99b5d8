"""A rank that checks that the ranks see each other; run by `launch.probe_mpi`."""

from __future__ import annotations

import os
import sys

import torch

from hpc.comm import RANKS_VARIABLE, MpiComm, require_world_size
from hpc.errors import MachineError


def main() -> None:
    """Add up the rank numbers and say so."""
    try:
        comm = MpiComm()
        require_world_size(comm, int(os.environ[RANKS_VARIABLE]))
    except MachineError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    total = torch.full((1000,), float(comm.rank))
    comm.allreduce_sum(total)
    if total.unique().tolist() != [comm.size * (comm.size - 1) / 2]:
        sys.exit(f"sum over ranks is wrong: {total.unique().tolist()}")
    from mpi4py import MPI

    version = MPI.Get_library_version().splitlines()[0].strip()
    if comm.rank == 0:
        print(f"probe: {comm.size} ranks add up, {version}")


if __name__ == "__main__":
    main()
