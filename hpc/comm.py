"""Communication between training ranks: sums that repeat bit for bit, guards against silence."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch

from hpc.errors import TRY_AGAIN, LaunchError
from hpc.rank import ADVICE
from hpc.rank import RANKS_VARIABLE as RANKS_VARIABLE


class Comm(Protocol):
    """What training asks of its ranks; every rank calls every method, in the same order."""

    @property
    def rank(self) -> int:
        """Number of this rank, from 0."""
        ...

    @property
    def size(self) -> int:
        """Number of ranks."""
        ...

    def allreduce_sum(self, flat: torch.Tensor) -> None:
        """Replace `flat` (n,), float32 or float64 on the CPU, by its sum over the ranks."""
        ...

    def bcast(self, obj: Any) -> Any:
        """The object of rank 0, on every rank."""
        ...

    def barrier(self) -> None:
        """Return when every rank has called."""
        ...

    def duplicates(self, count: int) -> tuple[Any, ...]:
        """MPI communicators of the same ranks, whose messages do not meet any others."""
        ...


class SerialComm:
    """One rank, no MPI."""

    rank = 0
    size = 1

    def allreduce_sum(self, flat: torch.Tensor) -> None:
        """The sum over one rank."""
        _check(flat)

    def bcast(self, obj: Any) -> Any:
        """The object itself."""
        return obj

    def barrier(self) -> None:
        """Nothing to wait for."""

    def duplicates(self, count: int) -> tuple[Any, ...]:
        """None without MPI."""
        return ()


class MpiComm:
    """The ranks of an MPI launch.

    Sums are made in rank order and in float64 whatever algorithm the MPI library would choose:
    each rank adds up its own slice of all ranks' arrays, then the slices are gathered. They repeat
    bit for bit, and another number of ranks changes them by rounding only.

    Args:
        world: an MPI communicator; default all ranks.

    Raises:
        LaunchError: there is no working MPI.
    """

    def __init__(self, world: Any = None) -> None:
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:  # a missing libmpi is a RuntimeError
            line = (str(error).splitlines() or [""])[0]
            raise LaunchError(
                f"no working MPI: {line}; install the extra `gfdt-workflow[mpich]`, "
                "load the MPI module of the cluster, or train with score.train.ranks=1"
            ) from error
        self._world = MPI.COMM_WORLD if world is None else world
        self.rank: int = self._world.Get_rank()
        self.size: int = self._world.Get_size()

    def allreduce_sum(self, flat: torch.Tensor) -> None:
        """Sum over the ranks, in place."""
        _check(flat)
        if self.size == 1:
            return
        array = flat.detach().numpy()
        length = -(-array.size // self.size)
        mine = np.zeros((self.size, length), array.dtype)
        mine.reshape(-1)[: array.size] = array
        theirs = np.empty_like(mine)
        self._world.Alltoall(mine, theirs)
        total = theirs[0].astype(np.float64)
        for part in theirs[1:]:
            total += part
        self._world.Allgather(total.astype(array.dtype), mine)
        array[...] = mine.reshape(-1)[: array.size]

    def bcast(self, obj: Any) -> Any:
        """The object of rank 0, pickled."""
        return self._world.bcast(obj, root=0)

    def barrier(self) -> None:
        """Wait for all ranks."""
        self._world.Barrier()

    def duplicates(self, count: int) -> tuple[Any, ...]:
        """MPI communicators of the same ranks, whose messages do not meet any others."""
        return tuple(self._world.Dup() for _ in range(count))


def _check(flat: torch.Tensor) -> None:
    # Half precision through MPI adds bytes, not numbers, and says nothing.
    if flat.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"cannot reduce {flat.dtype} over ranks; convert it to torch.float32")
    if flat.ndim != 1 or not flat.is_contiguous() or flat.device.type != "cpu":
        raise ValueError(
            f"cannot reduce shape {tuple(flat.shape)} on {flat.device} over ranks; "
            "pass one flat contiguous tensor on the CPU"
        )


def require_world_size(comm: Comm, expected: int) -> None:
    """Refuse to work in an MPI world of the wrong size, which a wrong launcher makes silently.

    Args:
        comm: the ranks there are.
        expected: the ranks that were asked for.

    Raises:
        LaunchError: they differ; says how to launch.
    """
    if comm.size != expected:
        raise LaunchError(f"MPI world has {comm.size} ranks, {expected} were asked for: {ADVICE}")


class Watchdog:
    """Ends this process, and with it the MPI job, when no progress is made for too long.

    A peer that leaves without a word makes the others wait for ever; no launcher notices.

    Args:
        timeout: seconds without a `beat` after which to end.
        abort: how to end; by default MPI abort if MPI is in use, else exit, both with code 75.
    """

    def __init__(self, timeout: float, *, abort: Callable[[], None] | None = None) -> None:
        self.timeout = timeout
        self._abort = abort or _abort
        self._last = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """Report progress."""
        self._last = time.monotonic()

    def stop(self) -> None:
        """Watch no longer."""
        self._stop.set()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self.timeout / 4)):
            if time.monotonic() - self._last > self.timeout:
                faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
                print(
                    f"watchdog: no progress for {self.timeout:g} s, another rank is gone or stuck; "
                    "run the same command again",
                    file=sys.__stderr__,
                    flush=True,
                )
                return self._abort()


def _abort() -> None:
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None:
        # The main thread may sit inside MPI and never let Abort in.
        timer = threading.Timer(5.0, os._exit, [TRY_AGAIN])
        timer.daemon = True
        timer.start()
        mpi.COMM_WORLD.Abort(TRY_AGAIN)
    os._exit(TRY_AGAIN)
