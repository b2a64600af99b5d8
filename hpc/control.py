"""Talking to a running driver through its run folder: how many jobs it has, and may have."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from hpc.errors import MachineError
from hpc.files import atomic_write_json

ORDER, STATE = "scale.json", "pool.json"
"""Files in the run folder: what is asked of the driver, and what it has."""

BEAT = 10.0
"""Seconds within which a driver with an open pool writes its state again."""


@dataclass(frozen=True)
class Order:
    """Bounds asked for; None leaves one as it is.

    Attributes:
        max_jobs: 0 ends all workers after their present block and pauses the run.
        min_jobs: kept even without work.
    """

    max_jobs: int | None = None
    min_jobs: int | None = None


@dataclass(frozen=True)
class PoolState:
    """What a driver has.

    Attributes:
        min_jobs: lower bound in force.
        max_jobs: upper bound in force.
        running: jobs with a worker.
        queued: jobs without one yet.
        leaving: jobs that end after their present block.
        note: what is in the way, such as a failing sbatch; empty if nothing.
        written: seconds since the epoch.
    """

    min_jobs: int
    max_jobs: int
    running: int
    queued: int
    leaving: int
    note: str
    written: float


def write_state(folder: Path, state: PoolState) -> None:
    """Show the state of the open pool."""
    atomic_write_json(folder / STATE, asdict(state))


def read_state(folder: Path) -> PoolState | None:
    """State of the pool of a run, None where no driver has one open."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        state = PoolState(**json.loads((folder / STATE).read_text()))
        return state if time.time() - state.written < 6 * BEAT else None
    return None


def read_order(folder: Path) -> Order:
    """What is asked of the driver."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Order(**json.loads((folder / ORDER).read_text()))
    return Order()


def forget(folder: Path) -> None:
    """Remove state and order: they are for one driver."""
    for name in (ORDER, STATE):
        (folder / name).unlink(missing_ok=True)


def scale(folder: Path, order: Order, *, patience: float = 15.0) -> PoolState | None:
    """Ask the driver of a run for other bounds.

    Args:
        folder: the run folder.
        order: the bounds.
        patience: seconds to wait for its answer.

    Returns:
        The state with the new bounds, None if the driver has not answered yet.

    Raises:
        MachineError: no driver has a pool of Slurm jobs open.
    """
    state = read_state(folder)
    if state is None:
        raise MachineError(
            f"no driver has Slurm jobs for {folder}; for the next one use "
            "--set cluster.simulate.max_jobs=N"
        )
    before = read_order(folder)
    if order.max_jobs is None:
        order = Order(before.max_jobs, order.min_jobs)
    if order.min_jobs is None:
        order = Order(order.max_jobs, before.min_jobs)
    atomic_write_json(folder / ORDER, asdict(order))
    give_up = time.monotonic() + patience
    while time.monotonic() < give_up:
        state = read_state(folder)
        if state is not None and order.max_jobs in (None, state.max_jobs):
            if order.min_jobs is None or state.min_jobs == min(order.min_jobs, state.max_jobs):
                return state
        time.sleep(0.2)
    return None
