"""A rank that checks that the ranks see each other; run by `choice.probe_mpi`."""

from __future__ import annotations

import sys

import numpy as np
from mpi4py import MPI


def main() -> None:
    """Add up the rank numbers and say so."""
    world = MPI.COMM_WORLD
    total = np.full(1000, float(world.rank))
    world.Allreduce(MPI.IN_PLACE, total)
    wanted = world.size * (world.size - 1) / 2
    if not (total == wanted).all():
        sys.exit(f"sum over ranks is wrong: {np.unique(total)}, should be {wanted}")
    version = " ".join(MPI.Get_library_version().split("\n", 1)[0].split())
    if world.rank == 0:
        print(f"probe: {world.size} ranks add up, {version}")


if __name__ == "__main__":
    main()
