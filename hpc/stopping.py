"""How a command ends that a signal asks to stop: one line, and the exit code 128 + signal.

Imports next to nothing: it is there before all that is slow to import.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)
"""What Ctrl-C and batch systems send."""


AGAIN = 0.05
"""Seconds until a signal that came during an import is tried again."""


class Stopped(BaseException):
    """A signal asked this process to stop; passes through everything that tidies up.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def stop_at_once() -> None:
    """From now on a signal ends this process where it stands: for the time before any work."""
    for number in STOPPING:
        signal.signal(number, _leave)


def stop_tidily() -> None:
    """From now on a signal raises `Stopped`, and a second one ends this process at once.

    Not in the middle of an import, where an exception may come out as anything: after it.
    """
    for number in STOPPING:
        signal.signal(number, _raise)


def last_words(number: int) -> str:
    """What is told to the user."""
    return f"gfdt: stopped by {signal.Signals(number).name}; the same command continues"


def _leave(number: int, _frame: FrameType | None) -> None:
    print(last_words(number), file=sys.stderr, flush=True)
    os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> None:
    if _importing(frame):
        threading.Timer(AGAIN, os.kill, (os.getpid(), number)).start()
        return
    for each in STOPPING:
        signal.signal(each, signal.SIG_DFL)  # a second one does not wait for tidiness
    raise Stopped(number)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
