"""Progress for people: bars with an ETA on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

LOG_SECONDS = 15.0
"""Least time between two lines of one stage in a log."""


class Progress:
    """Callable with (stage, done, total); see `runs.Notify`."""

    def __init__(self, *, quiet: bool, verbose: int = 0) -> None:
        self._quiet, self._every = quiet, 0.0 if verbose else LOG_SECONDS
        self._bars = RichProgress(
            TextColumn("{task.description:>10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, TaskID] = {}
        self._first: dict[str, tuple[float, int]] = {}
        self._last: dict[str, float] = {}
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        if self._terminal and not self._quiet:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars.live.is_started:  # else it prints an empty line
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` blocks of a stage are finished."""
        if self._quiet:
            return
        if self._terminal:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total)
            self._bars.update(self._tasks[stage], completed=done, total=total)
            return
        now = time.monotonic()
        began, before = self._first.setdefault(stage, (now, done))
        if done < total and now - self._last.get(stage, -self._every) < self._every:
            return
        self._last[stage] = now
        line = f"{stage} done={done} of={total}"
        if before < done < total:
            line += f" eta_s={(now - began) / (done - before) * (total - done):.0f}"
        print(line, file=sys.stderr, flush=True)
