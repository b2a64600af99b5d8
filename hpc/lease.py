"""A lease on a folder that all hosts of a shared file system see, kept alive by its holder.

Leases are files `.lease.<generation>`; the newest one counts. Whoever creates the next generation
(O_EXCL, one winner) holds the folder, and may do so once the newest is released or stale. A holder
renews its own open file, so it can never overwrite its successor's, and learns of a successor by
its name. Generations only rise: a slow contender finds a later one and withdraws. Ages are
differences of times of files, as the file server's clock is the only one that all hosts share.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

import psutil

from hpc.errors import RunLocked
from hpc.files import PARTIAL

PREFIX = ".lease."

RELEASED = b"released"

BEATS = 4
"""Renewals within the life of a lease."""


@dataclass(frozen=True)
class Holder:
    """Who holds a folder.

    Attributes:
        host: name of the machine.
        pid: process there.
        started: when that process started, seconds since 1970; tells it from a later namesake.
        job: Slurm job, or empty.
        command: its command line.
        since: local time at which it took the folder.
    """

    host: str
    pid: int
    started: float
    job: str
    command: str
    since: str

    @classmethod
    def this_process(cls) -> Holder:
        """The holder that this process is."""
        return cls(
            socket.gethostname(),
            os.getpid(),
            psutil.Process().create_time(),
            os.environ.get("SLURM_JOB_ID", ""),
            " ".join(sys.argv),
            datetime.now().isoformat(sep=" ", timespec="seconds"),
        )

    def __str__(self) -> str:
        job = f" (Slurm job {self.job})" if self.job else ""
        return f"pid {self.pid} on host {self.host}{job} since {self.since}"

    @property
    def is_dead(self) -> bool:
        """Whether it is known to be gone: only a holder on this host can be."""
        if self.host != socket.gethostname():
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) > 1.0
        except psutil.NoSuchProcess:
            return True


def holder_of(folder: Path) -> Holder | None:
    """Who holds a folder by the newest lease, alive or not; None if nobody or not known."""
    newest = _newest(folder)
    return _look(folder / f"{PREFIX}{newest:08d}")[0] if newest else None


def is_alive(folder: Path, *, seconds: float) -> bool:
    """Whether the holder of a folder still works, as far as this host can tell; writes nothing.

    Args:
        folder: the folder.
        seconds: life of its lease. Clocks of hosts may differ by as much.
    """
    newest = _newest(folder)
    holder, written = _look(folder / f"{PREFIX}{newest:08d}") if newest else (None, None)
    if holder is None or written is None or holder.is_dead:
        return False
    return holder.host == socket.gethostname() or time.time() - written < 2 * seconds


@contextlib.contextmanager
def lease(folder: Path, *, seconds: float, patience: float) -> Iterator[None]:
    """Hold a folder, renewing the lease from a thread of its own.

    Args:
        folder: an existing folder.
        seconds: without renewal for that long, others may take the folder over.
        patience: seconds to wait for a holder that is just leaving.

    Raises:
        RunLocked: somebody else holds the folder; or took it over meanwhile, which stops the work
            inside (SIGINT to the main thread) as soon as it is noticed.
    """
    held = _Lease(folder, seconds, *_take(folder, seconds, patience))
    try:
        yield
    except BaseException:
        held.stop()
        if held.lost:
            raise RunLocked(held.lost) from None
        raise
    finally:
        held.stop()
    if held.lost:
        raise RunLocked(held.lost)


def _take(folder: Path, seconds: float, patience: float) -> tuple[int, int]:
    """Create the next generation; returns it and its open file."""
    deadline = time.monotonic() + patience
    while True:
        newest = _newest(folder)
        if newest and not _is_free(folder, newest, seconds):
            if time.monotonic() > deadline:
                who = holder_of(folder) or "another process"
                raise RunLocked(f"{folder} is in use by {who}; wait for it or stop it")
            time.sleep(0.05)
            continue
        mine = folder / f"{PREFIX}{newest + 1:08d}"
        try:
            handle = os.open(mine, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            time.sleep(0.05)  # somebody was faster
            continue
        try:
            os.write(handle, json.dumps(asdict(Holder.this_process())).encode())
            if _newest(folder) == newest + 1:
                return newest + 1, handle
        except BaseException:
            _withdraw(mine, handle)
            raise
        _withdraw(mine, handle)


def _withdraw(path: Path, handle: int) -> None:
    os.close(handle)
    path.unlink(missing_ok=True)


def _is_free(folder: Path, generation: int, seconds: float) -> bool:
    path = folder / f"{PREFIX}{generation:08d}"
    holder, written = _look(path)
    if written is None or (holder is not None and holder.is_dead):
        return True
    # Without a readable holder it has just been created, or was created by somebody who died then.
    return _now(folder) - written > seconds


def _look(path: Path) -> tuple[Holder | None, float | None]:
    """Holder and time of the last renewal; no time if it was released."""
    try:
        with path.open("rb") as file:  # opening asks the server, not this host's cache
            content, written = file.read(), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:  # superseded
        return None, time.time()
    if content.startswith(RELEASED):
        return None, None
    try:
        found = json.loads(content)
        return Holder(**{one.name: found[one.name] for one in fields(Holder)}), written
    except (ValueError, KeyError, TypeError):
        return None, written


def _newest(folder: Path) -> int:
    """The newest generation, 0 if there is none."""
    names = (name.removeprefix(PREFIX) for name in os.listdir(folder) if name.startswith(PREFIX))
    return max((int(name) for name in names if name.isdigit()), default=0)


def _now(folder: Path) -> float:
    """What time it is for the file server."""
    with tempfile.TemporaryFile(dir=folder, prefix=".now.", suffix=PARTIAL) as file:
        file.write(b"x")
        file.flush()
        return os.fstat(file.fileno()).st_mtime


class _Lease:
    """A lease that this process holds, and the thread that renews it.

    Attributes:
        lost: why it is no longer held, or empty.
    """

    def __init__(self, folder: Path, seconds: float, generation: int, handle: int) -> None:
        self.lost = ""
        self._folder, self._seconds = folder, seconds
        self._generation, self._handle = generation, handle
        self._done = threading.Event()
        for old in range(1, generation):
            (folder / f"{PREFIX}{old:08d}").unlink(missing_ok=True)
        main = threading.main_thread()
        self._owner = main.ident if threading.current_thread() is main else None
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        renewed = time.monotonic()
        while not self._done.wait(self._seconds / BEATS):
            try:
                os.utime(self._handle)
                newest = _newest(self._folder)
            except OSError as error:
                if time.monotonic() - renewed > self._seconds:
                    return self._lose(f"could not renew its lease ({error.strerror})")
                continue
            if newest != self._generation:
                who = holder_of(self._folder) or "another process"
                return self._lose(f"lost its lease to {who}, as it did not answer for too long")
            renewed = time.monotonic()

    def _lose(self, how: str) -> None:
        self.lost = f"{self._folder}: this process {how}; finished blocks are kept"
        if self._owner is not None:
            signal.pthread_kill(self._owner, signal.SIGINT)

    def stop(self) -> None:
        """Stop renewing, and release what is still held; a second call does nothing."""
        if self._done.is_set():
            return
        self._done.set()
        self._thread.join()
        if not self.lost:
            with contextlib.suppress(OSError):
                os.pwrite(self._handle, RELEASED, 0)
        os.close(self._handle)
