"""Starting again what failed, as long as it gets further."""

from __future__ import annotations

import time
from collections.abc import Callable

from hpc.errors import CONFIGURATION, LaunchError, MachineError
from hpc.notice import Notice

FRUITLESS = 3
"""Failures in a row without progress after which another try would fail as well."""

PAUSE = 1.0
"""Seconds between a failure that brought nothing and the next try."""


def keep_trying(
    work: Callable[[], None],
    progress: Callable[[], int],
    *,
    restarts: int,
    notice: Notice,
    tell: Callable[[str], None],
) -> None:
    """Do some work that goes on from where it was saved, again after every failure.

    Args:
        work: raises MachineError where it fails.
        progress: how far it has been saved; a larger number is further.
        restarts: how often to start again.
        notice: once it is given, nothing is started again.
        tell: called with a line before every new try.

    Raises:
        LaunchError: the work cannot be started at all.
        MachineError: the last failure; with exit code 78 where it comes back without progress.
    """
    fruitless = 0
    for tried in range(restarts + 1):
        before = progress()
        try:
            return work()
        except LaunchError:
            raise
        except MachineError as error:
            fruitless = 0 if progress() > before else fruitless + 1
            if fruitless == FRUITLESS:
                raise MachineError(
                    f"{error}; failed {FRUITLESS} times in a row without progress",
                    exit_code=CONFIGURATION,
                ) from error
            if notice.given or tried == restarts:
                raise
            tell(f"{error}; starting again from {progress()}, {tried + 1} of {restarts}")
        if fruitless:  # what lost a rank by accident is over
            time.sleep(PAUSE)
