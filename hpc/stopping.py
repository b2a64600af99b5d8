"""How a command ends that a signal asks to stop: one line, and the exit code 128 + signal.

Imports next to nothing: it is there before all that is slow to import.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)
"""What Ctrl-C and batch systems send."""

AGAIN = 0.05
"""Seconds until a signal that came at a bad moment is tried again."""

IMPORTS = "<frozen importlib"
"""File names of the import system, in whose middle an exception may come out as anything."""

VALIDATION = "pydantic."
"""Modules that call back, drop what is raised there and go on with other values."""


class Stopped(BaseException):
    """A signal asked this process to stop; passes through everything that tidies up.

    Extension modules, finalisers and hooks of a fork may drop an exception. One that nobody
    has `heard` sends its signal again as it goes.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self._heard = False

    def heard(self) -> str:
        """What is told to the user, by the one who ends the process with 128 + number."""
        self._heard = True
        return _last_words(self.number)

    def __del__(self) -> None:
        global _tidying
        if not self._heard and not sys.is_finalizing():
            _tidying = False
            _again(self.number)


def stop_at_once() -> None:
    """From now on a signal ends this process where it stands: for the time before any work."""
    for number in STOPPING:
        signal.signal(number, _leave)


def stop_tidily() -> None:
    """From now on a signal raises `Stopped`, and a second one ends this process at once.

    Not in the middle of an import, of a validation or of what is `unbroken`: after it.
    """
    global _tidying
    _tidying = False
    for number in STOPPING:
        signal.signal(number, _raise)
    if not isinstance(sys.unraisablehook, _NoWord):
        sys.unraisablehook = _NoWord(sys.unraisablehook)


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """What is done here is done whole: a signal waits for its end (seconds, not more)."""
    global _unbroken
    _unbroken += 1
    try:
        yield
    finally:
        _unbroken -= 1


_unbroken = 0
"""How many blocks of the main thread are not to be broken now."""

_tidying = False
"""Whether a `Stopped` is on its way."""


class _NoWord:
    """Of a dropped `Stopped`, which comes again, nothing is said; of others what was before."""

    def __init__(self, otherwise: Callable[[Any], object]) -> None:
        self._otherwise = otherwise

    def __call__(self, dropped: Any) -> None:
        if not isinstance(dropped.exc_value, Stopped):
            self._otherwise(dropped)


def _last_words(number: int) -> str:
    return f"gfdt: stopped by {signal.Signals(number).name}; the same command continues"


def _leave(number: int, _frame: FrameType | None) -> None:
    print(_last_words(number), file=sys.stderr, flush=True)
    os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> None:
    if _unbroken or _delicate(frame):
        _again(number)
        return
    global _tidying
    if _tidying:  # a second one does not wait for tidiness
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    _tidying = True
    raise Stopped(number)


def _again(number: int) -> None:
    threading.Timer(AGAIN, os.kill, (os.getpid(), number)).start()


def _delicate(frame: FrameType | None) -> bool:
    while frame is not None:
        name = frame.f_globals.get("__name__") or ""
        if frame.f_code.co_filename.startswith(IMPORTS) or name.startswith(VALIDATION):
            return True
        frame = frame.f_back
    return False
