"""One process per run folder: a lock of this host's kernel, and a lease that all hosts see.

On many parallel file systems `flock` holds on one node only; the lease holds everywhere, but takes
its time to notice a death on another host.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from hpc.errors import MachineError, RunLocked
from hpc.lease import holder_of, lease

PATIENCE = 0.5
"""Seconds to wait for a holder that is just leaving."""

LEASE = 60.0
"""Seconds after which the lease of a silent holder may be taken over."""

_held: set[int] = set()


def _leave_to_parent() -> None:
    # A forked child shares the open file and would keep the lock after its parent's death.
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


@contextlib.contextmanager
def run_lock(folder: Path | str, *, seconds: float = LEASE) -> Iterator[None]:
    """Hold a run folder for this process; free again however the process ends.

    The death of a holder is noticed at once on its own host, elsewhere when its lease is stale.

    Args:
        folder: the run folder, made if absent.
        seconds: life of the lease, renewed four times within it.

    Raises:
        RunLocked: another process holds it, or has taken it over meanwhile; names the holder.
        MachineError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise MachineError(f"cannot lock {folder}: {error.strerror}; give write access") from error
    try:
        _acquire(handle, folder)
    except BaseException:
        os.close(handle)
        raise
    _held.add(handle)
    try:
        with lease(folder, seconds=seconds, patience=PATIENCE):
            yield
    finally:
        if handle in _held:
            _held.discard(handle)
            os.close(handle)


def _acquire(handle: int, folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                who = holder_of(folder) or "another process"
                message = f"{folder} is in use by {who}; wait for it or stop it"
                raise RunLocked(message) from None
            time.sleep(0.05)
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                return  # no locks here: the lease alone must do
            raise MachineError(f"cannot lock {folder}: {error.strerror}") from error
