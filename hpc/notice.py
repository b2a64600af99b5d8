"""SIGUSR1: the batch system's notice that a job is about to end, passed on to its ranks."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class Notice:
    """Listens for SIGUSR1 while it is entered; from the main thread only, else it hears nothing.

    Attributes:
        given: whether it came.
    """

    def __init__(self) -> None:
        self.given = False
        self._pass_on: Callable[[], None] | None = None
        self._before: signal.Handlers | Callable[[int, FrameType | None], object] | int | None = (
            None
        )

    def __enter__(self) -> Notice:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGUSR1, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)

    @contextlib.contextmanager
    def passed_on(self, tell: Callable[[], None]) -> Iterator[None]:
        """Call `tell` when the notice comes."""
        self._pass_on = tell
        try:
            yield
        finally:
            self._pass_on = None

    def _hear(self, _number: int, _frame: FrameType | None) -> None:
        self.given = True
        if self._pass_on is not None:
            self._pass_on()
