"""What made a run, on how many cores, and how long that took."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING

from workflow import __version__

if TYPE_CHECKING:
    from workflow.runs import Run


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from importlib.metadata import version

    names = ("numpy", "torch", "zarr", "xarray", "dask", "distributed", "mpi4py")
    return {"gfdt-workflow": __version__, **{name: version(name) for name in names}}


def cores() -> int:
    """Cores this process may use; in a Slurm job those that it was given."""
    bound = hasattr(os, "sched_getaffinity")
    found = len(os.sched_getaffinity(0)) if bound else os.cpu_count() or 1
    # Many sites bind no process to its cores.
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(found, int(given)) if given.isdigit() else found


def wall_times(run: Run) -> dict[str, float]:
    """Seconds spent in each stage so far, over all calls."""
    path = run.folder / "logs" / "wall_times.json"
    found: dict[str, float] = {}
    with contextlib.suppress(ValueError, FileNotFoundError):  # worth no refusal
        found = json.loads(path.read_text())
    return found
