"""Workers that start after their driver has died: a preload of `dask worker --preload-nanny`.

A worker waits for its scheduler for minutes, as a busy driver is slow to answer. A dead one is not
slow: its host refuses the connection at once, and goes on to. So a worker that has been refused
for a while leaves, and its node is free.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable

import distributed
from distributed import Status
from distributed.comm import get_address_host_port

REFUSED = 20.0
"""Seconds of refusals after which nobody is expected any more."""
PAUSE = 2.0
"""Seconds between two tries."""
NOT_YET = {Status.undefined, Status.created, Status.init, Status.starting}
"""Of a nanny whose worker is not at work."""


def dask_setup(nanny: distributed.Nanny) -> None:
    """Watch the scheduler's port until the worker is at work."""

    def waiting() -> bool:
        return nanny.status in NOT_YET

    def watch() -> None:
        if refused(get_address_host_port(nanny.scheduler.addr), waiting):
            print(f"nobody listens at {nanny.scheduler.addr}: the driver is gone", flush=True)
            # The event loop is busy trying. The worker's own process ends with this one.
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def refused(
    place: tuple[str, int],
    waiting: Callable[[], bool],
    *,
    seconds: float = REFUSED,
    pause: float = PAUSE,
) -> bool:
    """True once a port has refused connections for so long; False once nobody waits any more.

    Whatever else happens (no answer, no route) is no sign of a death.

    Args:
        place: host and port.
        waiting: whether there is still somebody to wait for it.
        seconds: of refusals in a row.
        pause: seconds between two tries.
    """
    since: float | None = None
    while waiting():
        try:
            socket.create_connection(place, timeout=pause).close()
            since = None
        except ConnectionRefusedError:
            since = time.monotonic() if since is None else since
            if time.monotonic() - since >= seconds:
                return True
        except OSError:
            since = None
        time.sleep(pause)
    return False
