"""What can go wrong in the machine room, each told in one line and with an exit code."""

from __future__ import annotations

TRY_AGAIN = 75
"""Exit code of a failure that the same command may get past (BSD sysexits `EX_TEMPFAIL`)."""

CONFIGURATION = 78
"""Exit code of a failure that comes back until something is changed (`EX_CONFIG`)."""


class MachineError(RuntimeError):
    """A failure of the machine, told in one line: what happened, where, and what to do.

    Attributes:
        exit_code: exit code of the command that ends with this error.
    """

    exit_code: int = TRY_AGAIN

    def __init__(self, message: str, *, exit_code: int | None = None) -> None:
        super().__init__(message)
        if exit_code is not None:
            self.exit_code = exit_code


class StoreError(MachineError):
    """A store could not be read or written."""


class CorruptBlock(StoreError):
    """Data or a receipt is missing or not what was written."""


class DiskFull(StoreError):
    """No space or no quota left."""


class LayoutError(StoreError):
    """A store has another layout than needed, or a block does not fit its chunks."""

    exit_code = CONFIGURATION


class RunLocked(MachineError):
    """Another process works in the run folder."""


class LaunchError(MachineError):
    """MPI ranks or Slurm jobs could not be started as asked."""

    exit_code = CONFIGURATION


class Paused(MachineError):
    """Work was saved and left unfinished because this process was asked to stop."""
