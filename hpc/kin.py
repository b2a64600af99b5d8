"""Processes that end with the one that started them, even if that is killed.

Linux only; elsewhere they go on, and whoever waits for them must end them.
"""

from __future__ import annotations

import ctypes
import os
import sys

from hpc.errors import TRY_AGAIN

_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def end_with(parent: int, number: int) -> None:
    """Have the kernel send this process a signal when its parent ends.

    Args:
        parent: its process id; if it has ended already, so does this process, with code 75.
        number: the signal.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            os._exit(TRY_AGAIN)
