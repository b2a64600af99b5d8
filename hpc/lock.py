"""One process per run folder: an advisory lock that dies with its holder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from hpc.errors import MachineError, RunLocked

PATIENCE = 0.5
"""Seconds to wait for a holder that is just leaving."""

_held: set[int] = set()


def _leave_to_parent() -> None:
    # A forked child shares the open file and would keep the lock after its parent's death.
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


@contextlib.contextmanager
def run_lock(folder: Path | str) -> Iterator[None]:
    """Hold a run folder for this process; freed by the kernel however the process ends.

    Args:
        folder: the run folder, made if absent.

    Raises:
        RunLocked: another process holds it; names the holder.
        MachineError: the file system has no locks.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _acquire(handle, folder)
    except BaseException:
        os.close(handle)
        raise
    _held.add(handle)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, _holder(), 0)
        yield
    finally:
        if handle in _held:
            _held.discard(handle)
            os.ftruncate(handle, 0)
            os.close(handle)


def last_holder(folder: Path | str) -> dict[str, Any] | None:
    """Who holds a run folder, or died holding it: `host`, `pid`, `since`, `command`, `alive`.

    None if nobody does and the last one left in order.
    """
    try:
        handle = os.open(Path(folder) / ".lock", os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            alive = False
        except BlockingIOError:
            alive = True
        try:
            holder = json.loads(os.pread(handle, 65536, 0))
            return {key: holder[key] for key in ("host", "pid", "since", "command")} | {
                "alive": alive
            }
        except (ValueError, KeyError, TypeError):
            return None
    finally:
        os.close(handle)


def _acquire(handle: int, folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise RunLocked(_refusal(handle, folder)) from None
            time.sleep(0.05)
        except OSError as error:
            raise MachineError(
                f"cannot lock {folder}: {error.strerror}; keep runs on a file system with locks"
            ) from error


def _holder() -> bytes:
    since = datetime.now().isoformat(sep=" ", timespec="seconds")
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "command": " ".join(sys.argv)}
    return json.dumps(holder | {"since": since}).encode()


def _refusal(handle: int, folder: Path) -> str:
    try:
        holder = json.loads(os.pread(handle, 65536, 0))
        who = f"pid {holder['pid']} on host {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return f"{folder} is in use by {who}; wait for it or stop it"
