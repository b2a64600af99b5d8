"""Work that ends before its Slurm job does: a worker short of time declines instead of starting.

Dask's own `--lifetime` interrupts what runs, so long tasks would be begun again for ever.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import distributed

START, DEADLINE = "GFDT_START", "GFDT_DEADLINE"
"""Environment variables of a worker: seconds since the epoch of its start and of its end."""

_begun = False
"""Whether this process has had a task."""


@dataclass(frozen=True)
class Declined:
    """Returned by a worker that has too little time left.

    Attributes:
        worker: its address.
    """

    worker: str


def in_time(needed: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function if that ends before this worker does; for tasks of Dask.

    Args:
        needed: seconds that the call may take.
        function: what to call.
        arguments: of the function.

    Returns:
        What the function returns, or a `Declined`.
    """
    global _begun
    start = float(os.environ.get(START, "-inf"))
    end = float(os.environ.get(DEADLINE, "inf"))
    now, first, _begun = time.time(), not _begun, True
    # A new worker takes its first task however long that is: no other would have more time.
    if now + needed > end and not (first and now < (start + end) / 2):
        return Declined(distributed.get_worker().address)
    return function(*arguments)


async def leave() -> None:
    """Let this worker decline what comes after its present task; for `Client.run`.

    A coroutine, as Dask waits for the answer of anything else.
    """
    os.environ[START], os.environ[DEADLINE] = "0", "1"


class Needed:
    """How long the next task may take, judged by those before."""

    MARGIN = 1.5
    """Times the slowest of the last tasks."""

    def __init__(self) -> None:
        self._last: list[float] = []

    def note(self, facts: Any) -> None:
        """Take the `seconds` of a receipt into account."""
        seconds = facts.get("seconds")
        if isinstance(seconds, int | float) and math.isfinite(seconds):
            self._last = [*self._last[-31:], float(seconds)]

    @property
    def seconds(self) -> float:
        """Seconds; 0 while nothing is known."""
        return self.MARGIN * max(self._last, default=0.0)
